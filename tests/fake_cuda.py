"""CUDA tensors without CUDA: shapes, types and devices are checked, nothing is computed.

torch's FakeTensorMode propagates shape, type and device through every operator, and raises where
devices are mixed or a result depends on values that a GPU would have to be asked for.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, META = 1, 14  # c10::DeviceType
WIDE = hasattr(torch.ops.aten.mm, "dtype")
"""Whether this torch multiplies 16-bit matrices into float32; older ones do not."""
ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "detach"}


@contextmanager
def device_guards() -> Iterator[None]:
    """Let torch's CPU build accept CUDA as the current device.

    Many operators first make their tensor's device the current one, for which a CPU build has no
    code. For the meta device that does nothing, so its entry in torch's table serves CUDA as well.
    """
    if torch.cuda.is_available():
        yield
        return
    c10 = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
    table = (ctypes.c_void_p * 32).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    before, table[CUDA] = table[CUDA], table[META]
    try:
        yield
    finally:
        table[CUDA] = before


class Launches(TorchDispatchMode):
    """Counts the operators that start work on a GPU, and refuses those that a graph cannot hold.

    Views, allocations and operators without a result start nothing. Copies between host and GPU
    are refused: they wait for the GPU, or their source may be gone when a captured graph runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self.operators.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {one.device.type for one in tensors_in((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        after = {one.device.type for one in tensors_in(result)}
        if "cuda" in before | after and len(before | after) > 1:
            raise AssertionError(f"{func} copies between host and GPU")
        name = func._schema.name.partition("::")[2]
        works = any(one.numel() for one in tensors_in(result))
        if works and not func.is_view and name not in ALLOCATIONS:
            self.operators[name] += 1
        return result


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested arguments."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Make CUDA tensors possible inside the block; they hold nothing."""
    with device_guards(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def need_static_cache() -> None:
    """Skip a test if transformers' static cache does not keep its length as a tensor."""
    from transformers.cache_utils import StaticLayer

    if not hasattr(StaticLayer(max_cache_len=1), "cumulative_length"):
        pytest.skip("this transformers has another static cache")
