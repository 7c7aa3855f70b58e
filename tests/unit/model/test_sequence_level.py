"""Sequence-level routing, against float64 loops over one request at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence, requests
from sequence_oracle import greedy_continuation, log_likelihoods, logits

from gks_eval.errors import CompatibilityError, DataError, UsageError
from gks_eval.library.load import Library, load_library
from gks_eval.method.setting import Setting, as_setting
from gks_eval.model.inject import attach
from gks_eval.model.lm import GksArrowLM
from gks_eval.model.observe import observe_requests, observe_text, routing_record
from gks_eval.model.routing_accuracy import observe_accuracy
from gks_eval.scoring import PackedCounts, packed_log_likelihoods
from gks_eval.scoring.tree_model import cache_argument

MAX_LENGTH = 40
STOP = 0
SETTINGS = [
    f"{router};level=sequence;top_k=2;combine={combine}"
    for router in ("arrow:avg", "spectr:avg", "norm:avg", "spectr:en;weights=equal")
    for combine in ("factors", "outputs")
]
SETTINGS += [
    f"{router};level=sequence;top_k=3;temperature=0.5;preset=exact"
    for router in ("arrow:en", "spectr:en", "norm:avg")
]


def draw(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Return items whose contexts share a prefix, continue each other, or are equal; one is cut."""
    chance = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [chance.randrange(4, 260) for _ in range(count)]

    shots, stem = tokens(9), tokens(2)
    contexts = [[*shots, *tokens(3)], [*shots, *tokens(4)], tokens(1), tokens(6), tokens(70)]
    contexts.append([*contexts[0], *stem])
    pairs = [(context, tokens(chance.choice((1, 2, 5)))) for context in contexts for _ in range(2)]
    pairs += [(contexts[0], [*stem, *tokens(n)]) for n in (1, 3)] + [pairs[0], pairs[4]]
    chance.shuffle(pairs)
    return pairs


REQUESTS = draw()


@pytest.fixture(scope="module", params=["phi3", "llama"])
def library(request: pytest.FixtureRequest, tiny_library: Callable[..., Path]) -> Library:
    return load_library(str(tiny_library(request.param)))


@pytest.fixture
def models(library: Library, tiny_base: Callable[[str], Path]) -> Callable[..., Any]:
    from common import load_tiny

    return lambda dtype=torch.float32: load_tiny(Path(library.config.base_model), dtype=dtype)


def setting_of(library: Library, text: str) -> Setting:
    return library.check(as_setting(text))


def scored(model: Any, pairs: Any = REQUESTS, **options: Any) -> list[Any]:
    sizes = {"row_tokens": 24, "batch_tokens": 60, **options}
    return packed_log_likelihoods(model, pairs, device="cpu", max_length=MAX_LENGTH, **sizes)


@pytest.mark.parametrize("text", SETTINGS)
def test_log_likelihoods_are_those_of_one_request_at_a_time(
    text: str, library: Library, models: Callable[..., Any]
) -> None:
    setting = setting_of(library, text)
    expected = log_likelihoods(models(torch.float64), library, setting, REQUESTS, MAX_LENGTH)
    model = models()
    with attach(model, library, setting):
        found = scored(model)
        alone = [scored(model, [pair])[0] for pair in REQUESTS]
        wide = scored(model, list(reversed(REQUESTS)), row_tokens=500, batch_tokens=5000)[::-1]
    for results in (found, alone, wide):
        assert [greedy for _, greedy in results] == [greedy for _, greedy in expected]
        assert [total for total, _ in results] == pytest.approx(
            [total for total, _ in expected], abs=2e-4
        )
    with attach(model, library, text.replace("level=sequence", "level=token")):
        assert max(abs(a[0] - b[0]) for a, b in zip(scored(model), found, strict=True)) > 1e-2


