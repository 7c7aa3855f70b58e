"""Converted MTTL libraries: logits equal to MTTL's router, in every naming, tied and untied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mttl
import pytest
import torch
from common import assert_sentence
from typer.testing import CliRunner

from gks_eval.cli.main import build_app
from gks_eval.errors import CompatibilityError, LibraryError
from gks_eval.library.load import Library, load_library
from gks_eval.model.inject import attach
from gks_eval.training.conversion import convert_mttl
from gks_eval.training.mttl_expert import peft_factors
from gks_eval.training.mttl_names import transformers_names

IDS = torch.randint(4, 250, (2, 9), generator=torch.Generator().manual_seed(5))
SETTING = "arrow;top_k=2"


def converted(
    folder: Path, base: Path, experts: list[mttl.Expert], naming: str, **more: Any
) -> Library:
    source = mttl.save_mttl_library(folder / "mttl", experts, naming, **more)
    convert_mttl(source, folder / "library", base_model=str(base))
    return load_library(str(folder / "library"))


def logits(model: Any, library: Any = None, setting: str = SETTING) -> torch.Tensor:
    with torch.no_grad():
        if library is None:
            return model(IDS).logits
        with attach(model, library, setting):
            return model(IDS).logits


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("naming", mttl.NAMINGS)
def test_every_naming_gives_the_logits_of_mttls_router(
    tmp_path: Path,
    tiny_base: Callable[[str], Path],
    tiny_model: Callable[..., Any],
    naming: str,
    prefix: str,
) -> None:
    experts = [mttl.make_expert(seed) for seed in range(4)]
    more = {"prefix": prefix, "tie_params": mttl.TIE_PARAMS}
    library = converted(tmp_path, tiny_base("phi"), experts, naming, **more)
    model = tiny_model("phi")
    found = logits(model, library)
    with mttl.routed_by_mttl(model, experts, "concat", top_k=2):
        expected = logits(model)
    assert (expected - logits(model)).abs().max() > 0.5  # the experts matter
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with mttl.routed_by_mttl(model, experts, None, top_k=2):
        assert (logits(model) - expected).abs().max() > 1e-2  # and so do the ties
    entry = library.config.tied_prototypes[0]
    assert (entry.layers, entry.op) == (["q_proj", "k_proj", "v_proj"], "concat")


@pytest.mark.parametrize("tie", [None, "concat", "sum"])
@pytest.mark.parametrize("shared", [True, False])
def test_tied_by_each_operation_and_untied(
    tmp_path: Path,
    tiny_base: Callable[[str], Path],
    tiny_model: Callable[..., Any],
    tie: str | None,
    shared: bool,
) -> None:
    experts = [mttl.make_expert(seed, tied=shared) for seed in range(4)]
    more = {} if tie is None else {"tie_params": mttl.TIE_PARAMS, "tie_op": tie}
    library = converted(tmp_path, tiny_base("phi"), experts, "transformers", **more)
    assert [one.op for one in library.config.tied_prototypes] == ([] if tie is None else [tie])
    model = tiny_model("phi")
    found = logits(model, library)
    with mttl.routed_by_mttl(model, experts, tie, top_k=2):
        torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-4)


OPTIONS = [
    {"input_norm": "norm_d"},
    {"input_norm": "unit", "temperature": 0.05},
    {"proto_norm": "norm_d", "temperature": -1.0},
    {"proto_norm": "norm_p", "temperature": 3.0},
    {"proto_norm": "unit", "scaled": True},
    {"scaled": True},
    {"input_norm": "norm_d", "proto_norm": "norm_d", "temperature": 0.0},
    {"input_norm": "unit", "proto_norm": "norm_p"},
]
WORDS = {"norm_d": "layer", "norm_p": "experts", "unit": "unit"}


@pytest.mark.parametrize("top_k", [-1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mttls_options_of_arrow(
    tmp_path: Path,
    tiny_base: Callable[[str], Path],
    tiny_model: Callable[..., Any],
    options: dict[str, Any],
    top_k: int,
) -> None:
    experts = [mttl.make_expert(seed) for seed in range(5)]
    library = converted(tmp_path, tiny_base("phi"), experts, "sequence")
    own = {k: WORDS[v] for k, v in options.items() if k in ("input_norm", "proto_norm")}
    temperature = options.get("temperature", 1.0)
    if options.get("scaled"):
        own["proto_scale"] = "squared"
        if "proto_norm" not in options:  # MTTL's singular values leave out the scaling
            temperature *= (mttl.ALPHA / mttl.RANK) ** 2
    own |= {"temperature": str(temperature), "top_k": str(top_k)}
    setting = ";".join(["arrow", *(f"{name}={value}" for name, value in own.items())])
    model = tiny_model("phi")
    found = logits(model, library, setting)
    with mttl.routed_by_mttl(model, experts, "concat", top_k=top_k, **options):
        torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=1e-4)


def test_without_the_tie_the_routes_differ(
    tmp_path: Path, tiny_base: Callable[[str], Path], tiny_model: Callable[..., Any]
) -> None:
    """Print how far tied and untied routing are from MTTL's; docs/method.md has the figures."""
    experts = [mttl.make_expert(seed, size=3.0) for seed in range(10)]
    library = converted(tmp_path, tiny_base("phi"), experts, "sequence")
    untied = replace(library, tied={})
    ids = torch.randint(4, 250, (6, 20), generator=torch.Generator().manual_seed(1))
    model = tiny_model("phi")
    with mttl.routed_by_mttl(model, experts, "concat", top_k=3), torch.no_grad():
        expected = model(ids).logits
    equal = {}
    for name, one in (("tied", library), ("untied", untied)):
        with attach(model, one, "arrow"), torch.no_grad():
            found = model(ids).logits
        equal[name] = int((found.argmax(-1) == expected.argmax(-1)).sum())
        print(f"{name}: {equal[name]} of 120 argmax, {(found - expected).abs().max():.2g} apart")
    print(f"largest logit: {expected.abs().max():.3g}")
    assert equal["tied"] == 120
    assert equal["untied"] < 60


