"""Results, samples, routing shares and geometry as `gks_eval.evidence` reads them, up to the page.

What a reader lets through is compared, judged and shown: a page must hold plain JSON whatever
stood in the files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evidence_factory import sample, write_run
from fuzzing import holds, json_files, json_text, spoilt
from hypothesis import strategies as st

from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.observed import find_observed
from gks_eval.evidence.report.build import _json
from gks_eval.evidence.report.items import collect
from gks_eval.evidence.report.library import geometry_part, routing_part
from gks_eval.evidence.results import read_results
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.tables.content import score_table
from gks_eval.evidence.tables.csv_file import to_csv
from gks_eval.evidence.tables.latex_table import to_latex
from gks_eval.evidence.tables.markdown import to_markdown

SHARES = [[0.5, 0.25, 0.25]] * 2
ROUTES = {
    "schema": "gks_eval.routing/1", "library": "l", "setting": "arrow", "top_k": 2,
    "experts": ["a", "b", "c"], "layers": ["model.layers.0.o", "model.layers.1.o"],
    "tasks": {"t": {"tokens": 9, "share": SHARES, "mean_coefficient": SHARES, "entropy": [1, 0.5]}},
    "provenance": {"date": "today"},
}  # fmt: skip
BY_LAYER = {"a": [1.0, 2.0], "b": [0.0, 1.0]}
SQUARE = [[1.0, 0.3], [0.3, 1.0]]
GEOMETRY = {
    "schema": "gks_eval.geometry/1", "library": "l", "experts": ["a", "b"], "general": ["en"],
    "layers": ["model.layers.0.o", "model.layers.1.o"], "norm": BY_LAYER,
    "residual_norm": {"factors": BY_LAYER, "delta": BY_LAYER}, "cosine_general": [[0.4], [0.1]],
    "cosine_experts": {"none": SQUARE, "delta": SQUARE}, "prototype_similarity": {"none": SQUARE},
    "rule_distance": BY_LAYER,
}  # fmt: skip


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    for label, wrong in (("old", 0), ("new", 1)):
        rows = [sample(n, float(n != wrong), prompt="p", question=f"q{n % 3}") for n in range(4)]
        write_run(
            tmp_path / label, {"a": rows, "b": [1.0, 0.0]}, groups={"all": (("a", "b"), False)}
        )
    return tmp_path


def shown(folder: Path) -> None:
    """Compare two runs and write every format."""
    runs = find_runs([str(folder / "old"), str(folder / "new")])
    comparison = compare(runs, CompareOptions(force=True, draws=20), alone=True)
    text = to_markdown([score_table(comparison)]) + to_latex(comparison) + to_csv(comparison)
    text += _json(vars_of(collect(runs, comparison, max_text=200)))
    text.encode()
    json.loads(_json(vars_of(collect(runs, comparison))), parse_constant=_no_json)


def vars_of(book: Any) -> dict[str, Any]:
    return {"tasks": book.tasks, "items": book.items}


def _no_json(name: str) -> None:
    raise AssertionError(f"{name} is Python's, no JSON: a browser stops at it")


def test_results(two_runs: Path) -> None:
    (path,) = (two_runs / "new").glob("results_*.json")
    content = json.loads(path.read_text("utf-8"))
    content["results"]["a"] |= {"f1,strict": 0.5, "f1_stderr,strict": 0.1}

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        found = read_results(path)
        assert found.tasks
        shown(two_runs)

    holds("results.json", json_files(content), parse, str(two_runs))


def test_samples(two_runs: Path) -> None:
    (results,) = (two_runs / "new").glob("results_*.json")
    (path,) = (two_runs / "new").glob("samples_a_*.jsonl")
    first, *rest = (json.loads(line) for line in path.read_text("utf-8").splitlines())

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        read_samples(read_results(results).tasks["a"])
        shown(two_runs)

    rows = st.tuples(
        spoilt(first, most=2).map(lambda row: json_text(row, None)),
        st.just("\n".join(json_text(row, None) for row in rest)),
    )
    lines = rows.map("\n".join).map(lambda text: (text + "\n").encode("utf-8", "surrogatepass"))
    holds("samples.jsonl", lines | json_files(first, most=1).map(_one_line), parse, str(two_runs))


def _one_line(raw: bytes) -> bytes:
    return re.sub(rb"\n(?!$)", b" ", raw)


@pytest.mark.parametrize(
    ("name", "content", "show"),
    [("routes", ROUTES, routing_part), ("geometry", GEOMETRY, geometry_part)],
    ids=["routes.json", "geometry.json"],
)
def test_observed(name: str, content: Any, show: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    plots = 0

    def parse(raw: bytes) -> None:
        nonlocal plots
        path.write_bytes(raw)
        for found in [each for group in find_observed(tmp_path) for each in group]:
            plots += 1
            if plots % 25 == 1:  # a plot takes a while
                show(found)

    holds(f"{name}.json", json_files(content), parse, str(path))


def test_names_and_labels(two_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands on the command line as a run."""
    monkeypatch.chdir(two_runs)
    shutil.copytree("new", "a=b")
    words = ("old", "new", "a=b", "x", "=", "/", ".", "..", "*", "**", "[", "]", "?", "~", "\0",
             "\ud800", " ", "results_", ".json", "samples_a", "é", "a" * 300)  # fmt: skip
    texts = st.lists(st.sampled_from(words), max_size=5).map("".join) | st.text(max_size=8)
    # Not beyond the folder: a search of the whole machine takes a while.
    safe = texts.filter(lambda text: not re.search(r"(^|=)(/|~|\.\.)|/\.\.", text))
    holds("names of runs", safe, lambda text: find_runs([text]))
