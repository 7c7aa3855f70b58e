"""A gate that reads a candidate's items in parts and stops as soon as the verdict is clear."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from gks_eval.errors import ResultsError, did_you_mean
from gks_eval.evidence.gate import measure_checks
from gks_eval.evidence.looks import Rules, Standing, standings
from gks_eval.evidence.looks_file import CheckAtLook, Look, LooksFile
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.reading_order import ReadingOrder
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import Item, read_samples
from gks_eval.evidence.stats.spending import LOOKS
from gks_eval.evidence.verdict import Check, Outcome, Verdict, conclude, missed_floor, worse_by
from gks_eval.util.digest import digest

__all__ = ["StagedGate"]


class StagedGate:
    """The looks of one gate.

    Attributes:
        looks: The looks so far.
        verdict: The verdict; None until it is clear.
        items: Items per task that are read if the gate does not stop early.
        stamp: Digest of the baseline's items, links and scores.
    """

    def __init__(
        self,
        baseline: Run,
        tasks: Collection[str],
        groups: Collection[str],
        policy: GatePolicy,
        setting: str = "",
    ) -> None:
        """Plan the looks.

        Args:
            baseline: A run with samples.
            tasks: Tasks to read; the baseline may have more.
            groups: Groups to judge, if the baseline has them.
            policy: What counts as a regression.
            setting: The candidate's name.

        Raises:
            ResultsError: The baseline lacks a task, its samples or enough items.
        """
        self.looks: list[Look] = []
        self.verdict: Verdict | None = None
        self._policy, self._setting = policy, setting
        self._baseline = replace(
            baseline,
            tasks={name: task for name, task in baseline.tasks.items() if name in tasks},
            groups={name: group for name, group in baseline.groups.items() if name in groups},
        )
        items = {name: _items(baseline, name) for name in tasks}
        self._order = ReadingOrder(items)
        self.items = {name: len(found) for name, found in items.items()}
        self.stamp = digest(
            {
                name: [(item.doc_id, item.key, item.cluster, item.values) for item in found]
                for name, found in items.items()
            }
        )
        self._check_sizes()
        self._read: dict[str, list[int]] = {}
        self._open = set(tasks)
        self._checks: list[list[Check]] = []
        self._shares: list[float] = []

    def _check_sizes(self) -> None:
        for name, size in self.items.items():
            needed = self._policy.limits("task", name).min_pairs or 1
            if size < needed and (not self._policy.only_listed or name in self._policy.tasks):
                raise ResultsError(
                    f"{self._baseline.folder} has {size} items of {name}, and {needed} pairs are "
                    "needed; evaluate more of them, or set min_pairs in the policy."
                )

    def check_tasks(self, versions: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        """Check that the tasks here are those of the baseline.

        Args:
            versions: By task.
            sizes: Items of the whole split, by task.

        Raises:
            ResultsError: A task has another version or another split.
        """
        for name, task in self._baseline.tasks.items():
            if task.version not in (None, versions[name]):
                what = f"version {task.version} of {name}, and version {versions[name]} is"
            elif task.original not in (None, sizes[name]):
                what = f"a split of {task.original} items of {name}, and {sizes[name]} are"
            else:
                continue
            raise ResultsError(
                f"{self._baseline.folder} has {what} installed; evaluate the baseline again."
            )

    def wanted(self) -> Mapping[str, Sequence[int]]:
        """Return per task the numbers of all items that the next look needs."""
        for share in LOOKS[LOOKS.index(self._shares[-1]) + 1 if self._shares else 0 :]:
            found = {
                task: numbers if task in self._open else self._read[task]
                for task, numbers in self._order.first(share).items()
            }
            if found != self._read:
                break
        self._shares.append(share)
        self._read = found
        return found

    def take(self, candidate: Run, seconds: float = 0.0) -> Verdict | None:
        """Judge the items that `wanted` named, and return the verdict if it is clear.

        Args:
            candidate: The run of these items.
            seconds: What they took.
        """
        checks = measure_checks(self._baseline, candidate, self._policy, part=True)
        self._checks.append(checks)
        found = standings(
            self._shares,
            [[check.reading for check in look] for look in self._checks],
            [_rules(check) for check in checks],
            self._policy.correction == "holm",
        )
        states = [self._at_look(check, one) for check, one in zip(checks, found, strict=True)]
        self.looks.append(
            Look(
                share=self._shares[-1],
                items={task: len(numbers) for task, numbers in self._read.items()},
                seconds=round(seconds, 1),
                checks=states,
            )
        )
        self._open = {
            task
            for check, one in zip(checks, found, strict=True)
            if one.state == "open" and check.reading
            for task in check.reading.tasks
        }
        lost = any(one.state == "regression" for one in found)
        stopped = lost or any(check.reading is None for check in checks)
        if stopped or not self._open or self._shares[-1] == LOOKS[-1]:
            outcomes = [self._outcome(place, one) for place, one in enumerate(found)]
            where = str(self._baseline.folder), str(candidate.folder)
            self.verdict = conclude(outcomes, self._policy, *where, self._notes())
        return self.verdict

    def to_file(self) -> LooksFile:
        """Return the looks as they are written."""
        return LooksFile(
            setting=self._setting,
            baseline=str(self._baseline.folder),
            items=self.items,
            looks=self.looks,
            verdict=self.verdict,
        )

    def _notes(self) -> list[str]:
        read, planned = sum(self.looks[-1].items.values()), sum(self.items.values())
        return [f"{read:,} of {planned:,} items were read in {len(self.looks)} looks"]

    def _at_look(self, check: Check, one: Standing) -> CheckAtLook:
        now = one.look == len(self._checks) - 1
        known = check.reading
        return CheckAtLook(
            name=check.name,
            metric=check.metric,
            n=check.n,
            changed=known.changed if known else None,
            change=check.change,
            z=known.z if known else None,
            lower=one.lower if now else None,
            upper=one.upper if now else None,
            p_shown=known.p_shown if known else None,
            state=one.state,
        )

    def _outcome(self, place: int, one: Standing) -> Outcome:
        check = self._checks[one.look][place]
        at_end = self._shares[one.look] == LOOKS[-1]

        def outcome(status: Literal["pass", "regression", "unjudged"], *reasons: str) -> Outcome:
            shown = one.state == "shown"
            return Outcome(
                check=check, status=status, p_adjusted=None, reasons=[*reasons], shown=shown
            )

        if check.reading is None:
            return outcome("unjudged", check.problem or "no test could be made")
        if one.state == "regression":
            bound = "" if one.lower is None else f", z = {check.reading.z:.2f} <= {one.lower:.2f}"
            return outcome("regression", f"{worse_by(check)} (n = {check.n:,}{bound})")
        if at_end and (missed := missed_floor(check)):
            return outcome("regression", *missed)
        if one.state == "shown":
            return outcome("pass")
        if not at_end:
            return outcome(
                "unjudged", f"not decided after {check.n:,} items, when the gate stopped"
            )
        if self._policy.require == "shown":
            return outcome(
                "unjudged", "neither a drop beyond the tolerance nor its absence is shown"
            )
        return outcome("pass")


def _rules(check: Check) -> Rules:
    limits = check.limits
    return Rules(limits.alpha or 0.05, limits.min_pairs or 1, limits.floor is not None)


def _items(run: Run, name: str) -> Sequence[Item]:
    if name not in run.tasks:
        raise ResultsError(
            f"{run.folder} has no results of {name}; {did_you_mean(name, run.tasks)}."
        )
    samples = read_samples(run.tasks[name])
    if samples is None or not samples.by_filter:
        raise ResultsError(
            f"{run.folder} has no samples of {name}; evaluate the baseline with --log_samples."
        )
    return next(iter(samples.by_filter.values()))
