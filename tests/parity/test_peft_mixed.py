"""Adapters of different layers, ranks and scalings against PEFT and against float64 loops."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from common import MIXED, load_tiny, relative_error, save_random_vectors
from one_by_one import one_by_one, random_requests

from gks_eval.library.load import Library, load_library
from gks_eval.method.reference import reference_update
from gks_eval.method.registry import ROUTERS
from gks_eval.model.inject import Attachment, attach
from gks_eval.scoring import packed_log_likelihoods

TOKENS = torch.randint(4, 260, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tiny_library: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "library"
    shutil.copytree(tiny_library("llama", adapters=MIXED), folder)
    for router in ("phatgoose", "mean_activation"):
        save_random_vectors(folder, router)
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Library:
    return load_library(str(folder))


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS).logits


def peft_model(base: Path, folder: Path, library: Library, dtype: torch.dtype) -> Any:
    """Have PEFT load every adapter of the library into one model."""
    from peft import PeftModel

    paths = {name: folder / "experts" / name for name in library.experts}
    paths |= {name: folder / "general" / name for name in library.general}
    (first, path), *others = paths.items()
    model = PeftModel.from_pretrained(load_tiny(base, dtype), path, adapter_name=first)
    for name, path in others:
        model.load_adapter(path, adapter_name=name)
    return model.eval()


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma", "delta"])
def test_one_expert_is_pefts(
    name: str, model: Any, folder: Path, library: Library, tiny_base: Callable[..., Path]
) -> None:
    theirs = peft_model(tiny_base("llama"), folder, library, torch.float32)
    theirs.set_adapter(name)
    with attach(model, library, f"expert:{name}") as attachment:
        routed = {layer for layer, update in attachment.layers.items() if update.weights}
        assert routed == set(library.experts[name].pairs)
        assert relative_error(logits(model), logits(theirs)) < 1e-5


@pytest.mark.parametrize("setting", ["uniform;preset=exact", "merge:mean"])
def test_the_mean_of_experts_is_pefts_weighted_adapter(
    setting: str, model: Any, folder: Path, library: Library, tiny_base: Callable[..., Path]
) -> None:
    theirs = peft_model(tiny_base("llama"), folder, library, torch.float32)
    # PEFT counts the scaling of a rank-stabilised adapter in the new one once more.
    names = [name for name in library.experts if name != "delta"]
    theirs.add_weighted_adapter(names, [0.25] * 3, "mean", combination_type="cat")
    theirs.base_model.set_adapter(["mean", "delta"])
    for layer in theirs.modules():
        if "delta" in getattr(layer, "lora_A", {}):
            layer.scaling["delta"] *= 0.25
    expected = logits(theirs)
    with attach(model, library, setting):
        found = logits(model)
    assert relative_error(found, expected) < 1e-5
    assert relative_error(logits(model), expected) > 0.05, "the adapters must matter in this test"


@pytest.mark.parametrize("setting", ["uniform:{}", "merge:mean;subtract={}"])
@pytest.mark.parametrize("languages", ["en", "en+de", "avg"])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_subtraction_is_that_of_pefts_updates(
    setting: str,
    languages: str,
    scale: float,
    model: Any,
    folder: Path,
    library: Library,
    tiny_base: Callable[..., Path],
) -> None:
    """The base's weights plus sums of PEFT's own updates, in float64."""
    chosen = list(library.general) if languages == "avg" else languages.split("+")
    theirs = peft_model(tiny_base("llama"), folder, library, torch.float64)
    expected_model = load_tiny(tiny_base("llama"), torch.float64)
    for name, layer in theirs.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        weight = expected_model.get_parameter(f"{name.removeprefix('base_model.model.')}.weight")
        for expert in library.experts:
            if expert not in layer.lora_A:
                continue
            residual = layer.get_delta_weight(expert)
            for language in chosen:
                if language in layer.lora_A:
                    residual = residual - scale * layer.get_delta_weight(language) / len(chosen)
            weight.data += residual / 4
    with attach(model, library, f"{setting.format(languages)};preset=exact;scale={scale}"):
        assert relative_error(logits(model), logits(expected_model)) < 1e-5


def inputs_of(attachment: Attachment, model: Any) -> dict[str, torch.Tensor]:
    """Return what reaches every layer of one forward."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        update.layer.register_forward_pre_hook(
            lambda _, args, name=name: found.__setitem__(name, args[0].flatten(0, 1))
        )
        for name, update in attachment.layers.items()
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return found


CONTROLS = ["general=permuted", "general=rotated", "general=other", "experts=random"]
EVERY = [
    *(f"{router}{general}" for router in ROUTERS.names() for general in ("", ":fr", ":avg")),
    *(f"merge:mean;subtract={general}" for general in ("none", "fr", "avg")),
    *(f"arrow:avg;{control}" for control in (*CONTROLS, "experts=rescaled")),
    "uniform;rule=pico",
]


@pytest.mark.parametrize("text", EVERY)
@torch.no_grad()
def test_every_layer_of_every_router_follows_the_loops(
    text: str, model: Any, library: Library
) -> None:
    with attach(model, library, f"{text};preset=exact") as attachment:
        setting = attachment.setting
        assert setting is not None
        inputs = inputs_of(attachment, model)
        assert set(inputs) == set(library.modules)
        for name, x in inputs.items():
            update = attachment.layers[name]
            if "gate_proj" in name:  # no expert updates it
                assert update.weights is None
                continue
            pairs = library.layer(name, setting)
            vectors = library.vectors(setting)
            ready = None if vectors is None else vectors.at(list(library.experts), name)
            expected, shares = reference_update(x, *pairs, setting, name, ready)
            found = update.layer(x) - update.layer.forward(x)
            naive = [expected]
            if setting.router == "arrow":
                naive.append(oracle.routed(x, *pairs, setting).update)
            for other in naive:
                # Top-k is discontinuous: a near-tie may flip single tokens.
                off = (found - other).abs().amax(1) > 1e-5 * max(1.0, float(other.abs().max()))
                assert off.sum() <= 1
            if "down_proj" in name and setting.router == "arrow":  # alone gamma updates it
                others = [0, 1, 3]
                assert (shares[:, 2:3] >= shares[:, others]).all()


@pytest.mark.parametrize("setting", ["gks:avg;preset=exact", "arrow;preset=peft"])
def test_packed_scores_are_those_of_single_requests(
    setting: str, model: Any, library: Library
) -> None:
    requests = random_requests(3, 260, items=6)
    with attach(model, library, setting):
        expected = one_by_one(model, requests, 512)
        found = packed_log_likelihoods(model, requests, device="cpu", max_length=512)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[0] == pytest.approx(theirs[0], abs=2e-4)
