"""The house's rule, read from the source: a file imports downwards, in no circle, across no wing.

Imports inside functions and under TYPE_CHECKING count like any other. Only the package's
``__init__`` is left out: it names everything, and loads nothing until it is asked for.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gks_eval"

FLOORS: dict[int, frozenset[str]] = {
    # what every file may use: errors, typed files, paths
    0: frozenset({"_bridge", "errors", "util"}),
    # the paper and its field: pure functions on tensors
    1: frozenset({"method"}),
    # adapters on disk, requests and their scores, tasks on lm-eval's side
    2: frozenset({"library", "scoring", "tasklib", "testing"}),
    # what users come for, in two wings
    3: frozenset({"evidence", "grid", "model", "training"}),
    # the command line
    4: frozenset({"cli"}),
}
MODEL_WING = FLOORS[3] - {"evidence"}
HEAVY = frozenset({"torch", "transformers", "peft", "lm_eval", "datasets", "bitsandbytes"})


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
del FILES[""]


def unit(module: str) -> str:
    """The room a module belongs to: a file of the package, or a folder with all that is in it."""
    return module.partition(".")[0]


def floor(module: str) -> int:
    for number, units in FLOORS.items():
        if unit(module) in units:
            return number
    raise KeyError(f"{module} stands on no floor")


def imports(module: str) -> set[str]:
    """Everything that a file imports, as full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[module]}:{node.lineno}: write imports in full"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def ours(module: str) -> set[str]:
    """The files of the package that a file imports."""
    names = (name.removeprefix("gks_eval.") for name in imports(module) if name[:9] == "gks_eval.")
    return {name if name in FILES else name.rpartition(".")[0] for name in names} - {""}


IMPORTS = {module: ours(module) for module in FILES}
MISSING = {f"{module} imports {name}" for module in FILES for name in IMPORTS[module] - {*FILES}}
GRAPH = {module: names & {*FILES} for module, names in IMPORTS.items()}


def reached_from(start: str) -> set[str]:
    """The file itself and every one of ours that importing it may bring in."""
    seen: set[str] = set()
    pending = {start}
    while pending:
        module = pending.pop()
        seen.add(module)
        pending |= GRAPH[module] - seen
    return seen


def test_every_file_has_a_floor() -> None:
    # A new file or folder: say in FLOORS where it stands.
    assert {unit(module) for module in FILES} - frozenset().union(*FLOORS.values()) == set()


def test_no_file_imports_from_a_higher_floor() -> None:
    upwards = [
        f"{module} (floor {floor(module)}) imports {other} (floor {floor(other)})"
        for module, others in GRAPH.items()
        for other in others
        if floor(other) > floor(module)
    ]
    assert upwards == []


def test_no_imports_go_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_the_wings_never_import_each_other() -> None:
    across = [
        f"{module} reaches {other}"
        for module in GRAPH
        for other in reached_from(module)
        if (unit(module) == "evidence" and unit(other) in MODEL_WING)
        or (unit(module) in MODEL_WING and unit(other) == "evidence")
    ]
    assert across == []


def test_evidence_needs_no_model() -> None:
    heavy = [
        f"{module} reaches {other}, which imports {name}"
        for module in GRAPH
        if unit(module) == "evidence"
        for other in reached_from(module)
        for name in imports(other)
        if unit(name) in HEAVY
    ]
    assert heavy == []


def test_the_bridge_imports_nothing_of_ours() -> None:
    assert GRAPH["_bridge"] == set()


def test_the_bridge_imports_only_sys_when_python_starts() -> None:
    body = ast.parse(FILES["_bridge"].read_text(encoding="utf-8")).body
    names = [
        node.names[0].name if isinstance(node, ast.Import) else node.module
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert names == ["__future__", "sys"]


def test_every_import_of_ours_names_a_file_that_exists() -> None:
    assert not MISSING
