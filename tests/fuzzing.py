"""Spoilt documents for the parsers, and the one property that all parsers hold.

A parser returns its typed value or raises a `GksError` of one sentence; it ends, and takes a
bounded amount of memory. `GKS_FUZZ_EXAMPLES=20000` makes a long run with fresh random inputs: so
many where the short run has 150.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gks_eval.errors import GksError

LONG = int(os.environ.get("GKS_FUZZ_EXAMPLES", "0"))
FUZZ: dict[str, Any] = {
    "derandomize": not LONG,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
CPU_SECONDS = 20  # of one input; every one takes milliseconds, so this tells a hang, not a speed
MEMORY = 1 << 30  # beyond what the process holds already
TALLIES: dict[str, Counter[str]] = {}

# --------------------------------------------------------------------------- the property


def holds(
    family: str,
    inputs: st.SearchStrategy[Any],
    parse: Callable[[Any], object],
    *names: str,
    examples: int = 150,
) -> None:
    """Give `parse` many inputs; those it refuses must be refused by a sentence with all `names`."""
    tally = TALLIES[family] = Counter()

    @settings(max_examples=LONG * examples // 150 or examples, **FUZZ)
    @given(inputs)
    def each(value: Any) -> None:
        try:
            with bounded():
                parse(value)
        except GksError as error:
            check_sentence(error, names)
            tally["refused"] += 1
        else:
            tally["accepted"] += 1

    began = time.monotonic()
    each()
    tally["seconds"] = round(time.monotonic() - began)
    # Inputs that all fail at the first gate would test little.
    assert tally["accepted"], "no input was sound"
    assert tally["refused"], "no input was unsound"


def check_sentence(error: GksError, names: Sequence[str] = ()) -> None:
    message = str(error)
    assert 20 < len(message) < 12_000, message[:500]
    assert len(message.splitlines()) == 1, message
    assert "Traceback" not in message, message
    message.encode()
    for name in names:
        assert name in message, f"{name!r} is not in: {message}"


@contextmanager
def bounded() -> Iterator[None]:
    """Stop a hang, and on Linux a growth beyond `MEMORY`, by exceptions that no parser expects."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, _hangs)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def _hangs(*_: object) -> None:
    raise AssertionError(f"still at it after {CPU_SECONDS} s of processor time")


# --------------------------------------------------------------------------- values

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308,
    5e-324, float("nan"), float("inf"), float("-inf"), "", " ", "\0", "\ud800", "\u202e", "a\nb",
    "a\r\x85b", "\x1b[31m", "..", "../..", "/", "~", "~nobody/x", "C:\\x", "x" * 3000, "1", "nan",
    "none", "avg", "true", "org/repo", "org/repo@..", "{{x}}", "(a+)+$", "é", "𝟘", [], {}, [[]],
    [None], {"": None}, {"a": {"a": 1}},
)  # fmt: skip
values = st.one_of(
    st.sampled_from(ODD),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=6),
    st.integers(1, 60).map(lambda depth: _nested(depth)),
    st.lists(st.sampled_from(ODD), max_size=3),
    st.dictionaries(st.text(max_size=3), st.sampled_from(ODD), max_size=3),
)


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of everything below `node`."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _places(node[key])


@st.composite
def spoilt(draw: Any, document: Any, others: st.SearchStrategy[Any] = values, most: int = 2) -> Any:
    """A sound document with keys dropped, renamed or added, and values exchanged."""
    tree = {"": deepcopy(document)}
    for _ in range(draw(st.integers(0, most))):
        node, key = draw(st.sampled_from(list(_places(tree))))
        change = draw(st.sampled_from(("value", "value", "drop", "rename", "add", "swap")))
        if change == "value" or (node is tree and change in ("drop", "rename")):
            node[key] = deepcopy(draw(others))
        elif change == "drop":
            del node[key]
        elif change == "swap":
            other, place = draw(st.sampled_from(list(_places(tree))))
            node[key], other[place] = deepcopy(other[place]), deepcopy(node[key])
        elif isinstance(node[key], list):
            node[key].append(deepcopy(draw(others)))
        elif isinstance(node[key], dict) and change == "add":
            node[key][draw(st.text(max_size=4))] = deepcopy(draw(others))
        elif isinstance(node, dict):
            name = draw(st.sampled_from((f"{key} ", f"{key}"[:-1], f"{key}x", "\0", "\ud800")))
            node[name] = node.pop(key)
        else:
            node[key] = deepcopy(draw(others))
    return tree.get("", {})


# --------------------------------------------------------------------------- texts

