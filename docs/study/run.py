#!/usr/bin/env python3
"""Run the study of docs/study.md: each rule, combine and preset, Arrow and the uniform router.

docs/study/run.py phi3-mini phi3-study --dry-run    checks and estimates
docs/study/run.py phi3-mini phi3-study              Phi-3, on a GPU

The script prints and runs commands of gks-eval, and resumes an interrupted grid. page.py makes the
tables and pictures; it needs matplotlib: pip install 'gks-eval[evidence]'.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gks_eval.errors import GksError
from gks_eval.grid.settings import parse_settings
from gks_eval.library.load import read_manifest

TASKS = "gks_paper_english,gks_paper_german,gks_paper_french"
EXACT = "gks:avg;preset=exact"
TASK_FOLDER = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Study:
    """What to run.

    Attributes:
        library: The library of all settings but those of `others`.
        output: Output folder.
        others: Further libraries, each run as arrow and as gks:avg.
        tasks: Tasks or groups, separated by commas.
        dtype: Dtype of the base's weights.
        for_model: Further arguments of `gks-eval grid` and `gks-eval routes`.
        for_grid: Further arguments of `gks-eval grid` alone.
    """

    library: str
    output: Path
    others: tuple[str, ...] = ()
    tasks: str = TASKS
    dtype: str = "auto"
    for_model: tuple[str, ...] = ()
    for_grid: tuple[str, ...] = ()

    @property
    def libraries(self) -> tuple[str, ...]:
        """Return all libraries, the main one first."""
        return self.library, *self.others

    def settings(self) -> list[str]:
        """Return the settings of the grid.

        Raises:
            GksError: A library cannot be read, or is too small.
        """
        names = [name_of(library) for library in self.libraries]
        configs = {library: read_manifest(library)[1] for library in self.libraries}
        for library, config in configs.items():
            if len(config.experts) < 3 or not config.general:
                raise GksError(f"{library} needs 3 experts and a general adapter for the study.")
            if set(library) & {",", ";", "="}:
                raise GksError(f"{library}: the path of a library may not hold , ; or =.")
            if names.count(name_of(library)) > 1:
                raise GksError(f"two libraries are called {name_of(library)}; rename a folder.")
        config = configs[self.library]
        found = ["base", "arrow", "uniform", "arrow;combine=outputs", "uniform;combine=outputs"]
        found += ["gks:avg", EXACT, "gks:avg;preset=peft", "gks:avg;rule=delta"]
        found += ["gks:avg;rule=orthogonal"]
        for language in config.general:
            found += [f"gks:{language}", f"gks:{language};preset=exact"]
        sizes = sorted({k for k in (1, 5, len(config.experts)) if k <= len(config.experts)} - {3})
        found += [f"{kind};top_k={k}" for kind in ("arrow", EXACT) for k in sizes]
        for other in self.others:
            found += [f"{kind};library={other}" for kind in ("arrow", "gks:avg")]
        return found

    def folder(self, setting: str) -> Path:
        """Return the folder of a setting's results."""
        return self.output / "results" / parse_settings([setting])[0].slug

    def grid(self) -> list[str]:
        """Return the command that evaluates all settings."""
        given = ["--library", self.library, "--settings", ",".join(self.settings())]
        given += ["--tasks", self.tasks, "--include-path", str(TASK_FOLDER)]
        given += ["--model-args", f"dtype={self.dtype}", *self.for_model, *self.for_grid]
        return ["gks-eval", "grid", *given, "--output", str(self.output / "results")]

    def comparisons(self) -> dict[Path, list[str]]:
        """Return the commands of the paired tests, by output file; arrow and base come first."""
        everything = self.settings()
        runs = {name: [name, *(s for s in everything if s != name)] for name in ("arrow", "base")}
        within = {
            name_of(o): [f"{k};library={o}" for k in ("arrow", "gks:avg")] for o in self.others
        }
        if self.others:
            runs["gks-avg"] = ["gks:avg", *(pair[1] for pair in within.values())]
        runs |= {f"library-{name}": pair for name, pair in within.items()}
        commands = {}
        for name, settings in runs.items():
            for form in ("json", "csv"):
                path = self.output / f"compare-{name}.{form}"
                # Explicit labels, because the folder names of long settings end in a hash.
                named = [f"{label(s)}={self.folder(s)}" for s in settings]
                commands[path] = ["gks-eval", "compare", "-f", form, "-o", str(path), *named]
        return commands

    def routes(self) -> dict[Path, list[str]]:
        """Return the commands that record routing on 20 items per task, by output file."""
        pairs = [(self.library, setting) for setting in ("arrow", "gks:avg", EXACT)]
        pairs += [(other, setting) for other in self.others for setting in ("arrow", "gks:avg")]
        commands = {}
        for library, setting in pairs:
            path = self.output / f"routes_{name_of(library)}-{label(setting)}.json"
            given = ["--library", library, "--setting", setting, "--tasks", self.tasks]
            given += ["--include-path", str(TASK_FOLDER), "--limit", "20"]
            given += ["--dtype", self.dtype, *self.for_model]
            commands[path] = ["gks-eval", "routes", *given, "-o", str(path)]
        return commands

    def geometries(self) -> dict[Path, list[str]]:
        """Return the commands that measure norms and cosines, by output file."""
        commands = {}
        for library in self.libraries:
            path = self.output / f"geometry_{name_of(library)}.json"
            commands[path] = ["gks-eval", "library", "show", library, "-o", str(path)]
        return commands


