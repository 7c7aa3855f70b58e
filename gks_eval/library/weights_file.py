"""An adapter's safetensors file, read into memory in one piece.

The digest and the tensors come from the same bytes. A file that is replaced, overwritten or
truncated later changes nothing that was loaded. A writer that changes the file during the read
itself can still leave a mixture of both versions; the digest is then the mixture's, so that a hash
in library.yaml reveals it.

While a file is read, it is in memory twice. Factors stored in float32 remain in memory as they are;
attached settings hold their own stacked copies next to them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load

from gks_eval.util.json_file import parse_json

__all__ = ["WeightsFile"]


class WeightsFile:
    """The tensors, metadata and digest of a safetensors file.

    Attributes:
        tensors: Its tensors by name, sorted; each has its own memory.
        metadata: What its header records besides the tensors.
        sha256: SHA-256 of the file, hex.

    Raises:
        SafetensorError: The file is not a safetensors file.
        ValueError: A tensor has a type that torch or safetensors cannot read.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        try:
            tensors = load(content)  # checks the header
        except KeyError as error:
            raise ValueError(f"tensors of type {error.args[0]} cannot be read") from None
        self.tensors: dict[str, torch.Tensor] = dict(sorted(tensors.items()))
        self.sha256 = hashlib.sha256(content).hexdigest()
        end = 8 + int.from_bytes(content[:8], "little")
        header = parse_json(content[8:end])
        self.metadata: dict[str, str] = header.get("__metadata__") or {}
