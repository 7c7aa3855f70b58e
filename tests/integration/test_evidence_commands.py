"""The real commands on real and made-up runs: output, exit status, one sentence for every error."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from command import run

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden" / "evidence"


@pytest.fixture(scope="module")
def factory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence_factory", TESTS / "evidence_factory.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pair(factory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs with spaces ü")
    first, second = factory.planted(1000, 50, 100, 500)
    factory.write_run(folder / "old", {"a": first, "b": first})
    factory.write_run(folder / "same", {"a": first, "b": first}, stamp="2026-03-03T00-00-00.0")
    factory.write_run(folder / "worse", {"a": second, "b": first})
    factory.write_run(folder / "partial", {"b": first})
    return folder


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("terminal", "Change from llama-0"),
        ("markdown", "| ev\\_maths | 10 | acc |"),
        ("csv", 'task,ev_maths,"acc,none",llama-1,10,0.2,'),
        ("json", '"schema": "gks_eval.compare/1"'),
        ("latex", r"\toprule"),
    ],
)
def test_compare_in_every_form(form, said, tmp_path):
    done = run("compare", GOLDEN / "llama-0", GOLDEN / "llama-1", "-f", form)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
    path = tmp_path / "out" / "file"
    written = run("compare", GOLDEN / "llama-0", GOLDEN / "llama-1", "-f", form, "-o", path)
    assert (written.returncode, written.stdout) == (0, "")
    assert said in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_compare_lists_flips():
    done = run("compare", GOLDEN / "llama-0", GOLDEN / "llama-1", "--flips", 1)
    assert "What is 1 plus 2?" in done.stdout
    assert "more are left out here" in done.stdout


def test_compare_of_runs_that_differ_needs_force():
    done = run("compare", GOLDEN / "llama-0", GOLDEN / "dummy")
    assert done.returncode == 7
    assert done.stderr.startswith("gks-eval: error: the runs are not comparable: ")
    assert done.stderr.count("\n") == 1
    forced = run("compare", GOLDEN / "llama-0", GOLDEN / "dummy", "--force")
    assert forced.returncode == 0
    assert "not comparable" in " ".join(forced.stdout.split())


@pytest.mark.parametrize(
    ("candidate", "policy", "code", "said"),
    [
        ("same", "", 0, "gate: passed (2 passed)"),
        ("worse", "", 1, "gate: REGRESSION (1 passed, 1 regression)"),
        ("worse", "max_drop: 0.05\n", 0, "gate: passed"),
        ("partial", "", 2, "gate: NOT JUDGED (1 passed, 1 not judged)"),
        ("nowhere", "", 2, "does not exist"),
        ("same", "required: [piqa]\n", 2, "piqa: missing in the baseline"),
    ],
)
def test_gate_s_exit_status_and_files(pair, tmp_path, candidate, policy, code, said):
    path = tmp_path / "gate.yaml"
    path.write_text(policy or "version: 1\n")
    done = run(
        *("gate", "--baseline", pair / "old", "--candidate", pair / candidate, "--policy", path),
        *("--junit", tmp_path / "j.xml", "--markdown", tmp_path / "s.md"),
        *("--json", tmp_path / "v.json"),
        GITHUB_STEP_SUMMARY=str(tmp_path / "step.md"),
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["exit_code"] == code
    assert ("<failure" in (tmp_path / "j.xml").read_text()) == (code == 1)
    assert ("<error" in (tmp_path / "j.xml").read_text()) == (code == 2)
    assert (tmp_path / "s.md").read_text().startswith("### gate: ")
    assert (tmp_path / "step.md").read_text().startswith("### gate: ")


def test_gate_never_exits_1_for_a_fault(pair, tmp_path):
    bad = tmp_path / "gate.yaml"
    bad.write_text("max_drop: 5\nalpah: 0.05\n")
    arguments = ("gate", "--baseline", pair / "old", "--candidate", pair / "same")
    for more in (("--policy", bad), ("--policy", tmp_path / "none"), ("--json", "/proc/x/y")):
        done = run(*arguments, *more)
        assert done.returncode == 2, more
        assert "could not judge" in done.stderr
        assert "Traceback" not in done.stderr
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "results_2026-01-01T00-00-00.0.json").write_text('{"results": {')
    done = run("gate", "--baseline", pair / "old", "--candidate", broken)
    assert done.returncode == 2
    assert "half written" in " ".join(done.stdout.split())
    done = run(*arguments, GITHUB_STEP_SUMMARY=str(tmp_path / "no" / "folder"))
    assert done.returncode == 2


def test_the_example_workflow_s_shell_steps_run(pair, tmp_path):
    """Run the gate step of the GitHub Actions example as a shell would, on a planted regression."""
    import yaml

    workflow = yaml.safe_load((ROOT / "docs" / "examples" / "gate-workflow.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    script = next(step["run"] for step in steps if step.get("name") == "Gate")
    tool = tmp_path / "bin" / "gks-eval"
    tool.parent.mkdir()
    tool.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from gks_eval.cli.main import main; main()' \"$@\"\n"
    )
    tool.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    (work / "gate.yaml").write_text((ROOT / "docs" / "examples" / "gate.yaml").read_text())
    for candidate, code in (("same", 0), ("worse", 1), ("partial", 2)):
        (work / "baseline").unlink(missing_ok=True)
        (work / "candidate").unlink(missing_ok=True)
        (work / "baseline").symlink_to(pair / "old")
        (work / "candidate").symlink_to(pair / candidate)
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PATH": f"{tool.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "GITHUB_STEP_SUMMARY": str(work / "summary.md"),
            },
        )
        assert done.returncode == code, done.stderr
        assert (work / "gate.xml").exists()


def test_paper_shows_tables_and_plans():
    done = run("paper", "--table", "phi2_english")
    assert done.returncode == 0
    assert "66.15*" in done.stdout
    done = run("paper", "--plan", "phi3_english")
    assert done.stdout.splitlines()[1].startswith("gks-eval grid --library phi3-mini --settings ")
    assert run("paper", "--plan", "phi4").returncode == 2
    assert run("paper", "--results", GOLDEN / "llama-0").returncode == 7


def test_paper_beside_own_runs(factory, tmp_path):
    scores = {"gks_paper_piqa": [1.0] * 78 + [0.0] * 22}
    factory.write_run(tmp_path / "base", scores, model_args="pretrained=microsoft/Phi-3-mini-4k")
    done = run("paper", "--results", tmp_path, "-f", "json")
    cells = json.loads(done.stdout)["cells"]
    assert {cell["table"] for cell in cells} == {"phi3_english", "phi2_english"}
    ours = [cell for cell in cells if cell["ours"] is not None and cell["column"] == "piqa"]
    assert [(c["table"], c["verdict"], c["n"]) for c in ours] == [
        ("phi3_english", "agrees", 100),
        ("phi2_english", "", 100),
    ]


def test_report_writes_one_page(tmp_path):
    done = run("report", GOLDEN / "llama-0", GOLDEN / "llama-1", "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout
    assert "<h1>Evaluation report</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_missing_package_is_named_with_its_extra(pair):
    block = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('scipy', 'jinja2'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import importlib.util, gks_eval.cli._extras as extras\n"
        "real = importlib.util.find_spec\n"
        "extras.find_spec = lambda n: None if n in ('scipy', 'jinja2') else real(n)\n"
        "from gks_eval.cli.main import main; main()"
    )
    for arguments in (
        ["compare", pair / "old", pair / "same"],
        ["gate", "--baseline", pair / "old", "--candidate", pair / "same"],
        ["paper"],
        ["report", pair / "old"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", block, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 2
        assert 'needs scipy, jinja2: pip install "gks-eval[evidence]"' in done.stderr
        assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['gks-eval', 'compare', '--help']\n"
        "from gks_eval.cli.main import build_app\n"
        "try: build_app()()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'scipy', 'statsmodels', 'matplotlib', "
        "'jinja2', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_the_evidence_wing_never_imports_the_model_s():
    code = (
        "import sys, pkgutil, importlib, gks_eval.evidence as wing\n"
        "for module in pkgutil.walk_packages(wing.__path__, 'gks_eval.evidence.'):\n"
        "    importlib.import_module(module.name)\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'transformers', 'lm_eval', 'peft', 'datasets')]\n"
        "own = [m for m in sys.modules if m.startswith('gks_eval.') and not "
        "m.startswith(('gks_eval.evidence', 'gks_eval.util', 'gks_eval.errors'))]\n"
        "assert not bad and not own, (bad, own)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_methods_are_compared_over_seeds(factory, tmp_path):
    first, second = factory.planted(100, 20, 5, 40)
    for seed in range(3):
        factory.write_run(tmp_path / f"s{seed}" / "arrow", {"a": first})
        factory.write_run(tmp_path / f"s{seed}" / "gks", {"a": second})
    sources = [f"arrow={tmp_path}/s*/arrow", f"gks={tmp_path}/s*/gks"]
    done = run("compare", "--replicates", *sources)
    assert done.returncode == 0, done.stderr
    assert "+15.00" in done.stdout
    assert "3 seeds" in done.stdout
    done = run("compare", "--replicates", *sources, "-f", "json", "-o", tmp_path / "x.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["schema"] == "gks_eval.replicates/1"
    assert found["rows"][0]["by_seed"] == pytest.approx({"0": 0.15, "1": 0.15, "2": 0.15})
    for more, said in (
        (["--flips", "3"], "--flips does not apply"),
        (["-f", "csv"], "has no csv output"),
    ):
        done = run("compare", "--replicates", *sources, *more)
        assert done.returncode == 2
        assert said in done.stderr
