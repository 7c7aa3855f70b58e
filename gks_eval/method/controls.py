"""Stand-ins for adapters: controls that show whether an adapter's content matters.

Each keeps some of an adapter's properties and destroys the rest. All draws are seeded and differ
between layers; they run in float64 and return the pair's dtype.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from gks_eval.method.lora import LoraPair, update_norm
from gks_eval.method.seeds import layer_seed

__all__ = ["derangement", "exchanged", "generator_of", "random_pair", "rescaled", "rotated"]


def generator_of(seed: int, *names: str) -> torch.Generator:
    """Return a generator on the CPU whose state follows from `seed` and `names` alone."""
    return torch.Generator().manual_seed(layer_seed(seed, "/".join(names)))


def random_pair(pair: LoraPair, generator: torch.Generator, *, of_update: bool) -> LoraPair:
    """Return Gaussian factors of the pair's shapes and norms.

    ``A' = a N_A`` and ``B' = b N_B`` with N Gaussian and a, b such that ``||A'|| = ||A||`` and
    ``||B'|| = ||B||`` (Frobenius); with `of_update` both are then multiplied by one number such
    that ``||dW'|| = ||dW||``.

    Args:
        pair: The adapter, (R, K) and (D, R).
        generator: On the CPU.
        of_update: Whether the norm of the update is kept, for rules that are linear in updates;
            else the norms of the factors.
    """
    A, B = (_gaussian(factor.shape, generator) for factor in (pair.A, pair.B))
    A *= pair.A.double().norm() / A.norm()
    B *= pair.B.double().norm() / B.norm()
    drawn = LoraPair(A, B, pair.scaling)
    return _cast(rescaled(drawn, update_norm(pair)) if of_update else drawn, pair)


def rotated(pair: LoraPair, generator: torch.Generator) -> LoraPair:
    """Return a pair whose update has the same singular values in random directions.

    With ``B = Q_B R_B`` and ``A^T = Q_A R_A`` both Q's are replaced by orthonormal matrices of
    their shapes, drawn from the Haar measure.
    """
    core_B = torch.linalg.qr(pair.B.double()).R
    core_A = torch.linalg.qr(pair.A.double().T).R
    basis_B = _haar(pair.B.shape[0], core_B.shape[0], generator)
    basis_A = _haar(pair.A.shape[1], core_A.shape[0], generator)
    return _cast(LoraPair((basis_A @ core_A).T, basis_B @ core_B, pair.scaling), pair)


def rescaled(pair: LoraPair, norm: float) -> LoraPair:
    """Return the pair with an update of this Frobenius norm; both factors change equally."""
    own = update_norm(pair)
    share = (norm / own) ** 0.5 if own else 0.0
    return replace(pair, A=share * pair.A, B=share * pair.B)


def exchanged(shapes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, str]:
    """Exchange layers of equal shape: for each layer, the layer whose update it gets.

    Each group of equal shape gets a `derangement`, so that no layer keeps its own update. The only
    layer of a shape keeps its update.

    Args:
        shapes: (D, K) by layer.
        seed: Chooses the exchange.
    """
    groups: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for name in sorted(shapes):
        groups[shapes[name]].append(name)
    found: dict[str, str] = {}
    for shape, names in groups.items():
        order = derangement(len(names), generator_of(seed, *map(str, shape)))
        found |= {name: names[at] for name, at in zip(names, order, strict=True)}
    return found


def derangement(count: int, generator: torch.Generator) -> Sequence[int]:
    """Return a random permutation of ``range(count)`` without fixed points.

    Uniform over all derangements, by rejection: about e draws on average. A single item stays.
    """
    while count > 1:
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        if all(at != place for place, at in enumerate(order)):
            return order
    return range(count)


def _gaussian(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


def _haar(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Return an orthonormal (rows, columns) matrix; Mezzadri 2007, arXiv:math-ph/0609050."""
    basis, core = torch.linalg.qr(_gaussian((rows, columns), generator))
    signed: torch.Tensor = basis * core.diagonal().sign()
    return signed


def _cast(made: LoraPair, like: LoraPair) -> LoraPair:
    return replace(like, A=made.A.to(like.A), B=made.B.to(like.B))
