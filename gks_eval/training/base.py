"""The base model that adapters are trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.errors import HubError, ResourceError, UsageError, reason
from gks_eval.model.base_model import quantization_config
from gks_eval.model.embedded import resolve_base_model
from gks_eval.model.quantized import keep_portable_layout, saved_quantization
from gks_eval.training.limits import is_out_of_memory
from gks_eval.training.recipe import BaseLoad, Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Base", "load_base", "load_tokenizer", "outline_of", "pick_device", "place_of"]


@dataclass(frozen=True)
class Base:
    """A base model in memory.

    Attributes:
        model: The causal language model, nothing of it trainable.
        place: Hub id or path that it came from.
        revision: Commit on the hub, where known.
    """

    model: PreTrainedModel
    place: str
    revision: str | None


def pick_device(load: BaseLoad) -> torch.device:
    """Return the device that a recipe trains on.

    Raises:
        ResourceError: The recipe insists on a GPU and there is none.
    """
    import torch

    if load.device == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "load.device: the recipe needs a GPU and none is visible; run it on a machine with one,"
            " or set `device: auto`."
        )
    if load.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Under torchrun each process has a GPU of its own.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def place_of(recipe: Recipe, root: Path) -> str:
    """Return what transformers is to load: a path, or a hub id."""
    name = recipe.base_model
    if name.startswith("."):
        return str((root / name).resolve())
    return resolve_base_model(name)


def load_tokenizer(recipe: Recipe, root: Path) -> PreTrainedTokenizerBase:
    """Return the base model's tokenizer.

    Raises:
        HubError: It can be found neither locally nor on the hub.
    """
    from transformers import AutoTokenizer

    place = place_of(recipe, root)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, revision=recipe.revision
        )
    except (OSError, ValueError) as error:
        raise _not_found(place, error) from error
    return tokenizer


def outline_of(recipe: Recipe, root: Path) -> PreTrainedModel:
    """Return the base model on the meta device: its layers without a weight.

    The files of a local base are looked at as `load_base` would, so that a missing, torn or
    unfitting one is found; of a base on the hub only its configuration is downloaded.

    Raises:
        HubError: It can be found neither locally nor on the hub, or cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    from gks_eval.library.fit import meta_model

    place = place_of(recipe, root)
    try:
        config = AutoConfig.from_pretrained(place, revision=recipe.revision)
        _check_saved(place, config, recipe.load)
        if Path(place).is_dir() and not hasattr(config, "quantization_config"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                place, dtype=getattr(torch, recipe.load.dtype), device_map="meta"
            )
        else:
            model = meta_model(config)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_found(place, error) from error
    outline: PreTrainedModel = model
    return outline


def load_base(recipe: Recipe, root: Path, load: BaseLoad | None = None) -> Base:
    """Load the base model.

    Args:
        recipe: Names the base.
        root: Folder that its relative path starts from.
        load: How, where it is not the recipe's own `load`.

    Raises:
        HubError: It can be found neither locally nor on the hub.
        ResourceError: It needs a GPU that is not there, or more memory than there is.
        UsageError: It is saved quantised, in another way than it is to be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    place = place_of(recipe, root)
    load = load or recipe.load
    device = pick_device(load)
    how: dict[str, Any] = {"dtype": getattr(torch, load.dtype), "revision": recipe.revision}
    if load.quantization == "nf4":
        how["quantization_config"] = quantization_config("nf4")
        how["device_map"] = {"": device}
    try:
        _check_saved(place, AutoConfig.from_pretrained(place, revision=recipe.revision), load)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, **how)
        if load.quantization == "none":
            model.to(device)  # type: ignore[arg-type]
    except (OSError, ValueError, RuntimeError, MemoryError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"base model {place}: does not fit into the memory of {device}; load it with"
                " `load: {quantization: nf4}` or `dtype: bfloat16`, or on a larger device."
            ) from error
        raise _not_found(place, error) from error
    keep_portable_layout(model)
    model.requires_grad_(False)
    return Base(model, place, getattr(model.config, "_commit_hash", None))


def _check_saved(place: str, config: object, load: BaseLoad) -> None:
    # transformers would keep what is saved, with a warning at best.
    saved = saved_quantization(config)
    if saved not in ("none", load.quantization):
        raise UsageError(
            f"base model {place}: is saved quantised ({saved}) and is to be loaded with"
            f" `quantization: {load.quantization}`; name an unquantised base in `base_model`."
        )


def _not_found(place: str, error: Exception) -> HubError:
    if Path(place).is_absolute() and not Path(place).exists():
        return HubError(f"base model {place}: there is no such folder; check `base_model`.")
    if Path(place).exists():
        return HubError(
            f"base model {place}: cannot be loaded ({reason(error)}); its files are not whole or "
            "do not belong together, copy or download them again."
        )
    return HubError(
        f"base model {place}: cannot be loaded ({reason(error)}); check the name, `revision` and "
        "the network."
    )