def test_a_is_stored_with_one_of_the_tied_layers(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    experts = [mttl.make_expert(0)]
    source = mttl.save_mttl_library(
        tmp_path / "mttl", experts, "transformers", tie_params=mttl.TIE_PARAMS
    )
    tensors = mttl.tensors_of(experts[0], "transformers")
    left = {key: value for key, value in tensors.items() if not key.endswith("k_proj.lora_a")}
    torch.save(left, source / "c0.ckpt")
    convert_mttl(source, tmp_path / "library", base_model=str(tiny_base("phi")))
    pairs = load_library(str(tmp_path / "library")).experts["c0"].pairs
    for layer in range(mttl.LAYERS):
        found = pairs[f"model.layers.{layer}.self_attn.k_proj"].A
        assert torch.equal(found, experts[0].a[layer, "k_proj"].T)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("layers.1.mixer.Wqkv", "model.layers.0.self_attn.Wqkv"),
        ("model.layers.32.mixer.out_proj", "model.layers.31.self_attn.dense"),
        ("transformer.h.0.mixer.out_proj", "model.layers.0.self_attn.dense"),
        ("model.transformer.h.3.mlp.fc1", "model.layers.3.mlp.fc1"),
        ("layers.7.self_attn.v_proj", "model.layers.7.self_attn.v_proj"),
        ("model.model.layers.7.mlp.fc2", "model.layers.7.mlp.fc2"),
    ],
)
def test_names_of_layers(layer: str, expected: str) -> None:
    assert transformers_names([layer], "x") == {layer: expected}


def test_the_mlp_counts_as_the_attention_next_to_it() -> None:
    names = transformers_names(["layers.4.mixer.Wqkv", "layers.4.mlp.fc1"], "x")
    assert names["layers.4.mlp.fc1"] == "model.layers.3.mlp.fc1"


