"""Settings: which residuals run on top of the base, and how they are mixed or merged.

A `Setting` is everything that can change without loading the base model again. It is written in
two ways: as arguments of the model (``subtract=en+de,rule=delta``) and as one word of the grid's
grammar (``gks:en+de;rule=delta``). The registry says which routers, merges, rules and
parameters exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from gks_eval.errors import GksError, UsageError, did_you_mean, whole_reason
from gks_eval.method.arguments import check_of_another, methods_of, parameter_names
from gks_eval.method.declaration import TARGET, Merge, Method, Parameters, Router, Rule
from gks_eval.method.grammar import EXPERT, MERGE, languages, read_kind, word
from gks_eval.method.parameters import checked
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.method.stand_ins import STAND_INS, StandIns
from gks_eval.util.digest import digest

__all__ = [
    "NOT_GIVEN",
    "PRESETS",
    "Combine",
    "NotGiven",
    "Setting",
    "as_setting",
    "setting_arguments",
]

Combine = Literal["factors", "outputs"]

PRESETS: Final[dict[str, tuple[str, Combine]]] = {
    "paper": ("factors", "factors"),
    "peft": ("factors", "outputs"),
    "exact": ("delta", "outputs"),
}
MAX_LENGTH: Final = 5000
# The router of a single adapter: an expert, or the result of a merge.
_ALONE: Final = "uniform"


class NotGiven:
    """Type of `NOT_GIVEN`, which distinguishes an absent argument from Python's None.

    lm-eval's command line turns the word ``none`` into None, and ``subtract=none`` has a meaning.
    """

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven()


class Setting(BaseModel):
    """One way of running a library on a base model.

    Parameters of the rule, router or merge are arguments too, such as ``top_k`` of Arrow; those of
    other methods are ignored.

    Attributes:
        subtract: General adapters whose mean is subtracted; ``("avg",)`` stands for all that the
            library has, ``("experts",)`` for all experts, ``()`` for none.
        rule: The rule that subtracts: a name in `gks_eval.method.registry.RULES`. A joint rule
            needs an empty `subtract`, which is then the default.
        combine: Whether factors or outputs of the experts are mixed, see `gks_eval.method.routed`.
        router: A name in ``ROUTERS``, ``merge:NAME`` with a name in ``MERGES``, the name of one
            expert (``expert:NAME`` where a router has that name), or ``none`` for the base alone.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    subtract: tuple[str, ...] = ("avg",)
    rule: str = "factors"
    combine: Combine = "factors"
    router: str = "arrow"

    @model_validator(mode="before")
    @classmethod
    def _with_parameters(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: given[name] for name in cls.model_fields if name in given}
        loose = {name: value for name, value in given.items() if name not in values}
        if unknown := sorted(loose.keys() - parameter_names()):
            known = setting_arguments()
            raise UsageError(f"unknown argument {unknown[0]}; {did_you_mean(unknown[0], known)}.")
        router = str(values.get("router", cls.model_fields["router"].default))
        expert = router.removeprefix(EXPERT)
        if router != expert and expert not in ROUTERS and expert != "none":
            values["router"] = router = expert
        rule = str(values.get("rule", cls.model_fields["rule"].default))
        if RULES.get(rule).joint is not None and values.setdefault("subtract", ()):
            given_word = "+".join(values["subtract"])
            raise UsageError(
                f"rule={rule} subtracts no general adapter, and subtract={given_word} was given; "
                "use subtract=none or another rule."
            )
        for method in methods_of(rule, router):
            fields = method.parameters.fields()
            own = {name: value for name, value in loose.items() if name in fields}
            values |= checked(method.parameters, own).model_dump(exclude_unset=True)
        for name in loose.keys() - values.keys():  # of another method: ignored, but checked
            check_of_another(name, loose[name])
        if loose.get("level") == "sequence" and router in ROUTERS:
            fields = ROUTERS.get(router).parameters.fields()
            if "top_k" in fields and "level" not in fields:
                raise UsageError(
                    f"router={router} makes one choice per token; leave level=sequence out, or use "
                    "arrow, spectr or norm."
                )
        joint = RULES.get(rule).joint is not None
        if values.get("experts") == "rescaled" and not joint and not values.get("subtract", True):
            values["subtract"] = ("avg",)  # the residuals give the norms
        return values

    @model_validator(mode="after")
    def _subtracts_what_is_replaced(self) -> Setting:
        stand_ins = self.stand_ins
        if stand_ins.general != "own" and not self.subtract:
            raise UsageError(
                f"general={stand_ins.general} replaces what is subtracted, but nothing is; name "
                f"the general adapters, as gks:avg;general={stand_ins.general}."
            )
        return self

    @classmethod
    def from_arguments(
        cls,
        *,
        preset: str | NotGiven = NOT_GIVEN,
        subtract: str | Iterable[str] | NotGiven | None = NOT_GIVEN,
        rule: str | NotGiven = NOT_GIVEN,
        combine: str | NotGiven = NOT_GIVEN,
        router: str | NotGiven | None = NOT_GIVEN,
        **parameters: Any,
    ) -> Setting:
        """Build a setting from the model's arguments; a given argument overrides the preset.

        Raises:
            UsageError: An argument is invalid; the message says which values are valid.
        """
        chosen = "paper" if isinstance(preset, NotGiven) else str(preset)
        if chosen not in PRESETS:
            raise UsageError(f"preset={chosen} is unknown; {did_you_mean(chosen, PRESETS)}.")
        values: dict[str, Any] = dict(zip(("rule", "combine"), PRESETS[chosen], strict=True))
        given = {
            "rule": rule if isinstance(rule, NotGiven) else str(rule),
            "combine": combine if isinstance(combine, NotGiven) else str(combine),
            "router": router if isinstance(router, NotGiven) else word(router),
            **parameters,
        }
        values |= {name: v for name, v in given.items() if not isinstance(v, NotGiven)}
        if not isinstance(subtract, NotGiven):
            values["subtract"] = languages(subtract)
        if values["combine"] not in get_args(Combine):
            given_word = values["combine"]
            near = did_you_mean(given_word, get_args(Combine))
            raise UsageError(f"combine={given_word} is unknown; {near}.")
        return cls(**values)

    @classmethod
    def parse(cls, text: str) -> tuple[Setting, dict[str, str]]:
        """Read the grid's grammar: ``KIND[:VALUE][;argument=value]...``.

        Kinds: ``base``, ``ROUTER[:LANGUAGES]``, ``gks:LANGUAGES`` (short for ``arrow:LANGUAGES``),
        ``expert:NAME``, ``merge:NAME``.

        Returns:
            The setting, and the arguments after ``;`` that are not the setting's own.

        Raises:
            UsageError: The text does not follow the grammar.
        """
        if len(text) > MAX_LENGTH:
            raise UsageError(f"setting '{text:.60}...' is longer than {MAX_LENGTH} characters.")
        head, *tail = text.strip().split(";")
        arguments = read_kind(head.strip(), text)
        plain = arguments["router"] == "none"
        own = setting_arguments()
        others: dict[str, str] = {}
        named: set[str] = set()
        for part in filter(None, (piece.strip() for piece in tail)):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not name or not value:
                raise UsageError(f"setting {text!r}: {part!r} is not written argument=value.")
            if name in named:
                raise UsageError(f"setting {text!r}: {name} is given twice; keep one.")
            named.add(name)
            if plain and name in own:
                raise UsageError(
                    f"setting {text!r}: base takes no {name}, because it has no router."
                )
            (arguments if name in own else others)[name] = value
        return cls.from_arguments(**arguments), others

    @property
    def uses_library(self) -> bool:
        """Whether any adapter takes part."""
        return self.router != "none"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the rule and of the router or merge, by name, defaults included."""
        methods = [m for m in methods_of(self.rule, self.router) if m is not STAND_INS]
        chosen = [self._parameters_of(method) for method in methods]
        chosen += [self.stand_ins] if self.stand_ins.used else []
        return {name: value for one in chosen for name, value in one.model_dump().items()}

    @property
    def expert(self) -> str | None:
        """The one expert that runs alone, if one does."""
        if self.router.startswith(EXPERT):
            return self.router.removeprefix(EXPERT)
        return self.router if _is_expert(self.router) else None

    @property
    def target(self) -> str | None:
        """The general adapter that the rule adds, if it needs one and one is named."""
        rule, parameters = self.rule_method()
        return parameters.model_dump()["target"] if rule.needs == TARGET else None

    @property
    def merge(self) -> str | None:
        """The merge that makes one adapter of all experts, if one does."""
        return self.router.removeprefix(MERGE) if self.router.startswith(MERGE) else None

    @property
    def applies_rule(self) -> bool:
        """Whether the rule changes the experts: it subtracts something or is a joint rule."""
        return bool(self.subtract) or RULES.get(self.rule).joint is not None

    @property
    def stand_ins(self) -> StandIns:
        """The stand-ins for general adapters and experts."""
        chosen = self._parameters_of(STAND_INS)
        assert isinstance(chosen, StandIns)
        return chosen

    @property
    def by_context(self) -> bool:
        """Whether the router makes one choice per context, not per token."""
        return self.uses_library and self.router_method()[1].by_context

    def rule_method(self) -> tuple[Rule, Parameters]:
        """Return the rule and its parameters."""
        method = RULES.get(self.rule)
        return method, self._parameters_of(method)

    def router_method(self) -> tuple[Router, Parameters]:
        """Return the router and its parameters; for a single adapter, `uniform`.

        Raises:
            UsageError: The router is unknown.
        """
        alone = self.merge is not None or self.expert is not None
        method = ROUTERS.get(_ALONE if alone else self.router)
        return method, self._parameters_of(method)

    def merge_method(self) -> tuple[Merge, Parameters]:
        """Return the merge and its parameters.

        Raises:
            UsageError: The merge is unknown.
        """
        method = MERGES.get(self.merge or "")
        return method, self._parameters_of(method)

    def _parameters_of(self, method: Method) -> Parameters:
        fields, given = method.parameters.fields(), self.__pydantic_extra__ or {}
        return method.parameters(**{name: given[name] for name in fields if name in given})

    def methods(self) -> list[tuple[Method, Parameters]]:
        """Return every method that takes part, with its parameters."""
        if not self.uses_library:
            return []
        return [
            (method, self._parameters_of(method))
            for method in methods_of(self.rule if self.applies_rule else None, self.router)
            if method is not STAND_INS or self.stand_ins.used
        ]

    def fitted(self, experts: int) -> Setting:
        """Return this setting for a library of `experts` experts; defaults may depend on that.

        Raises:
            UsageError: A parameter does not fit.
        """
        changed: dict[str, Any] = {}
        for method, parameters in self.methods():
            held, fitted = parameters.model_dump(), _fitted(method, parameters, experts)
            changed |= {name: fitted[name] for name in held if held[name] != fitted[name]}
        return Setting(**self.model_dump() | changed) if changed else self

    def arguments(self) -> dict[str, Any]:
        """Return the model's arguments that give this setting, as the command line takes them."""
        plain = {**self.model_dump(), "subtract": "+".join(self.subtract) or "none"}
        return {**plain, **self.parameters} if self.uses_library else plain

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this setting's numbers from another's, as plain JSON values.

        Arguments that cannot matter are left out: parameters of other methods, the rule if
        nothing is subtracted, the combination if one adapter runs.
        """
        if not self.uses_library:
            return {"router": "none"}
        kept: dict[str, Any] = {"router": self.router, "subtract": list(self.subtract)}
        if self.merge is None:
            kept["combine"] = self.combine
        if self.applies_rule:
            kept["rule"] = self.rule
        for method, parameters in self.methods():
            values = parameters.model_dump()
            for name, field in method.parameters.fields().items():
                value = values[name]
                if value != field.default or not _since(field):
                    kept[name] = value
        return kept

    def digest(self, **more: Any) -> str:
        """Return a short hash of `identity` and of `more` values that distinguish the result."""
        return digest({"setting": self.identity(), **more})


def as_setting(given: Setting | str) -> Setting:
    """Return a setting that may be given as text in the grid's grammar.

    Raises:
        UsageError: The text does not follow the grammar, or names an argument of the model.
    """
    if isinstance(given, Setting):
        return given
    setting, others = Setting.parse(given)
    if others:
        raise UsageError(
            f"setting {given!r}: {next(iter(others))} belongs to the model gks_arrow and not to a "
            "setting; leave it out."
        )
    return setting


def setting_arguments() -> frozenset[str]:
    """Return the names of all arguments of settings, the parameters of every method included."""
    return frozenset({*Setting.model_fields, "preset"}) | parameter_names()


def _fitted(method: Method, parameters: Parameters, experts: int) -> dict[str, Any]:
    try:
        return parameters.fitted(experts).model_dump()
    except GksError:
        raise
    except Exception as error:  # of a method of another package
        raise UsageError(
            f"the parameters of {method.name} do not fit {experts} experts "
            f"({type(error).__name__}: {whole_reason(error)}); give other values."
        ) from error


def _is_expert(router: str) -> bool:
    return router != "none" and not router.startswith(MERGE) and router not in ROUTERS


def _since(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and "since" in extra
