from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gks_eval.scoring.masks import AttentionWindow, additive, tree_mask
from gks_eval.scoring.tree import build_row, to_sequences

texts = st.lists(st.integers(0, 2), min_size=1, max_size=6)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)
windows = st.one_of(
    st.just(AttentionWindow()),
    st.builds(AttentionWindow, size=st.integers(1, 8)),
    st.builds(AttentionWindow, chunk=st.integers(1, 8)),
)


@settings(max_examples=60, deadline=None)
@given(pairs, st.integers(0, 4), windows)
def test_every_node_sees_the_tokens_before_it_and_no_others(requests, prefix, window):
    common = [7] * prefix
    sequences = to_sequences([(common + c, t) for c, t in requests], 100)
    row = build_row(sequences, prefix)
    nodes, padding = len(row.tokens), 2
    ends = torch.tensor([[*row.ends, nodes + 1, nodes + 2]])
    positions = torch.tensor([row.depths + [0] * padding])
    mask = tree_mask(ends, positions, prefix, window)
    assert mask.shape == (1, 1, nodes + padding, prefix + nodes + padding)
    assert mask.any(dim=-1).all()  # also padding's, or softmax would give NaN
    assert not mask[0, 0, :nodes, prefix + nodes :].any()
    for sequence, path in zip(sequences, row.scored, strict=True):
        for offset, node in enumerate(path):
            query = sequence.first_scored + offset
            seen = mask[0, 0, node, : prefix + nodes].nonzero()[:, 0].tolist()
            key_positions = [k if k < prefix else row.depths[k - prefix] for k in seen]
            assert key_positions == [
                key
                for key in range(query + 1)
                if (window.size is None or key > query - window.size)
                and (window.chunk is None or key // window.chunk == query // window.chunk)
            ]
            tokens = [7 if k < prefix else row.tokens[k - prefix] for k in seen]
            assert tokens == [sequence.tokens[key] for key in key_positions]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_additive_mask_is_zero_or_lowest(dtype):
    mask = torch.tensor([[True, False], [True, True]])
    added = additive(mask, dtype)
    assert added.dtype == dtype
    assert torch.equal(added == 0, mask)
    assert added[0, 1] == torch.finfo(dtype).min
