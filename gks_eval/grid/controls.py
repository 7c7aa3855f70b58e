"""The controls of a treatment, as settings of a grid.

A treatment is a routed setting that subtracts general adapters, such as ``gks:avg``. Each control
changes one thing about it and keeps every other argument. `docs/controls.md` says what each one
keeps and destroys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from gks_eval.errors import GksError, UsageError
from gks_eval.grid.short_names import split_name
from gks_eval.library.load import Library
from gks_eval.method.controls import exchanged
from gks_eval.method.routers.arrow import ArrowParameters
from gks_eval.method.setting import Setting, setting_arguments

__all__ = ["Control", "Treatment", "controls_of", "read_treatment"]

_SCALES: Final = (-1.0, 0.25, 0.5, 2.0)
_EXAMPLE: Final = "give a routed setting with subtraction, such as gks:avg"


@dataclass(frozen=True)
class Control:
    """What a treatment is compared with.

    Attributes:
        name: Such as ``general=random``.
        role: What a tie with the treatment speaks against: ``subtraction``, ``routing`` or the
            ``library``; ``amount`` for multiples of what is subtracted, which are no stand-ins.
        over: Whether `settings` are draws of one control, or experts of which the best is meant.
        settings: In the grid's grammar.
    """

    name: str
    role: Literal["subtraction", "amount", "library", "routing"]
    over: Literal["draws", "experts"]
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Treatment:
    """A routed setting that subtracts general adapters.

    Attributes:
        text: As written, without a short name.
        setting: What it stands for.
        arguments: What follows ``;``, router and languages left out.
        others: Those of `arguments` that are not the setting's own, such as ``library``.
    """

    text: str
    setting: Setting
    arguments: Mapping[str, str]
    others: Mapping[str, str]

    @property
    def languages(self) -> str:
        """Return the general adapters, as the grammar has them."""
        return "+".join(self.setting.subtract)

    def written(self, router: str, languages: str, **changed: str) -> str:
        """Return a setting with this treatment's arguments, `changed` in their place."""
        kind = "gks" if router == "arrow" and languages else router
        arguments = {**self.arguments, **changed}
        return _text(f"{kind}:{languages}" if languages else kind, arguments)

    def expert(self, name: str) -> str:
        """Return the setting of one expert alone."""
        return _text(f"expert:{name}", self.others)


def read_treatment(text: str) -> Treatment:
    """Read a treatment in the grid's grammar.

    Raises:
        UsageError: It is no setting, or none that routes and subtracts a general adapter.
    """
    _, text = split_name(text.strip(), setting_arguments())
    setting, others = Setting.parse(text)
    if not setting.uses_library or setting.expert or setting.merge:
        raise UsageError(f"--treatment {text!r} routes nothing; {_EXAMPLE}.")
    if not setting.subtract:
        raise UsageError(f"--treatment {text!r} subtracts no general adapter; {_EXAMPLE}.")
    if setting.stand_ins.used or setting.router in ("random", "shuffled"):
        raise UsageError(f"--treatment {text!r} is itself a control; {_EXAMPLE}.")
    pairs = (part.partition("=") for part in text.split(";")[1:] if part.strip())
    arguments = {name.strip(): value.strip() for name, _, value in pairs}
    for name in ("router", "subtract", "seed"):
        arguments.pop(name, None)
    return Treatment(text, setting, arguments, others)


def controls_of(
    treatment: Treatment, library: Library, seeds: int
) -> tuple[list[Control], list[str]]:
    """Return the controls of a treatment, and why others are left out, each as half a sentence.

    Args:
        treatment: What is compared.
        library: Its library.
        seeds: Draws of each random control; their seeds are 0, 1, ...

    Raises:
        GksError: The library cannot run the treatment.
    """
    own = library.check(treatment.setting)
    found: list[Control] = []
    left_out: list[str] = []
    for control in _candidates(treatment, library, seeds):
        try:
            settings = [library.check(Setting.parse(text)[0]) for text in control.settings]
        except GksError as error:
            why = str(error).rstrip(".").removeprefix(f"{control.name}: ")
            left_out.append(f"{control.name}: {why}")
            continue
        if reason := _reason(control, own, settings, library):
            left_out.append(f"{control.name}: {reason}")
        else:
            found.append(control)
    return found, left_out


def _candidates(treatment: Treatment, library: Library, seeds: int) -> Iterator[Control]:
    router, languages = treatment.setting.router, treatment.languages
    # The treatment's router may have defaults of its own, such as top_k=2 of phatgoose.
    usual = ArrowParameters().model_dump()
    held = {
        name: str(value)
        for name, value in treatment.setting.parameters.items()
        if name in usual and value != usual[name]
    }
    one = Control("", "subtraction", "draws", ())

    def drawn(written: str, **changed: str) -> tuple[str, ...]:
        return tuple(
            treatment.written(written, languages, **changed, seed=str(seed))
            for seed in range(seeds)
        )

    def same(**changed: str) -> tuple[str, ...]:
        return (treatment.written(router, languages, **changed),)

    yield replace(one, name="no subtraction", settings=(treatment.written(router, ""),))
    yield replace(one, name="experts=rescaled", settings=same(experts="rescaled"))
    for general in ("random", "rotated", "permuted"):
        settings = drawn(router, general=general)
        yield replace(one, name=f"general={general}", settings=settings)
    yield replace(one, name="general=other", settings=same(general="other"))
    for multiple in _SCALES:
        value = f"{multiple * float(treatment.setting.parameters.get('scale', 1.0)):g}"
        yield Control(f"scale={value}", "amount", "draws", same(scale=value))
    yield Control("experts=random", "library", "draws", drawn(router, experts="random"))
    yield Control("router random", "routing", "draws", drawn("random", **held))
    yield Control("router shuffled", "routing", "draws", drawn("shuffled", **held))
    uniform = treatment.written("uniform", languages)
    yield Control("router uniform", "routing", "draws", (uniform,))
    experts = tuple(map(treatment.expert, library.experts))
    yield Control("best single expert", "routing", "experts", experts)


def _reason(
    control: Control, treatment: Setting, settings: list[Setting], library: Library
) -> str | None:
    """Return why a control that can run would show nothing."""
    if control.role == "routing" and treatment.router == "uniform":
        return "the treatment does not route"
    if control.role == "routing" and len(library.experts) < 2:
        return f"library {library.name} has one expert"
    if any(setting.identity() == treatment.identity() for setting in settings):
        return "it is the treatment itself"
    if control.name == "general=permuted":
        general = library.general_of(treatment)
        shapes = {name: library.shapes[name] for adapter in general for name in adapter.pairs}
        if all(name == other for name, other in exchanged(shapes, 0).items()):
            return "no two layers of the general adapters have the same shape"
    return None


def _text(head: str, arguments: Mapping[str, str]) -> str:
    return ";".join([head, *(f"{name}={value}" for name, value in arguments.items())])
