"""Prepared vectors with a library: where they are, what is refused, and what they identify."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from common import TARGETS, assert_sentence, edit_json, load_tiny, save_adapter, save_random_vectors
from safetensors.torch import load_file, save_file

from gks_eval.errors import LibraryError
from gks_eval.library.export import export
from gks_eval.library.load import load_library
from gks_eval.library.prepared import home_of_vectors, write_vectors
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach

SETTING = Setting(router="phatgoose", subtract=())
COMMAND = "`gks-eval prepare {} --router phatgoose`"


@pytest.fixture
def folder(tiny_library: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    shutil.copytree(tiny_library("phi3"), folder)
    return folder


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(LibraryError) as caught:
        load_library(str(folder)).check(SETTING)
    assert_sentence(caught.value, *parts)


def test_missing_vectors_name_the_command(folder: Path) -> None:
    refused(folder, "router=phatgoose", COMMAND.format(folder))
    load_library(str(folder)).check(Setting(router="arrow"))  # needs none


def test_vectors_come_back_by_expert_and_layer(folder: Path) -> None:
    save_random_vectors(folder, "phatgoose")
    library = load_library(str(folder))
    library.check(SETTING)
    vectors = library.vectors(SETTING)
    assert vectors is not None
    saved = load_file(folder / "prepared/phatgoose/vectors.safetensors")
    layer = library.modules[0]
    expected = torch.stack([saved[f"{name}/{layer}"] for name in ("beta", "alpha")])
    assert torch.equal(vectors.at(["beta", "alpha"], layer), expected)
    assert library.vectors(Setting(router="arrow")) is None
    assert library.vectors(Setting(router="none")) is None


def test_changed_vectors_are_another_content(folder: Path) -> None:
    library = load_library(str(folder))
    plain = library.content_of(Setting(router="arrow"))
    assert plain == library.content_hash  # of results that exist
    assert library.content_of(Setting(router="none")) is None
    found = set()
    for seed in (0, 1, 0):
        save_random_vectors(folder, "phatgoose", seed=seed)
        found.add(library.content_of(SETTING))
        described = library.describe(SETTING)
        assert described["vectors"] == library.vectors(SETTING).sha256  # type: ignore[union-attr]
    assert len(found) == 2
    assert plain not in found
    assert library.content_of(Setting(router="arrow")) == plain
    assert "vectors" not in library.describe(Setting(router="arrow"))


def test_vectors_of_another_adapter_are_refused(
    folder: Path, tiny_base: Callable[..., Path]
) -> None:
    save_random_vectors(folder, "phatgoose")
    save_adapter(load_tiny(tiny_base("phi3")), folder / "experts/beta", TARGETS["phi3"], seed=77)
    refused(folder, "another adapter", "'beta'", COMMAND.format(folder))


def test_vectors_of_another_router_are_refused(folder: Path) -> None:
    save_random_vectors(folder, "mean_activation")
    edit_json(folder / "prepared/mean_activation/prepared.json", router="mean_activation")
    (folder / "prepared/mean_activation").rename(folder / "prepared/phatgoose")
    refused(folder, "router=mean_activation", COMMAND.format(folder))


def test_another_file_than_the_record_describes_is_refused(folder: Path) -> None:
    save_random_vectors(folder, "phatgoose")
    file = folder / "prepared/phatgoose/vectors.safetensors"
    tensors = load_file(file)
    save_file({name: vector + 1 for name, vector in tensors.items()}, file)
    refused(folder, str(file), "prepared.json", "gks-eval prepare")


def test_an_export_keeps_the_vectors_and_the_function(
    folder: Path, tiny_base: Callable[..., Path], tmp_path: Path
) -> None:
    save_random_vectors(folder, "phatgoose")
    library = load_library(str(folder))
    setting = "phatgoose:en;preset=exact"
    done = export(library, setting, tmp_path / "export")
    exported = load_library(str(done.folder))
    model, tokens = load_tiny(tiny_base("phi3")), torch.arange(20, 60).reshape(2, 20)
    with torch.no_grad():
        with attach(model, library, setting):
            expected = model(tokens).logits
        with attach(model, exported, "phatgoose;combine=outputs"):
            found = model(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    on_disk = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*.*")}
    assert "prepared/phatgoose/vectors.safetensors" in on_disk
    assert set(done.files) == on_disk  # `--push` uploads exactly these
    again = export(library, setting, done.folder)
    assert (again.kept, again.files) == (True, done.files)
    save_random_vectors(folder, "phatgoose", seed=1)
    with pytest.raises(LibraryError, match="another export"):
        export(load_library(str(folder)), setting, done.folder)


@pytest.mark.parametrize(
    "fault",
    ["no record", "no vectors", "torn", "nan", "ints", "complex", "no expert", "short", "list"],
)
def test_faults_are_sentences(fault: str, folder: Path) -> None:
    save_random_vectors(folder, "phatgoose")
    place = folder / "prepared/phatgoose"
    file = place / "vectors.safetensors"
    library = load_library(str(folder))
    experts = {name: {"adapter": adapter.digest} for name, adapter in library.experts.items()}
    tensors = load_file(file)
    if fault == "no record":
        (place / "prepared.json").unlink()
    elif fault == "no vectors":
        file.unlink()
    elif fault == "torn":
        file.write_bytes(file.read_bytes()[:-10])
    elif fault == "nan":
        write_vectors(place, {n: v * torch.nan for n, v in tensors.items()}, {"experts": experts})
    elif fault == "ints":
        write_vectors(place, {n: v.int() for n, v in tensors.items()}, {"experts": experts})
    elif fault == "complex":
        write_vectors(place, {n: v + 1j for n, v in tensors.items()}, {"experts": experts})
    elif fault == "list":
        edit_json(place / "prepared.json", experts={"alpha": "made"})
    elif fault == "no expert":
        edit_json(place / "prepared.json", experts={"alpha": experts["alpha"]})
    else:
        write_vectors(place, {n: v[:-1] for n, v in tensors.items()}, {"experts": experts})
    refused(folder, str(folder), "gks-eval prepare")


def test_vectors_of_a_bundled_library_are_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GKS_EVAL_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    library = load_library("smollm2-demo")
    place = home_of_vectors(library, "phatgoose")
    assert place == tmp_path / "prepared" / library.content_hash / "phatgoose"
    save_random_vectors(Path("smollm2-demo"), "phatgoose")
    assert place.is_dir()
    library.check(SETTING)
