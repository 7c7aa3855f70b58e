from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gks_eval.errors import ResultsError
from gks_eval.scoring.loglikelihood import TokenLogLikelihood
from gks_eval.tasklib.metrics import best_choice, choice_metrics, token_counts


def test_each_metric_can_prefer_another_choice() -> None:
    # Computed by hand: log-likelihood, characters, bytes and tokens of each choice
    #   "dog"     -2.0   3  -.667   3  -.667   1  -2.0
    #   "großäöü" -4.0   7  -.571  11  -.364   4  -1.0
    #   "elephant" -4.4  8  -.550   8  -.550   2  -2.2
    #   "ox ox"   -3.0   5  -.600   5  -.600   4  -0.75
    choices = ["dog", "großäöü", "elephant", "ox ox"]
    results = [
        TokenLogLikelihood(-2.0, True, 1),
        TokenLogLikelihood(-4.0, False, 4),
        TokenLogLikelihood(-4.4, False, 2),
        TokenLogLikelihood(-3.0, False, 4),
    ]
    winner = {"acc": 0, "acc_bytes": 1, "acc_norm": 2, "acc_token_norm": 3}
    for gold in range(4):
        expected = {name: float(choice == gold) for name, choice in winner.items()}
        assert choice_metrics(choices, gold, results) == expected


def test_without_token_counts_the_key_is_left_out() -> None:
    scores = choice_metrics(["a", "b"], 0, [(-1.0, False), (-2.0, False)])
    assert set(scores) == {"acc", "acc_norm", "acc_bytes"}


def test_one_missing_count_is_a_missing_metric() -> None:
    results = [TokenLogLikelihood(-1.0, False, 2), (-2.0, False)]
    assert token_counts(results) is None
    assert "acc_token_norm" not in choice_metrics(["a", "b"], 0, results)


def test_counts_survive_pickling() -> None:
    pair = pickle.loads(pickle.dumps(TokenLogLikelihood(-1.5, True, 7)))
    assert (tuple(pair), pair.tokens) == ((-1.5, True), 7)


def test_a_tie_goes_to_the_first() -> None:
    assert best_choice([-2.0, -1.0, -1.0]) == 1
    assert best_choice([-2.0, -4.0, -1.0], [2, 4, 1]) == 0


def test_a_choice_without_length_is_never_preferred() -> None:
    assert best_choice([-0.1, -9.0], [0, 3]) == 1
    assert best_choice([-0.1, -9.0], [0, 0]) == 0


def test_minus_infinity_is_a_score() -> None:
    assert best_choice([-math.inf, -5.0]) == 1
    assert best_choice([-math.inf, -math.inf]) == 0


def test_nan_is_refused() -> None:
    with pytest.raises(ResultsError, match="NaN as the log-likelihood of choice 1"):
        best_choice([-1.0, math.nan])


@given(st.lists(st.tuples(st.floats(-100, -1e-3), st.integers(1, 50)), min_size=1, max_size=6))
def test_best_choice_against_sorting(pairs: list[tuple[float, int]]) -> None:
    means = [log_likelihood / length for log_likelihood, length in pairs]
    expected = sorted(range(len(means)), key=lambda i: (-means[i], i))[0]
    assert best_choice([p[0] for p in pairs], [p[1] for p in pairs]) == expected
