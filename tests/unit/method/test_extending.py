"""docs/extending.md as its readers use it: its code in a package of one's own, and in lm_eval."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from readme_blocks import ROOT, extending_blocks, run_extending_blocks

from gks_eval.method.registry import ROUTERS
from gks_eval.testing import check_merge, check_router, check_rule

LM_EVAL = "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "my-methods"
version = "1.0"
[tool.setuptools]
py-modules = ["my_methods", "broken"]
[project.entry-points."gks_eval.routers"]
first_row = "my_methods:first_row"
sharp_row = "my_methods:sharp_row"
arrow = "my_methods:first_row"
absent = "broken:router"
[project.entry-points."gks_eval.rules"]
only_b = "my_methods:only_b"
[project.entry-points."gks_eval.merges"]
largest = "my_methods:largest"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with one that adds methods, installed by pip."""
    source = tmp_path_factory.mktemp("source")
    site = tmp_path_factory.mktemp("site")
    blocks = [b.replace("ROUTERS.add(", "(") for b in extending_blocks() if "def test_" not in b]
    (source / "my_methods.py").write_text("\n".join(blocks), "utf-8")
    (source / "broken.py").write_text("raise ImportError('no such luck')\n", "utf-8")
    (source / "pyproject.toml").write_text(PROJECT, "utf-8")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(site), str(source)], check=True, text=True
    )
    return site


def run(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_pages_methods_pass_the_pages_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROUTERS, "_added", {})
    space = run_extending_blocks()
    space["test_first_row"]()
    space["test_sharp_row"]()
    check_router(space["sharp_row"], sharpness=3.0)
    check_rule(space["only_b"])
    check_rule(space["less_of_the_mean"])
    check_merge(space["largest"])


def test_a_router_of_another_package_runs_in_lm_eval(
    installed: Path, tiny_library: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = f"library={tiny_library('phi3')},router=sharp_row,sharpness=2,subtract=en"
    done = run(
        installed, LM_EVAL, "run", "--model", "gks_arrow", "--model_args", arguments,
        "--tasks", "gks_demo_goals_en", "--include_path", str(ROOT / "tasks"), "--limit", "2",
        "--output_path", str(tmp_path), "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results_*.json")
    setting = json.loads(path.read_text("utf-8"))["config"]["gks_eval"]["setting"]
    assert setting["router"] == "sharp_row"
    assert setting["sharpness"] == 2.0
    assert setting["rule"] == "factors"
    assert "top_k" not in setting


def test_a_package_that_ends_the_process_is_broken_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text("raise SystemExit('no licence')\n")
    info = tmp_path / "ending-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ending\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gks_eval.routers]\nlast = ending:last\n")
    code = "from gks_eval.method.setting import Setting; print(Setting().router)"
    done = run(tmp_path, code)
    assert done.stdout == "arrow\n"
    assert "The router last of ending is broken: no licence" in done.stderr


def test_names_that_are_taken_and_packages_that_are_broken(installed: Path) -> None:
    code = (
        "from gks_eval.method.registry import ROUTERS\n"
        "from gks_eval.method.setting import Setting\n"
        "print([m.name for m in ROUTERS.usable()], ROUTERS.get('arrow').paper)\n"
        "print(Setting.parse('sharp_row:en+de;sharpness=3;rule=only_b')[0].identity())\n"
        "print(Setting.parse('merge:largest;subtract=en')[0].router)\n"
        "Setting.parse('absent')"
    )
    done = run(installed, code)
    names, identity, merge = done.stdout.splitlines()
    assert re.fullmatch(r"\['arrow'.*, 'first_row', 'sharp_row'\] Ostapenko.*", names)
    assert "'sharpness': 3.0" in identity
    assert "'rule': 'only_b'" in identity
    assert merge == "merge:largest"
    warnings = done.stderr.splitlines()
    taken = "The router arrow of my-methods is left out, as that name is taken."
    assert warnings.count(taken) == 1
    assert sum("absent of my-methods is broken: no such luck" in line for line in warnings) == 1
    assert "cannot be loaded (ImportError: no such luck); update or uninstall" in warnings[-1]
