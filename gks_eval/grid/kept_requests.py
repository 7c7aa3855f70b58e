"""The requests that an unfinished setting has scored, in a hidden folder next to the settings.

The folder has lm-eval's request cache, so a killed run resumes where it stopped. Workers that
evaluate parts of one setting at the same time have one folder per part. Their scored requests are
then added to the setting's folder.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import pickle
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gks_eval.errors import ResourceError
from gks_eval.grid.evaluate import evaluate
from gks_eval.grid.settings import Cell, Grid
from gks_eval.scoring.loglikelihood import TokenLogLikelihood
from gks_eval.util.files import write_text

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["evaluate_and_keep", "forget", "partial_folder", "prepare_part", "prepare_partial"]

_REQUESTS: Final = "requests"
_MARK: Final = "request.json"


def partial_folder(grid: Grid, cell: Cell, part: int | None = None) -> Path:
    """Return the folder of an unfinished setting, or of one part of it."""
    name = f".{cell.slug}.partial"
    return grid.output / (name if part is None else f"{name}.{part}")


def prepare_partial(partial: Path, identity: str, request: Mapping[str, Any]) -> None:
    """Keep the folder of a killed run with the same request, or start an empty one.

    The requests that parts of the setting have scored are added, and their folders removed.
    """
    mark = _prepare(partial, identity, request)
    for part in _parts(partial):
        if _is_usable(part, mark):
            _add_requests(part, partial)
        shutil.rmtree(part, ignore_errors=True)


def prepare_part(part: Path, partial: Path, identity: str, request: Mapping[str, Any]) -> None:
    """Prepare the folder of a part, with the requests that the setting has scored before.

    Args:
        part: The folder.
        partial: That of the setting, which is only read.
        identity: Of the model at the setting.
        request: Of the setting.
    """
    mark = _prepare(part, identity, request)
    if _is_usable(partial, mark):
        _add_requests(partial, part)


def forget(partial: Path) -> None:
    """Remove the folders of a setting and of its parts."""
    for folder in (partial, *_parts(partial)):
        shutil.rmtree(folder, ignore_errors=True)


def evaluate_and_keep(
    partial: Path, lm: GksArrowLM, tasks: Any, grid: Grid, **how: Any
) -> dict[str, Any] | None:
    """Evaluate as `gks_eval.grid.evaluate.evaluate`, with the request cache of a folder.

    Raises:
        ResourceError: The disk is full.
    """
    from lm_eval.api.model import CacheHook

    with _cache_errors(partial):
        results = evaluate(lm, tasks, grid, use_cache=str(partial / _REQUESTS), **how)
        lm.cache_hook.dbdict.close()
    lm.cache_hook = CacheHook(None)
    return results


def _prepare(folder: Path, identity: str, request: Mapping[str, Any]) -> str:
    mark = json.dumps({"identity": identity, **request}, sort_keys=True, default=str)
    if not _is_usable(folder, mark):
        shutil.rmtree(folder, ignore_errors=True)
        write_text(folder / _MARK, mark)
    return mark


def _parts(partial: Path) -> list[Path]:
    found = sorted(partial.parent.glob(f"{glob.escape(partial.name)}.*"))
    return [path for path in found if path.suffix[1:].isdigit()]


def _databases(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_REQUESTS}*.db"))


def _is_usable(folder: Path, mark: str) -> bool:
    try:
        if (folder / _MARK).read_text(encoding="utf-8") != mark:
            return False
        for database in _databases(folder):
            with contextlib.closing(sqlite3.connect(database)) as connection:
                if connection.execute("pragma quick_check").fetchone() != ("ok",):
                    return False
                if _has_table(connection, "main"):
                    for (value,) in connection.execute("select value from unnamed"):
                        _check_result(value)
    except Exception:  # a damaged pickle can fail in any way
        return False
    return True


class _Results(pickle.Unpickler):
    """Reads results of requests; other objects, whose loading could run code, are errors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (TokenLogLikelihood.__module__, TokenLogLikelihood.__name__):
            return TokenLogLikelihood
        raise pickle.UnpicklingError(f"{module}.{name} is no result of a request")


def _check_result(value: bytes) -> None:
    """Check the stored result of one request, or the stamp.

    Raises:
        Exception: It is damaged or something else.
    """
    found = _Results(io.BytesIO(value)).load()
    kinds = [type(part) for part in found] if isinstance(found, tuple) else []
    if not isinstance(found, (float, str)) and kinds != [float, bool]:
        raise pickle.UnpicklingError(f"{type(found).__name__} is no result of a request")


def _has_table(connection: sqlite3.Connection, schema: str) -> bool:
    # The table of a SqliteDict, missing if the run was killed before it made one.
    named = f"select 1 from {schema}.sqlite_master where name = 'unnamed'"  # noqa: S608
    return connection.execute(named).fetchone() is not None


def _add_requests(source: Path, target: Path) -> None:
    for database in _databases(source):
        with (
            _cache_errors(target),
            contextlib.closing(sqlite3.connect(target / database.name)) as connection,
        ):
            connection.execute("attach ? as other", (str(database),))
            if not _has_table(connection, "other"):
                continue
            connection.execute(
                "create table if not exists unnamed (key text primary key, value blob)"
            )
            connection.execute("insert or ignore into unnamed select * from other.unnamed")
            connection.commit()


@contextlib.contextmanager
def _cache_errors(partial: Path) -> Iterator[None]:
    # SQLite has its own errors for a full disk, and for a file that is damaged meanwhile.
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise ResourceError(
            f"{partial}: scored requests could not be written ({error}); make room, or "
            "delete it if it is damaged, and run the same command again to resume."
        ) from error
