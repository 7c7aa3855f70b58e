"""The class of this pack's tasks: an lm-eval task that reports faulty items and counts tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lm_eval.api.registry import register_metric
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from gks_eval.errors import UsageError
from gks_eval.scoring.request_cache import CACHE_AND_ITEMS
from gks_eval.tasklib.data import draw_rows, load_data, load_subsets, resolve_files
from gks_eval.tasklib.excepthook import say_errors_under_lm_eval
from gks_eval.tasklib.faults import (
    Fault,
    FaultKind,
    describe_faults,
    gold_index,
    item_faults,
)
from gks_eval.tasklib.metrics import choice_metrics
from gks_eval.tasklib.task_content import task_content
from gks_eval.util.digest import digest

__all__ = ["GksTask", "NoExamples", "no_examples", "without_warnings"]

logger = logging.getLogger(__name__)
say_errors_under_lm_eval()

Doc = Mapping[str, Any]


@register_metric(  # type: ignore[untyped-decorator]
    metric="acc_token_norm",
    higher_is_better=True,
    output_type="multiple_choice",
    aggregation="mean",
)
def _acc_token_norm(items: Any) -> Any:
    """Name the metric to lm-eval; `GksTask.process_results` computes it."""
    return items


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence what tasks say of faulty items, where a report or the run itself says it."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class NoExamples(ContextSampler):  # type: ignore[misc]
    """The few-shot sampler of sets whose only split is the scored one: it refuses."""

    def sample(self, n: int, *_: Any, **__: Any) -> Any:
        """Return no example for n = 0.

        Raises:
            UsageError: For n > 0.
        """
        if n > 0:
            raise no_examples(n, "this task")
        return []


def no_examples(shots: int, task: str) -> UsageError:
    """Return the error of a task that is asked for examples and has none."""
    return UsageError(
        f"--num_fewshot {shots} asks for examples, but {task} has no split besides the scored one "
        "to take them from; leave the task out, or run it with --num_fewshot 0."
    )


class GksTask(ConfigurableTask):  # type: ignore[misc]
    """An lm-eval task, configured by YAML, with four things more.

    * ``dataset_kwargs.subsets`` merges subsets into one task; ``dataset_kwargs.data_files`` are
      relative to the YAML file; ``dataset_kwargs.draw``, with ``rows`` and ``seed``, scores a
      random draw from the scored split, see `gks_eval.tasklib.data.draw_rows`.
    * A scored item whose gold answer is outside its choices is dropped; items with an empty, a
      duplicated or a single option stay. Either way one warning counts and names them. Examples
      for few-shot prompts are dropped in the same way.
    * Multiple choice is scored by `gks_eval.tasklib.metrics.choice_metrics`.
    * In logged samples, ``resps`` holds (log-likelihood, is greedy, scored tokens) where the model
      tells the tokens; ``filtered_resps`` stays lm-eval's pair.

    One YAML key is its own: ``lint_options``, a function that returns an item's bare options where
    ``doc_to_choice`` wraps or abbreviates them, so that an empty or duplicated one is still found.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Load the data and build the task.

        Args:
            config: The YAML file's content, functions resolved.

        Raises:
            HubError: When the data cannot be loaded.
        """
        self._kept_docs: Any = None
        self._pool_is_read = False
        self._building = True
        self._lint_options = config.get("lint_options")
        own = ("class", "lint_options")
        super().__init__(config={k: v for k, v in config.items() if k not in own})
        self._building = False

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Load the data into ``self.dataset``."""
        kwargs = dict(dataset_kwargs or {})
        draw = kwargs.pop("draw", None)
        if subsets := kwargs.pop("subsets", None):
            self.dataset = load_subsets(self.DATASET_PATH, subsets)
        else:
            if "data_files" in kwargs:
                source = (self.config.metadata or {}).get("config_source", "")
                kwargs["data_files"] = resolve_files(kwargs["data_files"], source)
            self.dataset = load_data(self.DATASET_PATH, self.DATASET_NAME, **kwargs)
        if draw is not None:
            split = str(self.config.test_split or self.config.validation_split)
            self.dataset = draw_rows(self.dataset, split, draw, str(self.DATASET_PATH))

    # ------------------------------------------------------------------ faulty items

    def faults_of(self, doc: Doc) -> tuple[Fault, ...]:
        """Return the faults of one item; for free-text tasks, an empty answer is one."""
        if self.OUTPUT_TYPE != "multiple_choice":
            target = self.doc_to_target(doc)
            return () if str(target).strip() else item_faults([], target)
        choices = super().doc_to_choice(doc)
        options = self._lint_options(doc) if self._lint_options else None
        return item_faults(choices, self._gold(doc), options)

    def scored_split(self) -> Any:
        """Return the scored split as loaded: with the items that scoring drops."""
        return super().eval_docs

    @property
    def eval_docs(self) -> Any:
        """The items that are scored."""
        if self._kept_docs is None:
            self._kept_docs = self._without_faulty(super().eval_docs, "scored")
        return self._kept_docs

    def fewshot_docs(self) -> Any:
        """Return the pool of few-shot examples; nothing while the task is being built.

        lm-eval reads the whole pool when it builds a task, which takes 10 s and more for XNLI's
        392,702 rows and serves nothing in a zero-shot run. `fewshot_context` asks for it again.
        """
        return [] if self._building else super().fewshot_docs()

    def check_evaluation(self, asked: Mapping[str, Any]) -> None:
        """Refuse what the task cannot do, before a base is loaded for it.

        Args:
            asked: Arguments of `lm_eval.simple_evaluate`, by name.

        Raises:
            UsageError: Examples are asked for, and the set has no split to take them from.
        """
        shots = asked.get("num_fewshot")
        if shots and isinstance(self.sampler, NoExamples):
            raise no_examples(shots, self.config.task)

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        samples: list[int] | None = None,
        cache_requests: bool = False,
        tokenizer_name: str = "",
        **kwargs: Any,
    ) -> None:
        """Build the requests, or read those that ``--cache_requests`` kept.

        lm-eval keeps them under the task's name. Here they are kept under its content as well, so
        that an edited task or data set gets requests of its own.

        Raises:
            UsageError: The cache is to be used for a part of the items: lm-eval would take the
                requests of others.
        """
        if cache_requests:
            if limit is not None or samples is not None:
                raise UsageError(CACHE_AND_ITEMS)
            content = task_content(self, num_fewshot=self.config.num_fewshot)
            tokenizer_name += f"-content{digest(content)}"
        super().build_all_requests(
            limit=limit,
            samples=samples,
            cache_requests=cache_requests,
            tokenizer_name=tokenizer_name,
            **kwargs,
        )

    def fewshot_context(self, doc: Doc, num_fewshot: int = 0, **kwargs: Any) -> Any:
        """Return the prompt of an item, with examples whose gold answer is among the choices."""
        self.check_evaluation({"num_fewshot": num_fewshot})
        if num_fewshot > 0 and not self._pool_is_read:
            pool = self.fewshot_docs()
            self.sampler.replace_df(list(self._without_faulty(pool, "few-shot")) if pool else [])
            self._pool_is_read = True
        return super().fewshot_context(doc, num_fewshot=num_fewshot, **kwargs)

    def _without_faulty(self, docs: Any, role: str) -> Any:
        self.features = list(docs.features)  # lm-eval sets it later, but templates need it here
        faults = {i: found for i, doc in enumerate(docs) if (found := self.faults_of(doc))}
        outside = {
            i for i, found in faults.items() if any(f.kind == FaultKind.GOLD_OUTSIDE for f in found)
        }
        if described := describe_faults(faults, FaultKind.GOLD_OUTSIDE):
            logger.warning("%s, %s split: DROPPED %s", self.config.task, role, described)
        for kind in FaultKind:
            if kind == FaultKind.GOLD_OUTSIDE:
                continue
            if role == "scored" and (described := describe_faults(faults, kind)):
                logger.warning("%s, %s split: kept %s", self.config.task, role, described)
        if not outside:
            return docs
        kept = [i for i in range(len(docs)) if i not in outside]
        return docs.select(kept)

    def doc_to_choice(self, doc: Doc, doc_to_choice: Any = None) -> list[str]:
        """Return the choices of an item."""
        choices: list[str] = super().doc_to_choice(doc, doc_to_choice)
        # lm-eval's self-check of the first item looks at choice[0], which an empty one has not.
        return [choice or " " for choice in choices] if self._building else choices

    # ------------------------------------------------------------------ scores

    def _gold(self, doc: Doc) -> object:
        # An int in place of the text is lm-eval's sign that the choices stand in the context; only
        # functions return one here, and rendering the other texts to find out would take long.
        text = self.doc_to_text(doc) if callable(self.config.doc_to_text) else None
        return text if isinstance(text, int) else self.doc_to_target(doc)

    def process_results(self, doc: Doc, results: Any) -> dict[str, Any]:
        """Score one item; see `choice_metrics`."""
        if self.OUTPUT_TYPE != "multiple_choice":
            scored: dict[str, Any] = super().process_results(doc, results)
            return scored
        choices = self.doc_to_choice(doc)
        gold = gold_index(choices, self._gold(doc))
        assert gold is not None, "items without a gold answer are dropped when the data load"
        texts = [self.doc_to_target(doc)] * len(choices) if self.multiple_input else choices
        wanted = self._metric_fn_list
        return {k: v for k, v in choice_metrics(texts, gold, results).items() if k in wanted}

    def apply_filters(self) -> Any:
        """Filter the responses, then put the token counts into those that are logged."""
        filtered = super().apply_filters()
        for instance in self._instances or []:
            instance.resps = [self.logged(response) for response in instance.resps]
        return filtered

    def logged(self, response: Any) -> Any:
        """Return a response as samples hold it: with its number of scored tokens, if known."""
        tokens = getattr(response, "tokens", None)
        return response if tokens is None else (*response, tokens)
