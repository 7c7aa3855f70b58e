"""The gate's policy file: what counts as a regression, and which tasks are required."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gks_eval.util.yaml import FrozenModel

__all__ = ["GatePolicy", "Limits"]


def _fraction(value: float | None) -> float | None:
    # A drop of 2, meant as two points, would tolerate anything.
    if value is not None and not 0.0 <= value < 1.0:
        raise ValueError("write a drop as a fraction from 0 to below 1: 0.02 is two points")
    return value


Alpha = Annotated[float, Field(gt=0.0, lt=0.5)]
# Strict: `true` would otherwise count as one pair.
Pairs = Annotated[int, Field(ge=1, strict=True)]
# No value lies below a floor of NaN.
Floor = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=300)]


class Limits(FrozenModel):
    """Limits of one task or group; missing ones are taken from the top of the policy.

    Attributes:
        max_drop: Largest tolerated drop, in the metric's own unit (0.02 is two points of accuracy).
        alpha: Level of its test, after correction.
        min_pairs: Smallest number of paired items to judge on.
        floor: Value that the candidate must reach, whatever the baseline has.
        metric: ``metric`` or ``metric,filter``, or a list of them with one check each; by default
            the task's usual one.
        mid_p: Test a task's accuracies by the mid-p instead of the exact test; also if the top of
            the policy says so.
    """

    max_drop: float | None = None
    alpha: Alpha | None = None
    min_pairs: Pairs | None = None
    floor: Floor | None = None
    metric: Name | tuple[Name, ...] | None = None
    mid_p: bool = False

    _fraction = field_validator("max_drop")(_fraction)

    @property
    def metrics(self) -> tuple[str | None, ...]:
        """Return the metrics to check, (None,) for the usual one."""
        return self.metric if isinstance(self.metric, tuple) else (self.metric,)


class GatePolicy(FrozenModel):
    """The typed content of one gate.yaml; every key has a default.

    Attributes:
        version: Of this format.
        max_drop: As in `Limits`, the default for all tasks and groups.
        alpha: Maximum false-alarm rate for a candidate within tolerance.
        min_pairs: As in `Limits`.
        require: What a check needs to pass: ``no-regression-shown``, or ``shown``, that the
            candidate is not worse by `max_drop`.
        mid_p: As in `Limits`.
        correction: ``holm`` controls alpha over all checks together, ``none`` per check.
        tasks: Limits by task.
        groups: Limits by group.
        required: Tasks and groups that must be present.
        only_listed: Check only `tasks`, `groups` and `required`, instead of everything in the
            baseline.
    """

    version: Literal[1] = 1
    max_drop: float = 0.0
    alpha: Alpha = 0.05
    min_pairs: Pairs = 100
    require: Literal["no-regression-shown", "shown"] = "no-regression-shown"
    mid_p: bool = False
    correction: Literal["holm", "none"] = "holm"
    tasks: dict[Name, Limits] = Field(default_factory=dict)
    groups: dict[Name, Limits] = Field(default_factory=dict)
    required: list[Name] = Field(default_factory=list)
    only_listed: bool = False

    _fraction = field_validator("max_drop")(_fraction)

    @field_validator("tasks", "groups", mode="before")
    @classmethod
    def _empty_entries(cls, entries: object) -> object:
        # `piqa:` with nothing below it is a task with the default limits.
        if isinstance(entries, dict):
            return {name: {} if limits is None else limits for name, limits in entries.items()}
        return entries

    def limits(self, kind: Literal["task", "group"], name: str) -> Limits:
        """Return a task's or group's limits with the defaults filled in."""
        own = (self.tasks if kind == "task" else self.groups).get(name, Limits())
        return Limits(
            max_drop=self.max_drop if own.max_drop is None else own.max_drop,
            alpha=self.alpha if own.alpha is None else own.alpha,
            min_pairs=self.min_pairs if own.min_pairs is None else own.min_pairs,
            floor=own.floor,
            metric=own.metric,
            mid_p=own.mid_p or self.mid_p,
        )
