"""Which layers the config of an exported adapter names: those that its sources' configs name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from gks_eval.library.peft_adapter import Adapter
from gks_eval.library.peft_config import read_config

__all__ = ["target_fields"]


def target_fields(sources: Sequence[Adapter], layers: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a LoraConfig that select the layers of an adapter made of `sources`.

    Args:
        sources: One expert, or all that were merged.
        layers: Names of the layers that the new adapter updates.
    """
    first = sources[0]
    targets, names = first.targets, sorted(layers)
    config, _ = read_config(first.folder, first.name)
    fields: dict[str, Any] = {"fan_in_fan_out": bool(config.get("fan_in_fan_out"))}
    if any(replace(other.targets, path=targets.path) != targets for other in sources):
        return {**fields, "target_modules": names}
    modules = targets.modules
    if modules is None or targets.all_linear:
        # Both depend on the model; for this model, the last parts of the names select the same.
        modules = tuple({name.rpartition(".")[2] for name in names})
    return {
        **fields,
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
        "exclude_modules": _plain(targets.exclude),
        "layers_to_transform": _plain(targets.layers),
        "layers_pattern": _plain(targets.layers_pattern),
    }


def _plain(value: tuple[Any, ...] | str) -> list[Any] | str | None:
    return (value if isinstance(value, str) else list(value)) or None
