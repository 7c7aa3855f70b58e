"""The examples of one job: training and held-out rows, and their fingerprint."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import DataError
from gks_eval.training.examples import (
    DataReport,
    Example,
    SourceTarget,
    begin,
    beginning_of,
    encode_pairs,
)
from gks_eval.training.jobs import Job, digest_of_json
from gks_eval.training.recipe import ExpertSection, GeneralMember
from gks_eval.training.sources import expert_rows, general_texts
from gks_eval.training.windows import cut_first, cut_packed, window_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["JobData", "load_job_data", "separator_of"]


@dataclass(frozen=True)
class JobData:
    """Examples of one adapter.

    Attributes:
        train: Training examples, in the seed's order; the trainer shuffles once per epoch.
        held_out: Examples that are never trained on.
        report: Counts over `train`, and of shortened and skipped rows.
        fingerprint: SHA-256 of every id and label, `held_out` included.
        begins_with: The special tokens that the tokenizer adds before a text; empty for none.
    """

    train: list[Example]
    held_out: list[Example]
    report: DataReport
    fingerprint: str
    begins_with: str


def load_job_data(job: Job, root: Path, tokenizer: PreTrainedTokenizerBase) -> JobData:
    """Read, encode and split the data of a job.

    Raises:
        DataError: The data have a fault, or there are too few rows to train on.
        HubError: The hub cannot be reached.
    """
    report = DataReport()
    if isinstance(job.section, ExpertSection):
        examples = encode_pairs(
            tokenizer,
            expert_rows(job, root),
            chat=job.section.format == "chat",
            template=job.section.prompt,
            max_tokens=job.section.max_tokens,
            loss=job.section.loss,
            report=report,
        )
    else:
        examples = _general_examples(job, root, tokenizer, report)
    held = job.section.held_out
    if len(examples) <= held:
        raise DataError(_too_few(job, len(examples), report))
    # Held-out rows are at the end: they are drawn after the training rows.
    train, held_out = examples[: len(examples) - held], examples[len(examples) - held :]
    report.count(train)
    return JobData(
        train,
        held_out,
        report,
        digest_of_json([[list(e.input_ids), list(e.labels)] for e in examples]),
        str(tokenizer.decode(beginning_of(tokenizer))),
    )


def separator_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends each text of `cut: packed`.

    Raises:
        DataError: The tokenizer has no end-of-text token.
    """
    if not isinstance(tokenizer.eos_token_id, int):
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no end-of-text token to put between"
            " packed texts; set `cut: first` in the recipe."
        )
    return tokenizer.eos_token_id


def _too_few(job: Job, usable: int, report: DataReport) -> str:
    kind = "rows" if isinstance(job.section, ExpertSection) else "windows"
    lost = [
        f"{count} {what}"
        for count, what in (
            (report.targets_too_long, "had a target longer than max_tokens"),
            (report.texts_too_short, "texts were shorter than a window"),
        )
        if count
    ]
    held = f" and {job.section.held_out} must be held out" if job.section.held_out else ""
    instead = "raise max_tokens" if kind == "rows" else "make its windows shorter"
    return (
        f"{job.key}: {usable} {kind} are usable{f' ({lost[0]})' if lost else ''}{held}, so none"
        f" remain for training; give it more data, or {instead}."
    )


def _general_examples(
    job: Job, root: Path, tokenizer: PreTrainedTokenizerBase, report: DataReport
) -> list[Example]:
    member, section = job.member, job.section
    assert isinstance(member, GeneralMember)
    wanted = member.windows + section.held_out
    # The beginning is a part of the prompt, so that a window stays as long as the recipe says.
    beginning = beginning_of(tokenizer) if section.format == "plain" else []
    prompt = max(member.prompt - len(beginning), 0)
    length = prompt + member.completion
    windows = list(itertools.islice(_windows(job, root, tokenizer, report, length), wanted))
    random.Random(job.seed).shuffle(windows)  # noqa: S311 - an order, not a secret
    if section.format == "plain":
        examples = (window_example(window, prompt, section.loss) for window in windows)
        return [begin(example, beginning) for example in examples]
    pairs = [
        SourceTarget(
            number,
            str(tokenizer.decode(window[:prompt])),
            str(tokenizer.decode(window[prompt:])),
        )
        for number, window in enumerate(windows, start=1)
    ]
    # Room for the chat template, and for tokens that re-encoding splits differently.
    room = 2 * (member.prompt + member.completion) + 256
    return encode_pairs(
        tokenizer, pairs, chat=True, template="", max_tokens=room, loss=section.loss, report=report
    )


def _windows(
    job: Job, root: Path, tokenizer: PreTrainedTokenizerBase, report: DataReport, length: int
) -> Iterator[list[int]]:
    member = job.member
    assert isinstance(member, GeneralMember)
    texts = general_texts(job, root)

    def encode(text: str) -> list[int]:
        # verbose=False: no warning for a text that exceeds the model's context; it is cut here.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    if member.cut == "packed":
        yield from cut_packed(texts, encode, length, separator_of(tokenizer))
        return
    for window in cut_first(texts, encode, length):
        if window:
            yield window
        else:
            report.texts_too_short += 1
