"""A dry run ends as the run would: with the same sentence and exit code, before any step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence

from gks_eval.cli.main import build_app
from gks_eval.errors import (
    CompatibilityError,
    ConfigError,
    DataError,
    GksError,
    HubError,
    LibraryError,
    ResourceError,
    UsageError,
)

Recipes = Callable[..., Path]


def spoil_second(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "upper.jsonl").read_text().splitlines()]
    rows[-1]["target"] = None
    (folder / "upper.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return {}


def spoil_base(how: Callable[[Path], object]) -> Callable[[Path], dict[str, Any]]:
    def spoil(folder: Path) -> dict[str, Any]:
        how(folder / "base")
        return {}

    return spoil


def no_template(base: Path) -> None:
    (base / "chat_template.jinja").unlink(missing_ok=True)


def no_end_of_text(base: Path) -> None:
    path = base / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))


def output_is_a_file(folder: Path) -> dict[str, Any]:
    (folder / "library").touch()
    return {}


def output_of_another_hand(folder: Path) -> dict[str, Any]:
    (folder / "library").mkdir()
    (folder / "library/library.yaml").write_text("base_model: a\nexperts: {x: y}\n", "utf-8")
    return {}


FAULTS: dict[str, tuple[Any, type[GksError], str]] = {
    "a misspelled target": (
        {"adapter": {"targets": ["qkv_proj", "o_prj"]}}, CompatibilityError, "o_prj"
    ),
    "a column that is not there": (
        {"experts": {"data": {"source": "question"}}}, DataError, "no column 'question'"
    ),
    "a file that is not there": (
        {"experts": {"members": {"copy": {"file": "gone.jsonl"}}}}, DataError, "gone.jsonl"
    ),
    "no row that `where` selects": (
        {"experts": {"data": {"where": {"target": "nothing"}}}}, DataError, "check `where`"
    ),
    "no window": (
        {"general": {"data": {"prompt": 500, "completion": 12}}}, DataError, "0 windows"
    ),
    "all rows held out": ({"experts": {"held_out": 12}}, DataError, "none remain for training"),
    "an empty value in the last expert": (spoil_second, DataError, "upper.jsonl row 12"),
    "a base that is not there": (
        spoil_base(lambda base: shutil.rmtree(base, ignore_errors=True)),
        HubError,
        "the folder does not exist",
    ),
    "a base without weights": (
        spoil_base(lambda base: (base / "model.safetensors").unlink(missing_ok=True)),
        LibraryError,
        "no file named",
    ),
    "weights that were cut short": (
        spoil_base(lambda base: (base / "model.safetensors").write_bytes(b"\x08")),
        LibraryError,
        "weights that cannot be read",
    ),
    "a base without a chat template": (spoil_base(no_template), DataError, "format: plain"),
    "a tokenizer without an end of text": (spoil_base(no_end_of_text), DataError, "cut: first"),
    "loftq on a layer that is not quantised": (
        {
            "adapter": {"init": "loftq", "targets": ["o_proj", "lm_head"]},
            "load": {"quantization": "nf4"},
        },
        CompatibilityError,
        "lm_head is not held in 4 bits",
    ),
    "loftq on a base that is not quantised": (
        {"adapter": {"init": "loftq"}}, ConfigError, "needs a quantised base"
    ),
    "an output that is a file": (output_is_a_file, ResourceError, "--output"),
    "an output of another hand": (output_of_another_hand, LibraryError, "--output"),
}  # fmt: skip


@pytest.fixture
def command(
    recipe_file: Recipes, tmp_path: Path, tiny_base: Callable[[str], Path]
) -> Callable[..., GksError]:
    """Return ``command(fault, *options)``: the error that `gks-eval train` ends with."""
    shutil.copytree(tiny_base("phi3"), tmp_path / "base")

    def end(fault: Any, *options: str) -> GksError:
        changes: dict[str, Any] = {"base_model": "./base"}
        if isinstance(fault, dict):
            changes |= fault
        path = recipe_file(**changes)
        if not isinstance(fault, dict):
            fault(tmp_path)
        with pytest.raises(GksError) as caught:
            build_app()(
                ["train", str(path), "--output", str(tmp_path / "library"), *options],
                standalone_mode=False,
            )
        error: GksError = caught.value
        return error

    return end


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dry_run_ends_with_the_sentence_that_the_run_ends_with(
    fault: str, command: Callable[..., GksError], tmp_path: Path
) -> None:
    spoil, kind, words = FAULTS[fault]
    dry = command(spoil, "--dry-run")
    assert type(dry) is kind
    assert_sentence(dry, words)
    made = tmp_path / "library"
    if made.exists():  # what `spoil` put there
        if made.is_dir():
            shutil.rmtree(made)
        else:
            made.unlink()
    run = command(spoil)
    assert (type(run), str(run)) == (kind, str(dry))
    assert not list(tmp_path.glob("library/experts/*"))  # nothing was trained before it


def test_a_dry_run_needs_what_the_run_needs(
    command: Callable[..., GksError], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        gpu = {"load": {"device": "cuda"}}
        errors = command(gpu, "--dry-run"), command(gpu)
        assert {(type(e), str(e)) for e in errors} == {(ResourceError, str(errors[0]))}
    table = command({}, "--loss-table", "--dry-run"), command({}, "--loss-table")
    assert {(type(e), str(e)) for e in table} == {(DataError, str(table[0]))}
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("trl", "ray") else find(name)
    )
    errors = command({}, "--dry-run"), command({})
    assert {(type(e), str(e)) for e in errors} == {(UsageError, str(errors[0]))}
    assert_sentence(errors[0], "trl", "gks-eval[train]")
    assert_sentence(command({}, "--dry-run", "--ray", "local"), "gks-eval[ray]")
    with pytest.raises(UsageError, match="--output"):
        build_app()(["train", "smollm2-demo", "--dry-run"], standalone_mode=False)
