"""Peak memory that one call allocates, with its result and without what existed before.

On CUDA the allocator records the peak. On a CPU it does not, so the results of every operation are
tracked: a storage counts from the operation that first returns it until its last tensor is freed.
Memory that a kernel allocates and frees inside one operation is not counted there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveStorages", "peak_bytes"]


def peak_bytes(call: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Run `call` and return the peak bytes of new tensors.

    Args:
        call: The call to measure; its result counts, as it is alive at the end.
        device: Device of its tensors.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    live = LiveStorages()
    with live:
        call()
    return live.peak


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the storages that operations allocate inside the `with` block.

    Attributes:
        now: Bytes that are alive.
        peak: Largest value of `now`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count the storages of its results that are new."""
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            key = storage._cdata
            if key not in given and key not in self._alive:
                self._add(key, storage)
        return result

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def forget(_: object) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.ref(storage, forget)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
