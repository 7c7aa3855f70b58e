"""What keeps the package usable on Windows and macOS, as far as Linux can show it."""

from __future__ import annotations

import ast
import ntpath
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pytest
from evidence_factory import write_run

from gks_eval.errors import UsageError
from gks_eval.evidence.runs import _label, _split_label
from gks_eval.grid.settings import parse_settings
from gks_eval.library.hub import HubSource
from gks_eval.util.paths import is_portable_name, unportable

PACKAGE = Path(__file__).parents[2] / "gks_eval"
FILES = sorted(PACKAGE.rglob("*.py"))
POSIX_MODULES = frozenset("fcntl grp pwd resource syslog".split())

# Runs the package in a Python that lacks what Windows' lacks: modules and functions of os.
HIDDEN = f"""
import contextlib, os, sys
for name in ("portalocker", "psutil"):  # without POSIX modules they need Windows' own
    with contextlib.suppress(ImportError):
        __import__(name)

MODULES = {set(POSIX_MODULES)!r}

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
for name in MODULES:
    sys.modules.pop(name, None)
for name in '''chown fork forkpty getegid geteuid getgid getgroups getpgid getuid killpg lchown
        mkfifo mknod nice sched_getaffinity sched_setaffinity setsid sysconf wait3 wait4
        '''.split():
    if hasattr(os, name):
        delattr(os, name)
"""
EVERY_MODULE = """
import importlib, pkgutil
import gks_eval

for module in pkgutil.walk_packages(gks_eval.__path__, "gks_eval."):
    if not module.name.endswith(("__main__", ".mixing.kernel")):  # the kernel needs Triton
        importlib.import_module(module.name)
assert not MODULES & set(sys.modules), MODULES & set(sys.modules)
import torch
from gks_eval.training.limits import peak_memory_mb, release_memory, reset_peak_memory
from gks_eval.library.load import load_library

reset_peak_memory(torch.device("cpu"))
assert peak_memory_mb(torch.device("cpu")) > 1
release_memory()
assert list(load_library(sys.argv[1]).experts) == ["alpha", "beta"]
"""
FILES_AND_LOCKS = """
from pathlib import Path
from gks_eval.util.files import exclusive, replaced_folder, write_text

place = Path(sys.argv[1])
for text in ("old", "new\\n"):
    write_text(place / "page", text)
with replaced_folder(place / "folder") as draft:
    (draft / "file").touch()
assert (place / "page").read_bytes() == b"new\\n"
for _ in range(2):
    with exclusive(place / "lock") as held, exclusive(place / "lock") as second:
        assert (held, second) == (True, False)
assert sorted(p.name for p in place.rglob("*") if p.name != "lock") == ["file", "folder", "page"]
"""
COMMANDS = """
from gks_eval.cli.main import main
main()
"""


def run_hidden(code: str, *arguments: str | Path, **environment: str) -> str:
    # Some libraries warn that they do without a module.
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN + code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_every_module_is_imported_and_a_library_read(tiny_library: Callable[..., Path]) -> None:
    run_hidden(EVERY_MODULE, tiny_library(experts=("alpha", "beta")))


def test_files_are_written_and_locked(tmp_path: Path) -> None:
    run_hidden(FILES_AND_LOCKS, tmp_path)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for label, every in (("base", 3), ("arrow-日本", 2)):
        write_run(tmp_path / "runs" / label, {"t": [float(i % every > 0) for i in range(120)]})
    return tmp_path / "runs"


@pytest.mark.parametrize(
    "command",
    [
        "compare {runs}",
        "compare {runs} --format csv",
        "gate --baseline {runs}/arrow-日本 --candidate {runs}/base --json {out}/verdict.json",
        "report {runs} --output {out}/page.html",
    ],
    ids=lambda command: command.replace("{runs}", "RUNS").replace("{out}", "OUT"),
)
def test_the_evidence_commands_run(command: str, runs: Path, tmp_path: Path) -> None:
    words = [word.format(runs=runs, out=tmp_path / "out") for word in command.split()]
    assert run_hidden(COMMANDS, *words, PYTHONIOENCODING="utf-8")


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
@pytest.mark.parametrize("form", ["terminal", "markdown", "csv"])
def test_a_terminal_of_few_characters_gets_the_others_escaped(
    encoding: str, form: str, runs: Path
) -> None:
    shown = run_hidden(COMMANDS, "compare", runs, "--format", form, PYTHONIOENCODING=encoding)
    assert "arrow" in shown
    if form != "terminal":  # a table may break the name
        assert r"arrow-\u65e5\u672c" in shown


