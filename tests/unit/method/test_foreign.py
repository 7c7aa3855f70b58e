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
from gks_eval.method.choice import Choice
from gks_eval.method.declaration import Layer, Parameters, Prepared, Tokens
from gks_eval.method.decorators import merge, router, rule
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.method.routers.top_k import LevelledTopK
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
    (lambda: replace(EXPERTS[0], scaling="2"), "scaling is no number"),
    (lambda: replace(EXPERTS[0], scaling=torch.ones(2)), "scaling is no number"),
    (lambda: LoraPair(EXPERTS[0].A[:0], EXPERTS[0].B[:, :0]), "of rank 0; return zeros of rank 1"),
    (lambda: LoraPair(EXPERTS[0].A.int(), EXPERTS[0].B.int()), "of type torch.int32"),
    (lambda: LoraPair(EXPERTS[0].A + 0j, EXPERTS[0].B + 0j), "of type torch.complex64"),
    (lambda: LoraPair(EXPERTS[0].A.to_sparse(), EXPERTS[0].B), "no.* dense tensor"),
    (lambda: LoraPair(EXPERTS[0].A.to("meta"), EXPERTS[0].B), "no.* dense tensor"),
    (lambda: LoraPair(EXPERTS[0].A.numpy(), EXPERTS[0].B), "returned ndarray as a factor"),
    (lambda: (EXPERTS[1].B.mul_(1.0), EXPERTS[0])[1], "writes to its adapters"),
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
        (lambda count: torch.eye(3)[:1].int(), "coefficients of type torch.int32"),
        (lambda count: torch.eye(3)[:1].bool(), "coefficients of type torch.bool"),
        (lambda count: torch.eye(3)[:1] + 0j, "coefficients of type torch.complex64"),
        (lambda count: torch.eye(3)[:1].to_sparse(), "no.* dense tensor"),
        (lambda count: torch.full((2, 3), 1 / 3), r"shape \(2, 3\) for 3 tokens"),
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
        (lambda: Prepared(Given(torch.ones), torch.eye(3, 16) / torch.eye(3, 16)), "not finite"),
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


@dataclass(frozen=True)
class Sparse:
    """The first expert, as coefficients; `made` gives its choice."""

    made: Callable[[int], Any]
    top_k: Any = 1
    reads_inner: Any = False

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        return torch.eye(3)[:1].repeat(len(tokens.x), 1)

    def choice(self, tokens: Tokens) -> Any:
        return self.made(len(tokens.x))


def choice_of(expert: Any, count: int, share: float = 1.0, k: int = 1) -> Choice:
    return Choice(torch.full((count, k), expert), torch.full((count, k), share))


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (Sparse(lambda count: choice_of(1, count)), "another choice than its coefficients"),
        (Sparse(lambda count: choice_of(0, count, 0.5)), "another choice than its coefficients"),
        (Sparse(lambda count: choice_of(0, count, 0.5, 2), 2), "another choice"),
        (Sparse(lambda count: choice_of(0, count, 1.0, 2)), r"of a choice are \(2, 1\)"),
        (Sparse(lambda count: choice_of(0, 2)), r"of a choice are \(3, 1\)"),
        (Sparse(lambda count: choice_of(0.0, count)), "of a choice are"),
        (Sparse(lambda count: choice_of(7, count)), "failed .*out of bounds"),
        (Sparse(lambda count: None), "failed .AttributeError"),
        (Sparse(lambda count: choice_of(0, count), "1"), "a whole number as top_k"),
        (Sparse(lambda count: choice_of(0, count), True), "a whole number as top_k"),
        (Sparse(lambda count: choice_of(0, count), 1, None), "True or False as reads_inner"),
    ],
)
def test_a_sparse_choice_is_that_of_the_coefficients(choose: Sparse, message: str) -> None:
    @router(paper="none")
    def faulty(layer: Layer, parameters: Parameters) -> Prepared:
        """Faulty."""
        return Prepared(choose)

    with ROUTERS.lent(faulty):
        setting = Setting(router="faulty", subtract=(), combine="outputs")
        with pytest.raises(CompatibilityError, match=f"router=faulty .*{message}.*layer h.0;"):
            build(EXPERTS, [], setting, dtype=torch.float32, name="h.0")


