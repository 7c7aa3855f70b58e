"""Memory, disk and bases that do not suffice end in sentences; what a killed write left goes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence
from safetensors.torch import save_file

from gks_eval.errors import CompatibilityError, HubError, LibraryError, ResourceError
from gks_eval.training.jobs import make_plan
from gks_eval.training.limits import limit_errors, peak_memory_mb, reset_peak_memory
from gks_eval.training.whole_library import train_library

Recipes = Callable[..., Path]
EXHAUSTED = {
    # torch's own words on this machine, and what it says on a GPU.
    "CPU": lambda: torch.empty(10**15),
    "Python": lambda: bytearray(10**18),
    "GPU": lambda: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory.")),
}


def exhaust(how: str) -> Any:
    made: Any = EXHAUSTED[how]()
    return next(made)


@pytest.mark.parametrize("how", EXHAUSTED)
def test_running_out_of_memory_names_the_knobs(
    how: str, recipe_file: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trl

    monkeypatch.setattr(trl.SFTTrainer, "train", lambda *_, **__: exhaust(how))
    with pytest.raises(ResourceError) as caught:
        train_library(make_plan(recipe_file()), tmp_path / "library", only=["copy"])
    assert_sentence(caught.value, "schedule.batch_size", "max_tokens")
    assert not (tmp_path / "library/experts/copy").exists()


def test_a_base_that_does_not_fit_says_so(
    recipe_file: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    outline = transformers.AutoModelForCausalLM.from_pretrained

    def load(place: str, **how: Any) -> Any:
        return outline(place, **how) if how.get("device_map") == "meta" else exhaust("CPU")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(ResourceError, match="quantization: nf4"):
        train_library(make_plan(recipe_file()), tmp_path / "library", only=["copy"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full")
@pytest.mark.parametrize("numbers", [10, 1_000_000])
def test_a_disk_that_fills_under_a_checkpoint_is_a_sentence(numbers: int, tmp_path: Path) -> None:
    def write() -> None:
        with limit_errors(tmp_path):
            torch.save({"moments": torch.zeros(numbers)}, "/dev/full")

    with pytest.raises(ResourceError) as caught:
        write()
    assert_sentence(caught.value, str(tmp_path), "the disk is full")


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), limit_errors(tmp_path):
        _ = 1 / 0


def test_peak_memory_is_of_this_adapter_and_not_of_those_before() -> None:
    cpu = torch.device("cpu")
    before = torch.ones(60_000_000)  # 240 MB
    high = peak_memory_mb(cpu)
    del before
    reset_peak_memory(cpu)
    assert peak_memory_mb(cpu) < high - 150


BREAKS: dict[str, Callable[[Path], object]] = {
    "cut short": lambda f: (f / "model.safetensors").write_bytes(b"\x08"),
    "of another width": lambda f: (f / "config.json").write_text(
        (f / "config.json").read_text().replace('"hidden_size": 64', '"hidden_size": 32')
    ),
    "without a configuration": lambda f: (f / "config.json").write_text("{"),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_base_is_named(
    how: str, recipe_file: Recipes, tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base("phi3"), folder)
    plan = make_plan(recipe_file(base_model=str(folder)))
    BREAKS[how](folder)
    with pytest.raises(HubError if how == "gone" else LibraryError) as caught:
        train_library(plan, tmp_path / "library", only=["copy"])
    assert_sentence(caught.value, str(folder))


def test_one_misspelled_target_among_others_is_refused(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    path = recipe_file(adapter={"targets": ["qkv_proj", "o_prj"]})
    with pytest.raises(CompatibilityError) as caught:
        train_library(make_plan(path), tmp_path / "library", only=["copy"])
    assert_sentence(caught.value, "adapter.targets: o_prj", "did you mean 'o_proj'")


def test_what_a_killed_write_left_goes_and_a_neighbour_s_stays(
    recipe_file: Recipes, tmp_path: Path
) -> None:
    experts = tmp_path / "library/experts"
    for name in (".copy-0123456789abcdef", ".copy-cat-0123456789abcdef"):
        (experts / name).mkdir(parents=True)
        save_file({"half": torch.zeros(2)}, experts / name / "adapter_model.safetensors")
    train_library(make_plan(recipe_file()), tmp_path / "library", only=["copy"])
    left = sorted(folder.name for folder in experts.iterdir())
    assert left == [".copy-cat-0123456789abcdef", "copy"]
