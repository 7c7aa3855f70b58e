"""The start-up bridge, on stand-ins for every kind of lm-eval release, and on the real one.

Each case runs in an interpreter of its own whose bridge is off, and starts it as `site` would: by
executing the line of the `.pth` file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PTH = ROOT / "gks_eval" / "_bridge.pth"
TARGET = "gks_eval.model.lm:GksArrowLM"

START = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
def start():
    os.environ.pop("GKS_EVAL_BRIDGE", None)
    exec(open({str(PTH)!r}).read())
def watchers():
    return sum(type(finder).__name__ == "_Watcher" for finder in sys.meta_path)
"""

REGISTRY = """
class Registry:
    def __init__(self): self._objs = {}
    def register(self, alias, target=None):
        current = self._objs.get(alias)
        if current is not None and current != target: raise ValueError(alias)
        self._objs[alias] = target
    def __contains__(self, alias): return alias in self._objs
    def __len__(self): return len(self._objs)
model_registry = Registry()
def get_model(name):
    if len(model_registry) == 0:
        import lm_eval.models
    discover()
    return model_registry._objs[name]
def discover(): pass
"""

MODELS = """
from lm_eval.api import registry
for name in ("dummy", "hf"):
    registry.model_registry.register(name, target="lm_eval.models." + name)
"""

DISCOVERY = """
def discover():
    if "gks_arrow" not in model_registry:
        model_registry.register("gks_arrow", target=("EntryPoint", "gks_eval.model.lm:GksArrowLM"))
"""


