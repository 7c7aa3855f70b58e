"""A recipe as a list of jobs, one per adapter; only the recipe is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.training.recipe import (
    ExpertMember,
    ExpertSection,
    GeneralMember,
    GeneralSection,
    Place,
    Recipe,
    Schedule,
)
from gks_eval.util.yaml import FrozenModel, load_typed

__all__ = ["Job", "TrainingPlan", "digest_of_json", "make_plan", "plan_of"]

PlaceT = TypeVar("PlaceT", bound=Place)
SectionT = TypeVar("SectionT", ExpertSection, GeneralSection)


def digest_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One adapter to train.

    Attributes:
        kind: ``experts`` or ``general``, also the name of its parent folder.
        name: The expert's name or the language.
        member: The place of its rows or texts, with the section's defaults.
        section: The section it belongs to.
        seed: Seed of the draw of rows, their order and dropout.
        start_seed: Seed of the random start of A.
    """

    kind: Literal["experts", "general"]
    name: str
    member: ExpertMember | GeneralMember
    section: ExpertSection | GeneralSection
    seed: int
    start_seed: int

    @property
    def key(self) -> str:
        """``experts/NAME`` or ``general/LANGUAGE``: its folder inside the library."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe, its folder and its jobs.

    Attributes:
        recipe: The recipe.
        root: The folder that its relative paths start from.
        jobs: All adapters of the library, experts first.
    """

    recipe: Recipe
    root: Path
    jobs: tuple[Job, ...]

    @property
    def recipe_hash(self) -> str:
        """SHA-256 of the recipe's content, without layout and comments."""
        return digest_of_json(self.recipe.model_dump(mode="json", exclude_defaults=True))

    def fingerprint(self, job: Job, data: str) -> str:
        """Return a hash of everything that an adapter depends on but software and machine.

        An adapter on disk with this fingerprint need not be trained again.

        Args:
            job: The adapter.
            data: Identity of its data (`gks_eval.training.sources.identity`).
        """
        recipe = self.recipe
        return digest_of_json(
            {
                "base": [recipe.base_model, recipe.revision],
                "load": _dump(recipe.load, {"device"}),
                "adapter": _dump(recipe.adapter, set()),
                "section": _dump(job.section, {"members", "data", "clusters"}),
                "member": _dump(job.member, {"file"}),
                "job": [job.key, job.seed, job.start_seed],
                "data": data,
            }
        )

    def remarks(self) -> list[str]:
        """Return what to know about the recipe before it is run."""
        remarks: list[str] = []
        if self.recipe.adapter.init == "loftq" and self.recipe.general is not None:
            remarks.append(
                "init: loftq gives experts and general adapters the same start, which corrects"
                " the base's quantisation error; subtracting one from the other removes this"
                " correction. The library records it."
            )
        return remarks

    def select(self, only: Sequence[str]) -> tuple[Job, ...]:
        """Return the jobs named in `only` (all of them when it is empty).

        Raises:
            UsageError: No job has one of the names.
        """
        known = {job.name for job in self.jobs} | {job.key for job in self.jobs}
        for name in only:
            if name not in known:
                raise UsageError(
                    f"--only: the recipe has no adapter {name!r};"
                    f" {did_you_mean(name, {job.name for job in self.jobs})}."
                )
        wanted = set(only)
        return tuple(j for j in self.jobs if not wanted or {j.name, j.key} & wanted)


def make_plan(recipe_file: Path) -> TrainingPlan:
    """Read a recipe and lay out its jobs.

    Raises:
        ConfigError: The recipe or the cluster file it names is missing or has faults.
    """
    return plan_of(load_typed(recipe_file, Recipe), recipe_file.resolve().parent)


def plan_of(recipe: Recipe, root: Path) -> TrainingPlan:
    """Lay out the jobs of a recipe in the folder `root`.

    Raises:
        ConfigError: The cluster file that it names is missing or has faults.
    """
    jobs: list[Job] = []
    if recipe.experts is not None:
        experts = _scheduled(recipe.experts, recipe)
        members = experts.members or _cluster_members(experts, root)
        jobs += [
            _job(recipe, "experts", name, _filled(experts.data, member), experts)
            for name, member in members.items()
        ]
    if recipe.general is not None:
        general = _scheduled(recipe.general, recipe)
        jobs += [
            _job(recipe, "general", name, _filled(general.data, text), general)
            for name, text in general.members.items()
        ]
    return TrainingPlan(recipe, root, tuple(jobs))


def _dump(model: FrozenModel, without: set[str]) -> dict[str, Any]:
    # Defaults are left out, so that a key added in a later release changes no old fingerprint.
    return model.model_dump(mode="json", exclude=without, exclude_defaults=True)


def _job(
    recipe: Recipe,
    kind: Literal["experts", "general"],
    name: str,
    member: ExpertMember | GeneralMember,
    section: ExpertSection | GeneralSection,
) -> Job:
    if recipe.start == "shared":
        start_seed = recipe.seed
    else:
        start_seed = int(digest_of_json([recipe.seed, kind, name])[:8], 16) % 2**31
    return Job(kind, name, member, section, recipe.seed, start_seed)


def _scheduled(section: SectionT, recipe: Recipe) -> SectionT:
    given = recipe.schedule.model_dump(exclude_unset=True)
    own = section.schedule.model_dump(exclude_unset=True)
    return section.model_copy(update={"schedule": Schedule.model_validate(given | own)})


def _filled(default: PlaceT, member: PlaceT) -> PlaceT:
    given = member.model_dump(exclude_unset=True)
    base = default.model_dump(exclude_unset=True)
    if given.get("file") or given.get("hub"):  # another place replaces the default place as a whole
        base = {k: v for k, v in base.items() if k not in Place.model_fields}
    return type(member).model_validate(base | given)


def _cluster_members(experts: ExpertSection, root: Path) -> dict[str, ExpertMember]:
    from gks_eval.training.cluster_file import read_cluster_file

    assert experts.clusters is not None
    clusters = read_cluster_file(root / experts.clusters.file)
    column = experts.clusters.column
    where = experts.data.where
    return {name: ExpertMember(where={**where, column: tasks}) for name, tasks in clusters.items()}
