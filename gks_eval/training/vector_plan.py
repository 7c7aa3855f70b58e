"""Plans `gks-eval prepare`: the experts, their data, and the vectors that exist already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import LibraryError, UsageError, did_you_mean
from gks_eval.library.library import Library
from gks_eval.library.prepared import home_of_vectors, read_vectors
from gks_eval.library.tied import tied_gates
from gks_eval.model.base_model import ResolvedBase, content_stamp, resolve_base
from gks_eval.model.load_base import load_tokenizer
from gks_eval.training.job_data import JobData, load_job_data
from gks_eval.training.jobs import Job, TrainingPlan, digest_of_json
from gks_eval.util.process_group import ProcessGroup

__all__ = ["PREPARES", "VectorJob", "VectorOptions", "VectorPlan", "plan_vectors"]

PREPARES: Final = ("phatgoose", "mean_activation")


@dataclass(frozen=True)
class VectorOptions:
    """How vectors are made; `samples` and `dtype` are for all routers, the others for phatgoose.

    Attributes:
        samples: Maximum rows per expert; None for ten, or for as many as the steps need.
        steps: Optimiser steps.
        batch_size: Rows per step.
        learning_rate: Constant learning rate.
        seed: Seed of the order of the rows.
        dtype: Dtype of the base; None for the recipe's.
    """

    samples: int | None = None
    steps: int = 100
    batch_size: int = 4
    learning_rate: float = 1e-3
    seed: int = 0
    dtype: str | None = None

    def rows(self, router: str) -> int:
        """Return the largest number of rows per expert."""
        trained = self.steps * self.batch_size if router == "phatgoose" else 10
        return self.samples or trained

    def record(self, router: str) -> dict[str, Any]:
        """Return the options that the vectors depend on."""
        if router != "phatgoose":
            return {}
        names = ("steps", "batch_size", "learning_rate", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class VectorJob:
    """The vectors of one expert.

    Attributes:
        name: Name of the expert.
        data: Its rows.
        fingerprint: Hash of all that the vectors depend on but software and machine.
        done: Whether the library has the vectors already.
    """

    name: str
    data: JobData
    fingerprint: str
    done: bool


@dataclass(frozen=True)
class VectorPlan:
    """The vectors of one router, before they are made.

    Attributes:
        library: The library.
        router: A name in `PREPARES`.
        options: How they are made.
        folder: Where they are written.
        base: The base that the experts run on.
        dtype: Dtype of the base.
        device: Device of the base: ``auto``, ``cpu`` or ``cuda``.
        jobs: The experts.
    """

    library: Library
    router: str
    options: VectorOptions
    folder: Path
    base: ResolvedBase
    dtype: str
    device: str
    jobs: tuple[VectorJob, ...]


def plan_vectors(
    library: Library, router: str, data: TrainingPlan, options: VectorOptions
) -> VectorPlan:
    """Read the data of every expert and find the vectors that exist already.

    Args:
        library: The library.
        router: A name in `PREPARES`.
        data: A recipe's jobs, by the names of the experts; rows are drawn, formatted and shortened
            as in training, without held-out rows.
        options: How the vectors are made.

    Raises:
        UsageError: The router is unknown, or an expert has no data.
        GksError: The data cannot be read.
    """
    if router not in PREPARES:
        raise UsageError(f"--router {router} prepares nothing; {did_you_mean(router, PREPARES)}.")
    if ProcessGroup().size > 1:
        raise UsageError("gks-eval prepare runs in one process; start it without torchrun.")
    known = {job.name: job for job in data.jobs if job.kind == "experts"}
    if missing := [name for name in library.experts if name not in known]:
        raise UsageError(
            f"--data has no rows for {', '.join(missing)} of library {library.name}; "
            f"it has them for {', '.join(known) or 'no expert'}."
        )
    base = resolve_base(manifest=library.config)
    dtype = options.dtype or data.recipe.load.dtype
    tokenizer = load_tokenizer(base)
    folder = home_of_vectors(library, router)
    made = _made(folder)
    tied = tied_gates(library.tied, router)
    jobs = []
    for name, adapter in library.experts.items():
        rows = load_job_data(_fewer(known[name], options.rows(router)), data.root, tokenizer)
        fingerprint = digest_of_json(
            {
                "router": router,
                "adapter": adapter.digest,
                "base": [base.name, base.revision, base.quantization, content_stamp(base.source)],
                "dtype": dtype,
                "data": rows.fingerprint,
                **({"tied": tied} if tied else {}),
                **options.record(router),
            }
        )
        jobs.append(VectorJob(name, rows, fingerprint, made.get(name) == fingerprint))
    return VectorPlan(
        library, router, options, folder, base, dtype, data.recipe.load.device, tuple(jobs)
    )


def _fewer(job: Job, rows: int) -> Job:
    rows = min(rows, getattr(job.member, "rows", None) or rows)
    return replace(job, member=job.member.model_copy(update={"rows": rows}))


def _made(folder: Path) -> dict[str, Any]:
    """Return the fingerprints of the experts that have vectors."""
    try:
        return {
            name: made["fingerprint"]
            for name, made in read_vectors(folder).record["experts"].items()
        }
    except LibraryError:
        return {}
