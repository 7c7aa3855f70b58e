"""Loading a task's data: from the hub, from several subsets, or from files next to a YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import DataError, HubError, whole_reason
from gks_eval.tasklib.local_data import DATA_ROOT, local_data

__all__ = ["draw_rows", "interleave", "load_data", "load_subsets", "resolve_files"]

_DRAW: Final = "write {rows: 400, seed: 1234}, with at least one row and a seed from 0 to 2^32 - 1"


def load_data(path: str, name: str | None = None, **kwargs: Any) -> Any:
    """Load a data set as `datasets.load_dataset` does.

    Args:
        path: Hub id, or ``json`` with `data_files`. A folder of that name comes before the hub:
            one in `DATA_ROOT`, then one in the working directory.
        name: The subset.
        **kwargs: Handed on.

    Raises:
        HubError: When no folder and not the hub has it.
        DataError: When its files cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    what = f"{path!r}, subset {name!r}" if name else repr(path)
    try:
        with local_data():
            return datasets.load_dataset(path, name, **kwargs)
    except DatasetGenerationError as error:
        raise DataError(
            f"the data set {what} has a file that cannot be read ({error.__cause__ or error}); "
            "correct the file, or download it again."
        ) from error
    except (
        ConnectionError,
        FileNotFoundError,  # which datasets' own DatasetNotFoundError is
        HfHubHTTPError,
        OfflineModeIsEnabled,
        ValueError,  # an unknown subset
    ) as error:
        raise HubError(
            f"the data set {what} could not be loaded ({whole_reason(error)}); go online, or set "
            f"{DATA_ROOT} to a folder that holds a copy of it as {path}/."
        ) from error


def interleave(lengths: Sequence[int]) -> list[int]:
    """Order the rows of concatenated parts by turns: the first row of each part, then the second.

    So a run that is limited to the first rows sees all parts evenly.

    Args:
        lengths: Number of rows of each part.

    Returns:
        Indices into the concatenation, for example ``[0, 2, 1, 3, 4]`` for lengths 2 and 3.
    """
    starts = [sum(lengths[:part]) for part in range(len(lengths))]
    turns = range(max(lengths, default=0))
    return [
        start + turn
        for turn in turns
        for start, length in zip(starts, lengths, strict=True)
        if turn < length
    ]


def draw_rows(dataset: Mapping[str, Any], split: str, draw: Any, where: str) -> dict[str, Any]:
    """Draw rows of one split as the authors' scripts do, with the data set's `train_test_split`.

    Args:
        dataset: Rows by split.
        split: The scored split.
        draw: What the task says: ``rows``, how many are drawn, and ``seed``.
        where: The data set's name, for messages.

    Returns:
        The data set with the drawn rows as that split.

    Raises:
        DataError: `draw` is malformed, or there are not more rows than are drawn.
    """
    given = draw if isinstance(draw, Mapping) else {}
    count, seed = given.get("rows"), given.get("seed")
    if set(given) != {"rows", "seed"} or type(count) is not int or type(seed) is not int:
        raise DataError(f"the data set {where}: `draw` is {draw!r:.80}; {_DRAW}.")
    if count < 1 or not 0 <= seed < 2**32:
        raise DataError(f"the data set {where}: `draw` is {draw!r:.80}; {_DRAW}.")
    if split not in dataset:
        raise DataError(
            f"the data set {where} has no split {split!r} to draw from; name one of "
            f"{', '.join(dataset)}."
        )
    rows = dataset[split]
    if len(rows) <= count:
        raise DataError(
            f"the data set {where}, split {split}, has {len(rows)} rows and `draw` takes {count}; "
            "lower `rows`, or leave `draw` out to score all."
        )
    return {**dataset, split: rows.train_test_split(test_size=count, seed=seed)["test"]}


def load_subsets(path: str, subsets: Sequence[str]) -> Any:
    """Load several subsets as one data set with a column ``subtask``, their rows by turns.

    Args:
        path: Hub id.
        subsets: Names of the subsets, which have the same splits.

    Raises:
        HubError: As `load_data`.
    """
    import datasets

    parts = [load_data(path, subset) for subset in subsets]
    merged = {}
    for split in parts[0]:
        named = [
            part[split].add_column("subtask", [subset] * len(part[split]))
            for part, subset in zip(parts, subsets, strict=True)
        ]
        order = interleave([len(part) for part in named])
        merged[split] = datasets.concatenate_datasets(named).select(order)
    return datasets.DatasetDict(merged)


def resolve_files(files: Mapping[str, str], yaml_path: str | Path) -> dict[str, str]:
    """Take the paths of `files` as relative to the folder of the YAML file that names them.

    Args:
        files: Path by split.
        yaml_path: The YAML file.
    """
    folder = Path(yaml_path).resolve().parent
    return {split: str(folder / file) for split, file in files.items()}
