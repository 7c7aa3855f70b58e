"""Training: a recipe becomes a library of adapters.

The way of the data: recipe -> `plan` (jobs) -> `sources` (rows, texts) -> `examples` and `windows`
(token ids and labels) -> `sft` (one adapter) -> `library_writer` (library.yaml). `run` walks the
jobs; `clusters` and `convert` make libraries out of adapters that already exist.
"""
