"""Declarations of other packages: a faulty one is a sentence, and breaks no other setting."""

from __future__ import annotations

import inspect
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from common import random_pair
from pydantic import Field, field_validator, model_validator

from gks_eval.errors import UsageError
from gks_eval.method.declaration import Layer, Merge, Parameters
from gks_eval.method.declared import OTHER_ARGUMENTS
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.parameters import checked
from gks_eval.method.registry import MERGES, Registry
from gks_eval.method.setting import Setting


@merge(paper="a test")
def first(layer: Layer, parameters: Parameters) -> LoraPair:
    """The first."""
    return layer.residuals[0]


class WithoutDefault(Parameters):
    amount: int = Field(description="x")


class WrongDefault(Parameters):
    amount: int = Field(default="many", description="x")


class Tensor(Parameters):
    amount: Any = Field(default=torch.ones(2), description="x")


class Infinite(Parameters):
    amount: float = Field(default=float("inf"), description="x")


class ArgumentOfSettings(Parameters):
    router: str = Field(default="x", description="x")


class ArgumentOfTheModel(Parameters):
    pretrained: str = Field(default="x", description="x")


class Fits(Parameters):
    def fitted(self, experts: int) -> Any:
        raise ZeroDivisionError


class ByContext(Parameters):
    @property
    def by_context(self) -> Any:
        return "sequence"


FAULTY: list[tuple[dict[str, Any], str]] = [
    *(({"name": name}, "is a word of settings") for name in ("none", "Base", "gks", "merge")),
    *(({"name": name}, "has other characters") for name in ("a;b", "a:b", "", "x\n", 7, None)),
    ({"name": "x" * 65}, "has other characters"),
    ({"summary": None}, "summary is no text"),
    ({"paper": 3}, "paper is no text"),
    ({"combine": None}, "lacks its function"),
    *(({"parameters": p}, "no subclass of Parameters") for p in (None, dict, Parameters())),
    ({"parameters": WithoutDefault}, "amount has no default"),
    ({"parameters": WrongDefault}, "no usable values"),
    ({"parameters": Tensor}, "no usable values"),
    ({"parameters": Infinite}, "no usable values"),
    ({"parameters": ArgumentOfSettings}, "'router' has the name of another argument"),
    ({"parameters": ArgumentOfTheModel}, "'pretrained' has the name of another argument"),
    ({"parameters": Fits}, "no usable values"),
    ({"parameters": ByContext}, "neither True nor False"),
]


@pytest.mark.parametrize(("changes", "fault"), FAULTY)
def test_a_faulty_declaration_cannot_be_added(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=f"a merge cannot be added, as .*{fault}.*; correct"):
        MERGES.add(replace(first, **changes))


def test_another_kind_cannot_be_added() -> None:
    with pytest.raises(UsageError, match="it is no Merge"):
        MERGES.add(first.combine)  # type: ignore[arg-type]


def test_a_faulty_declaration_of_an_installed_package_breaks_only_its_own_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declared = {
        f"faulty{n}": replace(first, **{"name": f"faulty{n}", **changes})
        for n, (changes, _) in enumerate(FAULTY)
    }
    sound = replace(first, name="sound")
    module = SimpleNamespace(**declared, sound=sound)
    registry: Registry[Merge] = Registry(Merge, {})
    entries = [EntryPoint(name, f"theirs:{name}", registry.group) for name in vars(module)]
    monkeypatch.setattr("gks_eval.method.registry.entry_points", lambda group: entries)
    monkeypatch.setattr("gks_eval.method.registry.import_module", lambda _: module)
    assert registry.usable() == [sound]
    assert registry.get("sound") is sound
    for name in declared:
        said = rf"comes from theirs:{name} and cannot be loaded .TypeError: .*; update or"
        with pytest.raises(UsageError, match=said):
            registry.get(name)
        warned = f"The merge {name} of theirs:{name} is broken: "
        assert sum(warned in record.getMessage() for record in caplog.records) == 1


def test_no_argument_of_the_model_can_be_a_parameter() -> None:
    from lm_eval.models.huggingface import HFLM

    from gks_eval.model.lm import GksArrowLM

    for kind in (HFLM, GksArrowLM):
        names = set(inspect.signature(kind.__init__).parameters)
        assert names - {"self", "kwargs", "hf_arguments"} <= OTHER_ARGUMENTS


class Checked(Parameters):
    low: int = Field(default=1, description="x")
    high: int = Field(default=2, description="x")

    @model_validator(mode="after")
    def _ordered(self) -> Checked:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self

    @field_validator("high")
    @classmethod
    def _fails(cls, value: int) -> int:
        return {99: {}["x"]}[value] if value == 99 else value  # type: ignore[index]

    def fitted(self, experts: int) -> Any:
        if self.low == 0:
            raise ZeroDivisionError("no low")
        return self


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("low=3", "low=3: low is above high; give other values"),
        ("low=9;high=8", "low=9, high=8: low is above high"),
        ("high=99", "high=99: KeyError: 'x'"),
        ("high=many", "high=many: needs a whole number"),
    ],
)
def test_values_that_the_checks_of_another_package_refuse(words: str, said: str) -> None:
    with MERGES.lent(replace(first, parameters=Checked)):
        with pytest.raises(UsageError, match=said):
            Setting.parse(f"merge:first;{words}")
        with pytest.raises(UsageError, match=words.partition(";")[0]):
            Setting.parse(f"arrow;{words}")  # of another method, checked too
        with pytest.raises(UsageError, match=r"of first do not fit 4 experts .ZeroDivisionError"):
            Setting.parse("merge:first;low=0")[0].fitted(4)


class Bounded(Parameters):
    share: float = Field(default=0.5, ge=0, lt=1)
    many: int | None = Field(default=None, gt=0, le=4)
    on: bool = False
    how: Literal["first", "none"] = "first"
    free: str = "x"
    named: int = Field(default=1, json_schema_extra={"expected": "a prime"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"share": 1}, "share=1: needs a number of at least 0 and below 1."),
        ({"many": 5}, "many=5: needs a whole number above 0 and of at most 4."),
        ({"on": "maybe"}, "on=maybe: needs True or False."),
        ({"how": "x"}, "how=x: needs one of first, none."),
        ({"free": 3}, "free=3: needs a value."),
        ({"named": True}, "named=True: needs a prime."),
        ({"named": "x"}, "named=x: needs a prime."),
    ],
)
def test_which_values_a_parameter_takes_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked(Bounded, given)
    assert str(caught.value) == said
    assert checked(Bounded, {"on": True, "how": None}) == Bounded(on=True, how="none")


def test_what_a_merge_declares_by_default() -> None:
    said = first.name, first.summary, first.paper, first.needs, first.equal_factors, first.instead
    assert said == ("first", "The first.", "a test", "", False, "")


def test_a_method_may_be_added_again() -> None:
    with MERGES.lent(first):
        pair = random_pair(seed=1)
        assert MERGES.get("first")(Layer("", [pair])) is pair
