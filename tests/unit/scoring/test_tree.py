from __future__ import annotations

import random

import pytest
from common import assert_sentence
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gks_eval.errors import DataError
from gks_eval.scoring.tree import (
    Group,
    PlannedRow,
    RowLimits,
    Sequence,
    build_row,
    count_distinct_tokens,
    count_harness_tokens,
    halves,
    next_batch,
    plan_rows,
    to_sequences,
)

FRESH = settings(max_examples=60, deadline=None)

# Few different tokens, so that prefixes coincide often.
texts = st.lists(st.integers(0, 2), min_size=1, max_size=9)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=25)
limits = st.builds(
    RowLimits,
    row_tokens=st.integers(1, 12),
    batch_tokens=st.integers(1, 60),
    mask_cells=st.integers(1, 2000),
)


def with_long_prefixes(requests: list[tuple[list[int], list[int]]]) -> list[tuple]:
    """The same contexts after prefixes of 0, 20 and 40 tokens, so that sharing them pays."""
    prefixes = ([], [3] * 20, [3] * 20 + [4] * 20)
    return [(prefixes[n % 3] + context, text) for n, (context, text) in enumerate(requests)]


def input_prefixes(sequences: list[Sequence]) -> set[tuple[int, ...]]:
    return {one.tokens[:end] for one in sequences for end in range(1, len(one.tokens))}


@FRESH
@given(pairs, st.integers(9, 20))
def test_sequences_are_truncated_as_the_harness_does_it(requests, max_length):
    found = to_sequences(requests, max_length)
    answered = {}
    for sequence in found:
        for index in sequence.requests:
            answered[index] = sequence
    assert sorted(answered) == list(range(len(requests)))
    for index, (context, continuation) in enumerate(requests):
        fed = (context + continuation)[-(max_length + 1) :][:-1]
        assert list(answered[index].tokens[:-1]) == fed
        assert list(answered[index].targets) == continuation
        assert answered[index].first_scored == len(fed) - len(continuation)
    assert len({(one.tokens, one.scored) for one in found}) == len(found)
    assert found == sorted(found, key=lambda one: (one.tokens, one.scored))


def test_a_continuation_may_fill_the_model():
    (found,) = to_sequences([([1, 2, 3], [4] * 8)], 8)
    assert (found.tokens, found.first_scored) == ((3, *[4] * 8), 0)


def test_one_text_scored_twice_comes_shortest_score_first():
    requests = [([1], [2, 3]), ([1, 2], [3])]
    for order in (requests, requests[::-1]):
        assert [one.scored for one in to_sequences(order, 8)] == [1, 2]


def check_plan(sequences: list[Sequence], groups: list[Group]) -> None:
    """Every sequence lies in one row, every row is what it says, below its prefix."""
    members = [m for group in groups for row in group.rows for m in row.members]
    assert sorted(members) == list(range(len(sequences)))
    assert all(group.prefix for group in groups[1:])
    for group in groups:
        assert group.rows
        start = len(group.prefix)
        order = [(row.chain, -row.tokens) for row in group.rows]
        assert order == sorted(order)
        for row in group.rows:
            chosen = [sequences[m] for m in row.members]
            assert list(row.members) == sorted(row.members)
            assert all(one.tokens[:start] == group.prefix for one in chosen)
            assert all(one.first_scored >= start for one in chosen)
            built = build_row(chosen, start)
            assert len(built.tokens) == row.tokens
            assert built.is_chain or not row.chain


@FRESH
@given(pairs)
@example([([0], [0]), ([0], [0, 0]), ([0], [1])])  # one input twice, another in between
def test_counts_are_those_of_the_sets_of_prefixes(requests):
    sequences = to_sequences(requests, 100)
    assert count_distinct_tokens(sequences) == len(input_prefixes(sequences))
    harness = {tuple(context + continuation[:-1]) for context, continuation in requests}
    assert count_harness_tokens(sequences) == sum(map(len, harness))