def text_calls(tree: ast.AST) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("open", "read_text", "write_text")
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_text_files_have_the_same_bytes_everywhere(file: Path) -> None:
    """Without an encoding Windows reads cp1252; without newline= it writes carriage returns."""
    for call in text_calls(ast.parse(file.read_text("utf-8"))):
        text = ast.unparse(call)
        if "'rb'" in text:
            continue
        where = f"{file.name}:{call.lineno}: {text}"
        assert re.search(r"'(utf-8(-sig)?|ascii)'", text), where
        assert call.func.attr != "write_text" or "newline=" in text, where  # type: ignore[attr-defined]


def test_modules_that_windows_lacks_are_imported_in_functions_only() -> None:
    found = {
        f"{file.name}: {alias.name}"
        for file in FILES
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in POSIX_MODULES | {"pty", "termios", "tty"}
    }
    assert found == set()


DEVICES = "con nul COM1 lpt9 aux.txt PRN.tar.gz Nul.".split()
PLAIN = "console com com10 null aux_ gks-avg_preset-exact a.b _x experts".split()


@pytest.mark.parametrize("name", [*DEVICES, *PLAIN])
def test_names_of_devices_are_those_that_python_knows(name: str) -> None:
    if hasattr(ntpath, "isreserved"):
        reserved = ntpath.isreserved(name)
    else:
        reserved = PureWindowsPath(name).is_reserved()
    assert is_portable_name(name) is not reserved


@pytest.mark.parametrize("name", ["a:b", "a?", "a|b", "a/b", "a\\b", "a.", "a ", "", "a\nb", "a*"])
def test_names_that_windows_cannot_store(name: str) -> None:
    assert not is_portable_name(name)


def test_names_that_share_a_folder_where_case_is_ignored() -> None:
    names = ["a", "b", "A", "Straße", "STRASSE"]
    assert [name for name, _ in unportable(names)] == ["A", "STRASSE"]


@pytest.mark.parametrize(
    "setting",
    [
        "base", "arrow", "gks:avg", "gks:en+fr;rule=delta", "expert:A.b", "uniform:en;scale=-0.5",
        "gks:avg;preset=exact;library=C:\\libraries\\mine", "arrow;library=a/b c?*|<>",
        "merge:mean;subtract=en",
    ],
)  # fmt: skip
def test_a_setting_s_folder_can_be_made_on_windows(setting: str) -> None:
    (cell,) = parse_settings([setting])
    for name in (cell.slug, f".{cell.slug}.partial"):
        assert is_portable_name(name)
        assert PureWindowsPath("C:/out", name).name == name


def test_settings_whose_folders_differ_in_case_only_are_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_settings(["expert:a", "expert:A"])


@pytest.mark.parametrize(
    ("source", "label", "path"),
    [
        (r"C:\runs\lr=1", None, r"C:\runs\lr=1"),
        (r"\\server\runs\lr=1", None, r"\\server\runs\lr=1"),
        (r"mine=C:\runs", "mine", r"C:\runs"),
        ("mine=C:/runs/lr=1", "mine", "C:/runs/lr=1"),
    ],
)
def test_a_label_before_a_path_of_windows(source: str, label: str | None, path: str) -> None:
    assert _split_label(source) == (label, path)


@pytest.mark.parametrize("kind", [PurePath, PureWindowsPath])
def test_labels_of_runs_have_slashes(kind: Any) -> None:
    root, results = kind("out"), SimpleNamespace(info={})
    label = _label(root / "seed-1" / "arrow", root, results, alone=False)  # type: ignore[arg-type]
    assert label == "seed-1/arrow"


@pytest.mark.parametrize(
    "text", [r"C:\lib\mine", "C:/lib/mine", r"lib\mine", r"..\mine", "D:lib/x"]
)
def test_a_path_of_windows_is_no_hub_id(text: str) -> None:
    assert not HubSource.looks_like(text)
