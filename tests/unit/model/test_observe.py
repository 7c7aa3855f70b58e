"""What is observed of the router, against counting token by token."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from common import MIXED, assert_sentence

from gks_eval.errors import UsageError
from gks_eval.evidence.observed import RoutingShares
from gks_eval.method.setting import Setting
from gks_eval.model.lm import GksArrowLM
from gks_eval.model.observe import RoutingTally, observe_requests, observe_text, routing_record

ITEMS = [
    [([10, 11, 12, 13], [14, 15]), ([10, 11, 12, 13], [16]), ([10, 11, 12, 13], [14, 17, 18])],
    [([20, 21], [22, 23, 24])],
]


@pytest.fixture(scope="module")
def lm(tiny_library: Callable[..., Path]) -> GksArrowLM:
    return GksArrowLM(library=str(tiny_library("phi3")), dtype="float32", top_k=2)


def distinct_prefixes(item: list[tuple[list[int], list[int]]]) -> list[tuple[int, ...]]:
    found = set()
    for context, continuation in item:
        tokens = (context + continuation)[:-1]  # the last token is scored, never read
        found |= {tuple(tokens[: n + 1]) for n in range(len(tokens))}
    return sorted(found)


def test_every_distinct_prefix_counts_once(lm: GksArrowLM) -> None:
    tally = observe_requests(lm, ITEMS)
    record = routing_record(lm, "gks:avg", {"task": tally})
    assert lm.attachment is not None
    layers = list(lm.attachment.layers)
    sums = {layer: torch.zeros(4, dtype=torch.float64) for layer in layers}
    chosen = {layer: torch.zeros(4) for layer in layers}
    entropy = dict.fromkeys(layers, 0.0)
    prefixes = [prefix for item in ITEMS for prefix in distinct_prefixes(item)]
    for prefix in prefixes:
        seen: dict[str, torch.Tensor] = {}
        lm.attachment.observe(lambda layer, c, seen=seen: seen.update({layer: c[-1]}))
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([prefix]))
        for layer, coefficients in seen.items():
            sums[layer] += coefficients
            chosen[layer] += (coefficients > 0).float()
            entropy[layer] -= sum(c * math.log(c) for c in coefficients.tolist() if c > 0)
    lm.attachment.observe(None)
    found = record["tasks"]["task"]
    count = len(prefixes)
    assert found["tokens"] == count
    for n, layer in enumerate(layers):
        assert found["mean_coefficient"][n] == pytest.approx(
            (sums[layer] / count).tolist(), abs=1e-4
        )
        assert found["share"][n] == pytest.approx((chosen[layer] / count).tolist())
        assert sum(found["share"][n]) == pytest.approx(2)  # top_k
        assert found["entropy"][n] == pytest.approx(entropy[layer] / count, abs=1e-4)
    RoutingShares.model_validate(record)  # what the evidence wing reads


def test_layers_that_no_expert_updates_are_left_out(tiny_library: Callable[..., Path]) -> None:
    folder = tiny_library("llama", adapters=MIXED)
    lm = GksArrowLM(library=str(folder), dtype="float32", preset="exact", top_k=2)
    record = routing_record(lm, "gks:avg", {"task": observe_requests(lm, ITEMS)})
    RoutingShares.model_validate(record)
    assert lm.library is not None
    assert record["layers"] == [name for name in lm.library.modules if "gate_proj" not in name]
    shares = dict(zip(record["layers"], record["tasks"]["task"]["share"], strict=True))
    for name, share in shares.items():
        assert sum(share) == pytest.approx(2)
        updating = [name in adapter.pairs for adapter in lm.library.experts.values()]
        if sum(updating) >= 2:  # experts that lack the layer are chosen after all others
            assert all(s == 0 for s, updates in zip(share, updating, strict=True) if not updates)
        else:
            assert all(s == 1 for s, updates in zip(share, updating, strict=True) if updates)
    _, c_TE = observe_text(lm, "An owl.")
    assert torch.allclose(c_TE.sum(1), torch.ones(len(c_TE)))


def test_a_text_is_shown_token_by_token(lm: GksArrowLM) -> None:
    tokens, c_TE = observe_text(lm, "An owl.")
    assert "".join(tokens) == "An owl."
    assert c_TE.shape == (len(tokens), 4)
    assert torch.allclose(c_TE.sum(1), torch.ones(len(tokens)))


def test_observing_changes_no_score_and_ends(lm: GksArrowLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = lm.model(input_ids=ids).logits
        observe_requests(lm, ITEMS)
        assert torch.equal(lm.model(input_ids=ids).logits, before)
    assert lm.attachment is not None
    assert all(shell.observer is None for shell in lm.attachment.layers.values())


def test_what_cannot_be_observed_is_refused(lm: GksArrowLM) -> None:
    with pytest.raises(UsageError) as empty:
        observe_text(lm, "")
    assert_sentence(empty.value, "0 tokens")
    lm.apply(Setting.from_arguments(router=None))
    with pytest.raises(UsageError) as unrouted:
        observe_requests(lm, ITEMS)
    assert_sentence(unrouted.value, "routes nothing")


def test_short_and_long_forwards_add_up() -> None:
    torch.manual_seed(0)
    parts = [torch.rand(n, 4).softmax(-1) * (torch.rand(n, 1) > 0.1) for n in (1, 700, 3, 2000, 5)]
    tally = RoutingTally()
    for part in parts:
        tally("layer", part)
    every = [row for part in parts for row in part.tolist()]
    found = tally.record(["layer"])
    assert found["tokens"] == len(every) == 2709
    for expert in range(4):
        column = [row[expert] for row in every]
        assert found["share"][0][expert] == pytest.approx(sum(c > 0 for c in column) / 2709)
        assert found["mean_coefficient"][0][expert] == pytest.approx(sum(column) / 2709)
    entropies = [-sum(c * math.log(c) for c in row if c > 0) for row in every]
    assert found["entropy"][0] == pytest.approx(sum(entropies) / 2709)
    assert tally.record(["layer"]) == found


def test_the_tally_of_a_fixed_router() -> None:
    tally = RoutingTally()
    tally("layer", torch.full((1, 4), 0.25).expand(3, -1))
    assert repr(tally) == "RoutingTally(tokens: 3, layers: 1)"
    assert tally.record(["layer"]) == {
        "tokens": 3,
        "share": [[1.0] * 4],
        "mean_coefficient": [[0.25] * 4],
        "entropy": [pytest.approx(math.log(4))],
    }


def test_an_adapted_head_sees_fewer_tokens() -> None:
    tally = RoutingTally()
    tally("lm_head", torch.tensor([[1.0, 0.0]]))
    tally("model.layers.0.q_proj", torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    record = tally.record(["lm_head", "model.layers.0.q_proj"])
    assert record["tokens"] == 2
    assert record["share"] == [[1.0, 0.0], [0.5, 0.5]]
