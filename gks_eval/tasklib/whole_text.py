r"""The authors' evaluation protocol: the choice whose whole text has the lowest mean token loss.

The text of a choice is ``<|user|>\n{content}<|end|>\n<|assistant|>{choice}<|end|>\n``, written
out in these words whatever the model. It is tokenised as one text, with a BOS only if the
tokenizer adds one, and cut on the right at 512 tokens; all tokens but the first are scored, the
prompt's too. The choice of lowest mean loss is the prediction, the first one on a tie. So a prompt
of 512 tokens or more makes all choices equal, and the first one is predicted.

Source: the published evaluation code of GenKnowSub, which differs from lm-eval's convention of
scoring the continuation alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lm_eval.api.instance import Instance

from gks_eval.errors import UsageError
from gks_eval.tasklib.faults import gold_index
from gks_eval.tasklib.metrics import best_choice, token_counts
from gks_eval.tasklib.task import GksTask
from gks_eval.whole_text import PROTOCOL

__all__ = ["MAX_TOKENS", "WholeTextTask", "whole_text"]

MAX_TOKENS = 512


def whole_text(content: str, choice: str) -> tuple[str, str]:
    """Return the prompt and the continuation whose concatenation is scored."""
    return f"<|user|>\n{content}<|end|>\n<|assistant|>", f"{choice}<|end|>\n"


class WholeTextTask(GksTask):
    """A task of the family ``gks_paper_*``.

    ``doc_to_text`` gives the content, ``doc_to_choice`` the choices. Requests carry a third
    argument that asks for whole-text scoring, which only the model class ``gks_arrow`` knows.
    """

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int = 0, **kwargs: Any) -> str:
        """Return the content; nothing may be put around it.

        Raises:
            UsageError: For few-shot examples, a system instruction or a chat template.
        """
        if num_fewshot:
            self._refuse(f"--num_fewshot {num_fewshot}")
        if kwargs.get("system_instruction"):
            self._refuse("--system_instruction")
        if kwargs.get("apply_chat_template"):
            self._refuse("--apply_chat_template")
        content: str = self.doc_to_text(doc)
        return content

    def _refuse(self, argument: str) -> None:
        raise UsageError(
            f"{self.config.task} is the authors' protocol, which has its own chat text and no "
            f"examples, so {argument} cannot be used with it; leave it out, or run "
            f"{self.config.task.replace('gks_paper_', 'gks_')}."
        )

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Return one request a choice: (prompt, continuation, protocol).

        Raises:
            UsageError: When a chat template is applied, or no ``gks_arrow`` model was made.
        """
        if kwargs.pop("apply_chat_template", False):
            self._refuse("--apply_chat_template")
        kwargs.pop("chat_template", None)
        if not getattr(sys.modules.get("gks_eval.lm"), "CREATED", 0):
            raise self._other_model()
        protocol = {"protocol": PROTOCOL, "max_tokens": MAX_TOKENS}
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

    def _other_model(self) -> UsageError:
        return UsageError(
            f"{self.config.task} scores whole texts by their mean token loss, which this model "
            "class cannot do; run it with --model gks_arrow (router=none for a base model alone)."
        )

    def process_results(self, doc: Mapping[str, Any], results: Any) -> dict[str, Any]:
        """Score one item by the lowest mean token loss.

        Raises:
            UsageError: When the results have no token counts.
        """
        if (tokens := token_counts(results)) is None:
            raise self._other_model()
        gold = gold_index(self.doc_to_choice(doc), self.doc_to_target(doc))
        predicted = best_choice([float(result[0]) for result in results], tokens)
        return {"acc": float(predicted == gold)} if "acc" in self._metric_fn_list else {}
