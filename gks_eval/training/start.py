"""The start of an adapter: its shape, its random A, and LoftQ for a quantised base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gks_eval.errors import CompatibilityError, did_you_mean
from gks_eval.training.recipe import AdapterShape

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

__all__ = ["attach_adapter", "check_targets", "lora_config"]


def lora_config(shape: AdapterShape, base_model: str) -> LoraConfig:
    """Return PEFT's configuration of a recipe's LoRA."""
    from peft import LoraConfig

    return LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=sorted(shape.targets),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
    )


def attach_adapter(
    model: PreTrainedModel, shape: AdapterShape, base_model: str, start_seed: int
) -> PeftModel:
    """Attach a new, trainable adapter to a base model.

    A is drawn with `start_seed`, layer by layer in the order of the modules, and B is zero: two
    adapters with the same seed have the same A. The factors are always float32.

    Args:
        model: The base; it is changed in place, as PEFT does.
        shape: The LoRA.
        base_model: Name of the base in the adapter's configuration.
        start_seed: Seed of A.

    Raises:
        CompatibilityError: As `check_targets`.
    """
    import torch
    from peft import get_peft_model

    check_targets(model, shape.targets, base_model)
    torch.manual_seed(start_seed)
    peft_model: Any = get_peft_model(model, lora_config(shape, base_model))
    trained: PeftModel = peft_model
    return trained


def check_targets(model: torch.nn.Module, targets: Sequence[str], base_model: str) -> None:
    """Refuse a target that matches no linear layer of the base.

    PEFT raises only if no target matches: one misspelled name among several would silently train a
    smaller adapter.

    Raises:
        CompatibilityError: A target matches no linear layer.
    """
    import torch

    linear = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
            raise CompatibilityError(
                f"adapter.targets: {target} is no linear layer of {base_model};"
                f" {did_you_mean(target, known)}."
            )