@pytest.mark.parametrize(
    "layer",
    [
        "layers.0.mixer.Wqkv",  # the embedding
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.self_attn.q_proj",
        "model.layers.0.self_attn.out_proj",
        "model.layers.0.self_attn.q_proj.experts.c0",
        "encoder.block.0.layer.0.SelfAttention.q",
        "layers.x.mixer.Wqkv",
    ],
)
def test_an_unknown_layer_is_an_error(tmp_path: Path, layer: str) -> None:
    source = mttl.save_mttl_library(tmp_path / "mttl", [mttl.make_expert(0)], "sequence")
    tensors = torch.load(source / "c0.ckpt")
    for factor in "ab":
        tensors[f"{layer}.lora_{factor}"] = tensors.pop(f"layers.1.mixer.out_proj.lora_{factor}")
    torch.save(tensors, source / "c0.ckpt")
    with pytest.raises(LibraryError) as caught:
        convert_mttl(source, tmp_path / "out", base_model="org/phi")
    assert_sentence(caught.value, "c0.ckpt", layer, "no layer name")
    assert not (tmp_path / "out").exists()


def test_layers_that_a_known_base_has_convert_under_their_own_names(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    source = mttl.save_mttl_library(tmp_path / "mttl", [mttl.make_expert(0)], "transformers")
    tensors = torch.load(source / "c0.ckpt")
    a, b = torch.randn(mttl.WIDTH, mttl.RANK), torch.randn(mttl.RANK, 260)
    torch.save(tensors | {"lm_head.lora_a": a, "lm_head.lora_b": b}, source / "c0.ckpt")
    convert_mttl(source, tmp_path / "out", base_model=str(tiny_base("phi")))
    assert "lm_head" in load_library(str(tmp_path / "out")).experts["c0"].pairs
    with pytest.raises(LibraryError, match="lm_head is no layer name"):
        convert_mttl(source, tmp_path / "other", base_model="org/phi")


def test_two_names_of_one_layer_are_refused() -> None:
    with pytest.raises(LibraryError) as caught:
        transformers_names(["layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj"], "x")
    assert_sentence(caught.value, "are both model.layers.1.self_attn.q_proj")


@pytest.mark.parametrize("fused_first", [True, False])
def test_a_fused_layer_and_one_of_its_parts_are_refused(fused_first: bool) -> None:
    layers = ["transformer.h.0.mixer.Wqkv", "model.layers.0.self_attn.k_proj"]
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers if fused_first else layers[::-1]:
        width = 24 if layer.endswith("Wqkv") else 8
        tensors |= {f"{layer}.lora_a": torch.ones(8, 2), f"{layer}.lora_b": torch.ones(2, width)}
    with pytest.raises(LibraryError) as caught:
        peft_factors(tensors, "x.ckpt")
    assert_sentence(caught.value, "x.ckpt", "are both model.layers.0.self_attn.k_proj")


@pytest.mark.parametrize("changes", [("two", 16), (None, 16), (0, 16), (4, None), (4, "nan")])
def test_a_rank_or_alpha_that_is_no_number_is_refused(
    tmp_path: Path, changes: tuple[Any, Any]
) -> None:
    config = {"lora_rank": changes[0], "lora_alpha": changes[1]}
    name = "model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_a": torch.ones(8, 4), f"{name}.lora_b": torch.ones(4, 8)}
    torch.save({"state_dict": tensors, "hyper_parameters": config}, tmp_path / "a.ckpt")
    with pytest.raises(LibraryError) as caught:
        convert_mttl(tmp_path, tmp_path / "out", base_model="org/phi")
    assert_sentence(caught.value, "a.ckpt", "lora_rank", repr(changes[0]), "lora_alpha")
    assert not (tmp_path / "out").exists()


