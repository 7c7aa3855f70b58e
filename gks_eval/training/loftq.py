"""LoftQ's start: the low-rank factors that best correct a layer's quantisation error.

One step of Li et al. 2023 (arXiv:2310.08659) against a base that is quantised already and does
not change: ``s B A`` is the best rank-R approximation of ``W - W_q``. PEFT's LoftQ ignores the
scaling s, which is correct only if alpha equals the rank, and it needs CUDA; this one works for any
alpha and any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gks_eval.errors import CompatibilityError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["check_quantised", "loftq_factors", "start_from_loftq"]


def loftq_factors(
    error_DK: torch.Tensor, rank: int, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B whose ``scaling * B @ A`` is the best approximation of an error.

    ``B = U_R (S_R / s)^(1/2)`` and ``A = (S_R / s)^(1/2) V_R^T`` of the singular value
    decomposition ``error = U S V^T``.

    Args:
        error_DK: W - W_q of one layer, (D, K).
        rank: R.
        scaling: The adapter's s.

    Returns:
        A (R, K) and B (D, R), float32.
    """
    import torch

    U_DN, S_N, Vh_NK = torch.linalg.svd(error_DK.float(), full_matrices=False)
    root_R = (S_N[:rank] / scaling).sqrt()
    return root_R[:, None] * Vh_NK[:rank], U_DN[:, :rank] * root_R


def check_quantised(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuse a target that a 4-bit base does not quantise: the output layer.

    Args:
        model: The base; its weights are not needed.
        targets: Names of the layers.

    Raises:
        CompatibilityError: There is such a target.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if module is head and any(f".{name}".endswith(f".{target}") for target in targets):
            raise _not_quantised(name)


def _not_quantised(name: str) -> CompatibilityError:
    return CompatibilityError(
        f"init: loftq: {name} is not held in 4 bits, so it has no quantisation error; leave it out"
        " of adapter.targets."
    )


def start_from_loftq(model: PeftModel, full: PreTrainedModel) -> None:
    """Set every factor of a fresh adapter to its LoftQ start.

    Args:
        model: A base in 4 bits with a fresh adapter; changed in place.
        full: The same base in full precision.

    Raises:
        CompatibilityError: A layer that the adapter sits on is not held in 4 bits.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    weights = dict(full.named_parameters())
    for name, module in model.named_modules():
        layer: Any = module
        if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
            continue
        quantised = layer.get_base_layer().weight
        if getattr(quantised, "quant_state", None) is None:
            raise _not_quantised(name.removeprefix("base_model.model."))
        weight_DK = weights[f"{name.removeprefix('base_model.model.')}.weight"]
        held_DK = dequantize_4bit(quantised.data, quantised.quant_state)
        error_DK = weight_DK.float().to(held_DK.device) - held_DK.float()
        scaling = layer.scaling["default"]
        A, B = loftq_factors(error_DK, layer.r["default"], scaling)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(A)
            layer.lora_B["default"].weight.copy_(B)
