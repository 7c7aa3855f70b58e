"""Reading one PEFT LoRA folder: adapter_config.json and adapter_model.safetensors.

An adapter that a routed layer cannot reproduce exactly is refused, not approximated.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError

from gks_eval.errors import LibraryError
from gks_eval.library.peft_config import (
    CONFIG_FILE,
    Scaling,
    Targets,
    read_config,
    refuse_unsupported,
)
from gks_eval.library.weights_file import WeightsFile
from gks_eval.method.lora import LoraPair
from gks_eval.util.json_file import parse_json, read_or_empty

__all__ = ["CONFIG_FILE", "EXPORT", "RECORD", "WEIGHTS_FILE", "Adapter", "read_adapter"]

WEIGHTS_FILE: Final = "adapter_model.safetensors"
PICKLED: Final = (
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.pth",
    "adapter_model.ckpt",
)
EXPORT: Final = "gks_export"  # in the header of the weights: what an export subtracted
RECORD: Final = "training.json"  # written by `gks-eval train`: how it made the adapter

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.\w+)?\.weight"
)
_COPY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.base_layer)?\.(?P<leaf>weight|bias)"
)
_MAX_NAME: Final = 200

# Tensors that PEFT needs only in training.
_TRAINING_ONLY: Final = re.compile(r".+\.lora_(?:velora_embed|monteclora_sampler)(?:\..+)?")
# Tensors of other methods, by a part of their name.
_OTHER: Final = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_embedding_": "a LoRA of the token embeddings",
    "lora_B.bias": "a bias in B",
    "lora_diag": "KaSA's singular values",
    "trainable_tokens": "trained token embeddings",
    "prompt_embeddings": "a trained prompt",
}


@dataclass(frozen=True)
class Adapter:
    """One adapter as loaded.

    Attributes:
        name: The adapter's name in messages.
        folder: Where it was read from.
        pairs: Its update of each linear layer, by the layer's name in the base model.
        base_model: Name of the base it was trained on, as its config says; may be empty.
        digest: SHA-256 of its config and weights, hex.
        weights_sha256: SHA-256 of the weights file alone, hex.
        init: The config's ``init_lora_weights``; ``loftq`` if `gks-eval train` used it.
        targets: Which layers its config names.
        copies: Weights of the base that PEFT saved too, such as ``lm_head.weight``: their names
            in the base, and their keys in the weights file.
        subtracted: What an export has already subtracted from it, such as ``("en", "de")``.
    """

    name: str
    folder: Path
    pairs: Mapping[str, LoraPair] = field(repr=False)
    base_model: str
    digest: str
    weights_sha256: str
    init: Any
    targets: Targets = field(repr=False)
    copies: Mapping[str, str] = field(repr=False)
    subtracted: tuple[str, ...] = ()

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """The layers with their shapes, ranks and scalings: checks of these repeat per kind."""
        return tuple((layer, pair.kind) for layer, pair in self.pairs.items())


def read_adapter(folder: Path, name: str) -> Adapter:
    """Read the adapter in `folder`; its factors are converted to float32.

    Raises:
        LibraryError: A file is missing, pickled, truncated or malformed, a tensor is not finite, or
            the adapter is of a kind that routed layers do not support.
    """
    config, config_bytes = read_config(folder, name)
    refuse_unsupported(config, folder, name)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise _missing_weights(folder, name)
    file = _open(weights, name)
    factors, copies = _read_tensors(file, weights, name)
    bias = config.get("bias") or "none"
    if trained := [base for base in copies if bias != "none" and base.endswith(".bias")]:
        raise LibraryError(
            f"{weights}: adapter {name!r} holds {trained[0]}, a trained bias (bias={bias!r:.20} in "
            "its config), which routed layers do not support; use an adapter with bias='none'."
        )
    scaling = Scaling(config, folder / CONFIG_FILE)
    pairs = {
        module: _pair(found, module, weights, scaling) for module, found in sorted(factors.items())
    }
    targets = Targets.read(config, folder / CONFIG_FILE)
    if targets.modules is not None and (unnamed := sorted(pairs.keys() - targets.named(pairs))):
        raise LibraryError(
            f"{weights}: adapter {name!r} updates {unnamed[0]}, which target_modules, "
            f"exclude_modules or layers_to_transform in {CONFIG_FILE} leave out; config and "
            "weights belong to different adapters, copy both again."
        )
    exported = _export_record(file)
    started = exported.get("init") or read_or_empty(folder / RECORD).get("init")
    subtracted = exported.get("subtracted")
    return Adapter(
        name=name,
        folder=folder,
        pairs=pairs,
        base_model=str(config.get("base_model_name_or_path") or ""),
        digest=hashlib.sha256(config_bytes + file.sha256.encode()).hexdigest(),
        weights_sha256=file.sha256,
        init="loftq" if started == "loftq" else config.get("init_lora_weights"),
        targets=targets,
        copies=copies,
        subtracted=tuple(map(str, subtracted)) if isinstance(subtracted, list) else (),
    )


def _export_record(file: WeightsFile) -> dict[str, Any]:
    """Return what `gks_eval.library.export` wrote into the header; empty for other adapters."""
    try:
        record = parse_json(file.metadata.get(EXPORT, "{}").encode())
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _pair(
    found: Mapping[str, torch.Tensor], module: str, weights: Path, scaling: Scaling
) -> LoraPair:
    if set(found) != {"A", "B"}:
        lacking = "A" if "B" in found else "B"
        raise LibraryError(
            f"{weights}: {module} has no lora_{lacking}; the file is incomplete, copy it again."
        )
    A, B = found["A"], found["B"]
    if A.ndim > 2 and A.ndim == B.ndim:
        raise LibraryError(
            f"{weights}: {module} is a convolution (its A has shape {tuple(A.shape)}); "
            "only linear layers can be routed, so use an adapter that leaves it out."
        )
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or A.shape[0] == 0:
        raise LibraryError(
            f"{weights}: {module} has factors of shape {tuple(A.shape)} and {tuple(B.shape)}, "
            "which are not (rank, in) and (out, rank); export the adapter again."
        )
    return LoraPair(A, B, scaling.of(module, A.shape[0]))


def _missing_weights(folder: Path, name: str) -> LibraryError:
    for pickled in PICKLED:
        if (folder / pickled).exists():
            return LibraryError(
                f"{folder / pickled} (adapter {name!r}) is a pickle, which can run code when read; "
                f"convert it once with: gks-eval convert bin {folder}"
            )
    return LibraryError(f"{folder} (adapter {name!r}) has no {WEIGHTS_FILE}; copy it again.")


def _open(path: Path, name: str) -> WeightsFile:
    try:
        return WeightsFile(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, name, error) from None


def _unreadable(path: Path, name: str, error: Exception) -> LibraryError:
    return LibraryError(
        f"{path} (adapter {name!r}) is not a readable safetensors file ({error}); copy it again."
    )


def _read_tensors(
    file: WeightsFile, path: Path, name: str
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, str]]:
    factors: dict[str, dict[str, torch.Tensor]] = {}
    copies: dict[str, str] = {}
    values: dict[str, torch.Tensor] = {}
    for key, tensor in file.tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or len(match["module"]) > _MAX_NAME:
            if not _TRAINING_ONLY.fullmatch(key):
                copies[_name_in_base(key, path, name)] = key
            continue
        found = factors.setdefault(match["module"], {})
        if match["factor"] in found:
            raise LibraryError(
                f"{path}: {key} is a second lora_{match['factor']} of the same layer; "
                "save one adapter per folder."
            )
        if not tensor.is_floating_point():
            raise LibraryError(
                f"{path}: {key} is {tensor.dtype}, not floating point; export the adapter again."
            )
        try:
            found[match["factor"]] = values[key] = tensor.float()
        except NotImplementedError as error:  # torch cannot convert some types
            raise _unreadable(path, name, error) from None
    if not factors:
        raise LibraryError(f"{path} (adapter {name!r}) holds no LoRA factors; export it again.")
    _check_finite(values, path)
    return factors, copies


def _check_finite(values: Mapping[str, torch.Tensor], path: Path) -> None:
    # After the conversion to float32, in which a large float64 overflows.
    filled = [tensor for tensor in values.values() if tensor.numel()]
    ends = [end for tensor in filled for end in torch.aminmax(tensor)]
    if not ends or bool(torch.stack(ends).isfinite().all()):
        return
    key = next(key for key, tensor in values.items() if not bool(tensor.isfinite().all()))
    raise LibraryError(f"{path}: {key} holds NaN or Inf; the training diverged, train it again.")


def _name_in_base(key: str, path: Path, name: str) -> str:
    """Return the base's name for a weight that PEFT saved together with the factors."""
    match = _COPY.fullmatch(key)
    if match is None or "lora_" in key or len(key) > _MAX_NAME:
        what = next((what for part, what in _OTHER.items() if part in key), None)
        raise LibraryError(
            f"{path}: adapter {name!r} holds {key!r:.{_MAX_NAME}}, which is "
            + (f"{what}; " if what else "neither a LoRA factor nor a weight of the base; ")
            + "only plain LoRA of linear layers can be routed."
        )
    return f"{match['module']}.{match['leaf']}"