@FRESH
@given(pairs, st.integers(0, 3))
def test_a_row_is_the_tree_of_its_prefixes(requests, prefix):
    common = [7] * prefix
    sequences = to_sequences([(common + c, t) for c, t in requests], 100)
    row = build_row(sequences, prefix)
    assert prefix or build_row(sequences) == row
    prefixes = {p for p in input_prefixes(sequences) if len(p) > prefix}
    assert len(row.tokens) == len(row.depths) == len(row.ends) == len(prefixes)
    # Read each node's path back from the mask that the ends stand for.
    paths = []
    for i in range(len(row.tokens)):
        ancestors = [j for j in range(len(row.tokens)) if j <= i < row.ends[j]]
        assert [row.depths[j] for j in ancestors] == list(range(prefix, prefix + len(ancestors)))
        paths.append((*common, *(row.tokens[j] for j in ancestors)))
    assert set(paths) == prefixes
    for sequence, nodes in zip(sequences, row.scored, strict=True):
        ends = range(sequence.first_scored + 1, sequence.length + 1)
        assert [paths[node] for node in nodes] == [sequence.tokens[:end] for end in ends]
    assert row.is_chain == (len({len(path) for path in paths}) == len(paths))


@FRESH
@given(pairs, limits, st.booleans())
def test_a_plan_answers_everything_once(requests, sizes, share_prefixes):
    sequences = to_sequences(with_long_prefixes(requests), 100)
    groups = plan_rows(sequences, sizes, share_prefixes=share_prefixes)
    assert share_prefixes or not any(group.prefix for group in groups)
    check_plan(sequences, groups)


@FRESH
@given(pairs, limits)
def test_batches_keep_to_the_limits(requests, sizes):
    sequences = to_sequences(with_long_prefixes(requests), 100)
    for group in plan_rows(sequences, sizes):
        rows = group.rows
        while rows:
            count = next_batch(rows, sizes, len(group.prefix))
            batch, rows = rows[:count], rows[count:]
            longest = max(row.tokens for row in batch)
            assert count == 1 or count * longest <= sizes.batch_tokens
            if count > 1 and (group.prefix or not all(row.chain for row in batch)):
                assert count * longest * (longest + len(group.prefix)) <= sizes.mask_cells


@FRESH
@given(pairs, limits)
def test_a_plan_does_not_depend_on_the_order_of_requests(requests, sizes):
    one = plan_rows(to_sequences(requests, 100), sizes)
    assert plan_rows(to_sequences(requests[::-1], 100), sizes) == one


def item(context: int, choices: int, length: int, *, first: int) -> list[tuple]:
    """An item with its own context and choices that share nothing."""
    return [([first] * context, [1000 + n] * length) for n in range(choices)]


def test_a_few_shot_prefix_is_computed_once():
    shots = list(range(100, 400))
    requests = [
        (shots + context, continuation)
        for n in range(20)
        for context, continuation in item(30, 4, 5, first=n)
    ]
    sequences = to_sequences(requests, 2048)
    (group,) = plan_rows(sequences, RowLimits(256, 1024, 1 << 25))
    assert list(group.prefix) == shots
    assert len(group.prefix) + sum(row.tokens for row in group.rows) == count_distinct_tokens(
        sequences
    )


def test_a_long_context_with_short_choices_becomes_a_shared_prefix():
    sequences = to_sequences(item(3000, 4, 3, first=0), 4096)
    (group,) = plan_rows(sequences, RowLimits(256, 1024, 1 << 25))
    assert len(group.prefix) == 2999  # the last context token is where scoring begins
    assert [row.tokens for row in group.rows] == [1 + 4 * 2]


def test_a_long_text_alone_is_a_chain_at_the_root():
    sequences = to_sequences([([1], list(range(2000)))], 4096)
    (group,) = plan_rows(sequences, RowLimits(256, 1024, 1000))
    assert not group.prefix
    assert [(row.tokens, row.chain) for row in group.rows] == [(2000, True)]


@pytest.mark.parametrize(
    ("texts", "tokens", "chain"),
    [
        ([range(20), range(40), range(70)], 70, True),
        ([range(20), range(20), range(40)], 40, True),
        ([range(20)], 20, True),
        ([range(20), [*range(19), 99]], 21, False),
        ([range(40), range(20), [*range(39), 99]], 41, False),
        ([range(70), [*range(20), 99], range(30)], 71, False),
        ([range(30), range(70), [*range(20), 99], [*range(20), 99, 5]], 72, False),
    ],
)
def test_a_chain_is_one_path(texts, tokens, chain):
    sequences = to_sequences([([*text], [200]) for text in texts], 4096)
    ((row,),) = (group.rows for group in plan_rows(sequences, RowLimits(64, 1024, 1 << 20)))
    assert (row.tokens, row.chain) == (tokens, chain)


