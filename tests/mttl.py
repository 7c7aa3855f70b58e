"""MTTL's side of the tests: its files, and its router written a second time, in plain loops.

The formulas are those of MTTL's ``ArrowTransform`` and ``PerTokenSelector``. Nothing here shares
code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

WIDTH, LAYERS, RANK, ALPHA = 64, 2, 4, 16
SEPARATE = ("q_proj", "k_proj", "v_proj")
TIE_PARAMS = r"q_proj.*\.lora_a|k_proj.*\.lora_a|v_proj.*\.lora_a"

# How each naming writes layer n of transformers: the prefix, and whether the attention is fused.
NAMINGS: Mapping[str, tuple[Callable[[int], str], bool]] = {
    "transformers": (lambda n: f"model.layers.{n}.self_attn", False),
    "transformer.h": (lambda n: f"transformer.h.{n}.mixer", True),
    "sequence": (lambda n: f"layers.{n + 1}.mixer", True),
}


@dataclass(frozen=True)
class Expert:
    """One expert, by layer: ``lora_a`` (K, R) and the ``lora_b`` (R, D) of q, k, v and dense."""

    a: Mapping[tuple[int, str], torch.Tensor]
    b: Mapping[tuple[int, str], torch.Tensor]


def make_expert(seed: int, *, tied: bool = True, size: float = 1.0) -> Expert:
    """Return a random expert whose q, k and v share A, or do not.

    Args:
        seed: Of the random numbers.
        tied: Whether they share A.
        size: Multiplies all B's.
    """
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    a, b = {}, {}
    for layer in range(LAYERS):
        shared = gaussian(WIDTH, RANK) / 8
        for name in (*SEPARATE, "dense"):
            own = shared if tied and name != "dense" else gaussian(WIDTH, RANK) / 8
            # q, k and v differ in size, so that it matters which of them a prototype is taken of.
            gain = {"q_proj": 0.04, "k_proj": 0.02, "v_proj": 0.06, "dense": 0.05}[name] * size
            a[layer, name], b[layer, name] = own, gaussian(RANK, WIDTH) * gain
    return Expert(a, b)


def tensors_of(expert: Expert, naming: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the expert's tensors under the names of one naming."""
    place, fused = NAMINGS[naming]
    found: dict[str, torch.Tensor] = {}

    def add(layer: int, name: str, a: torch.Tensor, b: torch.Tensor) -> None:
        key = f"{prefix}{place(layer)}.{name}"
        found[f"{key}.lora_a"], found[f"{key}.lora_b"] = a.clone(), b.clone()

    for layer in range(LAYERS):
        if fused:
            rows = torch.cat([expert.b[layer, name] for name in SEPARATE], dim=1)
            add(layer, "Wqkv", expert.a[layer, "q_proj"], rows)
            add(layer, "out_proj", expert.a[layer, "dense"], expert.b[layer, "dense"])
        else:
            for name in (*SEPARATE, "dense"):
                add(layer, name, expert.a[layer, name], expert.b[layer, name])
    return found


def save_mttl_library(
    folder: Path, experts: Sequence[Expert], naming: str, prefix: str = "", **config: Any
) -> Path:
    """Write an expert library as MTTL does: a ``.ckpt`` and a ``.meta`` per expert."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"lora_rank": RANK, "lora_alpha": ALPHA, "model_modifier": "lora"}
    for number, expert in enumerate(experts):
        torch.save(tensors_of(expert, naming, prefix), folder / f"c{number}.ckpt")
        meta = {"expert_name": f"c{number}", "expert_config": settings, "training_config": config}
        torch.save(meta, folder / f"c{number}.meta")
    return folder


def prototype(expert: Expert, layer: int, name: str, tie: str | None) -> tuple[torch.Tensor, float]:
    """Return the top right singular vector of ``(lora_a lora_b)^T``, (K,), and its value squared.

    Args:
        tie: What q, k and v make one prototype of: ``concat``, ``sum``, or None for one each.
    """
    a, b = expert.a[layer, name].double(), expert.b[layer, name].double()
    update = (a @ b).T
    if tie is not None and name in SEPARATE:
        updates = [(expert.a[layer, n].double() @ expert.b[layer, n].double()).T for n in SEPARATE]
        update = torch.cat(updates) if tie == "concat" else sum(updates)
    _, values, right = torch.linalg.svd(update)
    vector = right[0] * right[0][right[0].abs().argmax()].sign()  # signs are free
    return vector, float(values[0]) ** 2


def coefficients(
    x: torch.Tensor,
    vectors: torch.Tensor,
    *,
    top_k: int = -1,
    temperature: float = 1.0,
    input_norm: str = "id",
    proto_norm: str = "id",
) -> torch.Tensor:
    """Return one token's weights over the experts, (E,), as MTTL's per-token selector."""

    def standard(values: torch.Tensor) -> torch.Tensor:
        centred = values - values.mean()
        return centred / math.sqrt(float((centred**2).mean()) + 1e-5)

    def unit(values: torch.Tensor) -> torch.Tensor:
        return values / max(float(values.norm()), 1e-8)

    norms = {"id": lambda values: values, "norm_d": standard, "unit": unit}
    if proto_norm == "norm_p":
        vectors = torch.stack([standard(column) for column in vectors.T]).T
    else:
        vectors = torch.stack([norms[proto_norm](row) for row in vectors])
    x = norms[input_norm](x)
    logits = [abs(float(x @ vector)) for vector in vectors]
    logits = [value / (temperature if temperature > 0 else math.sqrt(len(x))) for value in logits]
    count = len(logits) if top_k < 0 else top_k
    chosen = sorted(range(len(logits)), key=lambda e: -logits[e])[:count]
    total = sum(math.exp(logits[e]) for e in chosen)
    weights = torch.zeros(len(logits), dtype=torch.float64)
    for e in chosen:
        weights[e] = math.exp(logits[e]) / total
    return weights


@contextmanager
def routed_by_mttl(
    model: Any,
    experts: Sequence[Expert],
    tie: str | None,
    *,
    scaled: bool = False,
    **options: Any,
) -> Iterator[None]:
    """Run a transformers Phi with MTTL's Arrow over its experts.

    The mixture is MTTL's: factors are averaged with the token's weights, then multiplied.
    """
    handles = []
    for number, block in enumerate(model.model.layers):
        for name in (*SEPARATE, "dense"):
            found = [prototype(expert, number, name, tie) for expert in experts]
            vectors = torch.stack([v * value if scaled else v for v, value in found])
            a = torch.stack([expert.a[number, name].double() for expert in experts])
            b = torch.stack([expert.b[number, name].double() for expert in experts])

            def hook(
                _: Any,
                args: Any,
                output: torch.Tensor,
                vectors: torch.Tensor = vectors,
                a: torch.Tensor = a,
                b: torch.Tensor = b,
            ) -> torch.Tensor:
                rows = []
                for x in args[0].reshape(-1, WIDTH).double():
                    weights = coefficients(x, vectors, **options)
                    mixed_a = torch.einsum("e,ekr->kr", weights, a)
                    mixed_b = torch.einsum("e,erd->rd", weights, b)
                    rows.append(x @ mixed_a @ mixed_b * (ALPHA / RANK))
                return output + torch.stack(rows).view(output.shape).to(output.dtype)

            handles.append(getattr(block.self_attn, name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
