"""Output of `gks-eval train`: bars while it runs, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from gks_eval.training.run_callback import RunCallback
from gks_eval.util.quiet import quiet_libraries

if TYPE_CHECKING:
    from gks_eval.training.estimate import Estimate
    from gks_eval.training.jobs import Job, TrainingPlan
    from gks_eval.training.run_callback import Step
    from gks_eval.training.whole_library import TrainingOutcome

__all__ = ["TrainingView", "clock", "quiet_training", "show_estimate"]

# With fewer steps an adapter stays near its start: warm-up gives the first step a rate of 0.
FEW_STEPS = 5


def few_steps(names: Sequence[str]) -> str:
    """Return a warning about adapters with very few steps, and how to give them more."""
    return (
        f"{', '.join(names)}: fewer than {FEW_STEPS} optimiser steps teach almost nothing; lower "
        "the schedule's accumulation, or give more rows or epochs"
    )


def quiet_training() -> None:
    """Silence the output of the libraries while they load a base."""
    from transformers.utils import logging

    quiet_libraries()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def clock(seconds: float) -> str:
    """Write a duration as 1:05 or 2:00:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def show_estimate(estimate: Estimate, console: Console | None = None) -> None:
    """Print the cost of a run and the faults that would stop it."""
    console = console or Console(emoji=False)
    table = Table("adapter", *(Column(c, justify="right") for c in ("rows", "tokens", "steps")))
    for job in estimate.jobs:
        known = (job.rows, job.tokens, job.steps)
        name = f"{job.key} (finished before)" if job.finished else job.key
        table.add_row(name, *("?" if n is None else f"{n:,}" for n in known))
    console.print(table)
    if not estimate.faults and any(job.rows is None for job in estimate.jobs):
        console.print("?: known only from the data, which a dry run does not read", highlight=False)
    if (memory := estimate.memory) is not None:
        parts = {
            "program": memory.program,
            "base": memory.base,
            "adapter and optimiser": memory.adapter,
            "activations": memory.activations,
        }
        shares = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items() if size)
        console.print(
            f"memory: about {memory.total / 2**30:.2f} GB at the peak ({shares})",
            highlight=False,
        )
    if few := [job.key for job in estimate.jobs if job.steps is not None and job.steps < FEW_STEPS]:
        console.print(few_steps(few), highlight=False, markup=False, soft_wrap=True)
    for remark in estimate.remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    for fault in estimate.faults[1:]:  # the first is what the command ends with
        console.print(f"fault: {fault}", highlight=False, markup=False, soft_wrap=True)


def _too_long(record: Mapping[str, Any]) -> str:
    count, named = record["targets_too_long"], record["first_too_long"]
    if not count:
        return "0"
    more = ", ..." if count > len(named) else ""
    return f"{count} (row {', '.join(map(str, named))}{more})"


class TrainingView(RunCallback):
    """Draws the progress of a run; without a terminal, prints one line per adapter."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(emoji=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._library: TaskID | None = None
        self._adapter: TaskID | None = None
        self._others = 0
        self._began = 0.0
        self._took: list[float] = []
        self._records: dict[str, Mapping[str, Any]] = {}

    def __enter__(self) -> TrainingView:
        quiet_training()
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def planned(self, plan: TrainingPlan, jobs: Sequence[Job]) -> None:
        """Start the library's bar and print the remarks on the recipe."""
        self._library = self._bars.add_task("library", total=len(jobs), note="")
        self._others = len(jobs)
        for remark in plan.remarks():
            self.console.print(remark, highlight=False, soft_wrap=True)

    def started(self, job: Job, steps: int) -> None:
        """Start the adapter's bar."""
        self._began, self._others = time.monotonic(), self._others - 1
        self._adapter = self._bars.add_task(job.key, total=steps, note="")

    def step(self, job: Job, step: Step) -> None:  # noqa: ARG002 - the adapter has its bar
        """Advance the bars; the remaining time assumes that all adapters take equally long."""
        assert self._library is not None
        assert self._adapter is not None
        note = (
            f"loss {step.loss:.3f}  {step.tokens_per_second:.0f} tokens/s"
            f"  {clock(step.seconds_left)} left"
        )
        self._bars.update(self._adapter, completed=step.step, total=step.of, note=note)
        this = time.monotonic() - self._began + step.seconds_left
        usual = sum(self._took, this) / (len(self._took) + 1)
        left = step.seconds_left + self._others * usual
        self._bars.update(self._library, note=f"about {clock(left)} left")

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        """Print the result of the adapter."""
        self._took.append(time.monotonic() - self._began)
        self._advance()
        self._records[job.key] = record
        held = record.get("held_out")
        held_out = f", held-out loss {held['base']:.3f} -> {held['adapter']:.3f}" if held else ""
        count = record["steps"]
        self.console.print(
            f"{job.key}: {count} {'step' if count == 1 else 'steps'}, {clock(self._took[-1])},"
            f" {record['tokens_per_second']:.0f} tokens/s, {record['peak_memory_mb']} MB,"
            f" loss {record['loss_first']:.3f} -> {record['loss_last']:.3f}{held_out}",
            highlight=False,
            soft_wrap=True,
        )

        if count < FEW_STEPS:
            self.console.print(few_steps([job.key]), highlight=False, markup=False, soft_wrap=True)

    def skipped(self, job: Job, why: str) -> None:
        """Print why the adapter is not trained."""
        self._others -= 1
        self._advance()
        self.console.print(f"{job.key}: {why}", highlight=False)

    def _advance(self) -> None:
        if self._library is not None:
            self._bars.advance(self._library)
        if self._adapter is not None:
            self._bars.remove_task(self._adapter)
            self._adapter = None

    def table(self, outcome: TrainingOutcome, folder: Path) -> None:
        """Print what was cut or left out, and the path of the library."""
        cut = {
            key: record
            for key, record in self._records.items()
            if record["sources_cut"] or record["targets_too_long"] or record["texts_too_short"]
        }
        if cut:
            table = Table("adapter", "rows", "sources cut", "targets too long", "texts too short")
            for key, record in cut.items():
                table.add_row(
                    key,
                    str(record["rows"]),
                    str(record["sources_cut"]),
                    _too_long(record),
                    str(record["texts_too_short"]),
                )
            self.console.print(table)
        if outcome.manifest is not None:
            self.console.print(
                f"{outcome.manifest}: the library is complete; evaluate it with "
                f"--model_args library={folder}, look at it with gks-eval library show {folder}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        elif outcome.missing:
            self.console.print(
                f"{folder}: not yet a library, still missing {', '.join(outcome.missing)}",
                highlight=False,
                soft_wrap=True,
            )
