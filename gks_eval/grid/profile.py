"""Measures where a setting spends its time, by wrapping the functions that do the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from gks_eval.util.profile_file import PHASES, CellProfile
from gks_eval.util.stopwatch import Stopwatch

if TYPE_CHECKING:
    from gks_eval.scoring import PackedCounts

__all__ = ["profile_of", "profiling"]


def profile_of(watch: Stopwatch, counts: PackedCounts) -> CellProfile:
    """Return a setting's profile so far."""
    seconds, found = watch.read()
    return CellProfile(
        seconds=seconds,
        phases={name: found.get(name, 0.0) for name in PHASES},
        tokens=counts.harness_tokens,
        distinct_tokens=counts.distinct_tokens,
    )


@contextmanager
def profiling() -> Iterator[Stopwatch]:
    """Measure the work inside the block; outside such a block nothing is wrapped or slower."""
    watch = Stopwatch(_settle())
    with ExitStack() as stack:
        for owner, name, phase in _measured():
            stack.enter_context(_timed(owner, name, phase, watch))
        yield watch


def _measured() -> list[tuple[Any, str, str]]:
    """Return owner, function and phase of the work; what remains counts as ``other``."""
    from lm_eval.api.model import CacheHook
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from gks_eval.method.hook import RoutedUpdate
    from gks_eval.model.tokenizing_lm import TokenizingLM
    from gks_eval.scoring import packed
    from gks_eval.scoring.head import Head
    from gks_eval.scoring.plans import PlanMemo
    from gks_eval.scoring.tree_model import TreeModel

    return [
        (TaskManager, "load", "loading"),
        (Task, "build_all_requests", "prompts"),
        (TokenizingLM, "token_pairs", "tokenising"),
        (TokenizingLM, "check_pairs", "tokenising"),
        (PlanMemo, "plan", "planning"),
        (packed, "build_row", "planning"),
        (TreeModel, "prefill", "transformer"),
        (TreeModel, "hidden", "transformer"),
        # Of lm-eval's own scorer and of generation; these contain the head.
        (HFLM, "_model_call", "transformer"),
        (HFLM, "_model_generate", "transformer"),
        (RoutedUpdate, "__call__", "router"),
        (Head, "started", "head"),
        (CacheHook, "add_partial", "writing"),
    ]


@contextmanager
def _timed(owner: Any, name: str, phase: str, watch: Stopwatch) -> Iterator[None]:
    original = getattr(owner, name)

    @wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch.phase(phase):
            return original(*args, **kwargs)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _settle() -> Callable[[], None] | None:
    import torch

    return torch.cuda.synchronize if torch.cuda.is_available() else None
