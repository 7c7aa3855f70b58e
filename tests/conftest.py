"""Fixtures for all tests: tiny bases and libraries on disk, each made once a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# No test may reach the hub; huggingface_hub reads this once, when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def bars_of_the_next_test() -> Iterator[None]:
    """Undo what `gks_eval.cli.main.main` sets in a process whose standard error is captured."""
    yield
    os.environ.pop("TQDM_DISABLE", None)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return ``tiny_base(family)``: the folder of a tiny random model with its tokenizer."""
    made: dict[str, Path] = {}

    def base(family: str) -> Path:
        from common import save_tiny_base

        if family not in made:
            made[family] = save_tiny_base(tmp_path_factory.mktemp(f"base-{family}"), family)
        return made[family]

    return base


@pytest.fixture(scope="session")
def tiny_library(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]
) -> Callable[..., Path]:
    """Return ``tiny_library(family, **options of common.save_library)``: a library's folder.

    Made once for equal options: copy it before changing anything.
    """
    made: dict[str, Path] = {}

    def library(family: str = "phi3", **options: Any) -> Path:
        from common import save_library

        key = f"{family} {sorted(options.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp(f"library-{family}")
            made[key] = save_library(folder, tiny_base(family), family, **options)
        return made[key]

    return library


@pytest.fixture
def tiny_model(tiny_base: Callable[[str], Path]) -> Callable[..., Any]:
    """Return ``tiny_model(family, dtype=..., **from_pretrained)``: a model freshly loaded."""

    def model(family: str = "phi3", **options: Any) -> Any:
        from common import load_tiny

        return load_tiny(tiny_base(family), **options)

    return model
