"""Recipes: every fault at once, the bundled ones, and what a dry run says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gks_eval.cli._training_view import clock, show_estimate
from gks_eval.cli.train import find_recipe
from gks_eval.errors import ConfigError, ResourceError, UsageError
from gks_eval.model.device import recipe_device
from gks_eval.training.accumulation import share_of
from gks_eval.training.estimate import estimate
from gks_eval.training.jobs import make_plan
from gks_eval.training.recipe import (
    ExpertMember,
    ExpertSection,
    GeneralMember,
    Recipe,
    Schedule,
)
from gks_eval.training.recipe_words import NOT_HERE, WORDS
from gks_eval.training.sft import optimizer_for, steps_of
from gks_eval.training.whole_library import missing_adapters, train_library
from gks_eval.util.files import replaced_file, replaced_folder, write_text
from gks_eval.util.json_file import read_or_empty
from gks_eval.util.paths import adapters_dir
from gks_eval.util.yaml import load_typed, parse_typed

FAULTY = """\
base_model: org/model
adapter: {rank: 0, targets: [], init: loftq}
start: sometimes
experts:
  max_token: 100
  prompt: "In: "
  members:
    avg: {file: a.jsonl}
    b: {fraction: 2}
    c: {file: c.jsonl, hub: org/rows}
    d: {file: d.jsonl, split: test}
  clusters: {file: clusters.yaml}
general:
  members: {en: {}}
"""


def test_all_faults_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(FAULTY, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_typed(path, Recipe)
    message = str(caught.value)
    for told in (
        "has 13 faults", "line 2: adapter.rank", "line 2: adapter.targets", "line 3: start",
        "did you mean 'max_tokens'", "line 8: experts.members.avg", "'avg' is a reserved word",
        "line 9: experts.members.b.fraction", "line 10: experts.members.c: give `file` or `hub`",
        # What needs several keys to see is told in the same round, with its own line.
        "line 2: adapter.init: `init: loftq` needs", "line 6: experts.prompt: it must say",
        "line 9: experts.members.b: has no rows", "line 11: experts.members.d.split: belongs to",
        "line 4: experts: name the experts by", "line 14: general.members.en: has no rows",
    ):  # fmt: skip
        assert told in message, message


THEIRS = """
adapter: {targets: [o_proj], r: 8, lora_alpha: 16, lora_dropout: 0.1, target_modules: [q_proj],
  init_lora_weights: loftq, bias: none, task_type: CAUSAL_LM, modules_to_save: [lm_head],
  use_rslora: true, use_dora: true}
schedule: {num_train_epochs: 3, per_device_train_batch_size: 4, gradient_accumulation_steps: 8,
  lr_scheduler_type: linear, warmup_ratio: 0.1, warmup_steps: 10, max_grad_norm: 1.0,
  optim: adamw_torch, save_steps: 10, max_steps: 100, seed: 1, bf16: true}
learning_rate: 1.0e-4
experts:
  max_length: 512
  completion_only_loss: true
  schedule: {num_train_epochs: 2}
  members: {a: {file: a.jsonl, dataset_name: org/rows}}
