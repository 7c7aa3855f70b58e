"""Model-based clustering of tasks by their adapters (Ostapenko et al. 2024, arXiv:2405.11157).

An adapter is embedded either by its raw parameters, as published, or by its update dW. The same
update has many factorisations (B M)(M^-1 A). They differ in their raw parameters but not in dW. And
trained adapters differ mostly in the random start of A, so raw parameters compare well only if all
adapters share that start.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gks_eval.errors import CompatibilityError, UsageError, did_you_mean
from gks_eval.method.lora import LoraPair
from gks_eval.util.files import replaced_file

if TYPE_CHECKING:
    import numpy

__all__ = ["EMBEDDINGS", "Clustering", "cluster_adapters", "draw_clusters", "embed"]

EMBEDDINGS = ("delta", "parameters")
SKETCH = 16
"""Columns and rows of a layer's sketch: each layer gives SKETCH x SKETCH numbers."""


@dataclass(frozen=True)
class Clustering:
    """Which task is in which cluster.

    Attributes:
        clusters: Names of the tasks by cluster, ``cluster_0`` the largest.
        silhouette: Mean silhouette; 0 if it is not defined (one cluster, or one task per cluster).
    """

    clusters: Mapping[str, list[str]]
    silhouette: float


def embed(
    adapters: Mapping[str, Mapping[str, LoraPair]], embedding: str = "delta", *, seed: int = 0
) -> tuple[list[str], torch.Tensor]:
    """Return one vector of length 1 per adapter.

    ``delta`` sketches each layer's update, ``G^T dW H`` with Gaussian G (D, S) and H (K, S) that
    all adapters share; distances of sketches estimate Frobenius distances of updates, at the cost
    of (D + K) R S instead of D K. ``parameters`` concatenates A and B.

    Args:
        adapters: Layers and their pairs, by the adapter's name.
        embedding: One of `EMBEDDINGS`.
        seed: Seed of G and H.

    Returns:
        Names and the (E, N) matrix of their vectors.

    Raises:
        UsageError: Unknown embedding.
        CompatibilityError: The adapters differ in layers, or (``parameters``) in rank.
    """
    if embedding not in EMBEDDINGS:
        raise UsageError(f"embedding {embedding!r}: {did_you_mean(embedding, EMBEDDINGS)}.")
    names = list(adapters)
    layers = {name: pair.shape for name, pair in adapters[names[0]].items()}
    for name in names:
        if {layer: pair.shape for layer, pair in adapters[name].items()} != layers:
            raise CompatibilityError(
                f"{name} and {names[0]} update different layers; cluster adapters of one recipe."
            )
    vectors = [
        _sketch(adapters[name], seed) if embedding == "delta" else _parameters(adapters[name])
        for name in names
    ]
    if len({vector.numel() for vector in vectors}) > 1:
        raise CompatibilityError(
            "the adapters differ in rank, so their parameters cannot be compared; use the"
            " embedding delta."
        )
    return names, torch.stack([_unit(vector) for vector in vectors])


def cluster_adapters(
    names: Sequence[str], points_EN: torch.Tensor, *, k: int, seed: int = 0
) -> Clustering:
    """Group adapters by K-means, the best of ten starts.

    Args:
        names: Names of the adapters.
        points_EN: One vector per adapter.
        k: Number of clusters.
        seed: Seed of the starts.

    Raises:
        UsageError: Fewer adapters than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    if not 1 <= k <= len(names):
        raise UsageError(f"-k {k}: there are {len(names)} experts; choose 1 to {len(names)}.")
    points = _numpy(points_EN)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        labels = KMeans(n_clusters=k, n_init=10, random_state=seed).fit_predict(points).tolist()
    groups = [
        [name for name, label in zip(names, labels, strict=True) if label == c] for c in range(k)
    ]
    groups.sort(key=lambda group: (-len(group), group))
    # Equal adapters share a cluster, so there may be fewer clusters than k.
    defined = 2 <= len(set(labels)) < len(names)
    return Clustering(
        clusters={f"cluster_{number}": group for number, group in enumerate(groups) if group},
        silhouette=float(silhouette_score(points, labels)) if defined else 0.0,
    )


def draw_clusters(
    names: Sequence[str], points_EN: torch.Tensor, clustering: Clustering, picture: Path
) -> None:
    """Draw the adapters on their two principal axes, one colour per cluster.

    Raises:
        ResourceError: The picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    centred_EN = points_EN - points_EN.mean(dim=0)
    U_EM, S_M, _ = torch.linalg.svd(centred_EN, full_matrices=False)
    plane = _numpy(torch.nn.functional.pad(U_EM[:, :2] * S_M[:2], (0, max(0, 2 - len(S_M)))))
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for cluster, tasks in clustering.clusters.items():
        rows = [names.index(task) for task in tasks]
        axes.scatter(plane[rows, 0], plane[rows, 1], label=cluster, s=30)
        for row in rows:
            axes.annotate(
                names[row], plane[row], fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    axes.set_title(f"silhouette {clustering.silhouette:.3f}", fontsize=10)
    axes.legend(fontsize=7)
    with replaced_file(picture) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _sketch(pairs: Mapping[str, LoraPair], seed: int) -> torch.Tensor:
    parts: list[torch.Tensor] = []
    for number, layer in enumerate(sorted(pairs)):
        pair = pairs[layer]
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        G_DS = torch.randn(pair.B.shape[0], SKETCH, generator=generator) / math.sqrt(SKETCH)
        H_KS = torch.randn(pair.A.shape[1], SKETCH, generator=generator) / math.sqrt(SKETCH)
        # Products of large or small float32 factors leave the range of float32.
        B_DR, A_RK = pair.B.double(), pair.A.double()
        parts.append(pair.scaling * ((G_DS.T.double() @ B_DR) @ (A_RK @ H_KS.double())).flatten())
    return torch.cat(parts)


def _parameters(pairs: Mapping[str, LoraPair]) -> torch.Tensor:
    factors = [f.float().flatten() for _, pair in sorted(pairs.items()) for f in (pair.A, pair.B)]
    return torch.cat(factors)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    """Return the vector at length 1, in float32; a vector of zeros stays."""
    wide = vector.double()
    size: torch.Tensor = wide.norm().clamp_min(torch.finfo(wide.dtype).tiny)
    return torch.div(wide, size).float()


def _numpy(tensor: torch.Tensor) -> numpy.ndarray:
    return tensor.double().numpy()
