"""Vectors that were prepared for a router: one per expert and layer, stored with the library.

``prepared/ROUTER/`` next to ``library.yaml`` holds ``vectors.safetensors`` with keys
``EXPERT/LAYER``, and ``prepared.json``. For bundled, downloaded and read-only libraries
`gks-eval prepare` writes them to the cache folder, where they come before those that a library from
the hub brings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from gks_eval.errors import LibraryError
from gks_eval.library.peft_adapter import Adapter
from gks_eval.library.tied import TiedLayers, tied_gates
from gks_eval.util.files import replaced_folder, sha256_of
from gks_eval.util.json_file import JsonFile
from gks_eval.util.paths import cache_dir

__all__ = [
    "VECTORS_FILES",
    "PreparedVectors",
    "home_of_vectors",
    "prepare_command",
    "prepared_vectors",
    "read_vectors",
    "vectors_folder",
    "write_vectors",
]

_FOLDER: Final = "prepared"
_VECTORS_FILE: Final = "vectors.safetensors"
_RECORD_FILE: Final = "prepared.json"
VECTORS_FILES: Final = (_RECORD_FILE, _VECTORS_FILE)
"""The files of a router's vectors."""
_RECORD: Final = JsonFile(
    "record of prepared vectors", LibraryError, "run `gks-eval prepare` again", limit=1 << 26
)


class _Made(BaseModel):
    """What is read of an expert's entry in the record."""

    model_config = ConfigDict(extra="allow")

    adapter: str
    fingerprint: str = ""


class _Record(BaseModel):
    """What is read of the record."""

    model_config = ConfigDict(extra="allow")

    sha256: str
    experts: dict[str, _Made]


class Experts(Protocol):
    """The part of `gks_eval.library.library.Library` that this file uses."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def content_hash(self) -> str: ...
    @property
    def experts(self) -> Mapping[str, Adapter]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]: ...
    @property
    def tied(self) -> Mapping[str, TiedLayers]: ...


@dataclass(frozen=True)
class PreparedVectors:
    """The vectors of one router.

    Attributes:
        tensors: (K,) float32 by ``EXPERT/LAYER``.
        record: How they were made; ``experts`` has an entry per expert.
        sha256: SHA-256 of ``vectors.safetensors``, hex.
    """

    tensors: Mapping[str, torch.Tensor]
    record: Mapping[str, Any]
    sha256: str

    def at(self, experts: Sequence[str], layer: str) -> torch.Tensor:
        """Return the vectors at one layer, (E, K); zero where an expert has none."""
        rows = [self.tensors.get(f"{name}/{layer}") for name in experts]
        zero = torch.zeros_like(next(row for row in rows if row is not None))
        return torch.stack([zero if row is None else row for row in rows])

    def of(self, expert: str) -> dict[str, torch.Tensor]:
        """Return the vectors of one expert, by ``EXPERT/LAYER``."""
        return {k: v for k, v in self.tensors.items() if k.rpartition("/")[0] == expert}


def prepare_command(library: str, router: str) -> str:
    """Return the command that makes a router's vectors."""
    return f"`gks-eval prepare {library} --router {router}`"


def home_of_vectors(library: Experts, router: str) -> Path:
    """Return the folder that the vectors of a router are written to."""
    return _places(library, router)[0]


def prepared_vectors(library: Experts, router: str) -> PreparedVectors:
    """Return the vectors of a router for all experts of the library.

    Raises:
        LibraryError: They are missing, broken, or were made for other adapters.
    """
    command = prepare_command(library.name, router)
    folder = next((p for p in _places(library, router) if (p / _RECORD_FILE).is_file()), None)
    if folder is None:
        raise LibraryError(
            f"library {library.name} has no prepared vectors for router={router}; make them with "
            f"{command}."
        )
    found = read_vectors(folder)
    if (other := found.record.get("router", router)) != router:
        raise LibraryError(
            f"{folder} holds the vectors of router={other!s:.80}; make those of {router} with "
            f"{command}."
        )
    if found.record.get("tied", []) != tied_gates(library.tied, router):
        raise LibraryError(
            f"{folder} was made with other tied layers than those of library {library.name}; make "
            f"it again with {command}."
        )
    for name, adapter in library.experts.items():
        made = found.record["experts"].get(name)
        if made is None:
            raise LibraryError(f"{folder} lacks expert {name!r}; resume with {command}.")
        if made["adapter"] != adapter.digest:
            raise LibraryError(
                f"{folder} was made for another adapter than the expert {name!r} of library "
                f"{library.name}; make it again with {command}."
            )
        for layer in adapter.pairs:
            vector = found.tensors.get(f"{name}/{layer}")
            if vector is None or vector.shape != library.shapes[layer][1:]:
                raise LibraryError(
                    f"{folder} has no usable vector of expert {name!r} at {layer}; make it again "
                    f"with {command}."
                )
    return found


def read_vectors(folder: Path) -> PreparedVectors:
    """Return what `write_vectors` wrote to a folder.

    Raises:
        LibraryError: The files are missing or broken.
    """
    file = folder / _VECTORS_FILE
    record = _RECORD.read_as(folder / _RECORD_FILE, _Record).model_dump()
    try:
        stat = file.stat()
        tensors, sha256 = _load(file, (stat.st_ino, stat.st_mtime_ns, stat.st_size))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise LibraryError(
            f"{file} cannot be read ({error}); run `gks-eval prepare` again."
        ) from None
    if sha256 != record["sha256"]:
        raise LibraryError(
            f"{file} is not the file that {_RECORD_FILE} next to it describes; run "
            "`gks-eval prepare` again."
        )
    return PreparedVectors(tensors, record, sha256)


def write_vectors(
    folder: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]
) -> None:
    """Write vectors and their record, both or neither.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    with replaced_folder(folder) as draft:
        ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
        save_file(ordered, draft / _VECTORS_FILE)
        content = {**record, "sha256": sha256_of(draft / _VECTORS_FILE)}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (draft / _RECORD_FILE).write_text(text, encoding="utf-8", newline="")


def vectors_folder(root: Path, router: str) -> Path:
    """Return the folder of a router's vectors in a library's folder."""
    return root / _FOLDER / router


def _places(library: Experts, router: str) -> tuple[Path, Path]:
    """Return the folder that `prepare` writes to, which is read first, and the other one."""
    own = vectors_folder(library.path.parent, router)
    cached = cache_dir() / _FOLDER / library.content_hash / router
    local = Path(library.name).expanduser().exists() and os.access(library.path.parent, os.W_OK)
    return (own, cached) if local else (cached, own)


@lru_cache(maxsize=4)
def _load(file: Path, _stamp: tuple[int, int, int]) -> tuple[dict[str, torch.Tensor], str]:
    raw = file.read_bytes()  # not mapped, so that it can be replaced on Windows
    held = load(raw)
    if not all(vector.is_floating_point() for vector in held.values()):
        raise SafetensorError("it holds numbers that are not floats")
    tensors = {name: vector.float() for name, vector in held.items()}
    if not all(vector.isfinite().all() for vector in tensors.values()):
        raise SafetensorError("it holds numbers that are not finite")
    return tensors, hashlib.sha256(raw).hexdigest()
