"""Local data sets, read from where they are and cached by what their files hold.

`datasets` names the cache folder of a local set after the last part of its path and the patterns of
its files. So ``org/set`` in two folders, or before and after an edit, share one cache. Here the
paths and the bytes of the files choose the folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import UsageError
from gks_eval.util.digest import digest
from gks_eval.util.files import sha256_of

__all__ = ["DATA_ROOT", "content_key", "data_root", "local_data"]

DATA_ROOT: Final = "GKS_DATA_ROOT"
_FOLDER: Final = "gks_local"


@contextmanager
def local_data() -> Iterator[None]:
    """Within the block, every load of a data set takes local folders by their content.

    That holds for every caller of `datasets.load_dataset`, lm-eval's own tasks included. A set that
    `DATA_ROOT` holds as ``org/name/`` is read from there; sets of the hub are loaded as ever.

    Raises:
        UsageError: `DATA_ROOT` names no folder.
    """
    import datasets.load as loading

    original = loading.load_dataset_builder
    if isinstance(original, _ByContent):  # within another such block
        yield
        return
    data_root()
    loading.load_dataset_builder = _ByContent(original)
    try:
        yield
    finally:
        loading.load_dataset_builder = original


def data_root() -> Path | None:
    """Return the folder that `DATA_ROOT` names; None where it is not set.

    Raises:
        UsageError: It is no folder.
    """
    root = os.environ.get(DATA_ROOT)
    if not root:
        return None
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{DATA_ROOT}={root} is no folder; name one with org/name/ in it.")
    return folder.resolve()


def content_key(data_files: Mapping[Any, list[str]] | None) -> str | None:
    """Return a digest of the paths and the bytes of local files; None where one is not local.

    Args:
        data_files: The files of a data set by split, as a dataset builder's config holds them.
    """
    files = [(str(split), Path(f)) for split, found in (data_files or {}).items() for f in found]
    if not files or not all(path.is_file() for _, path in files):
        return None
    return digest({"files": [(split, str(f.resolve()), sha256_of(f)) for split, f in files]})


@dataclass(frozen=True)
class _ByContent:
    """`datasets.load.load_dataset_builder`, with a cache folder that the files' content names."""

    original: Callable[..., Any]

    def __call__(self, path: str, *args: Any, cache_dir: Any = None, **kwargs: Any) -> Any:
        import datasets

        root = data_root()
        if root is not None and kwargs.get("data_files") is None and (root / path).is_dir():
            path = str(root / path)
        builder = self.original(path, *args, cache_dir=cache_dir, **kwargs)
        key = content_key(builder.config.data_files)
        if key is None:
            return builder
        place = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / _FOLDER / key
        keyed = self.original(path, *args, cache_dir=str(place), **kwargs)
        keyed.hash = f"{keyed.hash}-{key}"  # what `Dataset.map` caches is named after this
        return keyed
