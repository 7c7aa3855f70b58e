r"""Two protocols that score the text of prompt and choice: the authors' and PEFT's example.

The text of a choice is ``<|user|>\n{content}<|end|>\n<|assistant|>{choice}<|end|>\n``, written
out in these words whatever the model. It is tokenised as one text, with a BOS only if the
tokenizer adds one, and cut on the right at 512 tokens. The loss of a text is the sum over the
scored tokens, divided by the number of these whose loss is not exactly 0 in float32; if all are 0,
so is the loss of the text. The choice of lowest loss is the prediction, the first one on a tie.

* `WholeTextTask`, the authors' protocol: all tokens but the first are scored, the prompt's too.
* `ChoiceTextTask`, PEFT's protocol: the tokens from the prompt's last one on are scored. With
  Phi-3's tokenizer that one is ``<|assistant|>``.

A prompt of 512 tokens or more makes all choices equal, and the first one is predicted.

Sources: the published evaluation code of GenKnowSub, and PEFT's
``examples/arrow_multitask/arrow_phi3_mini.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

from lm_eval.api.instance import Instance

from gks_eval.errors import UsageError
from gks_eval.scoring.whole_text_protocol import CHOICE_TEXT, WHOLE_TEXT
from gks_eval.tasklib.faults import gold_index
from gks_eval.tasklib.metrics import best_choice, token_counts
from gks_eval.tasklib.task import GksTask

__all__ = ["MAX_TOKENS", "ChoiceTextTask", "WholeTextTask", "refuse_changes", "whole_text"]

MAX_TOKENS = 512


def whole_text(content: str, choice: str) -> tuple[str, str]:
    """Return the prompt and the continuation whose concatenation is tokenised."""
    return f"<|user|>\n{content}<|end|>\n<|assistant|>", f"{choice}<|end|>\n"


def refuse_changes(task: str, asked: Mapping[str, Any]) -> None:
    """Refuse whatever would change the text that a task of these protocols scores.

    Args:
        task: Its name.
        asked: Arguments of `lm_eval.simple_evaluate`, by name.

    Raises:
        UsageError: Few-shot examples, a system instruction or a chat template are asked for.
    """
    for name in ("num_fewshot", "system_instruction", "apply_chat_template"):
        if not asked.get(name):
            continue
        argument = f"--{name} {asked[name]}" if name == "num_fewshot" else f"--{name}"
        raise UsageError(
            f"{task} follows a published protocol with its own chat text and no examples, so "
            f"{argument} cannot be used with it; leave it out, or run "
            f"{re.sub('^gks_(paper|peft)_', 'gks_', task)}."
        )


class WholeTextTask(GksTask):
    """A task of the family ``gks_paper_*``.

    ``doc_to_text`` gives the content, ``doc_to_choice`` the choices. Requests carry a third
    argument with the protocol, which only the model class ``gks_arrow`` knows.
    """

    protocol: ClassVar[str] = WHOLE_TEXT

    def check_evaluation(self, asked: Mapping[str, Any]) -> None:
        """Refuse what would change the text; see `GksTask.check_evaluation`.

        Raises:
            UsageError: For few-shot examples, a system instruction or a chat template.
        """
        refuse_changes(self.config.task, asked)

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int = 0, **kwargs: Any) -> str:
        """Return the content; nothing may be put around it."""
        self.check_evaluation({**kwargs, "num_fewshot": num_fewshot})
        content: str = self.doc_to_text(doc)
        return content

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests, or read those that ``--cache_requests`` kept.

        Raises:
            UsageError: No ``gks_arrow`` model was made, which alone can score them.
        """
        self._check_model()
        super().build_all_requests(**kwargs)

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Return one request a choice: (prompt, continuation, protocol).

        Raises:
            UsageError: When a chat template is applied, or no ``gks_arrow`` model was made.
        """
        if kwargs.pop("apply_chat_template", False):
            refuse_changes(self.config.task, {"apply_chat_template": True})
        kwargs.pop("chat_template", None)
        self._check_model()
        protocol = {"protocol": self.protocol, "max_tokens": MAX_TOKENS}
        return [
            Instance(
                request_type="loglikelihood",
                doc=doc,
                arguments=(*whole_text(ctx, choice), dict(protocol)),
                idx=i,
                **kwargs,
            )
            for i, choice in enumerate(self.doc_to_choice(doc))
        ]

    def _check_model(self) -> None:
        if not getattr(sys.modules.get("gks_eval.model.lm"), "CREATED", 0):
            raise self._other_model()

    def _other_model(self) -> UsageError:
        return UsageError(
            f"{self.config.task} scores whole texts by their mean token loss, which this model "
            "class cannot do; run it with --model gks_arrow (router=none for a base model alone)."
        )

    def logged(self, response: Any) -> Any:
        """Return (log-likelihood, is greedy, scored tokens, non-zero tokens)."""
        nonzero = getattr(response, "nonzero", None)
        return super().logged(response) if nonzero is None else (*super().logged(response), nonzero)

    def process_results(self, doc: Mapping[str, Any], results: Any) -> dict[str, Any]:
        """Score one item by the lowest mean token loss.

        Raises:
            UsageError: When the results have no token counts.
        """
        if (counts := token_counts(results, "nonzero")) is None:
            raise self._other_model()
        gold = gold_index(self.doc_to_choice(doc), self.doc_to_target(doc))
        divisors = [max(1, count) for count in counts]
        predicted = best_choice([float(result[0]) for result in results], divisors)
        return {"acc": float(predicted == gold)} if "acc" in self._metric_fn_list else {}


class ChoiceTextTask(WholeTextTask):
    """A task of the family ``gks_peft_*``."""

    protocol: ClassVar[str] = CHOICE_TEXT
