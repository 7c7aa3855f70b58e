"""What commands leave in their output folders for later ones, up to what is decided and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evidence_factory import write_run
from fuzzing import holds, json_files

from gks_eval.errors import ResultsError
from gks_eval.evidence.accuracy import find_accuracy
from gks_eval.evidence.looks_file import read_looks
from gks_eval.evidence.overlap import find_overlaps
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.question import read_controls
from gks_eval.evidence.report.build import build_page
from gks_eval.evidence.report.library import accuracy_part
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.staged import StagedGate
from gks_eval.evidence.tables.controls_text import answers, controls_table
from gks_eval.evidence.tables.looks_text import looks_tables
from gks_eval.evidence.tables.markdown import to_markdown
from gks_eval.grid.kept import check_commit, differences, finished
from gks_eval.grid.record import record_of
from gks_eval.util.grid_order import read_order
from gks_eval.util.profile_file import read_profile
from gks_eval.util.schemas import PROFILE

TASK = {
    "items": 9, "rows": "ab", "examples": None,
    "config": {"task": "t", "metadata": {"version": 1.0}, "doc_to_text": "{{x}}"},
}  # fmt: skip
REQUEST = {
    "setting": {"router": "arrow", "subtract": [], "top_k": 3},
    "arguments": {"batch_size": "8"},
    "library": "ab",
    "base": {"name": "org/base", "content": "cd", "revision": None, "quantization": "none"},
    "model_arguments": {"dtype": "float32"},
    "folders": {"peft": "ef"},
    "tasks": ["t", "all"],
    "content": {"tasks": {"t": TASK}, "groups": {"all": {"task": ["t"], "alias": "all"}}},
    "evaluation": {"limit": "9.0"},
    "plug_ins": {"router mine": "01"},
}  # fmt: skip
RECORD = {
    "label": "arrow", "request": REQUEST, "commit": "a" * 40,
    "spent": {"seconds": 1.5, "distinct_tokens": 300},
}  # fmt: skip
CONTROL = {"name": "general=random", "role": "subtraction", "over": "draws", "settings": ["a", "b"]}
CONTRAST = {
    "name": "general=random", "role": "subtraction", "draws": 2, "score": 0.5, "difference": 0.01,
    "low": -0.1, "high": 0.2, "p": 0.4, "p_holm": 0.8, "n": 100, "gains": 3, "losses": 2,
    "needed": 2000, "state": "undecided",
}  # fmt: skip
CONTROLS = {
    "schema": "gks_eval.controls/1",
    "question": {
        "treatment": "gks:avg", "library": "l", "library_hash": "ab", "tasks": ["t"], "seeds": 2,
        "evaluation": {"limit": "100"}, "margin": 0.02, "controls": [CONTROL], "left_out": ["x: y"],
    },
    "finding": {
        "score": 0.6, "tasks": [{"name": "t", "metric": "acc,none", "n": 100, "weight": 1.0}],
        "contrasts": [CONTRAST], "notes": [],
        "claims": [{"role": "subtraction", "holds": None, "sentence": "undecided."}],
    },
}  # fmt: skip
OVERLAP = {
    "schema": "gks_eval.overlap/1", "library": "l", "n": 13, "provenance": {"recipe": "ab"},
    "tasks": {"t": {
        "items": 9, "short": 1, "ngram": 0.1, "question": 0.0,
        "adapters": {"experts/a": {"ngram": 1, "question": 0}},
    }},
}  # fmt: skip
SHARES = {
    "layers": ["a"], "tokens": [0.5], "sequences": [1.0], "all_tokens": 0.5, "all_sequences": 1.0,
    "confusion": [[1.0, 0.0], [0.5, 0.5]],
}  # fmt: skip
ACCURACY = {
    "schema": "gks_eval.routing_accuracy/1", "library": "l", "experts": ["x", "y"], "chance": 0.5,
    "rows": {"x": 3, "y": 3}, "tokens": {"x": 30, "y": 30}, "settings": {"arrow": SHARES},
}  # fmt: skip
TIMES = {
    "schema": PROFILE, "seconds": 9.0, "phases": {"loading": 1.0, "router": 2.5}, "tokens": 80,
    "distinct_tokens": 40,
}  # fmt: skip


def test_records_of_settings(tmp_path: Path) -> None:
    """A changed record is refused, or the difference is named; an equal one is kept."""
    folder = tmp_path / "arrow"
    folder.mkdir()

    def parse(raw: bytes) -> None:
        (folder / "cell.json").write_bytes(raw)
        record = record_of(folder)
        assert record is not None
        assert list(differences(REQUEST, record["request"])) == list(
            differences(REQUEST, record["request"])
        )
        check_commit([folder], "b" * 40 if record.get("commit") else None)
        assert finished([folder], [REQUEST]) == [True]
        sum(record.get("spent", {}).values())

    holds("cell.json", json_files(RECORD), parse, str(folder))


def test_the_order_of_settings(tmp_path: Path) -> None:
    """A broken order is no order."""
    path = tmp_path / "grid.json"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        if not read_order(tmp_path):
            raise ResultsError(f"{path} holds no order of settings.")

    holds("grid.json", json_files({"settings": ["base", "arrow"]}), parse, str(path), examples=60)


def test_controls(tmp_path: Path) -> None:
    path = tmp_path / "controls.json"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        found = read_controls(tmp_path)
        assert found is not None
        if found.finding is not None:
            table = controls_table(found.question, found.finding)
            "\n".join([*answers(found.question, found.finding), to_markdown([table])]).encode()

    holds("controls.json", json_files(CONTROLS), parse, str(path), examples=60)


@pytest.mark.parametrize("name", ["overlap", "accuracy"])
def test_other_files_that_a_report_shows(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.json"
    write_run(tmp_path / "run", {"t": [1.0, 0.0]})
    runs = find_runs([str(tmp_path / "run")])
    pages = 0

    def parse(raw: bytes) -> None:
        nonlocal pages
        path.write_bytes(raw)
        if name == "accuracy":
            for accuracy in find_accuracy(tmp_path):
                accuracy_part(accuracy)
        for overlap in find_overlaps(tmp_path) if name == "overlap" else ():
            for one in overlap.tasks.values():
                counts = [count for pair in one.adapters.values() for count in pair.values()]
                assert max([one.short, *counts]) <= one.items
        pages += 1
        if pages % 25 == 1:  # a page takes a while
            build_page(runs, [tmp_path]).encode()

    holds(
        path.name,
        json_files(ACCURACY if name == "accuracy" else OVERLAP),
        parse,
        str(path),
        examples=60,
    )


def test_profiles(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        found = read_profile(tmp_path)
        assert found is not None
        assert sum(found.phases.values()) <= found.seconds + 1e-6

    holds(path.name, json_files(TIMES), parse, str(path), examples=60)


def test_looks_of_a_gate(tmp_path: Path) -> None:
    """Looks as a gate wrote them: those that are read can be shown, and decide as they say."""
    scores = [float(n % 3 > 0) for n in range(200)]
    for label in ("old", "new"):
        write_run(tmp_path / label, {"a": scores, "b": scores})
    old, new = (find_runs([str(tmp_path / label)])[0] for label in ("old", "new"))
    gate = StagedGate(old, ["a", "b"], [], GatePolicy(max_drop=0.1), "arrow")
    gate.wanted()
    while gate.take(new) is None:
        gate.wanted()
    path = tmp_path / "looks.json"
    codes = {"pass": 0, "regression": 1, "unjudged": 2}

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        found = read_looks(tmp_path)
        assert found is not None
        to_markdown(looks_tables(found)).encode()
        if found.verdict is not None:
            assert found.verdict.exit_code == codes[found.verdict.status]

    holds(
        "looks.json",
        json_files(json.loads(gate.to_file().to_json())),
        parse,
        str(path),
        examples=60,
    )
