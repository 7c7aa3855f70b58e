"""The YAML files that users write: library.yaml, recipes, cluster files, policies of the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import holds, yaml_files
from hypothesis import strategies as st

from gks_eval.evidence.policy import GatePolicy
from gks_eval.library.load import load_library
from gks_eval.library.manifest import LibraryConfig
from gks_eval.training.cluster_file import read_cluster_file
from gks_eval.training.jobs import make_plan
from gks_eval.util.yaml import load_typed

LIBRARY: dict[str, Any] = {
    "base_model": "org/base",
    "revision": "v1",
    "experts": {"sums": "experts/sums", "verbs": "org/repo/verbs@main"},
    "general": {"en": "general/en"},
    "load": {"quantization": "nf4"},
    "tied_prototypes": [{"layers": ["q_proj", "k_proj"], "op": "concat"}],
    "made_by": ["make"],
    "hashes": {"experts/sums": "0" * 64},
    "provenance": {"seed": 1, "remarks": ["none", 2.5]},
}
RECIPE: dict[str, Any] = {
    "base_model": "./base",
    "load": {"quantization": "nf4", "dtype": "bfloat16"},
    "adapter": {"rank": 4, "alpha": 16, "targets": ["o_proj"], "init": "loftq"},
    "seed": 3,
    "start": "shared",
    "schedule": {"epochs": 1, "learning_rate": 1e-4, "warmup": 0.03},
    "experts": {
        "data": {"hub": "org/rows", "split": "train", "where": {"task": ["a", 1]}},
        "members": {"sums": {"file": "rows.jsonl", "rows": 5}, "verbs": {"fraction": 0.2}},
        "schedule": {"batch_size": 2},
        "prompt": "{source}\n",
    },
    "general": {"members": {"en": {"file": "en.txt", "cut": "packed", "windows": 9}}},
}
POLICY: dict[str, Any] = {
    "version": 1,
    "max_drop": 0.02,
    "alpha": 0.05,
    "min_pairs": 100,
    "correction": "holm",
    "tasks": {"piqa": {"max_drop": 0.1, "floor": 0.5, "metric": "acc,none"}, "boolq": None},
    "groups": {"all": {"alpha": 0.01, "min_pairs": 1}},
    "required": ["piqa"],
    "only_listed": False,
}
CLUSTERS: dict[str, Any] = {
    "clusters": {"cluster_0": ["a", "b"], "cluster_1": ["c"]},
    "embedding": "delta",
    "seed": 0,
    "silhouette": 0.25,
    "library": "mine",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_library_yaml(folder: Path) -> None:
    path = folder / "library.yaml"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        assert isinstance(load_typed(path, LibraryConfig), LibraryConfig)

    holds("library.yaml", yaml_files(LIBRARY), parse, str(path))


def test_a_library_that_names_adapters(folder: Path, tiny_library: Any) -> None:
    """Loaded in earnest, offline: each source is looked up, here and in the hub's cache."""
    library = tiny_library("llama", experts=("alpha",), general=())
    path = library.parent / "fuzzed.yaml"
    content = yaml.safe_load((library / "library.yaml").read_text("utf-8"))
    content["experts"] = {"alpha": f"{library.name}/experts/alpha"}
    content["tied_prototypes"] = [{"layers": ["q_proj", "k_proj"], "op": "concat"}]

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        load_library(str(path))

    holds("library and its adapters", yaml_files(content), parse, examples=60)


def test_recipe(folder: Path) -> None:
    path = folder / "recipe.yaml"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        plan = make_plan(path)
        plan.remarks()
        assert len({plan.fingerprint(job, "data") for job in plan.jobs}) == len(plan.jobs)
        assert len(plan.recipe_hash) == 64

    holds("recipe.yaml", yaml_files(RECIPE), parse)


def test_cluster_file(folder: Path) -> None:
    path = folder / "clusters.yaml"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        read_cluster_file(path)

    holds("clusters.yaml", yaml_files(CLUSTERS), parse, str(path))


def test_gate_policy(folder: Path) -> None:
    path = folder / "gate.yaml"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        policy = load_typed(path, GatePolicy)
        for name in [*policy.tasks, *policy.groups, "another"]:
            limits = policy.limits("task", name)
            assert limits.alpha is not None
            assert 0 < limits.alpha < 0.5
            assert 0 <= (limits.max_drop or 0.0) < 1

    holds("gate.yaml", yaml_files(POLICY), parse, str(path))


@st.composite
def bombs(draw: Any) -> bytes:
    """Aliases of aliases: up to 9 ** 400 values, and as many merges."""
    width, depth = draw(st.integers(1, 9)), draw(st.integers(1, 400))
    kind = draw(st.sampled_from(("[{}]", "{{a: 1, {}}}", "{{<<: [{}]}}")))
    lines = ["base_model: x", "experts: {a: b}", "provenance:", "  a0: &a0 {a: 1}"]
    for n in range(1, depth):
        inner = [f"*a{n - 1}"] * width
        if ", {}" in kind:
            inner = [f"k{i}: {alias}" for i, alias in enumerate(inner)]
        lines.append(f"  a{n}: &a{n} " + kind.format(", ".join(inner)))
    return "\n".join(lines).encode()


def test_alias_bombs(folder: Path) -> None:
    path = folder / "bomb.yaml"

    def parse(raw: bytes) -> None:
        path.write_bytes(raw)
        load_typed(path, LibraryConfig)

    holds("alias bombs", bombs(), parse, str(path), examples=25)
