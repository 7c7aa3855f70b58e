"""What stands on the command line: settings in their grammar, model arguments, hub ids, paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fuzzing import ODD, holds
from hypothesis import strategies as st

from gks_eval.errors import HubError
from gks_eval.grid import parse_settings
from gks_eval.library.hub import HubSource
from gks_eval.library.load import read_manifest
from gks_eval.method.setting import Setting, setting_arguments

WORDS = (
    "base arrow gks uniform expert none avg en de+fr en+en + : ; = ;; top_k temperature rule "
    "combine preset subtract router library scoring batch_size delta factors exact paper peft 0 1 "
    "-1 2.5 1e999 nan inf ²  x .. / \\ a/b ;top_k=2 ;rule=delta ;temperature=0.5 ;preset=exact "
    ":en :alpha"
).split(" ")
ODD_WORDS = ["\0", "\ud800", "\u202e", "\n", "9" * 1500, "x" * 300, "é", "🙂", "\x1b[31m", "'", '"']
HUB = (
    "org repo org/repo sub /sub @ @v1 @.. @refs/pr/1 / // . .. ../ - _ ~ : \\ x%20y é a b "
    "checkpoint-1"
).split(" ")

settings = st.one_of(
    st.lists(st.sampled_from(WORDS + ODD_WORDS), max_size=6).map("".join),
    st.text(max_size=12),
    st.sampled_from(("base", "arrow", "gks:en+de;rule=delta;top_k=5", "expert:a;library=b")),
)


def test_settings() -> None:
    def parse(text: str) -> None:
        setting, _ = Setting.parse(text)
        again = Setting.from_arguments(**setting.arguments())
        assert again.identity() == setting.identity()
        (cell,) = parse_settings([text])
        assert cell.slug not in ("", ".", "..")
        assert not set(cell.slug) & set("/\\\0 \n")
        assert len(cell.slug.encode()) < 200

    holds("settings", settings, parse, examples=300)


def test_model_arguments() -> None:
    odd = st.sampled_from(ODD) | st.sampled_from(WORDS) | st.integers(-2, 5) | st.floats()
    sound = {
        "preset": "exact", "subtract": "en+de", "rule": "delta", "combine": "outputs",
        "router": "arrow", "top_k": 2, "temperature": 0.5,
    }  # fmt: skip

    def parse(arguments: dict[str, Any]) -> None:
        setting = Setting.from_arguments(**arguments)
        assert setting.parameters.get("top_k", 1) >= 1
        assert math.isfinite(setting.parameters.get("temperature", 1.0))
        assert len(setting.digest()) == 16

    some = st.fixed_dictionaries(
        {}, optional={name: st.just(value) | odd for name, value in sound.items()}
    )
    assert set(sound) <= setting_arguments()
    holds("model arguments", some, parse)


def test_hub_ids() -> None:
    texts = st.lists(st.sampled_from((*HUB, *ODD_WORDS)), max_size=6).map("".join)

    def parse(text: str) -> None:
        if not HubSource.looks_like(text):
            with pytest.raises(HubError):
                HubSource.parse(text)
        source = HubSource.parse(text)
        assert str(source) == text
        assert ".." not in f"{source.repo}/{source.folder}/{source.revision}".split("/")
        assert not Path(source.folder).is_absolute()

    holds("hub ids", texts | st.text(max_size=10), parse)


def test_references_to_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up in earnest: in an empty folder, among the bundled ones, in the hub's cache."""
    monkeypatch.chdir(tmp_path)
    words = (*HUB, *ODD_WORDS, "phi3-mini", "smollm2-demo", "library.yaml")
    texts = st.lists(st.sampled_from(words), max_size=4).map("".join)
    texts |= st.sampled_from(("phi3-mini", "./smollm2-demo", "smollm2-demo"))
    holds("references", texts, read_manifest, examples=100)
