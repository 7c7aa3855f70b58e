"""The commands of the study, stage by stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gks_eval.errors import UsageError
from gks_eval.evidence.question import read_controls
from gks_eval.grid.settings import parse_settings

__all__ = ["TASKS", "TREATMENTS", "WITHOUT_CONTROL", "Study", "controlled", "slug"]

FOLDER = Path(__file__).absolute().parent
TASKS = "study"
"""Group of all sets; its YAML is in tasks/."""

# Without level=sequence: XNLI has no context to choose by.
ROUTERS = ("arrow", "spectr", "norm", "lag")
PREPARED = ("mean_activation", "phatgoose")
MERGES = "mean task_arithmetic svd tsv knots core_space ties dare_linear dare_ties magnitude_prune"
SUBTRACTIONS = (
    *("gks:avg", "gks:avg;preset=exact", "gks:avg;preset=peft", "gks:avg;rule=delta"),
    *("gks:avg;rule=orthogonal", "gks:en", "gks:de", "gks:fr"),
)
WITHOUT_CONTROL = (
    *("gks:experts", "gks:avg;rule=cross_lingual;target=de"),
    *("uniform", "random", "shuffled"),
)
TREATMENTS = {"paper": "gks:avg", "exact": "gks:avg;preset=exact"}
ROUTED = ("arrow", "gks:avg", "random", "uniform")


def controlled(prepared: bool) -> dict[str, str]:
    """Return the methods of the leaderboard, each with its control: random weights of its size."""
    routers = ROUTERS + PREPARED * prepared
    merges = [f"merge:{name}" for name in MERGES.split()]
    found = {name: f"{name};experts=random" for name in (*routers, "arrow;rule=pico", *merges)}
    return found | {name: f"{name};general=random" for name in SUBTRACTIONS}


def slug(setting: str) -> str:
    """Return the name of a setting's folder."""
    return parse_settings([setting])[0].slug


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        work: Folder of libraries and results; commands run in it.
        record: Folder of the records.
        data: Folder of the training data; None if `library` is given.
        library: A trained library; None to train one per start and seed.
        base: The base to train on.
        format: Of the experts' rows: the base's ``chat`` template, or ``plain``.
        starts: `own`, `shared` or both.
        seeds: Number of seeds, from 0 on.
        tasks: Tasks or groups, separated by commas.
        given: Further arguments of `grid` and `controls`.
        limit: Items per task; 0 for all.
        launch: Words before each command that evaluates.
        methods: Of the leaderboard; none for all.
    """

    work: Path
    record: Path
    data: Path | None
    library: str | None
    base: str
    format: str
    starts: tuple[str, ...]
    seeds: int
    tasks: str
    given: tuple[str, ...]
    limit: int
    launch: tuple[str, ...]
    methods: tuple[str, ...] = ()

    @property
    def libraries(self) -> list[str]:
        """Return all libraries; the first is that of the leaderboard."""
        if self.library:
            return [self.library]
        return [f"{start}-{seed}" for start in self.starts for seed in range(self.seeds)]

    def identity(self, stage: str) -> dict[str, Any]:
        """Return the arguments that decide the results of a stage."""
        found: dict[str, Any] = {"base": self.base, "library": self.library}
        if stage == "train":  # which libraries are there is checked
            return found
        if stage == "controls":
            found |= {"starts": ",".join(self.starts), "seeds": self.seeds}
        elif self.methods:
            found["methods"] = ",".join(self.methods)
        return {**found, "tasks": self.tasks, "limit": self.limit, "model_args": self.model_args}

    @property
    def ranked(self) -> tuple[dict[str, str], list[str]]:
        """Return the methods of the leaderboard with their controls, and those without one."""
        methods, others = controlled(prepared=self.library is None), WITHOUT_CONTROL
        if unknown := [m for m in self.methods if m not in methods and m not in others]:
            known = ", ".join((*methods, *others))
            raise UsageError(f"--methods: unknown {', '.join(unknown)}; known: {known}.")
        return (
            {m: methods[m] for m in methods if not self.methods or m in self.methods},
            [name for name in others if not self.methods or name in self.methods],
        )

    @property
    def prepared(self) -> list[str]:
        """Return the routers that need vectors of the first library."""
        return [name for name in PREPARED if name in self.ranked[0]]

    @property
    def model_args(self) -> str:
        """Return the model's arguments."""
        return self.given[self.given.index("--model-args") + 1]

    @property
    def dtype(self) -> str:
        """Return the dtype of the base."""
        given = dict(part.partition("=")[::2] for part in self.model_args.split(","))
        return given.get("dtype", "bfloat16")

    def recipe(self, name: str) -> Path:
        """Write the recipe of a library, and return its path."""
        start, seed = name.split("-")
        assert self.data is not None
        places = {"BASE": self.base, "SEED": seed, "START": start, "FORMAT": self.format}
        places["DTYPE"] = self.dtype
        places["DATA"] = os.path.relpath(self.data, self.work)
        text = (FOLDER / "recipe.yaml").read_text("utf-8")
        for word, value in places.items():
            text = text.replace(word, value)
        path = self.work / f"{name}.yaml"
        path.write_text(text, "utf-8")
        return path

    def train(self) -> Iterator[list[str]]:
        """Yield the commands that train the libraries, and prepare the vectors of the first one."""
        if self.library:
            return
        for name in self.libraries:
            yield ["gks-eval", "train", self.recipe(name).name, "--output", name]
        first = [self.libraries[0], "--data", f"{self.libraries[0]}.yaml"]
        for router in self.prepared:
            steps = ("--steps", "15") * (router == "phatgoose")
            yield ["gks-eval", "prepare", *first, "--router", router, *steps]

    def leaderboard(self) -> Iterator[list[str]]:
        """Yield the grid of all methods and their controls on one library."""
        methods, others = self.ranked
        settings = ",".join(("base", *methods, *others, *methods.values()))
        yield self._evaluate("grid", self.libraries[0], "leaderboard", "--settings", settings)

    def controls(self) -> Iterator[list[str]]:
        """Yield the controls of both treatments on every library."""
        for name, treatment in TREATMENTS.items():
            for library in self.libraries:
                folder = f"controls/{Path(library).name}-{name}"
                words = ("--treatment", treatment, "--seeds", "1", "--format", "json")
                yield self._evaluate("controls", library, folder, *words)

    def _evaluate(self, command: str, library: str, output: str, *words: str) -> list[str]:
        given = ["--library", library, "--tasks", self.tasks]
        given += ["--limit", str(self.limit)] if self.limit else []
        given += ["--include-path", str(FOLDER / "tasks")]
        return [*self.launch, "gks-eval", command, *words, *given, *self.given, "--output", output]

    def evidence(self) -> Iterator[list[str]]:
        """Yield the commands that read the results and write the numbers of the page."""
        library = self.libraries[0]
        board = ["gks-eval", "compare", "--format", "json", "--output"]
        methods, others = self.ranked
        within = ["--equivalence", "2"]
        ranked = [f"leaderboard/{slug(s)}" for s in ("base", *methods, *others)]
        yield [*board, self._to("leaderboard.json"), "--leaderboard", *within, *ranked]
        for method, control in methods.items():
            output = self._to(f"control-{slug(method)}.json")
            yield [*board, output, *within, *(f"leaderboard/{slug(s)}" for s in (control, method))]
        for start in self.starts if self.seeds > 2 and self.library is None else ():
            for name, treatment in TREATMENTS.items():
                runs = f"controls/{start}-*-{name}"
                asked = [read_controls(path) for path in self.work.glob(runs)]
                if sum(1 for one in asked if one and one.finding) < self.seeds:
                    continue  # the stage controls has not finished them
                found = sorted((self.work / "controls" / f"{start}-0-{name}").glob("*/cell.json"))
                others = [path.parent.name for path in found if path.parent.name != slug(treatment)]
                words = [f"{one}={runs}/{one}" for one in (slug(treatment), *others)]
                output = self._to(f"replicates_{start}-{name}.json")
                yield [*board, output, "--replicates", *words]
        if self.library is None:
            routes = ["gks-eval", "routes", "--library", library, "--accuracy", "--limit", "10"]
            routes += ["--dtype", self.dtype]
            words = ["--recipe", f"{library}.yaml"]
            words += ["--setting", ",".join((*ROUTED, *self.prepared))]
            yield [*routes, *words, "--output", self._to("accuracy.json")]
            overlap = ["gks-eval", "library", "overlap", library, "--recipe", f"{library}.yaml"]
            overlap += ["--include-path", str(FOLDER / "tasks")]
            yield [*overlap, "--tasks", self.tasks, "--output", self._to("overlap.json")]
        for one in self.libraries:
            name = f"geometry_{Path(one).name}.json"
            yield ["gks-eval", "library", "show", one, "--output", self._to(name)]

    def trained(self) -> bool:
        """Return whether all libraries are there."""
        if self.library:
            return True
        return all((self.work / name / "library.yaml").exists() for name in self.libraries)

    def _to(self, name: str) -> str:
        return os.path.relpath(self.record / name, self.work)
