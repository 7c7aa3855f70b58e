"""One row of a batch: a token tree written depth first.

In that order the descendants of node j are the nodes j + 1 .. ends[j] - 1, so node i may attend
to node j if and only if ``j <= i < ends[j]``: three short lists describe the whole attention mask.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from gks_eval.scoring.tree.sequences import Sequence, shared_inputs

__all__ = ["TreeRow", "build_row"]


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A token tree, possibly continuing a shared prefix that is computed elsewhere.

    Attributes:
        tokens: The token of each node.
        depths: Its position in every sequence through it, the shared prefix included.
        ends: One past its last descendant.
        scored: For each sequence, the nodes whose successors are scored.
    """

    tokens: list[int]
    depths: list[int]
    ends: list[int]
    scored: list[list[int]]

    @property
    def is_chain(self) -> bool:
        """Return whether no node has two successors, so that plain causal attention suffices."""
        return self.depths[-1] - self.depths[0] == len(self.depths) - 1


def build_row(sequences: Seq[Sequence], prefix: int = 0) -> TreeRow:
    """Write the tree of some sequences.

    Args:
        sequences: In the order of `to_sequences`.
        prefix: Number of common, unscored leading tokens that the row leaves out.

    Returns:
        The row; its `scored` is in the order of `sequences`.
    """
    tokens: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    scored: list[list[int]] = []
    path: list[int] = []  # the nodes of the current sequence, from the prefix on
    before: Sequence | None = None
    for sequence in sequences:
        shared = prefix if before is None else shared_inputs(before, sequence)
        size = len(tokens)
        for node in path[shared - prefix :]:
            ends[node] = size
        new = sequence.length - shared
        tokens += sequence.tokens[shared:-1]
        depths += range(shared, sequence.length)
        ends += [0] * new
        path[shared - prefix :] = range(size, size + new)
        scored.append(path[sequence.first_scored - prefix :])
        before = sequence
    for node in path:
        ends[node] = len(tokens)
    return TreeRow(tokens, depths, ends, scored)
