"""Print the share of experts that each rule keeps, and the loss on their own held-out rows.

``python docs/study/starts.py LIBRARY...``, each trained by the recipe of ``adapters/smollm2-demo``
with ``start: own`` or ``start: shared``. Every expert runs alone, with the English general adapter
subtracted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

from gks_eval import Setting, attach, load_library
from gks_eval.library.starts import StartsTally
from gks_eval.method.registry import RULES
from gks_eval.model.load_base import load_tokenizer
from gks_eval.training.base import base_of, load_frozen_base
from gks_eval.training.held_out import mean_loss
from gks_eval.training.job_data import load_job_data
from gks_eval.training.jobs import make_plan
from gks_eval.util.paths import adapters_dir

EXPERTS: Final = ("sentiment", "rewriting", "headline")
LANGUAGE: Final = "en"


def main(references: list[str]) -> None:
    """Print the means over the experts, one line per library and rule."""
    plan = make_plan(adapters_dir() / "smollm2-demo/recipe.yaml")
    tokenizer = load_tokenizer(base_of(plan.recipe, plan.root))
    model = load_frozen_base(plan.recipe, plan.root)
    rows = {
        job.name: load_job_data(job, plan.root, tokenizer).held_out
        for job in plan.jobs
        if job.name in EXPERTS
    }
    losses = [mean_loss(model, rows[name]) for name in EXPERTS]
    rules = ("factors", "delta", "orthogonal")
    print(f"base: loss {_mean(losses):.2f}, {sum(map(len, rows.values()))} rows", flush=True)
    for reference in references:
        library = load_library(reference)
        for rule in (None, *rules):
            tally = StartsTally(EXPERTS, rule or "none")
            for module in library.modules:
                tasks = [library.experts[name].pairs[module] for name in EXPERTS]
                general = [library.general[LANGUAGE].pairs[module]]
                residuals = [RULES.get(rule)(task, general) if rule else task for task in tasks]
                tally(tasks, general, residuals)
            losses = []
            for name in EXPERTS:
                setting = Setting(
                    router=name, subtract=(LANGUAGE,) if rule else (), rule=rule or "factors"
                )
                with attach(model, library, setting):
                    losses.append(mean_loss(model, rows[name]))
            starts = tally.result()
            print(
                f"{library.name} {rule}: cosine {_mean(starts.cosine.values()):.2f}, left "
                f"{_mean(starts.left.values()):.0%}, loss {_mean(losses):.2f} "
                f"({', '.join(f'{loss:.2f}' for loss in losses)})",
                flush=True,
            )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


if __name__ == "__main__":
    main(sys.argv[1:])
