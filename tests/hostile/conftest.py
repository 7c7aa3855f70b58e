"""Fixtures of the hostile hour: a warm server of commands, and small things for them to work on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from warm import Server


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("warm"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]) -> Path:
    """Two experts of twelve steps each, a checkpoint every third."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{"source": f"say {n}", "target": str(n % 7)} for n in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    content = {
        "base_model": str(tiny_base("phi3")),
        "adapter": {"targets": ["qkv_proj", "o_proj"], "dropout": 0.05},
        "schedule": {
            "epochs": 2, "learning_rate": 1e-2, "accumulation": 4, "optimizer": "adamw",
            "gradient_checkpointing": False, "checkpoint_steps": 3,
        },
        "experts": {"members": {"one": {"file": "rows.jsonl"}, "two": {"file": "rows.jsonl"}}},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="session")
def library(tiny_library: Callable[..., Path]) -> Path:
    return tiny_library("phi3", experts=("alpha", "beta", "gamma"), general=("en",))
