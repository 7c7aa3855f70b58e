"""What runs on top of the base: which residuals, mixed how, chosen by which router.

A `Setting` is everything that can change without loading the base model again. It is written in
two ways: as arguments of the model (``subtract=en+de,rule=delta``) and as one word of the grid's
grammar (``gks:en+de;rule=delta``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, get_args

from pydantic import Field, ValidationError

from gks_eval.config.yaml import FrozenModel
from gks_eval.errors import UsageError, did_you_mean

__all__ = ["ARGUMENTS", "NOT_GIVEN", "PRESETS", "Combine", "NotGiven", "Preset", "Rule", "Setting"]

Rule = Literal["factors", "delta", "orthogonal"]
Combine = Literal["factors", "outputs"]
Preset = Literal["paper", "peft", "exact"]

PRESETS: Final[dict[str, tuple[Rule, Combine]]] = {
    "paper": ("factors", "factors"),
    "peft": ("factors", "outputs"),
    "exact": ("delta", "outputs"),
}
MAX_LENGTH: Final = 5000


class NotGiven:
    """Type of `NOT_GIVEN`, which tells an absent argument from Python's None.

    lm-eval's command line turns the word ``none`` into None, and ``subtract=none`` has a meaning.
    """

    def __repr__(self) -> str:
        return "NOT_GIVEN"


NOT_GIVEN: Final = NotGiven()


class Setting(FrozenModel):
    """One way of running a library on a base model.

    Attributes:
        subtract: General adapters whose mean is subtracted; ``("avg",)`` stands for all that the
            library has, ``()`` for none.
        rule: How it is subtracted, see `gks_eval.subtract`.
        combine: Whether factors or outputs of the experts are mixed, see `gks_eval.routed`.
        router: ``arrow``, ``uniform``, ``none`` (the base alone) or the name of one expert.
        top_k: Experts that Arrow mixes per token; the default becomes the number of experts where
            a library has fewer, see `gks_eval.library.Library.check`.
        temperature: Divides Arrow's scores before the softmax.
    """

    subtract: tuple[str, ...] = ("avg",)
    rule: Rule = "factors"
    combine: Combine = "factors"
    router: str = "arrow"
    top_k: int = Field(default=3, ge=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @classmethod
    def from_arguments(
        cls,
        *,
        preset: str | NotGiven = NOT_GIVEN,
        subtract: str | Iterable[str] | NotGiven | None = NOT_GIVEN,
        rule: str | NotGiven = NOT_GIVEN,
        combine: str | NotGiven = NOT_GIVEN,
        router: str | NotGiven | None = NOT_GIVEN,
        top_k: int | str | NotGiven = NOT_GIVEN,
        temperature: float | str | NotGiven = NOT_GIVEN,
    ) -> Setting:
        """Build a setting from the model's arguments; a named argument beats the preset.

        Raises:
            UsageError: An argument has no usable value; the sentence says which would be.
        """
        chosen = "paper" if isinstance(preset, NotGiven) else str(preset)
        if chosen not in PRESETS:
            raise UsageError(f"preset={chosen} is unknown; {did_you_mean(chosen, PRESETS)}.")
        values: dict[str, Any] = dict(zip(("rule", "combine"), PRESETS[chosen], strict=True))
        given = {
            "rule": rule,
            "combine": combine,
            "router": router if isinstance(router, NotGiven) else _word(router),
            "top_k": top_k,
            "temperature": temperature,
        }
        values |= {name: v for name, v in given.items() if not isinstance(v, NotGiven)}
        if not isinstance(subtract, NotGiven):
            values["subtract"] = _languages(subtract)
        for name, choices in (("rule", get_args(Rule)), ("combine", get_args(Combine))):
            word = str(values[name])
            if word not in choices:
                raise UsageError(f"{name}={word} is unknown; {did_you_mean(word, choices)}.")
        for name in ("top_k", "temperature"):
            if isinstance(values.get(name), bool):
                raise UsageError(f"{name}={values[name]}: {_expectation(name)}.")
        try:
            return cls(**values)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            field = str(fault["loc"][0])
            raise UsageError(f"{field}={values[field]}: {_expectation(field)}.") from None

    @classmethod
    def parse(cls, text: str) -> tuple[Setting, dict[str, str]]:
        """Read the grid's grammar: ``kind[:value][;argument=value]...``.

        Kinds: ``base``, ``arrow``, ``gks:LANGUAGES``, ``uniform``, ``expert:NAME``.

        Returns:
            The setting, and the arguments after ``;`` that are not the setting's own.

        Raises:
            UsageError: The text does not follow the grammar.
        """
        if len(text) > MAX_LENGTH:
            raise UsageError(f"setting '{text:.60}...' is longer than {MAX_LENGTH} characters.")
        head, *tail = text.strip().split(";")
        arguments = _kind(head.strip(), text)
        plain = arguments["router"] == "none"
        others: dict[str, str] = {}
        named: set[str] = set()
        for part in filter(None, (piece.strip() for piece in tail)):
            name, equals, value = part.partition("=")
            if not equals or not name.strip() or not value.strip():
                raise UsageError(f"setting {text!r}: {part!r} is not written argument=value.")
            if name.strip() in named:
                raise UsageError(f"setting {text!r}: {name.strip()} stands twice; keep one.")
            named.add(name.strip())
            if plain and name.strip() in ARGUMENTS:
                raise UsageError(
                    f"setting {text!r}: base takes no {name.strip()}, it has no router."
                )
            target = arguments if name.strip() in ARGUMENTS else others
            target[name.strip()] = value.strip()
        return cls.from_arguments(**arguments), others

    @property
    def uses_library(self) -> bool:
        """Whether any adapter takes part."""
        return self.router != "none"

    def arguments(self) -> dict[str, Any]:
        """Return the model's arguments that give this setting, as its command line says them."""
        return {**self.model_dump(), "subtract": "+".join(self.subtract) or "none"}

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this setting's numbers from another's, as plain JSON values.

        Arguments that cannot matter are left out: those of Arrow under another router, and the rule
        where nothing is subtracted.
        """
        if not self.uses_library:
            return {"router": "none"}
        kept: dict[str, Any] = {
            "router": self.router,
            "subtract": list(self.subtract),
            "combine": self.combine,
        }
        if self.subtract:
            kept["rule"] = self.rule
        if self.router == "arrow":
            kept |= {"top_k": self.top_k, "temperature": self.temperature}
        return kept

    def digest(self, **more: Any) -> str:
        """Return a short hash of `identity` and whatever else is to be told apart."""
        return digest({"setting": self.identity(), **more})


ARGUMENTS: Final = frozenset({*Setting.model_fields, "preset"})


def digest(content: Mapping[str, Any]) -> str:
    """Hash plain JSON values: 16 hex digits of the SHA-256 of their canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _word(value: object) -> str:
    return "none" if value is None else str(value).strip()


