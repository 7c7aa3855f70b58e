"""`python -m benchmarks`: compares this package with its peers, in one run on one machine.

- `timing`, `memory`: measurement of time and memory
- `peers`, `random_library`, `tiny`: the peers, and the weights that all run on
- `layer`, `routers`, `experts`, `whole_model`, `full_model`, `evaluation`, `generation`, `startup`,
  `growth`, `library`: the rows
- `record`, `bars`, `tables`, `plot`: output of the numbers
- `suite`: all of it, in order
- `item_score`, `evidence`: simulated pairs of runs, commands of their own
- `evidence_peer`: answers `evidence` in the environment of another tool
"""
