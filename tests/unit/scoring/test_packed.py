from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from common import assert_sentence, load_tiny, tiny_config
from one_by_one import one_by_one, random_requests

from gks_eval.errors import DataError, ResourceError, UsageError
from gks_eval.scoring import PackedCounts, packed_log_likelihoods, plans, requests_worth
from gks_eval.scoring.loglikelihood import TokenLogLikelihood
from gks_eval.scoring.tree import count_distinct_tokens, to_sequences
from gks_eval.scoring.tree_model import TreeModel

MAX_LENGTH = 128
REQUESTS = random_requests(1, 260)


@pytest.fixture(scope="module")
def model(tiny_base: Any) -> Any:
    return load_tiny(tiny_base("llama"))


def score(model: Any, requests: Any = REQUESTS, **options: Any) -> list[TokenLogLikelihood]:
    sizes = {"row_tokens": 48, "batch_tokens": 200}
    return packed_log_likelihoods(
        model, requests, device="cpu", max_length=MAX_LENGTH, **{**sizes, **options}
    )


def assert_same(found: list[TokenLogLikelihood], expected: list[tuple[float, bool, int]]) -> None:
    assert len(found) == len(expected)
    for result, (log_likelihood, greedy, tokens) in zip(found, expected, strict=True):
        assert isinstance(result, TokenLogLikelihood)
        assert result[0] == pytest.approx(log_likelihood, abs=1e-4)
        assert (result[1], result.tokens) == (greedy, tokens)


def test_results_are_told_as_they_come(model):
    told: dict[int, TokenLogLikelihood] = {}
    steps: list[int] = []
    results = score(model, emit=told.__setitem__, progress=steps.append)
    assert [told[index] for index in range(len(REQUESTS))] == results
    assert sum(steps) == len(REQUESTS)
    assert len(steps) > 5
    assert score(model) == results


def test_a_kept_plan_serves_equal_requests_only(model, monkeypatch):
    made = []
    make = plans.make_plan
    monkeypatch.setattr(plans, "make_plan", lambda *key: made.append(key) or make(*key))
    memo, again = plans.PlanMemo(), [(list(a), list(b)) for a, b in REQUESTS]
    calls: list[tuple[Any, dict[str, Any], int]] = [
        (REQUESTS, {}, 1),
        (again, {}, 1),  # equal, not the same
        (REQUESTS[1:], {}, 2),
        (REQUESTS, {}, 3),
        (REQUESTS, {"batch_tokens": 100}, 4),
    ]
    for requests, options, count in calls:
        counts, expected = PackedCounts(), PackedCounts()
        found = score(model, requests, memo=memo, counts=counts, **options)
        assert len(made) == count
        assert found == score(model, requests, counts=expected, **options)
        del made[count:]  # the call without a memo plans for itself
        assert counts == expected


def test_progress_follows_the_layers_of_one_long_forward(model):
    """A batch answers its requests at once; before that, half its layers are half of them."""
    seen: list[tuple[str, int]] = []
    score(
        model, REQUESTS[:20], batch_tokens=10_000, row_tokens=10_000,
        progress=lambda n: seen.append(("progress", n)),
        emit=lambda index, _: seen.append(("answer", index)),
    )  # fmt: skip
    before = [n for kind, n in seen[: seen.index(next(s for s in seen if s[0] == "answer"))]]
    assert before == [10, 10], "the model has two layers"
    assert sum(n for kind, n in seen if kind == "progress") == 20


def test_progress_is_in_proportion_to_the_tokens(model):
    counts, reported, at = PackedCounts(), 0, []

    def note(number: int) -> None:
        nonlocal reported
        reported += number

    hook = model.model.register_forward_hook(
        lambda *_: at.append((counts.computed_tokens, reported))
    )
    score(model, progress=note, counts=counts, batch_tokens=48)
    hook.remove()
    assert len(at) > 8
    # The hook comes after the layers and before the forward is counted: the next one's count.
    for (_, reached), (tokens, _) in pairwise(at):
        assert reached == pytest.approx(len(REQUESTS) * tokens / counts.computed_tokens, abs=1.5)


def test_what_was_computed_is_counted(model):
    counts = PackedCounts()
    score(model, counts=counts)
    sequences = to_sequences(REQUESTS, MAX_LENGTH)
    assert counts.requests == len(REQUESTS)
    assert counts.distinct_tokens == count_distinct_tokens(sequences)
    assert counts.distinct_tokens <= counts.computed_tokens < 1.5 * counts.distinct_tokens
    assert counts.harness_tokens > 1.5 * counts.distinct_tokens
    scored = {
        one.tokens[:end] for one in sequences for end in range(one.first_scored + 1, one.length + 1)
    }
    assert len(scored) <= counts.scored_positions < 1.3 * len(scored)