@dataclass(frozen=True)
class ByContext:
    score: Callable[[int], Any]
    choose: Callable[[int], Any]

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        return torch.full((len(tokens.x), 3), 1 / 3)

    def scores(self, tokens: Tokens) -> Any:
        return self.score(len(tokens.x))

    def chosen(self, scores_TE: torch.Tensor) -> Any:
        return self.choose(len(scores_TE))


@pytest.mark.parametrize(
    ("score", "choose", "message"),
    [
        (lambda count: None, torch.ones, "returned NoneType as scores"),
        (lambda count: torch.zeros(count, 2), torch.ones, "scores that are not"),
        (lambda count: torch.full((count, 3), float("nan")), torch.ones, "or NaN"),
        (lambda count: torch.zeros(count, 3), lambda count: None, "NoneType as coefficients"),
        (lambda count: torch.zeros(count, 3), lambda n: torch.ones(n, 3), "do not sum to 1"),
    ],
)
def test_one_choice_per_context_is_tried_too(
    score: Callable[[int], Any], choose: Callable[[int], Any], message: str
) -> None:
    @router(paper="none", parameters=LevelledTopK)
    def faulty(layer: Layer, parameters: LevelledTopK) -> Prepared:
        """Faulty."""
        return Prepared(ByContext(score, choose))

    with ROUTERS.lent(faulty):
        setting = Setting(router="faulty", subtract=(), combine="outputs", level="sequence")
        with pytest.raises(CompatibilityError, match=f"router=faulty .*{message}.*layer h.0;"):
            build(EXPERTS, [], setting, dtype=torch.float32, name="h.0")


@pytest.mark.parametrize("field", ["x", "scores", "inner"])
def test_a_router_that_writes_to_its_tokens_is_refused(field: str) -> None:
    @dataclass(frozen=True)
    class Writes:
        def coefficients(self, tokens: Tokens) -> torch.Tensor:
            getattr(tokens, field).zero_()
            return torch.full((len(tokens.x), 3), 1 / 3)

    @router(paper="none")
    def faulty(layer: Layer, parameters: Parameters) -> Prepared:
        """Faulty."""
        return Prepared(Writes(), torch.ones(3, 16))

    with ROUTERS.lent(faulty):
        setting = Setting(router="faulty", subtract=(), combine="outputs")
        with pytest.raises(CompatibilityError, match="router=faulty writes to its tokens"):
            build(EXPERTS, [], setting, dtype=torch.float32, name="h.0")


def test_adapters_that_overflow_are_a_sentence() -> None:
    setting = Setting(subtract=("x",), scale=1e300)
    with pytest.raises(CompatibilityError, match="too large; give the setting smaller values"):
        build(EXPERTS, GENERAL, setting, dtype=torch.float32, name="h.0")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda pairs: [NARROW, *pairs[1:]], r"a pair of shape \(24, 15\), not \(24, 16\)"),
        (lambda pairs: [NAN, *pairs[1:]], "a pair that is not finite"),
        (lambda pairs: [None, *pairs[1:]], "returned NoneType as pair"),
        (lambda pairs: pairs[0].A.mul_(1.0) is None or pairs, "writes to its adapters"),
        (lambda pairs: {}["a"], "failed .KeyError"),
    ],
)
def test_a_router_s_basis_gives_pairs_of_the_layer(
    made: Callable[[Any], Any], message: str
) -> None:
    @router(paper="none", basis=made)
    def faulty(layer: Layer, parameters: Parameters) -> Prepared:
        """Faulty."""
        return Prepared(Given(lambda count: torch.full((count, 3), 1 / 3)))

    with ROUTERS.lent(faulty):
        setting = Setting(router="faulty", subtract=(), combine="outputs")
        with pytest.raises(CompatibilityError, match=f"router=faulty .*{message}.*layer h.0;"):
            build(EXPERTS, [], setting, dtype=torch.float32, name="h.0")
