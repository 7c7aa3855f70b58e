"""When a gate that looks at the data several times may stop: a pure function of what it read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from gks_eval.evidence.stats.item_score import FEW, ItemScore
from gks_eval.evidence.stats.spending import bounds, spent
from gks_eval.util.yaml import FrozenModel

__all__ = ["Reading", "Rules", "Standing", "reading", "standings"]

State = Literal["open", "regression", "shown"]


class Reading(FrozenModel):
    """What one check found in the items read so far.

    Attributes:
        tasks: Its tasks.
        n: Items read.
        clusters: Clusters of linked items among them; a lone item is its own.
        changed: Clusters that changed.
        z: Score of a change of minus the tolerated drop; negative is worse.
        p: One-sided p-value of a regression, exact with few changed clusters.
        p_shown: One-sided p-value of not being worse by the tolerated drop.
    """

    tasks: tuple[str, ...]
    n: int
    clusters: int
    changed: int
    z: float
    p: float
    p_shown: float


def reading(score: ItemScore, tolerance: float, tasks: Sequence[str] = ()) -> Reading:
    """Return what a look needs from an item score, in which negative changes are worse."""
    return Reading(
        tasks=tuple(tasks),
        n=score.items,
        clusters=score.clusters,
        changed=score.changed,
        z=score.z(tolerance),
        p=score.less_p(-tolerance),
        p_shown=score.shown_p(tolerance),
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """How one check is judged.

    Attributes:
        alpha: Level of a regression and of a pass.
        min_pairs: With fewer items, a look judges nothing.
        to_the_end: Whether it needs all its items to pass.
    """

    alpha: float
    min_pairs: int = 1
    to_the_end: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a check stands after the looks so far.

    Attributes:
        state: ``regression``, ``shown`` (not worse by the tolerated drop), or ``open``.
        look: Number of the look that decided, from 0; the last one if it is open.
        lower: z at or below which this look found a regression; None if it tested none.
        upper: z at or above which this look passed; None if it did not judge by z.
    """

    state: State
    look: int
    lower: float | None
    upper: float | None


def standings(
    shares: Sequence[float],
    looks: Sequence[Sequence[Reading | None]],
    rules: Sequence[Rules],
    holm: bool = True,
) -> list[Standing]:
    r"""Judge every check by all looks so far.

    Regressions share a level by Holm's correction: with m checks, r of which are regressions, the
    others are tested at alpha / (m - r). A pass needs no correction, as all checks must pass. Both
    spend their level as :math:`\alpha t^2`. With fewer than `FEW` changed clusters, a look tests no
    regression, so that later looks have its part of the level, and judges a pass by the
    Clopper-Pearson bound at its own part. The last look then tests a regression exactly.

    Args:
        shares: Of the items, read at each look.
        looks: At each look a reading per check; None if it could not be measured.
        rules: Per check.
        holm: Whether the checks share a level; else each has its own.
    """
    found = [Standing("open", 0, None, None) for _ in rules]
    for k in range(len(looks)):
        histories = [_history(shares, looks, check, k) for check in range(len(rules))]
        fresh = {check for check, one in enumerate(found) if one.state == "open"}
        while fresh:
            lost = sum(one.state == "regression" for one in found)
            worse = set()
            for check in sorted(fresh):
                part = len(rules) - lost if holm else 1
                lower, is_worse = _regression(histories[check], rules[check], part)
                found[check] = Standing("open", k, lower, None)
                if is_worse:
                    worse.add(check)
            for check in worse:
                found[check] = Standing("regression", k, found[check].lower, None)
            fresh -= worse
            if not worse:
                break
        for check in fresh:
            upper, shown = _shown(histories[check], rules[check])
            passes = shown and (shares[k] >= 1.0 or not rules[check].to_the_end)
            found[check] = Standing("shown" if passes else "open", k, found[check].lower, upper)
    return found


_History = list[tuple[float, Reading | None]]


def _history(
    shares: Sequence[float], looks: Sequence[Sequence[Reading | None]], check: int, last: int
) -> _History:
    return [(shares[k], looks[k][check]) for k in range(last + 1)]


def _regression(history: _History, rules: Rules, part: int) -> tuple[float | None, bool]:
    """Return the bound of z at the last look, and whether the check is a regression."""
    alpha = rules.alpha / part
    tested = [(t, one) for t, one in _judged(history, rules) if one.changed >= FEW]
    share, last = history[-1]
    if not tested or tested[-1][1] is not last:
        if last is None or share < 1.0 or tested or last.n < rules.min_pairs:
            return None, False
        return None, last.p <= alpha
    times = tuple(t for t, _ in tested)
    lower = -bounds(times, _levels(times, alpha))[-1]
    return lower, tested[-1][1].z <= lower


def _shown(history: _History, rules: Rules) -> tuple[float | None, bool]:
    """Return the bound of z at the last look, and whether the check passes."""
    judged = list(_judged(history, rules))
    last = history[-1][1]
    if not judged or judged[-1][1] is not last or last is None:
        return None, False
    levels = _levels(tuple(t for t, _ in judged), rules.alpha)
    if last.changed < FEW:
        return None, last.p_shown <= levels[-1]
    by_score = [place for place, (_, one) in enumerate(judged) if one.changed >= FEW]
    times, parts = zip(*((judged[place][0], levels[place]) for place in by_score), strict=True)
    upper = bounds(times, parts)[-1]
    return upper, last.z >= upper


def _judged(history: _History, rules: Rules) -> Iterator[tuple[float, Reading]]:
    for share, one in history:
        if one is not None and one.n >= rules.min_pairs:
            yield share, one


def _levels(times: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Return what each look spends of a level."""
    totals = [0.0, *(spent(t, alpha) for t in times)]
    return tuple(after - before for before, after in pairwise(totals))