def test_a_short_text_between_two_that_part_does_not_join_them():
    # In order: context 5 6, context 7, context 8 9. Each of the two pairs is one path.
    context = list(range(300))
    requests = [(context, [5, 6, 1]), (context, [7]), (context, [8, 9, 1])]
    sequences = to_sequences(requests, 1024)
    ((row,),) = (group.rows for group in plan_rows(sequences, RowLimits(256, 1024, 1 << 20)))
    assert (row.tokens, row.chain) == (304, False)
    # So a context beyond a row is computed apart, not as one wide row with a mask.
    (group,) = plan_rows(sequences, RowLimits(64, 1024, 1 << 20))
    assert (len(group.prefix), [row.tokens for row in group.rows]) == (299, [5])


@pytest.mark.parametrize(
    ("row_tokens", "whole_tokens", "whole", "worth_sharing"),
    [(256, 0, 512, 16), (256, 100, 100, 16), (100, 0, 200, 6), (16, 0, 32, 4), (95, 1, 1, 5)],
)
def test_what_the_limits_imply(row_tokens, whole_tokens, whole, worth_sharing):
    sizes = RowLimits(row_tokens, 1024, 1 << 20, whole_tokens=whole_tokens)
    assert (sizes.whole, sizes.worth_sharing) == (whole, worth_sharing)


def likely_work(seed: int) -> list[Sequence]:
    """Items with choices, plain and after two few-shot prefixes, that share first tokens often."""
    draw = random.Random(seed)

    def text(least: int, most: int) -> list[int]:
        return [draw.randrange(3) for _ in range(draw.randint(least, most))]

    requests = []
    for shots in ([], text(20, 60), text(100, 200)):
        for _ in range(draw.randint(1, 30)):
            context = shots + text(1, 40)
            requests += [(context, text(1, 12)) for _ in range(draw.randint(1, 8))]
    return to_sequences(requests, 1000)


def computed(groups: list[Group]) -> int:
    return sum(len(group.prefix) + sum(row.tokens for row in group.rows) for group in groups)


def padded(groups: list[Group], sizes: RowLimits) -> int:
    """Tokens of all forwards, padding included."""
    total = 0
    for group in groups:
        total += len(group.prefix)
        rows = group.rows
        while rows:
            count = next_batch(rows, sizes, len(group.prefix))
            total += count * max(row.tokens for row in rows[:count])
            rows = rows[count:]
    return total


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        (RowLimits(64, 256, 1 << 20), 1.1),
        (RowLimits(16, 200, 1 << 20, padded=False, whole_tokens=128), 1.1),
        # Masks so small that rows are a few dozen tokens.
        (RowLimits(32, 128, 3000), 1.6),
    ],
)
def test_likely_work_repeats_few_tokens(sizes, most, seed):
    sequences = likely_work(seed)
    distinct = count_distinct_tokens(sequences)
    groups = plan_rows(sequences, sizes)
    check_plan(sequences, groups)
    assert computed(groups) <= most * distinct
    assert computed(groups) < computed(plan_rows(sequences, sizes, share_prefixes=False))
    if sizes.padded:
        assert padded(groups, sizes) <= (most + 0.12) * distinct


def test_small_items_fill_rows():
    requests = [request for n in range(100) for request in item(40, 4, 6, first=n)]
    sequences = to_sequences(requests, 2048)
    (group,) = plan_rows(sequences, RowLimits(256, 1024, 1 << 25))
    tokens = sum(row.tokens for row in group.rows)
    assert tokens == count_distinct_tokens(sequences)
    assert tokens / (len(group.rows) * max(row.tokens for row in group.rows)) > 0.9


def rows_of(*tokens: int, chain: bool = False) -> list[PlannedRow]:
    return [PlannedRow((n,), length, chain) for n, length in enumerate(tokens)]


