"""Files that are complete or absent, and locks that end with their process."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gks_eval.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "check_output",
    "check_writable",
    "disk_errors",
    "draft_folder",
    "exclusive",
    "replaced_file",
    "replaced_folder",
    "sha256_of",
    "write_text",
]

_LOCK: Final = ".lock"
_LOCK_SECONDS: Final = 1.0
_PAUSES: Final = (0.01, 0.1, 1.0)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into a `ResourceError`.

    Raises:
        ResourceError: The disk is full, or `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{path}: the disk is full; free some space and run the same command again to"
                " resume."
            ) from error
        if _is_open_elsewhere(error) and path.exists():
            raise ResourceError(
                f"{path} cannot be replaced while another program has it open; close it there and"
                " run the same command again."
            ) from error
        raise ResourceError(
            f"{path} cannot be written ({error.strerror or error}); choose another folder with"
            " --output."
        ) from error


def check_writable(folder: Path) -> None:
    """Check that `folder` can be created or written to, before long work starts.

    No file remains.

    Raises:
        ResourceError: It cannot.
    """
    with disk_errors(folder):
        place = folder.absolute()
        while not (place.exists() or place.is_symlink()) and place != place.parent:
            place = place.parent  # on Windows a missing drive is its own parent
        with tempfile.TemporaryFile(dir=place):
            pass


def check_output(file: Path) -> None:
    """Check that `file` can be written, before long work starts.

    Raises:
        UsageError: It is a folder.
        ResourceError: Its folder cannot be written.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a folder; name a file in it.")
    check_writable(file.parent)


@contextlib.contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Give a new folder next to `target` to prepare it in; the folder is removed at the end.

    The writer holds a lock in the folder. The operating system frees the lock when the process
    ends, so the next writer of `target` recognises and removes what killed writers left.

    Args:
        target: A file or folder; its parent is created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        lock.release()  # before the removal: Windows removes no open file
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(target: Path) -> tuple[Path, BaseFileLock]:
    while True:
        folder = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
        folder.mkdir()
        lock = _lock(folder / _LOCK)
        # Some network file systems have no locks. There no folder counts as abandoned.
        with contextlib.suppress(OSError, NotImplementedError):
            lock.acquire(timeout=_LOCK_SECONDS)
        # Before it was locked, another writer may have removed the folder as abandoned.
        if (folder / _LOCK if lock.is_locked else folder).exists():
            return folder, lock
        lock.release()


def _remove_abandoned(target: Path) -> None:
    abandoned = re.compile(rf"\.{re.escape(target.name)}-[0-9a-f]{{16}}")
    for folder in target.parent.glob(f".{glob.escape(target.name)}-*"):
        if not abandoned.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError, NotImplementedError):
            with _lock(folder / _LOCK).acquire(timeout=0):
                # Under the lock, so that a writer that waits for it notices.
                shutil.rmtree(folder, ignore_errors=True)
            # Windows and NFS keep an open file, and its folder, until it is closed.
            folder.rmdir()


@contextlib.contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Give a path to write to; at the end the file written there replaces `target`.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with disk_errors(target), draft_folder(target) as folder:
        draft = folder / target.name
        yield draft
        draft.chmod(_public_mode())  # safetensors creates files for their owner only
        _replace(draft, target)


def _replace(source: Path, target: Path) -> None:
    # A reader or virus scanner may have one of them open on Windows, mostly for milliseconds.
    for pause in _PAUSES:
        try:
            source.replace(target)
            return
        except OSError as error:
            if not _is_open_elsewhere(error):
                raise
        time.sleep(pause)
    source.replace(target)


def _is_open_elsewhere(error: OSError) -> bool:
    # Windows' ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION.
    return getattr(error, "winerror", None) in (5, 32)


def _publish(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _publish(path)
        else:
            path.chmod(_public_mode())


def _public_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_text(path: Path, text: str) -> None:
    """Write a text file through `replaced_file`: it is complete whenever it exists.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with replaced_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it replaces `target`.

    When the block raises, or the process is killed in it, `target` stays as it was.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with disk_errors(target), draft_folder(target) as folder:
        draft = folder / target.name
        draft.mkdir()
        yield draft
        _publish(draft)
        old = folder / f"{target.name}.old"
        if target.exists():
            _replace(target, old)
        try:
            _replace(draft, target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Try to take a lock, without waiting; yield whether this process holds it.

    The operating system frees the lock when the process ends, in whatever way.

    Args:
        path: The lock's file. Except on Windows it stays, empty: removing it could let two
            processes hold the lock.

    Raises:
        ResourceError: The file cannot be written.
    """
    lock = _lock(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(TimeoutError):
            lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    from filelock import FileLock  # here, because it imports asyncio

    return FileLock(path)
