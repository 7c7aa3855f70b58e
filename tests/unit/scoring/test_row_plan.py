"""Plans worked out by hand: where runs are cut, when a shared prefix pays, how rows are filled."""

from __future__ import annotations

import pytest

from gks_eval.scoring.tree import Group, RowLimits, plan_rows, to_sequences

LARGE = 1 << 20


def choices(context: int, count: int, length: int) -> list[tuple]:
    """One item: choices that share nothing, `length` tokens each, `length - 1` of them computed."""
    return [([0] * context, [1000 + n] * length) for n in range(count)]


def texts(*sizes: int) -> list[tuple]:
    """Texts of so many input tokens that share nothing."""
    return [([n] * size, [9]) for n, size in enumerate(sizes)]


def planned(requests: list[tuple], sizes: RowLimits, *, share_prefixes: bool = True) -> list[Group]:
    return plan_rows(to_sequences(requests, 4096), sizes, share_prefixes=share_prefixes)


def shape(groups: list[Group]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return the prefix's length and (tokens, sequences) of each row, for each group."""
    return [
        (len(group.prefix), [(row.tokens, len(row.members)) for row in group.rows])
        for group in groups
    ]


def test_up_to_twice_a_row_stays_together():
    sizes = RowLimits(32, 1024, LARGE)
    assert shape(planned(choices(10, 9, 7), sizes)) == [(0, [(10 + 9 * 6, 9)])]
    # One choice more: ten times 6 tokens after a shared prefix of all but the last context token.
    assert shape(planned(choices(10, 10, 7), sizes)) == [(9, [(1 + 5 * 6, 5), (1 + 5 * 6, 5)])]
    apart = planned(choices(10, 10, 7), sizes, share_prefixes=False)
    assert shape(apart) == [(0, [(64, 9), (16, 1)])]
    own = RowLimits(32, 1024, LARGE, whole_tokens=70)
    assert shape(planned(choices(10, 10, 7), own)) == [(0, [(70, 10)])]


def test_twice_a_row_stays_together_even_where_a_shared_prefix_would_pay():
    sizes = RowLimits(256, 1024, LARGE)
    assert shape(planned(choices(401, 3, 38), sizes)) == [(0, [(401 + 3 * 37, 3)])]
    assert shape(planned(choices(402, 3, 38), sizes)) == [(401, [(1 + 3 * 37, 3)])]


def test_rows_without_a_shared_prefix_repeat_a_third_at_most():
    # 40 tokens are common: rows of up to 120, 41 + 19 * 4 = 117.
    sizes = RowLimits(16, 1024, LARGE)
    apart = planned(choices(41, 30, 5), sizes, share_prefixes=False)
    assert shape(apart) == [(0, [(117, 19), (85, 11)])]
    # What is longer than that alone has a row of its own.
    apart = planned(choices(41, 3, 100), sizes, share_prefixes=False)
    assert shape(apart) == [(0, [(41 + 99, 1)] * 3)]


@pytest.mark.parametrize(
    ("mask_cells", "rows"),
    [(101**2, [(101, 15), (101, 15)]), (101**2 - 1, [(97, 14), (97, 14), (49, 2)])],
)
def test_a_row_s_mask_keeps_to_the_limit(mask_cells, rows):
    apart = planned(choices(41, 30, 5), RowLimits(16, 1024, mask_cells), share_prefixes=False)
    assert shape(apart) == [(0, rows)]


def test_a_shared_prefix_must_save_twice_what_is_worth_sharing():
    # Two rows of at most 512. A prefix of 24 saves 24 and, of attention, 24 * 595 / 2048: under 32.
    sizes = RowLimits(256, 1024, LARGE)
    kept = planned(choices(25, 30, 20), sizes)
    assert shape(kept) == [(0, [(25 + 25 * 19, 25), (25 + 5 * 19, 5)])]
    # One of 25 saves 25 + 25 * 596 / 2048 = 32.3.
    assert [len(group.prefix) for group in planned(choices(26, 30, 20), sizes)] == [25]


def test_a_prefix_below_a_prefix_must_also_pay_for_that_one_again():
    # After 100 common tokens, an item with 40 more of its own. A second prefix would save
    # 40 + 40 * 161 / 2048, and cost the first one's 100: rows of up to three times 40 instead.
    shots = list(range(100, 200))
    requests = [(shots + [n] * 4, [c] * 3) for n in range(20) for c in (1, 2)]
    requests += [(shots + [500] * 41, [1000 + n] * 5) for n in range(30)]
    groups = planned(requests, RowLimits(16, 1024, LARGE))
    assert shape(groups) == [(100, [(117, 19), (85, 11), *[(16, 4)] * 10])]
    # So too in longer rows: 40 + 40 * 573 / 2048 is less than 100.
    requests = [(shots + [n] * 4, [c] * 3) for n in range(20) for c in (1, 2)]
    requests += [(shots + [500] * 41, [1000 + n] * 20) for n in range(28)]
    groups = planned(requests, RowLimits(256, 1024, LARGE))
    assert [len(group.prefix) for group in groups] == [100]


def test_what_is_scored_is_never_in_a_shared_prefix():
    # The choices share 14 tokens, but are scored from the fourth on: 3 are not worth sharing.
    requests = [([0] * 4, [1] * 10 + [100 + n] * 10) for n in range(20)]
    groups = planned(requests, RowLimits(16, 1024, LARGE))
    assert shape(groups) == [(0, [(14 + 2 * 9, 2)] * 10)]


def test_a_long_text_at_the_root_is_alone():
    # It needs no mask by itself, and would in a row with others.
    groups = planned(texts(20, 5), RowLimits(95, 1024, LARGE, whole_tokens=10))
    assert [(row.tokens, row.chain) for row in groups[0].rows] == [(20, True), (5, True)]


@pytest.mark.parametrize(("mask_cells", "own"), [(50 * 150, False), (50 * 150 - 1, True)])
def test_a_long_text_leaves_a_shared_prefix_where_its_mask_is_too_large(mask_cells, own):
    # 20 items after 100 common tokens, and one text of 50 more: 50 rows of 150 mask cells.
    shots = list(range(100, 200))
    requests = [(shots + [n] * 4, [c] * 3) for n in range(20) for c in (1, 2)]
    groups = planned([*requests, (shots + [500] * 40, [9] * 11)], RowLimits(16, 1024, mask_cells))
    items = [(16, 4)] * 10
    if own:
        assert shape(groups) == [(0, [(150, 1)]), (100, items)]
    else:
        assert shape(groups) == [(100, [*items, (50, 1)])]


def test_large_pieces_go_where_they_leave_the_least_room():
    # 60 and 40, then 50, 30 and 20.
    groups = planned(texts(30, 60, 20, 50, 40), RowLimits(100, 1024, LARGE))
    assert sorted(row.members for row in groups[0].rows) == [(0, 2, 3), (1, 4)]
    assert [row.tokens for row in groups[0].rows] == [100, 100]


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        # 240 tokens in three rows of 80, not 100, 100 and 40; 120 in two of 60, not 100 and 20.
        ([20] * 12, [(80, 4)] * 3),
        ([20] * 6, [(60, 3)] * 2),
        # A piece beyond a row is no measure for the others.
        ([*[20] * 12, 150], [(80, 4)] * 3 + [(150, 1)]),
        # An exact fit is one.
        ([25] * 8, [(100, 4)] * 2),
        # No room in the rows of large pieces: a new row.
        ([90, 90, 20, 20], [(40, 2), (90, 1), (90, 1)]),
    ],
)
def test_rows_are_of_equal_length_rather_than_the_last_one_short(sizes, rows):
    assert shape(planned(texts(*sizes), RowLimits(100, 1024, LARGE))) == [(0, rows)]


