"""Dividing requests among processes: all of them, once each, in equal parts."""

from __future__ import annotations

import math
import random
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gks_eval.errors import DataError
from gks_eval.scoring import score_together
from gks_eval.scoring.loglikelihood import TokenLogLikelihood
from gks_eval.scoring.tree import count_distinct_tokens, shares, to_sequences

FRESH = settings(max_examples=80, deadline=None)
texts = st.lists(st.integers(0, 2), min_size=1, max_size=9)
pairs = st.lists(st.tuples(texts, texts), max_size=40)


def cost(sequences: list[Any]) -> int:
    """Distinct input prefixes, counted as a set."""
    return len({one.tokens[:end] for one in sequences for end in range(1, len(one.tokens))})


@FRESH
@given(pairs, st.integers(1, 6))
def test_every_sequence_is_in_one_share(requests, count):
    sequences = to_sequences(requests, 20)
    found = shares(sequences, count)
    assert len(found) == count
    assert [position for part in found for position in part] == list(range(len(sequences)))


@FRESH
@given(pairs, st.integers(2, 5))
def test_shares_are_even_to_within_one_sequence(requests, count):
    sequences = to_sequences(requests, 20)
    whole = cost(sequences)
    longest = max((one.length for one in sequences), default=0)
    for part in shares(sequences, count):
        # What its first sequence shared with the run before is at most one sequence more.
        assert cost([sequences[i] for i in part]) <= 1.04 * whole / count + 2 * longest


def test_items_are_not_parted_where_another_cut_is_as_good():
    # 100 items of four choices under a context of 30 tokens each.
    requests = [
        ([item // 10, item % 10] * 15, [10 + choice, 20])
        for item in range(100)
        for choice in range(4)
    ]
    sequences = to_sequences(requests, 64)
    found = shares(sequences, 3)
    parts = [[sequences[i] for i in part] for part in found]
    contexts = [{one.tokens[:30] for one in part} for part in parts]
    assert not contexts[0] & contexts[1]
    assert not contexts[1] & contexts[2]
    assert (
        sum(count_distinct_tokens(part) for part in parts) <= count_distinct_tokens(sequences) + 60
    )


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Number of tokens that two inputs begin with alike."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(map(len, (one, other))),
    )


def slow_shares(sequences: list[Any], count: int) -> list[range]:
    """Every cut by trying all places: near the even one, where the least is shared, the nearest."""
    inputs = [one.tokens[:-1] for one in sequences]
    prefixes: set[tuple[int, ...]] = set()
    before = [0]  # what the sequences before each position cost
    for text in inputs:
        prefixes |= {text[:end] for end in range(1, len(text) + 1)}
        before.append(len(prefixes))
    bounds = [0]
    for number in range(1, count):
        share = before[-1] / count
        even, slack = share * number, 0.02 * share
        first = next(i for i in range(1, len(before)) if before[i] >= even)
        near = [
            (common(inputs[i - 1], inputs[i]), abs(before[i] - even), i)
            for i in range(1, len(inputs))
            if i == first or even - slack <= before[i] <= even + slack
        ]
        bounds.append(max(bounds[-1], min(near)[2] if near else len(inputs)))
    return [range(*pair) for pair in pairwise([*bounds, len(inputs)])]


@pytest.mark.parametrize("seed", range(40))
def test_cuts_are_those_of_a_search_of_all_places(seed):
    draw = random.Random(seed)
    most = draw.choice((1, 3, 40))

    def text(length: int) -> list[int]:
        return [draw.randrange(3) for _ in range(length)]

    requests = [
        (context, text(draw.randint(1, 9)))
        for context in (text(draw.randint(1, 30)) for _ in range(draw.choice((1, 4, 30, 120))))
        for _ in range(draw.randint(1, most))
    ]
    sequences = to_sequences(requests, 64)
    for count in (1, 2, 3, 5, 8):
        assert shares(sequences, count) == slow_shares(sequences, count)


@pytest.mark.parametrize(
    ("texts", "cut"),
    [
        # 100 tokens in two shares: 49 to 51 is near enough, and the cut that parts least is taken.
        ([[0] * 49, [1] * 6, [1, 1] + [2] * 45], 1),
        ([[0] * 48, [1] * 7, [1, 1] + [2] * 45], 2),
        ([[0] * 50, [0] * 3 + [7], [1] * 49], 2),
        ([[0] * 50, [0] * 3 + [7] * 2, [1] * 48], 1),
    ],
)
def test_a_cut_moves_by_a_fiftieth_of_a_share_at_most(texts, cut):
    sequences = to_sequences([(text, [9]) for text in texts], 64)
    assert cost(sequences) == 100
    assert shares(sequences, 2) == [range(cut), range(cut, 3)]


class Threads:
    """A process group of threads, in place of processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.board: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)

    def member(self, rank: int) -> Any:
        board, barrier, size = self.board, self.barrier, self.size

        class Member:
            def gather(self, value: Any) -> list[Any]:
                board[self.rank] = value
                barrier.wait(20)
                found = list(board)
                barrier.wait(20)
                return found

        member = Member()
        member.rank, member.size = rank, size  # type: ignore[attr-defined]
        return member


def together(parts: list[list[Any]], score: Any) -> list[Any]:
    """Run `score_together` once a part, all at the same time; errors are returned."""
    group, found = Threads(len(parts)), [None] * len(parts)

    def run(rank: int) -> None:
        try:
            found[rank] = score_together(
                parts[rank], score, max_length=20, group=group.member(rank)
            )
        except DataError as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def digits(context: list[int], text: list[int]) -> float:
    """A number that tells every request from every other."""
    return float(int("1" + "".join(map(str, [*context, 9, *text]))))


@FRESH
@given(st.lists(pairs, min_size=1, max_size=4))
def test_every_process_gets_the_answers_to_its_own_requests(parts):
    asked: list[Any] = []
    lock = threading.Lock()

    def score(requests: list[Any]) -> list[TokenLogLikelihood]:
        with lock:
            asked.extend(requests)
        return [TokenLogLikelihood(digits(c, t), len(c) > 3, len(t)) for c, t in requests]

    found = together(parts, score)
    for part, answers in zip(parts, found, strict=True):
        expected = [(digits(c, t), len(c) > 3) for c, t in part]
        assert [tuple(answer) for answer in answers] == expected
        assert [answer.tokens for answer in answers] == [len(text) for _, text in part]
    # No request of any process is asked twice.
    distinct = {((*c, -1, *t)[-22:]) for part in parts for c, t in part}
    assert len(asked) == len(distinct)


def test_a_request_that_cannot_be_scored_ends_every_process():
    found = together([[([1], [2])], [([], [1])]], lambda requests: pytest.fail("not to be scored"))
    assert all(isinstance(error, DataError) for error in found)


def test_what_has_no_tokens_to_score_keeps_its_place():
    parts = [[([1], []), ([1], [2])], [([3], [4]), ([1], [])]]
    found = together(
        parts, lambda asked: [TokenLogLikelihood(digits(c, t), False, len(t)) for c, t in asked]
    )
    assert [[tuple(one) for one in part] for part in found] == [
        [(-math.inf, False), (digits([1], [2]), False)],
        [(digits([3], [4]), False), (-math.inf, False)],
    ]
