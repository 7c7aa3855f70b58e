"""Progress bars that advance within a batch, for generation and rolling texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformers import StoppingCriteriaList

from gks_eval.model.row_stop import RowStop
from gks_eval.model.tokenizing_lm import TokenizingLM
from gks_eval.scoring.progress import Progress

__all__ = ["ProgressLM"]


class ProgressLM(TokenizingLM):
    """`TokenizingLM` whose progress bars count requests as their work advances."""

    _progress: Progress | None = None

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue texts, as HFLM does.

        Raises:
            DataError: A token has no embedding.
        """
        self._check_texts(requests)
        with self._bar("generate_until", len(requests), len(requests), disable_tqdm):
            texts: list[str] = super().generate_until(requests, disable_tqdm=True)
        return texts

    def hides_bars(self, disable_tqdm: bool) -> bool:
        """Return whether no bar is drawn: asked for by the caller, or by tqdm's own variable."""
        # The variable only changes tqdm's default, and lm-eval's calls give `disable`.
        return disable_tqdm or bool(os.environ.get("TQDM_DISABLE"))

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any
    ) -> torch.Tensor:
        generate = partial(self._generate, context, max_length, stop, **options)
        tokens: torch.Tensor
        if (progress := self._progress) is None:
            tokens = generate()
            return tokens
        rows, steps = context.shape[0], max_length - context.shape[1]
        with progress.during([self.model], steps, rows):
            tokens = generate()
        return tokens

    def _generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any
    ) -> torch.Tensor:
        # HFLM's `_model_generate` with stop strings per row.
        if not options.get("temperature") and not options.get("do_sample"):
            options = {**options, "do_sample": False}
            options.pop("temperature", None)
        else:
            options.setdefault("temperature", 0.0)
        with torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        ):
            tokens: torch.Tensor = self.model.generate(
                input_ids=context,
                max_length=max_length,
                stopping_criteria=StoppingCriteriaList([RowStop(self.tokenizer, stop, context)]),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                **options,
            )
        return tokens

    @contextmanager
    def _bar(self, kind: str, requests: int, work: float, disable_tqdm: bool) -> Iterator[None]:
        # HFLM's own bar advances only after whole batches.
        with tqdm(
            total=requests,
            disable=self.hides_bars(disable_tqdm) or self.rank != 0,
            desc=f"Running {kind} requests",
            miniters=1,
        ) as bar:
            progress = self._progress = (
                None if bar.disable else Progress(bar.update, requests, work)
            )
            try:
                yield
                if progress is not None:
                    progress.close()
            finally:
                self._progress = None
