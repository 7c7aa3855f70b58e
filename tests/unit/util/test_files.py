"""Files that are whole or not there: what the dead left goes, what the living hold stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from common import assert_sentence

from gks_eval.errors import ResourceError
from gks_eval.util.files import replaced_file, write_text

WRITER = """
import os, signal, sys, time
from pathlib import Path
from gks_eval.util.files import replaced_file
with replaced_file(Path(sys.argv[1])) as aside:
    aside.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def torn(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_killed_writer_s_file_goes_with_the_next_write_and_a_living_one_s_stays(
    tmp_path: Path,
) -> None:
    page = tmp_path / "a [page].html"
    page.write_text("old")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(page)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    try:
        (held,) = torn(tmp_path)
        write_text(page, "new")
        assert torn(tmp_path) == [held]
        assert (tmp_path / held).read_text() == "half"
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert page.read_text() == "new"
    neighbour = tmp_path / ".a [page].html-old-abcd_123"
    neighbour.touch()
    write_text(page, "newest")
    assert torn(tmp_path) == [neighbour.name]
    assert page.read_text() == "newest"


def test_what_stood_there_stays_when_writing_fails(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text("old")

    def fail() -> None:
        with replaced_file(page) as aside:
            aside.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert page.read_text() == "old"
    assert torn(tmp_path) == []


def test_rights_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "page", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "page").stat().st_mode & 0o777 == 0o640


def test_a_place_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError) as caught:
        write_text(tmp_path / "file/page", "x")
    assert_sentence(caught.value, str(tmp_path / "file/page"), "--output")
