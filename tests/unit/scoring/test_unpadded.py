"""Rows one behind the other: no padding, and nothing of the model is left changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import load_tiny
from one_by_one import random_requests

from gks_eval.scoring import PackedCounts, packed_log_likelihoods, supports_packed
from gks_eval.scoring.masks import AttentionWindow
from gks_eval.scoring.support import tree_model
from gks_eval.scoring.tree import build_row, to_sequences
from gks_eval.scoring.tree_model import TreeModel
from gks_eval.scoring.unpadded import unpadded_batch

REQUESTS = random_requests(4, 260)
CPU = torch.device("cpu")


def rows_of(requests: Any, size: int = 4) -> list[Any]:
    sequences = to_sequences(requests, 128)
    return [build_row(sequences[at : at + size]) for at in range(0, len(sequences), size)]


def test_nothing_is_padded(tiny_base: Any) -> None:
    model, counts = load_tiny(tiny_base("llama")), PackedCounts()
    packed_log_likelihoods(
        model, REQUESTS, device="cpu", max_length=128, row_tokens=400, counts=counts
    )
    # All sequences fit rows that start at the root, so only what two rows share is run twice.
    assert counts.computed_tokens <= 1.05 * counts.distinct_tokens


def test_hidden_states_are_those_of_padded_rows(tiny_base: Any) -> None:
    tree = TreeModel(load_tiny(tiny_base("phi3")), CPU, 128)
    rows = rows_of(REQUESTS)
    assert tree.unpadded
    found, starts = tree.hidden(rows, [], long=False)
    tree.unpadded = False
    expected, padded_starts = tree.hidden(rows, [], long=False)
    assert found.shape[0] == sum(len(row.tokens) for row in rows) < expected.shape[0]
    for row, start, other in zip(rows, starts, padded_starts, strict=True):
        torch.testing.assert_close(
            found[start : start + len(row.tokens)],
            expected[other : other + len(row.tokens)],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("window", [None, 5])
def test_only_rows_that_need_a_mask_have_one(window: int | None) -> None:
    chain, tree = rows_of([([1, 2, 3], [4, 5, 6, 7])]), rows_of([([1], [2, 3]), ([1], [4, 5])])
    batch = unpadded_batch(
        [*chain, *tree], [AttentionWindow(), AttentionWindow(size=window)], torch.float32, CPU
    )
    assert batch.bounds == [0, 6, 9]
    assert [mask is None for mask in batch.masks[0]] == [True, False]
    assert [mask is None for mask in batch.masks[1]] == [window is None, False]


def test_the_models_own_attention_is_back_afterwards(tiny_base: Any) -> None:
    model = load_tiny(tiny_base("llama"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(ids).logits
        packed_log_likelihoods(model, REQUESTS, device="cpu", max_length=128)
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(ids).logits, before)

        def fails(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError

        hook = model.model.layers[1].register_forward_pre_hook(fails)
        with pytest.raises(ZeroDivisionError):
            packed_log_likelihoods(model, REQUESTS, device="cpu", max_length=128)
        hook.remove()
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(ids).logits, before)


def test_a_model_that_cannot_run_unpadded_is_padded(
    tiny_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    model = load_tiny(tiny_base("llama"))
    monkeypatch.setattr("gks_eval.scoring.tree_model.unpadded_batch", refuses)
    assert supports_packed(model, max_length=128) is None
    tree = tree_model(model, CPU, 128)
    assert isinstance(tree, TreeModel)
    assert not tree.unpadded
    found = packed_log_likelihoods(model, REQUESTS[:8], device="cpu", max_length=128)
    monkeypatch.undo()
    again = packed_log_likelihoods(
        load_tiny(tiny_base("llama")), REQUESTS[:8], device="cpu", max_length=128
    )
    assert [one[0] for one in found] == pytest.approx([one[0] for one in again], abs=1e-4)
