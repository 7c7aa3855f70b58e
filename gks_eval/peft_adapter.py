"""Reading one PEFT LoRA folder: adapter_config.json and adapter_model.safetensors.

Whatever a routed layer could not reproduce exactly is refused rather than approximated.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from gks_eval.errors import LibraryError
from gks_eval.files import sha256_of
from gks_eval.lora import LoraPair

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Adapter", "read_adapter"]

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
PICKLED: Final = (
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.pth",
    "adapter_model.ckpt",
)

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.\w+)?\.weight"
)

# PEFT's own are of a few kilobytes.
_MAX_CONFIG_BYTES: Final = 4 << 20

# Patterns come from whoever made the adapter. A repeated group, or many repeats beside each other,
# can keep the regular expressions' engine busy for years.
_REPEATED_GROUP: Final = re.compile(r"\)\s*[*+{]")
_REPEAT: Final = re.compile(r"(?<!\\)[*+?{]")
_MAX_PATTERN: Final = (300, 3)  # characters, repeats
_MAX_NAME: Final = 200

# Fields of a LoRA config that, when set, make the forward more than dW = s B A.
_UNSUPPORTED: Final = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in B",
    "fan_in_fan_out": "transposed (Conv1D) weights",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "parameters outside linear layers",
    "arrow_config": "a router of its own",
}
# Starts that also change the base's weights, which the adapter then relies on.
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """One adapter as loaded.

    Attributes:
        name: How messages call it.
        folder: Where it was read from.
        pairs: Its update of each linear layer, by the layer's name in the base model.
        base_model: Name of the base it was trained on, as its config says; may be empty.
        digest: SHA-256 of its config and weights, hex.
        weights_sha256: SHA-256 of the weights file alone, hex.
        init: The config's ``init_lora_weights``.
        partial_layers: Whether its config limits it to some layers on purpose.
    """

    name: str
    folder: Path
    pairs: Mapping[str, LoraPair] = field(repr=False)
    base_model: str
    digest: str
    weights_sha256: str
    init: Any
    partial_layers: bool


def read_adapter(folder: Path, name: str) -> Adapter:
    """Read the adapter in `folder`; factors come in float32.

    Raises:
        LibraryError: A file is missing, pickled, truncated or malformed, a tensor is not finite, or
            the adapter is of a kind that routed layers do not support.
    """
    config, config_bytes = _read_config(folder, name)
    _refuse_unsupported(config, folder, name)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise _missing_weights(folder, name)
    factors = _read_factors(weights, name)
    scaling = _Scaling(config, folder / CONFIG_FILE)
    pairs: dict[str, LoraPair] = {}
    for module, found in sorted(factors.items()):
        if set(found) != {"A", "B"}:
            lacking = "A" if "B" in found else "B"
            raise LibraryError(
                f"{weights}: {module} has no lora_{lacking}; the file is incomplete, copy it anew."
            )
        A, B = found["A"], found["B"]
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or A.shape[0] == 0:
            raise LibraryError(
                f"{weights}: {module} has factors of shape {tuple(A.shape)} and {tuple(B.shape)}, "
                "which are not (rank, in) and (out, rank); export the adapter anew."
            )
        pairs[module] = LoraPair(A, B, scaling.of(module, A.shape[0]))
    weights_sha256 = sha256_of(weights)
    return Adapter(
        name=name,
        folder=folder,
        pairs=pairs,
        base_model=str(config.get("base_model_name_or_path") or ""),
        digest=hashlib.sha256(config_bytes + weights_sha256.encode()).hexdigest(),
        weights_sha256=weights_sha256,
        init=config.get("init_lora_weights"),
        partial_layers=_names_layers(config),
    )


def _names_layers(config: Mapping[str, Any]) -> bool:
    """Tell whether the config says on purpose which layers are updated."""
    targets = config.get("target_modules")
    if isinstance(targets, str):
        return targets != "all-linear"  # a regular expression for whole names
    named = targets if isinstance(targets, list) else []
    return (
        config.get("layers_to_transform") not in (None, [])
        or bool(config.get("exclude_modules"))
        or any(re.search(r"\.\d+\.", str(name)) for name in named)
    )


def _read_config(folder: Path, name: str) -> tuple[dict[str, Any], bytes]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise LibraryError(
            f"{folder} (adapter {name!r}) has no {CONFIG_FILE}; point at the folder that PEFT's "
            "save_pretrained wrote."
        )
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise LibraryError(f"{path} is larger than 4 MiB, which no LoRA config is; check it.")
        raw = path.read_bytes()
        config = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise LibraryError(f"{path} is no readable JSON ({error}); copy it anew.") from None
    if not isinstance(config, dict):
        raise LibraryError(f"{path} holds no JSON object; copy it anew.")
    return config, raw


def _refuse_unsupported(config: Mapping[str, Any], folder: Path, name: str) -> None:
    path = folder / CONFIG_FILE
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise LibraryError(
            f"{path}: adapter {name!r} is of kind {kind!s:.40}; only LORA can be routed."
        )
    for name_in_config, what in _UNSUPPORTED.items():
        if config.get(name_in_config):
            raise LibraryError(
                f"{path}: adapter {name!r} uses {what} ({name_in_config}), which routed layers do "
                "not support; train it without."
            )
    if (config.get("bias") or "none") != "none":
        raise LibraryError(
            f"{path}: adapter {name!r} trained biases (bias={config['bias']!r}), which routed "
            "layers do not support; train it with bias='none'."
        )
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(_CHANGES_BASE):
        raise LibraryError(
            f"{path}: adapter {name!r} started from {init}, which changes the base's weights; "
            "convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion."
        )


def _missing_weights(folder: Path, name: str) -> LibraryError:
    for pickled in PICKLED:
        if (folder / pickled).exists():
            return LibraryError(
                f"{folder / pickled} (adapter {name!r}) is a pickle, which can run code when read; "
                f"convert it once with: gks-eval convert bin {folder}"
            )
    return LibraryError(f"{folder} (adapter {name!r}) has no {WEIGHTS_FILE}; copy it anew.")


def _read_factors(path: Path, name: str) -> dict[str, dict[str, torch.Tensor]]:
    factors: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                match = _KEY.fullmatch(key)
                if match is None or len(match["module"]) > _MAX_NAME:
                    raise LibraryError(
                        f"{path}: adapter {name!r} holds {key!r:.{_MAX_NAME}}, which is no LoRA "
                        "factor of a linear layer; only plain LoRA can be routed."
                    )
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    raise LibraryError(
                        f"{path}: {key} is of type {tensor.dtype}, not of floats; export the "
                        "adapter anew."
                    )
                # Checked as float32, which a large float64 overflows.
                values = tensor.float()
                if not bool(torch.isfinite(values).all()):
                    raise LibraryError(
                        f"{path}: {key} holds NaN or Inf; the training diverged, train it anew."
                    )
                found = factors.setdefault(match["module"], {})
                if match["factor"] in found:
                    raise LibraryError(
                        f"{path}: {key} is a second lora_{match['factor']} of the same layer; "
                        "save one adapter a folder."
                    )
                found[match["factor"]] = values
    except (SafetensorError, OSError, ValueError, NotImplementedError) as error:
        # The last for types that torch can hold and not convert, such as 4-bit floats.
        raise LibraryError(
            f"{path} (adapter {name!r}) is no readable safetensors file ({error}); copy it anew."
        ) from None
    if not factors:
        raise LibraryError(f"{path} (adapter {name!r}) holds no LoRA factors; export it anew.")
    return factors


class _Scaling:
    """lora_alpha / rank of each module, with PEFT's per-module patterns."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._path = path
        self._alpha = self._number(config.get("lora_alpha", 8), "lora_alpha")
        self._rank = self._number(config["r"], "r") if config.get("r") is not None else None
        self._alphas = self._patterns(config, "alpha_pattern")
        self._ranks = self._patterns(config, "rank_pattern")
        self._rank_stabilised = bool(config.get("use_rslora"))

    def _patterns(
        self, config: Mapping[str, Any], field: str
    ) -> list[tuple[re.Pattern[str], float]]:
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict):
            raise LibraryError(
                f"{self._path}: {field} is no mapping of names to numbers; correct it, or copy the "
                "file anew."
            )
        return [
            (self._pattern(str(key), field), self._number(value, f"{field}.{key}"))
            for key, value in patterns.items()
        ]

    def _pattern(self, text: str, field: str) -> re.Pattern[str]:
        characters, repeats = _MAX_PATTERN
        if (
            len(text) > characters
            or len(_REPEAT.findall(text)) > repeats
            or _REPEATED_GROUP.search(text)
        ):
            raise LibraryError(
                f"{self._path}: {field} {text!r:.60} is too intricate to be matched safely; write "
                "module names, or simple patterns without repeated groups."
            )
        try:
            # PEFT's own rule: a regular expression for a whole dotted suffix of the name.
            return re.compile(rf"(.*\.)?({text})$")
        except re.error as error:
            raise LibraryError(
                f"{self._path}: {field} {text!r:.60} is malformed ({error}); correct it."
            ) from None

    def _number(self, value: Any, field: str) -> float:
        # Compared as they are: JSON admits whole numbers that no float can hold.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:
            raise LibraryError(
                f"{self._path}: {field} is {value!r:.40}, not a finite number above 0; correct it, "
                "or copy the file anew."
            )
        return float(value)

    @staticmethod
    def _first(
        patterns: list[tuple[re.Pattern[str], float]], module: str, default: float | None
    ) -> float | None:
        return next((value for pattern, value in patterns if pattern.match(module)), default)

    def of(self, module: str, rank: int) -> float:
        said = self._first(self._ranks, module, self._rank)
        if said is not None and said != rank:
            raise LibraryError(
                f"{self._path}: says rank {said:g} for {module}, whose factors are of rank {rank}; "
                "config and weights belong to different adapters, copy both anew."
            )
        alpha = self._first(self._alphas, module, self._alpha)
        assert alpha is not None
        return alpha / (math.sqrt(rank) if self._rank_stabilised else rank)
