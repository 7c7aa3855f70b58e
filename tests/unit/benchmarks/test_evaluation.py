"""The evaluation row on a tiny model: counts against naive ones, predictions against PEFT's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from benchmarks.evaluation import Scorers, TokenCounter, evaluate_collection, open_scorers
from benchmarks.evaluation_items import Items
from benchmarks.floor import floor_transformers
from benchmarks.growth import random_requests
from benchmarks.sizes import QUICK
from benchmarks.subject import Subject, open_subject
from benchmarks.whole_model import three_transformers


def items(*questions: tuple[str, list[str]]) -> Items:
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, choice), idx=n)
        for context, choices in questions
        for n, choice in enumerate(choices)
    ]
    return Items(requests, [len(choices) for _, choices in questions])


SETS = {
    "long": items(
        ("The sky above the harbour", [" is blue", " is green", " is made of cheese"]),
        ("The sky above the hills", [" is blue", " sings"]),
    ),
    "short": items(("True or not?", [" A", " B", " C", " D"]), ("Once", [" more", " only"])),
}


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with open_subject(None, tiny=True, device="cpu", dtype=torch.float32, seed=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def scorers(subject: Subject) -> Scorers:
    return open_scorers(subject)


def inputs(subject: Subject, asked: Items) -> list[tuple[int, ...]]:
    """What the model reads for each request: a byte is a token here."""
    texts = [context + choice for context, choice in (one.args for one in asked.requests)]
    return [tuple(subject.tokenizer(text)["input_ids"][:-1]) for text in texts]


def naive_distinct(read: list[tuple[int, ...]]) -> int:
    return len({one[:length] for one in read for length in range(1, len(one) + 1)})


def test_a_collection(subject: Subject, scorers: Scorers) -> None:
    told: list[str] = []
    found = evaluate_collection(
        "demo", SETS, subject, scorers, QUICK, rounds=2, device="cpu", seed=0, report=told.append
    )
    together = Items.joined(list(SETS.values()))
    assert found.together.items == 4
    assert found.together.requests == 11
    read = inputs(subject, together)
    assert found.together.distinct_tokens == naive_distinct(read)
    # At batch size 1 nothing is padded, and lm-eval runs requests that read the same once.
    assert found.together.computed_tokens["peft 1"] == sum(map(len, set(read)))
    assert found.together.computed_tokens["base 1"] == sum(map(len, set(read)))
    assert found.together.computed_tokens["packed"] >= naive_distinct(read)
    assert list(found.alone) == ["long", "short"]
    for name, one in found.alone.items():
        read = inputs(subject, SETS[name])
        assert one.distinct_tokens == naive_distinct(read)
        assert one.computed_tokens["peft 1"] == sum(map(len, set(read)))
        assert one.items == 2
    assert set(found.agreement) == {"peft 4", "plain 8", "packed"}
    for agreement in found.agreement.values():
        assert (agreement.items, agreement.equal) == (4, 4)
        assert agreement.max_difference < 1e-3
    assert set(found.forward.seconds) == {"1x16", "4x16"}
    assert found.forward.share > 0


@torch.no_grad()
def test_the_peer_scores_by_pefts_own_model(subject: Subject, scorers: Scorers) -> None:
    asked = SETS["long"]
    answers = scorers.calls(asked, (1,))["peft 1"]()
    base = scorers.calls(asked, (1,))["base 1"]()
    for request, (found, _), (plain, _) in zip(asked.requests, answers, base, strict=True):
        context, choice = (subject.tokenizer(text)["input_ids"] for text in request.args)
        ids = torch.tensor([context + choice])
        logits = scorers.peft._model(ids[:, :-1]).logits[0, len(context) - 1 :]
        log_probs = torch.log_softmax(logits, -1)
        expected = sum(float(log_probs[i, token]) for i, token in enumerate(choice))
        assert found == pytest.approx(expected, abs=1e-4)
        assert abs(found - plain) > 1e-2, "the adapters must matter in this test"


@torch.no_grad()
def test_the_three_transformers_of_the_model_row(subject: Subject) -> None:
    transformers = three_transformers(subject.model, subject.library)
    ids = torch.randint(257, (2, 12))
    hidden = {who: one(input_ids=ids)[0] for who, one in transformers.items()}
    assert torch.equal(hidden["base"], subject.model.model(input_ids=ids)[0])
    assert float((hidden["routed"] - hidden["base"]).abs().max()) > 0.05
    # A near-tie that flips moves its token and those after it in the row; all else agrees.
    off = (hidden["routed"] - hidden["peft"]).abs().amax(-1) > 1e-4
    assert off.any(dim=1).sum() <= 1
    weights = [next(one.parameters()).data_ptr() for one in transformers.values()]
    assert len(set(weights)) == 1, "the contestants share the base's weights"


@torch.no_grad()
def test_the_floor_of_the_model_row(subject: Subject) -> None:
    floor = floor_transformers(subject.model, subject.library)
    ids = torch.randint(257, (2, 12))
    hidden = {who: one(input_ids=ids)[0] for who, one in floor.items()}
    base = subject.model.model(input_ids=ids)[0]
    assert torch.equal(hidden["hooks"], base)
    assert float((hidden["products"] - base).abs().max()) > 0.05


def test_predictions_are_the_first_of_the_largest() -> None:
    asked = SETS["long"]
    assert asked.choices([-3.0, -1.0, -2.0, -5.0, -4.0]) == [1, 1]
    assert asked.choices([-1.0, -1.0, -2.0, -4.0, -4.0]) == [0, 0]
    assert asked.first(1).sizes == [3]
    assert len(asked.first(1).requests) == 3


def test_tokens_are_counted_with_their_padding(subject: Subject) -> None:
    counter = TokenCounter()
    model: Any = subject.model
    handle_count = len(model.get_input_embeddings()._forward_pre_hooks)
    counter.watch(model)
    model(torch.zeros(3, 5, dtype=torch.long))
    model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    assert counter.tokens == 17
    assert len(model.get_input_embeddings()._forward_pre_hooks) == handle_count + 1


def test_random_requests_share_an_items_context() -> None:
    pairs = random_requests(items=3, context=6, choices=2, vocabulary=50, seed=1)
    assert len(pairs) == 6
    assert [len(context) for context, _ in pairs] == [6] * 6
    assert pairs[0][0] == pairs[1][0] != pairs[2][0]
    assert pairs[0][1] != pairs[1][1]
    assert pairs == random_requests(items=3, context=6, choices=2, vocabulary=50, seed=1)
