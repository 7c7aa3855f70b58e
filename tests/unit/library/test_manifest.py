"""The fields of library.yaml and what is refused in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from common import assert_sentence
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gks_eval.errors import ConfigError
from gks_eval.library.manifest import LibraryConfig
from gks_eval.util.paths import adapters_dir, cache_dir, tasks_dir
from gks_eval.util.yaml import parse_typed


def parse(text: str) -> LibraryConfig:
    return parse_typed(text, LibraryConfig, "library.yaml")


def test_everything_that_can_be_said() -> None:
    digest = "a" * 64
    config = parse(
        "base_model: org/base\n"
        "revision: abc123\n"
        "experts: {ts_0: org/repo/sub@main, 'b.c-d': experts/b}\n"
        "general: {en: general/en}\n"
        "load: {quantization: nf4}\n"
        "made_by: [make it]\n"
        f"hashes: {{experts/ts_0: {digest}, general/en: {digest}}}\n"
        "provenance: {anything: [1, {at: all}]}\n"
    )
    assert list(config.experts) == ["ts_0", "b.c-d"]
    assert config.load.quantization == "nf4"
    assert config.provenance == {"anything": [1, {"at": "all"}]}


def test_the_least_that_must_be_said() -> None:
    config = parse("base_model: b\nexperts: {a: x}\n")
    assert config.general == {}
    assert config.revision is None
    assert config.load.quantization == "none"


@pytest.mark.parametrize("name", ["arrow", "uniform", "none", "base", "avg", "experts"])
@pytest.mark.parametrize("kind", ["experts", "general"])
def test_words_of_the_grammar_are_no_names(kind: str, name: str) -> None:
    experts = "" if kind == "experts" else "experts: {a: x}\n"
    with pytest.raises(ConfigError) as caught:
        parse(f"base_model: b\n{experts}{kind}:\n  {name}: x\n")
    assert_sentence(caught.value, f"{name!r} is a reserved word", "line ")


@pytest.mark.parametrize("name", ["a b", "a/b", "a+b", "a;b", "a=b", "../a", "-a", ".a", "", "é"])
def test_names_that_no_command_line_could_say(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"base_model: b\nexperts:\n  '{name}': x\n")
    assert_sentence(caught.value, "line 3", "is no usable name")


# Words that lm-eval's parsers make something else of: leading zeros, exponents, underscores, hex.
CHANGED = ("7", "01", "1e3", "1E-5", "1_000", "2.50", "nan", "inf", "Infinity", "0x1f", "0b1-2j",
           "3j", "true", "FALSE", "None", "NONE")  # fmt: skip


@pytest.mark.parametrize("kind", ["experts", "general"])
@pytest.mark.parametrize("name", CHANGED)
def test_names_that_lm_eval_would_change(name: str, kind: str) -> None:
    assert lm_eval_reads(name) != [name] * 3
    experts = "" if kind == "experts" else "experts: {a: x}\n"
    with pytest.raises(ConfigError) as caught:
        parse(f"base_model: b\n{experts}{kind}:\n  '{name}': x\n")
    why = "true, false or none" if name.lower() in ("true", "false", "none") else "a number"
    assert_sentence(caught.value, f"'{name}' is no usable name", f"reads it as {why}", "line ")
    assert_sentence(caught.value, f"such as adapter_{name}")


def test_numbers_of_yaml_are_refused_for_the_same_reason() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("base_model: b\nexperts: {1: x}\ngeneral: {2.5: x}\n")
    assert_sentence(caught.value, "line 2", "'1' is no usable name", "'2.5'", "line 3", "a number")


def lm_eval_reads(*names: str) -> list[str]:
    """What `lm_eval` hands to the model, of its arguments in each of the three forms it takes."""
    import argparse

    from lm_eval._cli.utils import MergeDictAction
    from lm_eval.utils import simple_parse_args_string

    parser = argparse.ArgumentParser()
    parser.add_argument("--model_args", action=MergeDictAction, nargs="+")
    word = "+".join(names)
    given = (f"library=lib,router={word}", json.dumps({"router": word}))
    return [
        simple_parse_args_string(given[0])["router"],
        *(parser.parse_args(["--model_args", text]).model_args["router"] for text in given),
    ]


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True) | st.from_regex(
    r"(0x|0b|0o)?[0-9][0-9a-fe_.j-]{0,6}", fullmatch=True
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(NAMES, min_size=1, max_size=3))
def test_every_accepted_name_comes_through_lm_evals_parsers(names: list[str]) -> None:
    accepted = [name for name in names if _accepts(name)]
    for chosen in ([name] for name in accepted):
        assert lm_eval_reads(*chosen) == chosen * 3
    if accepted:  # as subtract=en+de
        assert lm_eval_reads(*accepted) == ["+".join(accepted)] * 3


def _accepts(name: str) -> bool:
    try:
        LibraryConfig.model_validate({"base_model": "b", "experts": {name: "x"}})
    except ValidationError:
        return False
    return True


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            "base_modell: b\n"
            "experts:\n"
            "  good: path\n"
            "  bad name: path\n"
            "  empty: ''\n"
            "general: [en, de]\n"
            "load: {quantization: fp4}\n"
        )
    assert_sentence(
        caught.value,
        "library.yaml has 6 faults",
        "base_model is missing",
        "line 1: base_modell is not a known key; did you mean 'base_model'",
        "line 4: ",
        "line 5: experts.empty: ",
        "line 6: general: ",
        "line 7: load.quantization: ",
        "'nf4'",
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("base_model: b\nexperts: {}\n", "name at least one expert"),
        ("base_model: b\nexperts:\n", "line 2: experts: "),
        ("base_model: ''\nexperts: {a: x}\n", "line 1: base_model: "),
        ("base_model: b\nexperts: {a: 5}\n", "line 2: experts.a: "),
        ("base_model: b\nexperts: {a: x}\nhashes: {experts/b: aa}\n", "not listed: experts/b"),
        ("base_model: b\nexperts: {1: x}\n", "line 2: experts.1"),
    ],
)
def test_single_faults(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert_sentence(caught.value, "library.yaml has 1 fault: ", part)


def test_the_language_code_that_yaml_takes_for_false() -> None:
    with pytest.raises(ConfigError, match=r"line 3: the key 'no' means False in YAML; quote it"):
        parse("base_model: b\nexperts: {a: x}\ngeneral: {no: x}\n")
    assert list(parse("base_model: b\nexperts: {a: x}\ngeneral: {'no': x}\n").general) == ["no"]


def test_folders_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tasks_dir().is_dir()
    assert adapters_dir().is_dir()
    monkeypatch.setenv("GKS_EVAL_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("GKS_EVAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "gks_eval"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / ".cache" / "gks_eval"
