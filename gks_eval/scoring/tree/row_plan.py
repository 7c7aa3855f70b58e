"""Which sequences share a row, and which rows share a prefix.

Sequences arrive sorted. Cuts between neighbours that share little are free; the sequences between
two cuts are a cluster, usually the choices of one item. Small clusters fill rows of `row_tokens`.
If a cluster is too large for a row (few-shot items after one prefix, a long document), its common
prefix is computed once, and its rows attend to the keys and values of this shared prefix.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from itertools import pairwise
from math import ceil, isqrt

from gks_eval.scoring.tree.planned_rows import Group, PlannedRow, RowLimits
from gks_eval.scoring.tree.sequences import Sequence, shared_inputs

__all__ = ["plan_rows"]

ATTENTION_EVEN = 2048
"""Row length at which attention costs about as much as a small model's linear layers."""


class _Runs:
    # Runs [start, stop) of sorted sequences, and their costs.

    def __init__(self, sequences: Seq[Sequence]) -> None:
        self.sequences = sequences
        self.shared = [0]  # with the sequence before
        self.shared += [shared_inputs(one, other) for one, other in pairwise(sequences)]
        self.new = [0]  # running sum of the tokens that each adds to the one before
        for sequence, shared in zip(sequences, self.shared, strict=True):
            self.new.append(self.new[-1] + sequence.length - shared)

    def tokens(self, start: int, stop: int, prefix: int) -> int:
        first = self.sequences[start].length - prefix
        return first + self.new[stop] - self.new[start + 1]

    def common(self, one: int, other: int) -> int:
        if other == one + 1:
            return self.shared[other]
        return shared_inputs(self.sequences[one], self.sequences[other])

    def row(self, start: int, stop: int, prefix: int) -> PlannedRow:
        tokens = self.tokens(start, stop, prefix)
        # A chain consists of the tokens of its longest sequence. Checking neighbours is not enough:
        # a short sequence may come between two that branch after it.
        longest = max(one.length for one in self.sequences[start:stop])
        return PlannedRow(tuple(range(start, stop)), tokens, chain=tokens == longest - prefix)

    def prefix(self, start: int, stop: int) -> int:
        # For two or more sequences. Scored tokens must be in a row, which keeps hidden states.
        common = min(self.shared[start + 1 : stop])
        return min(common, *(s.first_scored for s in self.sequences[start:stop]))

    def cut_below(self, start: int, stop: int, shared: int) -> Iterator[tuple[int, int]]:
        for i in range(start + 1, stop):
            if self.shared[i] < shared:
                yield start, i
                start = i
        yield start, stop

    def cut_by_size(
        self, start: int, stop: int, prefix: int, size: int
    ) -> Iterator[tuple[int, int]]:
        for i in range(start + 1, stop):
            if self.tokens(start, i + 1, prefix) > size:
                yield start, i
                start = i
        yield start, stop


def plan_rows(
    sequences: Seq[Sequence], limits: RowLimits, *, share_prefixes: bool = True
) -> list[Group]:
    """Assign every sequence to one row.

    Args:
        sequences: In the order of `to_sequences`.
        limits: Sizes of rows and batches.
        share_prefixes: Whether common prefixes may be computed separately.

    Returns:
        Groups, starting with the one without a shared prefix if there is one. The `members` of all
        rows are the positions of `sequences`, each once.
    """
    if not sequences:
        return []
    runs = _Runs(sequences)
    groups: list[Group] = []
    at_root: list[PlannedRow] = []
    waiting = [(0, len(sequences), 0)]
    while waiting:
        start, stop, prefix = waiting.pop()
        clusters: list[PlannedRow] = []
        for a, b in runs.cut_below(start, stop, prefix + limits.worth_sharing):
            cluster = runs.row(a, b, prefix)
            if cluster.tokens <= limits.whole:
                clusters.append(cluster)
                continue
            if cluster.chain:
                if prefix and cluster.tokens * (cluster.tokens + prefix) <= limits.mask_cells:
                    clusters.append(cluster)
                else:  # from the root, plain causal attention needs no mask
                    at_root.append(runs.row(a, b, 0))
                continue
            common = runs.prefix(a, b)
            size = _piece(common - prefix, limits)
            if share_prefixes and _pays(common, prefix, cluster.tokens, size, limits):
                waiting.append((a, b, common))
            else:
                pieces = runs.cut_by_size(a, b, prefix, size)
                clusters += [runs.row(c, d, prefix) for c, d in pieces]
        rows = _fill(clusters, runs, prefix, limits.row_tokens)
        if not prefix:
            at_root += rows
        elif rows:  # empty if all went to the root or to longer prefixes
            groups.append(Group(sequences[start].tokens[:prefix], rows))
    if at_root:
        groups.insert(0, Group((), at_root))
    for group in groups:
        group.rows.sort(key=lambda row: (row.chain, -row.tokens))
    return groups


