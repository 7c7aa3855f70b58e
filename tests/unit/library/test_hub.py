"""Hub sources: how they are written, found in the cache, and what is said when they are not.

The real client runs, offline, over a cache laid out by hand; no test reaches the network.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from common import assert_sentence
from huggingface_hub import constants, errors

from gks_eval.errors import HubError, LibraryError
from gks_eval.library.hub import HubSource, fetch_adapter, fetch_library
from gks_eval.library.load import load_library

# The hub client's own HTTP client, which has had several names.
http = importlib.import_module(errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way out."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def put_in_cache(cache: Path, repo: str, content: Path, at: str = "", ref: str = "main") -> Path:
    """Lay `content` out as the hub client does after a download."""
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(COMMIT)
    target = root / "snapshots" / COMMIT / at
    shutil.copytree(content, target, dirs_exist_ok=True)
    return target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", HubSource("org/repo", "", None)),
        ("org/repo@v1", HubSource("org/repo", "", "v1")),
        ("org/repo/sub", HubSource("org/repo", "sub", None)),
        ("o/r/a_b/checkpoint-17@refs/pr/3", HubSource("o/r", "a_b/checkpoint-17", "refs/pr/3")),
    ],
)
def test_sources_as_they_are_written(text: str, expected: HubSource) -> None:
    assert HubSource.looks_like(text)
    assert HubSource.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    ["", "repo", "/abs/olute", "./rel/ative", "../up/there", "org/repo/../x", "a b/c", "org/repo@",
     "org/repo@..", "org/repo@../../x", "org//repo", "~/lib/x", "org/repo/",
     "C:\\lib\\x", "https://hub/a/b", "org/repo@a b", "ü/x"],
)  # fmt: skip
def test_what_is_no_source(text: str) -> None:
    assert not HubSource.looks_like(text)
    with pytest.raises(HubError, match="org/repo"):
        HubSource.parse(text)


def test_adapters_come_from_the_cache_when_offline(
    cache: Path, tiny_library: Callable[..., Path]
) -> None:
    adapter = tiny_library("phi3") / "experts" / "alpha"
    plain = put_in_cache(cache, "org/one", adapter)
    deep = put_in_cache(cache, "org/many", adapter, at="deep/alpha", ref="v1")
    assert fetch_adapter(HubSource.parse("org/one")) == plain
    assert fetch_adapter(HubSource.parse("org/many/deep/alpha@v1")) == deep
    assert fetch_adapter(HubSource.parse(f"org/many/deep/alpha@{COMMIT}")) == deep


def test_a_local_library_may_name_adapters_on_the_hub(
    cache: Path, tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    local = tiny_library("phi3")
    put_in_cache(cache, "org/experts", local / "experts")
    (tmp_path / "library.yaml").write_text(
        "base_model: x\nexperts: {a: org/experts/alpha, b: org/experts/beta@main}\n", "utf-8"
    )
    library = load_library(str(tmp_path))
    assert library.experts["a"].digest == load_library(str(local)).experts["alpha"].digest


@pytest.mark.parametrize(
    ("at", "reference"), [("", "org/lib"), ("sub/lib", "org/lib/sub/lib@main")]
)
def test_a_whole_library_on_the_hub(
    at: str, reference: str, cache: Path, tiny_library: Callable[..., Path]
) -> None:
    local = tiny_library("phi3")
    put_in_cache(cache, "org/lib", local, at=at)
    assert load_library(reference).content_hash == load_library(str(local)).content_hash


@pytest.mark.parametrize("kind", ["experts", "general"])
@pytest.mark.parametrize("where", ["{folder}/experts/alpha", "~/adapters"])
def test_a_library_on_the_hub_names_no_path_of_this_machine(
    kind: str, where: str, cache: Path, tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    local = tiny_library("phi3")
    source = where.format(folder=local)
    listed = {"experts": {"a": "experts/alpha"}, kind: {"b": source}}
    shutil.copytree(local, tmp_path / "lib")
    manifest = tmp_path / "lib" / "library.yaml"
    manifest.write_text(json.dumps({"base_model": "x", **listed}), "utf-8")
    put_in_cache(cache, "org/lib", tmp_path / "lib")
    with pytest.raises(LibraryError) as caught:
        load_library("org/lib")
    assert_sentence(caught.value, f"org/lib on the hub: {kind}/b names a path on this machine")


def test_a_repository_without_library_yaml(cache: Path, tiny_library: Callable[..., Path]) -> None:
    put_in_cache(cache, "org/other", tiny_library("phi3") / "experts")
    with pytest.raises(LibraryError) as caught:
        load_library("org/other")
    assert_sentence(caught.value, "org/other", "has no library.yaml", "not a library")


def test_offline_and_not_in_the_cache(
    cache: Path, tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    for fetch in (
        lambda: fetch_adapter(HubSource.parse("org/absent/sub@v1")),
        lambda: fetch_library(HubSource.parse("org/absent/sub@v1"), "library.yaml"),
        lambda: load_library("org/absent/sub@v1"),
    ):
        with pytest.raises(HubError) as caught:
            fetch()
        assert_sentence(
            caught.value,
            "org/absent/sub@v1",
            "hub cannot be reached",
            "HF_HUB_OFFLINE",
            "local folder",
        )
    # The config is there and the weights are not: a download that was cut off.
    half = put_in_cache(cache, "org/half", tiny_library("phi3") / "experts" / "alpha")
    (half / "adapter_model.safetensors").unlink()
    with pytest.raises(HubError, match="org/half"):
        fetch_adapter(HubSource.parse("org/half"))


def test_an_adapter_of_a_local_library_that_is_offline(cache: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "library.yaml"
    manifest.write_text("base_model: x\nexperts: {a: org/absent}\n", "utf-8")
    with pytest.raises(HubError) as caught:
        load_library(str(tmp_path))
    assert_sentence(caught.value, str(manifest), "experts/a", "org/absent", "hub cannot be reached")


@pytest.mark.parametrize(
    "name", ["org/a--b", "org/a..b", "org/" + "x" * 120, "org/a.git", "org/a-"]
)
def test_names_that_the_hub_does_not_allow(name: str, cache: Path) -> None:
    with pytest.raises(HubError) as caught:
        fetch_adapter(HubSource.parse(name))
    assert_sentence(caught.value, name, "not a valid name on the hub", "local folder")


def answer(status: int) -> Any:
    return http.Response(status, request=http.Request("GET", "https://hub.example/x"))


ANSWERS: dict[str, tuple[Exception, list[str]]] = {
    "gated": (
        errors.GatedRepoError("first\nsecond", response=answer(403)),
        ["is gated", "accept its terms", "hf auth login"],
    ),
    "no such repository": (
        errors.RepositoryNotFoundError("404\nlong text", response=answer(404)),
        ["is not on the hub, or you have no access", "check the name"],
    ),
    "no such revision": (
        errors.RevisionNotFoundError("404", response=answer(404)),
        ["is not on the hub, or you have no access"],
    ),
    "no such file": (
        errors.RemoteEntryNotFoundError("no config\nmore", response=answer(404)),
        ["lacks a file: no config"],
    ),
    "server error": (
        errors.HfHubHTTPError("500 sorry\nmore", response=answer(500)),
        ["could not be downloaded (500 sorry)", "try again"],
    ),
    "no connection": (http.ConnectError("no route"), ["could not be downloaded (no route)"]),
    "timeout": (http.ReadTimeout(""), ["could not be downloaded (ReadTimeout)"]),
    "disk": (OSError(28, "No space left on device"), ["No space left on device"]),
    "offline": (errors.OfflineModeIsEnabled("offline"), ["could not be downloaded (offline)"]),
}


@pytest.mark.parametrize(("error", "parts"), ANSWERS.values(), ids=ANSWERS.keys())
def test_answers_of_the_hub(
    error: Exception, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    source = HubSource.parse("org/repo/sub")
    for fetch in (lambda: fetch_adapter(source), lambda: fetch_library(source, "library.yaml")):
        with pytest.raises(HubError) as caught:
            fetch()
        assert_sentence(caught.value, "org/repo/sub", *parts)


def test_an_adapter_that_is_there_as_a_pickle_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def download(repo: str, name: str, revision: str | None) -> str:
        asked.append((repo, name, revision))
        if name.endswith(".safetensors"):
            raise errors.RemoteEntryNotFoundError("404", response=answer(404))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(LibraryError) as caught:
        fetch_adapter(HubSource.parse("org/repo/sub@v2"))
    assert_sentence(caught.value, "org/repo/sub@v2", "gks-eval convert bin FOLDER")
    assert asked == [
        ("org/repo", "sub/adapter_config.json", "v2"),
        ("org/repo", "sub/adapter_model.safetensors", "v2"),
    ]


def test_only_plain_files_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fnmatch import fnmatch

    given: dict[str, Any] = {}

    def download(repo: str, **how: Any) -> str:
        given.update(how, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "library.yaml").write_text("x: 1")
    path = fetch_library(HubSource.parse("org/repo/lib@v3"), "library.yaml")
    assert path == tmp_path / "lib" / "library.yaml"
    assert (given["repo"], given["revision"]) == ("org/repo", "v3")
    wanted = lambda name: any(fnmatch(name, p) for p in given["allow_patterns"])  # noqa: E731
    assert wanted("lib/library.yaml")
    assert wanted("lib/experts/a/adapter_config.json")
    assert wanted("lib/experts/a/adapter_model.safetensors")
    assert wanted("lib/prepared/phatgoose/prepared.json")
    assert wanted("lib/prepared/phatgoose/vectors.safetensors")
    for name in (
        "lib/experts/a/adapter_model.bin",
        "lib/x.py",
        "other/library.yaml",
        "lib/x.pt",
        "lib/training.json",
        "prepared/phatgoose/vectors.safetensors",
    ):
        assert not wanted(name)
