"""What was found about a treatment's controls, as a table and its sentences."""

from __future__ import annotations

from gks_eval.evidence.question import Contrast, Finding, Question
from gks_eval.evidence.tables.content import Note, Table, interval, number, p_value

__all__ = ["answers", "controls_table", "question_sentence"]

_STATES = {"better": "control better"}


def question_sentence(question: Question) -> str:
    """Return the question that was fixed before the run."""
    seeds = "seed 0" if question.seeds == 1 else f"seeds 0 to {question.seeds - 1}"
    asked = "".join(
        f", {name} {'as given' if name == 'samples' else value}"
        for name, value in question.evaluation.items()
    )
    return (
        f"Question, fixed before the run: does {question.treatment} score higher than each of "
        f"{len(question.controls)} controls, mean over {', '.join(question.tasks)}{asked}? Library "
        f"{question.library} ({question.library_hash[:12]}), {seeds} of random controls, level "
        f"{question.alpha:g} after Holm over all controls, margin {100 * question.margin:g} points."
    )


def answers(question: Question, finding: Finding) -> list[str]:
    """Return the question and what was found, a sentence each."""
    return [question_sentence(question), *(claim.sentence for claim in finding.claims)]


def controls_table(question: Question, finding: Finding) -> Table:
    """Return one row per control."""
    contrasts = finding.contrasts
    marks = {
        (place, 0): "best" if one.state == "beaten" else "second"
        for place, one in enumerate(contrasts)
        if one.state in ("beaten", "better")
    }
    columns = ["control", "change", f"{100 * (1 - question.alpha):g}% interval", "p Holm"]
    columns += ["verdict", "score", "p", "+/−", "n", "n needed"]
    even = len({task.weight for task in finding.tasks}) == 1
    weighting = f"mean over {len(finding.tasks)} tasks, {'equal weights' if even else 'by size'}"
    if len(finding.tasks) == 1:
        weighting = finding.tasks[0].name
    notes: list[Note] = [
        {
            "": f"{question.treatment} scores {number(finding.score, binary=True)}, {weighting}.",
            "change": f"change: {question.treatment} less the control, in points, on the same "
            "items.",
            "verdict": "beaten: the treatment is higher after Holm. control better: the reverse. "
            "as well: the interval ends below the margin.",
            "n needed": "n needed: items that show the margin in 80% of cases.",
            "control": "Random controls are averaged per item over their draws (in brackets). The "
            "best single expert is chosen per task on the other half of the items.",
        },
        *(f"{one.name}: no test, as {one.note}." for one in contrasts if one.note),
        *(f"{note}." for note in finding.notes),
    ]
    rows = [_cells(one) for one in contrasts]
    return Table(f"{question.treatment} and its controls", columns, rows, marks, notes, spare=5)


def _cells(one: Contrast) -> list[str]:
    return [
        f"{one.name} ({one.draws})" if one.draws > 1 else one.name,
        number(one.difference, binary=True, signed=True),
        interval(one.low, one.high, binary=True, signed=True),
        p_value(one.p_holm),
        _STATES.get(one.state, one.state),
        number(one.score, binary=True),
        p_value(one.p),
        f"{one.gains}/{one.losses}",
        str(one.n),
        "–" if one.needed is None else f"{one.needed:,}",
    ]