def name_of(library: str) -> str:
    """Return a library's short name."""
    return Path(library).name


def label(setting: str) -> str:
    """Return a setting's name in tables and files, such as gks-avg_library-shared."""
    kind, mark, library = setting.partition(";library=")
    plain = kind + mark + name_of(library) if mark else kind
    return parse_settings([plain])[0].slug


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or `words` in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("library", help="Bundled name, folder or hub id.")
    parser.add_argument("output", type=Path, help="Output folder.")
    add = parser.add_argument
    add(
        "--other",
        action="append",
        default=[],
        metavar="LIBRARY",
        help="Further library, run as arrow and gks:avg; can be repeated.",
    )
    add("--tasks", default=TASKS, help="Tasks or groups (default: %(default)s).")
    add("--dtype", default="auto", help="Dtype of the base's weights.")
    add("--pretrained", help="Base model; default: the library's.")
    add("--batch-size", default="auto", help="As lm-eval takes it.")
    add("--limit", help="Items per task of the grid.")
    add("--samples", help="Items by task, as JSON or a JSON file.")
    add("--launch", default="", help="Launcher, such as 'torchrun --nproc_per_node 2 --no-python'.")
    add("--dry-run", action="store_true", help="Check and estimate only.")
    return parser.parse_args(words)


def run(command: list[str]) -> None:
    """Run a command; if it fails, exit with its exit code."""
    print("+", shlex.join(command), flush=True)
    try:
        code = subprocess.run(command, check=False).returncode  # noqa: S603, the user's own
    except OSError as error:
        sys.exit(f"run.py: {command[0]} cannot be started: {error.strerror}.")
    if code:
        sys.exit(code)


def main() -> None:
    """Run the grid, then the commands that read its results."""
    given = arguments()
    for_grid = ["--batch-size", given.batch_size]
    for option in ("limit", "samples"):
        if value := getattr(given, option):
            for_grid += [f"--{option}", value]
    study = Study(
        given.library,
        given.output,
        others=tuple(given.other),
        tasks=given.tasks,
        dtype=given.dtype,
        for_model=("--pretrained", given.pretrained) if given.pretrained else (),
        for_grid=tuple(for_grid),
    )
    if shutil.which("gks-eval") is None:
        sys.exit("run.py: gks-eval is not in PATH; activate the environment that has it.")
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("run.py: the pictures need matplotlib; pip install 'gks-eval[evidence]'.")
    if given.output.exists() and not given.output.is_dir():
        sys.exit(f"run.py: {given.output} is a file; name a folder.")
    try:
        grid = shlex.split(given.launch) + study.grid()
    except (GksError, ValueError) as error:  # ValueError: an open quotation mark
        sys.exit(f"run.py: {error}")
    if given.dry_run:
        run([*grid, "--dry-run"])
        return
    run(grid)
    comparisons, routes, geometries = study.comparisons(), study.routes(), study.geometries()
    for command in (*comparisons.values(), *routes.values(), *geometries.values()):
        run(command)

    import page  # in this folder; imported late because it needs matplotlib

    tests = [path for path in comparisons if path.suffix == ".json"]
    page.write(study.output, study.folder("base"), tests, list(routes), list(geometries))


if __name__ == "__main__":
    main()
