"""The reader of JSON files, against json.loads and by hand."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gks_eval.errors import ResultsError
from gks_eval.util.json_file import JsonError, JsonFile, parse_json, read_or_empty

ROOT = Path(__file__).parents[3]
FORM = JsonFile("results file", ResultsError, "write it again", limit=1 << 20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Point(BaseModel):
    x: float
    y: list[int]


@given(VALUES, st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_what_json_writes_is_read_as_json_reads_it(value: Any, ascii_only: bool, encoding: str):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode(encoding), constants=True) == json.loads(text)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b'{"a": 1,\n"b"', "broken or only half written"),
        (b"", "broken or only half written"),
        (b'{"a": {"b": 1, "b": 1}}', "has the key 'b' twice in one object"),
        (b"[NaN]", "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "too many digits"),
        (b'"\xff"', "is not UTF-8 at byte 1"),
        (b'"\xed\xa0\x80"', "is not UTF-8 at byte 1"),  # half a character; json.loads reads it
    ],
)
def test_what_is_no_json_is_named(raw: bytes, fault: str):
    with pytest.raises(JsonError, match=fault):
        parse_json(raw)


def test_constants_are_read_where_they_are_allowed():
    assert str(parse_json(b"[NaN, Infinity, -Infinity]", constants=True)) == "[nan, inf, -inf]"


def test_half_characters_become_question_marks_and_whole_ones_stay():
    found = parse_json(rb'{"a\ud800": "\udc00\ud83d\ude00", "b": "\\ud800"}')
    assert found == {"a?": "?\U0001f600", "b": "\\ud800"}
    json.dumps(found, ensure_ascii=False).encode()


def test_a_file_is_read_up_to_its_limit(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}'.ljust(1 << 20))
    assert FORM.read(path) == {"a": 1}
    path.write_bytes(b'{"a": 1}'.ljust((1 << 20) + 1))
    with pytest.raises(ResultsError) as caught:
        FORM.read(path)
    assert_sentence(caught.value, "a.json is larger than 1 MiB", "results file", "write it again")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{\n"x": 1', ["half written (line 2)", "write it again"]),
        ("[1]", ["holds no JSON object", "write it again"]),
        ('{"x": 1, "y": [1, 2.5]}', ["is no results file: y.1", "integer", "write it again"]),
        ('{"x": 1}', ["y: field required"]),
    ],
)
def test_every_fault_is_a_sentence_with_file_and_mend(tmp_path: Path, text: str, parts: list[str]):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ResultsError) as caught:
        FORM.read_as(path, Point)
    assert_sentence(caught.value, str(path), *parts)


def test_a_model_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"x": 1, "y": [2]}')
    assert FORM.read_as(path, Point) == Point(x=1.0, y=[2])


def test_what_cannot_be_opened_is_named(tmp_path: Path):
    for path, fault in ((tmp_path / "none.json", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(ResultsError) as caught:
            FORM.read(path)
        assert_sentence(caught.value, str(path), fault, "check the path")
        with pytest.raises(ResultsError, match=fault):
            list(FORM.lines(path))


def test_lines_are_numbered_and_cut_at_newlines_alone(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "\u2028"}\r\n\n{"a": 2}'.encode())
    assert list(FORM.lines(path)) == [(1, {"a": "\u2028"}), (3, {"a": 2})]
    path.write_text('{"a": 1}\n\n[1]\n')
    with pytest.raises(ResultsError, match=r"holds no JSON object \(line 3\)"):
        list(FORM.lines(path))
    path.write_bytes(b"{}\n" + b'{"a": "' + b"a" * (1 << 20))
    with pytest.raises(ResultsError, match="line 2 is larger than 1 MiB"):
        list(FORM.lines(path))


def test_own_files_are_empty_where_they_are_broken(tmp_path: Path):
    path = tmp_path / "a.json"
    assert read_or_empty(path) == {}
    for text, found in (('{"a": NaN', {}), ("[1]", {}), ('{"a": 1}', {"a": 1})):
        path.write_text(text)
        assert read_or_empty(path) == found


def test_nobody_else_parses_json():
    readers = {"load", "loads", "JSONDecoder", "model_validate_json", "parse_raw", "from_json"}
    others = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.attr}"
        for folder in ("gks_eval", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        # Its Python has evalsig and evalstats, and no gks_eval.
        if file.name not in ("json_file.py", "evidence_peer.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in readers
        if node.attr not in ("load", "loads") or getattr(node.value, "id", "") == "json"
    ]
    assert others == []
