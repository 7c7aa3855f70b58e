"""`gks-eval export` as it is typed: what it prints, writes and leaves alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gks_eval.cli.main import main
from gks_eval.library.load import load_library

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gks_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Return ``run(*arguments)``: exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gks-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


def test_residuals_truncated_to_a_rank(
    gks_eval: Run, tiny_library: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_library("phi3")
    command = ("export", source, "--setting", "gks:avg;rule=delta", "--output", "new", "--rank", 4)
    status, printed, _ = gks_eval(*command)
    assert status == 0
    lines = printed.splitlines()
    assert lines[-1] == "new: 4 adapters: alpha, beta, gamma, delta; PEFT reads the same updates"
    errors = [line.split() for line in lines if line.strip().startswith("model.layers.")]
    assert [name for name, _ in errors] == list(load_library("new").modules)
    assert all(0 < float(error) < 1 for _, error in errors)
    assert "all layers" in printed
    status, printed, _ = gks_eval(*command)
    assert (status, printed) == (
        0, "new: 4 adapters: alpha, beta, gamma, delta; exported before, unchanged\n",
    )  # fmt: skip
    status, _, error = gks_eval(*command[:-2])
    assert status == 4
    assert "holds another export" in error


def test_one_expert_with_a_licence(gks_eval: Run, tiny_library: Callable[..., Path]) -> None:
    status, printed, _ = gks_eval(
        "export", tiny_library("phi3"), "--setting", "expert:beta", "-o", "new", "--license", "mit"
    )
    assert (status, printed) == (0, "new: 1 adapter: beta; PEFT reads the same updates\n")
    assert "license: mit" in Path("new/README.md").read_text("utf-8")