@pytest.mark.parametrize("text", SETTINGS[::3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_rows_do_not_change_a_choice(
    text: str, attention: str, library: Library, models: Callable[..., Any], monkeypatch: Any
) -> None:
    """As on a GPU, where rows are padded: the same numbers as unpadded."""
    monkeypatch.setattr("gks_eval.scoring.tree_model.UNPADDED_ON", set())
    model = models()
    with attach(model, library, text):
        expected = [scored(model, [pair])[0] for pair in REQUESTS]
        model.config._attn_implementation = attention
        found = scored(model, batch_tokens=500)
    for one, other in zip(found, expected, strict=True):
        assert one[0] == pytest.approx(other[0], abs=2e-4)


def test_equal_contexts_share_one_choice_and_others_none(
    library: Library, models: Callable[..., Any]
) -> None:
    model, counts = models(), PackedCounts()
    with attach(model, library, "arrow;level=sequence") as attachment:
        seen: list[torch.Tensor] = []
        scored(model, REQUESTS[:1])  # the trial forward, which routes nothing
        name = next(iter(attachment.layers))
        attachment.observe(lambda layer, c_TE: seen.append(c_TE) if layer == name else None)
        scored(model, counts=counts, batch_tokens=10_000)
    (c_TE,) = seen
    nodes = set()
    for context, continuation in REQUESTS:
        kept = (context + continuation)[-(MAX_LENGTH + 1) :]
        own = tuple(kept[: -len(continuation)])
        nodes |= {(own, tuple(kept[:end])) for end in range(1, len(kept))}
    assert len(torch.unique(c_TE, dim=0)) == len({own for own, _ in nodes})
    assert len(c_TE) == len(nodes), "every prefix once per context, and no padding"
    assert counts.computed_tokens == len(nodes)


def test_many_continuations_of_one_context_are_divided(
    library: Library, models: Callable[..., Any]
) -> None:
    pairs = [([7, 8, 9], [n, n + 1, n + 2]) for n in range(10, 90)]
    model, counts = models(), PackedCounts()
    with attach(model, library, "norm:en;level=sequence"):
        found = scored(model, pairs, counts=counts)
        alone = [scored(model, [pair])[0] for pair in pairs[::9]]
    assert counts.forwards > 3
    for one, other in zip(found[::9], alone, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)


@pytest.mark.parametrize("text", SETTINGS[::4])
@torch.no_grad()
def test_a_forward_is_routed_by_its_input(
    text: str, library: Library, models: Callable[..., Any]
) -> None:
    setting, model, tokens = setting_of(library, text), models(), REQUESTS[0][0]
    expected, chosen = logits(models(torch.float64), library, setting, tokens, len(tokens))
    ids = torch.tensor([tokens])
    padded = torch.cat([torch.full((1, 5), 3), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
    seen: dict[str, torch.Tensor] = {}
    with attach(model, library, setting) as attachment:
        attachment.observe(seen.__setitem__)
        found = model(input_ids=ids).logits[0]
        by_position = model(ids).logits[0]
        left = model(padded, mask).logits[0, 5:]
    for logits_TV in (found, by_position, left):
        torch.testing.assert_close(logits_TV.double(), expected, rtol=1e-4, atol=1e-4)
    for name, share in chosen.items():
        assert len(seen[name]) == len(tokens), "padding is not observed"
        for row in seen[name].double():
            torch.testing.assert_close(row, torch.tensor(share).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", SETTINGS[::5])
def test_generation_keeps_the_choice_of_the_prompt(
    text: str, library: Library, models: Callable[..., Any]
) -> None:
    setting, model, wide = setting_of(library, text), models(), models(torch.float64)
    prompts = [REQUESTS[n][0] for n in (0, 3, 8)]
    expected = [greedy_continuation(wide, library, setting, one, 8, STOP) for one in prompts]
    length = max(map(len, prompts))
    ids = torch.tensor([[3] * (length - len(one)) + one for one in prompts])
    mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts])
    how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": STOP, "pad_token_id": STOP}
    with attach(model, library, setting):
        together = model.generate(ids, attention_mask=mask, **how)[:, length:].tolist()
        alone = [
            model.generate(torch.tensor([p]), attention_mask=torch.ones(1, len(p)), **how)[
                0, len(p) :
            ].tolist()
            for p in prompts
        ]
        beams = model.generate(ids, attention_mask=mask, num_beams=2, **how)
    assert alone == expected
    assert [row[: len(one)] for row, one in zip(together, expected, strict=True)] == expected
    assert beams.shape[0] == len(prompts)


@torch.no_grad()
def test_two_caches_keep_their_own_choices(library: Library, models: Callable[..., Any]) -> None:
    model, wide = models(), models(torch.float64)
    setting = setting_of(library, "spectr:en;level=sequence;top_k=1")
    name = cache_argument(model)
    prompts = [REQUESTS[0][0], REQUESTS[3][0]]
    with attach(model, library, setting):
        outs = [model(torch.tensor([p]), use_cache=True) for p in prompts]
        model(torch.tensor([[9, 9, 9]]))
        after = [
            model(torch.tensor([[17]]), **{name: getattr(out, name)}).logits[0, -1] for out in outs
        ]
    for prompt, found in zip(prompts, after, strict=True):
        expected, _ = logits(wide, library, setting, [*prompt, 17], len(prompt))
        torch.testing.assert_close(found.double(), expected[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_forwards_without_a_whole_prompt_are_refused(
    library: Library, models: Callable[..., Any]
) -> None:
    model = models()
    ids, name = torch.tensor([[5, 6, 7, 8, 9, 10]]), cache_argument(model)
    with attach(model, library, "arrow;level=sequence") as attachment:
        out = model(ids, use_cache=True)
        with pytest.raises(UsageError) as pieces:
            model(ids, **{name: getattr(out, name)})
        assert_sentence(pieces.value, "level=sequence", "one piece")
        with pytest.raises(UsageError, match="one piece"):
            model.generate(ids, prefill_chunk_size=3, max_new_tokens=2)
        with pytest.raises(UsageError) as loss:
            model(ids, labels=ids)
        assert_sentence(loss.value, "labels")
        with pytest.raises(UsageError) as part:
            model.model(ids)
        assert_sentence(part.value, "the whole model")
        with pytest.raises(UsageError) as empty:
            model(ids, torch.zeros_like(ids))
        assert_sentence(empty.value, "a prompt has none")
        with pytest.raises(UsageError) as mask:
            model(ids, torch.zeros(1, 1, 6, 6))
        assert_sentence(mask.value, "attention_mask", "(1, 1, 6, 6)")
        held = getattr(model(ids, use_cache=True), name)
        attachment.apply("norm;level=sequence")
        with pytest.raises(UsageError, match="one piece"):
            model(ids[:, :1], **{name: held})
        expected = model(ids).logits  # a refused forward leaves nothing behind
        assert torch.equal(model(ids).logits, expected)
        attachment.apply("arrow")
        model(ids, labels=ids)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_an_adapted_head_is_refused(
    tiny_library: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    folder = tiny_library("llama", target_modules=["q_proj", "lm_head"])
    model = tiny_model("llama")
    with attach(model, load_library(str(folder)), "arrow") as attachment:
        with pytest.raises(CompatibilityError) as raised:
            attachment.apply("arrow;level=sequence")
        assert_sentence(raised.value, "lm_head", "level=token")


@pytest.fixture(scope="module")
def lm(tiny_library: Callable[..., Path]) -> GksArrowLM:
    folder = str(tiny_library("phi3"))
    return GksArrowLM(library=folder, dtype="float32", level="sequence", batch_size=3)


CHOICES = [("Q: which one? A:", " this"), ("Q: which one? A:", " that one"), ("Q: why? A:", " so")]


def test_lm_eval_requests(lm: GksArrowLM, tiny_base: Callable[[str], Path]) -> None:
    from common import load_tiny

    assert lm.library is not None
    wide = load_tiny(tiny_base("phi3"), dtype=torch.float64)
    asked = requests(CHOICES)
    pairs = lm.token_pairs(asked)
    expected = log_likelihoods(wide, lm.library, lm.setting, pairs, lm.max_length)
    found = lm.loglikelihood(asked, disable_tqdm=True)
    assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=2e-4)
    texts = ["Say", "One, two, three and", "A longer prompt than all others"]
    prompts = requests(
        [(text, {"until": ["\n"], "max_gen_toks": 6}) for text in texts], "generate_until"
    )
    continued = [
        lm.tok_decode(
            greedy_continuation(wide, lm.library, lm.setting, lm.tok_encode(text), 6, STOP)
        )
        for text in texts
    ]
    found_texts = lm.generate_until(prompts, disable_tqdm=True)
    assert found_texts == [text.split("\n")[0].split("<|endoftext|>")[0] for text in continued]


def test_requests_without_a_context_are_refused(lm: GksArrowLM) -> None:
    whole = ("Q: ", "A", {"protocol": "whole_text", "max_tokens": 9})
    for asked, parts in (
        ([*CHOICES, whole], ("the whole text", "level=token")),
        ([*CHOICES, ("", " text")], ("this one is empty", "level=token")),
        ([("  ", " text")], ("this one is empty",)),
    ):
        with pytest.raises(DataError) as raised:
            lm.loglikelihood(requests(asked), disable_tqdm=True)
        assert_sentence(raised.value, *parts)
    with pytest.raises(DataError) as rolling:
        lm.loglikelihood_rolling(requests([("A text.",)], "loglikelihood_rolling"))
    assert_sentence(rolling.value, "the whole text", "A text.")
    with pytest.raises(DataError) as empty:
        lm.generate_until(requests([("", {"until": ["\n"]})], "generate_until"))
    assert_sentence(empty.value, "this one is empty")
    try:
        lm.choose_scoring("plain")
        with pytest.raises(UsageError) as plain:
            lm.loglikelihood(requests(CHOICES))
        assert_sentence(plain.value, "scoring=plain", "level=token")
        lm.choose_scoring("packed")
        lm._unpackable = "its attention is flash, not sdpa or eager"
        with pytest.raises(UsageError) as unsupported:
            lm.loglikelihood(requests(CHOICES))
        assert_sentence(unsupported.value, "flash")
    finally:
        lm.choose_scoring("packed")


def test_routing_figures(lm: GksArrowLM, tiny_base: Callable[[str], Path]) -> None:
    from common import load_tiny

    assert lm.library is not None
    wide = load_tiny(tiny_base("phi3"), dtype=torch.float64)
    items = [[([10, 11, 12], [14, 15]), ([10, 11, 12], [16])], [([20, 21], [22]), ([23], [24, 25])]]
    record = routing_record(lm, "arrow", {"task": observe_requests(lm, items)})["tasks"]["task"]
    # Each context's choice counts for its own tokens and for those that continue it and are read.
    counts = [([10, 11, 12], 4), ([20, 21], 2), ([23], 2)]
    assert record["tokens"] == sum(count for _, count in counts)
    chosen = [
        (logits(wide, lm.library, lm.setting, tokens, len(tokens))[1], count)
        for tokens, count in counts
    ]
    for n, name in enumerate(lm.library.modules):
        means = sum(torch.tensor(found[name]).double() * count for found, count in chosen) / 8
        assert record["mean_coefficient"][n] == pytest.approx(means.tolist(), abs=1e-4)
    _, c_TE = observe_text(lm, "An owl.")
    assert torch.equal(c_TE, c_TE[:1].expand_as(c_TE)), "all tokens of a text have one choice"
    rows = {name: [[n, n + 1, n + 2]] for n, name in enumerate(lm.library.experts, start=30)}
    found = observe_accuracy(lm, lm.setting, rows)
    assert found.tokens == pytest.approx(found.sequences)


def test_identities_of_token_level_settings_are_those_of_before() -> None:
    for router in ("arrow", "spectr", "norm", "random", "shuffled"):
        plain = as_setting(f"{router}:en")
        assert plain.identity() == as_setting(f"{router}:en;level=token").identity()
        assert "level" not in plain.identity()
        other = as_setting(f"{router}:en;level=sequence")
        assert other.identity() == {**plain.identity(), "level": "sequence"}
        assert other.by_context
        assert not plain.by_context
    assert as_setting("uniform;level=sequence").identity() == as_setting("uniform").identity()
    for router in ("lag", "phatgoose", "mean_activation"):
        as_setting(f"{router};level=token")
        with pytest.raises(UsageError) as per_token:
            as_setting(f"{router};level=sequence")
        assert_sentence(per_token.value, f"router={router}", "one choice per token")
    with pytest.raises(UsageError) as raised:
        as_setting("arrow;level=layer")
    assert_sentence(raised.value, "level=layer", "token, sequence")
