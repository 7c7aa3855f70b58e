"""Finds runs in folders, files or globs, with the newest results of every task."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gks_eval.errors import ResultsError, UsageError, did_you_mean
from gks_eval.evidence.records import GroupResult, ResultsFile, TaskResult
from gks_eval.evidence.results import read_results
from gks_eval.evidence.variants import variant_names
from gks_eval.util.grid_order import read_order
from gks_eval.util.result_files import RESULTS, is_results, timestamp_of

__all__ = ["Run", "baseline_first", "find_runs", "one_run", "selected_names"]

# These labels come first, as in the paper; others follow alphabetically.
_FIRST = ("base", "arrow")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Run:
    """One model's results: the newest per task.

    Attributes:
        label: A short name, unique among the runs found together.
        folder: The folder of its files.
        files: The results files in use, newest first.
        tasks: By name.
        groups: By name. Averages must be recomputed from ``tasks``, because recorded ones may
            contain older results of a task.
        unaveraged: Groups without an average.
        model: lm-eval's model type.
        model_args: The model's arguments.
        info: Facts for provenance.
        ours: What `gks_arrow` recorded about itself; empty for other models.
    """

    label: str
    folder: Path
    files: tuple[Path, ...]
    tasks: Mapping[str, TaskResult]
    groups: Mapping[str, GroupResult]
    unaveraged: tuple[str, ...]
    model: str
    model_args: str
    info: Mapping[str, str]
    ours: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Run({self.label!r}, {str(self.folder)!r}, tasks: {len(self.tasks)})"


def find_runs(sources: Sequence[str]) -> list[Run]:
    """Find the runs that `sources` name.

    Args:
        sources: Each a results file, a folder (searched with its sub-folders), a glob, or
            ``label=`` before one of these. A folder of several models or settings gives one run
            for each. To use an older run than the newest, name its file.

    Returns:
        The runs, each once and with a unique label, in the given order. Runs of one folder are in
        the grid's order, or else ``base`` and ``arrow`` come first.

    Raises:
        ResultsError: There are no results, a file is broken, or a label names several runs.
    """
    runs: list[Run] = []
    labelled: set[str] = set()
    for source in sources:
        label, path_text = _split_label(source)
        found = _runs_at(path_text)
        if label is not None:
            if len(found) > 1:
                raise ResultsError(
                    f"{path_text} holds {len(found)} runs ({_listing(found)}): a label names one; "
                    "give the path of one of them."
                )
            found = [replace(found[0], label=label)]
            labelled.add(label)
        for run in found:
            _add(run, runs, labelled)
    return _unique_labels(runs)


def _add(run: Run, runs: list[Run], labelled: Collection[str]) -> None:
    """Add a run unless it is there already; a label that the user gave is kept."""
    files = {path.resolve() for path in run.files}
    for place, other in enumerate(runs):
        if {path.resolve() for path in other.files} == files:
            if run.label not in labelled:
                return
            if other.label not in labelled:
                runs[place] = run
                return
    runs.append(run)


def one_run(source: str) -> Run:
    """Find the single run that `source` names.

    Raises:
        ResultsError: As `find_runs`, or `source` holds several runs.
    """
    found = find_runs([source])
    if len(found) > 1:
        raise ResultsError(
            f"{source} holds {len(found)} runs ({_listing(found)}); give the path of one of them."
        )
    return found[0]


def baseline_first(runs: Sequence[Run], label: str | None) -> list[Run]:
    """Return the runs with the one called `label` first; unchanged without a label.

    Raises:
        UsageError: No run has this label.
    """
    if label is None:
        return list(runs)
    chosen = [run for run in runs if run.label == label]
    if not chosen:
        hint = did_you_mean(label, [run.label for run in runs])
        raise UsageError(f"--baseline: no run is called {label!r}; {hint}.")
    return [*chosen, *(run for run in runs if run.label != label)]


def selected_names(runs: Sequence[Run], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the tasks and groups of runs that `wanted` names; all if it is empty.

    Raises:
        UsageError: No run has such a task or group.
    """
    tasks = list(dict.fromkeys(name for run in runs for name in run.tasks))
    groups = {name: group for run in reversed(runs) for name, group in run.groups.items()}
    if not wanted:
        return tasks, list(groups)
    if unknown := [name for name in wanted if name not in tasks and name not in groups]:
        hint = did_you_mean(unknown[0], [*tasks, *groups])
        raise UsageError(f"--tasks: no run has the task or group {unknown[0]!r}; {hint}.")
    keep = set(wanted).union(*(groups[name].leaves for name in wanted if name in groups))
    return [name for name in tasks if name in keep], [name for name in groups if name in keep]


def _split_label(source: str) -> tuple[str | None, str]:
    label, equals, rest = source.partition("=")
    # A path may contain "=": a text that exists as a path is one.
    if equals and label and rest and not re.search(r"[/\\]", label) and not _is_there(source):
        return label, rest
    return None, source


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, not readable, or with a null byte
        return False


