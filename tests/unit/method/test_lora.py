"""LoraPair and its sums against dense matrices, and scaling against PEFT's own layers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from common import dense, load_tiny, random_pair, relative_error, save_adapter

from gks_eval.errors import CompatibilityError
from gks_eval.library.peft_adapter import read_adapter
from gks_eval.method.lora import LoraPair, average_factors, no_update, same_factors, stack


def test_delta_is_the_scaled_product() -> None:
    pair = random_pair(seed=1, dtype=torch.float64, scaling=2.5)
    expected = torch.zeros(pair.shape, dtype=torch.float64)
    for r in range(pair.rank):
        expected += 2.5 * torch.outer(pair.B[:, r], pair.A[r])
    assert pair.shape == (24, 16)
    assert pair.rank == 4
    torch.testing.assert_close(pair.delta(), expected)


@pytest.mark.parametrize(
    ("shape_A", "shape_B"), [((4, 8), (8, 3)), ((4,), (8, 4)), ((4, 8), (1, 8, 4)), ((8, 4), (8,))]
)
def test_factors_that_do_not_belong_together(shape_A: tuple, shape_B: tuple) -> None:
    with pytest.raises(ValueError, match=re.escape(str(shape_A))):
        LoraPair(torch.zeros(shape_A), torch.zeros(shape_B))


def test_a_pair_is_shown_by_its_shapes() -> None:
    pair = LoraPair(torch.ones(2, 9), torch.ones(5, 2), 0.5)
    assert repr(pair) == "LoraPair(A (2, 9), B (5, 2), scaling 0.5, float32)"
    assert "no update" in repr(replace(pair, missing=True))


def test_to_changes_only_the_dtype() -> None:
    pair = random_pair(seed=2)
    half = pair.to(torch.bfloat16)
    assert half.A.dtype == half.B.dtype == torch.bfloat16
    assert half.scaling == pair.scaling
    assert pair.A.dtype == torch.float32


def test_stack_sums_updates_of_any_rank_and_scaling() -> None:
    pairs = [
        random_pair(rank, scaling=scaling, seed=rank, dtype=torch.float64)
        for rank, scaling in ((2, 1.0), (5, 0.25), (3, 8.0))
    ]
    weights = [1.0, -0.5, 0.125]
    stacked = stack(pairs, weights)
    expected = sum(w * dense(pair) for w, pair in zip(weights, pairs, strict=True))
    assert stacked.rank == 10
    assert stacked.scaling == 1.0
    torch.testing.assert_close(stacked.delta(), expected, rtol=1e-12, atol=1e-12)


def test_stack_refuses_what_it_cannot_add() -> None:
    with pytest.raises(ValueError, match="one weight"):
        stack([], [])
    with pytest.raises(ValueError, match="one weight"):
        stack([random_pair(seed=1)], [1.0, 2.0])
    with pytest.raises(CompatibilityError, match="different shape"):
        stack([random_pair(seed=1), random_pair(width_in=17, seed=1)], [1.0, 1.0])


def test_average_factors_is_not_the_average_update() -> None:
    pairs = [random_pair(seed=n, dtype=torch.float64) for n in range(3)]
    mean = average_factors(pairs)
    torch.testing.assert_close(mean.A, (pairs[0].A + pairs[1].A + pairs[2].A) / 3)
    torch.testing.assert_close(mean.B, (pairs[0].B + pairs[1].B + pairs[2].B) / 3)
    assert mean.scaling == pairs[0].scaling
    mean_update = sum(dense(pair) for pair in pairs) / 3
    assert relative_error(mean.delta(), mean_update) > 0.1
    assert relative_error(stack(pairs, [1 / 3] * 3).delta(), mean_update) < 1e-12


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"rank": 8}, r"one rank, not 4 and 8"),
        ({"scaling": 2.0}, r"one scaling, not 4 and 2"),
        ({"width_in": 17}, r"one shape, not \(24, 16\) and \(24, 17\)"),
    ],
)
def test_unequal_factors_are_named_with_the_mend(other: dict, what: str) -> None:
    pairs = [random_pair(seed=1), random_pair(seed=2, **other)]
    with pytest.raises(CompatibilityError, match=f"^my rule needs .*{what}") as caught:
        same_factors(pairs, "my rule")
    if "width_in" not in other:
        assert "rule=delta with combine=outputs (preset=exact)" in str(caught.value)
    with pytest.raises(
        CompatibilityError, match=r"^averaging the factors of general adapters needs"
    ):
        average_factors(pairs)


def test_factors_of_an_adapter_that_leaves_the_layer_alone_are_not_added() -> None:
    lacking = no_update((24, 16))
    with pytest.raises(CompatibilityError, match=r"^why needs every adapter to update the layer; "):
        same_factors([random_pair(rank=1, scaling=1.0, seed=1), lacking], "why")
    same_factors([lacking, lacking], "why")
    assert lacking.to(torch.bfloat16).missing


def test_scalings_written_differently_are_equal() -> None:
    same_factors([random_pair(seed=1, scaling=0.1 + 0.2), random_pair(seed=2, scaling=0.3)], "why")


@pytest.mark.parametrize("scaling", [0.01, 4.0, 300.0, -2.0])
def test_scalings_are_one_to_within_a_millionth(scaling: float) -> None:
    first, near, far = (
        random_pair(seed=1, scaling=scaling * factor) for factor in (1.0, 1 + 0.9e-6, 1 + 1.1e-6)
    )
    same_factors([first, near], "why")
    with pytest.raises(CompatibilityError, match="one scaling"):
        same_factors([first, far], "why")


CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 16},
    "alpha below rank": {"r": 8, "lora_alpha": 2},
    "rsLoRA": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "alpha_pattern by leaf": {"alpha_pattern": {"o_proj": 3}},
    "alpha_pattern by suffix": {"alpha_pattern": {"self_attn.q_proj": 5, "layers.1.*": 7}},
    "alpha_pattern anchored": {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 9}},
    "first pattern wins": {"alpha_pattern": {"q_proj": 5, "model.layers.0.self_attn.q_proj": 7}},
    "no partial words": {"alpha_pattern": {"proj": 5, "_proj": 6, "q_pro": 7}},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.o_proj": 7}},
    "both patterns, rsLoRA": {
        "rank_pattern": {"k_proj": 3},
        "alpha_pattern": {"k_proj": 6, ".*1.self_attn.o_proj": 1},
        "use_rslora": True,
    },
}


# PEFT's remark on the case that no pattern matches, which is what that case is for.
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS.keys())
def test_updates_are_those_of_peft(fields: dict, tmp_path, tiny_base) -> None:
    from peft import PeftModel

    base = tiny_base("llama")
    targets = ["q_proj", "k_proj", "o_proj"]
    save_adapter(load_tiny(base), tmp_path, targets, seed=3, **fields)
    adapter = read_adapter(tmp_path, "mine")
    loaded = PeftModel.from_pretrained(load_tiny(base), tmp_path, adapter_name="theirs")
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in loaded.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert set(layers) == set(adapter.pairs)
    assert len(layers) == 6
    for name, layer in layers.items():
        assert adapter.pairs[name].scaling == pytest.approx(layer.scaling["theirs"], rel=1e-12)
        expected = layer.get_delta_weight("theirs")
        torch.testing.assert_close(adapter.pairs[name].delta(), expected, rtol=1e-6, atol=1e-7)
