"""Optional dependencies: a sentence with the command to install them, instead of an ImportError."""

from __future__ import annotations

from importlib.util import find_spec

from gks_eval.errors import UsageError

__all__ = ["need_evidence"]

_EVIDENCE = ("scipy", "statsmodels", "jinja2", "matplotlib")


def need_evidence() -> None:
    """Check that the packages which `compare`, `gate`, `paper` and `report` need are installed.

    Raises:
        UsageError: A package of the extra `evidence` is missing.
    """
    if missing := [name for name in _EVIDENCE if find_spec(name) is None]:
        raise UsageError(
            f'this command needs {", ".join(missing)}: pip install "gks-eval[evidence]".'
        )
