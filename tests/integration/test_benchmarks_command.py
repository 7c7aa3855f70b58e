"""`python -m benchmarks` as users run it: the real command, on tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.record import read_record
from gks_eval.errors import UsageError

ROOT = Path(__file__).parents[2]


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "GKS_DATA_ROOT"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1", "COLUMNS": "80", "PYTHONPATH": str(ROOT)},
    )


def test_every_row_end_to_end(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "--quick", "--repeats", "1", "--items", "2", "--json", "b.json", "--plot", "g.png"
    )
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "b.json")
    assert len(record.layer) == 4
    assert len(record.router) == 2
    assert len(record.model) == 6
    (demo,) = record.evaluation
    assert len(demo.alone) == 6
    assert demo.together.items == 12
    assert demo.agreement["packed"].equal == 12
    assert record.startup is not None
    assert record.growth is not None
    assert record.seed == 0
    assert record.versions["peft"]
    assert record.hardware["cpu"]
    assert record.arguments["quick"] is True
    assert "start-up" in " ".join(bar.what for bar in record.bars)
    for title in ("Layer", "Routers", "Model", "Evaluation demo", "Start-up", "Growth"):
        assert f"\n{title}:" in done.stdout
    assert "\nGoals" in done.stdout
    assert "…" not in done.stdout
    assert (tmp_path / "g.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "g.png"]


def test_one_row_of_one_type(tmp_path: Path) -> None:
    done = bench(
        tmp_path, "--quick", "--rows", "layer", "--repeats", "2", "--dtype", "bfloat16",
        "--json", "b.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert all("prototypes" in row["seconds"] for row in content["layer"])
    assert content["model"] == content["evaluation"] == []
    assert content["startup"] is content["growth"] is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rows", "layers"], "'layer'"),
        (["--plot", "g.png", "--rows", "layer"], "add growth"),
        (["--plot", "g.bmp"], "png"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_a_bad_argument_is_one_sentence(tmp_path: Path, arguments: list[str], part: str) -> None:
    done = bench(tmp_path, *arguments)
    assert done.returncode == UsageError.exit_code
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("benchmarks: error: ")
    assert part in line


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['benchmarks', '--help']\n"
        "from benchmarks.__main__ import build_app\n"
        "try:\n    build_app()()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'peft', 'lm_eval', 'matplotlib', 'rich')"
        " if name in sys.modules and name != 'rich'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--quick" in done.stdout
    assert done.stdout.strip().endswith("[]")
