"""Which base model a run loads, and how: resolved before any weight is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Final, Literal

from safetensors import SafetensorError

from gks_eval.errors import GksError, HubError, LibraryError, UsageError, did_you_mean, reason
from gks_eval.library.manifest import LibraryConfig
from gks_eval.method.setting import NotGiven, digest
from gks_eval.model.embedded import resolve_base_model

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

__all__ = [
    "UNLOADABLE",
    "BaseModel",
    "Quantization",
    "check_near",
    "check_quantization",
    "check_unknown",
    "choose_device",
    "content_stamp",
    "quantization_config",
    "unloadable",
]

Quantization = Literal["none", "nf4", "int8"]

# What transformers and lm-eval raise on a base or arguments that are no good. RuntimeError: shapes
# that do not fit the config; a pickle with more than tensors in it is refused by torch.
UNLOADABLE: Final = (
    OSError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError,
    SafetensorError, UnpicklingError,
)  # fmt: skip

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
        quantization: What is asked for; ``nf4`` and ``int8`` are made on loading, by bitsandbytes.
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
        load_in_4bit: bool | int | str | NotGiven,
        load_in_8bit: bool | int | str | NotGiven,
    ) -> BaseModel:
        """Combine the arguments with what library.yaml says; an argument wins.

        Raises:
            UsageError: No base is named, or both 4 and 8 bits are asked for.
            LibraryError: An embedded base is named whose package is not installed.
        """
        four, eight = _switch("load_in_4bit", load_in_4bit), _switch("load_in_8bit", load_in_8bit)
        if four and eight:
            raise UsageError("load_in_4bit and load_in_8bit are both set; choose one.")
        name = pretrained or (manifest.base_model if manifest else None)
        if name is None:
            raise UsageError("name the base model with pretrained=..., or a library that does.")
        own_revision = manifest.revision if manifest and name == manifest.base_model else None
        given = None if isinstance(revision, NotGiven) else revision
        quantization: Quantization = manifest.load.quantization if manifest else "none"
        if four:
            quantization = "nf4"
        elif eight:
            quantization = "int8"
        elif (four is False and quantization == "nf4") or (
            eight is False and quantization == "int8"
        ):
            quantization = "none"
        return cls(
            name=name,
            source=resolve_base_model(str(name)),
            revision=given or own_revision or "main",
            quantization=quantization,
            differs_from_library=manifest is not None and name != manifest.base_model,
        )


def content_stamp(source: str) -> str | None:
    """Return a digest that changes when a local model folder does; None for a hub id.

    It covers the names, sizes and times of all files, as reading gigabytes of weights would cost
    more than the evaluation it protects.
    """
    folder = Path(source)
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return digest({"files": facts})


def _switch(name: str, value: bool | int | str | NotGiven) -> bool | None:
    if isinstance(value, NotGiven):
        return None
    # lm-eval's command line makes 1 an int and leaves `true` a word.
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise UsageError(f"{name}={value} is neither True nor False.")
    return word in ("true", "1")


def check_quantization(base: BaseModel, config: object) -> None:
    """Refuse to quantise a base that is saved quantised in another way.

    transformers would keep what is saved, with a warning at best.

    Raises:
        UsageError: 4 or 8 bits are asked for, and the base is saved in something else.
    """
    from gks_eval.model.quantized import saved_quantization

    saved = saved_quantization(config)
    if base.quantization != "none" and saved not in ("none", base.quantization):
        argument = "load_in_8bit" if base.quantization == "int8" else "load_in_4bit"
        raise UsageError(
            f"base model {base.name} is saved quantised ({saved}) and cannot be loaded as "
            f"{base.quantization}; give {argument}=False to run it as it is saved, or name an "
            "unquantised base with pretrained=..."
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
    arguments: Iterable[str], known: frozenset[str], config: object | None = None
) -> None:
    """Refuse arguments that nothing would read, before a long load ignores or trips over them.

    Args:
        arguments: Their names.
        known: Names that the model class takes.
        config: The base's config, whose attributes transformers lets arguments override.

    Raises:
        UsageError: An argument is unknown; the sentence suggests the nearest name.
    """
    for name in arguments:
        if name not in known and name not in FROM_PRETRAINED and not hasattr(config, name):
            near = did_you_mean(name, known | FROM_PRETRAINED)
            hint = near if near.startswith("did") else "docs/running.md lists the arguments"
            raise UsageError(f"unknown argument {name}; {hint}.")  # its value may be a secret


def check_near(arguments: Iterable[str], own: frozenset[str]) -> None:
    """Refuse misspelt names of ours at once, before a library or base is looked for.

    What else is unknown may be an attribute of the base's config, which is read later: see
    `check_unknown`.

    Args:
        arguments: Names that the harness's own model class does not take.
        own: Names of ours.

    Raises:
        UsageError: One is near to one of ours.
    """
    for name in arguments:
        # Much nearer than elsewhere: bases do have attributes such as attn_temperature_tuning.
        near = difflib.get_close_matches(name, own - {name}, n=1, cutoff=0.8)
        if near and name not in FROM_PRETRAINED:
            raise UsageError(f"unknown argument {name}; did you mean {near[0]!r}?")


def choose_device(asked: str | None) -> str:
    """Return the device asked for; the GPU, else the CPU, where nothing was asked for.

    Raises:
        UsageError: There is no such device here.
    """
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UsageError(f"device={asked} is no device; known: cpu, cuda, cuda:0, mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        return "cpu"  # lm-eval's command line says cuda:0 where the user says nothing
    if device.type == "meta" or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise UsageError(f"device={asked} is not on this machine; leave it out to have one chosen.")
    return asked


def unloadable(error: Exception, base: BaseModel | None) -> GksError:
    """Turn what transformers and lm-eval raise on bad arguments into a sentence.

    Args:
        error: Whatever exception came up first.
        base: The base that was being loaded; None for a model handed over.
    """
    name = base.name if base else "the model"
    if isinstance(error, OSError) and base is not None and not Path(base.source).exists():
        return HubError(
            f"base model {name} is no local folder and could not be fetched from the hub "
            f"({reason(error)}); check the name, go online once, or name a folder with "
            "pretrained=..."
        )
    if isinstance(error, UnpicklingError):
        return LibraryError(
            f"base model {name} holds pickled weights with more than tensors in them, which can "
            "run code when read; use one with safetensors."
        )
    if isinstance(error, SafetensorError):
        return LibraryError(
            f"base model {name} has weights that cannot be read ({reason(error)}); copy or "
            "download it again."
        )
    return UsageError(
        f"base model {name} could not be loaded with these arguments: {reason(error)}."
    )
