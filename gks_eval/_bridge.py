"""Registers the model name ``gks_arrow`` with lm-eval releases that discover no plug-ins.

lm-eval up to 0.4.13 knows only its own models; later ones read the entry-point group
``lm_eval.models``. Until then this module is started with the interpreter by one line of
``gks_eval_bridge.pth``, waits for ``lm_eval.models`` to be imported, and then adds one string to
lm-eval's registry. Nothing of gks_eval is imported before lm-eval asks for the name.

The order matters: lm-eval imports its built-in models only into an empty registry, so a name
registered before ``lm_eval.models`` has run would hide every one of them.

``GKS_EVAL_BRIDGE=0`` switches all of it off (read by the ``.pth`` line itself).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` would be the heaviest import of an interpreter's start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

NAME = "gks_arrow"
TARGET = "gks_eval.model.lm:GksArrowLM"
_WATCHED = "lm_eval.models"


def register() -> bool:
    """Add the name to lm-eval's registry, next to its built-in models.

    Returns:
        Whether it was added: False where the name is there already.

    Raises:
        ImportError: lm-eval is not installed, or keeps no registry where we look for it.
    """
    import lm_eval.models  # noqa: F401  fills the registry with the built-in models
    from lm_eval.api.registry import model_registry

    if NAME in model_registry or not len(model_registry):
        return False
    # A string: lm-eval's decorator refuses to replace an EntryPoint by the class it names.
    model_registry.register(NAME, target=TARGET)
    return True


def _register_quietly() -> None:
    try:
        # A new list: another thread may be walking along the old one, and would skip a finder.
        sys.meta_path = [finder for finder in sys.meta_path if not _is_watcher(finder)]
        register()
    except Exception:
        import logging

        logging.getLogger("gks_eval").debug("could not register %s", NAME, exc_info=True)


def _is_watcher(finder: object) -> bool:
    # By name: see `start`, an earlier copy of this module may have installed it.
    kind = type(finder)
    return (kind.__module__, kind.__qualname__) == (__name__, "_Watcher")


class _Watcher:
    """A finder that finds nothing itself: it notices when ``lm_eval.models`` is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _WATCHED:
            return None
        try:
            return self._watched_spec(name, path, target)
        except Exception:
            return None  # the import goes on with the other finders, as if we were not here

    def _watched_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                _register_after(spec.loader)
                return spec  # type: ignore[no-any-return]
        return None


def _register_after(loader: object) -> None:
    """Run the registration once this loader has executed the module.

    The hook is an attribute of that module's loader and is removed when it runs. The module keeps
    its ordinary loader, and looking up the spec alone changes nothing.
    """
    execute = loader.exec_module  # type: ignore[attr-defined]

    def exec_module(module: ModuleType) -> None:
        vars(loader).pop("exec_module", None)
        execute(module)
        _register_quietly()

    loader.exec_module = exec_module  # type: ignore[attr-defined]


def install() -> None:
    """Watch for ``lm_eval.models``; register at once where it is loaded already.

    Calling it again changes nothing: Python reads the ``.pth`` files of a virtual environment
    twice.
    """
    if _WATCHED in sys.modules:
        _register_quietly()
    elif not any(_is_watcher(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def start() -> None:
    """What the ``.pth`` line calls: install, then leave no trace in ``sys.modules``.

    A package that was imported while Python started would win over the one in the working folder
    or on a path added later: a checkout could not be tested next to an installed release.
    """
    install()
    for name in (__name__, __name__.rpartition(".")[0]):
        sys.modules.pop(name, None)
