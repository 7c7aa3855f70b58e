"""A measured process that must end well."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from gks_eval.errors import ResourceError

__all__ = ["output_of"]


def output_of(command: Sequence[str], environment: Mapping[str, str], row: str) -> str:
    """Run a command without the network and return what it prints.

    Args:
        command: Its words; the first is the interpreter.
        environment: Variables to set, next to this process's.
        row: What is measured, for the message.

    Raises:
        ResourceError: It failed; the message has its last line.
    """
    # Model and data are local; a request to the hub would time the network.
    offline = {"HF_HUB_OFFLINE": "1", "GKS_EVAL_BRIDGE": "1"}
    done = subprocess.run(  # noqa: S603
        command,
        env={**os.environ, **offline, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ResourceError(
            f"{row}: `python {' '.join(command[1:])}` ended with status {done.returncode} "
            f"({last[:200]}); leave the row out with --rows."
        )
    return done.stdout
