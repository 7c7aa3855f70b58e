"""Files that are whole or not there, and locks that die with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gks_eval.errors import ResourceError, UsageError

__all__ = [
    "check_output",
    "check_writable",
    "disk_errors",
    "exclusive",
    "read_json",
    "replaced_file",
    "replaced_folder",
    "sha256_of",
    "write_text",
]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one where the file is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into a sentence.

    Raises:
        ResourceError: It was refused: the disk is full, or `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{path}: the disk is full; make room and run the same command again, it goes on"
                " where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ResourceError(
                f"{path}: cannot be written ({error.strerror}); give a folder of yours with"
                " --output."
            ) from error
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}; give another folder with"
            " --output."
        ) from error


def check_writable(folder: Path) -> None:
    """Make sure that `folder` can be written, or made, before hours of work go there.

    Nothing is left behind.

    Raises:
        ResourceError: It cannot.
    """
    with disk_errors(folder):
        place = folder.absolute()
        while not (place.exists() or place.is_symlink()):
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass


def check_output(file: Path) -> None:
    """Make sure that `file` can be written before the work that fills it.

    Raises:
        UsageError: It is a folder.
        ResourceError: Its folder cannot be written.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a folder; name a file in it.")
    check_writable(file.parent)


@contextlib.contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Give a path to write to; at the end that file takes the place of `target`.

    What writers of the same file left when they were killed is removed.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = _held_file(target)
        try:
            _clear_torn(target, aside)
            yield aside
            aside.chmod(_public_mode())  # mkstemp's files are for their owner alone
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
            os.close(handle)


def _held_file(target: Path) -> tuple[int, Path]:
    """Make a file beside `target` that shows by a lock that its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        # Some network file systems keep no locks: there nothing is ever taken for torn.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Before the lock, another writer may have taken the file for a dead one's.
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)


def _clear_torn(target: Path, own: Path) -> None:
    """Remove the files that were to become `target` and whose writers are dead.

    A living writer holds a lock on its file, which the operating system frees with its process.
    """
    torn = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}")
    for left in target.parent.glob(f".{glob.escape(target.name)}-*"):
        if left == own or not torn.fullmatch(left.name):
            continue
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _public_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that it is whole whenever it is there.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with replaced_file(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="")


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it takes the place of `target`.

    When the block raises, or the process dies, `target` is as it was.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield aside
            aside.chmod(0o755)
            for file in aside.iterdir():
                file.chmod(_public_mode())
            if target.exists():
                old = aside.with_name(aside.name + "-old")
                target.replace(old)
                aside.replace(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                aside.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Try to take a lock; the block runs either way and is told whether it holds it.

    The operating system frees the lock when its process ends, in whatever way.

    Args:
        path: The lock's file; it stays, empty.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
