"""The start of an adapter: its shape, its random A, and LoftQ for a quantised base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gks_eval.config.recipe import AdapterShape
from gks_eval.errors import CompatibilityError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

__all__ = ["attach_adapter", "lora_config"]


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
    """Put a fresh, trainable adapter on a base model.

    A is drawn with `start_seed`, layer by layer in the order of the modules, and B is zero: two
    adapters with the same seed have the same A. The factors are float32 whatever the base is held
    in.

    Args:
        model: The base; it is changed in place, as PEFT does.
        shape: The LoRA.
        base_model: Name that goes into the adapter's configuration.
        start_seed: Seed of A.

    Raises:
        CompatibilityError: No layer of the base has a name among `shape.targets`.
    """
    import torch
    from peft import get_peft_model

    torch.manual_seed(start_seed)
    try:
        peft_model: Any = get_peft_model(model, lora_config(shape, base_model))
    except ValueError as error:
        if "not found in the base model" not in str(error):
            raise
        raise CompatibilityError(
            f"adapter.targets: {', '.join(shape.targets)} are not all layers of {base_model}; its"
            f" linear layers are {', '.join(_linear_names(model))}."
        ) from error
    trained: PeftModel = peft_model
    return trained


def _linear_names(model: PreTrainedModel) -> list[str]:
    import torch

    named = (n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in named} - {"lm_head"})
