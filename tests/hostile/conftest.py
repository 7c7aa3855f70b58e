"""Fixtures of the hostile hour: a warm server of commands, and small things for them to work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from common import save_two_expert_recipe
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
    return save_two_expert_recipe(
        folder, tiny_base("phi3"), rows=24, dropout=0.05, epochs=2, checkpoint_steps=3
    )


@pytest.fixture(scope="session")
def library(tiny_library: Callable[..., Path]) -> Path:
    return tiny_library("phi3", experts=("alpha", "beta", "gamma"), general=("en",))
