"""The option that says which items are linked."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Cluster"]

Cluster = Annotated[
    str,
    typer.Option(
        help="Which items are linked: 'declared' by their tasks, 'none', or a field of the "
        "documents, 'doc_id' or 'task', for tasks that declare nothing."
    ),
]
