"""Libraries: found, checked and hashed; every fault is one sentence with its mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import MIXED, assert_sentence, edit_json
from safetensors.torch import load_file, save_file

from gks_eval.errors import (
    CompatibilityError,
    ConfigError,
    GksError,
    HubError,
    LibraryError,
)
from gks_eval.library.load import MANIFEST, bundled_libraries, load_library, read_manifest
from gks_eval.library.peft_adapter import WEIGHTS_FILE


@pytest.fixture
def folder(tmp_path: Path, tiny_library: Callable[..., Path]) -> Path:
    """A good library to spoil."""
    return Path(shutil.copytree(tiny_library("phi3"), tmp_path / "mine"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    content = yaml.safe_load(path.read_text("utf-8")) | changes
    path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")


def manifest(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, **changes)


def text(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / MANIFEST).write_text(content, "utf-8") and None


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, path / WEIGHTS_FILE)


def another_width(folder: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "lora_A" in key]:
            tensors[key] = tensors[key].repeat(1, 2)

    edit_weights(folder / "general" / "de", widen)


def linked_outside(folder: Path) -> None:
    outside = folder.parent / "outside"
    shutil.move(folder / "experts" / "beta", outside)
    (folder / "experts" / "beta").symlink_to(outside)


ONE = {"experts": {"alpha": "experts/alpha"}, "general": {}}
CASES: dict[str, tuple[type[GksError], Callable[[Path], Any], list[str]]] = {
    "no library.yaml": (
        LibraryError,
        lambda f: (f / MANIFEST).unlink(),
        ["has no library.yaml", "write one"],
    ),
    "library.yaml is no YAML": (
        ConfigError,
        text("base_model: x\nexperts: [\n"),
        [MANIFEST, "not valid YAML", "line 3"],
    ),
    "library.yaml is empty": (ConfigError, text(""), [MANIFEST, "has no mapping"]),
    "many faults": (
        ConfigError,
        text("bas_model: x\nexperts:\n  ok: a\n  a b: c\ngeneral: 3\n"),
        [
            MANIFEST,
            "4 faults",
            "base_model is missing",
            "line 1: bas_model is not a known key; did you mean 'base_model'",
            "line 4: ",
            "line 5: general: ",
        ],
    ),
    "a key twice": (
        ConfigError,
        text("base_model: x\nexperts:\n  a: b\n  a: c\n"),
        ["line 4: the key 'a' occurs twice"],
    ),
    "an alias bomb": (
        ConfigError,
        text(
            "base_model: x\nexperts: {a: b}\nprovenance:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"  a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12))
        ),
        ["with its aliases expanded"],
    ),
    "a missing adapter": (
        LibraryError,
        manifest(experts={"alpha": "./nowhere"}, general={}),
        [MANIFEST, "experts/alpha", "./nowhere", "does not exist; check the path"],
    ),
    "an absolute path that is not there": (
        LibraryError,
        manifest(experts={"alpha": "/nowhere/at/all"}, general={}),
        [MANIFEST, "experts/alpha", "/nowhere/at/all", "check the path"],
    ),
    "a misspelt folder that could be a hub id": (
        LibraryError,
        manifest(experts={"alpha": "experts/alhpa"}, general={}),
        [MANIFEST, "experts/alpha names experts/alhpa", "check the path"],
    ),
    "a file for a folder": (
        LibraryError,
        manifest(experts={"alpha": "./experts/alpha/adapter_config.json"}, general={}),
        [MANIFEST, "experts/alpha", "check the path"],
    ),
    "a path out of the folder": (
        LibraryError,
        manifest(experts={"alpha": "../outside"}, general={}),
        [MANIFEST, "experts/alpha points outside its folder (../outside)", "an absolute path"],
    ),
    "a path out of the folder, hidden": (
        LibraryError,
        manifest(experts={"alpha": "experts/../../mine2/x"}, general={}),
        [MANIFEST, "points outside"],
    ),
    "a link out of the folder": (
        LibraryError,
        linked_outside,
        [MANIFEST, "experts/beta points outside", "an absolute path"],
    ),
    "an unknown user's home": (
        LibraryError,
        manifest(experts={"alpha": "~nobody-of-that-name/x"}, general={}),
        [MANIFEST, "experts/alpha is no usable path", "correct it"],
    ),
    "a path that is too long": (
        LibraryError,
        manifest(experts={"alpha": "x" * 900}, general={}),
        [MANIFEST, "experts/alpha is no usable path", "correct it"],
    ),
    "a path that is too long inside a folder that exists": (
        LibraryError,
        manifest(experts={"alpha": "experts/" + "x" * 900}, general={}),
        [MANIFEST, "experts/alpha is no usable path", "correct it"],
    ),
    "a null byte": (
        LibraryError,
        text('base_model: x\nexperts: {alpha: "a\\0b"}\n'),
        [MANIFEST, "experts/alpha is no usable path"],
    ),
    "not made yet": (
        LibraryError,
        manifest(experts={"alpha": "made/alpha"}, made_by=["gks-eval first", "gks-eval second"]),
        [MANIFEST, "experts/alpha does not exist yet", "gks-eval first && gks-eval second"],
    ),
    "a broken adapter is named": (
        LibraryError,
        lambda f: (f / "general" / "de" / WEIGHTS_FILE).write_bytes(b"x"),
        ["general/de/adapter_model.safetensors", "'de'", "copy it again"],
    ),
    "an adapter without config": (
        LibraryError,
        lambda f: (f / "experts" / "beta" / "adapter_config.json").unlink(),
        ["experts/beta", "'beta'", "has no adapter_config.json"],
    ),
    "an adapter for another width": (
        CompatibilityError,
        another_width,
        [MANIFEST, "'alpha' is for a layer of shape (64, 64)", "'de' for (64, 128)", "base model"],
    ),
    "other weights than their hash": (
        LibraryError,
        manifest(hashes={"experts/beta": "0" * 64}),
        ["experts/beta", "another SHA-256", MANIFEST, "copy them again"],
    ),
}


@pytest.mark.parametrize(("kind", "spoil", "parts"), CASES.values(), ids=CASES.keys())
def test_bad_libraries(
    kind: type[GksError], spoil: Callable[[Path], Any], parts: list[str], folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(GksError) as caught:
        load_library(str(folder))
    assert type(caught.value) is kind, repr(caught.value)
    assert_sentence(caught.value, *parts)


@pytest.mark.parametrize(
    ("reference", "kind", "parts"),
    [
        ("smollm2-dem", LibraryError, ["'smollm2-dem'", "did you mean 'smollm2-demo'"]),
        ("./nowhere", LibraryError, ["'./nowhere' is neither a folder, nor bundled, nor a hub id"]),
        ("../../nowhere-at-all", LibraryError, ["neither a folder"]),
        ("x" * 5000, LibraryError, ["is no usable path or name"]),
        ("~nobody-of-that-name/x", LibraryError, ["is no usable path or name"]),
        ("a\0b", LibraryError, ["is no usable path or name"]),
        ("org/library", HubError, ["org/library", "hub cannot be reached", "local folder"]),
    ],
)
def test_libraries_that_are_not_there(
    reference: str, kind: type[GksError], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gks_eval.library.load.bundled_libraries", lambda: ["phi2", "smollm2-demo"])
    with pytest.raises(kind) as caught:
        load_library(reference)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_bundled_libraries_are_found_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gks_eval.util.paths._data_dir", lambda _: tmp_path)
    monkeypatch.chdir(folder)
    assert bundled_libraries() == ["mine"]
    assert load_library("mine").path == folder / MANIFEST
    # A folder of that name where one stands comes first.
    shutil.copytree(folder, folder / "mine")
    assert read_manifest("mine")[0] == Path("mine") / MANIFEST


def test_every_bundled_manifest_is_sound() -> None:
    for name in bundled_libraries():
        _, config = read_manifest(name)
        assert config.base_model


def test_a_library_may_be_named_in_many_ways(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_library(str(folder)).content_hash
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for reference in (
        "mine",
        "./mine",
        "mine/",
        "mine/library.yaml",
        "~/mine",
        str(folder / MANIFEST),
    ):
        assert load_library(reference).content_hash == expected, reference


def test_paths_are_relative_to_the_file_or_absolute(folder: Path, tmp_path: Path) -> None:
    expected = load_library(str(folder))
    away = tmp_path / "away"
    shutil.move(folder / "experts", away)
    edit(folder, experts={name: str(away / name) for name in expected.experts})
    assert load_library(str(folder)).content_hash == expected.content_hash


def test_what_a_library_holds(folder: Path) -> None:
    library = load_library(str(folder))
    assert list(library.experts) == ["alpha", "beta", "gamma", "delta"]
    assert list(library.general) == ["en", "de", "fr"]
    assert library.modules == (
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.self_attn.qkv_proj",
    )
    described = library.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["content_hash"] == library.content_hash
    assert described["experts"]["beta"] == library.experts["beta"].digest


def test_adapters_may_update_different_layers(tiny_library: Callable[..., Path]) -> None:
    library = load_library(str(tiny_library("llama", adapters=MIXED)))
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    assert set(library.modules) == {
        f"model.layers.{n}.{block}.{name}"
        for n in range(2)
        for block, names in (("self_attn", attention), ("mlp", mlp))
        for name in names
    }
    assert list(library.modules) == sorted(library.modules)
    assert library.shapes["model.layers.1.mlp.down_proj"] == (64, 128)
    gamma = library.experts["gamma"]
    lacking = library.pair(gamma, "model.layers.0.mlp.gate_proj")
    assert lacking.missing
    assert torch.equal(lacking.delta(), torch.zeros(128, 64))
    down = "model.layers.1.mlp.down_proj"
    assert library.pair(gamma, down) is gamma.pairs[down]
    counts = "14 layers, fewer for alpha 8, beta 6, gamma 4, delta 2, en 8, de 4, fr 4"
    assert counts in library.summary()


def test_the_hash_follows_the_content_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    first = load_library(str(folder)).content_hash
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    assert load_library(str(moved)).content_hash == first
    edit(moved, provenance={"note": "read by nobody"}, made_by=["x"])
    assert load_library(str(moved)).content_hash == first
    hashes = {first}
    edit(moved, revision="other")
    hashes.add(load_library(str(moved)).content_hash)
    edit_json(moved / "experts" / "beta" / "adapter_config.json", lora_alpha=15)
    hashes.add(load_library(str(moved)).content_hash)
    edit_weights(moved / "general" / "en", lambda t: t.update({k: v * 2 for k, v in t.items()}))
    hashes.add(load_library(str(moved)).content_hash)
    edit(moved, experts={"alpha": "experts/beta", "beta": "experts/alpha"})
    hashes.add(load_library(str(moved)).content_hash)
    assert len(hashes) == 5


def test_right_hashes_are_accepted(folder: Path) -> None:
    library = load_library(str(folder))
    edit(
        folder,
        hashes={
            "experts/beta": library.experts["beta"].weights_sha256,
            "general/fr": library.general["fr"].weights_sha256,
        },
    )
    assert load_library(str(folder)).content_hash == library.content_hash
