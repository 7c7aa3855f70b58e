"""What the package promises: its names, and that naming it costs nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import gks_eval
from gks_eval import errors

ROOT = Path(__file__).parents[2]

PROMISED = {
    "Attachment": "gks_eval.model.inject",
    "CompatibilityError": "gks_eval.errors",
    "ConfigError": "gks_eval.errors",
    "DataError": "gks_eval.errors",
    "GatePolicy": "gks_eval.evidence.policy",
    "GksArrowLM": "gks_eval.model.lm",
    "GksError": "gks_eval.errors",
    "Grid": "gks_eval.grid.settings",
    "HubError": "gks_eval.errors",
    "Layer": "gks_eval.method.declaration",
    "Library": "gks_eval.library.library",
    "LibraryError": "gks_eval.errors",
    "LoraPair": "gks_eval.method.lora",
    "MERGES": "gks_eval.method.registry",
    "Parameters": "gks_eval.method.declaration",
    "Prepared": "gks_eval.method.declaration",
    "ROUTERS": "gks_eval.method.registry",
    "RULES": "gks_eval.method.registry",
    "ResourceError": "gks_eval.errors",
    "ResultsError": "gks_eval.errors",
    "RoutingTally": "gks_eval.model.observe",
    "Setting": "gks_eval.method.setting",
    "Tokens": "gks_eval.method.declaration",
    "UsageError": "gks_eval.errors",
    "attach": "gks_eval.model.inject",
    "compare": "gks_eval.evidence.compare",
    "embedded_model": "gks_eval.model.embedded",
    "export": "gks_eval.library.export",
    "find_runs": "gks_eval.evidence.runs",
    "gate": "gks_eval.evidence.gate",
    "joint_rule": "gks_eval.method.decorators",
    "library_geometry": "gks_eval.library.geometry",
    "load_library": "gks_eval.library.load",
    "merge": "gks_eval.method.decorators",
    "router": "gks_eval.method.decorators",
    "rule": "gks_eval.method.decorators",
    "run_grid": "gks_eval.grid.runner",
    "tasks_dir": "gks_eval.util.paths",
}
HEAVY = {
    "accelerate", "bitsandbytes", "datasets", "lm_eval", "matplotlib", "numpy", "pandas", "peft",
    "plotly", "scipy", "sklearn", "statsmodels", "torch", "transformers", "trl",
}  # fmt: skip


def modules_after(code: str) -> set[str]:
    """The top-level modules that an interpreter of its own holds after running the code."""
    code += (
        "\nimport json, sys\nprint(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_public_names_are_these() -> None:
    assert set(gks_eval.__all__) == {*PROMISED, "__version__"}
    assert len(set(gks_eval.__all__)) == len(gks_eval.__all__)
    assert set(gks_eval.__all__) <= set(dir(gks_eval))


@pytest.mark.parametrize("name", PROMISED)
def test_every_name_is_the_object_of_its_module(name: str) -> None:
    assert getattr(gks_eval, name) is getattr(sys.modules[PROMISED[name]], name)


def test_every_error_is_public() -> None:
    assert {name for name in errors.__all__ if name.endswith("Error")} <= set(gks_eval.__all__)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("geometry", "library_geometry"), ("inject", "attach"), ("lm", "GksArrowLM"),
        ("observe", "RoutingTally"), ("paths", "adapters_dir"),
        ("grid.settings", "parse_settings"),
        ("evidence.stats.power", "mcnemar_power"),
    ],
)  # fmt: skip
def test_the_module_paths_of_0_1_still_work(old: str, name: str) -> None:
    code = (
        f"import gks_eval; print('torch' in sys.modules)\n"
        f"import gks_eval.{old}; from gks_eval.{old} import {name}\n"
        f"print(gks_eval.{old}.{name} is {name}, {name}.__module__)\n"
    )
    command = [sys.executable, "-W", "error", "-c", "import sys\n" + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    light, same, _ = done.stdout.split(maxsplit=2)
    assert (light, same) == ("False", "True")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'gks_eval' has no attribute 'GksArrow'"):
        gks_eval.GksArrow  # noqa: B018


def test_naming_the_package_imports_nothing_heavy() -> None:
    assert (
        modules_after("import gks_eval; gks_eval.__version__; gks_eval.GksError") & HEAVY == set()
    )


def test_the_command_line_imports_nothing_heavy_until_a_command_runs() -> None:
    modules = modules_after("from gks_eval.cli.main import build_app; build_app()")
    assert modules & HEAVY == set()


def test_one_version_is_said_everywhere() -> None:
    def said(file: str, pattern: str) -> str:
        found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert found, file
        return found[1]

    assert version("gks-eval") == gks_eval.__version__
    assert said("CITATION.cff", r"^version: (\S+)$") == gks_eval.__version__
    assert said("CHANGELOG.md", r"^## \[?(\d\S*?)\]?( - .*)?$") == gks_eval.__version__