def fake_lm_eval(folder: Path, *, registry: str = REGISTRY, models: str = MODELS) -> Path:
    for name, text in {
        "lm_eval/__init__.py": "",
        "lm_eval/api/__init__.py": "",
        "lm_eval/api/registry.py": registry,
        "lm_eval/models/__init__.py": models,
        "lm_eval/models/dummy.py": "",
    }.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def run(code: str, *folders: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    paths = "".join(f"sys.path.insert(0, {str(folder)!r})\n" for folder in folders)
    return subprocess.run(
        [sys.executable, "-c", START + paths + code],
        capture_output=True,
        text=True,
        check=check,
        env={**os.environ, "GKS_EVAL_BRIDGE": "0"},
    )


def answer(code: str, *folders: Path) -> object:
    done = run(code, *folders)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_name_joins_the_built_in_models_once_they_are_there(tmp_path: Path) -> None:
    code = """
start()
before = watchers()
from lm_eval.api.registry import model_registry
early = dict(model_registry._objs)
import lm_eval.models
print(json.dumps([before, early, model_registry._objs, watchers()]))
"""
    everything = {
        "dummy": "lm_eval.models.dummy",
        "hf": "lm_eval.models.hf",
        "gks_arrow": TARGET,
    }
    assert answer(code, fake_lm_eval(tmp_path)) == [1, {}, everything, 0]


@pytest.mark.parametrize(
    "way",
    [
        "import lm_eval.models.dummy",
        "from lm_eval import models",
        "import importlib; importlib.import_module('lm_eval.models')",
        "from lm_eval.api.registry import get_model; get_model('hf')",
        "import importlib.util; importlib.util.find_spec('lm_eval.models'); import lm_eval.models",
    ],
)
def test_every_way_to_import_the_models_registers_the_name(tmp_path: Path, way: str) -> None:
    code = f"""
start()
{way}
from lm_eval.api.registry import model_registry
loader = sys.modules["lm_eval.models"].__spec__.loader
print(json.dumps([model_registry._objs["gks_arrow"], len(model_registry), watchers(),
                  type(loader).__name__, "exec_module" in vars(loader)]))
"""
    expected = [TARGET, 3, 0, "SourceFileLoader", False]
    assert answer(code, fake_lm_eval(tmp_path)) == expected


def test_models_that_are_loaded_already_get_the_name_at_once(tmp_path: Path) -> None:
    code = """
import lm_eval.models
from lm_eval.api.registry import model_registry
start()
print(json.dumps([sorted(model_registry._objs), watchers()]))
"""
    assert answer(code, fake_lm_eval(tmp_path)) == [["dummy", "gks_arrow", "hf"], 0]


def test_starting_twice_is_starting_once(tmp_path: Path) -> None:
    # Python reads the .pth files of a virtual environment twice.
    code = """
start(); start()
both = watchers()
import lm_eval.models
start()
print(json.dumps([both, watchers()]))
"""
    assert answer(code, fake_lm_eval(tmp_path)) == [1, 0]


@pytest.mark.parametrize("when", ["with the models", "at the first name asked for"])
def test_a_release_that_discovers_plugins_itself_is_left_to_it(tmp_path: Path, when: str) -> None:
    models = MODELS + "registry.discover()\n" if when == "with the models" else MODELS
    folder = fake_lm_eval(tmp_path, registry=REGISTRY + DISCOVERY, models=models)
    code = """
start()
from lm_eval.api.registry import get_model, model_registry
print(json.dumps([get_model("gks_arrow"), len(model_registry), watchers()]))
"""
    found = ["EntryPoint", TARGET] if when == "with the models" else TARGET
    assert answer(code, folder) == [found, 3, 0]


def test_a_name_that_is_taken_stays_with_its_owner(tmp_path: Path) -> None:
    models = MODELS + 'registry.model_registry.register("gks_arrow", target="theirs")\n'
    code = """
start()
import lm_eval.models
from lm_eval.api.registry import model_registry
print(json.dumps(model_registry._objs["gks_arrow"]))
"""
    assert answer(code, fake_lm_eval(tmp_path, models=models)) == "theirs"


def test_registering_by_hand_says_whether_it_was_needed(tmp_path: Path) -> None:
    code = """
from gks_eval import _bridge
first, second = _bridge.register(), _bridge.register()
from lm_eval.api.registry import model_registry
print(json.dumps([first, second, len(model_registry)]))
"""
    assert answer(code, fake_lm_eval(tmp_path)) == [True, False, 3]


@pytest.mark.parametrize(
    ("registry", "models"),
    [
        ("", ""),
        ("raise RuntimeError('broken')", ""),
        (REGISTRY, "from lm_eval.api.registry import model_registry"),
        (REGISTRY + "\nmodel_registry.register = None", ""),
        ("model_registry = None", ""),
    ],
    ids=["no registry", "broken registry", "empty registry", "no register()", "another kind"],
)
def test_an_lm_eval_we_do_not_understand_imports_as_ever(
    tmp_path: Path, registry: str, models: str
) -> None:
    code = """
start()
import lm_eval.models
registry = getattr(sys.modules.get("lm_eval.api.registry"), "model_registry", None)
print(json.dumps([watchers(), bool(registry)]))
"""
    folder = fake_lm_eval(tmp_path, registry=registry, models=models)
    assert answer(code, folder) == [0, False]


def test_a_failure_of_lm_eval_itself_is_passed_on_and_may_be_tried_again(tmp_path: Path) -> None:
    folder = fake_lm_eval(tmp_path, models="import sys\nif sys.fail: raise KeyError(7)\n" + MODELS)
    code = """
start()
sys.fail = True
try: import lm_eval.models
except KeyError as error: failure = repr(error)
sys.fail = False
import lm_eval.models
from lm_eval.api.registry import model_registry
print(json.dumps([failure, sorted(model_registry._objs), watchers()]))
"""
    assert answer(code, folder) == ["KeyError(7)", ["dummy", "gks_arrow", "hf"], 0]


def test_a_loader_that_cannot_be_hooked_still_loads(tmp_path: Path) -> None:
    code = """
import importlib.util
class Slotted:
    __slots__ = ()
    def create_module(self, spec): return None
    def exec_module(self, module): module.ran = True
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "lm_eval.models": return importlib.util.spec_from_loader(name, Slotted())
sys.meta_path.insert(0, Finder)
start()
import lm_eval.models
print(json.dumps(lm_eval.models.ran))
"""
    assert answer(code, fake_lm_eval(tmp_path)) is True


def test_without_lm_eval_nothing_happens(tmp_path: Path) -> None:
    code = """
sys.modules["lm_eval"] = None
start()
try: import lm_eval.models
except ImportError as error: print(json.dumps([type(error).__name__, watchers()]))
"""
    assert answer(code) == ["ModuleNotFoundError", 1]


def test_switched_off_nothing_is_imported() -> None:
    code = f"""
before = set(sys.modules)
exec(open({str(PTH)!r}).read())
print(json.dumps([sorted(set(sys.modules) - before), watchers()]))
"""
    assert answer(code) == [[], 0]


@pytest.mark.parametrize(
    "bridge",
    [None, "", "syntax error (", "raise RuntimeError", "raise SystemExit(3)", "def start(): 1 / 0"],
)
def test_what_is_left_of_a_half_removed_package_never_breaks_a_start(
    tmp_path: Path, bridge: str | None
) -> None:
    if bridge is not None:
        package = tmp_path / "gks_eval"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "_bridge.py").write_text(bridge, encoding="utf-8")
    code = f"""
sys.path.remove({str(ROOT)!r})
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, "gks_eval"))]
sys.path.insert(0, {str(tmp_path)!r})
start()
print(json.dumps(watchers()))
"""
    assert answer(code) == 0


def test_starting_it_leaves_one_module_of_the_standard_library_and_no_name_of_ours() -> None:
    code = """
before = set(sys.modules)
start()
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run(  # -S: no other .pth file has imported anything
        [sys.executable, "-S", "-c", START + code], capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout)) <= {"__future__"}


def test_the_pth_is_one_line_that_site_executes() -> None:
    lines = PTH.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("import ")


def test_the_real_lm_eval_keeps_all_its_models() -> None:
    code = """
start()
import lm_eval.models
from lm_eval.api.registry import model_registry
names = dict(model_registry.items())
print(json.dumps([names.pop("gks_arrow"), names == lm_eval.models.MODEL_MAPPING, len(names) > 20]))
"""
    assert answer(code) == [TARGET, True, True]


def test_the_entry_point_names_the_same_class() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["lm_eval.models"] == {"gks_arrow": TARGET}
