"""The option that says which items are linked."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Cluster"]

Cluster = Annotated[
    str,
    typer.Option(
        help="Items that count as one cluster: 'declared' by their tasks, 'none', or items with "
        "the same 'doc_id', 'task' or field of the document, for tasks that declare nothing."
    ),
]
