"""A trained adapter -> its folder: PEFT's two files, the loss curve and the record of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.errors import DataError
from gks_eval.training.recipe import AdapterShape
from gks_eval.util.files import read_json, replaced_folder, sha256_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

__all__ = ["CURVE", "RECORD", "WEIGHTS", "Factors", "is_finished", "write_adapter", "write_factors"]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
RECORD = "training.json"
CURVE = "loss.jsonl"


@dataclass(frozen=True)
class Factors:
    """The factors of a trained adapter under PEFT's names, in the dtype they are saved in."""

    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, model: PeftModel, save_dtype: str, name: str) -> Factors:
        """Take the factors out of a model.

        Raises:
            DataError: One of them is not finite.
        """
        import torch
        from peft import get_peft_model_state_dict

        dtype = getattr(torch, save_dtype)
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        tensors = {key: state[key].detach().to("cpu", dtype).contiguous() for key in sorted(state)}
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise DataError(
                    f"{name}: training diverged, {key} is not finite; lower"
                    " schedule.learning_rate, or set adapter.save_dtype to bfloat16."
                )
        return cls(tensors)


def write_adapter(
    folder: Path,
    factors: Factors,
    shape: AdapterShape,
    base_model: str,
    record: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
) -> None:
    """Write one trained adapter's folder, whole or not at all.

    The same factors give the same bytes: tensors and keys are sorted, and no time is written but
    in the record.

    Args:
        folder: Its place in the library.
        factors: What was trained.
        shape: The LoRA.
        base_model: Name for the adapter's configuration.
        record: What the run says of itself; the hash of the weights is added.
        curve: One mapping an optimiser step.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    write_factors(
        folder,
        factors.tensors,
        rank=shape.rank,
        alpha=shape.alpha,
        targets=shape.targets,
        base_model=base_model,
        record=record,
        dropout=shape.dropout,
        curve=curve,
    )


def write_factors(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    base_model: str,
    record: Mapping[str, Any],
    dropout: float = 0.0,
    curve: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write LoRA factors as a PEFT folder, whole or not at all.

    Args:
        folder: Its place.
        tensors: Factors under PEFT's names.
        rank: R.
        alpha: The update is scaled by alpha / rank.
        targets: Names of the layers.
        base_model: Name for the adapter's configuration.
        record: Where the factors come from; the hash of the weights is added.
        dropout: That they were trained with.
        curve: One mapping an optimiser step, where there is one.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=sorted(targets),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    ).to_dict()
    config["target_modules"] = sorted(targets)  # PEFT makes it a set, whose order is chance
    with replaced_folder(folder) as aside:
        save_file(dict(tensors), aside / WEIGHTS, metadata={"format": "pt"})
        _dump(aside / CONFIG, config)
        if curve:
            lines = (json.dumps(step, sort_keys=True) + "\n" for step in curve)
            (aside / CURVE).write_text("".join(lines), encoding="utf-8")
        _dump(aside / RECORD, {**record, "sha256": sha256_of(aside / WEIGHTS)})


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Say whether a folder holds the adapter of this fingerprint, unharmed."""
    record = read_json(folder / RECORD)
    weights = folder / WEIGHTS
    return (
        record.get("fingerprint") == fingerprint
        and (folder / CONFIG).is_file()
        and weights.is_file()
        and sha256_of(weights) == record.get("sha256")
    )


def _dump(path: Path, value: Mapping[str, Any]) -> None:
    # PEFT's configuration holds a few enums and sets.
    text = json.dumps(value, indent=2, sort_keys=True, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
