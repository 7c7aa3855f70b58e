"""What a task holds, as digests: its configuration, the code that it names, its rows.

Two runs of one task name may be compared, or share a folder, if these are equal.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gks_eval.util.digest import digest

__all__ = ["code_digest", "group_content", "task_content"]

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_INSTALLED: Final = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)


def task_content(
    task: Any,
    limit: float | None = None,
    samples: Sequence[int] | None = None,
    num_fewshot: int | None = None,
) -> dict[str, Any]:
    """Return what an lm-eval task holds, for the items that an evaluation takes.

    Args:
        task: A loaded task.
        limit: As `lm_eval.simple_evaluate` takes it.
        samples: Indices of the items to take; all when None.
        num_fewshot: Examples in a prompt; the task's own number when None.

    Returns:
        ``items``, the number of items; ``rows``, a digest of them; ``examples``, a digest of the
        rows that few-shot prompts draw on, None for zero-shot ones; ``config``, a digest of each
        key of the configuration, where a function stands for the source of its module.
    """
    from lm_eval.evaluator_utils import get_sample_size

    count = get_sample_size(task, limit)
    rows = [row for _, row in task.doc_iterator(limit=count, samples=samples)]
    own = task.config.num_fewshot
    shots = own if num_fewshot is None or own == 0 else num_fewshot
    config = {
        field.name: getattr(task.config, field.name) for field in dataclasses.fields(task.config)
    }
    # Which items are linked changes no score.
    config["metadata"] = {
        name: value
        for name, value in (config["metadata"] or {}).items()
        if name not in ("config_source", "cluster")
    }
    if dataclasses.is_dataclass(shots_as := config["fewshot_config"]):
        own_keys = vars(shots_as).items()  # the others are copies of the task's
        config["fewshot_config"] = {k: v for k, v in own_keys if v != config.get(k)}
    if not type(task).__module__.startswith("lm_eval.api."):
        config["class"] = type(task)
    return {
        "items": len(rows),
        "rows": _rows_digest(rows),
        "examples": _rows_digest(task.fewshot_docs() or []) if shots else None,
        "config": {
            name: digest({name: _plain(value)})
            for name, value in config.items()
            if value is not None
        },
    }


def group_content(group: Any) -> str:
    """Return a digest of an lm-eval group: its members and how their scores are averaged."""
    return digest({"members": group.child_names, "means": _plain(group.aggregate_metric_list)})


def _rows_digest(rows: Iterable[Any]) -> str:
    return digest({"rows": list(rows)})


def _plain(value: Any) -> Any:
    """Turn a value of a configuration into plain JSON; code is replaced by its digest."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if callable(value):
        return code_digest(value)
    return value


def code_digest(function: Any, within: frozenset[int] = frozenset()) -> str:
    """Return a digest of a function or class: its name and the source that it stands on.

    That is its module and whatever this one imports from the same folder, or from code that is not
    installed as a package. Comments and docstrings do not count. What a partial, a closure or an
    object with a ``__call__`` was made with counts too, and the name of a lambda in its module.

    Args:
        function: What is called.
        within: Ids of the functions that hold this one.
    """
    partial = isinstance(function, functools.partial)
    inner = function.func if partial else function
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    module = sys.modules.get(named.__module__)
    found: dict[str, str] = {}
    _read(module, found)
    content = {"name": named.__qualname__, "sources": sorted(found.values())}
    held = [_stable(part, within | {id(function)}) for part in _held(function, module)]
    return digest({**content, "held": held} if held else content)


def _held(function: Any, module: Any) -> list[Any]:
    """Return what tells a callable from others of the same name and source."""
    if isinstance(function, functools.partial):
        return [function.args, function.keywords, function.func]
    if inspect.isfunction(function):
        if "<" not in function.__qualname__:  # neither a lambda nor made by another function
            return []
        names = [name for name, value in vars(module or object).items() if value is function]
        cells = inspect.getclosurevars(function).nonlocals
        return [names, dict(cells), function.__defaults__, function.__kwdefaults__]
    if isinstance(function, type) or not hasattr(function, "__dict__"):
        return []
    return [vars(function)] if vars(function) else []


def _stable(value: Any, within: frozenset[int]) -> Any:
    """Return a value as JSON that is the same in every process; objects count by their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in within:
        return "itself"
    within |= {id(value)}
    if isinstance(value, Mapping):
        return {str(name): _stable(part, within) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stable(part, within) for part in value]
    if isinstance(value, (set, frozenset, bytes, re.Pattern)):
        return repr(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)
    return code_digest(value, within) if callable(value) else type(value).__qualname__


def _read(module: Any, found: dict[str, str]) -> None:
    """Add a digest of a module's source, and of what it imports, to `found`, by file."""
    file = getattr(module, "__file__", None)
    if file is None or file in found or not file.endswith(".py") or not Path(file).is_file():
        return
    tree = _without_docstrings(ast.parse(Path(file).read_bytes()))
    found[file] = digest({"source": ast.unparse(tree)})
    folder = Path(file).resolve().parent
    for name in _imported(tree, getattr(module, "__package__", None) or ""):
        other = sys.modules.get(name)
        place = getattr(other, "__file__", None)
        if place is not None and _is_own(Path(place).resolve(), folder):
            _read(other, found)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        named = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, named) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _is_own(file: Path, folder: Path) -> bool:
    others = (*_INSTALLED, _PACKAGE)
    return file.is_relative_to(folder) or not any(file.is_relative_to(place) for place in others)


def _imported(tree: ast.Module, package: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            if node.level:
                start = importlib.util.resolve_name(start, package)
            names.update({start, *(f"{start}.{alias.name}" for alias in node.names)})
    return names
