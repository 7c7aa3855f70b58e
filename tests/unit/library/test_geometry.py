"""Library geometry against updates written out in full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from common import MIXED, assert_sentence, dense, random_pair
from oracle import residual_dense

from gks_eval.errors import UsageError
from gks_eval.evidence.observed import LibraryGeometry
from gks_eval.library.geometry import library_geometry, summary
from gks_eval.library.load import Library, load_library
from gks_eval.method.lora import LoraPair, average_factors, inner_product

LibraryOf = Callable[..., Path]


@pytest.fixture(scope="module")
def library(tiny_library: LibraryOf) -> Library:
    return load_library(str(tiny_library("phi3")))


def full(library: Library, rule: str | None, languages: list[str]) -> dict[str, list[torch.Tensor]]:
    """Every expert's (residual) updates, one matrix a layer."""
    updates: dict[str, list[torch.Tensor]] = {}
    for name, adapter in library.experts.items():
        updates[name] = []
        for module in library.modules:
            task = library.pair(adapter, module)
            general = [library.pair(library.general[language], module) for language in languages]
            updates[name].append(
                dense(task) if rule is None else residual_dense(task, general, rule)
            )
    return updates


def cosine(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    a, b = (torch.cat([matrix.flatten() for matrix in side]) for side in (one, other))
    return float(a @ b / (a.norm() * b.norm()))


def test_inner_product_is_that_of_the_full_matrices() -> None:
    one, other = random_pair(rank=3, seed=1), random_pair(rank=5, scaling=0.5, seed=2)
    assert inner_product(one, other) == pytest.approx(float((dense(one) * dense(other)).sum()))


@pytest.mark.parametrize("languages", [["en"], ["en", "de", "fr"]], ids=str)
def test_norms_and_cosines(library: Library, languages: list[str]) -> None:
    found = library_geometry(library, languages)
    names = list(library.experts)
    plain = full(library, None, languages)
    LibraryGeometry.model_validate(found)  # what the report reads
    assert found["norm"] == {
        name: pytest.approx([float(matrix.norm()) for matrix in plain[name]]) for name in names
    }
    general = {
        name: [dense(adapter.pairs[module]) for module in library.modules]
        for name, adapter in library.general.items()
    }
    for row, name in zip(found["cosine_general"], names, strict=True):
        assert row == pytest.approx([cosine(plain[name], other) for other in general.values()])
    for rule in ("factors", "delta", "orthogonal"):
        residuals = full(library, rule, languages)
        assert found["residual_norm"][rule] == {
            name: pytest.approx([float(matrix.norm()) for matrix in residuals[name]], rel=1e-5)
            for name in names
        }
        for row, one in zip(found["cosine_experts"][rule], names, strict=True):
            expected = [cosine(residuals[one], residuals[other]) for other in names]
            assert row == pytest.approx(expected, abs=1e-5)
    by_factors, exact = full(library, "factors", languages), full(library, "delta", languages)
    for name in names:
        expected = [
            float((f - d).norm() / d.norm())
            for f, d in zip(by_factors[name], exact[name], strict=True)
        ]
        assert found["rule_distance"][name] == pytest.approx(expected, rel=1e-4)


def test_prototype_similarity_is_the_mean_over_layers(library: Library) -> None:
    found = library_geometry(library)["prototype_similarity"]["none"]
    names = list(library.experts)
    updates = full(library, None, [])
    tops = {name: [torch.linalg.svd(matrix)[2][0] for matrix in updates[name]] for name in names}
    for row, one in zip(found, names, strict=True):
        expected = [
            sum(abs(float(a @ b)) for a, b in zip(tops[one], tops[other], strict=True))
            / len(library.modules)
            for other in names
        ]
        assert row == pytest.approx(expected, abs=1e-4)


def test_the_summary_averages_pairs_of_different_experts(library: Library) -> None:
    geometry = library_geometry(library, ["en"])
    rules = {row.rule: row for row in summary(geometry)}
    assert list(rules) == ["none", "factors", "delta", "orthogonal"]
    table = geometry["cosine_experts"]["delta"]
    pairs = [table[a][b] for a in range(4) for b in range(4) if a != b]
    assert rules["delta"].cosine == pytest.approx(sum(pairs) / len(pairs))


def test_an_even_mixture_is_of_factors_or_of_updates(library: Library) -> None:
    found = library_geometry(library, ["en"])
    rows = {row.rule: row for row in summary(found)}
    for rule in ("none", "factors", "delta", "orthogonal"):
        residuals = full(library, None if rule == "none" else rule, ["en"]).values()
        updates = [sum(layer) / len(layer) for layer in zip(*residuals, strict=True)]
        norms = [float(update.norm()) for update in updates]
        assert found["mixture_norm"][rule]["outputs"] == pytest.approx(norms, rel=1e-5)
        whole = float(torch.cat([update.flatten() for update in updates]).norm())
        assert rows[rule].mixture["outputs"] == pytest.approx(whole, rel=1e-5)
    by_factors = []
    for module in library.modules:
        pairs = [adapter.pairs[module] for adapter in library.experts.values()]
        A, B = (sum(getattr(pair, side).double() for pair in pairs) / len(pairs) for side in "AB")
        by_factors.append(pairs[0].scaling * float((B @ A).norm()))
    assert found["mixture_norm"]["none"]["factors"] == pytest.approx(by_factors)


def test_an_even_mixture_of_independent_experts_keeps_what_the_documents_say() -> None:
    """docs/method.md: 1/E of an expert's norm by ``factors``, 1/sqrt(E) by ``outputs``."""
    torch.manual_seed(0)
    size = 9
    experts = [LoraPair(torch.randn(4, 600), torch.randn(500, 4)) for _ in range(size)]
    one = sum(float(dense(expert).norm()) for expert in experts) / size
    by_factors = dense(average_factors(experts)).norm()
    by_outputs = sum(dense(expert) for expert in experts).norm() / size
    assert float(by_factors) == pytest.approx(one / size, rel=0.05)
    assert float(by_outputs) == pytest.approx(one / size**0.5, rel=0.05)


def test_unequal_ranks_leave_out_the_rules_that_need_equal_ones(tiny_library: LibraryOf) -> None:
    uneven = tiny_library("phi3", experts=("a", "b"), adapters={"b": {"r": 2}}, seed=7)
    found = library_geometry(load_library(str(uneven)))
    assert list(found["residual_norm"]) == ["delta"]
    assert found["rule_distance"] == {}
    assert list(found["mixture_norm"]["none"]) == ["outputs"]
    assert list(summary(found)[0].mixture) == ["outputs"]


def test_a_mixture_of_factors_needs_equal_ranks_at_every_layer(tiny_library: LibraryOf) -> None:
    one_layer = {"b": {"rank_pattern": {"layers.1.self_attn.o_proj": 2}}}
    uneven = tiny_library("phi3", experts=("a", "b"), adapters=one_layer, seed=8)
    found = library_geometry(load_library(str(uneven)), [])
    assert list(found["mixture_norm"]["none"]) == ["outputs"]


def test_layers_that_an_adapter_lacks_count_as_zero(tiny_library: LibraryOf) -> None:
    library = load_library(str(tiny_library("llama", adapters=MIXED)))
    found = library_geometry(library)
    LibraryGeometry.model_validate(found)
    names, languages = list(library.experts), list(library.general)
    plain, exact = full(library, None, languages), full(library, "delta", languages)
    assert found["layers"] == list(library.modules)
    for updates, norms in ((plain, found["norm"]), (exact, found["residual_norm"]["delta"])):
        assert norms == {
            name: pytest.approx([float(matrix.norm()) for matrix in updates[name]], rel=1e-5)
            for name in names
        }
    assert list(found["residual_norm"]) == ["delta"]
    general = [
        [
            dense(adapter.pairs[module]) if module in adapter.pairs else torch.zeros(shape)
            for module, shape in library.shapes.items()
        ]
        for adapter in library.general.values()
    ]
    for row, name in zip(found["cosine_general"], names, strict=True):
        assert row == pytest.approx([cosine(plain[name], other) for other in general], abs=1e-6)
    for row, one in zip(found["cosine_experts"]["delta"], names, strict=True):
        expected = [cosine(exact[one], exact[other]) for other in names]
        assert row == pytest.approx(expected, abs=1e-5)
    mean = [sum(layer) / len(names) for layer in zip(*exact.values(), strict=True)]
    norms = [float(update.norm()) for update in mean]
    assert found["mixture_norm"]["delta"] == {"outputs": pytest.approx(norms, rel=1e-5)}


def test_unknown_languages_are_named(library: Library) -> None:
    with pytest.raises(UsageError) as caught:
        library_geometry(library, ["es"])
    assert_sentence(caught.value, "es", "en, de, fr")