LINES = (
    "<<: *a", "<<: {a: 1}", "? [a]\n: b", "- x", "\tkey: 1", "a: !!timestamp 2026-99-99",
    "%YAML 9.9", "--- ", "...", "= : =", "a: &a [*a]", "!!set {a, b}", "a: |", "a: '", "[" * 60,
    "{" * 3000, "}", "a: !!python/object/apply:os.system [x]", "#", "no: 1", "~: 1", "1: 2",
    "a: 0x" + "f" * 5000, '"\\x00": 1', '"\\ud800": "\\udfff"', "2026-01-01: 2026-01-01", "\x85",
    "\ufeff", ",", '"a": 1,',
)  # fmt: skip
SCALARS = (
    "*a", "&a x", "!!float x", "!!int ''", "!!bool x", "!!null x", "!!str [a]", "!!seq x",
    "!!map x", "!!binary aGk=", "!!binary /w==", "!!binary '@'", "!!omap [a: 1]",
    "!!pairs [a: 1]", "2026-13-45", "2026-01-01", "1e9999", ".inf", "-.nan", "0x", "0b", "1_000",
    "190:20:30", "0o17", ">-", "'open", '"\\ud800"', '"\\x00"', "!x y", "=", "<<", "[1, 2",
    "{a: 1}", "~", "yes", "9" * 5000, "NaN", "-Infinity", "1e999", "-0", '"a"',
    "!!python/name:os.system", "@x", "`x`", "% x", "&a [*a, *a]",
)  # fmt: skip
BYTES = (
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc2\x85", b"\xe2\x80\xa8",
    b"\r", b"\n", b"\t", b'"', b"\\", b"{", b"]", b":", b"&a ", b"*a ", b"!!", b"\\ud800",
    b"9" * 400,
)  # fmt: skip


@st.composite
def lines_spoilt(draw: Any, text: str, most: int = 2) -> str:
    """A text with lines dropped, doubled, moved, put in, or given another value."""
    lines = text.splitlines() or [""]
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        line = lines[at] if lines else ""
        indent = line[: len(line) - len(line.lstrip())]
        change = draw(st.sampled_from(("drop", "double", "insert", "scalar", "tag", "move")))
        if change == "drop":
            lines[at : at + 1] = []
        elif change == "double":
            lines.insert(at, line)
        elif change == "insert":
            lines.insert(at, indent + draw(st.sampled_from(LINES)))
        elif change == "move":
            lines.insert(draw(st.integers(0, len(lines))), line)
        else:
            head, colon, tail = line.partition(":")
            with_tag = f" {draw(st.sampled_from(('&a', '*a', '!!str', '!!int', '!x')))}{tail}"
            tail = with_tag if change == "tag" else f" {draw(st.sampled_from(SCALARS))}"
            lines[at : at + 1] = [head + colon + tail]
    return "\n".join(lines) + "\n"


@st.composite
def bytes_spoilt(draw: Any, raw: bytes) -> bytes:
    """Mostly `raw` itself, else cut short, with a bit flipped, or with bytes put in or doubled."""
    change = draw(st.sampled_from(("none",) * 6 + ("cut", "flip", "insert", "double", "remove")))
    at = draw(st.integers(0, max(0, len(raw) - 1))) if change != "none" else 0
    if change == "cut":
        return raw[:at]
    if change == "flip" and raw:
        return raw[:at] + bytes([raw[at] ^ (1 << draw(st.integers(0, 7)))]) + raw[at + 1 :]
    if change == "insert":
        return raw[:at] + draw(st.sampled_from(BYTES)) + raw[at:]
    end = at + draw(st.integers(1, 40)) if change in ("double", "remove") else at
    if change == "double":
        return raw[:end] + raw[at:]
    return raw[:at] + raw[end:] if change == "remove" else raw


def yaml_files(document: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """Spoilt YAML files: by value, then as often as not by line, by byte, or by both."""
    return _files(
        spoilt(dict(document)).map(
            lambda tree: yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        )
    )


def json_text(tree: Any, indent: int | None = 0) -> str:
    return json.dumps(tree, ensure_ascii=True, indent=indent)


def json_files(document: Any, **options: Any) -> st.SearchStrategy[bytes]:
    """Spoilt JSON files, likewise."""
    return _files(spoilt(document, **options).map(json_text))


def _files(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    plain = texts.map(_encoded)
    by_line = texts.flatmap(lines_spoilt).map(_encoded)
    return st.one_of(
        plain, plain, by_line, plain.flatmap(bytes_spoilt), by_line.flatmap(bytes_spoilt)
    )


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
