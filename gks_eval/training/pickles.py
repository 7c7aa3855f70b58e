"""Reads pickled checkpoints without running code from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gks_eval.errors import LibraryError, reason

__all__ = ["load_pickled", "tensors_of"]


def load_pickled(path: Path) -> dict[str, Any]:
    """Return the mapping in a checkpoint that torch wrote, tensors and plain values only.

    Raises:
        LibraryError: The file is missing, broken or no mapping, or loading it would run code.
    """
    import pickle
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            # torch warns about unknown pickle protocols; unreadable files are errors below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LibraryError(
            f"{path}: holds more than tensors and plain values ({reason(error)}), and loading those"
            " would run code; have its maker save the state_dict alone."
        ) from error
    except FileNotFoundError as error:
        raise LibraryError(f"{path}: is missing; check the path.") from error
    except Exception as error:  # a truncated file can fail anywhere in the unpickler
        raise LibraryError(f"{path}: cannot be read ({error}); download it again.") from error
    if not isinstance(content, Mapping):
        raise LibraryError(f"{path}: holds no mapping of names to tensors; is it a checkpoint?")
    return dict(content)


def tensors_of(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the tensors of a checkpoint, unwrapped.

    Raises:
        LibraryError: There are no tensors.
    """
    import torch

    for key in ("state_dict", "module", "expert_weights"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise LibraryError(f"{path}: holds no tensors; is it an expert's checkpoint?")
    return tensors
