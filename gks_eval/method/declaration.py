"""Declarations of methods: each rule, router or merge is one object in one file.

A declaration holds all that the rest of the package needs to know about a method: its parameters
with types and defaults, what it requires of the adapters, and its function. The command line, the
grid's grammar, checks, identities and the table of methods follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from gks_eval.errors import CompatibilityError

if TYPE_CHECKING:
    import torch
    from pydantic.fields import FieldInfo
    from typing_extensions import Self

    from gks_eval.method.lora import LoraPair

__all__ = [
    "CONTROL",
    "TARGET",
    "VECTORS",
    "ContextRouter",
    "Layer",
    "LayerRouter",
    "Merge",
    "Method",
    "Parameters",
    "Prepared",
    "Router",
    "Rule",
    "TieOp",
    "Tokens",
]

CONTROL: Final = "a control"
"""The `paper` of a method that has none."""

VECTORS: Final = "prepared vectors"
"""The `needs` of a router that reads `Layer.prepared`."""
TieOp = Literal["concat", "sum"]
"""What layers make one prototype of, see `gks_eval.method.tied.joined`."""

TARGET: Final = "a target language"
"""The `needs` of a rule whose parameter `target` names a general adapter: the last of `general`."""


class Parameters(BaseModel):
    """Base of a method's parameters; a method without parameters uses this class itself.

    Every field needs a default and a ``description``. A field with
    ``json_schema_extra={"since": "<version>"}`` was added after its method was released: at its
    default it is left out of identities, so that older results stay valid. A parameter whose
    name is a keyword of Python is the alias of a field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Return the fields by the names that settings use."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}

    @property
    def by_context(self) -> bool:
        """Whether a router with these values makes one choice per context, not per token."""
        return False

    def fitted(self, experts: int) -> Self:
        """Return these values for a library of `experts` experts; defaults may depend on that.

        Raises:
            UsageError: A given value does not fit; the message starts with ``name=value`` and
                ends with what to do.
        """
        del experts
        return self


@dataclass(frozen=True)
class Method:
    """What rules, routers and merges have in common.

    Attributes:
        name: The word that settings use.
        summary: One line about it.
        paper: Where the method comes from: authors, year and address; or `CONTROL`.
        parameters: The model of its parameters.
        needs: What it needs in addition to the adapters, such as `VECTORS`; empty for nothing.
    """

    name: str
    summary: str
    paper: str
    parameters: type[Parameters]
    needs: str


@dataclass(frozen=True)
class Rule(Method):
    """Changes task adapters before they are mixed or merged, at one layer.

    Most rules subtract general adapters from each task adapter separately. A joint rule changes all
    task adapters of the layer together and subtracts no general adapter.

    Attributes:
        residual: ``(task, general, parameters) -> residual``; `general` holds at least one pair.
        general_part: For a rule that is linear in the updates, ``dW = dW_t - dW_part``: returns the
            part from ``(general, parameters)``. None for all other rules.
        equal_factors: Whether task and general adapters must have one rank and one scaling.
        joint: For a joint rule, ``(tasks, parameters) -> residuals``; None for all others.
        after_merge: For a joint rule, ``(merged, tasks, parameters) -> merged``, applied to the
            merged residuals; None for nothing.
        of_all: ``(tasks, general, parameters) -> residuals``, the same as `residual` for all task
            adapters of a layer at once; None for one call of `residual` per task adapter.
    """

    residual: Callable[[LoraPair, Sequence[LoraPair], Any], LoraPair]
    general_part: Callable[[Sequence[LoraPair], Any], LoraPair] | None
    equal_factors: bool
    joint: Callable[[Sequence[LoraPair], Any], Sequence[LoraPair]] | None = None
    after_merge: Callable[[LoraPair, Sequence[LoraPair], Any], LoraPair] | None = None
    of_all: Callable[[Sequence[LoraPair], Sequence[LoraPair], Any], list[LoraPair]] | None = None

    @property
    def linear(self) -> bool:
        """Whether the residual's update is the task's minus a part common to all experts."""
        return self.general_part is not None

    def __call__(
        self, task: LoraPair, general: Sequence[LoraPair], parameters: Parameters | None = None
    ) -> LoraPair:
        """Return the residual of `task`.

        Returns:
            `task` itself if `general` is empty, or if the task adapter does not update the layer.

        Raises:
            CompatibilityError: The rule needs equal shapes, ranks or scalings and they differ, or
                the rule subtracts no general adapter.
        """
        if self.joint is not None and general:
            raise CompatibilityError(
                f"rule={self.name} subtracts no general adapter; use subtract=none."
            )
        chosen = self.parameters() if parameters is None else parameters
        if task.missing or all(one.missing for one in general):
            return task
        return self.residual(task, general, chosen)

    def residuals(
        self,
        tasks: Sequence[LoraPair],
        general: Sequence[LoraPair],
        parameters: Parameters | None = None,
    ) -> list[LoraPair]:
        """Return the residuals of all task adapters; the task adapters if `general` is empty.

        A joint rule changes the task adapters, and `general` must be empty. A task adapter that
        does not update the layer counts as a zero update and is not changed.

        Raises:
            CompatibilityError: As for a single task adapter.
        """
        chosen = self.parameters() if parameters is None else parameters
        if self.of_all is not None:
            nothing = all(one.missing for one in general)
            changed = [n for n, task in enumerate(tasks) if not (nothing or task.missing)]
            residuals = list(tasks)
            if changed:
                new = self.of_all([tasks[n] for n in changed], general, chosen)
                for n, residual in zip(changed, new, strict=True):
                    residuals[n] = residual
            return residuals
        if self.joint is None or general:
            return [self(task, general, chosen) for task in tasks]
        found = self.joint(tasks, chosen)
        return [old if old.missing else new for old, new in zip(tasks, found, strict=True)]


