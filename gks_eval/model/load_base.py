"""Loading a base model that `gks_eval.model.base_model` resolved, and its errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError

from gks_eval.errors import GksError, HubError, LibraryError, ResourceError, UsageError, reason
from gks_eval.model.base_model import BaseWords, ResolvedBase, check_quantization
from gks_eval.model.quantized import keep_portable_layout
from gks_eval.util.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "load_model",
    "load_tokenizer",
    "loading",
    "local_outline",
    "outline_of",
    "quantization_config",
    "warn_if_emulated",
]

logger = logging.getLogger(__name__)

# What transformers and lm-eval raise on an unusable base or unusable arguments. RuntimeError:
# shapes that do not match the config. UnpicklingError: a pickle that holds more than tensors.
_UNLOADABLE: Final = (
    OSError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError, MemoryError,
    SafetensorError, UnpicklingError,
)  # fmt: skip


def load_tokenizer(base: ResolvedBase) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer.

    Raises:
        GksError: As `loading`.
    """
    from transformers import AutoTokenizer

    with loading(base):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base.source, revision=base.revision
        )
    return tokenizer


def outline_of(base: ResolvedBase, dtype: torch.dtype) -> PreTrainedModel:
    """Return the base on the meta device: its layers without weights.

    The files of a local base are opened as `load_model` opens them, so that missing, torn or
    unfitting ones are found. Of a base on the hub only the configuration is downloaded.

    Raises:
        GksError: As `loading`.
        UsageError: As `check_quantization`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from gks_eval.library.fit import meta_model

    with loading(base):
        config = AutoConfig.from_pretrained(base.source, revision=base.revision)
        check_quantization(base, config)
        model: Any
        if Path(base.source).is_dir() and not hasattr(config, "quantization_config"):
            model = AutoModelForCausalLM.from_pretrained(
                base.source, dtype=dtype, device_map="meta"
            )
        else:
            model = meta_model(config)
    outline: PreTrainedModel = model
    return outline


def local_outline(base: ResolvedBase) -> nn.Module | None:
    """Return the base on the meta device from its configuration alone, without the network.

    Returns:
        None if this machine does not have the configuration.

    Raises:
        GksError: As `loading`, if the base is a local folder.
    """
    from transformers import AutoConfig

    from gks_eval.library.fit import meta_model

    try:
        with loading(base):
            config = AutoConfig.from_pretrained(
                base.source, revision=base.revision, local_files_only=True
            )
            return meta_model(config)
    except GksError:
        if Path(base.source).is_dir():
            raise
        return None


def load_model(base: ResolvedBase, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load the base, as a causal language model in evaluation mode.

    Args:
        base: What to load.
        dtype: Of all weights that are not quantised.
        device: Where the model goes.

    Raises:
        GksError: As `loading`.
        UsageError: As `check_quantization`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    how: dict[str, Any] = {"dtype": dtype, "revision": base.revision}
    if base.quantization != "none":
        how["quantization_config"] = quantization_config(base)
        how["device_map"] = {"": device}
    else:
        warn_if_emulated(dtype, device, base.words)
    with loading(base, str(device)):
        config = AutoConfig.from_pretrained(base.source, revision=base.revision)
        check_quantization(base, config)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base.source, **how)
        if base.quantization == "none":
            model.to(device)  # type: ignore[arg-type]
    keep_portable_layout(model)
    return model


@cache  # a library's training loads the base once per adapter
def warn_if_emulated(dtype: torch.dtype, device: torch.device, words: BaseWords) -> None:
    """Warn once if this CPU has no instructions for the dtype of a base.

    Args:
        dtype: Of its weights.
        device: Where they are.
        words: What the mend is called.
    """
    from gks_eval.util.hardware import is_emulated

    if is_emulated(dtype, device):
        logger.warning(
            "This CPU computes %s products many times slower than float32; set %s.",
            str(dtype).removeprefix("torch."),
            words.float32,
        )


def quantization_config(base: ResolvedBase) -> BitsAndBytesConfig | None:
    """Return what transformers needs to quantise on loading.

    For ``nf4``, NF4 without double quantisation; the layers compute in `base.compute_dtype`, which
    is bfloat16 by default (the authors' code: float16). For ``int8``, LLM.int8.
    """
    if base.quantization == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if base.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, base.compute_dtype),
        bnb_4bit_use_double_quant=False,
    )


@contextmanager
def loading(base: ResolvedBase | None, device: str = "the device") -> Iterator[None]:
    """Turn what transformers and lm-eval raise on a bad base or bad arguments into a sentence.

    Args:
        base: The base that is loaded; None for a model that the caller loaded itself.
        device: Where it goes.

    Raises:
        HubError: The folder or the hub's base does not exist, or the hub cannot be reached.
        LibraryError: The base's files are torn or do not belong together, or run code.
        ResourceError: The base needs more memory than there is.
        UsageError: It cannot be loaded with the arguments given.
    """
    try:
        yield
    except _UNLOADABLE as error:
        raise _sentence(error, base, device) from error


def _sentence(error: Exception, base: ResolvedBase | None, device: str) -> GksError:
    why = reason(error)
    if base is None:
        return UsageError(f"the model cannot be used with these arguments: {why}.")
    name, words, folder = f"base model {base.name}", base.words, Path(base.source)
    if is_out_of_memory(error):
        return ResourceError(
            f"{name} does not fit into the memory of {device}; load it with {words.smaller}, or on "
            "a larger device."
        )
    if folder.is_absolute() and not folder.exists():
        return HubError(f"{name}: the folder does not exist; give {words.name} another path.")
    if isinstance(error, OSError) and not folder.exists():
        return HubError(
            f"{name} is no local folder and could not be fetched from the hub ({why}); check "
            f"{words.name} and the revision, name a local folder, or go online once."
        )
    if isinstance(error, UnpicklingError):
        return LibraryError(
            f"{name} holds pickled weights with more than tensors in them, which can run code when "
            "read; use one with safetensors."
        )
    if isinstance(error, SafetensorError):
        return LibraryError(
            f"{name} has weights that cannot be read ({why}); copy or download it again."
        )
    if words.free_arguments:
        return UsageError(f"{name} could not be loaded with these arguments: {why}.")
    return LibraryError(
        f"{name} could not be loaded ({why}); its files are not whole or do not belong together, "
        "copy or download them again."
    )
