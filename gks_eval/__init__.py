"""Arrow-routed task LoRAs with general knowledge subtracted, for lm-evaluation-harness.

The public names are loaded when they are first asked for: ``import gks_eval`` alone imports no
torch, and costs an interpreter that starts with the plug-in bridge next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` would weigh more than all the rest of this file
if TYPE_CHECKING:
    from gks_eval.errors import (
        CompatibilityError,
        ConfigError,
        DataError,
        GksError,
        HubError,
        LibraryError,
        ResourceError,
        ResultsError,
        UsageError,
    )
    from gks_eval.library.load import load_library
    from gks_eval.method.lora import LoraPair
    from gks_eval.method.setting import Setting
    from gks_eval.model.embedded import embedded_model
    from gks_eval.model.inject import attach
    from gks_eval.model.lm import GksArrowLM
    from gks_eval.util.paths import tasks_dir

__version__ = "0.1.0"

__all__ = [
    "CompatibilityError",
    "ConfigError",
    "DataError",
    "GksArrowLM",
    "GksError",
    "HubError",
    "LibraryError",
    "LoraPair",
    "ResourceError",
    "ResultsError",
    "Setting",
    "UsageError",
    "__version__",
    "attach",
    "embedded_model",
    "load_library",
    "tasks_dir",
]

_HOMES = {
    "CompatibilityError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "GksArrowLM": "model.lm",
    "GksError": "errors",
    "HubError": "errors",
    "LibraryError": "errors",
    "LoraPair": "method.lora",
    "ResourceError": "errors",
    "ResultsError": "errors",
    "Setting": "method.setting",
    "UsageError": "errors",
    "attach": "model.inject",
    "embedded_model": "model.embedded",
    "load_library": "library.load",
    "tasks_dir": "util.paths",
}
"""The module of this package that each public name lives in."""


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
