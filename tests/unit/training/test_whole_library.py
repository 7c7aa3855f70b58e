"""Whole runs on a tiny Phi-3: what is written, repeated, gone on with and shared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from common import save_with_bos
from safetensors.torch import load_file

from gks_eval.errors import DataError, LibraryError, UsageError
from gks_eval.library.load import load_library
from gks_eval.library.peft_adapter import RECORD
from gks_eval.library.peft_adapter import WEIGHTS_FILE as WEIGHTS
from gks_eval.training.adapter_writer import CURVE
from gks_eval.training.jobs import Job, make_plan
from gks_eval.training.loss_table import LOSS_TABLE, measure_losses
from gks_eval.training.run_callback import RunCallback, Step
from gks_eval.training.whole_library import CURVES, missing_adapters, train_library
from gks_eval.util.files import exclusive

Recipes = Callable[..., Path]
KEYS = ("experts/copy", "experts/upper", "general/en", "general/de")


class Recorder(RunCallback):
    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[tuple[str, str]] = []
        self.steps: list[Step] = []
        self.stop_after = stop_after

    def started(self, job: Job, steps: int) -> None:
        self.events.append(("started", job.key))

    def step(self, job: Job, step: Step) -> None:
        self.steps.append(step)
        if self.stop_after is not None and len(self.steps) == self.stop_after:
            raise KeyboardInterrupt

    def finished(self, job: Job, record: Mapping[str, Any]) -> None:
        self.events.append(("finished", job.key))

    def skipped(self, job: Job, why: str) -> None:
        self.events.append((why, job.key))


def weights(library: Path, key: str) -> bytes:
    return (library / key / WEIGHTS).read_bytes()


def test_a_recipe_becomes_a_library_that_the_evaluator_reads(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file(experts={"held_out": 2}))
    outcome = train_library(plan, tmp_path / "library")
    assert outcome.trained == KEYS
    assert outcome.missing == ()
    library = load_library(str(tmp_path / "library"))
    assert tuple(library.experts) == ("copy", "upper")
    assert tuple(library.general) == ("en", "de")
    for key in KEYS:
        folder = tmp_path / "library" / key
        tensors = load_file(folder / WEIGHTS)
        assert {t.dtype for t in tensors.values()} == {torch.float16}
        assert any(t.abs().max() > 0 for name, t in tensors.items() if "lora_B" in name)
        assert library.config.hashes[key] == json.loads((folder / RECORD).read_text())["sha256"]
        curve = [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]
        assert [step["step"] for step in curve] == list(range(1, len(curve) + 1))
    record = json.loads((tmp_path / "library/experts/copy" / RECORD).read_text())
    assert record["held_out"]["n"] == 2
    assert record["rows"] == 10
    assert record["held_out"]["adapter"] < record["held_out"]["base"]
    assert (tmp_path / "library" / CURVES).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "library" / ".work").exists()
    leftovers = list((tmp_path / "library").rglob(".*"))
    assert leftovers == []


def test_the_loss_table_agrees_with_what_training_measured(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    sections = {"experts": {"held_out": 3}, "general": {"held_out": 1}}
    with pytest.raises(LibraryError, match="not trained yet"):
        measure_losses(make_plan(recipe_file(**sections)), tmp_path / "library")
    plan = make_plan(recipe_file(**sections, adapter={"save_dtype": "float32"}))
    train_library(plan, tmp_path / "library")
    told: list[str] = []
    table = measure_losses(plan, tmp_path / "library", report=told.append)
    assert set(table) == set(KEYS)
    assert set(table["general/en"]) == {"base", "general/en", "general/de"}
    for key in KEYS:
        measured = json.loads((tmp_path / "library" / key / RECORD).read_text())["held_out"]
        assert table[key]["base"] == pytest.approx(measured["base"], abs=2e-4)
        assert table[key][key] == pytest.approx(measured["adapter"], abs=2e-4)
    assert json.loads((tmp_path / "library" / LOSS_TABLE).read_text()) == table
    assert told[0].startswith("experts/copy (n = 3): base ")


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file())
    for name in ("first", "second"):
        train_library(plan, tmp_path / name, only=["copy", "en"])
    other = make_plan(recipe_file(name="other.yaml", seed=4))
    train_library(other, tmp_path / "third", only=["copy"])
    for key in ("experts/copy", "general/en"):
        assert weights(tmp_path / "first", key) == weights(tmp_path / "second", key)
    assert weights(tmp_path / "first", "experts/copy") != weights(
        tmp_path / "third", "experts/copy"
    )


def test_an_adapter_does_not_depend_on_those_trained_before_it(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file())
    train_library(plan, tmp_path / "alone", only=["upper"])
    train_library(plan, tmp_path / "after", only=["copy", "upper"])
    assert weights(tmp_path / "alone", "experts/upper") == weights(
        tmp_path / "after", "experts/upper"
    )


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file(schedule={"checkpoint_steps": 3}))
    train_library(plan, tmp_path / "whole", only=["copy"])
    stopped = Recorder(stop_after=8)
    with pytest.raises(KeyboardInterrupt):
        train_library(plan, tmp_path / "library", only=["copy"], callback=stopped)
    assert not (tmp_path / "library/experts/copy").exists()
    work = tmp_path / "library/.work/experts-copy"
    # As if the process had died while writing a checkpoint.
    shutil.copytree(work / "checkpoint-6", work / "checkpoint-9")
    (work / "checkpoint-9" / "WHOLE").unlink()
    again = Recorder()
    train_library(plan, tmp_path / "library", only=["copy"], callback=again)
    assert [step.step for step in again.steps] == list(range(7, 13))
    assert weights(tmp_path / "library", "experts/copy") == weights(
        tmp_path / "whole", "experts/copy"
    )
    curves = [(tmp_path / name / "experts/copy" / CURVE) for name in ("library", "whole")]
    assert curves[0].read_text() == curves[1].read_text()


def test_finished_adapters_are_not_trained_again_until_the_recipe_changes(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file())
    train_library(plan, tmp_path / "library", only=["copy"])
    again = Recorder()
    train_library(plan, tmp_path / "library", only=["copy"], callback=again)
    assert again.events == [("finished before", "experts/copy")]
    changed = make_plan(recipe_file(schedule={"epochs": 1}))
    assert "experts/copy" in [job.key for job in missing_adapters(changed, tmp_path / "library")]
    (tmp_path / "library/experts/copy" / WEIGHTS).write_bytes(b"torn")
    assert "experts/copy" in [job.key for job in missing_adapters(plan, tmp_path / "library")]


def test_the_beginning_of_every_row_is_recorded(
    recipe_file: Recipes, tiny_base: Callable[[str], Path], tmp_path: Path
) -> None:
    base = save_with_bos(tiny_base("phi3"), tmp_path / "with-bos")
    outcome = train_library(make_plan(recipe_file(base_model=str(base))), tmp_path / "library")
    assert outcome.manifest is not None
    adapters = yaml.safe_load(outcome.manifest.read_text("utf-8"))["provenance"]["adapters"]
    assert {key: adapters[key]["begins_with"] for key in KEYS} == dict.fromkeys(KEYS, "<s>")


def test_what_another_process_trains_is_left_to_it(recipe_file: Recipes, tmp_path: Path) -> None:
    plan = make_plan(recipe_file())
    recorder = Recorder()
    with exclusive(tmp_path / "library/.work/experts-copy.lock") as held:
        assert held
        outcome = train_library(plan, tmp_path / "library", only=["copy", "en"], callback=recorder)
    assert recorder.events[0] == ("another process is training it", "experts/copy")
    assert outcome.trained == ("general/en",)
    assert "experts/copy" in outcome.missing
    assert outcome.manifest is None


def test_a_file_that_is_gone_stops_its_own_adapter_alone(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file())
    (tmp_path / "upper.jsonl").unlink()
    recorder = Recorder()
    with pytest.raises(DataError, match=r"upper\.jsonl"):
        train_library(plan, tmp_path / "library", callback=recorder)
    assert recorder.events == []  # told before anything was trained
    outcome = train_library(plan, tmp_path / "library", only=["copy"])
    assert outcome.trained == ("experts/copy",)
    assert "experts/upper" in outcome.missing


def test_a_manifest_of_another_hand_is_not_overwritten(
    recipe_file: Recipes, tiny_library: Callable[..., Path]
) -> None:
    with pytest.raises(LibraryError, match="--output"):
        train_library(make_plan(recipe_file()), tiny_library())


def test_an_unknown_name_is_refused_with_the_near_one(recipe_file: Recipes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'upper'"):
        train_library(make_plan(recipe_file()), tmp_path, only=["uper"])


def test_a_shared_start_gives_equal_A_before_training(
    recipe_file: Recipes, tiny_model: Callable[..., Any]
) -> None:
    from gks_eval.training.start import attach_adapter

    def starts(start: str) -> list[torch.Tensor]:
        plan = make_plan(recipe_file(start=start))
        found = []
        for job in plan.jobs[:2]:
            base = tiny_model()
            model = attach_adapter(base, plan.recipe.adapter, base.name_or_path, job.start_seed)
            found.append(
                torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])
            )
            assert all(not p.any() for n, p in model.named_parameters() if "lora_B" in n)
        return found

    shared, own = starts("shared"), starts("own")
    assert torch.equal(*shared)
    assert not torch.equal(*own)


def test_logits_of_scored_positions_train_as_those_of_all(
    recipe_file: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next to TRL's own loss, which computes the logits of all positions on a CPU."""
    from trl import SFTTrainer

    plan = make_plan(recipe_file())
    experts = plan.select(["copy", "upper"])
    kept: list[int] = []
    forward = SFTTrainer.compute_loss

    def counted(*given: Any, **named: Any) -> Any:
        kept.append(1)
        return forward(*given, **named)

    monkeypatch.setattr(SFTTrainer, "compute_loss", counted)
    train_library(plan, tmp_path / "scored", only=[job.key for job in experts])
    assert not kept
    monkeypatch.setattr("gks_eval.training.sft._trainer_class", lambda _device: SFTTrainer)
    train_library(plan, tmp_path / "all", only=[job.key for job in experts])
    assert kept
    for job in experts:
        ours, theirs = (
            list(map(json.loads, (tmp_path / name / job.key / CURVE).read_text().splitlines()))
            for name in ("scored", "all")
        )
        assert len(ours) == len(theirs) > 1
        for one, other in zip(ours, theirs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_a_base_that_ignores_the_choice_of_logits_computes_all() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from gks_eval.training.sft import _chooses_logits

    for family, chooses in (("llama", True), ("xlstm", False)):
        with torch.device("meta"):
            config = AutoConfig.for_model(family, num_hidden_layers=1, hidden_size=64, num_heads=2)
            base = AutoModelForCausalLM.from_config(config)
        model: Any = SimpleNamespace(get_base_model=lambda base=base: base)
        assert _chooses_logits(model) == chooses
