"""Whether a treatment beats its controls: a function of item scores alone.

Every control gives one difference per item, treatment less control, and the mean over the tasks is
tested as a comparison tests it (`gks_eval.evidence.measure`), with Holm's correction over all
controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gks_eval.evidence.measure import Changes, Measurement, measure_group, measure_task
from gks_eval.evidence.pairing import Pairing
from gks_eval.evidence.question import Contrast, Role, State
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.power import needed_pairs
from gks_eval.evidence.stats.streams import Floats

__all__ = ["Rules", "Sample", "best_of_the_other_half", "judge", "mean_of_draws"]

# Arrays of scores come without records of their items.
_NO_RECORDS: Final = Pairing((), 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a control counts as beaten.

    Attributes:
        alpha: Level of all tests together.
        margin: Smallest difference that matters.
        weighted: Whether the mean weighs tasks by their items.
    """

    alpha: float = 0.05
    margin: float = 0.02
    weighted: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One control, item by item.

    Attributes:
        name: The control's.
        role: The control's.
        draws: Settings that it was made of.
        score: Its mean score.
        changes: By task, treatment less control, (n_t,); scores lie between 0 and 1.
        binary: Whether all changes are -1, 0 or 1.
        clusters: By task a label per item, equal for linked items; nothing for tasks without links.
    """

    name: str
    role: Role
    draws: int
    score: float
    changes: Mapping[str, Floats]
    binary: bool
    clusters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def mean_of_draws(draws: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Return per task and item the mean over draws.

    So the draws of a control count as one control. The interval then says how the items vary, with
    the draws as they are.
    """
    return {task: np.mean([draw[task] for draw in draws], axis=0) for task in draws[0]}


def best_of_the_other_half(experts: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """Return the changes against the best single expert per task, without selection bias.

    A task's items are split by even and odd position. For the items of each half, the expert with
    the best mean score on the other half is taken; the first of equals. So no item chooses the
    expert that it is scored with. A task of one item takes the mean over the experts.

    Args:
        experts: By expert the treatment's scores less the expert's, by task, (n_t,).
    """
    found: dict[str, Floats] = {}
    for task in experts[0]:
        table = np.array([expert[task] for expert in experts])
        if table.shape[1] < 2:
            found[task] = table.mean(axis=0)
            continue
        chosen = np.empty(table.shape[1])
        for half in (0, 1):
            # The best expert is the one that the treatment exceeds the least.
            best = int(np.argmin(table[:, 1 - half :: 2].mean(axis=1)))
            chosen[half::2] = table[best, half::2]
        found[task] = chosen
    return found


def judge(samples: Sequence[Sample], rules: Rules) -> list[Contrast]:
    """Test the treatment against every control.

    Args:
        samples: The controls, all on the same tasks.
        rules: When one counts as beaten.
    """
    measured = [_measure(sample, rules) for sample in samples]
    p_values = [one.test.two_sided_p() for one in measured]
    return [
        _contrast(sample, one, p, adjusted, rules, len(samples))
        for sample, one, p, adjusted in zip(
            samples, measured, p_values, holm(p_values), strict=True
        )
    ]


def _measure(sample: Sample, rules: Rules) -> Measurement:
    """Measure by the exact test of counts if it is one task of zeros and ones."""
    parts = {
        task: Changes(
            values, sample.binary, _NO_RECORDS, values, clusters=sample.clusters.get(task, ())
        )
        for task, values in sample.changes.items()
    }
    if len(parts) == 1 and sample.binary:
        return measure_task(next(iter(parts.values())))
    return measure_group(parts, rules.weighted)


def _contrast(
    sample: Sample,
    measured: Measurement,
    p: float,
    p_holm: float,
    rules: Rules,
    controls: int,
) -> Contrast:
    low, high = measured.test.interval(1.0 - rules.alpha) or (None, None)
    # Per item, so that the two kinds of measurement have one unit.
    variance = measured.variance * measured.n / measured.units
    single = measured.binary and measured.units > 1
    return Contrast(
        name=sample.name,
        role=sample.role,
        draws=sample.draws,
        score=sample.score,
        difference=measured.change,
        low=low,
        high=high,
        p=p,
        p_holm=p_holm,
        n=measured.n,
        gains=measured.gains,
        losses=measured.losses,
        needed=needed_pairs(variance, rules.margin, rules.alpha / controls, binary=single),
        state=_state(measured.change, high, p_holm, rules),
    )


def _state(difference: float, high: float | None, p: float, rules: Rules) -> State:
    if p < rules.alpha:
        return "beaten" if difference > 0.0 else "better"
    return "as well" if high is not None and high < rules.margin else "undecided"
