"""The packed scorer in lm-eval's model class: tokens, batch sizes, rolling texts, generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gks_eval.method.setting import Setting
from gks_eval.model.lm import GksArrowLM

Base = Callable[[str], Path]
LibraryOf = Callable[..., Path]


def instances(arguments: list[tuple[Any, ...]], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, one, 0) for one in arguments]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def gks(tiny_base: Base, tiny_library: LibraryOf) -> GksArrowLM:
    return GksArrowLM(library=str(tiny_library("phi3")), dtype="float32", batch_size=3)


@pytest.fixture(scope="module")
def hf(tiny_base: Base) -> HFLM:
    return HFLM(str(tiny_base("phi3")), device="cpu", dtype="float32", batch_size=3)


# Trailing spaces move to the continuation; a text that starts with the prefix token gets no other.
context = st.text("ab <é東\n", max_size=6) | st.sampled_from(["<|endoftext|>Q:", "Q: \n ", "  "])
continuation = st.text("ab <é東\n", min_size=1, max_size=6) | st.just("<|endoftext|>yes")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(context, continuation), min_size=1, max_size=12), st.booleans())
def test_texts_are_tokenised_as_one_by_one(gks, hf, texts, adds_bos):
    asked = [(c, t) if c.strip() or not c else ("Q", t) for c, t in texts]
    expected: list[Any] = []
    hf.add_bos_token = gks.add_bos_token = adds_bos or None
    # lm-eval's own way, text by text, caught where it hands the tokens to its scorer.
    hf._loglikelihood_tokens = lambda requests, **_: (
        expected.extend(requests) or [None] * len(requests)
    )
    hf.loglikelihood(instances(asked), disable_tqdm=True)
    del hf._loglikelihood_tokens
    found = gks.token_pairs(instances(asked))
    gks.add_bos_token = None
    assert [(c, t) for c, t in found] == [(c, t) for _, c, t in expected]


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_rolling_texts_agree_with_hf(batch_size: Any, gks: GksArrowLM, hf: HFLM) -> None:
    texts = [("A text that is longer than one window. " * 30,), ("short",), ("x",)]
    gks.apply(Setting.from_arguments(router=None))
    gks.choose_batch_size(batch_size)
    found = gks.loglikelihood_rolling(instances(texts, "loglikelihood_rolling"))
    gks.choose_batch_size(3)
    expected = hf.loglikelihood_rolling(instances(texts, "loglikelihood_rolling"))
    assert found == pytest.approx(expected, abs=2e-3, rel=1e-5)


def test_on_a_cpu_auto_does_not_try_the_greatest_length(gks: GksArrowLM) -> None:
    calls: list[tuple[int, ...]] = []
    hook = gks.model.register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append(tuple((kwargs.get("input_ids", *args)).shape)),
        with_kwargs=True,
    )
    gks.choose_batch_size("auto")
    prompts = [(text, {"until": ["\n"], "max_gen_toks": 3}) for text in ("one", "three", "two")]
    gks.generate_until(instances(prompts, "generate_until"))
    gks.choose_scoring("plain")
    gks.loglikelihood(instances([("Q: what?", " this"), ("Q: what?", " that one")]))
    gks.choose_scoring(None)
    gks.choose_batch_size(3)
    hook.remove()
    assert calls
    assert max(rows * length for rows, length in calls) < 200


@pytest.mark.parametrize("setting", [{}, {"preset": "exact", "subtract": "en"}], ids=str)
def test_generation_in_batches_is_generation_one_by_one(
    setting: dict[str, Any], gks: GksArrowLM
) -> None:
    """Padding on the left must not change what is routed where."""
    gks.apply(Setting.from_arguments(**setting))
    texts = ["Say", "One, two, three and", "A much longer prompt than all the others here", "Z"]
    asked = instances(
        [(text, {"until": ["\n"], "max_gen_toks": 10}) for text in texts], "generate_until"
    )
    gks.choose_batch_size(1)
    alone = [gks.generate_until([one])[0] for one in asked]
    gks.choose_batch_size(4)
    assert gks.generate_until(asked) == alone
    gks.choose_batch_size(3)


def test_rows_end_at_their_own_stop_strings(gks: GksArrowLM) -> None:
    """A batch is over once all rows have ended, and its texts are those of rows that run alone."""
    gks.apply(Setting.from_arguments())
    texts = ["Say", "One, two, three and", "A much longer prompt than all the others here"]

    def asked(*stops: list[str]) -> list[Instance]:
        return instances(
            [(text, {"until": [*until], "max_gen_toks": 12}) for text in texts for until in stops],
            "generate_until",
        )

    gks.choose_batch_size(3)
    free = gks.generate_until(asked([]))
    # For each row a stop string that no other row produces.
    own = [
        next(c for c in text[1:] if c.isascii() and "".join(free).count(c) == text.count(c))
        for text in free
    ]
    gks.choose_batch_size(1)
    alone = [gks.generate_until([one])[0] for one in asked(own, own[:1])]
    gks.choose_batch_size(3)
    assert gks.generate_until(asked(own, own[:1])) == alone
    assert alone[::2] != free
    steps: list[int] = []
    hook = gks.model.register_forward_hook(lambda *_: steps.append(1))
    assert gks.generate_until(asked(own)) == alone[::2]
    assert len(steps) < 12
    # Without a batch size from the user, a CPU generates in batches.
    gks._batch_size_chosen = False
    gks.batch_size_per_gpu = 1
    steps.clear()
    assert gks.generate_until(asked([])) == free
    hook.remove()
    assert len(steps) <= 12
    assert gks.batch_size_per_gpu == 1
    gks.choose_batch_size(3)


@pytest.mark.parametrize(
    "how", [{"do_sample": True, "temperature": 0.7}, {"temperature": 0.0}, {"do_sample": False}]
)
def test_generation_options_are_those_of_hf(how: dict[str, Any], gks: GksArrowLM, hf: HFLM) -> None:
    gks.apply(Setting.from_arguments(router=None))
    asked = [(text, {"until": ["\n"], "max_gen_toks": 8, **how}) for text in ("Say", "One", "Z")]
    found = []
    for lm in (gks, hf):
        torch.manual_seed(0)
        found.append(lm.generate_until(instances(asked, "generate_until"), disable_tqdm=True))
    assert found[0] == found[1]


class Bar:
    """tqdm, as far as it is used, with its updates kept."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, total: int, disable: bool, desc: str, **_: Any) -> None:
        self.total, self.disable, self.desc = total, disable, desc
        self.updates: list[int] = []
        self.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, number: int) -> None:
        self.updates.append(number)


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood_rolling", "loglikelihood"])
def test_a_bar_advances_within_a_batch(
    kind: str, gks: GksArrowLM, hf: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ({"until": ["no such text"], "max_gen_toks": 12},) if kind == "generate_until" else ()
    how = (" and so on",) if kind == "loglikelihood" else how
    texts = [(f"A text, number {n}, of some length" * (1 + n % 3), *how) for n in range(6)]
    gks.apply(Setting.from_arguments(router=None))
    gks.choose_batch_size(6)
    expected = getattr(hf, kind)(instances(texts, kind))
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr("gks_eval.model.progress_lm.tqdm", Bar)
    found = getattr(gks, kind)(instances(texts, kind))
    quiet = getattr(gks, kind)(instances(texts, kind), disable_tqdm=True)
    gks.choose_batch_size(3)
    if kind == "generate_until":
        assert found == expected
    else:
        flat = [one[0] if kind == "loglikelihood" else one for one in found]
        theirs = [one[0] if kind == "loglikelihood" else one for one in expected]
        assert flat == pytest.approx(theirs, abs=2e-3)
    assert quiet == found
    shown, hidden = (
        bar for bar in Bar.made if bar.desc == f"Running {kind} requests"
    )  # rolling texts have their windows scored without one
    assert (shown.total, sum(shown.updates), shown.disable) == (6, 6, False)
    assert len(shown.updates) > 1 if kind != "generate_until" else len(shown.updates) >= 5
    assert hidden.disable
    assert not hidden.updates


@pytest.mark.parametrize("scoring", ["packed", "plain"])
@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood_rolling", "loglikelihood"])
def test_tqdms_variable_hides_all_bars(
    kind: str,
    scoring: str,
    gks: GksArrowLM,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = ({"until": ["no such text"], "max_gen_toks": 1},) if kind == "generate_until" else ()
    how = (" and so on",) if kind == "loglikelihood" else how
    monkeypatch.setattr(gks, "scoring", scoring)
    drawn = []
    for value in ("", "1"):
        monkeypatch.setenv("TQDM_DISABLE", value)
        getattr(gks, kind)(instances([("A text", *how)], kind))
        drawn.append("it/s]" in capsys.readouterr().err)
    assert drawn == [True, False]
