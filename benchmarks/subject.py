"""The model and library of the whole-model rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.peers import peft_setting
from benchmarks.random_library import write_random_library
from benchmarks.tiny import save_tiny_base
from gks_eval.errors import UsageError
from gks_eval.library.fit import check_fit, linear_shapes
from gks_eval.library.load import Library, load_library
from gks_eval.model.base_model import BaseWords, ResolvedBase, resolve_base
from gks_eval.model.load_base import load_model, load_tokenizer

__all__ = ["DEFAULT_LIBRARY", "Subject", "open_subject"]

DEFAULT_LIBRARY = "smollm2-demo"
WORDS = BaseWords("--library", "--dtype bfloat16", "--dtype float32")


@dataclass(frozen=True)
class Subject:
    """A base in memory and a library for it.

    Attributes:
        name: The base's name in the library.
        adapters: The library's name as given.
        model: A causal LM, in evaluation mode.
        tokenizer: Its tokenizer.
        library: Adapters that PEFT's Arrow can run.
    """

    name: str
    adapters: str
    model: Any
    tokenizer: Any
    library: Library


@contextmanager
def open_subject(
    library: str | None, *, tiny: bool, device: str, dtype: torch.dtype, seed: int
) -> Iterator[Subject]:
    """Load the library and its base.

    Args:
        library: Bundled name, folder or hub id; None for the default.
        tiny: Whether the default is a tiny random model with four random experts.
        device: Device of the model.
        dtype: Dtype of its weights.
        seed: Seed of random weights.

    Raises:
        UsageError: PEFT's Arrow cannot run the library.
        GksError: As `load_library`, `resolve_base` and `load_model`.
    """
    with TemporaryDirectory(prefix="gks-bench-") as scratch:
        if library is None and tiny:
            folder = str(save_tiny_base(Path(scratch) / "base", seed))
            base = ResolvedBase(folder, folder, words=WORDS)
            model: Any = load_model(base, dtype, torch.device(device))
            shapes = {
                name: shape
                for name, shape in linear_shapes(model).items()
                if name.endswith(("q_proj", "v_proj", "o_proj"))
            }
            loaded = load_library(
                write_random_library(
                    Path(scratch) / "library", shapes, experts=4, base_model=folder, seed=seed
                )
            )
            name, adapters = "tiny random Llama", "random adapters"
        else:
            adapters = library or DEFAULT_LIBRARY
            loaded = load_library(adapters)
            _check_for_peft(loaded)
            base = resolve_base(manifest=loaded.config, words=WORDS)
            model = load_model(base, dtype, torch.device(device))
            name = base.name
        check_fit(loaded, model, name)
        yield Subject(name, adapters, model, load_tokenizer(base), loaded)


def _check_for_peft(library: Library) -> None:
    if library.config.load.quantization != "none":
        raise UsageError(
            f"--library {library.name} is for a quantised base, which bench does not load; name "
            "another."
        )
    adapters = [*library.experts.values(), *library.general.values()]
    ranks = {pair.rank for adapter in adapters for pair in adapter.pairs.values()}
    if len(ranks) > 1:
        raise UsageError(
            f"--library {library.name} has adapters of rank {', '.join(map(str, sorted(ranks)))}; "
            "PEFT's Arrow, which bench compares with, takes one rank only."
        )
    library.check(peft_setting(library))
