"""The controls of a setting on a library, each against its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from common import dense

from gks_eval.errors import UsageError
from gks_eval.library.load import Library, load_library
from gks_eval.method.lora import LoraPair
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach


@pytest.fixture
def library(tiny_library: Callable[..., Path]) -> Library:
    return load_library(str(tiny_library("phi3")))


def parse(text: str) -> Setting:
    return Setting.parse(text)[0]


def layer(library: Library, text: str, at: int = 0) -> tuple[list[LoraPair], list[LoraPair]]:
    return library.layer(library.modules[at], library.check(parse(text)))


def own(library: Library, at: int = 0) -> tuple[list[LoraPair], list[LoraPair]]:
    module = library.modules[at]
    return (
        [adapter.pairs[module] for adapter in library.experts.values()],
        [adapter.pairs[module] for adapter in library.general.values()],
    )


def mean_factors(pairs: list[LoraPair]) -> tuple[torch.Tensor, torch.Tensor]:
    return sum(p.A.double() for p in pairs) / len(pairs), sum(p.B.double() for p in pairs) / len(
        pairs
    )


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-6)


def test_a_random_general_has_the_norms_of_the_mean_factors(library: Library) -> None:
    experts, (drawn,) = layer(library, "gks:avg;general=random;seed=1")
    tasks, general = own(library)
    A, B = mean_factors(general)
    close(drawn.A.double().norm(), A.norm())
    close(drawn.B.double().norm(), B.norm())
    assert [pair.A for pair in experts] == [pair.A for pair in tasks] or all(
        torch.equal(a.A, b.A) for a, b in zip(experts, tasks, strict=True)
    )
    assert abs(torch.nn.functional.cosine_similarity(drawn.A.flatten(), A.flatten(), 0)) < 0.5


def test_a_random_general_has_the_norm_of_the_mean_update_under_delta(library: Library) -> None:
    _, (drawn,) = layer(library, "gks:avg;preset=exact;general=random")
    _, general = own(library)
    mean = sum(dense(pair) for pair in general) / len(general)
    close(dense(drawn).norm(), mean.norm())


def test_a_rotated_general_keeps_the_singular_values(library: Library) -> None:
    for text, update in (
        ("gks:avg;general=rotated", None),
        ("gks:avg;preset=exact;general=rotated", "mean"),
    ):
        _, (turned,) = layer(library, text)
        _, general = own(library)
        A, B = mean_factors(general)
        expected = (
            sum(dense(pair) for pair in general) / len(general)
            if update
            else general[0].scaling * B @ A
        )
        close(torch.linalg.svdvals(dense(turned)), torch.linalg.svdvals(expected))


def test_a_permuted_general_is_that_of_another_layer_of_the_shape(library: Library) -> None:
    setting = library.check(parse("gks:en;general=permuted"))
    sources = {}
    for module in library.modules:
        _, (pair,) = library.layer(module, setting)
        (sources[module],) = (
            name for name, one in library.general["en"].pairs.items() if one is pair
        )
    shape = library.shapes
    assert sorted(sources.values()) == sorted(library.modules)
    assert all(shape[a] == shape[b] for a, b in sources.items())
    alone = [n for n in shape if list(shape.values()).count(shape[n]) == 1]
    assert [a for a, b in sources.items() if a == b] == alone


def test_an_expert_stands_in_for_the_general_adapter(library: Library) -> None:
    name = list(library.experts)[1]
    _, (pair,) = layer(library, f"gks:avg;general=expert:{name}")
    assert pair is library.experts[name].pairs[library.modules[0]]


@pytest.mark.parametrize("rule", ["factors", "delta"])
def test_every_expert_loses_the_next_one(library: Library, rule: str) -> None:
    residuals, nothing = layer(library, f"gks:avg;rule={rule};combine=outputs;general=other")
    tasks, _ = own(library)
    assert nothing == []
    for at, residual in enumerate(residuals):
        task, after = tasks[at], tasks[(at + 1) % len(tasks)]
        if rule == "delta":
            close(dense(residual), dense(task) - dense(after))
        else:
            close(residual.A, task.A - after.A)
            close(residual.B, task.B - after.B)


def test_random_experts_keep_their_norms_and_the_rule_still_subtracts(library: Library) -> None:
    tasks, general = own(library)
    experts, subtracted = layer(library, "gks:avg;experts=random")
    assert all(a is b for a, b in zip(subtracted, general, strict=True))
    for drawn, task in zip(experts, tasks, strict=True):
        close(drawn.A.norm(), task.A.norm())
        close(drawn.B.norm(), task.B.norm())
    experts, _ = layer(library, "gks:avg;preset=exact;experts=random")
    for drawn, task in zip(experts, tasks, strict=True):
        close(dense(drawn).norm(), dense(task).norm())
    assert len({tuple(pair.A.flatten()[:3].tolist()) for pair in experts}) == len(tasks)


@pytest.mark.parametrize("text", ["arrow;experts=rescaled", "gks:avg;experts=rescaled"])
def test_rescaled_experts_have_the_norms_of_their_residuals(library: Library, text: str) -> None:
    experts, nothing = layer(library, text)
    tasks, general = own(library)
    A, B = mean_factors(general)
    assert nothing == []
    for made, task in zip(experts, tasks, strict=True):
        residual = task.scaling * (task.B.double() - B) @ (task.A.double() - A)
        close(dense(made), dense(task) * residual.norm() / dense(task).norm())


CONTROLS = [
    *(f"gks:avg;general={word}" for word in ("random", "rotated", "permuted", "other")),
    "gks:avg;general=expert:beta", "gks:avg;experts=random", "gks:avg;experts=rescaled",
    "gks:avg;preset=exact;general=other", "merge:mean;subtract=avg;general=random",
    "expert:alpha;experts=random", "shuffled:avg", "random:avg",
]  # fmt: skip


def test_controls_change_a_models_logits_and_do_not_vary(
    library: Library, tiny_model: Callable[..., torch.nn.Module]
) -> None:
    model = tiny_model("phi3")
    tokens = torch.arange(12).reshape(2, 6)
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad(), attach(model, library, "gks:avg") as attachment:
        found["gks:avg"] = model(tokens).logits
        for text in CONTROLS:
            attachment.apply(text)
            found[text] = model(tokens).logits
            assert attachment.starts is None or "general" not in text
        for text in ("gks:avg", *CONTROLS):
            attachment.apply(text)
            torch.testing.assert_close(model(tokens).logits, found[text], rtol=0, atol=0)
    assert all(logits.isfinite().all() for logits in found.values())
    texts = list(found)
    for at, one in enumerate(texts):
        for other in texts[:at]:
            assert not torch.equal(found[one], found[other]), (one, other)


def test_draws_differ_between_layers_and_seeds(library: Library) -> None:
    drawn = [
        layer(library, f"gks:avg;general=random;seed={seed}", at)[1][0].A
        for seed, at in ((0, 0), (0, 0), (1, 0), (0, len(library.modules) // 2))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape != drawn[3].shape or not torch.equal(drawn[0], drawn[3])


def test_identities_say_what_stands_in() -> None:
    plain = parse("gks:avg").identity()
    assert parse("gks:avg;general=own;experts=own").identity() == plain
    assert not {"general", "experts", "seed"} & plain.keys()
    random = parse("gks:avg;general=random;seed=2").identity()
    assert random == {**plain, "general": "random", "seed": 2}
    assert parse("arrow;experts=rescaled").identity() == {**plain, "experts": "rescaled"}
    assert Setting(**parse("gks:avg;general=random").model_dump()) == parse(
        "gks:avg;general=random"
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("arrow;general=random", "replaces what is subtracted, but nothing is"),
        ("gks:avg;general=rnadom", "needs one of own, random, rotated, permuted, other"),
        ("gks:avg;experts=all", "needs one of own, random, rescaled"),
        ("gks:avg;general=random;seed=-1", "seed=-1: needs a whole number of at least 0"),
        ("gks:avg;general=expert:alhpa", "has no such expert; did you mean 'alpha'"),
    ],
)
def test_bad_stand_ins_are_one_sentence(library: Library, text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        library.check(parse(text))


@pytest.mark.parametrize(
    ("text", "ordered"),
    [
        ("random", True), ("gks:avg;general=other", True), ("merge:dare_linear", True),
        ("arrow", False), ("gks:avg", False), ("merge:mean", False), ("uniform", False),
    ],
)  # fmt: skip
def test_the_order_of_the_experts_counts_where_draws_follow_it(
    library: Library, text: str, ordered: bool
) -> None:
    experts = dict(reversed(library.experts.items()))
    turned = replace(library, experts=experts)
    setting = library.check(parse(text))
    assert (library.content_of(setting) != turned.content_of(setting)) is ordered