def _languages(value: str | Iterable[str] | None) -> tuple[str, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        parts = [_word(part) for part in value]
    else:
        parts = _word(value).split("+")
    names = tuple(part.strip() for part in parts)
    if names == ("none",) or not names:
        return ()
    if "" in names or "none" in names:
        raise UsageError(f"subtract={value} is not a list of languages such as en+de.")
    if len(set(names)) < len(names) or ("avg" in names and len(names) > 1):
        raise UsageError(
            f"subtract={value} counts a general adapter twice; name each once, or avg alone."
        )
    return names


def _kind(head: str, text: str) -> dict[str, str]:
    kind, colon, value = (part.strip() for part in head.partition(":"))
    plain = {"base": "none", "arrow": "arrow", "uniform": "uniform"}
    if kind in plain:
        if colon:
            raise UsageError(f"setting {text!r}: {kind} takes nothing after a colon.")
        return {"router": plain[kind], "subtract": "none"}
    if kind in ("gks", "expert"):
        if not value:
            what = "languages, as gks:en+de" if kind == "gks" else "an expert's name"
            raise UsageError(f"setting {text!r}: {kind}: needs {what}.")
        if kind == "gks" and value == "none":
            raise UsageError(f"setting {text!r}: subtracting nothing is called arrow.")
        if kind == "expert" and value in ("arrow", "uniform", "none"):
            raise UsageError(f"setting {text!r}: {value} is no expert; name one of the library's.")
        return (
            {"router": "arrow", "subtract": value}
            if kind == "gks"
            else {"router": value, "subtract": "none"}
        )
    known = [*plain, "gks", "expert"]
    if "=" in kind:  # an argument behind a comma; its value, which may be a token, stays untold
        name = re.split(r"[,\s]", kind.partition("=")[0])[-1]
        raise UsageError(
            f"setting '...{name}=...' has no kind; arguments follow ';', arrow;top_k=1, and a "
            "short name stands before a setting, short=gks:en."
        )
    raise UsageError(f"setting {text!r}: {kind!r} is unknown; {did_you_mean(kind, known)}.")


def _expectation(name: str) -> str:
    return {
        "top_k": "needs a whole number of at least 1",
        "temperature": "needs a number above 0",
    }.get(name, "has no usable value")
