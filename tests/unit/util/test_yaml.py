"""YAML to typed model: every fault with its line, all at once, and no way to hurt the reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from common import assert_sentence
from pydantic import Field

from gks_eval.errors import ConfigError
from gks_eval.util.yaml import FrozenModel, load_typed, parse_typed


class Inner(FrozenModel):
    depth: int = Field(default=1, ge=1)
    colour: str = "red"


class Outer(FrozenModel):
    name: str
    size: int = 3
    inner: Inner = Inner()
    table: dict[str, int] = Field(default_factory=dict)
    items: list[Inner] = Field(default_factory=list)


def fail(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_typed(text, Outer, "my.yaml")
    assert_sentence(caught.value, "my.yaml")
    return caught.value


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# ü\nname: ü\nsize: 0x10\ntable: {a: 1}\nitems:\n- {depth: 2}\n", "utf-8")
    found = load_typed(path, Outer)
    assert found == Outer(name="ü", size=16, table={"a": 1}, items=[Inner(depth=2)])


def test_aliases_within_bounds_are_followed() -> None:
    found = parse_typed("name: x\ninner: &a {depth: 4}\nitems: [*a, *a]\n", Outer, "my.yaml")
    assert found.items == [Inner(depth=4)] * 2


def test_all_faults_at_once_each_with_its_line() -> None:
    error = fail(
        "size: many\n"  # 1: no number
        "inner:\n"
        "  depth: 0\n"  # 3: below 1
        "  color: blue\n"  # 4: unknown, near 'colour'
        "table:\n"
        "  a: 1\n"
        "  b: x\n"  # 7: no number
        "items:\n"
        "  - depth: 2\n"
        "  - dept: 3\n"  # 10: unknown, near 'depth'
        "wholly_else: 1\n"  # 11: unknown
    )
    for part in (
        "has 7 faults: ",
        "line 1: name is missing",
        "line 1: size: ",
        "line 3: inner.depth: ",
        "line 4: inner.color is not a known key; did you mean 'colour'",
        "line 7: table.b: ",
        "line 10: items.1.dept is not a known key; did you mean 'depth'",
        "line 11: wholly_else is not a known key; known: inner, items, name, size, table",
    ):
        assert part in str(error), f"{part!r} is not in: {error}"


def test_one_fault_is_counted_as_one() -> None:
    assert "has 1 fault: line 1: size: " in str(fail("{name: x, size: y}"))


def test_what_is_missing_is_said_to_be_where_it_should_stand() -> None:
    class Holder(FrozenModel):
        outer: Outer

    with pytest.raises(ConfigError, match=r"line 2: outer\.name is missing"):
        parse_typed("# first\nouter:\n  size: 1\n", Holder, "my.yaml")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["has no mapping"]),
        ("# only a comment\n", ["has no mapping"]),
        ("- a\n- b\n", ["has no mapping"]),
        ("just words", ["has no mapping"]),
        ("name: [1, 2\nsize: 3\n", ["not valid YAML", "line "]),
        ("name: 'open\n", ["not valid YAML", "line 2"]),
        ("name: x\n\tsize: 3\n", ["not valid YAML", "line 2"]),
        ("name: x\n  size: 3\n", ["not valid YAML", "line 2"]),
        ("name: *nowhere\n", ["not valid YAML", "line 1", "nowhere"]),
        ("name: x\n---\nname: y\n", ["not valid YAML", "line 2"]),
        ("name: x\nsize: 1\nname: y\n", ["line 3", "'name' occurs twice", "keep one"]),
        ("name: x\ninner: {depth: 1, depth: 2}\n", ["line 2", "'depth' occurs twice"]),
        ("name: x\n? [a, b]\n: 1\n", ["line 2", "a key must be a single value"]),
        ("name: x\n? {a: b}\n: 1\n", ["line 2", "a key must be a single value"]),
        ("name: x\ninner:\n  <<: {depth: 1}\n", ["not valid YAML", "line 3"]),
        ("name: !!python/object/apply:os.system ['true']\n", ["line 1", "not allowed"]),
        ("name: x\ninner: !mine {depth: 1}\n", ["line 2", "the tag !mine is not allowed"]),
        ("name: !!python/name:os.system\n", ["not valid YAML", "line 1"]),
        ("name: !secret x\n", ["not valid YAML", "line 1"]),
        ("name: x\nsize: 2026-99-99\n", ["my.yaml"]),
        ("name: x\nsize: " + "9" * 5000, ["not valid YAML"]),
        ("name: x\nsize: !!bool x\n", ["not valid YAML", "line 2", "quote it"]),
        ('name: x\nsize: "\\ud800"\n', ["not valid YAML", "line 2", "quote it"]),
        ('name: x\n"a\\udfffb": 1\n', ["not valid YAML", "line 2", r"a\udfffb"]),
        ('name: "\\U10010000"\n', ["not valid YAML", "an escape", "not a character"]),
        ('name: "\\UFFFFFFFF"\n', ["not valid YAML", "an escape", "not a character"]),
        ("name: x\nsize: !!int ''\n", ["not valid YAML", "line 2", "quote it"]),
        ("name: x\nsize: !!timestamp y\n", ["not valid YAML", "line 2", "y is not a valid value"]),
        ("name: x\nsize: 1\n? 0x" + "f" * 5000 + "\n: 1\n", ["keys should be strings"]),
        ("name: x\nsize: 1\n" + "k" * 900 + ": 1\n", ["line 3: kkk", "kkk... is not a known key"]),
        ('name: x\nsize: 1\n"\\e[31m\\n": 1\n', [r"line 3: '\x1b[31m\n' is not a known key"]),
        ("name: \x07\n", ["not valid YAML"]),
        ("name: &a [*a]\n", ["with its aliases expanded"]),
        ("name: " + "[" * 60 + "]" * 60, ["too deeply nested"]),
        ("name: " + "[" * 1500, ["my.yaml"]),
        ("name:\nsize: 1\n", ["line 1: name: "]),
        ("name: x\ntable: {no: 1}\n", ["line 2", "the key 'no' means False in YAML; quote it"]),
        ("name: x\n~: 1\n", ["line 2", "the key '~' means None"]),
    ],
)
def test_broken_text(text: str, parts: list[str]) -> None:
    assert_sentence(fail(text), *parts)


def test_a_long_list_of_faults_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_typed("\n".join(f"key_{n}: 1" for n in range(300)), Outer, "my.yaml")
    message = str(caught.value)
    assert "my.yaml has 301 faults: " in message
    assert message.endswith("; and 281 more")
    assert "key_18 " in message
    assert "key_19 " not in message


def test_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gks_eval.util.yaml.MAX_NODES", 100)
    assert "too many" in str(fail(f"name: [{'1,' * 100}]"))


def test_an_alias_bomb_ends_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]  # 9 ** 12
    assert "with its aliases expanded" in str(fail("\n".join(lines)))


def test_nothing_is_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    tag = "!!python/object/apply:pathlib.Path"
    fail(f"name: {tag}.touch [{tag} ['{target}']]")
    assert not target.exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin, huge = tmp_path / "latin.yaml", tmp_path / "huge.yaml"
    latin.write_bytes("name: caf\xe9\n".encode("latin-1"))
    huge.write_bytes(b"# " + b"x" * (1 << 20))
    for path, part in (
        (tmp_path / "absent.yaml", "does not exist; check the path"),
        (latin, "not UTF-8 (byte 9)"),
        (huge, "larger than 128 KiB"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_typed(path, Outer)
        assert_sentence(caught.value, str(path), part)


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer(name="x").size = 4
