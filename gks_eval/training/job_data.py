"""The examples of one job: what is trained on, what is held out, and their fingerprint."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import DataError
from gks_eval.training.examples import DataReport, Example, SourceTarget, encode_pairs
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
        train: Trained on, in the order of the seed; the trainer shuffles once an epoch.
        held_out: Never trained on.
        report: Counts over `train`, and what was cut or left out.
        fingerprint: SHA-256 of every id and label, `held_out` included.
    """

    train: list[Example]
    held_out: list[Example]
    report: DataReport
    fingerprint: str


def load_job_data(job: Job, root: Path, tokenizer: PreTrainedTokenizerBase) -> JobData:
    """Read, encode and divide the data of a job.

    Raises:
        DataError: The data have a fault, or too little of them is left to train on.
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
        raise DataError(_nothing_left(job, len(examples), report))
    # From the end: the draw put them there, after the rows that the recipe asks for.
    train, held_out = examples[: len(examples) - held], examples[len(examples) - held :]
    report.count(train)
    return JobData(
        train,
        held_out,
        report,
        digest_of_json([[list(e.input_ids), list(e.labels)] for e in examples]),
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


def _nothing_left(job: Job, left: int, report: DataReport) -> str:
    kind = "rows" if isinstance(job.section, ExpertSection) else "windows"
    lost = [
        f"{count} {what}"
        for count, what in (
            (report.targets_too_long, "had a target longer than max_tokens"),
            (report.texts_too_short, "texts were shorter than a window"),
        )
        if count
    ]
    held = f" and {job.section.held_out} are to be held out" if job.section.held_out else ""
    mend = "raise max_tokens" if kind == "rows" else "make its windows shorter"
    return (
        f"{job.key}: {left} {kind} are left{f' ({lost[0]})' if lost else ''}{held}, so none is left"
        f" to train on; give it more data, or {mend}."
    )


def _general_examples(
    job: Job, root: Path, tokenizer: PreTrainedTokenizerBase, report: DataReport
) -> list[Example]:
    member, section = job.member, job.section
    assert isinstance(member, GeneralMember)
    wanted = member.windows + section.held_out
    windows = list(itertools.islice(_windows(job, root, tokenizer, report), wanted))
    random.Random(job.seed).shuffle(windows)  # noqa: S311 - an order, not a secret
    if section.format == "plain":
        return [window_example(window, member.prompt, section.loss) for window in windows]
    pairs = [
        SourceTarget(
            number,
            str(tokenizer.decode(window[: member.prompt])),
            str(tokenizer.decode(window[member.prompt :])),
        )
        for number, window in enumerate(windows, start=1)
    ]
    # Tokens of the chat template, and tokens that decoding and encoding may split differently.
    room = 2 * (member.prompt + member.completion) + 256
    return encode_pairs(
        tokenizer, pairs, chat=True, template="", max_tokens=room, loss=section.loss, report=report
    )


def _windows(
    job: Job, root: Path, tokenizer: PreTrainedTokenizerBase, report: DataReport
) -> Iterator[list[int]]:
    member = job.member
    assert isinstance(member, GeneralMember)
    length = member.prompt + member.completion
    texts = general_texts(job, root)

    def encode(text: str) -> list[int]:
        # verbose=False: a text longer than the model's context is no fault, it is cut here.
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    if member.cut == "packed":
        yield from cut_packed(texts, encode, length, separator_of(tokenizer))
        return
    for window in cut_first(texts, encode, length):
        if window:
            yield window
        else:
            report.texts_too_short += 1
