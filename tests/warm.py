"""A server of warm `gks-eval` processes: each is forked from one that has imported everything.

Ordinary starts spend most of their time on imports. Here a kill at a random moment falls into the
work itself. A line of JSON on stdin, ``{"arguments": [...], "folder": ..., "log": ...}``, starts a
process in a group of its own; the server answers ``pid N`` and, when it has ended, ``status N``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

HEAVY = (
    "torch transformers peft trl datasets lm_eval.evaluator lm_eval.loggers lm_eval.tasks "
    "gks_eval.cli.main gks_eval.model.lm gks_eval.grid gks_eval.grid.table gks_eval.model.observe "
    "gks_eval.training.whole_library gks_eval.evidence.report.build"
).split()


def serve() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    print("warm", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _command(json.loads(line))
        os.setpgid(pid, pid)
        print(f"pid {pid}", flush=True)
        print(f"status {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)


def _command(order: dict[str, object]) -> NoReturn:
    from gks_eval.cli.main import main

    with os.fdopen(os.open(str(order["log"]), os.O_CREAT | os.O_WRONLY | os.O_APPEND), "w") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(str(order["folder"]))
        arguments = order["arguments"]
        assert isinstance(arguments, list)
        sys.argv = ["gks-eval", *arguments]
        status = 70
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


class Server:
    """The server from outside; one command at a time."""

    def __init__(self, folder: Path) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        self.folder = folder
        self.log = folder / "log.txt"
        self._errors = (folder / "server.txt").open("w")
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
        )
        self._answer("warm", None)

    def start(self, arguments: Sequence[str | Path]) -> int:
        """Start a command and return its process id."""
        self.log.write_text("")
        order = {
            "arguments": [str(a) for a in arguments],
            "folder": str(self.folder),
            "log": str(self.log),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        found = self._answer("pid", None)
        assert found is not None
        return found

    def status(self, seconds: float | None = None) -> int | None:
        """Wait for the end of the command; None when it has not ended in so many seconds."""
        return self._answer("status", seconds)

    def run(self, arguments: Sequence[str | Path]) -> int:
        """Run a command to its end and return its exit status."""
        self.start(arguments)
        status = self.status()
        assert status is not None
        return status

    def kill(self, pid: int) -> None:
        """Kill the command's group and wait for its end."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.killpg(pid, signal.SIGKILL)
        self.status()

    def close(self) -> None:
        self._process.communicate(timeout=60)
        self._errors.close()

    def _answer(self, word: str, seconds: float | None) -> int | None:
        assert self._process.stdout is not None
        if seconds is not None and not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        kind, _, number = self._process.stdout.readline().strip().partition(" ")
        assert kind == word, (self.folder / "server.txt").read_text()
        return int(number or 0)


if __name__ == "__main__":
    serve()
