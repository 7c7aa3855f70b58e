"""Rows and texts from files and from the hub, with an error for every fault."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import DataError, GksError, HubError, reason
from gks_eval.training.examples import SourceTarget
from gks_eval.training.jobs import Job, digest_of_json
from gks_eval.training.recipe import ExpertMember, GeneralMember, Place
from gks_eval.util.files import sha256_of
from gks_eval.util.json_file import JsonFile

__all__ = ["expert_rows", "general_texts", "identity"]

_ROWS: Final = JsonFile(
    "row of training data",
    DataError,
    "write one JSON object per line, in UTF-8, or name a .parquet file",
    limit=1 << 28,
    constants=True,
)

Row = Mapping[str, Any]


def identity(job: Job, root: Path) -> str:
    """Return the identity of a job's data, without reading rows.

    It is the SHA-256 of a local file, or the address of a data set on the hub, which pins the data
    only if it has a `revision`.

    Raises:
        DataError: The local file is missing.
    """
    if job.member.file is None:
        return digest_of_json(job.member.model_dump(mode="json", include=set(Place.model_fields)))
    path = root / job.member.file
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; check the path of {job.key} in the recipe."
        ) from error


def expert_rows(job: Job, root: Path) -> list[SourceTarget]:
    """Return the rows of an expert, drawn and ordered by the job's seed.

    Raises:
        DataError: A column is missing or empty, no row fits, or a file cannot be read.
        HubError: The hub cannot be reached, also midway.
    """
    member = job.member
    assert isinstance(member, ExpertMember)
    where = _name(member, root)
    pairs: list[SourceTarget] = []
    lacking = {c: values for c, values in member.where.items() if isinstance(values, list)}
    for number, row in _rows(member, root, member.where):
        source, target = (_text(row, c, where, number) for c in (member.source, member.target))
        pairs.append(SourceTarget(number, source, target))
        for column, values in lacking.items():
            lacking[column] = [value for value in values if value != row[column]]
    if not pairs:
        wanted = ", ".join(f"{column} = {value}" for column, value in member.where.items())
        raise DataError(
            f"{where}: no row for {job.key}"
            + (f" with {wanted}; check `where` in the recipe." if wanted else "; it is empty.")
        )
    for column, values in lacking.items():
        if values:  # a misspelled value would otherwise be silently ignored
            raise DataError(
                f"{where}: no row for {job.key} with {column} = {', '.join(map(str, values[:5]))};"
                " take it out of `where`, or of the cluster file that names it."
            )
    random.Random(job.seed).shuffle(pairs)  # noqa: S311 - a draw of rows, not a secret
    count = max(1, round(member.fraction * len(pairs)))
    if member.rows is not None:
        count = min(count, member.rows)
    # Held-out rows are extra, so that they cost no training rows if there are enough.
    return pairs[: count + job.section.held_out]


def general_texts(job: Job, root: Path) -> Iterator[str]:
    """Yield the texts of a language in the order of the source.

    Raises:
        DataError: A column is missing or empty, or a file cannot be read.
        HubError: The hub cannot be reached, also midway.
    """
    member = job.member
    assert isinstance(member, GeneralMember)
    if member.file is not None and member.file.endswith(".txt"):
        for paragraph in _read_text(root / member.file).split("\n\n"):
            if paragraph.strip() and len(paragraph) >= member.min_chars:
                yield paragraph.strip()
        return
    where = _name(member, root)
    for number, row in _rows(member, root, {}):
        text = _text(row, member.column, where, number)
        if len(text) >= member.min_chars:
            yield text


def _name(place: Place, root: Path) -> str:
    return str(root / place.file) if place.file else f"data set {place.hub}"


def _rows(place: Place, root: Path, where: Mapping[str, Any]) -> Iterator[tuple[int, Row]]:
    # Rows are numbered as in the file, including those that `where` skips.
    if place.file is not None:
        path = root / place.file
        lines = (row for _, row in _ROWS.lines(path))
        rows = _parquet(path) if path.suffix == ".parquet" else lines
    else:
        rows = _hub(place)
    wanted = {c: v if isinstance(v, list) else [v] for c, v in where.items()}
    source = _name(place, root)
    for number, row in enumerate(rows, start=1):
        for column in wanted:
            if column not in row:
                raise _no_column(source, number, column, row)
        if all(row[column] in values for column, values in wanted.items()):
            yield number, row


def _text(row: Row, column: str, where: str, number: int) -> str:
    if column not in row:
        raise _no_column(where, number, column, row)
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"{where} row {number}: column {column!r} holds {value!r:.40}, not text; write it in"
            " quotes, or name another column in the recipe."
        )
    if value is None or not value.strip():
        raise DataError(
            f"{where} row {number}: column {column!r} is empty; fill in or remove the row."
        )
    return value


def _no_column(where: str, number: int, column: str, row: Row) -> DataError:
    return DataError(
        f"{where} row {number}: no column {column!r} among {', '.join(map(str, row))}; name the"
        " columns in the recipe."
    )


def _read_text(path: Path) -> str:
    try:
        # -sig: editors on Windows write a byte-order mark.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8; save the file in that encoding."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; check the path in the recipe.") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path}: no readable parquet file ({reason(error)}); download it again."
        ) from error


def _hub(place: Place) -> Iterator[Row]:
    import datasets

    assert place.hub is not None
    try:
        yield from datasets.load_dataset(
            place.hub,
            place.config,
            data_files=place.data_files,
            split=place.split,
            revision=place.revision,
            streaming=True,
        )
    except GksError:
        raise
    except Exception as error:  # datasets, fsspec and the HTTP client each have their own errors
        raise HubError(
            f"data set {place.hub}: cannot be read ({reason(error)}); check the id, the network and"
            " `hf auth login`, or give a local `file`."
        ) from error