def test_duplicates_are_computed_once(model):
    once, twice = PackedCounts(), PackedCounts()
    single = score(model, REQUESTS[:9], counts=once)
    assert score(model, REQUESTS[:9] * 2, counts=twice) == single * 2
    assert twice.computed_tokens == once.computed_tokens


def test_no_requests_give_no_results(model):
    assert score(model, []) == []


def test_requests_that_cannot_be_scored_are_refused(model):
    with pytest.raises(DataError) as raised:
        score(model, [([1], [2] * (MAX_LENGTH + 1))])
    assert_sentence(raised.value, "request 0", "max_length=128")


class Scarce:
    """Memory for so many tokens: beyond it, a forward fails as the allocator would."""

    def __init__(self, tokens: int, error: Exception) -> None:
        self.tokens = tokens
        self.error = error
        self.largest = 0
        self.failures = 0

    def attach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        call = TreeModel._call

        def limited(tree: TreeModel, **arguments: Any) -> torch.Tensor:
            tokens = arguments["input_ids"].numel()
            if tokens > self.tokens:
                self.failures += 1
                raise self.error
            self.largest = max(self.largest, tokens)
            return call(tree, **arguments)

        monkeypatch.setattr(TreeModel, "_call", limited)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["device", "cpu", "cublas"],
)
def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch, caplog, model, error):
    expected = one_by_one(model, REQUESTS, MAX_LENGTH)
    score(model, REQUESTS[:1])
    memory = Scarce(130, error)
    memory.attach(monkeypatch)
    assert_same(score(model, row_tokens=400, batch_tokens=1600), expected)
    assert 1 <= memory.failures < 12
    assert memory.largest <= 130
    assert "ut of memory" in caplog.text


def test_a_request_too_large_for_the_memory_is_an_error(monkeypatch, model):
    score(model, REQUESTS[:1])
    Scarce(20, torch.OutOfMemoryError("CUDA out of memory")).attach(monkeypatch)
    with pytest.raises(ResourceError) as raised:
        score(model, [([1] * 50, [2, 3])])
    assert_sentence(raised.value, "51 tokens", "max_length")


def test_other_errors_of_the_model_are_not_swallowed(monkeypatch, model):
    score(model, REQUESTS[:1])
    Scarce(20, RuntimeError("shapes do not match")).attach(monkeypatch)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        score(model)


def test_a_model_that_cannot_be_packed_is_refused_with_the_reason():
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UsageError) as raised:
        score(bloom.eval(), [([1], [2])])
    assert_sentence(raised.value, "position_ids", "plain")


def test_sizes_are_chosen_from_the_model(model):
    expected = one_by_one(model, REQUESTS, MAX_LENGTH)
    assert_same(score(model, row_tokens=None, batch_tokens=None), expected)


def test_a_batch_of_requests_is_worth_its_longest():
    requests = [([1] * 10, [2] * 5), ([1] * 3, [2])]
    assert requests_worth(requests, 4, 100) == 4 * 14
    assert requests_worth(requests, 4, 8) == 4 * 8
    assert requests_worth([], 4, 8) == 4


def test_the_model_is_left_as_it_was(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = tiny_config("llama").to_dict().keys()
    score(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert config <= model.config.to_dict().keys()
    assert not model.training


def test_a_gpu_computes_the_next_batch_while_one_is_read(monkeypatch, model):
    """Equal results in equal order; each batch is answered after the next one was started."""
    events: list[str] = []

    def run() -> list[Any]:
        events.clear()
        hook = model.model.register_forward_hook(lambda *_: events.append("forward"))
        found = score(
            model,
            batch_tokens=48,
            emit=lambda *_: events.append("answer") if events[-1:] != ["answer"] else None,
        )
        hook.remove()
        return found

    expected, at_once = run(), list(events)
    monkeypatch.setattr("gks_eval.scoring.packed.OVERLAPPED_ON", {"cpu"})
    assert run() == expected
    assert at_once[:4] == ["forward", "answer", "forward", "answer"]
    assert events[:5] == ["forward", "forward", "answer", "forward", "answer"]
    assert events[-1] == "answer"
    memory = Scarce(130, torch.OutOfMemoryError("CUDA out of memory"))
    memory.attach(monkeypatch)
    scarce = score(model, row_tokens=400, batch_tokens=1600)
    assert_same(scarce, [(one[0], one[1], one.tokens) for one in expected])
