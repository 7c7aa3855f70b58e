"""Routing shares and library geometry: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gks_eval.errors import ResultsError
from gks_eval.evidence.accuracy import find_accuracy
from gks_eval.evidence.observed import find_observed

ROUTING = {
    "schema": "gks_eval.routing/1",
    "library": "demo",
    "setting": "gks:avg",
    "top_k": 1,
    "experts": ["a", "b"],
    "layers": ["l0"],
    "tasks": {
        "t": {"tokens": 4, "share": [[0.5, 0.5]], "mean_coefficient": [[0.7, 0.3]], "entropy": [0]}
    },
}
GEOMETRY = {
    "schema": "gks_eval.geometry/1",
    "library": "demo",
    "experts": ["a", "b"],
    "general": ["en"],
    "layers": ["l0"],
    "norm": {"a": [1.0], "b": [2.0]},
    "residual_norm": {"delta": {"a": [1.0], "b": [2.0]}},
    "cosine_general": [[0.1], [-0.2]],
    "cosine_experts": {"none": [[1.0, 0.5], [0.5, 1.0]]},
    "prototype_similarity": {"none": [[1.0, 0.5], [0.5, 1.0]]},
}


def test_files_are_found_by_name_below_the_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "routes_gks-avg.json").write_text(json.dumps(ROUTING))
    (tmp_path / "geometry.json").write_text(json.dumps(GEOMETRY))
    (tmp_path / "routesque.json").write_text("not ours")
    routes, geometry = find_observed(tmp_path)
    assert routes[0].tasks["t"].mean_coefficient == [[0.7, 0.3]]
    assert geometry[0].cosine_general == [[0.1], [-0.2]]
    assert find_observed(tmp_path / "deep")[1] == []


def _task(**change: object) -> dict[str, object]:
    return {**ROUTING, "tasks": {"t": {**ROUTING["tasks"]["t"], **change}}}  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("routes.json", {**ROUTING, "schema": "gks_eval.routing/2"}),
        ("routes.json", {**ROUTING, "more": 1}),
        ("routes.json", _task(share=[[0.5]])),
        ("routes.json", _task(share=[[1.5, 0.0]])),
        ("routes.json", _task(entropy=[])),
        ("routes.json", _task(entropy=[float("nan")])),
        ("routes.json", _task(entropy=[float("inf")])),
        ("routes.json", []),
        ("geometry.json", {**GEOMETRY, "cosine_general": [[0.1]]}),
        ("geometry.json", {**GEOMETRY, "cosine_experts": {"none": [[1.0]]}}),
        ("geometry.json", {**GEOMETRY, "cosine_general": [[2.0], [0.0]]}),
        ("geometry.json", "half"),
    ],
)
def test_what_is_not_of_the_schema_is_named(tmp_path: Path, name, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    with pytest.raises(ResultsError, match=name) as caught:
        find_observed(tmp_path)
    assert "\n" not in str(caught.value)


ACCURACY = {
    "schema": "gks_eval.routing_accuracy/1",
    "library": "demo",
    "experts": ["a", "b"],
    "chance": 0.5,
    "rows": {"a": 1, "b": 2},
    "tokens": {"a": 4, "b": 9},
    "settings": {},
}
SHARES = {
    "layers": ["l0"],
    "tokens": [0.75],
    "sequences": [1.0],
    "all_tokens": 0.75,
    "all_sequences": 1.0,
    "confusion": [[0.5, 0.5], [0.0, 1.0]],
}


def test_routing_accuracy_is_read_and_a_wrong_shape_is_named(tmp_path: Path) -> None:
    file = tmp_path / "accuracy_demo.json"
    (tmp_path / "accuracyless.json").write_text("not ours")
    file.write_text(json.dumps({**ACCURACY, "settings": {"arrow": SHARES}}))
    (found,) = find_accuracy(tmp_path)
    assert found.settings["arrow"].all_tokens == 0.75
    for change in ({"tokens": []}, {"confusion": [[1.0]]}, {"all_tokens": 1.5}, {"more": 1}):
        file.write_text(json.dumps({**ACCURACY, "settings": {"arrow": {**SHARES, **change}}}))
        with pytest.raises(ResultsError, match=r"accuracy_demo\.json"):
            find_accuracy(tmp_path)
