"""The LoraConfig of a saved adapter: what is refused, its scalings, and the layers it names."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import regex

from gks_eval.errors import LibraryError
from gks_eval.util.json_file import JsonFile

__all__ = ["CONFIG_FILE", "Scaling", "Targets", "read_config", "refuse_unsupported"]

CONFIG_FILE: Final = "adapter_config.json"
# The configs that PEFT writes are a few kilobytes long.
_FILE: Final = JsonFile("LoRA config", LibraryError, "copy it again", limit=4 << 20, constants=True)

# Patterns come from the adapter's author, and a bad one can take years to match.
_MATCH_SECONDS: Final = 0.5
_MAX_PATTERN: Final = 10_000
# EVA writes a pattern for every layer, more than the cache of `regex` holds.
_compile = lru_cache(maxsize=4096)(regex.compile)

# Fields of a LoRA config that, when set, make the forward more than dW = s B A.
_UNSUPPORTED: Final = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in B",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA of single parameters instead of layers",
    "arrow_config": "its own router",
}
# Initializations that also change the base's weights, so that the adapter needs the changed base.
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "lora_ga")


def read_config(folder: Path, name: str) -> tuple[dict[str, Any], bytes]:
    """Return the content of the adapter's config, and its bytes.

    Raises:
        LibraryError: It is missing or no JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise LibraryError(
            f"{folder} (adapter {name!r}) has no {CONFIG_FILE}; point at the folder that PEFT's "
            "save_pretrained wrote."
        )
    raw = _FILE.read_bytes(path)
    return _FILE.parse(raw, path), raw


def refuse_unsupported(config: Mapping[str, Any], folder: Path, name: str) -> None:
    """Refuse an adapter whose update is more than ``dW = s B A`` per linear layer.

    Raises:
        LibraryError: The config says so.
    """
    path = folder / CONFIG_FILE
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise LibraryError(
            f"{path}: adapter {name!r} is of kind {kind!s:.40}; only LORA can be routed, and "
            "PEFT's save_as_lora converts some other kinds."
        )
    for field, what in _UNSUPPORTED.items():
        if config.get(field):
            raise LibraryError(
                f"{path}: adapter {name!r} uses {what} ({field}), which routed layers do not "
                "support; use an adapter that was trained without it."
            )
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(_CHANGES_BASE):
        raise LibraryError(
            f"{path}: adapter {name!r} started from {init}, which changes the base's weights; "
            "convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion."
        )


class Scaling:
    """lora_alpha / rank of each layer, with PEFT's rank_pattern and alpha_pattern.

    Args:
        config: The content of the config.
        path: Its file, for messages.

    Raises:
        LibraryError: A number or pattern in the config is invalid.
    """

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._path = path
        self._alpha = self._number(config.get("lora_alpha", 8), "lora_alpha")
        self._rank = self._number(config["r"], "r") if config.get("r") is not None else None
        self._alphas = self._patterns(config, "alpha_pattern")
        self._ranks = self._patterns(config, "rank_pattern")
        self._rank_stabilised = bool(config.get("use_rslora"))

    def of(self, module: str, rank: int) -> float:
        """Return the scaling of a layer whose factors have rank `rank`.

        Raises:
            LibraryError: The config gives the layer another rank.
        """
        configured = self._first("rank_pattern", self._ranks, module, self._rank)
        if configured is not None and configured != rank:
            raise LibraryError(
                f"{self._path}: gives rank {configured:g} for {module}, whose factors have rank "
                f"{rank}; config and weights belong to different adapters, copy both again."
            )
        alpha = self._first("alpha_pattern", self._alphas, module, self._alpha)
        assert alpha is not None
        return alpha / (math.sqrt(rank) if self._rank_stabilised else rank)

    def _patterns(self, config: Mapping[str, Any], field: str) -> dict[str, float]:
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict):
            raise LibraryError(
                f"{self._path}: {field} is no mapping of names to numbers; correct it, or copy the "
                "file again."
            )
        return {str(key): self._number(value, f"{field}.{key}") for key, value in patterns.items()}

    def _number(self, value: Any, field: str) -> float:
        # Compared before float(): JSON allows integers that are too large for a float.
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:
            raise LibraryError(
                f"{self._path}: {field} is {value!r:.40}, not a finite number above 0; correct it, "
                "or copy the file again."
            )
        return float(value)

    def _first(
        self, field: str, patterns: Mapping[str, float], module: str, default: float | None
    ) -> float | None:
        # The rule of peft.utils.other.get_pattern_key, but with a time limit: `re` needs
        # hours for (a+)+x on 40 letters.
        where = f"{self._path}: {field}"
        for text, value in patterns.items():
            if _match(text, rf"(.*\.)?({text})$", module, where):
                return value
        return patterns.get(module, default)


