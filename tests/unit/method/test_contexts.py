"""Which context a token belongs to, and its one choice: by hand, and against loops."""

from __future__ import annotations

import pytest
import torch
from common import assert_sentence
from oracle import coefficients

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.method.contexts import Contexts, current_contexts
from gks_eval.method.declaration import Tokens
from gks_eval.method.routers.arrow import LayerArrow


def tokens(scores: torch.Tensor) -> Tokens:
    return Tokens(scores, scores, scores)


def test_rows_start_with_their_contexts() -> None:
    padded = Contexts.of_rows([2, 1], [4, 3], 5)
    assert padded.of_token.tolist() == [0, 0, 0, 0, -1, 1, 1, 1, -1, -1]
    assert padded.own.tolist() == [0, 1, 5]
    assert padded.count == 2
    joined = Contexts.of_rows([2, 1], [4, 3], 0)
    assert joined.of_token.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert joined.own.tolist() == [0, 1, 4]


def test_prompts_are_contexts_up_to_their_padding() -> None:
    mask = torch.tensor([[False, True, True], [True, True, True], [True, False, False]])
    contexts = Contexts.of_prompts(mask)
    assert contexts.of_token.tolist() == [-1, 0, 0, 1, 1, 1, 2, -1, -1]
    assert contexts.own.tolist() == [1, 2, 3, 4, 5, 6]
    assert contexts.count == 3
    rows = torch.arange(9)[:, None]
    assert contexts.without_padding(rows).flatten().tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UsageError) as empty:
        Contexts.of_prompts(torch.tensor([[True, True], [False, False]]))
    assert_sentence(empty.value, "a prompt has none")


def test_a_choice_is_that_of_the_mean_score_and_stays() -> None:
    router = LayerArrow(2, 0.5, None)
    contexts = Contexts.of_rows([2, 3], [4, 3], 5)
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(10, 4, generator=generator)
    found = contexts.coefficients("a", router, tokens(scores))
    # Rows of 5 tokens: a context of 2 and two that continue it, and one of 3 alone.
    for own, of in ((scores[:2], found[:4]), (scores[5:8], found[5:8])):
        means = [sum(abs(row[e]) for row in own.tolist()) / len(own) for e in range(4)]
        expected = torch.tensor(coefficients(means, 2, 0.5))
        torch.testing.assert_close(of, expected.expand_as(of), rtol=1e-5, atol=1e-6)
    again = contexts.coefficients("a", router, tokens(scores.flip(0)))
    assert torch.equal(again, found)
    other = contexts.coefficients("b", router, tokens(scores.flip(1)))
    torch.testing.assert_close(other, found.flip(1))
    following = contexts.next_token()
    kept = following.coefficients("a", router, tokens(scores[:2]))
    assert torch.equal(kept, found[[0, 5]])
    assert (following.of_token.tolist(), following.own.tolist()) == ([0, 1], [])
    assert following.next_token().count == 2


def test_means_do_not_round_as_float32_sums() -> None:
    large = 2.0**24
    scores = torch.full((4, 2), large / 4)
    scores[:, 0] = torch.tensor([large, 1.0, 1.0, 2.0])
    router = LayerArrow(2, 1.0, None)
    found = Contexts.of_rows([4], [4], 0).coefficients("a", router, tokens(scores))
    # The means differ by 1; float32 would add 1 to 2^24 in vain, twice.
    torch.testing.assert_close(found[0], torch.tensor([1.0, 0.0]).softmax(0))


def test_contexts_are_known_inside_their_block_only() -> None:
    outer, inner = (Contexts.of_rows([n], [n], 0) for n in (2, 3))
    with outer.active():
        with inner.active():
            assert current_contexts(3, "a") is inner
        assert current_contexts(2, "a") is outer
        with pytest.raises(CompatibilityError) as partial:
            current_contexts(3, "head")
        assert_sentence(partial.value, "head sees 3 of 2", "level=token")
    with pytest.raises(ZeroDivisionError), outer.active():
        _ = 1 / 0
    with pytest.raises(UsageError) as alone:
        current_contexts(2, "a")
    assert_sentence(alone.value, "the whole model", "level=token")
