"""Training: a recipe becomes a library of adapters.

Data flow: recipe -> `jobs` -> `sources` (rows, texts) -> `examples` and `windows`
(token ids and labels) -> `sft` (one adapter) -> `library_writer` (library.yaml). `whole_library`
runs the jobs; `clusters` and `conversion` make libraries from existing adapters.
"""
