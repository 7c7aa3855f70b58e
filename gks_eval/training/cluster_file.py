"""The file between `gks-eval cluster` and a recipe: which task belongs to which cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import Field

from gks_eval.errors import ConfigError
from gks_eval.library.manifest import AdapterName
from gks_eval.util.files import write_text
from gks_eval.util.paths import unportable
from gks_eval.util.yaml import FrozenModel, load_typed

if TYPE_CHECKING:
    from gks_eval.training.clusters import Clustering

__all__ = ["ClusterFile", "read_cluster_file", "write_cluster_file"]


class ClusterFile(FrozenModel):
    """The typed content of a cluster file (YAML).

    Attributes:
        clusters: Names of the tasks by cluster.
        embedding: How the adapters were embedded.
        seed: Seed of K-means and of the projections.
        silhouette: Mean silhouette of the clustering.
        library: The library the tasks' adapters came from.
    """

    clusters: dict[AdapterName, list[str]]
    embedding: str = ""
    seed: int | None = None
    silhouette: float | None = Field(default=None, ge=-1.0, le=1.0)
    library: str = ""


def read_cluster_file(path: Path) -> dict[str, list[str]]:
    """Return the tasks of each cluster.

    Raises:
        ConfigError: The file is missing, empty or has faults, a task is in two clusters, or the
            name of a cluster cannot be a folder.
    """
    clusters = load_typed(path, ClusterFile).clusters
    if not clusters:
        raise ConfigError(f"{path}: has no cluster; make it with `gks-eval cluster`.")
    for name, why in unportable(clusters):
        raise ConfigError(f"{path}: the cluster {name!r} {why}; choose another name.")
    place: dict[str, str] = {}
    for cluster, tasks in clusters.items():
        if not tasks:
            raise ConfigError(f"{path}: {cluster} has no tasks; remove it.")
        for task in tasks:
            if task in place:
                raise ConfigError(
                    f"{path}: the task {task!r} is in {place[task]} and in {cluster}; keep one."
                )
            place[task] = cluster
    return clusters


def write_cluster_file(
    path: Path, clustering: Clustering, *, embedding: str, seed: int, library: str
) -> None:
    """Write the file that a recipe's `clusters` names.

    Raises:
        ResourceError: The file cannot be written.
    """
    content = ClusterFile(
        clusters={name: list(tasks) for name, tasks in clustering.clusters.items()},
        embedding=embedding,
        seed=seed,
        silhouette=round(clustering.silhouette, 4),
        library=library,
    )
    sizes = ", ".join(f"{name} {len(tasks)}" for name, tasks in content.clusters.items())
    text = yaml.safe_dump(content.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(path, f"# Written by `gks-eval cluster`; sizes: {sizes}.\n{text}")
