"""Clusters that were planted are found again, whatever factors carry the updates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import random_pair

from gks_eval.errors import CompatibilityError, ConfigError, UsageError
from gks_eval.method.lora import LoraPair
from gks_eval.training.cluster_file import read_cluster_file, write_cluster_file
from gks_eval.training.clusters import cluster_adapters, draw_clusters, embed
from gks_eval.training.jobs import make_plan

Adapters = dict[str, dict[str, LoraPair]]


def planted(k: int = 3, each: int = 4, noise: float = 0.3, *, refactored: bool = False) -> Adapters:
    """Adapters around k random updates; optionally the same updates by other factors."""
    generator = torch.Generator().manual_seed(9)
    adapters: Adapters = {}
    for cluster in range(k):
        for member in range(each):
            pairs = {}
            for layer in range(3):
                centre = random_pair(seed=10 * cluster + layer)
                A, B = (
                    f + noise * f.std() * torch.randn(f.shape, generator=generator)
                    for f in (centre.A, centre.B)
                )
                if refactored:
                    M = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q * 3
                    A, B = torch.linalg.inv(M) @ A, B @ M
                pairs[f"layer{layer}"] = LoraPair(A, B, centre.scaling)
            adapters[f"c{cluster}t{member}"] = pairs
    return adapters


def groups(clusters: Any) -> set[frozenset[str]]:
    return {frozenset(tasks) for tasks in clusters.values()}


PLANTED = {frozenset(f"c{c}t{m}" for m in range(4)) for c in range(3)}


@pytest.mark.parametrize("embedding", ["delta", "parameters"])
def test_planted_clusters_are_recovered(embedding: str) -> None:
    names, points = embed(planted(), embedding)
    found = cluster_adapters(names, points, k=3)
    assert groups(found.clusters) == PLANTED
    assert found.silhouette > 0.5


def test_other_factors_of_the_same_updates_change_nothing_for_delta_alone() -> None:
    names, points = embed(planted(refactored=True), "delta")
    _, plain = embed(planted(noise=0.3), "delta")
    assert groups(cluster_adapters(names, points, k=3).clusters) == PLANTED
    assert points.shape == plain.shape
    _, parameters = embed(planted(refactored=True), "parameters")
    assert cluster_adapters(names, parameters, k=3).silhouette < 0.1


def test_sketches_estimate_the_cosine_of_the_updates() -> None:
    adapters = planted(k=2, each=1)
    _, points = embed(adapters, "delta")
    deltas = [
        torch.cat([pair.delta().flatten() for pair in pairs.values()])
        for pairs in adapters.values()
    ]
    truth = torch.nn.functional.cosine_similarity(deltas[0], deltas[1], dim=0)
    assert abs(float(points[0] @ points[1]) - float(truth)) < 0.15


def test_what_cannot_be_compared_is_refused() -> None:
    adapters = planted(k=1, each=2)
    with pytest.raises(UsageError, match="did you mean 'delta'"):
        embed(adapters, "deltas")
    with pytest.raises(CompatibilityError, match="different layers"):
        embed({**adapters, "x": {"layer0": adapters["c0t0"]["layer0"]}})
    wide = {n: random_pair(8, seed=1) for n in adapters["c0t0"]}
    with pytest.raises(CompatibilityError, match="use the embedding delta"):
        embed({**adapters, "wide": wide}, "parameters")
    names, points = embed(adapters)
    with pytest.raises(UsageError, match="choose 1 to 2"):
        cluster_adapters(names, points, k=3)


def test_equal_adapters_share_a_cluster_however_many_are_asked_for() -> None:
    one = planted(k=1, each=1)["c0t0"]
    names, points = embed(dict.fromkeys("abcd", one))
    found = cluster_adapters(names, points, k=3)
    assert found.clusters == {"cluster_0": ["a", "b", "c", "d"]}
    assert found.silhouette == 0.0


@pytest.mark.parametrize("embedding", ["delta", "parameters"])
@pytest.mark.parametrize("size", [1e-25, 1e30])
def test_the_size_of_the_factors_changes_no_direction(embedding: str, size: float) -> None:
    adapters = planted(k=2, each=1)
    scaled = {
        name: {layer: LoraPair(p.A * size, p.B * size, p.scaling) for layer, p in pairs.items()}
        for name, pairs in adapters.items()
    }
    _, points = embed(adapters, embedding)
    _, found = embed(scaled, embedding)
    torch.testing.assert_close(found, points)


def test_no_other_file_is_replaced_by_the_cluster_file(tmp_path: Path) -> None:
    from gks_eval.cli.cluster import cluster

    with pytest.raises(UsageError, match=r"ends in \.yaml"):
        cluster("library", tmp_path / "clusters.png")
    manifest = tmp_path / "library.yaml"
    manifest.write_text("base_model: x\nexperts: {a: b}\n", "utf-8")
    with pytest.raises(UsageError, match=r"library\.yaml is no cluster file and would be lost"):
        cluster("library", manifest)
    (tmp_path / "found.png").mkdir()
    with pytest.raises(UsageError, match=r"found\.png is a folder"):
        cluster("library", tmp_path / "found.yaml")


def test_the_file_is_read_back_and_names_the_experts_of_a_recipe(
    tmp_path: Path, recipe_file: Callable[..., Path]
) -> None:
    names, points = embed(planted())
    found = cluster_adapters(names, points, k=3)
    path = tmp_path / "clusters.yaml"
    write_cluster_file(path, found, embedding="delta", seed=0, library="demo")
    assert read_cluster_file(path) == found.clusters
    recipe = recipe_file(
        experts={
            "members": {},
            "clusters": {"file": "clusters.yaml", "column": "task"},
            "data": {"file": "rows.jsonl", "rows": 7, "where": {"language": "en"}},
        }
    )
    jobs = [job for job in make_plan(recipe).jobs if job.kind == "experts"]
    assert [job.name for job in jobs] == ["cluster_0", "cluster_1", "cluster_2"]
    assert jobs[0].member.model_dump(include={"where", "rows"}) == {
        "where": {"language": "en", "task": found.clusters["cluster_0"]},
        "rows": 7,
    }
    draw_clusters(names, points, found, tmp_path / "clusters.png")
    assert (tmp_path / "clusters.png").read_bytes().startswith(b"\x89PNG")


def test_faults_of_a_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "clusters.yaml"
    path.write_text("clusters: {a: [x, y], b: [y]}\n", "utf-8")
    with pytest.raises(ConfigError, match="'y' is in a and in b"):
        read_cluster_file(path)
    path.write_text("clusters: {Law: [x], law: [y]}\n", "utf-8")
    with pytest.raises(ConfigError, match="'law' would share a folder with another one"):
        read_cluster_file(path)
    path.write_text("clusters: {}\n", "utf-8")
    with pytest.raises(ConfigError, match="has no cluster"):
        read_cluster_file(path)
