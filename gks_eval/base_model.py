"""Which base model a run loads, and how: resolved before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from gks_eval.config.library import LibraryConfig
from gks_eval.config.setting import NotGiven
from gks_eval.embedded import resolve_base_model
from gks_eval.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

__all__ = ["BaseModel", "Quantization", "check_unknown", "quantization_config"]

Quantization = Literal["none", "nf4", "int8"]

# What transformers' from_pretrained takes beside the attributes of the model's config.
FROM_PRETRAINED: Final = frozenset(
    "attn_implementation cache_dir code_revision device_map experts_implementation "
    "force_download generation_config ignore_mismatched_sizes key_mapping local_files_only "
    "low_cpu_mem_usage max_memory offload_buffers offload_state_dict proxies token "
    "use_kernels use_safetensors variant weights_only".split()
)


@dataclass(frozen=True)
class BaseModel:
    """The base of a run.

    Attributes:
        name: As the user or the library names it.
        source: What transformers loads: a hub id or a local folder.
        revision: On the hub.
        quantization: ``nf4`` and ``int8`` are made on loading, by bitsandbytes.
        differs_from_library: Whether the library was made for a base of another name.
    """

    name: str
    source: str
    revision: str
    quantization: Quantization
    differs_from_library: bool

    @classmethod
    def resolve(
        cls,
        pretrained: str | None,
        revision: str | NotGiven | None,
        manifest: LibraryConfig | None,
        load_in_4bit: bool | NotGiven,
        load_in_8bit: bool | NotGiven,
    ) -> BaseModel:
        """Combine the arguments with what library.yaml says; an argument wins.

        Raises:
            UsageError: No base is named, or both 4 and 8 bits are asked for.
            LibraryError: An embedded base is named whose package is not installed.
        """
        if load_in_4bit is True and load_in_8bit is True:
            raise UsageError("load_in_4bit and load_in_8bit are both set; choose one.")
        name = pretrained or (manifest.base_model if manifest else None)
        if name is None:
            raise UsageError("name the base model with pretrained=..., or a library that does.")
        own_revision = manifest.revision if manifest and name == manifest.base_model else None
        given = None if isinstance(revision, NotGiven) else revision
        quantization: Quantization = manifest.load.quantization if manifest else "none"
        if load_in_4bit is True:
            quantization = "nf4"
        elif load_in_8bit is True:
            quantization = "int8"
        elif not isinstance(load_in_4bit, NotGiven) or not isinstance(load_in_8bit, NotGiven):
            quantization = "none"
        return cls(
            name=name,
            source=resolve_base_model(name),
            revision=given or own_revision or "main",
            quantization=quantization,
            differs_from_library=manifest is not None and name != manifest.base_model,
        )


def quantization_config(quantization: Quantization) -> BitsAndBytesConfig | None:
    """Return what transformers needs to quantise on loading.

    NF4 with bfloat16 computation and no double quantisation, as the paper has it; LLM.int8 for
    ``int8``.
    """
    if quantization == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=False,
    )


def check_unknown(
    arguments: Mapping[str, Any], known: frozenset[str], config: object | None = None
) -> None:
    """Refuse arguments that nothing would read, before a long load ignores or trips over them.

    Args:
        arguments: By name, as given.
        known: Names that the model class takes.
        config: The base's config, whose attributes transformers lets arguments override.

    Raises:
        UsageError: An argument is unknown; the sentence suggests the nearest name.
    """
    for name in arguments:
        if name not in known and name not in FROM_PRETRAINED and not hasattr(config, name):
            near = did_you_mean(name, known | FROM_PRETRAINED)
            hint = near if near.startswith("did") else "see the README for the arguments there are"
            raise UsageError(f"unknown argument {name}={arguments[name]}; {hint}.")
