"""Every command of the README, run: word for word, in its order, in one folder.

Commands may be given options that make them smaller (`--limit 1`). What they take from the hub are
tiny stand-ins under the real names. A command that no rule covers fails, so none goes untested.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hub_stand_in import (
    lay_out_embedded,
    lay_out_library,
    lay_out_phi3_mini,
    lay_out_short_recipe,
)
from readme_blocks import ROOT, Command, block_commands, fences

# The documents whose commands are run; tests/unit/test_documented_commands.py parses all others.
COMMANDS = [*block_commands(ROOT / "README.md"), *block_commands(ROOT / "docs/evidence.md")]
PHI3_ROWS = ["arrow", "base", "gks-avg", "gks-de", "gks-en", "gks-fr"]


@dataclass
class Place:
    """The folder that the commands run in, one after the other."""

    folder: Path
    environment: dict[str, str]
    printed: str = ""

    def run(self, command: str, status: int = 0, **environment: str) -> None:
        """Run a command in a shell, and keep what it printed."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        self.printed = done.stdout + done.stderr
        assert done.returncode == status, f"{command}\n{self.printed}"
        assert "Traceback" not in self.printed, self.printed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder with the data sets of the tests, and a hub's cache with stand-ins."""
    root = tmp_path_factory.mktemp("readme")
    folder = root / "work"
    # A data set `org/name` is taken from a folder of that name under the working directory.
    shutil.copytree(ROOT / "tests/data/hub", folder)
    shutil.copy(ROOT / "docs/examples/gate.yaml", folder)
    lay_out_phi3_mini(root / "hf")
    (manifest,) = (
        "\n".join(block) for kind, _, block in fences(ROOT / "README.md") if kind == "yaml"
    )
    lay_out_library(folder / "path/to/folder", manifest, root / "hf", "my-org")
    lay_out_embedded(root / "tiny", "smollm2-135m-instruct")
    hidden = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "GITHUB_STEP_SUMMARY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(root / "hf"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
        # Threads that spin for a core that another test has would take minutes.
        "OMP_NUM_THREADS": "1",
        "TINY_CACHE": str(root / "tiny"),
    }
    return Place(folder, environment)


def results_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("results_*.json"))


# --------------------------------------------------------------- what stands behind the rules