def _runs_at(text: str) -> list[Run]:
    try:
        impossible = b"\0" in os.fsencode(text)
    except UnicodeEncodeError:  # a lone surrogate
        impossible = True
    if impossible:
        raise ResultsError(f"{text!r:.200} is not a valid path; name a folder or a results file.")
    if not text.strip():
        # Path("") is the working folder, which an unset variable of a script must not select.
        raise ResultsError("an empty path names no results; is a variable of the script unset?")
    path = Path(text)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise ResultsError(f"{text:.200} cannot be read: {error.strerror}; check it.") from None
    if is_file:
        if path.suffix != ".json":
            raise ResultsError(f"{path} is no results file; give the {RESULTS} next to it.")
        return [_merge([read_results(path)], path.parent, path.parent.name or str(path))]
    if is_folder:
        return _runs_in(path)
    is_glob = bool(_MAGIC.search(text))
    # Path.glob refuses absolute patterns.
    matches = sorted(glob.glob(text, recursive=True)) if is_glob else []  # noqa: PTH207
    runs = [run for match in matches if _usable(Path(match)) for run in _runs_at(match)]
    if not runs:
        what = "matches no results" if is_glob else "does not exist; check the path"
        raise ResultsError(f"{text} {what}.")
    return runs


def _usable(path: Path) -> bool:
    return is_results(path) if path.is_file() else any(map(is_results, _json_files(path)))


def _json_files(root: Path) -> list[Path]:
    try:
        return sorted(root.rglob("*.json"))
    except OSError as error:  # the folder was removed meanwhile, or is in /proc
        raise ResultsError(
            f"{error.filename or root} cannot be searched: {error.strerror}; name the runs' own "
            "folder."
        ) from None


def _runs_in(root: Path) -> list[Run]:
    by_model: defaultdict[tuple[Path, str, str], list[ResultsFile]] = defaultdict(list)
    for path in _json_files(root):
        # A grid keeps an unfinished setting in a hidden folder.
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if is_results(path) and path.is_file() and not hidden:
            results = read_results(path)
            by_model[path.parent, results.model, results.model_args].append(results)
    if not by_model:
        raise ResultsError(f"{root} holds no {RESULTS}; give the folder that --output_path named.")
    models_in = Counter(folder for folder, _, _ in by_model)
    variants: dict[Path, dict[str, tuple[str, str]]] = defaultdict(dict)
    for (folder, model, model_args), files in by_model.items():
        variants[folder][max(results.stamp for results in files)] = (model, model_args)
    runs = []
    for (folder, _, _), files in by_model.items():
        label = _label(folder, root, files[0], alone=len(by_model) == 1)
        if models_in[folder] > 1:
            stamp = max(results.stamp for results in files)
            label += f"@{variant_names(variants[folder])[stamp]}"
        runs.append(_merge(files, folder, label))
    return sorted(runs, key=_place(root, {run.folder for run in runs}))


def _label(folder: Path, root: Path, results: ResultsFile, alone: bool) -> str:
    if alone:
        return root.resolve().name
    parts = folder.relative_to(root).parts
    # lm-eval adds a folder named after the model, which a label needs only if there are several.
    if len(parts) > 1 and parts[-1] == results.info.get("model_folder"):
        parts = parts[:-1]
    return "/".join(parts) or root.resolve().name


def _place(root: Path, folders: Iterable[Path]) -> Callable[[Run], tuple[object, ...]]:
    """Return the sort key of a folder's runs: the grid's order, or else their labels."""
    places: dict[Path, int] = {}
    for above in {root, *(parent for folder in folders for parent in folder.parents)}:
        if above == root or above.is_relative_to(root):
            places |= {above / name: place for place, name in enumerate(read_order(above))}

    def key(run: Run) -> tuple[object, ...]:
        # Runs of one folder are ordered by time.
        name = (run.label.partition("@")[0], timestamp_of(run.files[0]) or "", run.label)
        for folder in (run.folder, *run.folder.parents):
            if folder in places:
                return str(folder.parent), 0, places[folder], *name
        return str(root) if places else "", 1, _rank(run.label), *name

    return key


def _rank(label: str) -> int:
    head = label.split("/", 1)[0]
    return _FIRST.index(head) if head in _FIRST else len(_FIRST)


def _merge(files: list[ResultsFile], folder: Path, label: str) -> Run:
    ordered = sorted(files, key=lambda results: results.stamp, reverse=True)
    tasks: dict[str, TaskResult] = {}
    groups: dict[str, GroupResult] = {}
    for results in ordered:
        for name, task in results.tasks.items():
            tasks.setdefault(name, task)
        for name, group in results.groups.items():
            groups.setdefault(name, group)
    used = {task.source for task in tasks.values()}
    return Run(
        label=label,
        folder=folder,
        files=tuple(results.path for results in ordered if results.path in used),
        tasks=tasks,
        groups=groups,
        unaveraged=tuple(dict.fromkeys(name for results in ordered for name in results.unaveraged)),
        model=ordered[0].model,
        model_args=ordered[0].model_args,
        info=ordered[0].info,
        ours=ordered[0].ours,
    )


def _unique_labels(runs: list[Run]) -> list[Run]:
    counts = Counter(run.label for run in runs)
    # Two folders of one name are distinguished by the parent folder, else by the whole path.
    runs = [
        replace(run, label=f"{run.folder.parent.name}/{run.label}")
        if counts[run.label] > 1
        else run
        for run in runs
    ]
    counts = Counter(run.label for run in runs)
    runs = [replace(run, label=str(run.folder)) if counts[run.label] > 1 else run for run in runs]
    seen: Counter[str] = Counter()
    unique = []
    for run in runs:
        seen[run.label] += 1
        suffix = f" ({seen[run.label]})" if seen[run.label] > 1 else ""
        unique.append(replace(run, label=run.label + suffix))
    return unique


def _listing(runs: Iterable[Run]) -> str:
    found = list(runs)
    # Runs of several models in one folder are distinguished by their files.
    alike = len({run.folder for run in found}) < len(found)
    names = [str(run.files[0] if alike else run.folder) for run in found]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
