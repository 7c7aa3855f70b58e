"""`gks-eval cite`: the references of the methods that ran, in BibTeX."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from gks_eval.errors import one_line

__all__ = ["register"]

_TASKS = (
    "Methods and software. The README in each task's folder has the references of its data sets."
)


class CiteFormat(str, Enum):
    """How references are printed."""

    BIBTEX = "bibtex"
    TEXT = "text"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("cite")(cite)


def cite(
    results: Annotated[
        list[str],
        typer.Argument(help="Results files, folders or globs of gks-eval grid or of lm-eval."),
    ],
    fmt: Annotated[
        CiteFormat, typer.Option("--format", help="BibTeX, or one line of text per reference.")
    ] = CiteFormat.BIBTEX,
) -> None:
    """Print the references of the methods and software behind results, in BibTeX."""
    from gks_eval.cli._bar import working
    from gks_eval.evidence.runs import find_runs
    from gks_eval.method.references import HARNESS, Reference, references, used_by

    runs = find_runs(results)
    with working("reading methods"):
        found: dict[str, Reference] = {}
        missing: dict[str, None] = {}
        for run in runs:
            used, unknown = used_by(run.ours)
            missing |= dict.fromkeys(unknown)
            for reference in used:
                found.setdefault(reference.key, reference)
    places = {key: float(place) for place, key in enumerate(references())}
    of_others = places[HARNESS] - 0.5  # papers of other packages come before the software
    entries = sorted(found.values(), key=lambda entry: places.get(entry.key, of_others))
    notes = [
        _TASKS,
        *(f"{_word(name)} is not installed; its reference is missing." for name in missing),
    ]
    if fmt is CiteFormat.TEXT:
        typer.echo("\n".join([*(entry.text() for entry in entries), *notes]))
        return
    comments = "\n".join(f"% {note}" for note in notes)
    typer.echo("\n".join([comments, "", *(entry.bibtex() for entry in entries)]), nl=False)


def _word(name: str) -> str:
    """Return a name from a results file without line breaks and without the start of an entry."""
    return one_line(name).replace("@", "?")
