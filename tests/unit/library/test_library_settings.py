"""Which adapters a setting takes, and the settings that a library cannot run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from common import MIXED, assert_sentence, dense, relative_error, save_library

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.library.library import Library
from gks_eval.library.load import MANIFEST, load_library
from gks_eval.method.build import residual_pairs
from gks_eval.method.lora import LoraPair
from gks_eval.method.setting import Setting


def test_layers_for_a_setting(tiny_library: Callable[..., Path]) -> None:
    library = load_library(str(tiny_library("phi3")))
    module = library.modules[0]

    def names(setting: Setting) -> tuple[list[str], list[str]]:
        experts, general = library.layer(module, setting)
        return (
            [n for pair in experts for n, a in library.experts.items() if a.pairs[module] is pair],
            [n for pair in general for n, a in library.general.items() if a.pairs[module] is pair],
        )

    every = ["alpha", "beta", "gamma", "delta"]
    assert names(Setting()) == (every, ["en", "de", "fr"])
    assert names(Setting(subtract=("fr", "en"))) == (every, ["fr", "en"])
    assert names(Setting(router="uniform", subtract=())) == (every, [])
    assert names(Setting(router="gamma", subtract=("de",))) == (["gamma"], ["de"])
    assert library.chosen_experts(Setting(router="none")) == ()


def residuals(library: Library, module: str, text: str) -> list[LoraPair]:
    setting = library.check(Setting.parse(text)[0])
    return residual_pairs(*library.layer(module, setting), setting)


@pytest.mark.parametrize(
    "text", ["gks:experts", "uniform:experts", "expert:gamma;subtract=experts"]
)
def test_the_mean_of_the_experts_is_subtracted(
    text: str, tiny_library: Callable[..., Path]
) -> None:
    """As `factorize_average_lora` of the authors' code: A_e - mean(A), B_e - mean(B)."""
    library = load_library(str(tiny_library("phi3")))
    for module in library.modules:
        every = {name: adapter.pairs[module] for name, adapter in library.experts.items()}
        mean_A = sum(pair.A for pair in every.values()) / 4
        mean_B = sum(pair.B for pair in every.values()) / 4
        chosen = ["gamma"] if "gamma" in text else list(every)
        for name, found in zip(chosen, residuals(library, module, text), strict=True):
            assert relative_error(found.A, every[name].A - mean_A) < 1e-6
            assert relative_error(found.B, every[name].B - mean_B) < 1e-6


def test_the_mean_of_the_experts_under_the_other_rules(tiny_library: Callable[..., Path]) -> None:
    library = load_library(str(tiny_library("phi3")))
    module = library.modules[0]
    every = [adapter.pairs[module] for adapter in library.experts.values()]
    exact = residuals(library, module, "gks:experts;preset=exact")
    mean = sum(dense(pair) for pair in every) / 4
    for pair, found in zip(every, exact, strict=True):
        assert relative_error(dense(found), dense(pair) - mean) < 1e-6
    # The parts that the mean spans are gone.
    mean_A = sum(pair.A for pair in every) / 4
    for found in residuals(library, module, "gks:experts;rule=orthogonal"):
        assert float((found.A @ mean_A.T).abs().max()) < 1e-5


@pytest.mark.parametrize("source", ["en", "en+fr", "avg", "experts"])
def test_cross_lingual_experts(source: str, tiny_library: Callable[..., Path]) -> None:
    """As in the authors' code: half the residual and half the target language, on A and on B."""
    library = load_library(str(tiny_library("phi3")))
    kinds = {"avg": list(library.general.values()), "experts": list(library.experts.values())}
    named = kinds.get(source) or [library.general[name] for name in source.split("+")]
    for keep, add, more in ((0.5, 0.5, ""), (0.25, 2.0, ";keep=0.25;add=2")):
        text = f"gks:{source};rule=cross_lingual;target=de{more}"
        for module in library.modules:
            german = library.general["de"].pairs[module]
            found = residuals(library, module, text)
            for adapter, residual in zip(library.experts.values(), found, strict=True):
                task = adapter.pairs[module]
                for factor in ("A", "B"):
                    mean = sum(getattr(one.pairs[module], factor) for one in named) / len(named)
                    expected = keep * (getattr(task, factor) - mean) + add * getattr(german, factor)
                    assert relative_error(getattr(residual, factor), expected) < 1e-6
                assert residual.scaling == task.scaling


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        (Setting(router="alhpa"), ["router=alhpa", "did you mean 'alpha'"]),
        (Setting(router="arow"), ["router=arow", "did you mean 'arrow'"]),
        (Setting(router="zzz"), ["router=zzz", "known: alpha, arrow, beta, delta, gamma"]),
        (Setting(router=""), ["router= is neither"]),
        (Setting(subtract=("it",)), ["subtract=it", "known: en, de, fr"]),
        (Setting(subtract=("en", "xx")), ["subtract=xx", "known: en, de, fr"]),
        (Setting(rule="cross_lingual"), ["rule=cross_lingual", "target=de"]),
        (Setting(rule="cross_lingual", subtract=(), target="de"), ["rule=cross_lingual"]),
        (Setting(rule="cross_lingual", target="it"), ["target=it", "known: en, de, fr"]),
        (Setting(rule="cross_lingual", target="de", general="random"), ["has no controls"]),
        (Setting(top_k=5), ["top_k=5 is above the 4 experts", "use at most that many"]),
    ],
)
def test_settings_that_the_library_cannot_run(
    setting: Setting, parts: list[str], tiny_library: Callable[..., Path]
) -> None:
    library = load_library(str(tiny_library("phi3")))
    with pytest.raises(UsageError) as caught:
        library.check(setting)
    assert_sentence(caught.value, *parts)


