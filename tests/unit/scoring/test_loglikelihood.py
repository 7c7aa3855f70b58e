"""The result type: lm-eval's pair in every respect, with a count that travels along."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from gks_eval.errors import ResultsError
from gks_eval.scoring.loglikelihood import TokenLogLikelihood


@pytest.fixture
def result() -> TokenLogLikelihood:
    return TokenLogLikelihood(-3.5, True, 7)


def test_it_is_a_pair(result: TokenLogLikelihood) -> None:
    value, greedy = result
    assert (value, greedy) == result == (-3.5, True)
    assert len(result) == 2
    assert isinstance(result, tuple)
    assert hash(result) == hash((-3.5, True))
    assert json.dumps(result) == "[-3.5, true]"
    assert result.tokens == 7


@pytest.mark.parametrize(
    "again",
    [
        lambda pair: pickle.loads(pickle.dumps(pair)),
        lambda pair: pickle.loads(pickle.dumps(pair, protocol=0)),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_the_count_survives_copies(result: TokenLogLikelihood, again) -> None:
    other = again(result)
    assert type(other) is TokenLogLikelihood
    assert other == result
    assert other.tokens == 7


def test_tensors_become_plain_values() -> None:
    result = TokenLogLikelihood(torch.tensor(-1.5), torch.tensor(False), torch.tensor(3))
    assert [type(value) for value in (*result, result.tokens)] == [float, bool, int]
    assert result == (-1.5, False)


def test_nan_is_no_log_likelihood() -> None:
    """lm-eval's argmax would take it for the best choice."""
    with pytest.raises(ResultsError, match="gave NaN as a log-likelihood; load it in a wider"):
        TokenLogLikelihood(float("nan"), False, 3)
    assert TokenLogLikelihood(float("-inf"), False, 3)[0] == float("-inf")
