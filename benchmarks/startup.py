"""Row `startup`: whole processes of lm_eval, with `--model hf` and with `--model gks_arrow`.

The model, library and task are tiny, so the time is what a process needs before it scores.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.process import output_of
from benchmarks.record import Startup, Timing
from benchmarks.timing import Call, time_interleaved

__all__ = ["startup_row", "write_task"]

PYTHON_ROUNDS = 10
TASK = "gks_bench_one_item"


def startup_row(
    *, rounds: int, warm_up: bool, device: str, seed: int, report: Callable[[str], None]
) -> Startup:
    """Measure both, alternating.

    Args:
        rounds: Rounds of the two lm_eval processes; empty interpreters have ten times as many.
        warm_up: Whether each runs once before, so that files are in the cache.
        device: Device for lm_eval.
        seed: Seed of the model.
        report: Called with progress messages.

    Raises:
        ResourceError: A process failed; the message has its last line.
    """
    from benchmarks.random_library import write_random_library
    from benchmarks.tiny import save_tiny_base

    with tempfile.TemporaryDirectory(prefix="gks-bench-") as scratch:
        folder = Path(scratch)
        base = save_tiny_base(folder / "base", seed)
        shapes = {f"model.layers.{n}.self_attn.q_proj": (64, 64) for n in range(2)}
        write_random_library(folder / "library", shapes, experts=4, base_model=str(base), seed=seed)
        write_task(folder)
        harness = [
            sys.executable, "-m", "lm_eval", "run", "--tasks", TASK, "--limit", "1",
            "--include_path", scratch, "--device", device,
        ]  # fmt: skip
        arguments = {
            "hf": f"pretrained={base}",
            "gks_arrow": f"pretrained={base},library={folder / 'library'}",
        }
        runs: dict[str, Call] = {
            model: partial(
                output_of,
                [*harness, "--model", model, "--model_args", given],
                {"HF_HOME": scratch},
                "start-up",
            )
            for model, given in arguments.items()
        }
        report(f"start-up: lm_eval, {rounds} rounds")
        nothing: dict[str, Call] = dict.fromkeys(runs, lambda: None)
        seconds = time_interleaved(runs, rounds, warm_ups=None if warm_up else nothing)
    report("start-up: python")
    empty = [sys.executable, "-c", "pass"]
    python = time_interleaved(
        {
            "bridge": partial(output_of, empty, {"GKS_EVAL_BRIDGE": "1"}, "start-up"),
            "no bridge": partial(output_of, empty, {"GKS_EVAL_BRIDGE": "0"}, "start-up"),
        },
        PYTHON_ROUNDS * rounds,
    )
    return Startup(
        seconds=seconds,
        difference=_difference(seconds, "gks_arrow", "hf"),
        python=python,
        bridge=_difference(python, "bridge", "no bridge"),
    )


def write_task(folder: Path) -> None:
    """Write a task of one item with two choices, as a YAML file and its data."""
    rows = folder / "rows.jsonl"
    row = {"question": "Two and two are", "choices": ["four", "five"], "gold": 0}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / f"{TASK}.yaml").write_text(
        f"task: {TASK}\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(rows))}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{gold}}"\n',
        encoding="utf-8",
    )


def _difference(seconds: Mapping[str, Timing], one: str, other: str) -> float:
    pairs = zip(seconds[one].rounds, seconds[other].rounds, strict=True)
    return statistics.median(a - b for a, b in pairs)
