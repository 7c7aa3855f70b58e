"""What methods of other packages return is checked once per layer, with one sentence per fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from common import random_pair

from gks_eval.errors import CompatibilityError
from gks_eval.method.build import build, residual_pairs
from gks_eval.method.declaration import Layer, Parameters, Prepared, Tokens
from gks_eval.method.decorators import merge, router, rule
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.method.setting import Setting

EXPERTS = [random_pair(seed=n) for n in range(3)]
GENERAL = [random_pair(seed=9)]
NAN = replace(EXPERTS[0], A=EXPERTS[0].A * float("nan"))
NARROW = LoraPair(EXPERTS[0].A[:, :-1], EXPERTS[0].B)
PAIRS: list[tuple[Callable[[], Any], str]] = [
    (lambda: None, "returned NoneType as"),
    (lambda: NARROW, r"of shape \(24, 15\), not \(24, 16\)"),
    (lambda: NAN, "not finite"),
    (lambda: replace(EXPERTS[0], scaling=float("inf")), "not finite"),
    (lambda: {}["a"], "failed .KeyError: 'a'.,"),
    (lambda: exit(3), "failed .SystemExit: 3.,"),
]


@pytest.mark.parametrize(("made", "message"), PAIRS)
def test_a_merge_returns_a_finite_pair_of_the_layer(made: Callable[[], Any], message: str) -> None:
    @merge(paper="none")
    def faulty(layer: Layer, parameters: Parameters) -> Any:
        """Faulty."""
        return made()

    with MERGES.lent(faulty):
        setting = Setting(router="merge:faulty", subtract=())
        for call in (
            lambda: residual_pairs(EXPERTS, [], setting, "h.0"),
            lambda: build(EXPERTS, [], setting, dtype=torch.float32, name="h.0"),
        ):
            with pytest.raises(CompatibilityError, match=f"merge=faulty .*{message}.*layer h.0;"):
                call()


@pytest.mark.parametrize(("made", "message"), PAIRS)
def test_a_rule_returns_finite_pairs_of_the_layer(made: Callable[[], Any], message: str) -> None:
    @rule(paper="none")
    def faulty(task: LoraPair, general: Sequence[LoraPair], parameters: Parameters) -> Any:
        """Faulty."""
        return made()

    with RULES.lent(faulty):
        setting = Setting(rule="faulty", subtract=("x",), combine="outputs")
        with pytest.raises(CompatibilityError, match=f"rule=faulty .*{message}.*layer h.0;"):
            build(EXPERTS, GENERAL, setting, dtype=torch.float32, name="h.0")


@dataclass(frozen=True)
class Given:
    made: Callable[[int], Any]

    def coefficients(self, tokens: Tokens) -> Any:
        return self.made(len(tokens.x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda count: None, "returned NoneType as coefficients"),
        (lambda count: torch.full((1, 4), 0.25), r"shape \(1, 4\) for 2 tokens and 3 experts"),
        (lambda count: torch.full((count, 3), float("nan")), "not finite"),
        (lambda count: torch.ones(count, 3), "do not sum to 1"),
        (lambda count: exit(3), "failed .SystemExit: 3.,"),
    ],
)
def test_a_router_gives_finite_coefficients_of_the_declared_sum(
    made: Callable[[int], Any], message: str, dtype: torch.dtype
) -> None:
    @router(paper="none")
    def faulty(layer: Layer, parameters: Parameters) -> Prepared:
        """Faulty."""
        return Prepared(Given(made))

    with ROUTERS.lent(faulty):
        setting = Setting(router="faulty", subtract=(), combine="outputs")
        with pytest.raises(CompatibilityError, match=f"router=faulty .*{message}.*layer h.0;"):
            build(EXPERTS, [], setting, dtype=dtype, name="h.0")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: None, "returned NoneType, not a Prepared"),
        (lambda: Prepared(Given), "no instance of a dataclass"),  # type: ignore[arg-type]
        (lambda: Prepared(Given(torch.ones), torch.ones(3, 5)), r"shape \(3, 5\), not \(N, 16\)"),
        (lambda: Prepared(Given(torch.ones), torch.full((3, 16), torch.inf)), "not finite"),
        (lambda: exit(3), "failed .SystemExit: 3.,"),
    ],
)
def test_a_router_prepares_what_a_layer_needs(made: Callable[[], Any], message: str) -> None:
    @router(paper="none")
    def faulty(layer: Layer, parameters: Parameters) -> Any:
        """Faulty."""
        return made()

    with ROUTERS.lent(faulty):
        setting = Setting(router="faulty", subtract=(), combine="outputs")
        with pytest.raises(CompatibilityError, match=f"router=faulty .*{message}.*layer h.0;"):
            build(EXPERTS, [], setting, dtype=torch.float32, name="h.0")


def test_rows_need_not_sum_to_1_where_the_declaration_says_so() -> None:
    @router(paper="none", sums_to_one=False)
    def sums(layer: Layer, parameters: Parameters) -> Prepared:
        """All experts whole."""
        return Prepared(Given(lambda count: torch.ones(count, 3)))

    with ROUTERS.lent(sums):
        setting = Setting(router="sums", subtract=(), combine="outputs")
        assert build(EXPERTS, [], setting, dtype=torch.float32).experts == 3
