"""`gks-eval` run in this process: a new process takes seconds to import what it needs."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

import pytest

from gks_eval.cli.main import main


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return the exit status and what the command printed, 120 columns wide."""
    words = ["gks-eval", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, {"COLUMNS": "120", **environment}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = int(ended.value.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
