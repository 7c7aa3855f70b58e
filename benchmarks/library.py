"""Rows `library`: a library of many adapters is loaded, attached and evaluated.

Each library is measured once, in a new process, because the peak of resident memory is the
process's. The files have just been written, so they are read from the system's cache.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.process import output_of
from benchmarks.record import LibraryRow
from benchmarks.sizes import Sizes
from gks_eval.training.limits import peak_memory_mb
from gks_eval.util.json_file import parse_json

__all__ = ["SETTINGS", "library_rows", "measured"]

BASE = "embedded:smollm2-135m-instruct"
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
SETTINGS = ("arrow", "gks:avg", "spectr", "norm", "merge:mean")
EVALUATED = "gks:avg"


def library_rows(
    sizes: Sizes,
    *,
    items: int,
    tiny: bool,
    device: str,
    dtype: str,
    seed: int,
    report: Callable[[str], None],
) -> list[LibraryRow]:
    """Write every library, and measure it in a new process.

    Args:
        sizes: Numbers of experts, and their rank.
        items: Items per task of the demo.
        tiny: Whether the base is a tiny random model.
        device: Device of the model.
        dtype: Dtype of the model, by name; the adapters are float32.
        seed: Seed of all random weights.
        report: Called with progress messages.

    Raises:
        ResourceError: A process failed; the message has its last line.
    """
    rows = []
    for experts in sizes.libraries:
        with tempfile.TemporaryDirectory(prefix="gks-bench-") as scratch:
            folder = Path(scratch)
            report(f"library: writing {experts} adapters")
            base = written(folder, experts, rank=sizes.rank, tiny=tiny, seed=seed)
            report(f"library: measuring {experts} adapters")
            command = [sys.executable, "-m", "benchmarks.library", str(folder / "library"), base]
            words = [*command, str(items), device, dtype]
            last = output_of(words, {}, f"{experts} adapters").strip().splitlines()[-1]
            rows.append(LibraryRow.model_validate(parse_json(last.encode())))
    return rows


def written(folder: Path, experts: int, *, rank: int, tiny: bool, seed: int) -> str:
    """Write ``folder/library`` and return the name of its base."""
    import torch

    from benchmarks.random_library import write_random_library
    from benchmarks.tiny import save_tiny_base
    from gks_eval.library.fit import linear_shapes

    base = str(save_tiny_base(folder / "base", seed)) if tiny else BASE
    shapes = linear_shapes(_model(base, "cpu", torch.float32)[0])
    chosen = {name: shape for name, shape in shapes.items() if name.endswith(LAYERS)}
    write_random_library(
        folder / "library", chosen, experts=experts, rank=rank, base_model=base, seed=seed
    )
    return base


def measured(library: str, base: str, items: int, device: str, dtype: str) -> LibraryRow:
    """Measure a library in this process."""
    import torch

    from benchmarks.evaluation_items import DEMO, Items, build_items
    from gks_eval.library.load import load_library
    from gks_eval.model.inject import attach
    from gks_eval.model.lm import GksArrowLM

    model, tokenizer = _model(base, device, getattr(torch, dtype))
    everything = Items.joined(list(build_items(list(DEMO), items).values()))
    lm = GksArrowLM(model, tokenizer=tokenizer, router="none")

    def evaluate() -> None:
        lm.loglikelihood(everything.requests, disable_tqdm=True)

    evaluate()  # the first call is slower
    base_seconds, _ = _timed(evaluate)
    peak = {"start": _peak_bytes()}
    load, loaded = _timed(partial(load_library, library))
    peak["load"] = _peak_bytes()
    seconds = {}
    for setting in SETTINGS:
        seconds[setting], attachment = _timed(partial(attach, model, loaded, setting))
        attachment.detach()
    peak["attach"] = _peak_bytes()
    lm.apply(lm.setting.parse(EVALUATED)[0], loaded)
    evaluated, _ = _timed(evaluate)
    peak["evaluate"] = _peak_bytes()
    files = Path(library).rglob("*.safetensors")
    return LibraryRow(
        base="SmolLM2-135M-Instruct" if base == BASE else "a tiny random Llama",
        experts=len(loaded.experts),
        file_bytes=sum(file.stat().st_size for file in files),
        load=load,
        attach=seconds,
        evaluated=EVALUATED,
        items=len(everything.sizes),
        evaluate=evaluated,
        base_evaluate=base_seconds,
        peak_bytes=peak,
    )


def _model(base: str, device: str, dtype: Any) -> tuple[Any, Any]:
    import torch

    from benchmarks.subject import WORDS
    from gks_eval.model.base_model import resolve_base
    from gks_eval.model.load_base import load_model, load_tokenizer

    found = resolve_base(base, words=WORDS)
    return load_model(found, dtype, torch.device(device)), load_tokenizer(found)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _peak_bytes() -> int:
    import torch

    return peak_memory_mb(torch.device("cpu")) << 20


if __name__ == "__main__":
    from gks_eval.util.quiet import quiet_libraries

    quiet_libraries()
    library, base, items, device, dtype = sys.argv[1:]
    print(measured(library, base, int(items), device, dtype).model_dump_json())