def make(place: Place, command: str) -> None:
    """The target is there; `demo`, being long, is run with fewer items."""
    (target,) = command.split()[1:]
    shown = subprocess.run(
        ["make", "--dry-run", "--silent", target],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    last = shown.stdout.splitlines()[-1]
    assert {"demo": "/gks-eval demo", "test": "-m pytest"}[target] in last
    if target == "demo":
        place.run("gks-eval demo --limit 1")
        assert len(results_of(place.folder / "demo-results")) == 6
        assert re.search(r"task +base +arrow +gks:en +gks:de +gks:fr +gks:avg", place.printed)


def pip(place: Place, command: str) -> None:
    """What is named is what the package, its set-up and its extras are called."""
    setup = (ROOT / ".ci/setup_env.py").read_text("utf-8")
    extras = importlib.metadata.metadata("gks-eval").get_all("Provides-Extra") or []
    for word in command.replace('"', "").replace("'", "").split()[2:]:
        if word in ("--no-deps", "--index-url", ".", "torch"):
            continue
        if named := re.fullmatch(r"(?:\.|gks-eval)\[(.+)\]", word):
            assert set(named[1].split(",")) <= set(extras), command
        else:
            assert f'"{word}"' in setup, f"{word} is not what .ci/setup_env.py installs"


def evaluate(place: Place, command: str) -> None:
    place.run(f"{command} --limit 1")
    (path,) = results_of(place.folder / "runs")
    found = json.loads(path.read_text("utf-8"))
    assert found["config"]["model"] == "gks_arrow"
    assert "gks_english" in found["groups"]
    assert len(found["results"]) >= 9


def own_library(place: Place, command: str) -> None:
    place.run(command.replace("...", "--tasks gks_piqa --include_path $(gks-eval tasks) --limit 2"))
    assert "gks_arrow" in place.printed
    assert "|gks_piqa" in place.printed


def grid(place: Place, command: str) -> None:
    place.run(f"{command} --limit 1")
    found = results_of(place.folder / "results")
    assert sorted({path.parent.name for path in found}) == PHI3_ROWS
    assert "gks_paper_english" in json.loads(found[0].read_text("utf-8"))["groups"]


def peft_grid(place: Place, command: str) -> None:
    place.run(f"{command} --limit 1")
    found = results_of(place.folder / "results-peft")
    assert sorted(path.parent.name for path in found) == ["base", "peft_arrow", "peft_gks"]
    assert "gks_peft" in json.loads(found[0].read_text("utf-8"))["groups"]


def peft_paper(place: Place, command: str) -> None:
    place.run(command)
    assert "PEFT's example" in place.printed
    assert "peft_gks arc_challenge" in place.printed


def dry_run(place: Place, command: str) -> None:
    place.run(command)
    assert not (place.folder / "my-library").exists()
    for word in ("sentiment", "steps", "tokens"):
        assert word in place.printed


def train(place: Place, command: str) -> None:
    """A tiny base and a short recipe, both under the real ones' names."""
    lay_out_short_recipe(place.folder / "smollm2-demo", "smollm2-demo")
    place.run(command, GKS_EVAL_CACHE=place.environment["TINY_CACHE"])
    shutil.rmtree(place.folder / "smollm2-demo")
    made = sorted(p.parent.name for p in (place.folder / "my-library").glob("*/*/*.safetensors"))
    assert len(made) == 9
    assert (place.folder / "my-library/library.yaml").is_file()


def show(place: Place, command: str) -> None:
    place.run(command)
    for word in ("|dW|", "even mix", "sentiment"):
        assert word in place.printed


def compare(place: Place, command: str) -> None:
    place.run(command)
    assert "gks_paper_piqa" in place.printed
    assert "p Holm" in place.printed


def gate(place: Place, command: str) -> None:
    """One item a task is too few to judge on, which is status 2, never a pass."""
    place.run(command, status=2)
    assert "only 1 of the 100 pairs needed" in place.printed


def replicates(place: Place, command: str) -> None:
    """Runs of the base record no seed, so the folders' names pair them."""
    for seed in (1, 2, 3):
        for method in ("arrow", "gks-avg"):
            shutil.copytree(
                place.folder / "results/base", place.folder / f"runs/seed{seed}/{method}"
            )
    place.run(command)
    assert "over 3 seeds" in place.printed
    shutil.rmtree(place.folder / "runs")


def gate_run(place: Place, command: str) -> None:
    """The baseline of the other rules has no items of these tasks."""
    place.run(command, status=2)
    assert "no results of gks_piqa" in place.printed
    assert "NOT JUDGED" in place.printed


def paper(place: Place, command: str) -> None:
    place.run(command)
    assert "Table 1" in place.printed
    assert "gks_avg piqa" in place.printed


def routes(place: Place, command: str) -> None:
    place.run(f"{command} --limit 2")
    found = json.loads((place.folder / "results/routes.json").read_text("utf-8"))
    assert found["schema"].startswith("gks_eval.routing/")
    assert list(found["tasks"]) == ["gks_demo_goals_en"]


def report(place: Place, command: str) -> None:
    place.run(command)
    page = (place.folder / "report.html").read_text("utf-8")
    for word in (*PHI3_ROWS, "Routing", "gks_demo_goals_en"):
        assert word.replace("gks-", "gks") in page.replace("gks:", "gks").replace("gks-", "gks")


def cite(place: Place, command: str) -> None:
    place.run(command)
    printed = (place.folder / "methods.bib").read_text("utf-8")
    for key in ("bagherifard2025", "ostapenko2024", "peft", "eval-harness", "gks-eval"):
        assert f"{{{key}," in printed


@dataclass(frozen=True)
class Rule:
    """How commands that start with `words` are run."""

    words: str
    run: Callable[[Place, str], None]
    marks: Sequence[pytest.MarkDecorator] = field(default=())


MODEL = (pytest.mark.model,)
MODEL_NAME = "smollm2-135m-instruct"
RULES = [
    Rule("make demo", make, MODEL),
    Rule("make ", make),
    Rule("pip install ", pip),
    Rule("lm_eval --model gks_arrow --model_args pretrained=microsoft/", evaluate),
    Rule("lm_eval --model gks_arrow --model_args library=path/to/folder", own_library),
    Rule("gks-eval grid --library phi3-mini --settings 'base", peft_grid),
    Rule("gks-eval grid --library phi3-mini ", grid),
    Rule("gks-eval train smollm2-demo --output my-library --dry-run", dry_run, MODEL),
    Rule("gks-eval train smollm2-demo --output my-library", train),
    Rule("gks-eval library show my-library", show),
    Rule("gks-eval compare results/", compare),
    Rule("gks-eval compare --replicates ", replicates),
    Rule("gks-eval gate --baseline results/", gate),
    Rule("gks-eval gate --run ", gate_run),
    Rule("gks-eval paper --results results-peft", peft_paper),
    Rule("gks-eval paper --results results", paper),
    Rule("gks-eval routes --library smollm2-demo ", routes, MODEL),
    Rule("gks-eval report results ", report),
    Rule("gks-eval cite results", cite),
]


def rule_for(command: Command) -> Rule | None:
    return next((rule for rule in RULES if command.text.startswith(rule.words)), None)


def test_every_rule_is_in_use() -> None:
    used = [rule.words for command in COMMANDS if (rule := rule_for(command))]
    assert {rule.words for rule in RULES} == set(used)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=rule.marks if (rule := rule_for(command)) else ())
        for command in COMMANDS
    ],
    ids=lambda command: f"{command.where} {command.text[:40]}",
)
def test_command(command: Command, place: Place) -> None:
    rule = rule_for(command)
    assert rule, f"{command.where}: no rule says how to test: {command.text}"
    rule.run(place, command.text)


@pytest.mark.model
def test_the_python_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    blocks = [(kind, "\n".join(block)) for kind, _, block in fences(ROOT / "README.md")]
    (number,) = [n for n, (kind, _) in enumerate(blocks) if kind == "python"]
    done = subprocess.run(
        [sys.executable, "-c", blocks[number][1]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text, accuracy = done.stdout.splitlines()[-2:]
    shown, shown_accuracy = blocks[number + 1][1].splitlines()
    assert text == shown
    # Another CPU may round an item or two of the 20 to the other side.
    assert float(accuracy) == pytest.approx(float(shown_accuracy), abs=0.1)


@pytest.mark.parametrize("name", ["smollm2-demo", pytest.param(MODEL_NAME, marks=MODEL)])
def test_library_path_names_a_folder_that_is_there(name: str, tmp_path: Path) -> None:
    code = "from gks_eval.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "library", "path", name],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder = Path(done.stdout.strip())
    expected = "library.yaml" if name == "smollm2-demo" else "model.safetensors"
    assert (folder / expected).is_file()
