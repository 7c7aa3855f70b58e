"""Decorators that declare a function as a rule, router or merge.

The function's name becomes the method's name, the first line of its docstring the summary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gks_eval.method.declaration import Layer, Merge, Parameters, Prepared, Router, Rule

if TYPE_CHECKING:
    from gks_eval.method.lora import LoraPair

__all__ = ["joint_rule", "merge", "router", "rule"]


def rule(
    *,
    paper: str,
    parameters: type[Parameters] = Parameters,
    needs: str = "",
    equal_factors: bool = False,
    general_part: Callable[[Sequence[LoraPair], Any], LoraPair] | None = None,
    of_all: Callable[[Sequence[LoraPair], Sequence[LoraPair], Any], list[LoraPair]] | None = None,
) -> Callable[[Callable[[LoraPair, Sequence[LoraPair], Any], LoraPair]], Rule]:
    """Declare the decorated function as a rule.

    The function, ``(task, general, parameters) -> residual``, gives the rule its name; the first
    line of its docstring is the summary.

    Args:
        paper: Where the method comes from: authors, year and address; or `CONTROL`.
        parameters: The model of its parameters.
        needs: What it needs in addition to the adapters, such as `VECTORS`.
        equal_factors: Whether task and general adapters must have one rank and one scaling.
        general_part: For a rule that is linear in the updates: returns, from
            ``(general, parameters)``, the part that is common to all experts.
        of_all: ``(tasks, general, parameters) -> residuals``, the same for all task adapters at
            once, for a rule that is faster in batches.
    """

    def declare(function: Callable[[LoraPair, Sequence[LoraPair], Any], LoraPair]) -> Rule:
        common = _common(function, paper, parameters, needs)
        return Rule(*common, function, general_part, equal_factors, of_all=of_all)

    return declare


def joint_rule(
    *,
    paper: str,
    parameters: type[Parameters] = Parameters,
    needs: str = "",
    after_merge: Callable[[LoraPair, Sequence[LoraPair], Any], LoraPair] | None = None,
) -> Callable[[Callable[[Sequence[LoraPair], Any], Sequence[LoraPair]]], Rule]:
    """Declare the decorated function, ``(tasks, parameters) -> residuals``, as a joint rule.

    A joint rule changes all experts of a layer together and subtracts no general adapter.

    Args:
        paper: Where the method comes from: authors, year and address; or `CONTROL`.
        parameters: The model of its parameters.
        needs: What it needs in addition to the adapters, such as `VECTORS`.
        after_merge: ``(merged, tasks, parameters) -> merged``, applied to merged residuals.
    """

    def declare(function: Callable[[Sequence[LoraPair], Any], Sequence[LoraPair]]) -> Rule:
        common = _common(function, paper, parameters, needs)
        return Rule(*common, _unchanged, None, False, function, after_merge)

    return declare


def router(
    *,
    paper: str,
    parameters: type[Parameters] = Parameters,
    needs: str = "",
    sums_to_one: bool = True,
    basis: Callable[[Sequence[LoraPair]], list[LoraPair]] | None = None,
) -> Callable[[Callable[[Layer, Any], Prepared]], Router]:
    """Declare the decorated function, ``(layer, parameters) -> Prepared``, as a router.

    Args:
        paper: Where the method comes from: authors, year and address; or `CONTROL`.
        parameters: The model of its parameters.
        needs: What it needs in addition to the adapters, such as `VECTORS`.
        sums_to_one: Whether every row of coefficients sums to 1.
        basis: Changes the factors of every pair, but not its update, before they are mixed.
    """

    def declare(function: Callable[[Layer, Any], Prepared]) -> Router:
        return Router(*_common(function, paper, parameters, needs), function, sums_to_one, basis)

    return declare


def merge(
    *,
    paper: str,
    parameters: type[Parameters] = Parameters,
    needs: str = "",
    equal_factors: bool | Callable[[Any], bool] = False,
    instead: str = "",
) -> Callable[[Callable[[Layer, Any], LoraPair]], Merge]:
    """Declare the decorated function, ``(layer, parameters) -> merged``, as a merge.

    Args:
        paper: Where the method comes from: authors, year and address; or `CONTROL`.
        parameters: The model of its parameters.
        needs: What it needs in addition to the adapters, such as `VECTORS`.
        equal_factors: Whether the residuals must have one rank and one scaling; a function of the
            parameters if it depends on them.
        instead: The parameter that allows unequal ones, as ``name=value``.
    """

    def declare(function: Callable[[Layer, Any], LoraPair]) -> Merge:
        common = _common(function, paper, parameters, needs)
        return Merge(*common, function, equal_factors, instead)

    return declare


def _unchanged(task: LoraPair, general: Sequence[LoraPair], parameters: Any) -> LoraPair:
    """Return the task adapter: a joint rule does not change a single adapter."""
    del general, parameters
    return task


def _common(
    function: Callable[..., object], paper: str, parameters: type[Parameters], needs: str
) -> tuple[str, str, str, type[Parameters], str]:
    summary = (function.__doc__ or "").strip().partition("\n")[0]
    if not summary:
        raise TypeError(f"{function.__qualname__} needs a docstring; its first line is shown")
    return function.__name__.rstrip("_"), summary, paper, parameters, needs
