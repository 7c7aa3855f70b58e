"""Callbacks of a training run: the command line displays them, tests record them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gks_eval.training.jobs import Job, TrainingPlan

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["RunCallback", "Step", "step_callback"]


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        step: Its number, from 1.
        of: Total number of steps.
        loss: Mean over the scored tokens of the step.
        tokens_per_second: Speed since this process started the adapter.
        seconds_left: Time until the adapter is done, at this speed.
    """

    step: int
    of: int
    loss: float
    tokens_per_second: float
    seconds_left: float


class RunCallback:
    """Callbacks of a run over several adapters; these do nothing."""

    def planned(self, plan: TrainingPlan, jobs: Sequence[Job]) -> None:
        """A run over `jobs` starts."""

    def started(self, job: Job, steps: int) -> None:
        """An adapter's training starts."""

    def step(self, job: Job, step: Step) -> None:
        """An optimiser step is done."""

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        """An adapter is written."""

    def skipped(self, job: Job, why: str) -> None:
        """An adapter is finished, or another process trains it."""


def step_callback(job: Job, callback: RunCallback, tokens_per_step: float) -> TrainerCallback:
    """Return a trainer callback that passes each step to `callback`."""
    from transformers import TrainerCallback

    class StepReporter(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the trainer's signature
            self.start_time, self.first = time.monotonic(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            logs = kwargs.get("logs") or {}
            if "loss" not in logs or not state.is_world_process_zero:
                return
            seconds = max(time.monotonic() - self.start_time, 1e-9)
            done = max(state.global_step - self.first, 1)
            callback.step(
                job,
                Step(
                    step=state.global_step,
                    of=state.max_steps,
                    loss=float(logs["loss"]),
                    tokens_per_second=done * tokens_per_step / seconds,
                    seconds_left=(state.max_steps - state.global_step) * seconds / done,
                ),
            )

    return StepReporter()
