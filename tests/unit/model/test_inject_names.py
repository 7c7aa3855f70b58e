"""A model with a library attached keeps the base's names: saving, loading, copies, PEFT, compiling.

The logits of the model before, and of what is reloaded, are what everything is compared with.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from common import FAMILIES, TARGETS, load_tiny, relative_error, save_library, save_tiny_base
from safetensors import safe_open
from torch import nn

from gks_eval.errors import UsageError
from gks_eval.library.load import Library, load_library
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.model.quantized import keep_portable_layout
from gks_eval.scoring.head import Head

EXACT = Setting(rule="delta", combine="outputs", subtract=("en", "de"), top_k=2)
TOKENS = torch.randint(4, 260, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def library(tiny_library: Callable[..., Path]) -> Library:
    return load_library(str(tiny_library("phi3")))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(TOKENS).logits


def names(model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    """Return the names of all modules, parameters and entries of the state."""
    return (
        [name for name, _ in model.named_modules()],
        [name for name, _ in model.named_parameters()],
        list(model.state_dict()),
    )


def saved_names(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_the_base(family: str, tied: bool, tmp_path: Path) -> None:
    folder = save_tiny_base(tmp_path / "base", family, tie_word_embeddings=tied)
    library = load_library(str(save_library(tmp_path / "library", folder, family)))
    model = load_tiny(folder)
    before, names_before = logits(model), names(model)
    with attach(model, library, EXACT):
        routed = logits(model)
        assert names(model) == names_before
        model.save_pretrained(tmp_path / "saved")
        torch.save(model.state_dict(), tmp_path / "state.pt")
    assert relative_error(routed, before) > 1e-2
    assert saved_names(tmp_path / "saved") == saved_names(folder)
    assert torch.equal(logits(load_tiny(tmp_path / "saved")), before)
    fresh = load_tiny(folder)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(logits(fresh), before)


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_saved_as_it_is(
    bits: int, library: Library, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4"
    )
    model = tiny_model("phi3", quantization_config=config)
    with attach(model, library, EXACT):
        model.save_pretrained(tmp_path / "attached")
    before = logits(model)
    model.save_pretrained(tmp_path / "detached")
    assert saved_names(tmp_path / "attached") == saved_names(tmp_path / "detached")
    reloaded = load_tiny(tmp_path / "attached")
    keep_portable_layout(reloaded)  # as `attach` does: bitsandbytes has two kernels
    assert torch.equal(logits(reloaded), before)


def test_weights_are_loaded_by_the_names_of_the_base(
    library: Library, tiny_model: Callable[..., Any]
) -> None:
    other = tiny_model("phi3")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    with attach(other, library, EXACT):
        expected = logits(other)
    model = tiny_model("phi3")
    with attach(model, library, EXACT):
        assert relative_error(logits(model), expected) > 1e-3
        model.load_state_dict(other.state_dict())
        assert torch.equal(logits(model), expected)


def test_copies_and_pickles_are_routed_alike_and_apart(
    library: Library, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("phi3")
    before = logits(model)
    attachment = attach(model, library, EXACT)
    routed = logits(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied, pickled = copy.deepcopy(model), torch.load(file, weights_only=False)
    model_too, attachment_too = copy.deepcopy((model, attachment))
    attachment.detach()
    assert torch.equal(logits(model), before)
    for each in (copied, pickled, model_too):
        assert torch.equal(logits(each), routed)
        with pytest.raises(UsageError, match="already"):
            attach(each, library, EXACT)
    attachment_too.detach()
    assert torch.equal(logits(model_too), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_peft_finds_the_layers_of_a_routed_model(
    library: Library, tiny_model: Callable[..., Any]
) -> None:
    """PEFT's update comes on top: with B = 0 nothing changes, and detaching leaves PEFT's alone."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model("phi3")
    before = logits(model)
    attachment = attach(model, library, EXACT)
    routed = logits(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=list(TARGETS["phi3"])))
    assert torch.equal(logits(adapted), routed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    both = logits(adapted)
    attachment.detach()
    peft_alone = logits(adapted)
    assert relative_error(both, routed) > 1e-3
    assert relative_error(peft_alone, before) > 1e-3
    assert torch.equal(logits(adapted.unload()), before)


def test_a_compiled_model_follows_the_setting(
    library: Library, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("phi3")
    with attach(model, library, EXACT) as attachment:
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(logits(compiled), logits(model))
        attachment.apply(Setting(router="uniform", subtract=()))
        torch.testing.assert_close(logits(compiled), logits(model))
        state = [name.removeprefix("_orig_mod.") for name in compiled.state_dict()]
        assert state == list(tiny_model("phi3").state_dict())
    torch.testing.assert_close(logits(compiled), logits(model))


def test_a_routed_head_is_applied_whole() -> None:
    """The scorer multiplies a plain head's weight itself; a hook would be passed over."""
    linear, hidden = nn.Linear(8, 32), torch.randn(3, 8)
    linear.register_forward_hook(lambda _module, _args, output: output + torch.arange(32.0))
    found, _ = Head(linear, SimpleNamespace()).log_probs(
        hidden, torch.arange(3), torch.tensor([5, 6, 7])
    )
    expected = torch.log_softmax(linear(hidden), dim=-1)[torch.arange(3), torch.tensor([5, 6, 7])]
    torch.testing.assert_close(found, expected)
