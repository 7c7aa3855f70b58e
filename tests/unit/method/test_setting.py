"""Settings from arguments and from the grid's grammar, and their identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, get_args

import pytest
from common import assert_sentence
from pydantic import ValidationError

from gks_eval.errors import UsageError
from gks_eval.method.arguments import all_methods
from gks_eval.method.declaration import Method
from gks_eval.method.family import family_of, needs_of
from gks_eval.method.parameters import checked
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import NOT_GIVEN, PRESETS, Setting, setting_arguments


def test_the_default_is_the_papers() -> None:
    setting = Setting.from_arguments()
    assert setting == Setting()
    assert setting.arguments() == {
        "subtract": "avg",
        "rule": "factors",
        "combine": "factors",
        "router": "arrow",
        "scale": 1.0,
        "top_k": 3,
        "temperature": 1.0,
        "level": "token",
        "input_norm": "id",
        "proto_norm": "id",
        "proto_scale": "none",
    }


@pytest.mark.parametrize(
    ("preset", "rule", "combine"),
    [
        ("paper", "factors", "factors"),
        ("peft", "factors", "outputs"),
        ("exact", "delta", "outputs"),
    ],
)
def test_presets_and_what_beats_them(preset: str, rule: str, combine: str) -> None:
    setting = Setting.from_arguments(preset=preset)
    assert (setting.rule, setting.combine) == (rule, combine)
    own = Setting.from_arguments(preset=preset, rule="orthogonal")
    assert (own.rule, own.combine) == ("orthogonal", combine)
    own = Setting.from_arguments(preset=preset, combine="factors")
    assert (own.rule, own.combine) == (rule, "factors")
    assert len(PRESETS) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (NOT_GIVEN, ("avg",)),
        (None, ()),
        ("none", ()),
        ([], ()),
        ("avg", ("avg",)),
        ("en", ("en",)),
        ("en+de", ("en", "de")),
        (" en + de ", ("en", "de")),
        (["en", "de"], ("en", "de")),
        (("fr",), ("fr",)),
        (7, ("7",)),
    ],
)
def test_subtract(given: Any, expected: tuple[str, ...]) -> None:
    assert Setting.from_arguments(subtract=given).subtract == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (NOT_GIVEN, "arrow"),
        (None, "none"),
        ("none", "none"),
        ("ts_expert_3", "ts_expert_3"),
        (0, "0"),
        (7, "7"),
    ],
)
def test_router(given: Any, expected: str) -> None:
    setting = Setting.from_arguments(router=given)
    assert setting.router == expected
    assert setting.uses_library == (expected != "none")


def test_numbers_may_come_as_words() -> None:
    setting = Setting.from_arguments(top_k="5", temperature="0.5")
    assert (setting.parameters["top_k"], setting.parameters["temperature"]) == (5, 0.5)
    assert Setting.from_arguments(top_k=2.0, temperature=2).top_k == 2


def test_the_word_none_is_a_value_although_lm_eval_makes_it_none() -> None:
    assert Setting.from_arguments(proto_scale=None).parameters["proto_scale"] == "none"
    pico = Setting.from_arguments(rule="pico", subtract=None, rescale=None)
    assert pico.parameters["rescale"] == "none"
    assert Setting.from_arguments(router="uniform", rescale=None).router == "uniform"


NOT_WHOLE = "needs a whole number of at least 1"
NOT_A_NUMBER = "needs a number"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        *(({"top_k": value}, [f"top_k={value}", NOT_WHOLE]) for value in
          (0, -2, "x", "", 2.5, None, True, float("nan"), float("inf"), [3])),
        *(({"temperature": value}, [f"temperature={value}", NOT_A_NUMBER]) for value in
          ("nan", "inf", float("nan"), float("inf"), "hot", None, False)),
        *(({"router": "norm", "temperature": value}, ["needs a number above 0"]) for value in
          (0, 0.0, -1)),
        ({"input_norm": "norm_d"}, ["input_norm=norm_d", "one of id, layer, unit"]),
        ({"proto_norm": "norm_p"}, ["proto_norm=norm_p", "one of id, layer, unit, experts"]),
        ({"proto_scale": True}, ["proto_scale=True", "one of none, singular, squared"]),
        *(({"scale": value}, [f"scale={value}", "needs a number"]) for value in
          ("x", "nan", float("inf"), None, True)),
        ({"router": "merge:svd", "rank": 0}, ["rank=0", NOT_WHOLE]),
        ({"router": "merge:svd", "rank": "two"}, ["rank=two", NOT_WHOLE]),
        ({"router": "merge:tsv", "lambda": "x"}, ["lambda=x", "needs a number"]),
        ({"router": "merge:mean", "lambda": "nan"}, ["lambda=nan", "needs a number"]),
        ({"router": "merge:ties", "density": 0}, ["density=0", "number above 0 and of at most 1"]),
        ({"router": "merge:ties", "on": "both"}, ["on=both", "one of factors, delta"]),
        ({"router": "merge:tie"}, ["merge=tie is unknown", "did you mean 'ties'"]),
        ({"rule": "pico", "subtract": "en+de"}, ["rule=pico", "subtract=en+de", "subtract=none"]),
        ({"rule": "factor"}, ["rule=factor", "did you mean 'factors'"]),
        ({"rule": None}, ["rule=None", "known: cross_lingual, delta, factors, orthogonal, pico"]),
        ({"combine": "output"}, ["combine=output", "did you mean 'outputs'"]),
        ({"combine": "delta"}, ["combine=delta", "known: factors, outputs"]),
        ({"preset": "papr"}, ["preset=papr", "did you mean 'paper'"]),
        ({"preset": None}, ["preset=None", "known: exact, paper, peft"]),
        ({"subtract": "en++de"}, ["subtract=en++de", "such as en+de"]),
        ({"subtract": ""}, ["subtract=", "such as en+de"]),
        ({"subtract": "en+none"}, ["subtract=en+none", "such as en+de"]),
        ({"subtract": "en+en"}, ["subtract=en+en", "twice"]),
        ({"subtract": "avg+en"}, ["subtract=avg+en", "twice"]),
        ({"subtract": "experts+en"}, ["subtract=experts+en", "name experts alone"]),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Setting.from_arguments(**arguments)
    assert_sentence(caught.value, *parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", {"router": "none", "subtract": ()}),
        ("arrow", {"subtract": ()}),
        (" arrow ", {"subtract": ()}),
        ("gks:en", {"subtract": ("en",)}),
        ("gks:avg", {}),
        ("gks:experts", {"subtract": ("experts",)}),
        ("uniform", {"router": "uniform", "subtract": ()}),
        ("expert:ts_0", {"router": "ts_0", "subtract": ()}),
        ("expert: ts_0 ", {"router": "ts_0", "subtract": ()}),
        ("gks:en+de;rule=delta;top_k=5", {"subtract": ("en", "de"), "rule": "delta", "top_k": 5}),
        ("gks:en; preset = exact ;", {"subtract": ("en",), "rule": "delta", "combine": "outputs"}),
        ("arrow;temperature=0.5", {"subtract": (), "temperature": 0.5}),
        ("uniform;subtract=en", {"router": "uniform", "subtract": ("en",)}),
    ],
)
def test_the_grammar(text: str, expected: dict[str, Any]) -> None:
    setting, others = Setting.parse(text)
    assert setting == Setting(**expected)
    assert others == {}


def test_arguments_that_are_not_the_settings_own_are_handed_back() -> None:
    setting, others = Setting.parse("gks:en;top_k=2;max_length=512;dtype=float32;a=b=c")
    assert setting == Setting(subtract=("en",), top_k=2)
    assert others == {"max_length": "512", "dtype": "float32", "a": "b=c"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["known: "]),
        ("gsk:en", ["'gsk'", "did you mean 'gks'"]),
        ("gks", ["gks: needs languages, as gks:en+de"]),
        ("gks:", ["gks: needs languages"]),
        ("expert:", ["needs an expert's name"]),
        ("expert:none", ["none is no expert"]),
        ("base:x", ["base takes nothing after a colon"]),
        ("arrow;top_k", ["'top_k' is not written argument=value"]),
        ("arrow;top_k=", ["is not written argument=value"]),
        ("arrow;=3", ["is not written argument=value"]),
        ("arrow;top_k=3; top_k=5", ["top_k is given twice", "keep one"]),
        ("arrow;top_k=0", ["top_k=0"]),
        ("gks:en+en", ["twice"]),
        ("bse", ["did you mean 'base'"]),
        ("exprt:a", ["did you mean 'expert'"]),
        ("arow", ["did you mean 'arrow'"]),
        ("merge", ["needs a merge: mean, task_arithmetic"]),
        ("merge:tie", ["merge 'tie' is unknown; did you mean 'ties'"]),
        ("gks:none", ["to subtract nothing, write arrow."]),
        ("norm:none", ["to subtract nothing, write norm."]),
        ("norm:", ["norm: needs languages, as norm:en+de"]),
    ],
)
def test_bad_grammar(text: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        Setting.parse(text)
    assert_sentence(caught.value, *parts)


@pytest.mark.parametrize("text", ["arrow,token=hf_secret", "arrow token=hf_secret;top_k=1"])
def test_the_value_of_an_argument_behind_a_comma_is_not_shown(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Setting.parse(text)
    assert_sentence(caught.value, "setting '...token=...' has no kind")
    assert "secret" not in str(caught.value)


SAME = [
    (Setting(router="none"), Setting(router="none", subtract=(), rule="delta", top_k=1)),
    (Setting(subtract=(), rule="delta"), Setting(subtract=(), rule="factors")),
    (Setting(router="uniform", top_k=1), Setting(router="uniform", temperature=9.0)),
    (Setting(router="a", subtract=(), top_k=1), Setting(router="a", subtract=(), rule="delta")),
    (Setting(temperature=1), Setting(temperature=1.0)),
    (Setting(), Setting(scale=1)),  # as in identities that were written before there was a scale
    (Setting(subtract=()), Setting(subtract=(), scale=2)),
    (Setting(), Setting(input_norm="id", proto_norm="id", proto_scale="none")),
    (Setting(temperature=0), Setting(temperature=-3.5)),
    (Setting(temperature=0.0), Setting(temperature=-0.0)),
    (Setting(top_k=-1).fitted(7), Setting(top_k=7)),
    (Setting(rule="pico"), Setting(rule="pico", subtract=(), scale=2)),
]
DIFFERENT = [
    Setting(),
    Setting(subtract=()),
    Setting(subtract=("en",)),
    Setting(subtract=("en", "de")),
    Setting(rule="delta"),
    Setting(combine="outputs"),
    Setting(router="uniform"),
    Setting(router="a"),
    Setting(router="none"),
    Setting(top_k=2),
    Setting(temperature=2.0),
    Setting(temperature=-1),
    Setting(top_k=-1).fitted(9),
    Setting(input_norm="layer"),
    Setting(proto_norm="layer"),
    Setting(proto_scale="squared"),
    Setting(scale=-1),
    Setting(scale=0.5),
    Setting(rule="pico"),
    Setting(rule="pico", rescale="each"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_identity_leaves_out_what_cannot_matter(one: Setting, other: Setting) -> None:
    assert one.identity() == other.identity()
    assert one.digest() == other.digest()


def test_identity_tells_apart_what_does() -> None:
    digests = {setting.digest() for setting in DIFFERENT}
    digests |= {Setting().digest(base="x"), Setting().digest(base="y")}
    assert len(digests) == len(DIFFERENT) + 2
    for setting in DIFFERENT:
        assert json.loads(json.dumps(setting.identity())) == setting.identity()
        assert len(setting.digest()) == 16


def test_the_digest_is_the_same_tomorrow_and_in_another_process() -> None:
    # SHA-256 of '{"setting":{"combine":"factors","router":"arrow","rule":"factors",
    # "subtract":["avg"],"temperature":1.0,"top_k":3}}', without the line break: by sha256sum.
    assert Setting().digest() == "d9546bd6b0c2f51f"
    code = "from gks_eval.method.setting import Setting; print(Setting().digest())"
    for seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.strip() == Setting().digest()


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("base", {"router": "none"}),
        ("uniform", {"router": "uniform", "subtract": [], "combine": "factors"}),
        (
            "gks:avg;general=random;seed=1",
            {
                "router": "arrow",
                "subtract": ["avg"],
                "combine": "factors",
                "rule": "factors",
                "top_k": 3,
                "temperature": 1.0,
                "general": "random",
                "seed": 1,
            },
        ),
    ],
)
def test_identities_that_results_on_disk_have(text: str, identity: dict[str, Any]) -> None:
    assert Setting.parse(text)[0].identity() == identity


@pytest.mark.parametrize("text", ["merge:svd", "merge:ties;lambda=0.3;on=delta;rank=2", "gks:en"])
def test_arguments_give_the_setting_again(text: str) -> None:
    setting, _ = Setting.parse(text)
    again = Setting.from_arguments(**setting.arguments())
    assert again.identity() == setting.identity()
    assert again.parameters == setting.parameters


def test_a_parameter_may_be_called_by_a_keyword_of_python() -> None:
    setting, others = Setting.parse("merge:task_arithmetic;lambda=0.3")
    assert others == {}
    assert setting.parameters["lambda"] == 0.3
    assert setting.identity()["lambda"] == 0.3
    assert setting.merge_method()[1].model_dump() == {"lambda": 0.3}
    assert "lambda" in setting_arguments()


def test_a_value_for_another_method_must_fit_one_that_has_the_parameter() -> None:
    for inner in ("mean", "tsv"):  # core_space takes both, knots the first
        assert Setting(inner=inner) == Setting()
    with pytest.raises(UsageError, match="inner=max: needs one of ties"):
        Setting(inner="max")


def test_settings_are_frozen_hashable_and_closed() -> None:
    assert {Setting(), Setting()} == {Setting()}
    with pytest.raises(ValidationError):
        Setting().top_k = 4
    with pytest.raises(UsageError, match="did you mean 'top_k'"):
        Setting(topk=4)
    assert {*Setting.model_fields, "preset", "top_k", "temperature"} <= setting_arguments()
    assert repr(NOT_GIVEN) == "NOT_GIVEN"


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("base", "base"),
        ("arrow", "routers"),
        ("gks:avg;rule=delta;scale=0.5", "routers"),
        ("spectr:en", "routers"),
        ("merge:ties;rule=pico", "merges"),
        ("merge:mean;experts=random", "controls"),
        ("gks:en;general=rotated", "controls"),
        ("shuffled:en", "controls"),
        ("uniform", "controls"),
        ("random", "controls"),
        ("expert:a", "experts"),
    ],
)
def test_every_setting_has_a_family(text: str, family: str) -> None:
    assert family_of(Setting.parse(text)[0]) == family


def test_a_setting_needs_what_its_methods_need() -> None:
    assert needs_of(Setting.parse("gks:avg;rule=delta")[0]) == ""
    assert needs_of(Setting.parse("gks:avg;general=random")[0]) == ""
    both = Setting.parse("phatgoose:en;rule=cross_lingual;target=de")[0]
    assert needs_of(both) == "a target language, prepared vectors"
    assert needs_of(Setting.parse("phatgoose:en")[0]) == ROUTERS.get("phatgoose").needs != ""


@pytest.mark.parametrize("given", ["-0.0", "-2", "0"])
def test_all_temperatures_of_the_root_of_the_width_are_one_setting(given: str) -> None:
    setting, _ = Setting.parse(f"arrow;temperature={given}")
    assert setting.digest() == Setting.parse("arrow;temperature=0.0")[0].digest()


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_no_parameter_that_is_a_number_is_nan_or_infinite(method: Method) -> None:
    for name, field in method.parameters.fields().items():
        if float not in (field.annotation, *get_args(field.annotation)):
            continue
        for value in ("nan", "inf", "-inf", "1e999", float("nan"), float("inf")):
            with pytest.raises(UsageError, match=f"{name}={value}: needs a number"):
                checked(method.parameters, {name: value})


@pytest.mark.parametrize(
    ("text", "defaults"),
    [
        ("merge:task_arithmetic", {"lambda": 0.4}),  # Ilharco et al. 2023, without tuning
        ("merge:ties", {"density": 0.2, "lambda": 1.0}),  # Yadav et al. 2023
        ("merge:dare_linear", {"density": 0.5, "seed": 0}),
        ("merge:dare_ties", {"density": 0.5, "seed": 0, "lambda": 1.0}),
        ("merge:tsv", {"lambda": 1.0}),
        ("merge:core_space", {"density": 0.2, "inner": "ties", "seed": 0, "lambda": None}),
        ("random", {"seed": 0}),
        ("shuffled", {"seed": 0}),
        ("gks:avg;general=random", {"seed": 0, "experts": "own"}),
        ("merge:knots", {"density": 0.2, "inner": "ties"}),
        ("phatgoose", {"top_k": 2}),  # Muqeeth et al. 2024
        ("arrow", {"top_k": 3, "temperature": 1.0}),
        ("gks:en+de;rule=cross_lingual;target=de", {"keep": 0.5, "add": 0.5}),  # the authors' code
    ],
)
def test_defaults_are_those_of_the_papers(text: str, defaults: dict[str, Any]) -> None:
    found = Setting.parse(text)[0].parameters
    assert {name: found[name] for name in defaults} == defaults
