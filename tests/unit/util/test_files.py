"""Files that are complete or absent: what killed writers left goes, what others write stays."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence
from filelock import FileLock

from gks_eval.errors import ResourceError
from gks_eval.util import files
from gks_eval.util.files import (
    check_writable,
    exclusive,
    replaced_file,
    replaced_folder,
    write_text,
)

WRITER = """
import sys, time
from pathlib import Path
from gks_eval.util.files import replaced_file
with replaced_file(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""
MANY_WRITES = """
import sys
from pathlib import Path
from gks_eval.util.files import write_text
target, word = Path(sys.argv[1]), sys.argv[2]
for _ in range(100):
    write_text(target, word * 1000)
    assert len(set(target.read_text())) == 1
"""


def drafts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_killed_writer_s_draft_goes_with_the_next_write_and_a_living_one_s_stays(
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
        (held,) = drafts(tmp_path)
        write_text(page, "new")
        assert drafts(tmp_path) == [held]
        assert (tmp_path / held / page.name).read_text() == "half"
    finally:
        writer.kill()
        writer.communicate()
    assert page.read_text() == "new"
    neighbour = tmp_path / ".a [page].html-old-0123456789abcdef"
    neighbour.mkdir()
    write_text(page, "newest")
    assert drafts(tmp_path) == [neighbour.name]
    assert page.read_text() == "newest"


def test_a_killed_writer_s_folder_goes_with_the_next_write(tmp_path: Path) -> None:
    left = tmp_path / ".adapter-0123456789abcdef"
    (left / "adapter").mkdir(parents=True)
    (left / "adapter/weights").write_text("half")
    (left / ".lock").touch()
    with replaced_folder(tmp_path / "adapter") as draft:
        (draft / "weights").write_text("whole")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["adapter", "weights"]


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no file that is being read")
def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    page = tmp_path / "page"
    writers = [
        subprocess.Popen([sys.executable, "-c", MANY_WRITES, str(page), word]) for word in "abcd"
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert len(page.read_text()) == 1000
    assert drafts(tmp_path) == []


@pytest.mark.parametrize("opened", [False, True], ids=["not opened yet", "opened"])
def test_a_writer_not_yet_holding_its_lock_is_taken_for_dead(
    opened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer cleans up after the folder was made and before its lock was taken."""
    page = tmp_path / "page"
    made: list[Path] = []
    make = files._lock

    def late(path: Path) -> Any:
        lock = make(path)
        if not made:
            made.append(path.parent)
            if opened:  # the lock that is then taken is one of a file without a name
                lock.acquire()
                shutil.rmtree(path.parent)
            else:
                files._remove_abandoned(page)
            assert not path.parent.exists()
        return lock

    monkeypatch.setattr(files, "_lock", late)
    with replaced_file(page) as draft:
        assert not opened or draft.parent != made[0]
        assert (draft.parent / ".lock").exists()
        draft.write_text("new")
    assert page.read_text() == "new"
    assert drafts(tmp_path) == []


def test_without_locks_drafts_are_kept_and_files_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none."""

    def refuse(self: FileLock, timeout: float | None = None) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = tmp_path / ".page-0123456789abcdef"
    left.mkdir()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    write_text(tmp_path / "page", "new")
    assert (tmp_path / "page").read_text() == "new"
    assert drafts(tmp_path) == [left.name]
    with pytest.raises(ResourceError, match="No locks available"), exclusive(tmp_path / "lock"):
        pass


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path / "folder/lock") as held:
            with exclusive(tmp_path / "folder/lock") as second:
                assert (held, second) == (True, False)
            code = (
                "import sys; from pathlib import Path; from gks_eval.util.files import exclusive\n"
                "with exclusive(Path(sys.argv[1])) as held: sys.exit(held)"
            )
            command = [sys.executable, "-c", code, str(tmp_path / "folder/lock")]
            assert subprocess.run(command, check=False).returncode == 0


def test_what_stood_there_stays_when_writing_fails(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text("old")

    def fail() -> None:
        with replaced_file(page) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert page.read_text() == "old"
    assert drafts(tmp_path) == []


def test_a_folder_stays_when_its_replacement_cannot_take_its_place(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "weights").write_text("old")

    def lose() -> None:
        with replaced_folder(target) as draft:
            draft.rmdir()
            draft.symlink_to(tmp_path / "nowhere")  # iterdir fails

    with pytest.raises(ResourceError):
        lose()
    assert (target / "weights").read_text() == "old"
    assert drafts(tmp_path) == []


@pytest.mark.parametrize("times", [2, 9])
def test_a_file_that_windows_has_open_is_replaced_later_or_refused(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    page.write_text("old")
    left = [times]
    replace = Path.replace

    def busy(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] >= 0:
            error = PermissionError(errno.EACCES, "Access is denied")
            error.winerror = 5  # type: ignore[attr-defined]
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", busy)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    if times == 2:
        write_text(page, "new")
    else:
        with pytest.raises(ResourceError) as caught:
            write_text(page, "new")
        assert_sentence(caught.value, str(page), "another program has it open")
    assert page.read_text() == ("new" if times == 2 else "old")
    assert drafts(tmp_path) == []


def test_a_drive_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows `Z:/` may not exist; it is its own parent."""
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda dir: (dir / "gone").read_bytes())
    with pytest.raises(ResourceError):
        check_writable(Path("/runs"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_rights_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "page", "x")
        with replaced_folder(tmp_path / "library") as draft:
            (draft / "expert").mkdir()
            (draft / "expert/weights").touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "page").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "library/expert").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "library/expert/weights").stat().st_mode & 0o777 == 0o640


def test_a_place_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError) as caught:
        write_text(tmp_path / "file/page", "x")
    assert_sentence(caught.value, str(tmp_path / "file/page"), "--output")
