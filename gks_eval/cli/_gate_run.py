"""A gate that evaluates the candidate itself, in parts, and stops early."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gks_eval.cli._lm_eval import lm_eval_errors

if TYPE_CHECKING:
    from gks_eval.evidence.policy import GatePolicy
    from gks_eval.evidence.verdict import Verdict
    from gks_eval.grid import Grid

__all__ = ["run_gate"]


def run_gate(grid: Grid, baseline: str, policy: GatePolicy, cluster: str) -> Verdict:
    """Evaluate the setting of a grid until the verdict against saved results is clear.

    Args:
        grid: One setting, with tasks and output folder.
        baseline: Results file or folder.
        policy: What counts as a regression.
        cluster: As the option.

    Raises:
        GksError: The baseline cannot be used, the setting cannot be run, or the output folder holds
            something else.
    """
    from rich.console import Console

    from gks_eval.errors import ResultsError
    from gks_eval.evidence.clusters import with_clusters
    from gks_eval.evidence.looks_file import LOOKS_FILE, read_looks
    from gks_eval.evidence.runs import one_run
    from gks_eval.evidence.staged import StagedGate
    from gks_eval.grid.parts import open_parts
    from gks_eval.util.files import disk_errors, write_text
    from gks_eval.util.quiet import quiet_libraries

    console = Console(stderr=True, emoji=False)
    quiet_libraries()
    (run,) = with_clusters([one_run(baseline)], cluster)
    with lm_eval_errors(), open_parts(grid) as parts:
        tasks, groups = parts.content["tasks"], parts.content["groups"]
        gate = StagedGate(run, list(tasks), list(groups), policy, grid.settings[0])
        gate.check_tasks(parts.versions, {name: task["items"] for name, task in tasks.items()})
        kept = parts.bind(baseline=gate.stamp, policy=policy.model_dump(mode="json"))
        file, before = grid.output / LOOKS_FILE, read_looks(grid.output)
        if before is not None and before.setting != grid.settings[0]:
            raise ResultsError(
                f"{file} holds the looks of setting {before.setting!r:.200}; name another --output."
            )
        if kept and before is not None and before.verdict is not None:
            parts.close()  # a run killed after its verdict did not
            return before.verdict
        if not kept:
            with disk_errors(file):
                file.unlink(missing_ok=True)
        while gate.verdict is None:
            began = time.monotonic()
            items = gate.wanted()
            parts.read(items)
            (candidate,) = with_clusters([one_run(str(parts.folder))], cluster)
            gate.take(candidate, time.monotonic() - began)
            write_text(file, gate.to_file().to_json())
            look = gate.looks[-1]
            still = sum(check.state == "open" for check in look.checks)
            console.print(
                f"look at {100 * look.share:.0f}% of the items: {sum(look.items.values()):,} read, "
                f"{still} of {len(look.checks)} checks open",
                markup=False,
                highlight=False,
            )
        parts.close()
    return gate.verdict
