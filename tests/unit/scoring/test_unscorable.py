"""Requests that end a run of lm-eval's `hf`: they cost no other item, and never in silence.

What `hf` can score is compared with `hf`; what it cannot, with a naive loop in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence, load_tiny, save_byte_tokenizer
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gks_eval.errors import DataError
from gks_eval.model.lm import GksArrowLM

Base = Callable[[str], Path]
MERGES = [("a", "b"), ("ab", "c")]


@pytest.fixture(scope="module")
def folder(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base whose tokenizer merges "a", "b" and "c", which "Qa" + "bc" is cut through."""
    import shutil

    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("merging") / "base"
    shutil.copytree(tiny_base("phi3"), folder)
    save_byte_tokenizer(folder)
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = raw["model"]["vocab"]
    for rare, (one, other) in zip("\x00\x01", MERGES, strict=True):
        # Token ids stay below the model's 260.
        byte = chr(256 + ord(rare))
        vocabulary[one + other] = vocabulary.pop(byte)
    raw["model"]["merges"] = [list(pair) for pair in MERGES]
    (folder / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    assert PreTrainedTokenizerFast.from_pretrained(folder)("Qabc")["input_ids"][1:] == [
        vocabulary["abc"]
    ]
    return folder


@pytest.fixture(scope="module", params=["packed", "plain"])
def lm(request: pytest.FixtureRequest, folder: Path) -> GksArrowLM:
    return GksArrowLM(
        str(folder), router=None, dtype="float32", batch_size=3, scoring=request.param,
        max_length=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hf(folder: Path) -> HFLM:
    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=3, max_length=64)


def asked(pairs: list[tuple[Any, ...]], task: str = "sums") -> list[Instance]:
    return [
        Instance("loglikelihood", {}, pair, 0, (task, 40 + n, 1))  # type: ignore[arg-type]
        for n, pair in enumerate(pairs)
    ]


@torch.no_grad()
def naive(folder: Path, context: list[int], text: list[int]) -> float:
    """Return the float64 sum of the log-probabilities of `text`, one forward a token."""
    model = load_tiny(folder, torch.float64)
    total = 0.0
    for n, token in enumerate(text):
        logits = model(torch.tensor([context + text[:n]])).logits[0, -1]
        total += float(torch.log_softmax(logits, -1)[token])
    return total


SCORED_BY_HF = [
    ("Q", " "),
    ("Q", "\n\n"),
    ("Q ", ""),
    ("Q \n", "a"),
    ("", "abc"),
    ("", " "),
    ("", "<|endoftext|>abc"),
    ("Qa", "bd"),  # merges in part: lm-eval scores what follows the context's length
    ("Q" * 200, "ab"),
    ("Qa" * 40, "bcd" * 8),
    ("Q", "x" * 64),
]


def test_what_hf_scores_is_scored_alike(lm: GksArrowLM, hf: HFLM) -> None:
    found = lm.loglikelihood(asked(SCORED_BY_HF), disable_tqdm=True)
    expected = hf.loglikelihood(asked(SCORED_BY_HF), disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-3)
    assert [one[1] for one in found] == [one[1] for one in expected]


@pytest.mark.parametrize(
    ("pair", "context", "text"),
    [
        (("Qa", "b"), "Qa", "b"),
        (("Qa", "bc"), "Qa", "bc"),
        (("Qab", "c"), "Qab", "c"),
        (("  ", "ab"), "<|endoftext|>", "  ab"),
        ((" ", ""), "<|endoftext|>", " "),
        (("", "<|endoftext|>"), "<|endoftext|>", "<|endoftext|>"),
    ],
    ids=str,
)
def test_what_hf_ends_the_run_on_has_its_own_tokens_scored(
    pair: tuple[str, str],
    context: str,
    text: str,
    lm: GksArrowLM,
    hf: HFLM,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(AssertionError):
        hf.loglikelihood(asked([pair]), disable_tqdm=True)
    encode = lm.tokenizer.encode
    expected = naive(folder, encode(context), encode(text))
    others = [("Q", " one"), ("Q", " two")]
    alone = lm.loglikelihood(asked(others), disable_tqdm=True)
    caplog.clear()
    found = lm.loglikelihood(asked([others[0], pair, others[1]]), disable_tqdm=True)
    assert found[1][0] == pytest.approx(expected, abs=1e-4)
    assert found[1].tokens == len(encode(text))
    assert [found[0][0], found[2][0]] == pytest.approx([one[0] for one in alone], abs=1e-4)
    merges = bool(pair[0].strip()) or "endoftext" in pair[1]
    assert ("1 in all (sums, item 41" in caplog.text) is merges


@pytest.mark.parametrize("context", ["Q", "", "<|user|>Q<|end|><|assistant|>"])
def test_an_empty_option_is_never_the_choice_and_named(
    context: str, lm: GksArrowLM, hf: HFLM, caplog: pytest.LogCaptureFixture
) -> None:
    options = [(context, "one"), (context, ""), (context, "two")]
    with pytest.raises((AssertionError, IndexError)):
        hf.loglikelihood(asked(options), disable_tqdm=True)
    found = lm.loglikelihood(asked(options), disable_tqdm=True)
    expected = hf.loglikelihood(asked([options[0], options[2]]), disable_tqdm=True)
    assert (tuple(found[1]), found[1].tokens) == ((-math.inf, False), 0)
    assert [found[0][0], found[2][0]] == pytest.approx([one[0] for one in expected], abs=1e-3)
    assert '-inf, so that any other choice is better: 1 in all (sums, item 41, ""' in caplog.text
    assert lm.loglikelihood(asked([(context, "")])) == [(-math.inf, False)]


def test_many_are_counted_and_a_few_named(lm: GksArrowLM, caplog: pytest.LogCaptureFixture) -> None:
    lm.loglikelihood(asked([("Qa", "b")] * 7 + [("a long \n" * 20, "\t\n" * 30)]))
    assert "7 in all (sums, item 40" in caplog.text
    assert "item 42" in caplog.text
    assert "item 43" not in caplog.text
    assert all(len(record.getMessage()) < 600 for record in caplog.records)


def test_a_whole_text_of_one_token_has_nothing_to_score(lm: GksArrowLM) -> None:
    protocol = {"protocol": "whole_text", "max_tokens": 512}
    found = lm.loglikelihood(asked([("x", "", protocol), ("xy", "z", protocol)]))
    assert tuple(found[0]) == (-math.inf, False)
    assert found[1].tokens == 2


def test_a_continuation_beyond_max_length_is_named_before_any_forward(
    lm: GksArrowLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm.loglikelihood(asked([("Q", "a")]))
    monkeypatch.setattr(lm.model, "forward", lambda *_, **__: pytest.fail("a forward"))
    monkeypatch.setattr(lm.model.model, "forward", lambda *_, **__: pytest.fail("a forward"))
    with pytest.raises(DataError) as caught:
        lm.loglikelihood(asked([("Q", "a"), ("Question", "x" * 65)]), disable_tqdm=True)
    assert_sentence(
        caught.value, "sums, item 41", '"xxx', 'after "Question"', "65 tokens", "max_length=64"
    )


def test_another_process_with_one_ends_this_one_too(folder: Path) -> None:
    lm = GksArrowLM(str(folder), router=None, dtype="float32")
    seen: list[Any] = []

    class Both:
        size = 2

        def gather(self, value: Any) -> list[Any]:
            seen.append(value)
            return [value, "sums, item 7: too long; raise max_length."]

    lm.group = Both()  # type: ignore[assignment]
    with pytest.raises(DataError, match="item 7"):
        lm.loglikelihood(asked([("Q", "a")]), disable_tqdm=True)
    assert seen == [None]


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.parametrize("own_class", [False, True], ids=["lm-eval's class", "the pack's"])
def test_an_empty_option_under_a_chat_template_costs_no_run(
    own_class: bool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [
        # The first has none: lm-eval's class looks at the first letters of its choices.
        {"question": "So", "choices": ["one", "two"], "gold": 1},
        {"question": "Say", "choices": ["one", "two", ""], "gold": 0},
        {"question": "Or", "choices": ["one", "", "two"], "gold": 1},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    text = TASK.format(name="empty_options", file=tmp_path / "rows.jsonl")
    text += "class: !function gks_eval.tasklib.task.GksTask\n" * own_class
    (tmp_path / "task.yaml").write_text(text, "utf-8")
    lm = GksArrowLM(str(folder), router=None, dtype="float32")
    results = simple_evaluate(
        lm, tasks=["empty_options"], apply_chat_template=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path)),
    )  # fmt: skip
    samples = results["samples"]["empty_options"]
    assert len(samples) == 3
    choices = ["one", "two"]  # without the empty ones
    for sample in samples[:2]:
        context = sample["arguments"][0][0]
        assert context.endswith("<|assistant|>")
        scored = lm.loglikelihood(asked([(context, choice) for choice in choices]))
        best = max(range(2), key=lambda n: scored[n][0])
        assert sample["acc"] == float(best == sample["doc"]["gold"])
    assert samples[2]["acc"] == 0.0, "no model can choose an empty option"
    assert '2 in all (empty_options, item 1, ""' in caplog.text
    assert ("kept 2 items with an empty option (index 1, 2)" in caplog.text) is own_class
