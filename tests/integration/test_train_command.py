"""`gks-eval train` as a command: killed, shared by two processes, and under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from common import save_two_expert_recipe

COMMAND = "import sys; from gks_eval.cli.main import main; main()"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LIMIT = 400


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Callable[[str], Path]) -> Path:
    return save_two_expert_recipe(
        tmp_path, tiny_base("phi3"), rows=48, dropout=0.0, epochs=4, checkpoint_steps=4
    )


def train(recipe: Path, library: Path, *options: str) -> list[str]:
    arguments = ["train", str(recipe), "--output", str(library), *options]
    return [sys.executable, "-c", COMMAND, *arguments]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT, check=False
    )


def weights(library: Path, name: str = "one") -> bytes:
    return (library / "experts" / name / "adapter_model.safetensors").read_bytes()


def losses(library: Path, name: str = "one") -> list[float]:
    lines = (library / "experts" / name / "loss.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.hostile
def test_a_killed_run_is_gone_on_with_and_two_processes_share_the_work(
    recipe: Path, tmp_path: Path
) -> None:
    whole, library = tmp_path / "whole", tmp_path / "library"
    done = run(train(recipe, whole))
    assert done.returncode == 0, done.stderr
    assert "the library is complete" in done.stdout
    process = subprocess.Popen(
        train(recipe, library),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    marks = library / ".work/experts-one"
    deadline = time.monotonic() + LIMIT
    while not list(marks.glob("checkpoint-*/WHOLE")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (library / "library.yaml").exists()
    two = [
        subprocess.Popen(train(recipe, library), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=LIMIT)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0]
    trained = [line for text in told for line in text.splitlines() if " steps, " in line]
    assert sorted(line.partition(":")[0] for line in trained) == ["experts/one", "experts/two"]
    assert weights(library) == weights(whole)
    assert weights(library, "two") == weights(whole, "two")
    assert losses(library) == losses(whole)
    assert (library / "library.yaml").is_file()


def test_torchrun_with_two_processes_gives_the_losses_of_one(recipe: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    script = tmp_path / "command.py"
    script.write_text(COMMAND, "utf-8")
    one = run(train(recipe, alone, "--only", "one"))
    assert one.returncode == 0, one.stderr
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["train", str(recipe), "--output", str(together), "--only", "one"]
    two = run([sys.executable, *torchrun, str(script), *arguments])
    assert two.returncode == 0, two.stderr
    assert losses(together) == pytest.approx(losses(alone), abs=2e-4)
    assert two.stdout.count("experts/one: 48 steps") == 1
    files = sorted(p.name for p in (together / "experts/one").iterdir())
    assert files == sorted(p.name for p in (alone / "experts/one").iterdir())


def test_a_fault_is_a_sentence_with_its_exit_code(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"source": "a"}', "utf-8")
    failed = run(train(recipe, tmp_path / "library"))
    assert failed.returncode == 6
    assert failed.stderr.startswith("gks-eval: error: ")
    assert "no column 'target'" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list((tmp_path / "library").glob("experts/*"))
