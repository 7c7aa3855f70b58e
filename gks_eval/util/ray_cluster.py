"""Connecting to a Ray cluster, for training and for grids."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gks_eval.errors import UsageError, reason
from gks_eval.util.process_group import ProcessGroup

__all__ = ["LOCAL", "RETRIES", "check_ray", "check_size", "ray_cluster"]

LOCAL: Final = "local"
"""The address that starts a cluster on this machine."""

RETRIES: Final = 5
"""How often work is started again after its worker died."""


def check_ray() -> None:
    """Check that Ray is installed, and that this process runs alone.

    Raises:
        UsageError: Ray is not installed, or the command was started by torchrun.
    """
    if ProcessGroup().size > 1:
        raise UsageError("--ray starts its own workers; run the command without torchrun.")
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--ray needs Ray: `pip install 'gks-eval[ray]'`.")


def check_size(cpus: float, gpus: float) -> None:
    """Check that some host of the connected cluster is large enough for a worker.

    Ray would wait for one without a word.

    Args:
        cpus: CPUs per worker.
        gpus: GPUs per worker.

    Raises:
        UsageError: No host has so many.
    """
    import ray

    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [(host.get("GPU", 0.0), host.get("CPU", 0.0)) for host in hosts]
    if any(gpus <= there[0] and cpus <= there[1] for there in sizes):
        return
    most = max(sizes, default=(0.0, 0.0))
    raise UsageError(
        f"--gpus {gpus:g}: no host of the cluster has the {cpus:g} CPUs and {gpus:g} GPUs of a "
        f"worker; the largest has {most[1]:g} CPUs and {most[0]:g} GPUs, so ask for fewer."
    )


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Connect to a cluster, unless this process is connected already.

    Args:
        address: Of a running cluster; None or `LOCAL` starts one on this machine.

    Raises:
        UsageError: Ray is not installed, or the address cannot be reached.
    """
    check_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address or LOCAL, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--ray {address or LOCAL}: cannot be reached ({reason(error, last=True)}); "
            "check the address with `ray status`, or use `--ray local`."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
