"""General knowledge subtraction: the residual of a task adapter, one rule per file.

GenKnowSub, eq. 1: ``LoRA_res = LoRA_task - LoRA_general``. The rules differ in what the minus sign
is applied to. Joint rules subtract no general adapter and change all experts of a layer together.
No rule writes to its arguments.
"""
