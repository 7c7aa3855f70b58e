"""`gks-eval routes` on tasks of both protocols."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gks_eval.cli.main import main

HUB = Path(__file__).parents[1] / "data" / "hub"


@pytest.fixture
def routes(
    tiny_library: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """Return ``run(*options)``: exit status and what was printed, in a process without a model."""
    library = str(tiny_library("phi3"))
    monkeypatch.chdir(HUB)

    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr("gks_eval.lm.CREATED", 0)
        monkeypatch.setattr(sys, "argv", ["gks-eval", "routes", "--library", library, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return run


def test_both_protocols_are_routed(
    routes: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = ["gks_paper_piqa", "gks_arc_easy"]
    output = tmp_path / "routes.json"
    status, printed = routes("--tasks", ",".join(names), "--limit", "2", "--output", str(output))
    assert status == 0, printed
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed  # nothing is cut, however narrow
    tasks = json.loads(output.read_text("utf-8"))["tasks"]
    assert list(tasks) == names
    assert all(task["tokens"] > 0 for task in tasks.values())
    for task in tasks.values():
        assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in task["mean_coefficient"])


def test_a_task_that_only_generates_has_nothing_to_route(
    routes: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object, **__: object) -> None:
        pytest.fail("a model was made")

    monkeypatch.setattr("gks_eval.lm.GksArrowLM.__init__", made)
    status, printed = routes("--tasks", "gks_bbh_word_sorting")
    assert status == 2
    assert "none of these is scored by log-likelihood" in printed