def _piece(common: int, limits: RowLimits) -> int:
    # Row size if every row repeats `common` tokens: at most a third is repetition.
    return min(max(limits.whole, 3 * common), isqrt(limits.mask_cells))


def _pays(new: int, old: int, tokens: int, size: int, limits: RowLimits) -> bool:
    # Whether a shared prefix of `new` tokens is cheaper than rows of `size` that repeat what it
    # adds to the `old` prefix. In tokens: it saves the repetition and attention at full width, and
    # costs the old prefix once more and one more forward.
    added = new - old
    if added < limits.worth_sharing:
        return False
    pieces = ceil((tokens - added) / max(1, size - added))
    saved = added * (pieces - 1) + added * tokens / ATTENTION_EVEN
    return saved >= old + 2 * limits.worth_sharing


def _fill(
    clusters: list[PlannedRow], runs: _Runs, prefix: int, row_tokens: int
) -> list[PlannedRow]:
    # Best fit: large clusters first, from the largest. Small ones then fill the remaining room in
    # their own order, because neighbours share their first few tokens.
    row_tokens = _evened(clusters, runs, prefix, row_tokens)
    large = [cluster for cluster in clusters if 4 * cluster.tokens > row_tokens]
    rows: list[list[PlannedRow]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for cluster in sorted(large, key=lambda cluster: -cluster.tokens):
        place = bisect_left(rooms, (cluster.tokens, -1))
        left, row = rooms.pop(place) if place < len(rooms) else (row_tokens, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(cluster)
        insort(rooms, (left - cluster.tokens, row))
    left = row = 0
    before: int | None = None
    for cluster in clusters:
        if 4 * cluster.tokens > row_tokens:
            continue
        shared = 0 if before is None else runs.common(before, cluster.members[0]) - prefix
        if left < cluster.tokens - shared:
            shared = 0
            left, row = rooms.pop() if rooms else (row_tokens, len(rows))
            if left < cluster.tokens:  # even in the emptiest row
                left, row, rooms = row_tokens, len(rows), []
            if row == len(rows):
                rows.append([])
        rows[row].append(cluster)
        left -= cluster.tokens - shared
        before = cluster.members[-1]
    return [row[0] if len(row) == 1 else _merged(row, runs, prefix) for row in rows]


def _evened(clusters: list[PlannedRow], runs: _Runs, prefix: int, row_tokens: int) -> int:
    # As many rows as needed, of equal lengths; otherwise the last would be mostly padding.
    fitting = [cluster for cluster in clusters if cluster.tokens <= row_tokens]
    total = sum(cluster.tokens for cluster in fitting)
    for one, other in pairwise(fitting):
        total -= runs.common(one.members[-1], other.members[0]) - prefix
    rows = ceil(total / row_tokens)
    if rows < 2:
        return row_tokens
    largest = max(cluster.tokens for cluster in fitting)
    return min(row_tokens, max(ceil(1.05 * total / rows), largest))


def _merged(clusters: list[PlannedRow], runs: _Runs, prefix: int) -> PlannedRow:
    members = sorted(member for cluster in clusters for member in cluster.members)
    tokens = runs.sequences[members[0]].length - prefix
    tokens += sum(
        runs.sequences[other].length - runs.common(one, other) for one, other in pairwise(members)
    )
    return PlannedRow(tuple(members), tokens, chain=False)
