"""The package as users have it: installed into fresh environments, used from another folder."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Environment

pytestmark = pytest.mark.install

ROOT = Path(__file__).parents[2]
TARGET = "gks_eval.model.lm:GksArrowLM"
REGISTRY = """
import json, lm_eval.models
from lm_eval.api.registry import model_registry
names = dict(model_registry.items())
print(json.dumps([names.pop("gks_arrow", None), names == lm_eval.models.MODEL_MAPPING]))
"""


def test_the_wheel_holds_one_package_and_one_line_of_start_up(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "gks_eval",
        "gks_eval_bridge.pth",
        wheel.name.partition("-py3")[0] + ".dist-info",
    }
    assert [name for name in names if name.endswith(".pth")] == ["gks_eval_bridge.pth"]
    for folder in ("tasks", "adapters"):
        ours = {
            f"gks_eval/_data/{file.relative_to(ROOT).as_posix()}"
            for file in (ROOT / folder).rglob("*.yaml")
        }
        assert ours
        assert ours <= set(names)
    assert "gks_eval/py.typed" in names


def test_the_name_is_there_beside_every_built_in_model(
    installed: tuple[str, Environment],
) -> None:
    _, environment = installed
    assert json.loads(environment.code(REGISTRY)) == [TARGET, True]
    assert json.loads(environment.code(REGISTRY, GKS_EVAL_BRIDGE="0")) == [None, True]


def test_nothing_loose_lies_in_site_packages(installed: tuple[str, Environment]) -> None:
    how, environment = installed
    names = {entry.name for entry in environment.site.iterdir()} - {"others.pth"}
    names = {"dist-info" if name.endswith(".dist-info") else name for name in names}
    ours = "_gks_eval.pth" if how == "editable" else "gks_eval"
    assert names == {ours, "gks_eval_bridge.pth", "dist-info"}


def test_a_start_costs_one_module_and_keeps_the_package_out(
    installed: tuple[str, Environment],
) -> None:
    _, environment = installed
    code = "import sys; print(*sorted(sys.modules))"
    off = set(environment.code(code, GKS_EVAL_BRIDGE="0").split())
    assert set(environment.code(code).split()) - off <= {"__future__"}
    assert environment.code("import sys; print('gks_eval' in sys.modules)").strip() == "False"


def test_a_package_on_the_path_goes_before_the_installed_one(
    light: Environment, wheel: Path
) -> None:
    light.pip("install", "--no-deps", wheel)
    package = light.work / "gks_eval"
    package.mkdir()
    (package / "__init__.py").write_text("where = 'here'\n", encoding="utf-8")
    assert light.code("import gks_eval; print(gks_eval.where)").strip() == "here"


def test_the_tasks_folder_exists_and_holds_the_tasks(installed: tuple[str, Environment]) -> None:
    how, environment = installed
    folder = Path(environment.run("gks-eval", "tasks").stdout.strip())
    within = ROOT / "tasks" if how == "editable" else environment.site / "gks_eval/_data/tasks"
    assert folder.resolve() == within.resolve()
    assert {file.relative_to(folder) for file in folder.rglob("*.yaml")} == {
        file.relative_to(ROOT / "tasks") for file in (ROOT / "tasks").rglob("*.yaml")
    }


def test_uninstalling_leaves_nothing_and_python_starts_clean(
    installed: tuple[str, Environment],
) -> None:
    _, environment = installed
    environment.pip("uninstall", "--yes", "gks-eval")
    assert [entry.name for entry in environment.site.iterdir()] == ["others.pth"]
    assert json.loads(environment.code(REGISTRY)) == [None, True]


def test_a_package_removed_by_hand_leaves_a_silent_line(light: Environment, wheel: Path) -> None:
    light.pip("install", "--no-deps", wheel)
    shutil.rmtree(light.site / "gks_eval")
    assert json.loads(light.code(REGISTRY)) == [None, True]


@pytest.mark.parametrize("command", ["lm_eval", "lm-eval", "python -m lm_eval"])
def test_every_command_of_lm_eval_knows_the_name(fresh: Environment, command: str) -> None:
    # lm-eval lists the models it knows when it is asked for one that it does not.
    arguments = f"{command} --model no-such-model --tasks arc_easy".split()
    done = fresh.run(*arguments, check=False)
    assert done.returncode != 0
    known = done.stderr.rpartition("Supported model names: ")[2].split()
    assert "gks_arrow" in known
    assert "hf," in known


def test_simple_evaluate_knows_the_name(fresh: Environment) -> None:
    code = """
import lm_eval
args = "library=no-such-library"
try: lm_eval.simple_evaluate(model="gks_arrow", model_args=args, tasks=["piqa"])
except Exception as error: print(type(error).__module__, error)
"""
    done = fresh.run("python", "-c", code)
    assert done.stdout.startswith("gks_eval.errors ")
    assert "no-such-library" in done.stdout


def test_lm_eval_runs_the_demo_library_from_another_folder(fresh: Environment) -> None:
    tasks = fresh.run("gks-eval", "tasks").stdout.strip()
    results = fresh.work / "results"
    arguments = "--model gks_arrow --model_args library=smollm2-demo,subtract=avg --limit 2"
    fresh.run(
        "lm_eval",
        *arguments.split(),
        *("--tasks", "gks_demo", "--include_path", tasks, "--output_path", str(results)),
        GKS_EVAL_CACHE=str(fresh.work / "cache"),
    )
    (file,) = results.rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["config"]["model"] == "gks_arrow"
    assert any(name.startswith("gks_demo") for name in found["results"])
    cited = fresh.run("gks-eval", "cite", str(results)).stdout
    assert "{bagherifard2025," in cited  # references.bib is in the wheel


@pytest.mark.skipif("GKS_CONSTRAINTS" not in os.environ, reason="needs the extra evidence")
def test_the_demo_and_its_evidence(fresh: Environment) -> None:
    shown = fresh.run("gks-eval", "demo", "--limit", "2", GKS_EVAL_CACHE=str(fresh.work / "cache"))
    assert "gks:avg" in shown.stdout
    fresh.run("gks-eval", "compare", "demo-results", "--baseline", "arrow")
    fresh.run("gks-eval", "report", "demo-results", "-o", "report.html")
    assert "<html" in (fresh.work / "report.html").read_text(encoding="utf-8")
