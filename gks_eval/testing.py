"""Conformance tests for rules, routers and merges, for use in your own tests.

```python
from gks_eval.testing import check_router
from my_package import my_router

def test_my_router() -> None:
    check_router(my_router)
```

Each function raises AssertionError with one sentence that says what a method must do and did not.
The methods of this package pass the same tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.method.build import build
from gks_eval.method.contexts import Contexts
from gks_eval.method.declaration import (
    VECTORS,
    Layer,
    Merge,
    Method,
    Parameters,
    Router,
    Rule,
    Tokens,
)
from gks_eval.method.lora import LoraPair, no_update
from gks_eval.method.reference import reference_update
from gks_eval.method.registry import ROUTERS
from gks_eval.method.routed import routed_update
from gks_eval.method.setting import Setting
from gks_eval.method.weights import RoutedWeights, to_device

__all__ = ["check_merge", "check_router", "check_rule"]

WIDTH_IN: Final = 16
WIDTH_OUT: Final = 24
SCALING: Final = 2.0


def check_rule(rule: Rule, **parameters: Any) -> None:
    """Check a rule.

    Args:
        rule: The rule.
        parameters: Its parameters, where not the defaults.

    Raises:
        AssertionError: It does not do what its declaration says.
    """
    _check_declaration(rule, Rule)
    chosen = rule.parameters(**parameters)
    if rule.joint is not None:
        _check_joint(rule, chosen)
        return
    for count in (1, 3):
        task, general = _pair(0), [_pair(10 + n) for n in range(count)]
        residual = _without_writing(partial(rule, task, general, chosen), [task, *general])
        _check_pair(residual, task, "the residual")
        assert rule(task, [], chosen) is task, "Without general adapters the task is returned."
        if rule.general_part is not None:
            part = rule.general_part(general, chosen)
            torch.testing.assert_close(
                residual.delta(),
                task.delta() - part.delta(),
                rtol=1e-5,
                atol=1e-5,
                msg="A linear rule's residual is the task's update less the general part's.",
            )
    twin = [LoraPair(task.A.clone(), task.B.clone(), task.scaling)]
    assert rule(task, twin, chosen).delta().isfinite().all(), "A zero residual is finite."
    _check_unequal(rule.equal_factors, lambda odd: rule(task, [odd], chosen))


def _check_joint(rule: Rule, chosen: Parameters) -> None:
    for experts in _libraries():
        changed = _without_writing(partial(rule.residuals, experts, [], chosen), experts)
        assert len(changed) == len(experts), "A joint rule returns one residual per expert."
        for found, expert in zip(changed, experts, strict=True):
            _check_pair(found, expert, "the residual")
        if rule.after_merge is not None:
            merged = rule.after_merge(changed[0], experts, chosen)
            _check_pair(merged, experts[0], "the merged adapter")


def check_router(router: Router, **parameters: Any) -> None:
    """Check a router.

    Args:
        router: The router.
        parameters: Its parameters, where not the defaults.

    Raises:
        AssertionError: It does not do what its declaration says.
    """
    _check_declaration(router, Router)
    with ROUTERS.lent(router):
        for experts in _libraries():
            setting = Setting.from_arguments(
                router=router.name, subtract="none", combine="outputs", **parameters
            )
            try:
                setting = setting.fitted(len(experts))
            except UsageError:
                continue  # parameters for more experts than these
            for dtype in (torch.float32, torch.bfloat16):
                _check_routing(router, experts, setting, dtype)


def check_merge(merge: Merge, **parameters: Any) -> None:
    """Check a merge.

    Args:
        merge: The merge.
        parameters: Its parameters, where not the defaults.

    Raises:
        AssertionError: It does not do what its declaration says.
    """
    _check_declaration(merge, Merge)
    chosen = merge.parameters(**parameters)
    for count in (1, 2, 5):
        pairs = [_pair(n) for n in range(count)]
        merged = _without_writing(partial(merge, Layer("", pairs), chosen), pairs)
        _check_pair(merged, pairs[0], "the merged adapter")
    zero = LoraPair(torch.zeros(4, WIDTH_IN), torch.zeros(WIDTH_OUT, 4), SCALING)
    dead = merge(Layer("", [zero, zero]), chosen)
    assert dead.delta().isfinite().all(), "A merge of zeros is finite."
    _check_unequal(
        merge.needs_equal_factors(chosen), lambda odd: merge(Layer("", [_pair(0), odd]), chosen)
    )


def _check_declaration(method: Method, kind: type[Method]) -> None:
    assert isinstance(method, kind), f"{method!r} is no {kind.__name__.lower()}."
    word = method.name.replace("-", "_")
    assert word.isidentifier(), f"{method.name!r} is no usable name: use letters, digits and _."
    assert method.summary, f"{method.name} needs a docstring."
    assert method.paper, f"{method.name} needs a source in `paper`."
    assert issubclass(method.parameters, Parameters), "Parameters derive from `Parameters`."
    method.parameters()  # every parameter has a default
    for name, field in method.parameters.fields().items():
        assert field.description, f"Parameter {name} of {method.name} needs a description."
        assert name not in Setting.model_fields, f"Parameter {name} is an argument of settings."


def _check_routing(
    router: Router, experts: Sequence[LoraPair], setting: Setting, dtype: torch.dtype
) -> None:
    def routed(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        update, shares = routed_update(x_TK, weights)
        return update, shares.expand(len(x_TK), -1)

    generator = torch.Generator().manual_seed(7)
    x = torch.randn(9, WIDTH_IN, generator=generator).to(dtype)
    vectors = None
    if router.needs == VECTORS:
        vectors = torch.randn(len(experts), WIDTH_IN, generator=generator)
        vectors[torch.tensor([pair.missing for pair in experts])] = 0.0
    with torch.no_grad():
        prepare = partial(build, experts, [], setting, dtype=dtype, prepared=vectors)
        try:
            weights = _without_writing(prepare, experts)
        except CompatibilityError as fault:  # `build` checks routers of other packages too
            raise AssertionError(str(fault)) from fault
        inner = x @ weights.read[: len(weights.write)].T
        shares = weights.router.coefficients(Tokens(x.clone(), _scores(x, weights), inner))
        assert shares.shape in ((9, len(experts)), (1, len(experts))), (
            "Coefficients are (T, E) or (1, E)."
        )
        if weights.by_context:
            _check_context(x, weights, partial(reference_update, x.float(), experts, [], setting))
        before = x.clone()
        update, shares = routed(x)
        assert torch.equal(x, before), "A router does not write to its tokens."
        assert shares.dtype == torch.float32, "Coefficients are float32, whatever the layer's type."
        assert shares.isfinite().all(), "Coefficients are finite, for zero residuals too."
        if router.sums_to_one:
            assert (shares.sum(1) - 1).abs().max() < 1e-5, "Every row of coefficients sums to 1."
        order = torch.randperm(9, generator=generator)
        shuffled = routed(x[order])[1]
        alone = torch.cat([routed(x[t : t + 1])[1] for t in range(9)])
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for found, expected, what in (
            (shuffled, shares[order], "the order of the tokens"),
            (alone, shares, "the other tokens of a batch"),
        ):
            assert (found - expected).abs().max() < tolerance, f"Routing does not depend on {what}."
        assert routed(x[:0])[0].shape == (0, WIDTH_OUT), "No tokens are no error."
        if weights.by_context:
            setting = Setting(**{**setting.model_dump(), "level": "token"})
        slow, _ = reference_update(x.float(), experts, [], setting, prepared=vectors)
        error = (update.double() - slow).abs().max() / slow.abs().max().clamp_min(1e-6)
        assert error < tolerance, "The update is the one of the plain loops."
        moved = to_device(weights, torch.device("meta"))
    held = [*moved.tensors(), *vars(moved.router).values()]
    left = [tensor for tensor in _tensors(held) if tensor.device.type != "meta"]
    assert not left, "A router's tensors are fields of a dataclass, so that they move with it."


def _check_context(
    x_TK: torch.Tensor,
    weights: RoutedWeights,
    slow: Callable[[], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    # The tokens are one context; padding comes first, and two more tokens continue it.
    size, more = len(x_TK), x_TK[:2].flip(1)
    of_token = torch.tensor([-1] + [0] * (size + 2))
    contexts = Contexts(of_token, torch.arange(1, size + 1), 1)
    all_TK = torch.cat([x_TK[:1] + 1, x_TK, more])
    update, shares = routed_update(all_TK, weights, contexts=contexts)
    expected, expected_shares = slow()
    tolerance = 1e-5 if x_TK.dtype == torch.float32 else 2e-2
    assert (shares - expected_shares[0]).abs().max() < tolerance, (
        "With one choice per context, the coefficients are chosen from its mean scores."
    )
    error = (update[1:-2].double() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    assert error < tolerance, "The update is the one of the plain loops."


def _scores(x_TK: torch.Tensor, weights: RoutedWeights) -> torch.Tensor:
    directions = weights.directions
    held = weights.fused if directions is None else directions
    return x_TK.float() @ held.float().T


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _libraries() -> Iterator[list[LoraPair]]:
    """Yield one expert, several, several of unequal rank, one with a zero residual, one without."""
    yield [_pair(0)]
    yield [_pair(n) for n in range(5)]
    yield [_pair(n, rank=2 + n) for n in range(4)]
    dead = LoraPair(torch.zeros(4, WIDTH_IN), torch.zeros(WIDTH_OUT, 4), SCALING)
    yield [_pair(0), dead, _pair(1), _pair(2)]
    yield [_pair(0), no_update((WIDTH_OUT, WIDTH_IN)), _pair(1), no_update((WIDTH_OUT, WIDTH_IN))]


def _pair(seed: int, rank: int = 4) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, WIDTH_IN, generator=generator) / WIDTH_IN**0.5
    return LoraPair(A, torch.randn(WIDTH_OUT, rank, generator=generator) / 5, SCALING)


def _check_pair(found: LoraPair, like: LoraPair, what: str) -> None:
    assert found.shape == like.shape, f"The shape of {what} is that of the layer."
    assert found.A.dtype == like.A.dtype, f"The type of {what} is that of the adapters."
    assert found.delta().isfinite().all(), f"All numbers of {what} are finite."


def _check_unequal(equal_factors: bool, call: Callable[[LoraPair], LoraPair]) -> None:
    odd = _pair(20, rank=3)
    try:
        found = call(odd)
    except CompatibilityError:
        assert equal_factors, "Unequal ranks are refused only with equal_factors=True."
    else:
        assert not equal_factors, "equal_factors=True refuses unequal ranks."
        assert found.shape == odd.shape, "Unequal ranks give an update of the layer's shape."


def _without_writing(call: Callable[[], Any], pairs: Sequence[LoraPair]) -> Any:
    before = [(pair.A.clone(), pair.B.clone()) for pair in pairs]
    result = call()
    for pair, (A, B) in zip(pairs, before, strict=True):
        assert torch.equal(pair.A, A), "A method does not write to its adapters."
        assert torch.equal(pair.B, B), "A method does not write to its adapters."
    return result
