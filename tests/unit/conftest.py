"""A recipe for the tiny Phi-3, with data of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

WORDS = "river stone lamp cloud violin orchard copper winter harbour candle meadow thread".split()


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_base: Callable[[str], Path]) -> Callable[..., Path]:
    """Return ``recipe_file(**changes)``: writes a recipe that trains two experts and two languages.

    Changes replace top-level keys; ``experts`` and ``general`` are merged one level deep.
    """

    def write(family: str = "phi3", name: str = "recipe.yaml", **changes: Any) -> Path:
        for number, task in enumerate(("copy", "upper")):
            rows = [
                {"source": f"{task}: {word} {n}", "target": word if number == 0 else word.upper()}
                for n, word in enumerate(WORDS)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{task}.jsonl").write_text(lines, "utf-8")
        for number, language in enumerate(("en", "de")):
            texts = (" ".join(WORDS[i:] + WORDS[:i]) + "." * number for i in range(len(WORDS)))
            (tmp_path / f"{language}.txt").write_text("\n\n".join(texts), "utf-8")
        targets = {"phi3": ["qkv_proj", "o_proj"], "phi": ["q_proj", "v_proj", "dense"]}[family]
        recipe: dict[str, Any] = {
            "base_model": str(tiny_base(family)),
            "adapter": {"targets": targets, "dropout": 0.05},
            "seed": 3,
            "schedule": {
                "epochs": 2,
                "learning_rate": 5e-3,
                "accumulation": 2,
                "optimizer": "adamw",
                "gradient_checkpointing": False,
            },
            "experts": {
                "max_tokens": 64,
                "members": {"copy": {"file": "copy.jsonl"}, "upper": {"file": "upper.jsonl"}},
            },
            "general": {
                "data": {"prompt": 27, "completion": 5, "cut": "packed", "windows": 6},
                "members": {"en": {"file": "en.txt"}, "de": {"file": "de.txt"}},
            },
        }
        for key, value in changes.items():
            merges = isinstance(value, dict) and key in (
                "experts",
                "general",
                "schedule",
                "adapter",
            )
            recipe[key] = {**recipe.get(key, {}), **value} if merges else value
        path = tmp_path / name
        path.write_text(
            yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}, sort_keys=False),
            "utf-8",
        )
        return path

    return write
