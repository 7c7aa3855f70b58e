"""How `gks_arrow` takes its arguments, its library and its base, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence, requests
from lm_eval.models.huggingface import HFLM

from gks_eval.errors import CompatibilityError, GksError, UsageError
from gks_eval.method.setting import NOT_GIVEN
from gks_eval.model.base_model import resolve_base
from gks_eval.model.lm import GksArrowLM

Base = Callable[[str], Path]
LibraryOf = Callable[..., Path]


def _must_not_load(*_: Any, **__: Any) -> None:
    pytest.fail("the base model's weights were read")


def test_a_library_that_lm_eval_turned_into_a_number_is_told() -> None:
    with pytest.raises(UsageError) as caught:  # of `--model_args library=01`
        GksArrowLM(library=1)  # type: ignore[arg-type]
    assert_sentence(caught.value, "library=1:", "as a number", """'library="..."'""")


def test_a_misspelt_argument_is_told_before_the_library_is_looked_for() -> None:
    with pytest.raises(UsageError) as raised:
        GksArrowLM(topk=2)  # the default library lies on the hub
    assert_sentence(raised.value, "topk", "did you mean 'top_k'")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"topk": 3}, ["topk", "did you mean 'top_k'"]),
        ({"librery": "x"}, ["librery", "did you mean 'library'"]),
        ({"preset": "papr"}, ["preset=papr", "did you mean 'paper'"]),
        ({"rule": "facors"}, ["rule=facors", "did you mean 'factors'"]),
        ({"combine": "output"}, ["combine=output", "did you mean 'outputs'"]),
        ({"scoring": "plian"}, ["scoring=plian", "did you mean 'plain'"]),
        ({"top_k": 0}, ["top_k=0", "at least 1"]),
        ({"top_k": 9}, ["top_k=9", "4 experts"]),
        ({"top_k": "many"}, ["top_k=many", "whole number"]),
        ({"temperature": "warm"}, ["temperature=warm", "a number"]),
        ({"router": "norm", "temperature": 0}, ["temperature=0", "above 0"]),
        ({"input_norm": "unti"}, ["input_norm=unti", "id, layer, unit"]),
        ({"subtract": "es"}, ["subtract=es", "en, de, fr"]),
        ({"subtract": "en+en"}, ["subtract=en+en", "twice"]),
        ({"subtract": "en+"}, ["subtract=en+", "en+de"]),
        ({"router": "alpa"}, ["router=alpa", "did you mean 'alpha'"]),
        ({"load_in_4bit": True, "load_in_8bit": True}, ["load_in_4bit", "choose one"]),
        ({"peft": "some/adapter"}, ["peft=", "router=none"]),
        # What lm-eval's command line makes of `revision=12e3`.
        ({"revision": 12e3}, ["revision=12000.0:", "as a number", """'revision="..."'"""]),
        ({"load_in_4bit": "maybe"}, ["load_in_4bit=maybe", "True nor False"]),
        ({"batch_size": "many"}, ["batch_size=many", "number above 0"]),
        ({"batch_size": 0}, ["batch_size=0", "number above 0"]),
        ({"max_length": "x"}, ["max_length=x", "above 0"]),
        ({"device": "foo"}, ["device=foo", "cpu"]),
        ({"device": "meta"}, ["device=meta", "not on this machine"]),
        ({"device": "cpu:7"}, ["device=cpu:7", "not on this machine"]),
    ],
    ids=str,
)
def test_bad_arguments_stop_before_any_weight_is_read(
    arguments: dict[str, Any],
    parts: list[str],
    tiny_library: LibraryOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HFLM, "_create_model", _must_not_load)
    with pytest.raises(GksError) as caught:
        GksArrowLM(library=str(tiny_library("phi3")), **arguments)
    assert_sentence(caught.value, *parts)


def test_a_foreign_base_is_refused_before_its_weights_are_read(
    tiny_base: Base, tiny_library: LibraryOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFLM, "_create_model", _must_not_load)
    with pytest.raises(CompatibilityError) as caught:
        GksArrowLM(str(tiny_base("llama")), library=str(tiny_library("phi3")))
    assert_sentence(caught.value, "does not fit", "qkv_proj")


@pytest.mark.parametrize(
    "arguments",
    [{"dtype": "foo"}, {"tokenizer": "nope"}, {"gguf_file": "none.gguf"}],
    ids=str,
)
def test_what_the_libraries_refuse_is_a_sentence_too(
    arguments: dict[str, Any], tiny_library: LibraryOf
) -> None:
    with pytest.raises(GksError) as caught:
        GksArrowLM(library=str(tiny_library("phi3")), **arguments)
    assert_sentence(caught.value, "could not be loaded")


def test_a_base_that_is_nowhere_is_a_sentence(tiny_library: LibraryOf) -> None:
    with pytest.raises(GksError) as caught:
        GksArrowLM("no/where", library=str(tiny_library("phi3")))
    assert_sentence(caught.value, "no/where", "hub")


def test_a_model_handed_over_has_its_arguments_checked(
    tiny_model: Callable[..., Any], tiny_base: Base, tiny_library: LibraryOf
) -> None:
    model, library = tiny_model("phi3"), str(tiny_library("phi3"))
    for arguments, part in (({"topk": 3}, "top_k"), ({"load_in_4bit": True}, "loaded already")):
        with pytest.raises(UsageError) as caught:
            GksArrowLM(model, library=library, tokenizer=str(tiny_base("phi3")), **arguments)
        assert_sentence(caught.value, part)


def test_a_base_changed_in_place_is_another_base(tiny_base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_base("phi3"), folder)
    lm = GksArrowLM(str(folder), router=None, dtype="float32")
    before = lm.identity()
    (folder / "model.safetensors").touch()
    assert lm.identity() != before


def test_lm_evals_own_default_device_works_without_a_gpu(tiny_base: Base) -> None:
    lm = GksArrowLM(str(tiny_base("phi3")), router=None, device="cuda:0")
    assert lm.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("given", "bits"), [(True, 4), (1, 4), ("true", 4), ("1", 4), (False, 16), (0, 16)]
)
def test_switches_as_the_command_line_writes_them(given: Any, bits: int, tiny_base: Base) -> None:
    base = resolve_base(str(tiny_base("phi3")), NOT_GIVEN, None, given, NOT_GIVEN)
    assert base.quantization == ("nf4" if bits == 4 else "none")


def test_a_base_of_another_name_is_a_warning(
    tiny_base: Base, tiny_library: LibraryOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(tiny_base("phi3"))
    GksArrowLM(str(alias), library=str(tiny_library("phi3")), dtype="float32")
    assert "was made for" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_four_bits_are_nf4_in_bfloat16(tiny_library: LibraryOf) -> None:
    import bitsandbytes as bnb

    lm = GksArrowLM(library=str(tiny_library("phi3")), load_in_4bit=True, dtype="bfloat16")
    layers = [m for m in lm.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 8  # qkv, o, gate_up and down of two layers
    quantization = lm.model.config.quantization_config
    assert quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_compute_dtype == torch.bfloat16
    assert not quantization.bnb_4bit_use_double_quant
    before = [bnb.functional.dequantize_4bit(m.weight, m.weight.quant_state) for m in layers]
    results = lm.loglikelihood(requests([("The sky is", " blue"), ("", "Nothing before this")]))
    assert all(torch.isfinite(torch.tensor(result[0])) for result in results)
    after = [bnb.functional.dequantize_4bit(m.weight, m.weight.quant_state) for m in layers]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
@pytest.mark.parametrize("compute", ["float16", "float32", torch.float16])
def test_four_bits_in_another_compute_dtype(compute: Any, tiny_library: LibraryOf) -> None:
    """As the authors compute: float16 in NF4 layers; every layer of the model has it."""
    import bitsandbytes as bnb

    name = str(compute).removeprefix("torch.")
    arguments = {"library": str(tiny_library("phi3")), "load_in_4bit": True, "dtype": name}
    lm = GksArrowLM(**arguments, bnb_4bit_compute_dtype=compute)
    layers = [m for m in lm.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert {layer.compute_dtype for layer in layers} == {getattr(torch, name)}
    info = lm.get_model_info()["gks_eval"]
    assert info["quantization"] == f"nf4, computing in {name}"
    assert info["identity"] != GksArrowLM(**arguments).identity()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float8"}, ["float8", "float32"]),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": 16}, ["16", "float16"]),
        ({"bnb_4bit_compute_dtype": "float16"}, ["load_in_4bit=True"]),
        ({"load_in_8bit": True, "bnb_4bit_compute_dtype": "float16"}, ["4 bits"]),
    ],
)
def test_a_compute_dtype_that_is_unknown_or_has_no_effect_is_refused(
    arguments: dict[str, Any], words: list[str], tiny_base: Base
) -> None:
    with pytest.raises(UsageError) as caught:
        GksArrowLM(str(tiny_base("phi3")), router=None, **arguments)
    assert_sentence(caught.value, "bnb_4bit_compute_dtype", *words)


def test_a_library_says_how_to_load_and_an_argument_wins(
    tiny_base: Base, tiny_library: LibraryOf, tmp_path: Path
) -> None:
    source = tiny_library("phi3")
    text = (source / "library.yaml").read_text()
    for kind in ("experts", "general"):
        text = text.replace(f": {kind}/", f": {source}/{kind}/")
    folder = tmp_path / "nf4"
    folder.mkdir()
    (folder / "library.yaml").write_text(text + "load:\n  quantization: nf4\n")

    def quantized(**arguments: Any) -> bool:
        lm = GksArrowLM(library=str(folder), **arguments)
        return hasattr(lm.model.config, "quantization_config")

    assert quantized()
    assert quantized(router=None)
    assert not quantized(load_in_4bit=False)
    assert not quantized(pretrained=str(tiny_base("phi3")), load_in_4bit=False)
    plain = GksArrowLM(str(tiny_base("phi3")), router=None)
    assert not hasattr(plain.model.config, "quantization_config")