@dataclass(frozen=True)
class Targets:
    """Which layers a config names, by the rules of PEFT's ``inject_adapter``.

    Attributes:
        path: The config's file, for messages.
        modules: ``target_modules``: names, a regular expression, ``all-linear``; None where the
            config leaves the choice to PEFT's table of architectures.
        exclude: ``exclude_modules``, names or a regular expression.
        layers: ``layers_to_transform``; empty for all.
        layers_pattern: ``layers_pattern``; empty for any.
    """

    path: Path
    modules: tuple[str, ...] | str | None
    exclude: tuple[str, ...] | str
    layers: tuple[int, ...]
    layers_pattern: tuple[str, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any], path: Path) -> Targets:
        """Take the fields out of a config.

        Raises:
            LibraryError: One is of another type than PEFT writes.
        """

        def listed(field: str, kind: type) -> Any:
            value = config.get(field)
            several = [value] if isinstance(value, (str, int)) else value or []
            if not isinstance(several, list) or not all(type(one) is kind for one in several):
                raise LibraryError(
                    f"{path}: {field} is {value!r:.40}, which PEFT does not write; correct it, or "
                    "copy the file again."
                )
            return value if isinstance(value, str) and kind is str else tuple(several)

        pattern = listed("layers_pattern", str)
        return cls(
            path=path,
            modules=None if config.get("target_modules") is None else listed("target_modules", str),
            exclude=listed("exclude_modules", str),
            layers=listed("layers_to_transform", int),
            layers_pattern=(pattern,) if isinstance(pattern, str) and pattern else tuple(pattern),
        )

    def with_modules(self, modules: tuple[str, ...]) -> Targets:
        """Return a copy with other ``target_modules``."""
        return replace(self, modules=modules)

    @property
    def all_linear(self) -> bool:
        """Whether all linear layers but the output embeddings are named."""
        return isinstance(self.modules, str) and self.modules.lower() == "all-linear"

    def named(self, layers: Iterable[str]) -> set[str]:
        """Return those of `layers` that the config names.

        Args:
            layers: Names of linear layers; for ``all-linear`` without the output embeddings.

        Raises:
            LibraryError: A pattern is malformed, or takes too long.
        """
        return {layer for layer in layers if self._names(layer)}

    def _names(self, layer: str) -> bool:
        if self._in(self.exclude, layer, "exclude_modules"):
            return False
        if self.all_linear:
            return True
        modules = self.modules or ()
        if not self._in(modules, layer, "target_modules"):
            return False
        # As in PEFT, layers_to_transform does not apply to full names and regular expressions.
        if isinstance(modules, str) or layer in modules or not self.layers:
            return True
        index = self._index(layer)
        return index is not None and index in self.layers

    def _in(self, names: tuple[str, ...] | str, layer: str, field: str) -> bool:
        if isinstance(names, str):
            where = f"{self.path}: {field}"
            return bool(names) and _match(names, names, layer, where, whole=True) is not None
        return layer in names or any(layer.endswith(f".{name}") for name in names)

    def _index(self, layer: str) -> int | None:
        for pattern in self.layers_pattern or (r"[^.]*",):
            # The first number in the name is the layer's index; later ones are indices of experts.
            found = _match(
                pattern,
                rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.",
                layer,
                f"{self.path}: layers_pattern",
            )
            if found:
                return int(found["idx"])
        return None


def _match(text: str, pattern: str, name: str, where: str, *, whole: bool = False) -> Any:
    try:
        if len(text) > _MAX_PATTERN:
            raise TimeoutError
        compiled = _compile(pattern)
        match = compiled.fullmatch if whole else compiled.match
        return match(name, timeout=_MATCH_SECONDS)
    except TimeoutError:
        raise LibraryError(
            f"{where} {text!r:.60} takes too long to match; write names of layers, or "
            "simple patterns without repeated groups."
        ) from None
    except (regex.error, RecursionError, OverflowError) as error:
        raise LibraryError(f"{where} {text!r:.60} is malformed ({error}); correct it.") from None
