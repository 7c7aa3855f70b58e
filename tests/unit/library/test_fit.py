"""Whether a library fits a base: names and shapes of linear layers, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import (
    FAMILIES,
    TARGETS,
    assert_sentence,
    edit_json,
    load_tiny,
    save_adapter,
    save_library,
    save_tiny_base,
)

from gks_eval.errors import CompatibilityError, LibraryError
from gks_eval.library.base_copies import check_copies
from gks_eval.library.fit import check_fit, linear_layers, linear_shapes, meta_model
from gks_eval.library.load import load_library
from gks_eval.library.peft_adapter import CONFIG_FILE, WEIGHTS_FILE


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_without_weights_are_those_with(family: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(family)
    shapes = linear_shapes(model)
    assert linear_shapes(meta_model(model.config)) == shapes
    assert {
        name: tuple(layer.weight.shape) for name, layer in linear_layers(model).items()
    } == shapes
    for target in TARGETS[family]:
        assert f"model.layers.1.self_attn.{target}" in shapes
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("quantization", ["4", "8"])
def test_shapes_of_packed_weights_are_the_layers_own(
    quantization: str, tiny_model: Callable[..., Any]
) -> None:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**{f"load_in_{quantization}bit": True})
    packed = tiny_model("phi3", quantization_config=config)
    assert linear_shapes(packed) == linear_shapes(tiny_model("phi3"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_library_fits_its_base(
    family: str, tiny_library: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    library = load_library(str(tiny_library(family)))
    check_fit(library, tiny_model(family), "base")
    assert len(library.modules) == 2 * len(TARGETS[family])


def test_another_architecture(
    tiny_library: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    library = load_library(str(tiny_library("phi3")))
    with pytest.raises(CompatibilityError) as caught:
        check_fit(library, tiny_model("llama"), "my/llama")
    # o_proj is there in both: only the fused qkv_proj is missing.
    assert_sentence(
        caught.value,
        "does not fit my/llama",
        "no linear layer model.layers.0.self_attn.qkv_proj (and 1 more)",
        "the adapters were made for",
    )


CHANGED = {
    "width": (
        {"hidden_size": 32},
        ["model.layers.0.self_attn.o_proj has shape (32, 32) and the adapters are for (64, 64)"],
    ),
    "deeper": (
        {"num_hidden_layers": 4},
        ["leaves out model.layers.2.self_attn.o_proj and 3 more", "layers_to_transform"],
    ),
    "shallower": (
        {"num_hidden_layers": 1},
        ["no linear layer model.layers.1.self_attn.o_proj (and 1 more)"],
    ),
}


@pytest.mark.parametrize(("changes", "parts"), CHANGED.values(), ids=CHANGED.keys())
def test_another_size(
    changes: dict[str, int], parts: list[str], tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    library = load_library(str(tiny_library("phi3")))
    other = load_tiny(save_tiny_base(tmp_path, "phi3", **changes))
    with pytest.raises(CompatibilityError) as caught:
        check_fit(library, other, "another")
    assert_sentence(caught.value, library.name, "does not fit another", *parts)


def test_adapters_of_some_layers_on_purpose(tmp_path: Path, tiny_base: Callable[..., Path]) -> None:
    folder = save_library(
        tmp_path, tiny_base("phi3"), "phi3", experts=("a", "b"), general=(), layers_to_transform=[1]
    )
    library = load_library(str(folder))
    assert all(".1." in module for module in library.modules)
    check_fit(library, load_tiny(tiny_base("phi3")), "base")


@pytest.mark.parametrize("named", [True, False])
def test_a_config_without_targets_means_pefts_choice(
    named: bool, tmp_path: Path, tiny_base: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    assert DEFAULTS["llama"] == ["q_proj", "v_proj"]
    targets = ["q_proj", "v_proj"] if named else ["q_proj", "k_proj", "v_proj"]
    folder = save_library(
        tmp_path, tiny_base("llama"), "llama", experts=("a",), general=(), target_modules=targets
    )
    edit_json(folder / "experts" / "a" / CONFIG_FILE, target_modules=None)
    library, model = load_library(str(folder)), tiny_model("llama")
    if named:
        check_fit(library, model, "base")
        return
    with pytest.raises(CompatibilityError) as caught:
        check_fit(library, model, "base")
    assert_sentence(caught.value, "'a' updates model.layers.0.self_attn.k_proj", "target_modules")


def test_an_adapter_of_a_model_without_its_head(
    tmp_path: Path, tiny_base: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    from transformers import AutoModel

    headless = AutoModel.from_pretrained(tiny_base("llama"))
    save_adapter(headless, tmp_path / "a", ["q_proj"], seed=1, task_type="FEATURE_EXTRACTION")
    manifest = {"base_model": str(tiny_base("llama")), "experts": {"a": "a"}}
    (tmp_path / "library.yaml").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(CompatibilityError) as caught:
        check_fit(load_library(str(tmp_path)), tiny_model("llama"), "base")
    assert_sentence(
        caught.value,
        "no linear layer layers.0.self_attn.q_proj (and 1 more)",
        "it has model.layers.0.self_attn.q_proj",
        "without its head",
    )


def test_a_base_with_an_adapter_of_peft(
    tiny_library: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    library = load_library(str(tiny_library("llama")))
    model: Any = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    for one in (model, model.get_base_model()):
        with pytest.raises(CompatibilityError) as caught:
            check_fit(library, one, "tiny")
        assert_sentence(caught.value, "q_proj carries an adapter of PEFT", "`model.unload()`")
    check_fit(library, model.unload(), "tiny")


@pytest.mark.parametrize("content", [None, b"", b"\x09\0\0\0\0\0\0\0{}"])
def test_copies_in_a_file_that_changed_after_loading(
    content: bytes | None, tiny_library: Callable[..., Path], tmp_path: Path
) -> None:
    alpha = load_library(str(tiny_library("phi3"))).experts["alpha"]
    changed = replace(alpha, folder=tmp_path, copies={"lm_head.weight": "lm_head.weight"})
    if content is not None:
        (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(LibraryError) as raised:
        check_copies(changed, torch.nn.Linear(1, 1), "base")
    assert_sentence(raised.value, WEIGHTS_FILE, "changed after adapter 'alpha' was loaded")
