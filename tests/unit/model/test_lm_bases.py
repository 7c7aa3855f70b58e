"""Bases that are saved quantised, and tokenizers that do not belong to their base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence, edit_json, load_tiny, requests, save_byte_tokenizer
from lm_eval.models.huggingface import HFLM

from gks_eval.errors import DataError, UsageError
from gks_eval.model.lm import GksArrowLM
from gks_eval.model.quantized import quantization_of, saved_quantization

Base = Callable[[str], Path]
LibraryOf = Callable[..., Path]
FOUR_BITS: dict[str, dict[str, Any]] = {
    "nf4": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "nf4, double quantisation, computing in float16": {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.float16,
        "bnb_4bit_use_double_quant": True,
    },
    "fp4, computing in float32": {},
}
EIGHT_BITS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8, threshold 4.5": {"llm_int8_threshold": 4.5},
}
KINDS = {name: {"load_in_4bit": True, **fields} for name, fields in FOUR_BITS.items()}
KINDS |= {name: {"load_in_8bit": True, **fields} for name, fields in EIGHT_BITS.items()}
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes"),
    # HFLM hands over the saved configuration, which is what transformers takes.
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`"),
]


@pytest.fixture(scope="module")
def saved(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return ``saved(kind)``: the folder of a tiny base that transformers saved quantised."""
    from transformers import BitsAndBytesConfig

    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("quantised") / "base"
            config = BitsAndBytesConfig(**KINDS[kind])
            load_tiny(
                tiny_base("phi3"), torch.bfloat16, quantization_config=config
            ).save_pretrained(made[kind])
            save_byte_tokenizer(made[kind])
        return made[kind]

    return folder


def test_what_is_recorded_of_a_base_saved_quantised_is_what_it_is(
    saved: Callable[[str], Path], tiny_library: LibraryOf
) -> None:
    digests = set()
    for kind in KINDS:
        lm = GksArrowLM(str(saved(kind)), library=str(tiny_library("phi3")))
        info = lm.get_model_info()["gks_eval"]
        assert info["quantization"] == saved_quantization(lm.config) == kind
        digests.add(info["identity"])
        given = GksArrowLM(lm.model, router=None, tokenizer=lm.tokenizer) if kind == "nf4" else None
        if given is not None:
            assert given.get_model_info()["gks_eval"]["quantization"] == kind
    assert len(digests) == len(KINDS)


@pytest.mark.parametrize(("argument", "made"), [("load_in_4bit", "nf4"), ("load_in_8bit", "int8")])
def test_what_is_made_on_loading_is_recorded_alike(
    argument: str, made: str, tiny_base: Base, saved: Callable[[str], Path]
) -> None:
    for folder in (tiny_base("phi3"), saved(made)):  # asked for what it is already: the same
        lm = GksArrowLM(str(folder), router=None, dtype="bfloat16", **{argument: True})
        assert lm.get_model_info()["gks_eval"]["quantization"] == made
    plain = GksArrowLM(str(tiny_base("phi3")), router=None)
    assert plain.get_model_info()["gks_eval"]["quantization"] == "none"


def test_another_quantisation_than_the_saved_one_is_refused_before_weights_are_read(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    double = list(KINDS)[1]
    monkeypatch.setattr(HFLM, "_create_model", lambda *_, **__: pytest.fail("weights were read"))
    for kind, argument in (
        (double, "load_in_4bit"), ("fp4, computing in float32", "load_in_4bit"),
        ("int8", "load_in_4bit"), ("nf4", "load_in_8bit"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            GksArrowLM(str(saved(kind)), router=None, **{argument: True})
        assert_sentence(caught.value, f"({kind})", f"{argument}=False", str(saved(kind)))
    monkeypatch.undo()
    lm = GksArrowLM(str(saved(double)), router=None, load_in_4bit=False)
    assert lm.quantization == double


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_methods_that_only_the_config_names(
    fields: dict[str, Any], name: str, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("phi3")
    model.config.quantization_config = fields
    assert quantization_of(model) == name


def test_layers_count_and_not_what_the_config_says(tiny_model: Callable[..., Any]) -> None:
    from transformers import BitsAndBytesConfig

    model = tiny_model("phi3", quantization_config=BitsAndBytesConfig(**KINDS["nf4"]))
    model.config.quantization_config.bnb_4bit_use_double_quant = True
    assert quantization_of(model) == "nf4"


@pytest.fixture(scope="module")
def larger(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base with an added token that has no embedding, as some have for images."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("larger") / "base"
    shutil.copytree(tiny_base("phi3"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scoring", ["packed", "plain"])
def test_a_token_without_an_embedding_is_named_where_it_occurs(scoring: str, larger: Path) -> None:
    how: dict[str, Any] = {"tokenizer": str(larger), "dtype": "float32", "batch_size": 2}
    hf = HFLM(str(larger), device="cpu", **how)
    lm = GksArrowLM(str(larger), router=None, scoring=scoring, **how)
    known = requests([("Q", " a"), ("", "b")])
    expected = hf.loglikelihood(known, disable_tqdm=True)
    found = lm.loglikelihood(known, disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-3)
    until = {"until": ["\n"], "max_gen_toks": 2}
    for kind, pair in (
        ("loglikelihood", ("Q<image>", " a")),
        ("loglikelihood_rolling", ("See <image>",)),
        ("generate_until", ("See <image>", until)),
    ):
        asked = requests([("Say", *pair[1:]), pair], kind)
        with pytest.raises((IndexError, RuntimeError)):
            getattr(hf, kind)(asked, disable_tqdm=True)
        with pytest.raises(DataError) as caught:
            getattr(lm, kind)(asked, disable_tqdm=True)
        assert_sentence(caught.value, "<image>", "token 260", "260 embeddings")
        assert getattr(lm, kind)(asked[:1], disable_tqdm=True)


def test_a_tokenizer_of_another_base_is_refused_before_weights_are_read(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tokenizer"
    save_byte_tokenizer(folder)
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = raw["model"]["vocab"]
    vocabulary["ab"] = len(vocabulary)
    edit_json(folder / "tokenizer.json", model={**raw["model"], "merges": [["a", "b"]]})
    base = str(tiny_base("phi3"))
    with pytest.raises((IndexError, RuntimeError)):
        HFLM(base, tokenizer=str(folder), device="cpu").loglikelihood(requests([("Q", "ab")]))
    monkeypatch.setattr(HFLM, "_create_model", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UsageError) as caught:
        GksArrowLM(base, router=None, tokenizer=str(folder))
    assert_sentence(caught.value, str(folder), "261 tokens", "260 embeddings")
