"""One resolver for every caller: a bad base ends in the same error, in the caller's own words."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import assert_sentence
from transformers import AutoModelForCausalLM

from benchmarks.subject import open_subject
from gks_eval.errors import GksError, HubError, LibraryError, ResourceError
from gks_eval.model.lm import GksArrowLM
from gks_eval.model.load_base import warn_if_emulated
from gks_eval.training.base import load_frozen_base
from gks_eval.training.recipe import Recipe

Base = Callable[[str], Path]
LibraryOf = Callable[..., Path]


def run_model_class(base: str, _library: Path) -> None:
    GksArrowLM(base, router=None)


def run_training(base: str, _library: Path, dtype: str = "float32") -> None:
    recipe = {
        "base_model": base,
        "load": {"device": "cpu", "dtype": dtype},
        "adapter": {"targets": ["o_proj"]},
        "experts": {"members": {"a": {"file": "a.jsonl"}}},
    }
    load_frozen_base(Recipe.model_validate(recipe), Path())


def run_benchmark(_base: str, library: Path) -> None:
    with open_subject(str(library), tiny=False, device="cpu", dtype=torch.float32, seed=0):
        pytest.fail("the base was loaded")


CALLERS = {
    run_model_class: ("pretrained=...", "load_in_4bit=True"),
    run_training: ("`base_model`", "quantization: nf4"),
    run_benchmark: ("--library", "--dtype bfloat16"),
}


@pytest.fixture
def base(tiny_base: Base, tmp_path: Path) -> Path:
    shutil.copytree(tiny_base("phi3"), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def error_of(
    tiny_library: LibraryOf, tmp_path: Path
) -> Callable[[Callable[[str, Path], None], str], GksError]:
    """Return ``error_of(caller, base)``: what the caller ends with on this base."""

    def end(caller: Callable[[str, Path], None], base: str) -> GksError:
        library = tmp_path / "library"
        shutil.copytree(tiny_library("phi3"), library)
        manifest = yaml.safe_load((library / "library.yaml").read_text("utf-8"))
        (library / "library.yaml").write_text(
            yaml.safe_dump({**manifest, "base_model": base}), "utf-8"
        )
        with pytest.raises(GksError) as caught:
            caller(base, library)
        return caught.value

    return end


def pickled(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(print, protocol=2))


BREAKS: dict[str, tuple[Callable[[Path], Any], type[GksError], str]] = {
    "gone": (shutil.rmtree, HubError, "the folder does not exist"),
    "torn": (
        lambda base: (base / "model.safetensors").write_bytes(b"\x08"),
        LibraryError,
        "weights that cannot be read",
    ),
    "a pickle": (pickled, LibraryError, "can run code"),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_base_ends_in_the_same_error_for_every_caller(
    how: str, caller: Any, base: Path, error_of: Callable[..., GksError]
) -> None:
    spoil, kind, part = BREAKS[how]
    spoil(base)
    error = error_of(caller, str(base))
    assert type(error) is kind
    assert_sentence(error, str(base), part)
    assert how != "gone" or CALLERS[caller][0] in str(error)


@pytest.mark.parametrize("caller", CALLERS)
def test_a_base_that_the_hub_does_not_give_is_named_with_the_caller_s_argument(
    caller: Any, error_of: Callable[..., GksError]
) -> None:
    error = error_of(caller, "nowhere/model")
    assert type(error) is HubError
    assert_sentence(error, "nowhere/model", "fetched from the hub", CALLERS[caller][0])


@pytest.mark.parametrize("caller", CALLERS)
def test_a_base_larger_than_the_memory_names_the_caller_s_arguments(
    caller: Any,
    base: Path,
    error_of: Callable[..., GksError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # torch's own words for a tensor of a petabyte.
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: torch.empty(10**15)
    )
    error = error_of(caller, str(base))
    assert type(error) is ResourceError
    assert_sentence(error, "does not fit into the memory of cpu", CALLERS[caller][1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("supported", [True, False])
def test_a_dtype_that_this_cpu_emulates_is_named_once(
    dtype: str,
    supported: bool,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: supported)
    warn_if_emulated.cache_clear()
    for _ in range(2):
        GksArrowLM(str(base), router=None, dtype=dtype, device="cpu")
        run_training(str(base), base, dtype)
    warn_if_emulated.cache_clear()
    slow = [text for text in caplog.messages if "many times slower" in text]
    mends = [] if supported or dtype == "float32" else ["dtype=float32", "`load: {dtype: float32}`"]
    assert len(slow) == len(mends)
    for text, mend in zip(slow, mends, strict=True):
        assert text.startswith(f"This CPU computes {dtype} products")
        assert text.endswith(f"set {mend}.")
