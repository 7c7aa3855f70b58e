"""A base in 4 bits on a CPU: true gradients, LoftQ's start, the paper's recipe as a whole."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import assert_sentence, load_tiny, relative_error

from gks_eval.errors import UsageError
from gks_eval.library.load import load_library
from gks_eval.model.load_base import outline_of
from gks_eval.training.base import base_of, load_frozen_base
from gks_eval.training.jobs import make_plan
from gks_eval.training.loftq import loftq_factors, start_from_loftq
from gks_eval.training.recipe import AdapterShape, Recipe
from gks_eval.training.start import attach_adapter
from gks_eval.training.whole_library import train_library

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*bitsandbytes.*", "ignore:.*kernels.*", "ignore:.*MatMul8bitLt.*"
)
SHAPE = {"targets": ["qkv_proj", "o_proj"], "dropout": 0.0}


@pytest.fixture
def recipe(tiny_base: Callable[[str], Path]) -> Recipe:
    return Recipe.model_validate(
        {
            "base_model": str(tiny_base("phi3")),
            "load": {"quantization": "nf4", "dtype": "float32"},
            "adapter": SHAPE,
            "experts": {"members": {"a": {"file": "a.jsonl"}}},
        }
    )


def quantised_layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None:
            yield name, module


def dequantised(layer: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def gradients(model: Any) -> torch.Tensor:
    """Of the adapter's B (A's are zero while B is), by autograd on the plain loss."""
    ids = torch.arange(4, 44).reshape(2, 20)
    model.zero_grad()
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "lora_B" in n])


def test_gradients_of_the_4_bit_path_are_those_of_the_weights_it_stands_for(
    recipe: Recipe, tmp_path: Path
) -> None:
    base = load_frozen_base(recipe, tmp_path)
    assert len(list(quantised_layers(base))) == 8
    plain = load_tiny(Path(recipe.base_model))
    with torch.no_grad():
        for name, layer in quantised_layers(base):
            plain.get_submodule(name).weight.copy_(dequantised(layer))
    found = attach_adapter(base, recipe.adapter, recipe.base_model, 0)
    expected = attach_adapter(plain, recipe.adapter, recipe.base_model, 0)
    before = gradients(found)
    # The forward in evaluation mode is what rewrites the weights of an unguarded layer.
    found.eval()
    with torch.no_grad():
        found(input_ids=torch.arange(4, 24)[None])
    after = gradients(found)
    assert torch.equal(before, after)
    truth = gradients(expected)
    assert torch.nn.functional.cosine_similarity(after, truth, dim=0) > 0.999
    # The 4-bit path multiplies in bfloat16.
    assert relative_error(after, truth) < 0.05


@pytest.mark.parametrize("scaling", [1.0, 4.0])
def test_loftq_is_the_best_low_rank_approximation_for_any_scaling(scaling: float) -> None:
    error = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    A, B = loftq_factors(error, 4, scaling)
    left = torch.linalg.norm(error - scaling * B @ A)
    # Eckart and Young: what is left is the tail of the singular values.
    torch.testing.assert_close(left, torch.linalg.svdvals(error)[4:].square().sum().sqrt())


def test_loftq_brings_the_layers_nearer_to_full_precision(recipe: Recipe, tmp_path: Path) -> None:
    base = load_frozen_base(recipe, tmp_path)
    full = load_tiny(Path(recipe.base_model))
    model = attach_adapter(base, recipe.adapter, recipe.base_model, 0)
    start_from_loftq(model, full)
    for name, layer in quantised_layers(model):
        if not name.endswith("base_layer"):
            continue
        weight = full.get_submodule(
            name.removeprefix("base_model.model.").removesuffix(".base_layer")
        )
        lora = model.get_submodule(name.removesuffix(".base_layer"))
        update = 4.0 * lora.lora_B["default"].weight @ lora.lora_A["default"].weight
        error = weight.weight - dequantised(layer)
        tail = torch.linalg.svdvals(error)[4:].square().sum().sqrt()
        torch.testing.assert_close(torch.linalg.norm(error - update), tail)


def test_a_loftq_run_from_end_to_end(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe_file(
        adapter={"init": "loftq"},
        load={"quantization": "nf4", "dtype": "bfloat16"},
        # So small a step leaves the start as it was: what is saved is the compensation.
        schedule={"learning_rate": 1e-9, "epochs": 1},
    )
    plan = make_plan(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_library(plan, tmp_path / "library")
    library = load_library(str(tmp_path / "library"))
    assert library.config.load.quantization == "nf4"
    assert library.config.provenance["init"] == "loftq"
    assert "removes this correction" in library.config.provenance["remarks"][0]
    full = load_tiny(Path(plan.recipe.base_model))
    for name, layer in quantised_layers(load_frozen_base(plan.recipe, plan.root)):
        if name not in library.modules:
            continue
        error = full.get_submodule(name).weight - dequantised(layer)
        for adapters in (library.experts, library.general):
            update = next(iter(adapters.values())).pairs[name].delta()
            tail = torch.linalg.svdvals(error)[4:].square().sum().sqrt()
            # bfloat16 weights and float16 factors.
            torch.testing.assert_close(torch.linalg.norm(error - update), tail, rtol=0.03, atol=0.0)


def test_a_loftq_configuration_alone_changes_nothing_in_peft(
    tiny_base: Callable[[str], Path],
) -> None:
    # What `init: paper` stands for: the published code gives PEFT the one without the other.
    from peft import LoftQConfig, LoraConfig, get_peft_model

    def start(**options: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        config = LoraConfig(r=4, target_modules=["qkv_proj"], task_type="CAUSAL_LM", **options)
        model = get_peft_model(load_tiny(tiny_base("phi3")), config)
        return {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}

    with pytest.warns(UserWarning, match="loftq_config.*will be ignored"):
        given = start(loftq_config=LoftQConfig(loftq_bits=4))
    plain = start()
    assert all(torch.equal(given[name], plain[name]) for name in plain)
    assert "paper" in str(AdapterShape.model_fields["init"].annotation)


def test_the_paper_recipe_runs_on_a_tiny_phi_3_in_4_bits(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    published = Path(__file__).parents[3] / "adapters/phi3-mini/recipe.yaml"
    recipe = yaml.safe_load(published.read_text("utf-8"))
    recipe["base_model"] = str(tiny_base("phi3"))
    recipe["load"]["device"] = "cpu"
    rows = [{"source": f"word {n}", "target": f"{n}", "template_idx": n % 10} for n in range(400)]
    (tmp_path / "flan.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe["experts"]["data"] |= {"file": "flan.jsonl", "hub": None}
    for language in ("en", "de", "fr"):
        texts = [f"{language} {n} " + "wiki text " * 60 for n in range(20)]
        (tmp_path / f"{language}.txt").write_text("\n\n".join(texts), "utf-8")
        recipe["general"]["members"][language].pop("config")
        recipe["general"]["members"][language]["file"] = f"{language}.txt"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes says more on a CPU than it means
        outcome = train_library(
            make_plan(path), tmp_path / "library", only=["cluster_3", "en", "fr"]
        )
    assert outcome.trained == ("experts/cluster_3", "general/en", "general/fr")
    records = {
        key: json.loads((tmp_path / "library" / key / "training.json").read_text())
        for key in outcome.trained
    }
    assert records["experts/cluster_3"]["rows"] == 8  # a fifth of forty
    assert records["experts/cluster_3"]["optimizer"] == "adamw_8bit"
    scored = {key: r["scored_tokens"] / r["rows"] for key, r in records.items()}
    assert scored["general/en"] == 5
    assert scored["general/fr"] == 1
    tokens = records["general/en"]["tokens"] / records["general/en"]["rows"]
    assert tokens == 512


@pytest.mark.parametrize("asked", ["nf4", "none"])
def test_a_base_saved_in_another_quantisation_is_refused(
    asked: str, recipe: Recipe, tmp_path: Path
) -> None:
    """transformers would train on what is saved, and the record would hold the recipe's word."""
    from transformers import BitsAndBytesConfig

    double = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    load_tiny(Path(recipe.base_model), quantization_config=double).save_pretrained(
        tmp_path / "base"
    )
    load = recipe.load.model_copy(update={"quantization": asked})
    other = recipe.model_copy(update={"base_model": str(tmp_path / "base"), "load": load})
    for make in (
        lambda: load_frozen_base(other, tmp_path),
        lambda: outline_of(base_of(other, tmp_path), torch.float32),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        assert_sentence(caught.value, "(nf4, double quantisation)", f"quantization: {asked}")
