"""`gks_arrow` against lm-eval's own `hf` model class, and against scores worked out by hand."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence, certain, requests, token_losses
from lm_eval.api.model import CacheHook, CachingLM
from lm_eval.models.huggingface import HFLM

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.library.load import load_library
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.model.lm import GksArrowLM

Base = Callable[[str], Path]
LibraryOf = Callable[..., Path]

PAIRS = [
    ("The sky is", " blue"),
    ("The sky is", " a long way up"),
    ("", "Nothing before this"),
    ("Ünïcödé 東京", " ✓"),
    ("The sky is", " blue"),
    ("Q: one?\nA:", " b"),
]
SETTINGS = [
    {},
    {"preset": "peft", "subtract": "en+de"},
    {"preset": "exact"},
    {"rule": "delta", "combine": "factors", "subtract": "fr", "top_k": 2},
    {"router": "uniform", "subtract": None},
    {"router": "beta", "subtract": "en"},
]


def whole_text(prompt: str, continuation: str, limit: int = 512) -> tuple[Any, ...]:
    return prompt, continuation, {"protocol": "whole_text", "max_tokens": limit}


def scores(results: list[Any]) -> list[float]:
    return [result[0] for result in results]


@pytest.fixture(scope="module")
def hf(tiny_base: Base) -> HFLM:
    return HFLM(str(tiny_base("phi3")), device="cpu", dtype="float32", batch_size=3)


@pytest.fixture(scope="module")
def gks(tiny_base: Base, tiny_library: LibraryOf) -> GksArrowLM:
    return GksArrowLM(library=str(tiny_library("phi3")), dtype="float32", batch_size=3)


def test_without_a_router_it_is_hf(tiny_base: Base, hf: HFLM) -> None:
    lm = GksArrowLM(
        str(tiny_base("phi3")), router=None, dtype="float32", batch_size=3, scoring="plain"
    )
    assert lm.library is None
    ours, theirs = lm.loglikelihood(requests(PAIRS)), hf.loglikelihood(requests(PAIRS))
    assert [tuple(result) for result in ours] == [tuple(result) for result in theirs]
    rolling = [("A text of its own.",), ("x",)]
    assert lm.loglikelihood_rolling(
        requests(rolling, "loglikelihood_rolling")
    ) == hf.loglikelihood_rolling(requests(rolling, "loglikelihood_rolling"))
    prompts = [("Say", {"until": ["\n"], "max_gen_toks": 6})]
    assert lm.generate_until(requests(prompts, "generate_until")) == hf.generate_until(
        requests(prompts, "generate_until")
    )


@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
def test_routed_scores_are_those_of_an_attached_model(
    arguments: dict[str, Any], tiny_base: Base, tiny_library: LibraryOf, gks: GksArrowLM
) -> None:
    setting = Setting.from_arguments(**arguments)
    gks.choose_scoring("plain")
    other = HFLM(str(tiny_base("phi3")), device="cpu", dtype="float32", batch_size=3)
    plain = scores(other.loglikelihood(requests(PAIRS)))
    attach(other.model, load_library(str(tiny_library("phi3"))), setting)
    expected = scores(other.loglikelihood(requests(PAIRS)))
    gks.apply(setting)
    found = scores(gks.loglikelihood(requests(PAIRS)))
    gks.choose_scoring(None)
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(found, plain, strict=True)) > 0.01


@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_packed_scores_are_the_plain_ones(
    arguments: dict[str, Any], batch_size: int | str, gks: GksArrowLM
) -> None:
    gks.apply(Setting.from_arguments(**arguments))
    gks.choose_scoring("plain")
    gks.choose_batch_size(1)
    expected: list[Any] = gks.loglikelihood(requests(PAIRS))
    gks.choose_scoring("packed")
    gks.choose_batch_size(batch_size)
    found: list[Any] = gks.loglikelihood(requests(PAIRS))
    assert gks.scoring == "packed"
    gks.choose_batch_size(3)
    assert scores(found) == pytest.approx(scores(expected), abs=1e-3)
    assert [result[1] for result in found] == [result[1] for result in expected]
    assert [result.tokens for result in found] == [result.tokens for result in expected]


def test_a_model_that_cannot_be_packed_is_scored_plain(
    tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    lm = GksArrowLM(
        str(tiny_base("phi3")), router=None, dtype="float32", mixed_precision_dtype="bfloat16"
    )
    before = lm.identity()
    lm.loglikelihood(requests(PAIRS[:1]))
    assert lm.get_model_info()["gks_eval"]["scoring"] == "plain"
    assert lm.identity() == before  # its own cache stays its own
    assert "scoring=plain instead of packed, because mixed_precision_dtype is set" in caplog.text


def test_generation_is_routed(gks: GksArrowLM, hf: HFLM) -> None:
    gks.apply(Setting.from_arguments(preset="exact"))
    prompts = [(text, {"until": ["\n"], "max_gen_toks": 12}) for text in ("Say", "One, two,", "Z")]
    routed = gks.generate_until(requests(prompts, "generate_until"))
    assert routed != hf.generate_until(requests(prompts, "generate_until"))
    # Greedy decoding with a cache, one token at a time, must be the argmax of full forwards.
    tokens = gks.tok_encode("Say")
    for _ in range(12):
        with torch.no_grad():
            tokens.append(int(gks.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == gks.eot_token_id:
            break
    text = gks.tok_decode(tokens[len(gks.tok_encode("Say")) :])
    assert routed[0] == text.split("\n")[0]


def test_results_count_their_tokens_and_survive_pickling(gks: GksArrowLM) -> None:
    for (_, continuation), result in zip(PAIRS, gks.loglikelihood(requests(PAIRS)), strict=True):
        assert len(result) == 2
        # One token a byte; a leading space belongs to the continuation.
        assert result.tokens == len(continuation.encode())  # type: ignore[attr-defined]
        again = pickle.loads(pickle.dumps(result))
        assert (again, again.tokens) == (result, result.tokens)  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", [512, 20])
def test_whole_text_scores_every_token_but_the_first(limit: int, gks: GksArrowLM) -> None:
    gks.apply(Setting.from_arguments())
    texts = [("<|user|>\nGoal<|end|>\n<|assistant|>", "yes<|end|>\n"), ("A", "b"), ("", "long" * 9)]
    asked: list[tuple[Any, ...]] = [whole_text(*text, limit) for text in texts]
    asked.insert(1, PAIRS[0])
    found: list[Any] = gks.loglikelihood(requests(asked))
    for (prompt, continuation), result in zip(texts, [found[0], *found[2:]], strict=True):
        tokens = gks.tokenizer(prompt + continuation)["input_ids"][:limit]
        with torch.no_grad():
            logits = gks.model(torch.tensor([tokens])).logits[0]
        steps = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])
        assert result[0] == pytest.approx(float(steps.sum()), abs=1e-3)
        assert result.tokens == len(tokens) - 1
    # Scored in another row than when alone, so equal to within rounding.
    (alone,) = gks.loglikelihood(requests(PAIRS[:1]))
    assert found[1][0] == pytest.approx(alone[0], abs=1e-4)
    assert found[1][1] == alone[1]


@pytest.mark.parametrize("scoring", ["packed", "plain"])
def test_tokens_whose_loss_is_exactly_zero_are_counted(scoring: str, gks: GksArrowLM) -> None:
    """A token 22 nats above the rest has a float32 loss of 0; counts against a naive loop."""
    gks.apply(Setting.from_arguments())
    gks.choose_scoring(scoring)
    texts = ["sees", "a tree", "eeeeeee", "dog", "e"]
    asked = [whole_text("<|user|>\nThe<|assistant|>", f"{text}<|end|>\n") for text in texts]
    with certain(gks, "e"):
        found: list[Any] = gks.loglikelihood(requests([*asked, *PAIRS]))
        expected = [token_losses(gks, prompt + text) for prompt, text, _ in asked]
    gks.choose_scoring(None)
    for result, losses in zip(found, expected, strict=False):
        assert result[0] == pytest.approx(-sum(losses), abs=1e-3)
        assert (result.tokens, result.nonzero) == (len(losses), sum(loss != 0 for loss in losses))
        assert result.nonzero < result.tokens
    assert all(0 < result.nonzero <= result.tokens for result in found[len(texts) :])


@pytest.mark.parametrize("limit", [512, 11, 9, 5])
@pytest.mark.parametrize("scoring", ["packed", "plain"])
def test_choice_text_scores_from_the_prompts_last_token(
    scoring: str, limit: int, gks: GksArrowLM
) -> None:
    """The prompt has 9 tokens: cut there, only its last one is scored, and before it nothing."""
    gks.apply(Setting.from_arguments())
    gks.choose_scoring(scoring)
    prompt, texts = "<|user|>\nGoal<|end|>\n<|assistant|>", {"yes<|end|>\n": 5, "no": 2, "": 0}
    protocol = {"protocol": "choice_text", "max_tokens": limit}
    asked = [(prompt, text, dict(protocol)) for text in texts]
    found: list[Any] = gks.loglikelihood(requests([*asked, PAIRS[0], ("", "ab", dict(protocol))]))
    gks.choose_scoring(None)
    for (text, tokens), result in zip(texts.items(), found, strict=False):
        assert result.tokens == max(0, min(limit, 9 + tokens) - 8)
        # The loss of token 8, from 0, is number 7: the first token has none.
        losses = token_losses(gks, prompt + text, limit)[7:]
        expected = -sum(losses) if losses else float("-inf")
        assert result[0] == pytest.approx(expected, abs=1e-3)
    assert found[-1].tokens == 1


def test_whole_texts_are_summed_in_float32(tiny_base: Base) -> None:
    """In bfloat16 a sum of hundreds of tokens would come in steps of several nats."""
    lm = GksArrowLM(str(tiny_base("phi3")), router=None, dtype="bfloat16")
    asked = [whole_text("word " * 60, letter) for letter in "abcdefgh"]
    found = scores(lm.loglikelihood(requests(asked)))
    assert max(found) < -512
    assert len({round(score * 4) for score in found}) > 4
    assert lm.softmax_dtype is None


def test_unknown_protocols_are_refused(gks: GksArrowLM) -> None:
    with pytest.raises(UsageError) as caught:
        gks.loglikelihood(requests([("a", "b", {"protocol": "other"})]))
    assert_sentence(caught.value, "other")


def test_a_cache_is_for_one_setting_alone(gks: GksArrowLM, hf: HFLM, tmp_path: Path) -> None:
    gks.apply(Setting.from_arguments(subtract="en"))
    fresh: list[Any] = gks.loglikelihood(requests(PAIRS))

    def cached(lm: Any, name: str) -> list[Any]:
        wrapped = CachingLM(lm, str(tmp_path / name))
        try:
            return wrapped.loglikelihood(requests(PAIRS))  # type: ignore[return-value]
        finally:
            wrapped.dbdict.close()
            lm.cache_hook = CacheHook(None)

    cached(gks, "ours.db")
    again = cached(gks, "ours.db")
    assert again == fresh
    assert [result.tokens for result in again] == [result.tokens for result in fresh]
    gks.apply(Setting.from_arguments(subtract="de"))
    with pytest.raises(UsageError) as caught:
        cached(gks, "ours.db")
    assert_sentence(caught.value, "ours.db", "another model or setting", "--use_cache")
    cached(hf, "theirs.db")
    with pytest.raises(UsageError) as unstamped:
        cached(gks, "theirs.db")
    assert_sentence(unstamped.value, "theirs.db", "no stamp")


@pytest.mark.parametrize("scoring", ["packed", "plain"])
def test_what_the_cache_holds_after_a_kill_has_its_counts(
    scoring: str, gks: GksArrowLM, tmp_path: Path
) -> None:
    """Partial results go into the cache during the run; they must be as good as final ones."""
    gks.choose_scoring(scoring)
    gks.apply(Setting.from_arguments())
    wrapped = CachingLM(gks, str(tmp_path / "partial.db"))
    gks.loglikelihood(requests(PAIRS))  # past the wrapper: only the hook writes
    kept = [value for value in wrapped.dbdict.values() if not isinstance(value, str)]
    wrapped.dbdict.close()
    gks.cache_hook = CacheHook(None)
    gks.choose_scoring(None)
    assert len(kept) == len(set(PAIRS))
    assert all(result.tokens > 0 for result in kept)


def test_identity_tells_settings_apart_and_nothing_else(gks: GksArrowLM) -> None:
    seen = {}
    for arguments in SETTINGS:
        gks.apply(Setting.from_arguments(**arguments))
        seen[str(arguments)] = gks.identity()
    assert len(set(seen.values())) == len(SETTINGS)
    gks.apply(Setting.from_arguments())
    gks.choose_batch_size(7)
    assert gks.identity() == seen["{}"]


def test_results_record_what_was_run(gks: GksArrowLM, tiny_library: LibraryOf) -> None:
    gks.apply(Setting.from_arguments(preset="exact", subtract="en"))
    info = gks.get_model_info()["gks_eval"]
    library = load_library(str(tiny_library("phi3")))
    assert info["setting"] == {
        "router": "arrow",
        "subtract": ["en"],
        "combine": "outputs",
        "rule": "delta",
        "top_k": 3,
        "temperature": 1.0,
    }
    assert info["library"]["content_hash"] == library.content_hash
    assert (info["family"], info["needs"]) == ("routers", "nothing")
    assert {"torch", "transformers", "lm-eval"} <= set(info["versions"])


def test_the_repr_is_one_line_and_follows_the_setting(gks: GksArrowLM) -> None:
    assert repr(gks) == f"GksArrowLM({gks.base.name!r}, {gks.attachment!r})"
    gks.apply(Setting(router="none"))
    assert repr(gks) == f"GksArrowLM({gks.base.name!r}, the base alone)"


def test_a_library_that_does_not_fit_leaves_the_setting_as_it_was(
    gks: GksArrowLM, tiny_library: LibraryOf
) -> None:
    gks.apply(Setting.from_arguments())
    before = scores(gks.loglikelihood(requests(PAIRS)))
    with pytest.raises(CompatibilityError):
        gks.apply(Setting.from_arguments(), load_library(str(tiny_library("llama"))))
    assert scores(gks.loglikelihood(requests(PAIRS))) == pytest.approx(before, abs=1e-4)


def test_a_setting_that_cannot_be_restored_leaves_the_base(
    gks: GksArrowLM, hf: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    gks.apply(Setting.from_arguments())
    with monkeypatch.context() as patched:
        patched.setattr("gks_eval.model.inject.build", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gks.apply(Setting.from_arguments(subtract="en"))
    assert (gks.setting.router, gks.attachment) == ("none", None)
    base = scores(hf.loglikelihood(requests(PAIRS)))
    assert scores(gks.loglikelihood(requests(PAIRS))) == pytest.approx(base, abs=1e-4)
    gks.apply(Setting.from_arguments())
    assert gks.attachment is not None


def test_a_swap_lets_go_of_the_cache(gks: GksArrowLM, tmp_path: Path) -> None:
    gks.apply(Setting.from_arguments())
    wrapped = CachingLM(gks, str(tmp_path / "swap.db"))
    gks.apply(Setting.from_arguments(subtract="en"))
    gks.loglikelihood(requests(PAIRS))
    assert [key for key in wrapped.dbdict if not key.startswith("gks_eval:")] == []
    wrapped.dbdict.close()


def test_swapping_settings_leaves_nothing_behind(gks: GksArrowLM, hf: HFLM) -> None:
    first = {}
    for arguments in SETTINGS:
        gks.apply(Setting.from_arguments(**arguments))
        first[str(arguments)] = scores(gks.loglikelihood(requests(PAIRS)))
    for arguments in reversed(SETTINGS):
        gks.apply(Setting.from_arguments(**arguments))
        again = scores(gks.loglikelihood(requests(PAIRS)))
        assert again == pytest.approx(first[str(arguments)], abs=1e-4)
    gks.apply(Setting.from_arguments(router=None))
    base = scores(hf.loglikelihood(requests(PAIRS)))
    assert scores(gks.loglikelihood(requests(PAIRS))) == pytest.approx(base, abs=1e-4)
    for name, weight in gks.model.state_dict().items():
        assert torch.equal(weight, hf.model.state_dict()[name])
