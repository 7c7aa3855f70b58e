"""`python -m benchmarks`: this package and its peers side by side, in one run, on one machine.

- `timing`, `memory`: how a number is taken
- `peers`, `random_library`, `tiny`: what is measured against what, and on which weights
- `layer`, `model`, `evaluation`, `startup`, `growth`: the rows
- `record`, `bars`, `tables`, `plot`: what becomes of the numbers
- `run`: all of it, in order
"""
