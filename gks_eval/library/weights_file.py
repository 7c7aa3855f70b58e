"""An adapter's safetensors file, mapped into memory.

A library may have a thousand files of hundreds of tensors. Each file is read from the disk once,
for its digest; its tensors are views of the same memory, which the system can release and
read again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open

from gks_eval.util.json_file import parse_json

__all__ = ["WeightsFile"]

_VIEWED: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class WeightsFile:
    """The header, tensors and digest of a safetensors file.

    Attributes:
        keys: The names of its tensors.
        metadata: What its header records besides the tensors.
        sha256: SHA-256 of the file, hex.

    Raises:
        SafetensorError: The file is not a safetensors file.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="pt") as file:  # checks the header
            self.keys: list[str] = list(file.keys())
            self.metadata: dict[str, str] = file.metadata() or {}
        size = path.stat().st_size
        content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        self.sha256 = hashlib.sha256(content.numpy().data).hexdigest()
        start = 8 + int.from_bytes(content[:8].numpy().tobytes(), "little")
        self._header = parse_json(content[8:start].numpy().tobytes())
        self._data = content[start:]

    def tensor(self, key: str) -> torch.Tensor:
        """Return one tensor; in a floating-point type it is a view of the file."""
        entry = self._header[key]
        dtype = _VIEWED.get(entry["dtype"])
        if dtype is None:
            with safe_open(self._path, framework="pt") as file:
                other: torch.Tensor = file.get_tensor(key)
                return other
        begin, end = entry["data_offsets"]
        if (self._data.storage_offset() + begin) % dtype.itemsize:  # an old file without alignment
            return self._data[begin:end].clone().view(dtype).view(entry["shape"])
        return self._data[begin:end].view(dtype).view(entry["shape"])
