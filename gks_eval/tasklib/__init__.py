"""What the YAML files of ``tasks/`` call: readers of the sets, metrics, the task classes, the lint.

``faults``, ``metrics``, ``bbh`` and ``sets`` are pure functions; ``task`` and ``whole_text`` are
lm-eval task classes; ``lint`` walks over loaded tasks.
"""