def test_the_mean_of_one_expert_is_not_subtracted(tiny_library: Callable[..., Path]) -> None:
    library = load_library(str(tiny_library("phi3", experts=("alpha",))))
    with pytest.raises(UsageError) as caught:
        library.check(Setting(subtract=("experts",)))
    assert_sentence(caught.value, "subtract=experts", library.name, "needs two")


def test_settings_that_it_can(tiny_library: Callable[..., Path]) -> None:
    library = load_library(str(tiny_library("phi3")))
    for setting in (
        Setting(),
        Setting(top_k=4),
        Setting(router="uniform", top_k=99),
        Setting(router="alpha", top_k=99),
        Setting(router="none", subtract=("xx",), top_k=99),
    ):
        library.check(setting)


def test_the_default_top_k_is_at_most_the_number_of_experts(
    tiny_library: Callable[..., Path],
) -> None:
    two = load_library(str(tiny_library("phi3", experts=("alpha", "beta"))))
    four = load_library(str(tiny_library("phi3")))
    for given in (Setting(), Setting.from_arguments(subtract="en"), Setting.parse("gks:en")[0]):
        checked = two.check(given)
        assert checked.top_k == 2
        assert checked.identity() == Setting(subtract=given.subtract, top_k=2).identity()
        # Identities of 0.1 hold a top_k of 3.
        assert four.check(given).identity()["top_k"] == 3
    assert two.check(Setting(top_k=1)).top_k == 1
    for explicit in (Setting(top_k=3), Setting.parse("arrow;top_k=3")[0]):
        with pytest.raises(UsageError, match="top_k=3 is above the 2 experts"):
            two.check(explicit)


def test_a_library_without_general_adapters(
    tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    folder = Path(shutil.copytree(tiny_library("phi3"), tmp_path / "mine"))
    content = yaml.safe_load((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(yaml.safe_dump(content | {"general": {}}), "utf-8")
    library = load_library(str(folder))
    library.check(Setting(subtract=()))
    for word in ("avg", "en"):
        with pytest.raises(UsageError) as caught:
            library.check(Setting(subtract=(word,)))
        assert_sentence(caught.value, f"subtract={word}", library.name)


@pytest.mark.parametrize(
    ("adapters", "what"),
    [
        ({"beta": {"r": 2, "lora_alpha": 8}}, ("one rank, not ", "2")),
        ({"beta": {"use_rslora": True}}, ("one scaling, not ", "8")),
    ],
)
def test_unequal_experts(
    adapters: dict[str, Any],
    what: tuple[str, str],
    tmp_path: Path,
    tiny_base: Callable[[str], Path],
) -> None:
    folder = save_library(
        tmp_path, tiny_base("phi3"), "phi3", experts=("alpha", "beta"), general=("en",),
        adapters=adapters,
    )  # fmt: skip
    library = load_library(str(folder))
    for allowed in (
        Setting(rule="delta", combine="outputs", top_k=2),
        Setting(rule="factors", combine="outputs", subtract=(), top_k=2),
        Setting(router="alpha"),
        *(Setting(router=f"merge:{name}", subtract=()) for name in ANY_RANK),
        Setting(router="merge:ties", on="delta", subtract=()),
        Setting(router="merge:mean", rule="pico"),
    ):
        library.check(allowed)
    for merge in ("ties", "dare_linear", "dare_ties", "magnitude_prune"):
        with pytest.raises(CompatibilityError) as caught:
            library.check(Setting(router=f"merge:{merge}", subtract=()))
        assert_sentence(caught.value, "'beta'", f"merge:{merge}", *what, "on=delta allows")
    for refused, why in (
        (Setting(top_k=2), "combine=factors"),
        (Setting(rule="delta", top_k=2), "combine=factors"),
        (Setting(combine="outputs", top_k=2), "rule=factors"),
        (Setting(router="beta", rule="orthogonal"), "rule=orthogonal"),
    ):
        with pytest.raises(CompatibilityError) as caught:
            library.check(refused)
        assert_sentence(
            caught.value, library.name, "'beta'", "model.layers.0", why, *what, "preset=exact"
        )


ANY_RANK = ("mean", "task_arithmetic", "svd", "tsv", "knots", "core_space")
MIXED_SETTINGS = [
    ("arrow;preset=exact", ()),
    ("gks:avg;preset=exact", ()),
    ("merge:mean;subtract=avg;rule=delta", ()),
    ("arrow;preset=peft", ()),
    ("expert:beta", ()),
    # Nothing is subtracted from an expert where it updates nothing.
    ("expert:alpha;subtract=en", ()),
    ("arrow", ("'alpha' and 'gamma' at model.layers.0.mlp.down_proj, which 'alpha'", "factors")),
    ("gks:en;rule=delta", ("'alpha' and 'gamma' at model.layers.0.mlp.down_proj", "combine=")),
    ("gks:en;preset=peft", ("'beta' and 'en' at model.layers.0.mlp.up_proj, which 'en'", "rule=")),
    ("expert:delta;subtract=en;rule=orthogonal", ("'delta' and 'en'", "rule=orthogonal needs")),
]


@pytest.mark.parametrize(("text", "parts"), MIXED_SETTINGS)
def test_adapters_of_different_layers(
    text: str, parts: tuple[str, ...], tiny_library: Callable[..., Path]
) -> None:
    library = load_library(str(tiny_library("llama", adapters=MIXED)))
    setting, _ = Setting.parse(text)
    if not parts:
        library.check(setting)
        return
    with pytest.raises(CompatibilityError) as caught:
        library.check(setting)
    assert_sentence(caught.value, library.name, *parts, "does not update", "preset=exact")