@pytest.mark.parametrize(
    ("rows", "batch_tokens", "mask_cells", "prefix", "expected"),
    [
        # Padding counts: three rows as long as the first.
        (rows_of(10, 9, 8), 30, 999, 0, 3),
        (rows_of(10, 9, 8), 29, 999, 0, 2),
        (rows_of(10, 9, 8), 19, 999, 0, 1),
        (rows_of(10, 9, 8), 3, 1, 0, 1),
        # So does the longest where it is not the first: chains come after trees.
        (rows_of(8) + rows_of(10, chain=True), 20, 999, 0, 2),
        (rows_of(8) + rows_of(10, chain=True), 19, 999, 0, 1),
        # Masks: each row as wide as the longest and the prefix.
        (rows_of(10, 9, 8), 99, 300, 0, 3),
        (rows_of(10, 9, 8), 99, 299, 0, 2),
        (rows_of(10, 9, 8), 99, 450, 5, 3),
        (rows_of(10, 9, 8), 99, 449, 5, 2),
        # Chains from the root have none; on a shared prefix they have.
        (rows_of(10, 9, 8, chain=True), 99, 1, 0, 3),
        (rows_of(10, 9, 8, chain=True), 99, 449, 5, 2),
        (rows_of(10) + rows_of(9, 8, chain=True), 99, 299, 0, 2),
        # A row under 3/4 of the longest waits if the others fill more than half a batch.
        (rows_of(100, 100, 100, 75), 400, 1 << 20, 0, 4),
        (rows_of(100, 100, 100, 74), 400, 1 << 20, 0, 3),
        (rows_of(100, 100, 74), 400, 1 << 20, 0, 3),
        (rows_of(100, 100, 74), 399, 1 << 20, 0, 2),
    ],
)
def test_how_many_padded_rows_go_into_a_batch(rows, batch_tokens, mask_cells, prefix, expected):
    sizes = RowLimits(256, batch_tokens, mask_cells)
    assert next_batch(rows, sizes, prefix) == expected
    assert prefix or next_batch(rows, sizes) == expected


@pytest.mark.parametrize(
    ("rows", "batch_tokens", "mask_cells", "prefix", "expected"),
    [
        # The rows' own tokens count, and each tree's own square.
        (rows_of(10, 6, 4), 20, 999, 0, 3),
        (rows_of(10, 6, 4), 19, 999, 0, 2),
        (rows_of(10, 6, 4), 3, 1, 0, 1),
        (rows_of(10, 6, 4), 99, 100 + 36 + 16, 0, 3),
        (rows_of(10, 6, 4), 99, 100 + 36 + 15, 0, 2),
        (rows_of(10) + rows_of(6, 4, chain=True), 99, 100, 0, 3),
        (rows_of(10) + rows_of(6, 4, chain=True), 99, 99, 0, 1),
        # Under a shared prefix rows are padded all the same.
        (rows_of(10, 9, 8), 29, 999, 1, 2),
    ],
)
def test_how_many_unpadded_rows_go_into_a_batch(rows, batch_tokens, mask_cells, prefix, expected):
    sizes = RowLimits(256, batch_tokens, mask_cells, padded=False)
    assert next_batch(rows, sizes, prefix) == expected
    assert prefix or next_batch(rows, sizes) == expected


def test_a_row_is_halved_until_one_sequence_is_left():
    sequences = to_sequences(item(4, 3, 2, first=0), 64)
    ((row,),) = (group.rows for group in plan_rows(sequences, RowLimits(256, 256, 1 << 20)))
    one, two = halves(row)
    assert one.members + two.members == row.members
    assert halves(one) == [one]
    for chain in (True, False):
        parts = halves(PlannedRow((3, 5, 6, 8), 9, chain))
        assert parts == [PlannedRow((3, 5), 9, chain), PlannedRow((6, 8), 9, chain)]


def test_nothing_gives_no_plan():
    assert plan_rows([], RowLimits(256, 1024, 1 << 20)) == []
    assert to_sequences([], 5) == []
    assert to_sequences([([1], []), ([], [])], 5) == []


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        (([], [1]), ("request 1: its context has no tokens", "prefix token")),
        (([1], [2] * 9), ("request 1", "9 tokens", "max_length=8")),
    ],
)
def test_a_request_that_cannot_be_scored_is_named(request_, parts):
    with pytest.raises(DataError) as raised:
        to_sequences([([1], [2]), request_], 8)
    assert_sentence(raised.value, *parts)
