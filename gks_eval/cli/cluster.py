"""`gks-eval cluster`: groups of tasks with similar adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gks_eval.cli import _complete

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `cluster` to the application."""
    app.command("cluster")(cluster)


def cluster(
    library: Annotated[
        str,
        typer.Argument(
            help="A library with one expert per task.", autocompletion=_complete.libraries
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Cluster file to write (.yaml).")],
    k: Annotated[int, typer.Option(help="Number of clusters.")] = 10,
    embedding: Annotated[
        str, typer.Option(help="delta: sketches of dW; parameters: A and B themselves.")
    ] = "delta",
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of the sketches and of K-means.")
    ] = 0,
) -> None:
    """Group the experts of a library by K-means; a recipe's `clusters` reads the file."""
    from gks_eval.cli._bar import working
    from gks_eval.errors import ConfigError, UsageError
    from gks_eval.training.cluster_file import read_cluster_file, write_cluster_file
    from gks_eval.util.files import check_output

    if output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{output}: the cluster file needs a name that ends in .yaml.")
    picture = output.with_suffix(".png")
    check_output(output)
    check_output(picture)
    if output.exists():
        try:
            read_cluster_file(output)
        except ConfigError:
            raise UsageError(
                f"{output} is no cluster file and would be lost; name another file."
            ) from None
    with working("reading and grouping adapters"):
        from gks_eval.library.load import load_library
        from gks_eval.training.clusters import cluster_adapters, draw_clusters, embed

        loaded = load_library(library)
        adapters = {name: adapter.pairs for name, adapter in loaded.experts.items()}
        names, points_EN = embed(adapters, embedding, seed=seed)
        found = cluster_adapters(names, points_EN, k=k, seed=seed)
        write_cluster_file(output, found, embedding=embedding, seed=seed, library=loaded.name)
        draw_clusters(names, points_EN, found, picture)
    for name, tasks in found.clusters.items():
        typer.echo(f"{name}: {len(tasks)}: {', '.join(tasks)}")
    typer.echo(f"{output}: silhouette {found.silhouette:.3f}, picture next to it")
