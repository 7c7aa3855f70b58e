"""Finished adapters -> library.yaml, with their hashes and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gks_eval.errors import LibraryError
from gks_eval.library import writer
from gks_eval.library.manifest import LibraryConfig
from gks_eval.library.peft_adapter import RECORD
from gks_eval.model.base_model import relative_to_recipe
from gks_eval.training.jobs import TrainingPlan
from gks_eval.util.json_file import read_or_empty
from gks_eval.util.paths import MANIFEST
from gks_eval.util.versions import versions
from gks_eval.util.yaml import load_typed

__all__ = ["check_library_output", "is_foreign", "write_trained_manifest"]


def is_foreign(output: Path) -> bool:
    """Return whether a folder has a manifest that training did not write.

    Raises:
        ConfigError: The manifest has faults.
    """
    manifest = output / MANIFEST
    return manifest.is_file() and "recipe" not in load_typed(manifest, LibraryConfig).provenance


def check_library_output(output: Path) -> None:
    """Refuse a folder with a manifest that training did not write and would overwrite.

    Raises:
        LibraryError: The folder has such a manifest.
        ConfigError: The manifest has faults.
    """
    if is_foreign(output):
        raise LibraryError(
            f"{output / MANIFEST}: was not written by training and would be overwritten; give"
            " another folder with --output, or name single adapters with --only."
        )


def write_trained_manifest(plan: TrainingPlan, output: Path) -> Path:
    """Write library.yaml for a library whose adapters are all finished.

    Args:
        plan: The recipe's jobs.
        output: The library's folder.

    Returns:
        The manifest's path.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    recipe = plan.recipe
    records = {job.key: read_or_empty(output / job.key / RECORD) for job in plan.jobs}
    manifest: dict[str, Any] = {"base_model": relative_to_recipe(recipe.base_model, plan.root)}
    revision = recipe.revision or next(iter(records.values())).get("base_revision")
    if revision:
        manifest["revision"] = revision
    for kind in ("experts", "general"):
        named = {job.name: job.key for job in plan.jobs if job.kind == kind}
        if named or kind == "experts":
            manifest[kind] = named
    if recipe.load.quantization != "none":
        manifest["load"] = {"quantization": recipe.load.quantization}
    manifest["hashes"] = {key: record["sha256"] for key, record in records.items()}
    manifest["provenance"] = {
        "recipe": plan.recipe_hash,
        "seed": recipe.seed,
        "start": recipe.start,
        "init": recipe.adapter.init,
        "versions": versions(),
        **({"remarks": remarks} if (remarks := plan.remarks()) else {}),
        "adapters": {key: _summary(record) for key, record in records.items()},
    }
    return writer.write_manifest(
        output, manifest, "Written by `gks-eval train`; the recipe is the source."
    )


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    keys = (
        *("data", "begins_with", "rows", "tokens"),
        *("steps", "loss_first", "loss_last", "held_out"),
    )
    return {key: record[key] for key in keys if key in record}
