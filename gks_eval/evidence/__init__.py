"""From lm-eval's files to decisions: compare, gate, paper tables and report.

This wing reads files only: lm-eval's ``results_*.json`` and ``samples_*.jsonl``, written by any
model, and the versioned JSON of routing shares and library geometry. It never imports torch,
transformers or lm_eval.
"""
