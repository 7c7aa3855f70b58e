"""The side-by-side table, with stand-ins for the peers: no network, no environment."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks.evidence import (
    PLANTED,
    Request,
    ask,
    cases,
    file_table,
    ours,
    rates,
    request,
)

EVALSIG = """
from dataclasses import dataclass
from types import SimpleNamespace
def ItemResult(**words): return SimpleNamespace(**words)
def RunFrame(**words): return SimpleNamespace(**words)
def compare(first, second, **options):
    d = [b.score - a.score for a, b in zip(first.items, second.items)]
    mean = sum(d) / len(d)
    return SimpleNamespace(p_value=abs(mean), ci=(mean, mean), n_pairs=len(d))
def holm(values): return SimpleNamespace(p_adjusted=[len(values) * p for p in values])
"""
READER = """
def read_lm_eval_json(path, **words): raise ValueError("no items in " + words["metric_name"])
"""
EVALSTATS = """
from types import SimpleNamespace
def load_from(table): return table
def compare(table, factors, metric, baseline):
    means = table.groupby(factors)[metric].mean()
    d = float(means["base"] - means["candidate"])
    pair = {"a": "base", "b": "candidate", "ci_low": d - 0.25, "ci_high": d, "p_value": 0.5}
    return SimpleNamespace(to_dict=lambda: {"pairwise": [pair]})
"""
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n"


@pytest.fixture(scope="module")
def runs_of() -> ModuleType:
    path = Path(__file__).parents[2] / "evidence_factory.py"
    spec = importlib.util.spec_from_file_location("evidence_factory", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "evalsig/__init__.py": EVALSIG,
        "evalsig/io/__init__.py": "",
        "evalsig/io/lm_eval.py": READER,
        "evalstats/__init__.py": EVALSTATS,
        "evalsig-9.8.dist-info/METADATA": METADATA.format("evalsig", "9.8"),
        "evalstats-9.9.dist-info/METADATA": METADATA.format("evalstats", "9.9"),
    }
    for name, text in files.items():
        path = tmp_path / "peers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "peers"))
    return Path(sys.executable)


def test_peers_answer_in_their_own_environment(stand_ins: Path) -> None:
    asked = Request(pairs=[("1111", "0111"), ("1100", "1101")])
    asked.files = [{"paths": ["a", "b"], "metric": "acc_nrom"}]
    found = ask(stand_ins, "evalsig", asked)
    assert found["version"] == "9.8"
    assert found["pairs"][0] == {"p": 0.25, "low": -0.25, "high": -0.25, "n": 4}
    assert found["pairs"][1]["low"] == 0.25
    assert found["files"] == [{"refused": "ValueError: no items in acc_nrom"}]
    # Tasks of one and three items: the smaller of the p-values 0 and 1/3, of two.
    each = Request(pairs=[("1111", "1011"), ("1111", "0011")], sizes=[1, 3])
    assert [answer["p"] for answer in ask(stand_ins, "evalsig", each)["pairs"]] == [
        0.0,
        pytest.approx(2 / 3),
    ]
    # The peer's difference is baseline - candidate, 0.25, from 0 to 0.25; ours is turned.
    turned = ask(stand_ins, "evalstats", Request(pairs=[("1111", "0111")]))
    assert turned["pairs"] == [{"p": 0.5, "low": -0.25, "high": 0.0, "n": 4}]


@pytest.mark.parametrize("name", PLANTED)
def test_pairs_have_the_planted_changes(name: str) -> None:
    planted = PLANTED[name]
    asked = request(planted, repeats=60, seed=3)
    ends = np.cumsum(planted.design.sizes)[:-1]
    changes = []
    for runs in asked.pairs:
        first, second = (np.array([int(digit) for digit in run]) for run in runs)
        changes.append(np.mean([d.mean() for d in np.split(second - first, ends)]))
    for part, true in ((changes[:60], 0.0), (changes[60:], planted.change)):
        assert np.mean(part) == pytest.approx(true, abs=4 * np.std(part) / 60**0.5)


def test_rates_count_alarms_coverage_and_detected_drops() -> None:
    wide = {"p": 0.5, "low": -0.1, "high": 0.1}
    sure = {"p": 0.01, "low": -0.3, "high": -0.1}
    assert rates([wide, sure, sure, sure], change=-0.2) == [0.5, 0.5, 1.0, 1.0]
    assert rates([{"p": 0.01}, {"p": 0.5}], change=-0.2) == [1.0, None, 0.0, None]


def test_ours_holds_its_level_where_small_tasks_are_averaged() -> None:
    planted = PLANTED["57 tasks of 1 to 10 items; drop of 5 in each"]
    found = list(ours(planted, request(planted, repeats=300, seed=5)))
    alarms, coverage, detected, _ = rates(found, planted.change)
    assert alarms <= 0.09
    assert coverage is not None
    assert coverage >= 0.91
    assert detected is not None
    assert detected > alarms


def test_the_table_of_files(tmp_path: Path, runs_of: ModuleType) -> None:
    first, second = runs_of.planted(40, 3, 5, 20)
    for name, scores in (("base", first), ("new", second)):
        runs_of.write_run(tmp_path / name, {"birds": scores})
    named = cases(tmp_path, [tmp_path / "base", tmp_path / "new"])
    peer = {"files": [{"p": 0.5, "low": -0.1, "high": 0.2, "n": 40}] * len(named)}
    lines = file_table(named, {"peer": peer}).splitlines()
    ours = dict(line.strip("| ").split(" | ")[:2] for line in lines[2:])
    assert lines[2].endswith("| p = 0.50, -10.0 to 20.0, n = 40 |")
    assert ours["birds"].startswith("p = 0.73, ")
    assert "no item in common" in ours["other items under the same ids"]
    assert "'acc_nrom'" in ours["misspelt metric acc_nrom"]
    assert "same files" in ours["the same files twice"]
    assert ours["unchanged run, copied"] == "p = 1.00, -8.8 to 8.8, n = 40"
