"""Every method of ours passes the conformance tests that we offer, and those tests can fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from common import random_pair
from pydantic import Field
from typer.testing import CliRunner

from gks_eval.cli.main import build_app
from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.method.build import build
from gks_eval.method.declaration import Layer, Parameters, Prepared, Tokens
from gks_eval.method.decorators import merge, router, rule
from gks_eval.method.lora import LoraPair, average_factors, no_update, stack
from gks_eval.method.reference import reference_update
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.method.routed import routed_update
from gks_eval.method.routers.top_k import LevelledTopK
from gks_eval.method.setting import Setting
from gks_eval.method.weights import to_device
from gks_eval.testing import check_merge, check_router, check_rule

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("arrow", {}),
    ("arrow", {"top_k": 1, "temperature": 0.1}),
    ("arrow", {"input_norm": "layer", "proto_norm": "unit", "proto_scale": "squared"}),
    ("arrow", {"input_norm": "unit", "proto_norm": "experts", "temperature": 0.0, "top_k": -1}),
    ("uniform", {}),
    ("random", {"seed": 3, "top_k": 2}),
    ("random", {"proto_scale": "singular", "proto_norm": "layer"}),
    ("spectr", {}),
    ("spectr", {"weights": "equal", "top_k": 2}),
    ("norm", {"temperature": 0.5}),
    ("shuffled", {"seed": 3, "top_k": 2}),
    ("lag", {}),
    ("lag", {"shortlist": 2, "top_k": 2}),
    ("mean_activation", {}),
    ("phatgoose", {"temperature": 0.5}),
]
RULE_ROWS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("factors", "delta", "orthogonal", "pico")),
    ("cross_lingual", {"target": "de"}),
    ("cross_lingual", {"target": "de", "keep": 1, "add": -0.3}),
    *((name, {"scale": -0.5}) for name in ("factors", "delta", "orthogonal")),
    ("pico", {"rescale": "each"}),
]
MERGE_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("mean", {}),
    ("task_arithmetic", {}),
    ("task_arithmetic", {"lambda": -0.7}),
    ("svd", {}),
    ("svd", {"rank": 2, "lambda": 1}),
    ("tsv", {}),
    ("tsv", {"lambda": -0.5}),
    ("knots", {}),
    ("knots", {"on": "SV", "density": 1}),
    *(("knots", {"inner": inner}) for inner in ("dare_linear", "dare_ties", "magnitude_prune")),
    ("knots", {"inner": "mean", "lambda": 0.5}),
    ("core_space", {}),
    ("core_space", {"inner": "tsv", "lambda": 2}),
    *(("core_space", {"inner": inner}) for inner in ("dare_linear", "dare_ties", "mean")),
    ("core_space", {"inner": "magnitude_prune", "density": 1}),
    *(
        (name, parameters)
        for name in ("ties", "dare_linear", "dare_ties", "magnitude_prune")
        for parameters in ({}, {"density": 1}, {"on": "delta", "rank": 3, "density": 0.5})
    ),
]


# Several experts and a general adapter leave the layer alone.
SHAPE = (24, 16)
SOME = [random_pair(seed=1), no_update(SHAPE), random_pair(rank=2, scaling=1.5, seed=2)]
SOME += [no_update(SHAPE), random_pair(rank=7, seed=3)]
SUBTRACTED = [random_pair(rank=3, seed=4), no_update(SHAPE), random_pair(seed=5)]


@pytest.mark.parametrize(("name", "parameters"), RULE_ROWS)
def test_rules(name: str, parameters: dict[str, Any]) -> None:
    check_rule(RULES.get(name), **parameters)


@pytest.mark.parametrize(("name", "parameters"), METHODS)
def test_routers(name: str, parameters: dict[str, Any]) -> None:
    check_router(ROUTERS.get(name), **parameters)


@pytest.mark.parametrize("name", ["arrow", "spectr", "norm", "random", "shuffled"])
@pytest.mark.parametrize("top_k", [1, 3])
def test_routers_that_make_one_choice_per_context(name: str, top_k: int) -> None:
    check_router(ROUTERS.get(name), level="sequence", top_k=top_k)


def test_a_router_that_cannot_make_one_choice_per_context_is_found() -> None:
    faulty = replace(first_rows(""), parameters=LevelledTopK)
    check_router(faulty)
    with pytest.raises(AssertionError, match="without the methods scores and chosen"):
        check_router(faulty, level="sequence", top_k=1)


@pytest.mark.parametrize(("name", "parameters"), MERGE_ROWS)
def test_merges(name: str, parameters: dict[str, Any]) -> None:
    check_merge(MERGES.get(name), **parameters)


@pytest.mark.parametrize("general", [[], SUBTRACTED, [no_update(SHAPE)]], ids=len)
@pytest.mark.parametrize(("name", "parameters"), METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routers_subtract_nothing_from_experts_that_leave_the_layer_alone(
    name: str, parameters: dict[str, Any], general: list[LoraPair], dtype: torch.dtype
) -> None:
    setting = Setting(router=name, rule="delta", combine="outputs", subtract=("x",), **parameters)
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    vectors = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    vectors[[1, 3]] = 0.0
    weights = build(SOME, general, setting, dtype=dtype, prepared=vectors)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    expected, shares = reference_update(x, SOME, general, setting, prepared=vectors)
    with_gradients, found_shares = routed_update(x, weights)
    with torch.no_grad():
        found, _ = routed_update(x, weights)
        added, _ = routed_update(x, weights, torch.ones(40, 24, dtype=dtype))
    size = expected.abs().max()
    for one in (found, with_gradients, added - 1):
        assert (one.double() - expected).abs().max() < tolerance * max(1.0, size)
    assert (found_shares - shares).abs().max() < tolerance
    top_k = setting.parameters.get("top_k", 5)
    if 0 < top_k <= 3:  # so many do update the layer
        assert not found_shares[:, [1, 3]].any()
    assert (weights.present is not None) == bool(general and ROUTERS.get(name).sums_to_one)
    moved = to_device(weights, torch.device("meta"))
    assert moved.nbytes() == weights.nbytes()
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize(("name", "parameters"), MERGE_ROWS)
def test_merges_of_16_bit_adapters_keep_their_type(name: str, parameters: dict[str, Any]) -> None:
    merge_ = MERGES.get(name)
    chosen = merge_.parameters(**parameters)
    pairs = [random_pair(seed=n, dtype=torch.bfloat16) for n in range(3)]
    found = merge_(Layer("", pairs), chosen)
    assert found.A.dtype == found.B.dtype == torch.bfloat16
    if not name.startswith("dare") and parameters.get("inner", "").partition("_")[0] != "dare":
        wide = merge_(Layer("", [pair.to(torch.float32) for pair in pairs]), chosen).delta()
        # On the entries that pruning keeps: rounding decides which they are where two are equal.
        error = (found.to(torch.float32).delta() - wide).norm() / wide.norm()
        assert error < 0.15


@pytest.mark.parametrize(("name", "parameters"), MERGE_ROWS)
def test_merges_count_experts_that_leave_the_layer_alone_as_zero(
    name: str, parameters: dict[str, Any]
) -> None:
    merge_ = MERGES.get(name)
    chosen = merge_.parameters(**parameters)
    if merge_.needs_equal_factors(chosen):
        with pytest.raises(CompatibilityError, match="needs every adapter to update the layer"):
            merge_(Layer("", SOME), chosen)
        return
    zero = LoraPair(torch.zeros(4, 16), torch.zeros(24, 4), 2.0)
    expected = merge_(Layer("", [zero if pair.missing else pair for pair in SOME]), chosen)
    found = merge_(Layer("", SOME), chosen)
    torch.testing.assert_close(found.delta(), expected.delta(), rtol=1e-5, atol=1e-5)


def test_every_method_has_a_row() -> None:
    assert {name for name, _ in RULE_ROWS} == {*RULES.names()}
    assert {name for name, _ in METHODS} == {*ROUTERS.names()}
    assert {name for name, _ in MERGE_ROWS} == {*MERGES.names()}


@dataclass(frozen=True)
class Shares:
    """Coefficients by a function of the tokens."""

    scale: torch.Tensor
    fault: str

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        shares = torch.softmax(tokens.scores * self.scale, dim=1)
        if self.fault == "sum":
            return 2 * shares
        if self.fault == "batch":
            return torch.softmax(shares - shares.mean(0), dim=1)
        if self.fault == "order":
            return torch.softmax(shares + torch.arange(len(shares))[:, None] * shares, dim=1)
        if self.fault == "nan":
            return shares / (tokens.scores != 0)
        if self.fault == "type":
            return shares.double()
        if self.fault == "shape":
            return shares[:, :-1]
        if self.fault == "write":
            tokens.x.zero_()
        return shares


def first_rows(fault: str) -> Any:
    @router(paper="none")
    def mine(layer: Layer, parameters: Parameters) -> Prepared:
        """Softmax over each expert's first row of A."""
        if fault == "adapters":
            layer.residuals[0].A.mul_(2)
        choose = Shares(torch.ones(()), fault)
        return Prepared(choose, torch.stack([pair.A[0] for pair in layer.residuals]))

    return mine