def test_rows_below_a_shared_prefix_are_of_equal_length_too():
    shots = list(range(100, 200))
    requests = [(shots + context, text) for context, text in texts(*[20] * 12)]
    assert shape(planned(requests, RowLimits(100, 1024, LARGE))) == [(100, [(80, 4)] * 3)]


@pytest.mark.parametrize(
    ("row_tokens", "members", "rows"),
    [
        (88, [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)], [3 + 5 * 17] * 2),
        (87, [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)], [3 + 4 * 17, 3 + 4 * 17, 3 + 2 * 17]),
    ],
)
def test_small_pieces_share_their_first_tokens_with_their_neighbours(row_tokens, members, rows):
    requests = [([7] * 3 + [n] * 17, [9]) for n in range(10)]
    (group,) = planned(requests, RowLimits(row_tokens, 1024, LARGE))
    assert [row.members for row in group.rows] == members
    assert [row.tokens for row in group.rows] == rows


def test_a_row_of_distant_pieces_counts_only_what_they_share():
    # Pieces 0 and 2 share one token; piece 1, which goes elsewhere, shares three with 2.
    requests = [
        ([1, 2, *[3] * 38], [9]),
        ([1, 3, 3, *[4] * 87], [9]),
        ([1, 3, 3, *[5] * 43], [9]),
    ]
    groups = planned(requests, RowLimits(100, 1024, LARGE))
    assert [(row.members, row.tokens) for row in groups[0].rows] == [
        ((0, 2), 40 + 46 - 1),
        ((1,), 90),
    ]
