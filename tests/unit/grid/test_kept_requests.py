"""Kept requests of a killed run: damaged ones and those of strangers are computed again."""

from __future__ import annotations

import pickle
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlitedict import SqliteDict

from gks_eval.grid.kept_requests import forget, prepare_part, prepare_partial
from gks_eval.scoring.loglikelihood import TokenLogLikelihood

SOUND: dict[str, Any] = {
    "gks_eval:identity": "abc",
    "choice": TokenLogLikelihood(-1.5, True, 3),
    "pair": (-2.0, False),
    "rolling": -3.25,
    "text": "an answer",
}


class Opens:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def keep(folder: Path, results: dict[str, Any]) -> None:
    with SqliteDict(str(folder / "requests_rank0.db"), autocommit=True) as database:
        for key, value in results.items():
            database[key] = value


def kept(folder: Path) -> dict[str, Any]:
    path = folder / "requests_rank0.db"
    if not path.exists():
        return {}
    with SqliteDict(str(path)) as database:
        return dict(database.items())


def test_sound_results_of_every_kind_are_kept(tmp_path: Path) -> None:
    whole, part = tmp_path / ".arrow.partial", tmp_path / ".arrow.partial.0"
    prepare_part(part, whole, "abc", {})
    keep(part, SOUND)
    prepare_partial(whole, "abc", {})
    assert kept(whole) == SOUND
    assert kept(whole)["choice"].tokens == 3
    assert not part.exists()


@pytest.mark.parametrize("place", [".arrow.partial", ".arrow.partial.0"])
def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path, place: str) -> None:
    whole, ran = tmp_path / ".arrow.partial", tmp_path / "ran"
    prepare_partial(tmp_path / place, "abc", {})
    keep(tmp_path / place, {**SOUND, "more": Opens(ran)})
    prepare_partial(whole, "abc", {})
    assert not ran.exists()
    assert kept(whole) == {}


def raw(folder: Path, *statements: str, value: bytes = b"") -> None:
    with closing(sqlite3.connect(folder / "requests_rank0.db")) as connection:
        for statement in statements:
            connection.execute(statement, (value,) if "?" in statement else ())
        connection.commit()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: raw(f, "update unnamed set value = ?", value=pickle.dumps((-1.0, True))[:-3]),
        lambda f: raw(f, "update unnamed set value = ?", value=pickle.dumps(("-1.0", True))),
        lambda f: raw(f, "update unnamed set value = ?", value=pickle.dumps({"a": 1})),
        lambda f: raw(f, "update unnamed set value = 'text'"),
        lambda f: raw(f, "update unnamed set value = null"),
        lambda f: raw(f, "drop table unnamed", "create table unnamed (other text)"),
        lambda f: raw(f, "drop table unnamed", "create view unnamed as select 1"),
        lambda f: (f / "requests_rank0.db").write_bytes(b"SQLite format 3\0" + b"\0" * 84),
        lambda f: (f / "request.json").write_bytes(b"\xff"),
        lambda f: (f / "request.json").write_text('{"identity": "another"}'),
        lambda f: [(f / "request.json").unlink(), (f / "request.json").mkdir()],
        lambda f: (f / "requests_rank1.db").mkdir(),
    ],
)
def test_a_broken_or_foreign_folder_is_started_again(tmp_path: Path, spoil: Any) -> None:
    whole, part = tmp_path / ".arrow.partial", tmp_path / ".arrow.partial.0"
    for folder in (whole, part):
        prepare_partial(folder, "abc", {})
        keep(folder, SOUND)
        spoil(folder)
    prepare_partial(whole, "abc", {})
    assert kept(whole) == {}
    assert [path.name for path in whole.iterdir()] == ["request.json"]
    keep(whole, SOUND)  # the folder is usable
    prepare_partial(whole, "abc", {})
    assert kept(whole) == SOUND


def test_folders_that_are_no_parts_are_left_alone(tmp_path: Path) -> None:
    whole = tmp_path / ".arrow.partial"
    others = [tmp_path / f".arrow.partial.{end}" for end in ("x.partial", "copy", "1b", "")]
    for other in others:
        other.mkdir()
    for number in (0, 12):
        prepare_part(tmp_path / f".arrow.partial.{number}", whole, "abc", {})
    prepare_partial(whole, "abc", {})
    forget(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(o.name for o in others)