def test_experts_that_do_not_fit_the_base_are_refused(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    source = mttl.save_mttl_library(tmp_path / "mttl", [mttl.make_expert(0)], "sequence")
    with pytest.raises(CompatibilityError) as caught:
        convert_mttl(source, tmp_path / "out", base_model=str(tiny_base("llama")))
    assert_sentence(caught.value, "c0.ckpt does not fit", "no linear layer model.layers.0.self")
    assert not (tmp_path / "out").exists()


def test_experts_of_another_width_or_depth_are_refused(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    source = mttl.save_mttl_library(tmp_path / "mttl", [mttl.make_expert(0)], "transformer.h")
    tensors = torch.load(source / "c0.ckpt")
    deeper = {key.replace("h.1.", "h.2."): value for key, value in tensors.items()}
    narrow = {k: v[:, :48] if k.endswith("out_proj.lora_b") else v for k, v in tensors.items()}
    for content, part in ((deeper, "model.layers.2.self_attn"), (narrow, "has shape (64, 64)")):
        torch.save(content, source / "c0.ckpt")
        with pytest.raises(CompatibilityError, match="does not fit") as caught:
            convert_mttl(source, tmp_path / "out", base_model=str(tiny_base("phi")))
        assert part in str(caught.value)


def test_an_expert_that_leaves_layers_out_names_its_layers(
    tmp_path: Path, tiny_base: Callable[[str], Path], tiny_model: Callable[..., Any]
) -> None:
    source = mttl.save_mttl_library(tmp_path / "mttl", [mttl.make_expert(0)], "transformers")
    tensors = torch.load(source / "c0.ckpt")
    torch.save({k: v for k, v in tensors.items() if ".1." not in k}, source / "c0.ckpt")
    convert_mttl(source, tmp_path / "out", base_model=str(tiny_base("phi")))
    library = load_library(str(tmp_path / "out"))
    assert len(library.experts["c0"].pairs) == 4
    logits(tiny_model("phi"), library, "expert:c0")


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"tie_params": "q_proj("}, ["tie_params", "cannot be matched"]),
        ({"tie_params": r"q_proj\.lora_b|k_proj\.lora_b"}, ["ties lora_b"]),
        ({"tie_params": mttl.TIE_PARAMS, "tie_op": "mean"}, ["tie_op is 'mean'", "concat and sum"]),
    ],
)
def test_ties_that_cannot_be_read_are_refused(
    tmp_path: Path, config: dict[str, str], parts: list[str]
) -> None:
    experts = [mttl.make_expert(0)]
    source = mttl.save_mttl_library(tmp_path / "mttl", experts, "transformers", **config)
    with pytest.raises(LibraryError) as caught:
        convert_mttl(source, tmp_path / "out", base_model="org/phi")
    assert_sentence(caught.value, "c0.ckpt", *parts)


def test_experts_with_other_ties_do_not_share_a_library(tmp_path: Path) -> None:
    experts = [mttl.make_expert(seed) for seed in range(2)]
    source = mttl.save_mttl_library(tmp_path / "mttl", experts, "transformers")
    torch.save(mttl.tensors_of(experts[1], "sequence"), source / "c1.ckpt")
    with pytest.raises(LibraryError) as caught:
        convert_mttl(source, tmp_path / "out", base_model="org/phi")
    assert_sentence(caught.value, "c0.ckpt and c1.ckpt tie", "separate libraries")


def test_a_manifest_that_is_kept_must_tie_the_same_layers(tmp_path: Path) -> None:
    source = mttl.save_mttl_library(tmp_path / "mttl", [mttl.make_expert(0)], "sequence")
    manifest = tmp_path / "out/library.yaml"
    manifest.parent.mkdir()
    text = "base_model: org/phi\nexperts: {c0: experts/c0}\n"
    manifest.write_text(text)
    with pytest.raises(LibraryError) as caught:
        convert_mttl(source, manifest.parent, base_model="org/phi")
    assert_sentence(caught.value, "library.yaml", "q_proj", "write tied_prototypes")
    manifest.write_text(f"{text}tied_prototypes: [{{layers: [v_proj, q_proj, k_proj]}}]\n")
    assert convert_mttl(source, manifest.parent, base_model="org/phi").manifest is None


def test_the_command_says_whether_the_fit_was_checked(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    source = mttl.save_mttl_library(tmp_path / "mttl", [mttl.make_expert(0)], "sequence")
    for base, checked in (("org/phi", False), (str(tiny_base("phi")), True)):
        arguments = ["convert", "mttl", str(source), str(tmp_path / "out"), "--base-model", base]
        found = CliRunner().invoke(build_app(), arguments)
        assert found.exit_code == 0, found.output
        assert "one prototype per expert for q_proj + k_proj + v_proj\n" in found.output
        assert ("was not checked" in found.output) is not checked
