"""Whether a treatment beats its controls: a function of item scores alone.

Every control gives one difference per item, treatment less control, and the mean over the tasks is
tested as a comparison tests it (`gks_eval.evidence.measure`), with Holm's correction over all
controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import norm

from gks_eval.evidence.averages import group_weights
from gks_eval.evidence.measure import Changes, Measurement, measure_group, measure_task
from gks_eval.evidence.pairing import Pairing
from gks_eval.evidence.question import Contrast, Role, State
from gks_eval.evidence.stats.bootstrap import DRAWS
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.paired_test import CountTest
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
        resamples: Of a bootstrap.
    """

    alpha: float = 0.05
    margin: float = 0.02
    weighted: bool = False
    resamples: int = DRAWS


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
    """

    name: str
    role: Role
    draws: int
    score: float
    changes: Mapping[str, Floats]
    binary: bool


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
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [
        _contrast(sample, one, p, None if p is None else next(adjusted), rules, len(samples))
        for sample, one, p in zip(samples, measured, p_values, strict=True)
    ]


def _measure(sample: Sample, rules: Rules) -> Measurement:
    parts = {
        task: Changes(values, sample.binary, _NO_RECORDS, values)
        for task, values in sample.changes.items()
    }
    if len(parts) == 1:
        return measure_task(next(iter(parts.values())), rules.resamples)
    return measure_group(parts, rules.weighted, rules.resamples)


def _contrast(
    sample: Sample,
    measured: Measurement,
    p: float | None,
    p_holm: float | None,
    rules: Rules,
    controls: int,
) -> Contrast:
    low, high = _interval(sample, measured, rules) or (None, None)
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
        note=measured.test.problem,
    )


def _interval(sample: Sample, measured: Measurement, rules: Rules) -> tuple[float, float] | None:
    """Return the test's interval, no narrower than that of `_adjusted_wald`.

    A bootstrap of few changed items is too narrow to say that a control does as well.
    """
    if measured.test.problem:
        return None
    found = measured.test.interval(1.0 - rules.alpha)
    if found and isinstance(measured.test, CountTest):
        return found
    low, high = _adjusted_wald(list(sample.changes.values()), rules)
    return (min(found[0], low), max(found[1], high)) if found else (low, high)


def _adjusted_wald(tasks: Sequence[Floats], rules: Rules) -> tuple[float, float]:
    r"""Return an interval that keeps a width where few items differ, or none.

    One win of the treatment by 1 and one loss by 1 are added, 1/T of each to each of T tasks. With
    the mean m_t and the variance v_t of a task's changes after that,
    :math:`\sum_t w_t m_t \pm z \sqrt{\sum_t w_t^2 v_t / (n_t + 2/T)}`. For one task of zeros and
    ones it is the interval of Bonett and Price, Journal of Educational and Behavioral Statistics
    2012.
    """
    weights = group_weights([values.size for values in tasks], rules.weighted)
    added = 2.0 / len(tasks)
    mean = variance = 0.0
    for weight, values in zip(weights, tasks, strict=True):
        n = values.size + added
        own = float(values.sum()) / n
        mean += weight * own
        variance += weight**2 * ((float((values**2).sum()) + added) / n - own**2) / n
    width = float(norm.isf(rules.alpha / 2.0)) * variance**0.5
    return mean - width, mean + width


def _state(difference: float, high: float | None, p: float | None, rules: Rules) -> State:
    if p is not None and p < rules.alpha:
        return "beaten" if difference > 0.0 else "better"
    return "as well" if high is not None and high < rules.margin else "undecided"
