"""Many settings on one loaded base model, each in its own folder; a killed run is resumed.

- `settings`: what a grid is, and the grammar of its settings
- `prepare`: what is checked before the base is loaded
- `runner`: runs all settings on one loaded base
- `on_ray`: runs them on the workers of a Ray cluster; `ray_worker` is one of these, `units` divides
  the work among them
- `shared_tasks`: tasks and requests, made once for all settings
- `cell`: one setting, from its evaluation to its folder; `cell_files` writes it
- `kept_requests`: the requests that an unfinished setting or a part of it has scored
- `parts`: one setting whose items are read in parts
- `kept`: which settings are finished already
- `grid_plan`: the size of a grid before it runs, counted by `weightless`, a model without weights
- `evaluate`: lm-eval's evaluation, called by `cell` and `grid_plan`
- `task_index`: lm-eval's index with the package's tasks, and the content of a grid's tasks
- `profile`: where a setting spends its time
- `table`: the table of accuracies
"""

from __future__ import annotations

from gks_eval.grid.cell import CELL_FILE
from gks_eval.grid.runner import run_grid
from gks_eval.grid.settings import Cell, Grid, parse_settings
from gks_eval.grid.task_index import task_manager

__all__ = ["CELL_FILE", "Cell", "Grid", "parse_settings", "run_grid", "task_manager"]
