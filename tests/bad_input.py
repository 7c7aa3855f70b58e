"""Ways to spoil what `gks-eval` reads: functions that are given the folder a command runs in.

The folder holds ``library/``, a copy of a tiny library with the experts alpha, beta, gamma and
delta and the languages en, de and fr.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from common import edit_json, save_library, save_random_vectors
from evidence_factory import write_run
from safetensors.torch import load_file, save_file

from gks_eval.errors import GksError

Spoil = Callable[[Path], Any]
WEIGHTS = "library/experts/beta/adapter_model.safetensors"
PREPARED = "library/prepared/phatgoose/vectors.safetensors"
CONFIG = "library/experts/beta/adapter_config.json"


@dataclass(frozen=True)
class Case:
    """One row: `spoil` is given the folder that the command runs in; `wing` is for the count."""

    wing: str
    command: str
    kind: type[GksError] | int
    parts: tuple[str, ...]
    spoil: Spoil = field(default=lambda folder: None)

    @property
    def exit_code(self) -> int:
        return self.kind if isinstance(self.kind, int) else self.kind.exit_code


def text(path: str, content: str | bytes) -> Spoil:
    raw = content if isinstance(content, bytes) else content.encode()

    def spoil(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(raw)

    return spoil


def manifest(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "library/library.yaml"
        content = yaml.safe_load(path.read_text("utf-8")) | changes
        path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")

    return spoil


def config(**changes: Any) -> Spoil:
    return lambda folder: edit_json(folder / CONFIG, **changes)


def tensors(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file({k: v.contiguous() for k, v in held.items()}, folder / WEIGHTS)

    return spoil


def prepared(folder: Path) -> None:
    save_random_vectors(folder / "library", "phatgoose")


def first_entry(value: float) -> Spoil:
    return tensors(lambda held: next(iter(held.values()))[0].fill_(value))


def pickled(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).with_name(name).write_bytes(pickle.dumps({"x": 1}))

    return spoil


def header_length(length: int) -> Spoil:
    def spoil(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + raw[8:])

    return spoil


def all_adapters(change: Callable[[Path], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        for path in (folder / "library").glob("*/*/adapter_model.safetensors"):
            change(path)

    return spoil


def without_layer(path: Path) -> None:
    held = load_file(path)
    save_file({key: value for key, value in held.items() if "layers.1." not in key}, path)


def narrower(path: Path) -> None:
    held = load_file(path)
    cut = {k: v[:, :32] if "lora_A" in k else v for k, v in held.items()}
    save_file({k: v.contiguous() for k, v in cut.items()}, path)


def linked_outside(folder: Path) -> None:
    shutil.move(folder / "library/experts/beta", folder / "outside")
    (folder / "library/experts/beta").symlink_to(folder / "outside")


def unequal_ranks(folder: Path) -> None:
    base = Path(yaml.safe_load((folder / "library/library.yaml").read_text("utf-8"))["base_model"])
    shutil.rmtree(folder / "library")
    save_library(
        folder / "library",
        base,
        "phi3",
        experts=("beta", "alpha", "c"),
        adapters={"beta": {"r": 2}},
    )


def aliases() -> str:
    lines = ["base_model: x", "provenance:", "  a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines)


def recipe(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        base = yaml.safe_load((folder / "library/library.yaml").read_text("utf-8"))["base_model"]
        if not (folder / "rows.jsonl").exists():
            rows = ({"source": f"say {n}", "target": str(n)} for n in range(8))
            (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        content = {
            "base_model": base,
            "adapter": {"targets": ["o_proj"]},
            "experts": {"members": {"one": {"file": "rows.jsonl"}}},
            **changes,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")

    return spoil


def clustered(**data: Any) -> Spoil:
    """A recipe with `clusters.yaml`, which is not there, and rows of the tasks x and x1."""
    rows = [{"source": "say", "target": "it", "task_name": name} for name in ("x", "x1")]
    return both(
        text("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        recipe(
            experts={
                "data": {"file": "rows.jsonl", **data},
                "clusters": {"file": "clusters.yaml"},
            }
        ),
    )


def both(*spoils: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        for each in spoils:
            each(folder)

    return spoil


def runs(change: Callable[[Path], Any] | None = None, **options: Any) -> Spoil:
    """Two runs of one task; `change` is given the second one's folder, `options` make it differ."""

    def spoil(folder: Path) -> None:
        scores = [float(n % 3 > 0) for n in range(120)]
        write_run(folder / "old", {"a": scores})
        write_run(folder / "new", {"a": scores}, **options)
        if change:
            change(folder / "new")

    return spoil


def cut_short(pattern: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (path,) = folder.glob(pattern)
        path.write_bytes(path.read_bytes()[:-40])

    return change


def faulty_piqa(folder: Path) -> None:
    source = Path(__file__).parent / "data/hub/baber"
    shutil.copytree(source, folder / "baber")
    path = folder / "baber/piqa/plain_text/validation.jsonl"
    path.write_text(path.read_text("utf-8").replace("Use a flat plate.", ""), "utf-8")
