"""Many settings over one load of the base model, each into a folder of its own, resumable.

- `settings`: what a grid is, and the grammar of its settings
- `run`: the walk over the settings on one loaded base
- `cell`: one setting, from its evaluation to its folder
- `kept`: which settings are finished already
- `plan`: what a grid will compute, counted by `weightless`, a model without weights
- `evaluate`: lm-eval's evaluation, as these two ask for it
- `tasks`: lm-eval's index with the package's tasks, and what a grid's tasks hold
- `table`: the accuracies side by side
"""

from __future__ import annotations

from gks_eval.grid.cell import CELL_FILE
from gks_eval.grid.run import run_grid
from gks_eval.grid.settings import Cell, Grid, parse_settings
from gks_eval.grid.tasks import task_manager

__all__ = ["CELL_FILE", "Cell", "Grid", "parse_settings", "run_grid", "task_manager"]
