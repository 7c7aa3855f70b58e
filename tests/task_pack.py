"""What the tests of the task pack share: its names, a fake model, how tasks are set up.

``GKS_DATA_ROOT=<folder>`` names a folder that holds real samples as ``<org>/<name>/``.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from gks_eval.scoring.loglikelihood import TokenLogLikelihood
from gks_eval.tasklib.bbh import CHOICE_SUBTASKS, OPEN_SUBTASKS

HUB = Path(__file__).parent / "data" / "hub"
REAL = os.environ.get("GKS_DATA_ROOT", "")

ENGLISH = "piqa boolq swag hellaswag arc_easy arc_challenge winogrande openbookqa bbh".split()
MULTILINGUAL = ("arc_challenge", "hellaswag", "mmlu", "xnli")
SETS = [*ENGLISH, *(f"{name}_{lang}" for name in MULTILINGUAL for lang in ("de", "fr")), "xnli_en"]
DEMO = [f"demo_{name}_{lang}" for name in ("science", "goals") for lang in ("en", "de", "fr")]
SUBTASKS = [f"bbh_{name}" for name in (*CHOICE_SUBTASKS, *OPEN_SUBTASKS)]
PEFT = "arc_challenge arc_easy winogrande boolq openbookqa hellaswag".split()
PUBLISHED = [*(f"gks_paper_{name}" for name in SETS), *(f"gks_peft_{name}" for name in PEFT)]
TASKS = [f"gks_{name}" for name in (*SETS, *SUBTASKS, *DEMO)] + PUBLISHED
GROUPS = ["gks_english", "gks_german", "gks_french", "gks_all", "gks_demo"]
GROUPS += ["gks_paper_english", "gks_paper_german", "gks_paper_french", "gks_peft"]
METRICS = ("acc", "acc_norm", "acc_bytes", "acc_token_norm")

BUILT_IN = {name: name for name in ENGLISH if name != "bbh"}
BUILT_IN |= {f"xnli_{lang}": f"xnli_{lang}" for lang in ("en", "de", "fr")}
for _lang in ("de", "fr"):
    BUILT_IN[f"arc_challenge_{_lang}"] = f"arc_{_lang}"
    BUILT_IN[f"hellaswag_{_lang}"] = f"hellaswag_{_lang}"
    BUILT_IN[f"mmlu_{_lang}"] = f"m_mmlu_{_lang}"
NO_EXAMPLES = ("gks_bbh", "gks_hellaswag_de", "gks_hellaswag_fr", "gks_demo_goals_fr")


class FakeLM(LM):
    """Log-likelihoods that depend on nothing but the request's texts."""

    def __init__(self, with_tokens: bool) -> None:
        super().__init__()
        self.with_tokens = with_tokens

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return [self._score(*request.args) for request in requests]

    def _score(self, context: str, continuation: str, *_: Any) -> tuple[float, bool]:
        digest = hashlib.sha256(f"{context}|{continuation}".encode()).digest()
        score = -1.0 - int.from_bytes(digest[:4], "big") / 2**27
        if not self.with_tokens:
            return score, False
        return TokenLogLikelihood(score, False, 1 + digest[4] % 9)

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        return [" 3 " for _ in requests]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        raise NotImplementedError


def on_this_hub(hub: Path, names: list[str]) -> list[str]:
    """Leave out what a folder of samples does not have; the invented rows have everything."""
    if hub == HUB or (hub / "alexandrainst" / "m_hellaswag").is_dir():
        return names
    return [name for name in names if not re.search("hellaswag_(de|fr)", name)]


def load(pack: TaskManager, names: list[str], num_fewshot: int = 0) -> dict[str, Any]:
    """Load tasks and set them up as lm_eval.simple_evaluate does."""
    loaded = pack.load(list(names))
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(1234)
    return loaded


def evaluate(pack: TaskManager, names: list[str], with_tokens: bool) -> dict[str, Any]:
    results = lm_eval.evaluate(
        lm=FakeLM(with_tokens), task_dict=load(pack, names), bootstrap_iters=0
    )
    assert results is not None
    return results
