"""Arrow-routed task LoRAs with general knowledge subtracted, for lm-evaluation-harness.

The public names are loaded when they are first asked for: ``import gks_eval`` alone imports no
torch, and costs an interpreter that starts with the plug-in bridge next to nothing.
"""

from __future__ import annotations

import sys

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
    from gks_eval.evidence.compare import compare
    from gks_eval.evidence.gate import gate
    from gks_eval.evidence.policy import GatePolicy
    from gks_eval.evidence.runs import find_runs
    from gks_eval.grid.runner import run_grid
    from gks_eval.grid.settings import Grid
    from gks_eval.library.export import export
    from gks_eval.library.geometry import library_geometry
    from gks_eval.library.library import Library
    from gks_eval.library.load import load_library
    from gks_eval.method.declaration import Layer, Parameters, Prepared, Tokens
    from gks_eval.method.decorators import joint_rule, merge, router, rule
    from gks_eval.method.lora import LoraPair
    from gks_eval.method.registry import MERGES, ROUTERS, RULES
    from gks_eval.method.setting import Setting
    from gks_eval.model.embedded import embedded_model
    from gks_eval.model.inject import Attachment, attach
    from gks_eval.model.lm import GksArrowLM
    from gks_eval.model.observe import RoutingTally
    from gks_eval.util.paths import tasks_dir

__version__ = "0.2.0"

__all__ = [
    "MERGES",
    "ROUTERS",
    "RULES",
    "Attachment",
    "CompatibilityError",
    "ConfigError",
    "DataError",
    "GatePolicy",
    "GksArrowLM",
    "GksError",
    "Grid",
    "HubError",
    "Layer",
    "Library",
    "LibraryError",
    "LoraPair",
    "Parameters",
    "Prepared",
    "ResourceError",
    "ResultsError",
    "RoutingTally",
    "Setting",
    "Tokens",
    "UsageError",
    "__version__",
    "attach",
    "compare",
    "embedded_model",
    "export",
    "find_runs",
    "gate",
    "joint_rule",
    "library_geometry",
    "load_library",
    "merge",
    "router",
    "rule",
    "run_grid",
    "tasks_dir",
]

_HOMES = {
    "Attachment": "model.inject",
    "CompatibilityError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "GatePolicy": "evidence.policy",
    "GksArrowLM": "model.lm",
    "GksError": "errors",
    "Grid": "grid.settings",
    "HubError": "errors",
    "Layer": "method.declaration",
    "Library": "library.library",
    "LibraryError": "errors",
    "LoraPair": "method.lora",
    "MERGES": "method.registry",
    "Parameters": "method.declaration",
    "Prepared": "method.declaration",
    "ROUTERS": "method.registry",
    "RULES": "method.registry",
    "ResourceError": "errors",
    "ResultsError": "errors",
    "RoutingTally": "model.observe",
    "Setting": "method.setting",
    "Tokens": "method.declaration",
    "UsageError": "errors",
    "attach": "model.inject",
    "compare": "evidence.compare",
    "embedded_model": "model.embedded",
    "export": "library.export",
    "find_runs": "evidence.runs",
    "gate": "evidence.gate",
    "joint_rule": "method.decorators",
    "library_geometry": "library.geometry",
    "load_library": "library.load",
    "merge": "method.decorators",
    "router": "method.decorators",
    "rule": "method.decorators",
    "run_grid": "grid.runner",
    "tasks_dir": "util.paths",
}
"""The module of this package that each public name lives in."""

_MOVED = {
    "geometry": "library.geometry",
    "inject": "model.inject",
    "lm": "model.lm",
    "observe": "model.observe",
    "paths": "util.paths",
}
"""Modules of version 0.1 that are imported by their old paths, and where they are now."""


class _MovedModules:
    """Finds modules by the paths that version 0.1 had; an importer of ``sys.meta_path``."""

    @staticmethod
    def find_spec(name: str, *rest: object) -> object:
        del rest
        package, _, module = name.partition(".")
        if package != __name__ or module not in _MOVED:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, _MovedModules)  # type: ignore[arg-type]

    @staticmethod
    def create_module(_: object) -> None:
        """Let the import system make an empty module, which `exec_module` replaces."""

    @staticmethod
    def exec_module(module: object) -> None:
        from importlib import import_module

        name: str = module.__name__  # type: ignore[attr-defined]
        moved = import_module(f"{__name__}.{_MOVED[name.partition('.')[2]]}")
        sys.modules[name] = moved


sys.meta_path.append(_MovedModules)  # type: ignore[arg-type]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _MOVED:
        return import_module(f"{__name__}.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
