"""A model class of lm-eval with the packed scorer: HFLM, each distinct token prefix once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from lm_eval.api.model import CacheHook

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.model.progress_lm import ProgressLM
from gks_eval.model.tokenizing_lm import TokenPair, TokenRequest
from gks_eval.scoring import (
    PackedCounts,
    packed_log_likelihoods,
    requests_worth,
    score_together,
    supports_packed,
)
from gks_eval.scoring.loglikelihood import NOTHING_SCORED, TokenLogLikelihood
from gks_eval.scoring.plans import PlanMemo
from gks_eval.scoring.request_cache import CountingHook
from gks_eval.scoring.whole_text_protocol import is_whole_text
from gks_eval.util.process_group import ProcessGroup

__all__ = ["PackedLM"]

logger = logging.getLogger(__name__)

CPU_BATCH = 8
PLAIN_BATCH_TOKENS = 2048
"""Above these sizes, larger batches are not faster on a CPU."""


class PackedLM(ProgressLM):
    """HFLM whose log-likelihoods come from `gks_eval.scoring`, or from HFLM's own scorer.

    It supports the whole-text protocol, divides the work among processes by tokens, and returns
    each log-likelihood with its token count. A subclass calls `choose_scoring` and
    `connect_processes` before HFLM's ``__init__`` and `divide_requests` after it.

    Attributes:
        scoring: ``packed`` (models that it does not support use ``plain``) or ``plain``, HFLM's
            own scorer.
        counts: Tokens that the packed scorer of this process has computed so far.
    """

    SCORINGS: ClassVar[tuple[str, ...]] = ("packed", "plain")
    scoring: str
    cache_hook: Any
    softmax_dtype: torch.dtype | None
    batch_size_per_gpu: Any
    batch_schedule: float
    _batch_size_chosen: bool = False

    @cached_property
    def _plans(self) -> PlanMemo:
        return PlanMemo()

    def choose_scoring(self, scoring: str | None) -> None:
        """Use another scorer from now on; None selects the default.

        Raises:
            UsageError: The scorer is unknown.
        """
        self.scoring = self.checked_scoring(scoring)
        self._unpackable: str | None = None
        self._known: dict[str, list[int]] = {}
        self.counts = PackedCounts()
        self.cache_hook = CacheHook(None)

    def choose_batch_size(self, batch_size: int | str) -> None:
        """Set ``batch_size`` from now on.

        Raises:
            UsageError: It is neither a number above 0 nor ``auto``.
        """
        self.batch_size_per_gpu, schedule = self.checked_batch_size(batch_size)
        if schedule is not None:
            self.batch_schedule = schedule
        self._batch_size_chosen = True

    @classmethod
    def checked_scoring(cls, scoring: str | None) -> str:
        """Return the name of a scorer; None gives the default.

        Raises:
            UsageError: The scorer is unknown.
        """
        chosen = str(scoring or cls.SCORINGS[0])
        if chosen not in cls.SCORINGS:
            raise UsageError(f"scoring={scoring} is unknown; {did_you_mean(chosen, cls.SCORINGS)}.")
        return chosen

    @staticmethod
    def checked_batch_size(batch_size: int | str) -> tuple[int | str, float | None]:
        """Return a batch size, and for ``auto`` its schedule.

        Raises:
            UsageError: It is neither a number above 0 nor ``auto``.
        """
        word, _, schedule = str(batch_size).partition(":")
        if word == "auto" and _is_number(schedule or "1"):
            return word, float(schedule or 1)
        if _is_number(word) and int(word) > 0 and not schedule:
            return int(word), None
        raise UsageError(f"batch_size={batch_size} is neither a number above 0 nor auto.")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue texts, as HFLM does; on a CPU in batches, unless ``batch_size`` is a number.

        Raises:
            DataError: A token has no embedding.
        """
        own = self.batch_size_per_gpu
        if self.device.type == "cpu" and (own == "auto" or not self._batch_size_chosen):
            self.batch_size_per_gpu = CPU_BATCH
        try:
            return super().generate_until(requests, disable_tqdm)
        finally:
            self.batch_size_per_gpu = own

    def connect_processes(self) -> None:
        """Connect the processes that were started together; call before HFLM's ``__init__``."""
        group = ProcessGroup()
        if group.size > 1:
            group.join()  # HFLM does not connect processes on a CPU
            self.group = group

    def divide_requests(self) -> None:
        """Make lm-eval divide the items among the processes; call when the base is loaded."""
        # HFLM divides only among the GPUs of one host, and numbers the processes of every host
        # from 0. With the right rank and world size, lm-eval itself divides and gathers.
        if self.group is not None:
            self._rank, self._world_size = self.group.rank, self.group.size
            self._device = self.accelerator.device

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score requests; those of the whole-text protocol are tokenised as one text.

        Raises:
            DataError: A continuation is longer than `max_length`, or a token has no embedding;
                raised before any forward, in every process.
        """
        if self.enable_thinking:
            hidden = self.hides_bars(disable_tqdm)
            refused: list[tuple[float, bool]] = super().loglikelihood(requests, hidden)
            return refused
        packs = self.scoring == "packed" and self._packs()
        pairs = self.token_pairs(requests)
        self.check_pairs(requests, pairs, pools=packs and self._pools)
        asked = [(r.args, *pair) for r, pair in zip(requests, pairs, strict=True)]
        if packs:
            # Both protocols at once: they share contexts, and all processes make the same calls.
            return self._packed(asked, disable_tqdm)
        results: dict[int, tuple[float, bool]] = {
            n: NOTHING_SCORED for n, (_, text) in enumerate(pairs) if not text
        }
        whole = [is_whole_text(arguments) for arguments, _, _ in asked]
        for kind, score in ((False, self._loglikelihood_tokens), (True, self._score_texts)):
            chosen = [n for n in range(len(asked)) if whole[n] is kind and n not in results]
            if chosen:
                answers = score([asked[n] for n in chosen], disable_tqdm=disable_tqdm)
                results |= dict(zip(chosen, answers, strict=True))
        return [results[n] for n in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, as HFLM does.

        Raises:
            DataError: A token has no embedding.
        """
        self._check_texts(requests)
        scores: list[float]
        if self.scoring == "packed" and self._packs():
            tokens = sum(len(self.tok_encode(request.args[0])) for request in requests)
            with self._bar("loglikelihood_rolling", len(requests), tokens, disable_tqdm):
                scores = super().loglikelihood_rolling(requests, disable_tqdm=True)
        else:  # HFLM's own scorer shows its own progress
            scores = super().loglikelihood_rolling(requests, self.hides_bars(disable_tqdm))
        return scores

    def _score_texts(
        self, texts: list[TokenRequest], *, disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        # lm-eval sums in the model's dtype. In bfloat16 the sum of a whole text is rounded to steps
        # of 2, and choices that differ by less would tie.
        own = self.softmax_dtype
        self.softmax_dtype = own or torch.float32
        try:
            return self._loglikelihood_tokens(texts, disable_tqdm=disable_tqdm)
        finally:
            self.softmax_dtype = own

    def _loglikelihood_tokens(
        self,
        requests: list[TokenRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if self.scoring != "packed" or not self._packs():
            return self._plain(requests, disable_tqdm, override_bs)
        if override_bs is None:
            return self._packed(requests, disable_tqdm)
        # Windows of rolling texts: HFLM itself batches, divides and caches them.
        pairs = [(context, text) for _, context, text in requests]
        return list(self._score_pairs(pairs, sum(len(text) for _, text in pairs), None))

    def _detect_batch_size(
        self, requests: Sequence[TokenRequest] | None = None, pos: int = 0
    ) -> int:
        if self.device.type != "cpu":
            found: Any = super()._detect_batch_size(requests, pos)
            return int(found)
        # HFLM starts with 64 texts of maximum length, which take a CPU hours and gigabytes.
        if requests:
            _, context, continuation = requests[pos]
            longest: int = min(len(context) + len(continuation) - 1, self.max_length)
            return max(1, PLAIN_BATCH_TOKENS // longest)
        return CPU_BATCH if self.scoring == "packed" else 1

    def _packs(self) -> bool:
        if self._unpackable is None:
            self._unpackable = (
                "mixed_precision_dtype is set"
                if self.mixed_precision_dtype is not None
                else supports_packed(self.model, self.device, self.max_length)
            )
            if self._unpackable is not None:
                logger.warning(
                    "Using scoring=plain instead of packed, because %s.", self._unpackable
                )
        return self._unpackable is None

    @property
    def _pools(self) -> bool:
        # With a request cache, a process without open requests would not join the collective calls.
        return self.group is not None and self.cache_hook.dbdict is None

    def _packed(self, requests: list[TokenRequest], disable_tqdm: bool) -> list[tuple[float, bool]]:
        keys = [key for key, _, _ in requests]
        pairs = [(context, continuation) for _, context, continuation in requests]

        def keep(index: int, result: TokenLogLikelihood) -> None:
            if keys[index] is not None:
                self.cache_hook.add_partial("loglikelihood", keys[index], result)

        if self.group is None or not self._pools:
            with self._bar("loglikelihood", len(pairs), len(pairs), disable_tqdm):
                return list(self._score_pairs(pairs, len(pairs), keep))

        def score(share: list[TokenPair]) -> list[TokenLogLikelihood]:
            with self._bar("loglikelihood", len(share), len(share), disable_tqdm):
                return self._score_pairs(share, len(share), None)

        return list(score_together(pairs, score, max_length=self.max_length, group=self.group))

    def _score_pairs(
        self,
        pairs: Sequence[TokenPair],
        work: int,
        keep: Callable[[int, TokenLogLikelihood], None] | None,
    ) -> list[TokenLogLikelihood]:
        size, progress = self.batch_size_per_gpu, self._progress

        def advance(number: int) -> None:
            if progress is not None:
                progress.finish(work * number / len(pairs))

        return packed_log_likelihoods(
            self.model,
            pairs,
            device=self.device,
            max_length=self.max_length,
            batch_tokens=None if size == "auto" else requests_worth(pairs, size, self.max_length),
            progress=None if progress is None else advance,
            emit=keep,
            counts=self.counts,
            memo=self._plans if self.keeps_requests else None,
        )

    def _plain(
        self, requests: list[TokenRequest], disable_tqdm: bool, override_bs: int | None
    ) -> list[tuple[float, bool]]:
        hook = self.cache_hook
        counting = CountingHook(hook, [(key, tokens) for key, _, tokens in requests])
        self.cache_hook = counting
        hidden = self.hides_bars(disable_tqdm)
        try:
            pairs = super()._loglikelihood_tokens(requests, hidden, override_bs)
        finally:
            self.cache_hook = hook
        return [
            counting.counted(key, tokens, pair)
            for (key, _, tokens), pair in zip(requests, pairs, strict=True)
        ]

    def _select_cont_toks(self, logits: torch.Tensor, **lengths: Any) -> torch.Tensor:
        log_probs: torch.Tensor = super()._select_cont_toks(logits, **lengths)
        if isinstance(self.cache_hook, CountingHook):
            self.cache_hook.log_probs = log_probs
        return log_probs


def _is_number(word: str) -> bool:
    return word.isdecimal() and len(word) < 10
