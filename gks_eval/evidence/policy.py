"""The gate's policy file: what counts as a regression, and what must be there to judge it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gks_eval.util.yaml import FrozenModel

__all__ = ["GatePolicy", "Limits"]


def _fraction(value: float | None) -> float | None:
    # A drop of "2" would tolerate anything: the likeliest slip must not open the gate.
    if value is not None and not 0.0 <= value < 1.0:
        raise ValueError("write a drop as a fraction from 0 to below 1: 0.02 is two points")
    return value


Alpha = Annotated[float, Field(gt=0.0, lt=0.5)]
# Strict: `true` would otherwise count as one pair.
Pairs = Annotated[int, Field(ge=1, strict=True)]
# Nothing lies below a floor of NaN: such a floor would hold nothing.
Floor = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=300)]


class Limits(FrozenModel):
    """What one task or group may do; what is left out is taken from the policy's top.

    Attributes:
        max_drop: Largest tolerated drop, in the metric's own unit (0.02 is two points of accuracy).
        alpha: Level of its test, after the correction.
        min_pairs: Fewest paired items that it may be judged on.
        floor: Value that the candidate must reach whatever the baseline does.
        metric: ``metric`` or ``metric,filter``; else the task's usual one.
    """

    max_drop: float | None = None
    alpha: Alpha | None = None
    min_pairs: Pairs | None = None
    floor: Floor | None = None
    metric: Name | None = None

    _fraction = field_validator("max_drop")(_fraction)


class GatePolicy(FrozenModel):
    """The typed content of one gate.yaml; every key has a default.

    Attributes:
        version: Of this format.
        max_drop: As in `Limits`, for everything that does not say otherwise.
        alpha: Chance at most of failing a candidate that is no worse than tolerated.
        min_pairs: As in `Limits`.
        correction: ``holm`` holds alpha over all checks together; ``none`` for each by itself.
        tasks: Limits by task.
        groups: Limits by group.
        required: Tasks and groups without which nothing can be judged.
        only_listed: Check only what `tasks`, `groups` and `required` name, instead of everything
            that the baseline has.
    """

    version: Literal[1] = 1
    max_drop: float = 0.0
    alpha: Alpha = 0.05
    min_pairs: Pairs = 100
    correction: Literal["holm", "none"] = "holm"
    tasks: dict[Name, Limits] = Field(default_factory=dict)
    groups: dict[Name, Limits] = Field(default_factory=dict)
    required: list[Name] = Field(default_factory=list)
    only_listed: bool = False

    _fraction = field_validator("max_drop")(_fraction)

    @field_validator("tasks", "groups", mode="before")
    @classmethod
    def _empty_entries(cls, entries: object) -> object:
        # `piqa:` without anything below it is a task with the default limits.
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
        )