def test_a_router_of_ones_own_passes_and_leaves_nothing_behind() -> None:
    check_router(first_rows(""))
    assert "mine" not in ROUTERS


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("sum", "sums to 1"),
        ("batch", "other tokens of a batch"),
        ("order", "order of the tokens"),
        ("nan", "finite"),
        ("type", "float32"),
        ("shape", r"\(T, E\)"),
        ("write", "writes to its tokens"),
        ("adapters", "writes to its adapters"),
    ],
)
def test_a_faulty_router_is_found(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_router(first_rows(fault))


def test_a_router_whose_tensors_stay_behind_is_found() -> None:
    @dataclass(frozen=True)
    class Hidden(Shares):
        more: tuple[torch.Tensor, ...] = (torch.ones(()),)

    @router(paper="none")
    def mine(layer: Layer, parameters: Parameters) -> Prepared:
        """Keeps a tensor where nobody sees it."""
        choose = Hidden(torch.ones(()), "")
        return Prepared(choose, torch.stack([pair.A[0] for pair in layer.residuals]))

    with pytest.raises(AssertionError, match="move with it"):
        check_router(mine)


def test_faulty_rules_are_found() -> None:
    factors = RULES.get("factors")
    with pytest.raises(AssertionError, match="only with equal_factors"):
        check_rule(replace(factors, equal_factors=False))
    with pytest.raises(AssertionError, match="refuses unequal ranks"):
        check_rule(replace(RULES.get("delta"), equal_factors=True))
    with pytest.raises(AssertionError, match="less the general part"):
        check_rule(replace(RULES.get("delta"), general_part=lambda g, _: stack(g, [2.0] * len(g))))

    @rule(paper="none")
    def half(task: LoraPair, general: Sequence[LoraPair], parameters: Parameters) -> LoraPair:
        """Writes."""
        task.A.mul_(0.5)
        return task

    with pytest.raises(AssertionError, match="does not write"):
        check_rule(half)


def test_faulty_merges_are_found() -> None:
    @merge(paper="none")
    def factor_mean(layer: Layer, parameters: Parameters) -> LoraPair:
        """Needs equal factors and does not say so."""
        return average_factors(layer.residuals)

    with pytest.raises(AssertionError, match="only with equal_factors"):
        check_merge(factor_mean)
    check_merge(replace(factor_mean, equal_factors=True))


def test_declarations_are_checked() -> None:
    class Undescribed(Parameters):
        strength: float = 1.0

    class Taken(Parameters):
        rule: float = Field(default=1.0, description="A taken name.")

    for parameters, message in ((Undescribed, "description"), (Taken, "argument of settings")):
        with pytest.raises(AssertionError, match=message):
            check_router(replace(first_rows(""), parameters=parameters))
    with pytest.raises(TypeError, match="needs a docstring"):

        @router(paper="none")
        def mute(layer: Layer, parameters: Parameters) -> Prepared:
            raise AssertionError

    with pytest.raises(AssertionError, match="no rule"):
        check_rule(first_rows(""))


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(UsageError, match="router arrow exists"):
        ROUTERS.add(replace(first_rows(""), name="arrow"))
    with pytest.raises(UsageError, match="router=arow is unknown; did you mean 'arrow'"):
        ROUTERS.get("arow")


def test_a_registry_is_shown_by_its_names() -> None:
    assert repr(RULES) == f"Registry(rules: {', '.join(RULES.names())})"


def test_the_table_of_methods_is_up_to_date() -> None:
    done = CliRunner().invoke(build_app(), ["methods", "--markdown"])
    assert done.exit_code == 0
    page = Path(__file__).parents[3] / "docs" / "methods.md"
    assert page.read_text("utf-8") == done.stdout


def test_the_list_of_methods_fits_100_columns() -> None:
    lines = CliRunner().invoke(build_app(), ["methods"]).stdout.splitlines()
    assert max(map(len, lines)) <= 100
    described = "top_k=3: Experts mixed per token, at most all; -1 for all"
    assert any(line.strip() == described for line in lines)
    named = {line.split()[0] for line in lines if line[:3].strip() and line[:2] == "  "}
    assert named == {*RULES.names(), *ROUTERS.names(), *MERGES.names()}


def test_the_list_of_methods_is_wrapped_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CliRunner().invoke(build_app(), ["methods"]).stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    lines = CliRunner().invoke(build_app(), ["methods"]).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()) == " ".join(whole.split())


@pytest.mark.parametrize("subtract", [(), ("en",)])
@pytest.mark.parametrize("rule", ["factors", "delta", "orthogonal"])
def test_the_mean_of_updates_is_the_even_mixture_of_outputs(
    rule: str, subtract: tuple[str, ...]
) -> None:
    experts, general = [random_pair(seed=n) for n in range(3)], [random_pair(seed=9)]
    x = torch.randn(5, 16)
    found = [
        routed_update(
            x,
            build(
                experts,
                general if subtract else [],
                Setting(router=router, rule=rule, subtract=subtract, combine="outputs"),
                dtype=torch.float32,
            ),
        )[0]
        for router in ("merge:mean", "uniform")
    ]
    torch.testing.assert_close(*found)
    slow, _ = reference_update(
        x,
        experts,
        general if subtract else [],
        Setting(router="merge:mean", rule=rule, subtract=subtract),
    )
    torch.testing.assert_close(found[0].double(), slow, rtol=1e-5, atol=1e-5)
