"""The recipe that a library was trained from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gks_eval.cli.train import find_recipe
from gks_eval.errors import UsageError
from gks_eval.util.paths import RECIPE

if TYPE_CHECKING:
    from gks_eval.library.library import Library
    from gks_eval.training.jobs import TrainingPlan

__all__ = ["recipe_of"]


def recipe_of(library: Library, recipe: str | None, option: str = "--recipe") -> TrainingPlan:
    """Return the jobs of the recipe that was given, else of the library's own.

    Args:
        library: The library.
        recipe: What the option names.
        option: The option, for the error.

    Raises:
        UsageError: There is no recipe.
        ConfigError: It has faults.
    """
    from gks_eval.training.jobs import make_plan

    own = library.path.parent / RECIPE
    if recipe is None and not own.is_file():
        raise UsageError(f"library {library.name} has no {RECIPE}; name one with {option}.")
    plan = make_plan(own if recipe is None else find_recipe(recipe))
    trained = library.config.provenance.get("recipe")
    if trained is not None and trained != plan.recipe_hash:
        typer.echo(
            "Warning: the library was trained from another version of this recipe, so its training "
            "rows and held-out rows may differ.",
            err=True,
        )
    return plan