base_model: org/model
"""
MEANT = {
    "adapter": {
        "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout",
        "target_modules": "targets", "init_lora_weights": "init",
    },
    "schedule": {
        "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size",
        "gradient_accumulation_steps": "accumulation", "lr_scheduler_type": "decay",
        "warmup_ratio": "warmup", "max_grad_norm": "clip", "optim": "optimizer",
        "save_steps": "checkpoint_steps", "bf16": "load.dtype",
    },
    "experts": {"max_length": "max_tokens", "completion_only_loss": "loss"},
    "experts.schedule": {"num_train_epochs": "epochs"},
    "experts.members.a": {"dataset_name": "hub"},
}  # fmt: skip


REFUSED = ("bias", "task_type", "modules_to_save", "use_dora", "use_rslora")


def test_words_of_peft_and_trl_are_answered_with_the_recipe_s_own() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_typed(THEIRS, Recipe, "r.yaml")
    # "more" would hide the last ones: as many as are listed are checked, each by itself.
    shown = str(caught.value)
    assert "adapter.r is not a known key; did you mean 'rank'; " in shown
    for place, words in MEANT.items():
        for word, meant in words.items():
            hint = Recipe.hint((*place.split("."), word))
            assert hint == f"did you mean {meant!r}", word
    assert Recipe.hint(("learning_rate",)) == "did you mean 'schedule.learning_rate'"
    assert Recipe.hint(("schedule", "seed")) == "write 'seed' at the top of the recipe"
    for word in REFUSED:
        assert f"adapter.{word} is not a known key; {NOT_HERE[word]}; " in shown


def test_every_word_is_one_of_theirs_and_every_answer_a_key_of_a_recipe() -> None:
    from peft import LoraConfig
    from trl import SFTConfig

    theirs = {field.name for kind in (LoraConfig, SFTConfig) for field in dataclasses.fields(kind)}
    older = {"warmup_ratio"}  # of transformers 4
    assert {*MEANT["adapter"], *MEANT["schedule"], *REFUSED} - theirs <= older
    data = {**ExpertMember.model_fields, **GeneralMember.model_fields}
    models = {"data": data, "experts": ExpertSection.model_fields, "": Recipe.model_fields}
    for name in ("adapter", "load", "schedule"):
        models[name] = Recipe.model_fields[name].annotation.model_fields  # type: ignore[union-attr]
    for place in WORDS.values():
        section, _, key = place.rpartition(".")
        assert key in models[section], place


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"experts": None, "general": None}, "trains `experts`"),
        ({"adapter": {"init": "loftq"}}, "needs a quantised base"),
        ({"experts": {"members": {}}}, "by `members` or by `clusters`"),
        ({"experts": {"members": {"a": {}}}}, "members.a: has no rows"),
        ({"experts": {"members": {"1e3": {"file": "a"}}}}, "'1e3' is no usable name: lm-eval"),
        ({"general": {"members": {"None": {"file": "a"}}}}, "reads it as true, false or none"),
        ({"experts": {"members": {"nul": {"file": "a"}}}}, "cannot be a folder on Windows"),
        ({"experts": {"members": {"b": {"file": "a"}, "B": {"file": "a"}}}}, "ignore case"),
        ({"experts": {"format": "plain", "prompt": "x"}}, "{source}"),
        ({"experts": {"members": {"a": {"file": "a", "split": "x"}}}}, "belongs to `hub`"),
    ],
)
def test_what_makes_no_sense_is_a_fault(
    changes: dict[str, Any], told: str, recipe_file: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=told):
        make_plan(recipe_file(**changes))


def test_a_section_and_a_member_take_what_they_do_not_say_from_above(
    recipe_file: Callable[..., Path],
) -> None:
    plan = make_plan(
        recipe_file(
            general={
                "schedule": {"batch_size": 16},
                "data": {"hub": "org/wiki", "prompt": 507, "completion": 5},
                "members": {"en": {"config": "en"}, "fr": {"file": "fr.txt", "prompt": 511}},
            }
        )
    )
    en, fr = plan.jobs[2:]
    assert (en.section.schedule.batch_size, en.section.schedule.learning_rate) == (16, 5e-3)
    assert (en.member.hub, en.member.config, en.member.prompt) == ("org/wiki", "en", 507)
    assert (fr.member.hub, fr.member.file) == (None, "fr.txt")
    assert (fr.member.prompt, fr.member.completion) == (511, 5)


def test_the_bundled_phi_3_recipe_has_the_figures_of_the_paper() -> None:
    recipe = load_typed(adapters_dir() / "phi3-mini/recipe.yaml", Recipe)
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (4, 16, 0.05)
    assert recipe.adapter.targets == ["qkv_proj", "o_proj"]
    assert recipe.load.quantization == "nf4"
    jobs = make_plan(adapters_dir() / "phi3-mini/recipe.yaml").jobs
    assert len(jobs) == 13
    schedule = jobs[0].section.schedule
    assert (schedule.epochs, schedule.learning_rate, schedule.clip) == (1, 1e-4, 2.0)
    assert (schedule.batch_size, schedule.accumulation, schedule.warmup) == (1, 16, 0.03)
    assert (schedule.decay, schedule.optimizer) == ("cosine", "paged_adamw_8bit")
    cuts = {j.name: (j.member.prompt, j.member.completion) for j in jobs[10:]}
    assert cuts == {"en": (507, 5), "de": (507, 5), "fr": (511, 1)}
    phi2 = load_typed(adapters_dir() / "phi2/recipe.yaml", Recipe)
    assert phi2.load.quantization == "none"
    assert phi2.experts is not None
    assert phi2.experts.data.fraction == 1.0


def test_the_authors_recipe_trains_on_every_token_with_the_released_numbers_of_steps() -> None:
    """checkpoint-17, -17 and -35 of 16 x 16 rows; else as the paper's recipe."""
    plan = make_plan(find_recipe("phi3-mini-authors"))
    general = {job.name: job for job in plan.jobs[10:]}
    assert {(job.section.format, job.section.loss) for job in plan.jobs} == {("chat", "all")}
    steps = {
        name: steps_of(job.member.windows, job.section.schedule) for name, job in general.items()
    }
    assert steps == {"en": 17, "de": 17, "fr": 35}
    # Rows of a full last step that this number of steps leaves over, by Trainer's former count of
    # steps: batches // accumulation. 4,500 and 9,000 rows fit, 5,000 do not.
    fitting = [n for n in range(1, 9999) if -(-n // 16) // 16 == 17]
    assert (fitting[0], fitting[-1]) == (4337, 4592)
    assert -(-9000 // 16) // 16 == 35
    assert {job.member.where["split"] for job in plan.jobs[:10]} == {"train"}
    paper = load_typed(adapters_dir() / "phi3-mini/recipe.yaml", Recipe)
    for key in ("base_model", "load", "seed", "adapter", "schedule", "start"):
        assert getattr(plan.recipe, key) == getattr(paper, key)


def test_the_bundled_demo_library_is_the_one_of_its_recipe() -> None:
    folder = adapters_dir() / "smollm2-demo"
    plan = make_plan(folder / "recipe.yaml")
    assert missing_adapters(plan, folder) == []
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    assert size <= 10_000_000
    for job in plan.jobs:
        held_out = read_or_empty(folder / job.key / "training.json")["held_out"]
        assert held_out["adapter"] < held_out["base"], job.key


def test_a_dry_run_counts_and_names_what_is_missing(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe_file(
        load={"device": "cuda"},
        experts={"members": {"copy": {"file": "copy.jsonl"}, "gone": {"file": "gone.jsonl"}}},
    )
    found = estimate(make_plan(path))
    assert [job.key for job in found.jobs][:2] == ["experts/copy", "experts/gone"]
    copy, gone, en, _ = found.jobs
    assert (copy.rows, copy.steps) == (12, 12)
    assert gone.rows is None
    assert (en.rows, en.tokens) == (6, 6 * 32)
    assert any("gone.jsonl" in str(fault) for fault in found.faults)
    assert found.memory is not None
    # 65,000 float32 weights and the embedding of a two-layer model.
    assert 4 * 90_000 < found.memory.base < 4 * 140_000
    console = Console(record=True, width=120)
    show_estimate(found, console)
    text = console.export_text()
    assert "experts/copy" in text
    assert "fault: " in text
    assert not (tmp_path / ".work").exists()


def test_a_dry_run_tells_finished_adapters_misspelled_targets_and_remarks(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    train_library(make_plan(recipe_file()), tmp_path / "library", only=["copy"])
    found = estimate(make_plan(recipe_file()), output=tmp_path / "library")
    assert [job.key for job in found.jobs if job.finished] == ["experts/copy"]
    changed = recipe_file(
        adapter={"init": "loftq", "targets": ["qkv_proj", "o_prj"]}, load={"quantization": "nf4"}
    )
    found = estimate(make_plan(changed), output=tmp_path / "library")
    assert not any(job.finished for job in found.jobs)
    assert "did you mean 'o_proj'" in str(found.faults[0])
    console = Console(record=True, width=120)
    show_estimate(found, console)
    assert "removes this correction" in " ".join(console.export_text().split())


def test_a_recipe_that_needs_a_gpu_says_so(recipe_file: Callable[..., Path]) -> None:
    import torch

    plan = make_plan(recipe_file(load={"device": "cuda"}))
    if torch.cuda.is_available():
        assert recipe_device(plan.recipe.load.device).type == "cuda"
    else:
        with pytest.raises(ResourceError, match="device: auto"):
            recipe_device(plan.recipe.load.device)


def test_steps_and_shares() -> None:
    schedule = Schedule(epochs=2, batch_size=2, accumulation=4)
    assert steps_of(17, schedule) == 2 * 3  # 9 micro-steps make 3 optimiser steps
    assert steps_of(17, share_of(schedule, 2), 2) == 2 * 3
    with pytest.raises(UsageError, match="cannot be divided among 3"):
        share_of(schedule, 3)
    assert optimizer_for(schedule, "cpu") == "adamw_8bit"
    assert optimizer_for(schedule, "cuda") == "paged_adamw_8bit"
    assert optimizer_for(Schedule(optimizer="adamw"), "cpu") == "adamw"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    import errno

    full = OSError(errno.ENOSPC, "No space left on device")
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ResourceError, match="disk is full"), replaced_file(tmp_path / "a.txt"):
        raise full
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/kept").touch()

    def fill() -> None:
        with replaced_folder(tmp_path / "folder") as aside:
            (aside / "half").touch()
            raise full

    with pytest.raises(ResourceError, match="again to resume"):
        fill()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "folder", "kept"]


def test_a_recipe_is_found_by_its_file_its_folder_and_its_bundled_name() -> None:
    folder = adapters_dir() / "phi2"
    for way in (str(folder / "recipe.yaml"), str(folder), "phi2"):
        assert find_recipe(way).resolve() == (folder / "recipe.yaml").resolve()
    with pytest.raises(UsageError, match="smollm2-demo"):
        find_recipe("nowhere")


def test_clock() -> None:
    assert [clock(s) for s in (5, 65, 7205)] == ["0:05", "1:05", "2:00:05"]
