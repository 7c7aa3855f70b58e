"""Random streams seeded by the values alone, whatever their names, order and direction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "canonical", "content_stream"]

Floats = npt.NDArray[np.float64]


def canonical(
    samples: Sequence[Sequence[float] | Floats], weights: Sequence[float]
) -> tuple[float, list[Floats], list[float]]:
    """Return a form of samples that does not change with their order or a swap of the two runs.

    Args:
        samples: Per task its items' values, (n_t,).
        weights: Per task.

    Returns:
        The sign (-1.0 if the returned values are negated), the sorted samples in canonical order,
        and their weights.
    """
    forms = []
    for sign in (1.0, -1.0):
        # Adding 0 turns -0.0 into 0.0.
        tasks = [np.sort(sign * np.asarray(sample, dtype=np.float64)) + 0.0 for sample in samples]
        order = sorted(range(len(tasks)), key=lambda i: (weights[i], tasks[i].tobytes()))
        forms.append((sign, [tasks[i] for i in order], [weights[i] for i in order]))
    forward, backward = forms
    turned = [task.tobytes() for task in forward[1]] < [task.tobytes() for task in backward[1]]
    return backward if turned else forward


def content_stream(seed: int, *samples: Floats) -> np.random.Generator:
    """Return a random stream that is the same for the same values."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        digest.update(len(sample).to_bytes(8, "little") + sample.tobytes())
    return np.random.default_rng([seed, int.from_bytes(digest.digest(), "little")])