@dataclass(frozen=True)
class Layer:
    """The input of a router or merge at one layer.

    Attributes:
        name: The layer's name in the model; empty for a layer without a model.
        residuals: The residuals of all experts, or the one adapter that they were merged into.
        mixed: The pairs that are mixed, one per expert, whose A's give `Tokens.inner`; None if
            they are the residuals.
        once: The general part, if it is subtracted once from the mixture of the task adapters;
            `mixed` then holds the task adapters.
        rounded: Whether activations, and so inner activations, have 16 bits.
        prepared: (E, K) float32, the vectors that were prepared for the experts, for a router that
            needs `VECTORS`; a row is zero if its expert does not update the layer.
        tied: For a layer that shares its prototypes with others, the residuals of all of them,
            joined per expert (see `gks_eval.method.tied`), under the group's name; else None.
    """

    name: str
    residuals: Sequence[LoraPair]
    mixed: Sequence[LoraPair] | None = None
    once: LoraPair | None = None
    rounded: bool = False
    prepared: torch.Tensor | None = None
    tied: Layer | None = None

    @property
    def prototyped(self) -> Layer:
        """The layer whose name and residuals the prototypes are made of."""
        return self if self.tied is None else self.tied

    @property
    def read(self) -> list[LoraPair]:
        """The pairs whose inner activations `Tokens.inner` has, in order."""
        pairs = [*(self.residuals if self.mixed is None else self.mixed)]
        return pairs if self.once is None else [*pairs, self.once]


@dataclass(frozen=True)
class Tokens:
    """What a router can read: T tokens of one forward at one layer.

    Attributes:
        x: (T, K), the layer's input, in the layer's type.
        scores: (T, N) float32, products of the tokens with the router's directions; (T, 0) if it
            has none.
        inner: (T, M), inner activations ``A_e x`` of all experts, then ``A_g x`` of a general part
            that is subtracted once, in the layer's type.
    """

    x: torch.Tensor
    scores: torch.Tensor
    inner: torch.Tensor


class LayerRouter(Protocol):
    """A router prepared for one layer: a frozen dataclass whose tensors move with the layer."""

    def coefficients(self, tokens: Tokens) -> torch.Tensor:
        """Return float32 coefficients, (T, E), or (1, E) if all tokens share them."""
        ...


@runtime_checkable
class ContextRouter(LayerRouter, Protocol):
    """A router whose coefficients are a function of scores, so that scores can be averaged.

    ``coefficients(tokens) = chosen(scores(tokens))``; see `gks_eval.method.contexts`.
    """

    def scores(self, tokens: Tokens) -> torch.Tensor:
        """Return the score of every expert, (T, E)."""
        ...

    def chosen(self, scores_TE: torch.Tensor) -> torch.Tensor:
        """Return float32 coefficients, (T, E), from scores or from their means."""
        ...


@dataclass(frozen=True)
class Prepared:
    """What a router needs at one layer.

    Attributes:
        choose: Turns tokens into coefficients.
        directions: (N, K) float32, multiplied with every token to give `Tokens.scores`; None for a
            router that reads no scores.
    """

    choose: LayerRouter
    directions: torch.Tensor | None = None


@dataclass(frozen=True)
class Router(Method):
    """Chooses each token's mixing coefficients, at one layer.

    Attributes:
        prepare: ``(layer, parameters) -> Prepared``; called once per layer and setting.
        sums_to_one: Whether every row of coefficients sums to 1. Only then can a linear rule's
            common part be subtracted once instead of once per expert.
        basis: Changes the factors of a layer's pairs but not their updates. It is applied to all
            pairs before mixing, which matters for ``combine=factors``; None keeps the factors.
    """

    prepare: Callable[[Layer, Any], Prepared]
    sums_to_one: bool
    basis: Callable[[Sequence[LoraPair]], list[LoraPair]] | None = None

    def __call__(self, layer: Layer, parameters: Parameters | None = None) -> Prepared:
        """Prepare the router for one layer."""
        return self.prepare(layer, self.parameters() if parameters is None else parameters)


@dataclass(frozen=True)
class Merge(Method):
    """Merges all residuals into one adapter, at one layer.

    Attributes:
        combine: ``(layer, parameters) -> merged``.
        equal_factors: Whether the residuals must have one rank and one scaling; a function of the
            parameters if it depends on them.
        instead: The parameter that allows unequal ones, as ``name=value``; empty if none does.
    """

    combine: Callable[[Layer, Any], LoraPair]
    equal_factors: bool | Callable[[Any], bool]
    instead: str

    def needs_equal_factors(self, parameters: Parameters) -> bool:
        """Return whether the residuals must have one rank and one scaling."""
        equal = self.equal_factors
        return equal(parameters) if callable(equal) else equal

    def __call__(self, layer: Layer, parameters: Parameters | None = None) -> LoraPair:
        """Return the merged pair.

        Raises:
            CompatibilityError: The merge needs equal ranks or scalings and they differ.
        """
        return self.combine(layer, self.parameters() if parameters is None else parameters)
