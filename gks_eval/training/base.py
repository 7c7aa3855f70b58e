"""The base model of a recipe, loaded for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.model.base_model import ResolvedBase, recipe_base
from gks_eval.model.device import recipe_device
from gks_eval.model.load_base import load_model
from gks_eval.training.recipe import BaseLoad, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["base_of", "load_frozen_base"]


def base_of(recipe: Recipe, root: Path, load: BaseLoad | None = None) -> ResolvedBase:
    """Return the base that a recipe names.

    Args:
        recipe: The recipe.
        root: Its folder.
        load: How to load the base, instead of the recipe's own `load`.

    Raises:
        GksError: As `gks_eval.model.base_model.recipe_base`.
    """
    quantization = (load or recipe.load).quantization
    return recipe_base(recipe.base_model, root, recipe.revision, quantization)


def load_frozen_base(recipe: Recipe, root: Path, load: BaseLoad | None = None) -> PreTrainedModel:
    """Load the base of a recipe, with no trainable parameter.

    Args:
        recipe: The recipe.
        root: Its folder.
        load: How to load the base, instead of the recipe's own `load`.

    Raises:
        GksError: As `gks_eval.model.load_base.load_model`.
        ResourceError: The recipe needs a GPU and there is none.
    """
    import torch

    load = load or recipe.load
    device = recipe_device(load.device)
    model = load_model(base_of(recipe, root, load), getattr(torch, load.dtype), device)
    return model.requires_grad_(False)
