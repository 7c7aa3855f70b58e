"""A trained adapter -> its folder: PEFT's two files, the loss curve and the record of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.errors import DataError
from gks_eval.library import writer
from gks_eval.library.peft_adapter import CONFIG_FILE, RECORD, WEIGHTS_FILE
from gks_eval.method.lora import LoraPair
from gks_eval.training.recipe import AdapterShape
from gks_eval.util.files import sha256_of
from gks_eval.util.json_file import read_or_empty

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

__all__ = ["CURVE", "RECORD", "Factors", "is_finished", "write_trained_adapter"]

CURVE = "loss.jsonl"
_READ, _WRITE = ".lora_A.weight", ".lora_B.weight"


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

    def pairs(self, alpha: float) -> dict[str, LoraPair]:
        """Return the update of each layer, scaled by alpha / R."""
        read = {key: A for key, A in self.tensors.items() if key.endswith(_READ)}
        return {
            key.removeprefix("base_model.model.").removesuffix(_READ): LoraPair(
                A, self.tensors[key.replace(_READ, _WRITE)], alpha / A.shape[0]
            )
            for key, A in read.items()
        }


def write_trained_adapter(
    folder: Path,
    factors: Factors,
    shape: AdapterShape,
    base_model: str,
    record: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
) -> None:
    """Write one trained adapter's folder, whole or not at all.

    Args:
        folder: The adapter's folder in the library.
        factors: The trained factors.
        shape: The LoRA.
        base_model: Name for the adapter's configuration.
        record: The record of the run; the hash of the weights is added.
        curve: One mapping per optimiser step.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    lines = (json.dumps(step, sort_keys=True) + "\n" for step in curve)
    writer.write_adapter(
        folder,
        factors.pairs(shape.alpha),
        base_model=base_model,
        config={"target_modules": sorted(shape.targets), "lora_dropout": shape.dropout},
        record=(RECORD, record),
        texts={CURVE: "".join(lines)} if curve else {},
    )


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Return whether a folder holds the intact adapter with this fingerprint."""
    record = read_or_empty(folder / RECORD)
    weights = folder / WEIGHTS_FILE
    return (
        record.get("fingerprint") == fingerprint
        and (folder / CONFIG_FILE).is_file()
        and weights.is_file()
        and sha256_of(weights) == record.get("sha256")
    )
