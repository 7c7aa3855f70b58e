"""What a run holds in memory: nothing of an adapter outlives it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from common import TARGETS, save_tiny_base

import gks_eval.training.one_adapter as one_adapter
from gks_eval.training.jobs import make_plan
from gks_eval.training.whole_library import train_library

Recipes = Callable[..., Path]

RUN = """
import json, sys
from pathlib import Path
from gks_eval.training.jobs import make_plan
from gks_eval.training.whole_library import train_library
from gks_eval.training.run_callback import RunCallback

class Scales(RunCallback):
    def started(self, job, steps):
        status = Path("/proc/self/status").read_text().split()
        self.held = int(status[status.index("VmRSS:") + 1]) // 1024
    def finished(self, job, record):
        print("MB", json.dumps([self.held, record["peak_memory_mb"]]), flush=True)

train_library(make_plan(Path(sys.argv[1])), Path(sys.argv[2]), callback=Scales())
"""


@pytest.mark.parametrize("held_out", [0, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_no_parameter_of_a_base_outlives_its_adapter(
    optimizer: str,
    checkpointing: bool,
    held_out: int,
    recipe_file: Recipes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[list[weakref.ref[Any]]] = []
    load = one_adapter.load_frozen_base

    def alive() -> list[int]:
        return [sum(one() is not None for one in base) for base in loaded]

    def watched(*arguments: Any) -> Any:
        assert sum(alive()) == 0
        base = load(*arguments)
        loaded.append([weakref.ref(part) for part in (base, *base.parameters())])
        return base

    monkeypatch.setattr(one_adapter, "load_frozen_base", watched)
    # pytest keeps log records; bitsandbytes' first one holds an exception, whose frames hold us.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    schedule = {
        "epochs": 1, "optimizer": optimizer, "gradient_checkpointing": checkpointing
    }  # fmt: skip
    path = recipe_file(schedule=schedule, experts={"held_out": held_out})
    train_library(make_plan(path), tmp_path / "library", only=["copy", "upper"])
    assert len(loaded) == 2
    assert alive() == [0, 0]


@pytest.fixture(scope="session")
def mid_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random Phi-3 of 137 MB: large against all that is not its own."""
    return save_tiny_base(
        tmp_path_factory.mktemp("mid"),
        "phi3",
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=8192,
    )


def measured(folder: Path, base: Path, adapters: int, **recipe: Any) -> list[list[int]]:
    """Train experts in a process of their own; return MB held before and at most, per adapter."""
    rows = [{"source": f"say {n} " + "stone " * 12, "target": f"{n}"} for n in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    names = [f"e{n}" for n in range(adapters)]
    content = {
        "base_model": str(base),
        "adapter": {"targets": list(TARGETS["phi3"])},
        "experts": {"members": {name: {"file": "rows.jsonl"} for name in names}},
        **recipe,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "recipe.yaml"), str(folder / "library")],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line[3:]) for line in done.stdout.splitlines() if line.startswith("MB ")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_memory_is_flat_from_the_second_adapter_on(
    optimizer: str, mid_base: Path, tmp_path: Path
) -> None:
    schedule = {
        "batch_size": 4, "accumulation": 1, "optimizer": optimizer, "gradient_checkpointing": False
    }  # fmt: skip
    base_mb = (mid_base / "model.safetensors").stat().st_size / 2**20
    first, *later = measured(tmp_path, mid_base, 4, schedule=schedule)
    held, peak = zip(*later, strict=True)
    assert max(held) - min(held) < base_mb / 2
    assert max(peak) - min(peak) < 1.5 * base_mb  # a base each would be 2 of them
    # Freed blocks that the allocator keeps are several times the base.
    assert max(held) < first[0] + 2 * base_mb


def test_a_step_on_the_meta_device_grows_with_its_tokens(tiny_base: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from gks_eval.training.footprint import step_bytes
    from gks_eval.training.recipe import AdapterShape
    from gks_eval.training.start import attach_adapter

    base = str(tiny_base("phi3"))
    outline = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, device_map="meta")
    model = attach_adapter(outline, AdapterShape(targets=["qkv_proj", "o_proj"]), base, 0)
    sizes = {
        (rows, checkpointing): step_bytes(
            model, rows, 128, checkpointing=checkpointing, device="cpu"
        )
        for rows in (2, 4)
        for checkpointing in (False, True)
    }
    assert 1.8 < sizes[4, False] / sizes[2, False] < 2.1
    assert sizes[2, True] < sizes[2, False]
    # At least the two layers' gate and up projections, of 256 numbers a token, are kept.
    assert sizes[2, False] > 2 * 256 * 4 * 2 * 128
