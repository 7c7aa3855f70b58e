"""One loaded base on which settings and libraries change, and what a run records of them."""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import CacheHook

from gks_eval.errors import UsageError
from gks_eval.library.load import Library
from gks_eval.method.family import family_of, needs_of
from gks_eval.method.setting import Setting
from gks_eval.model.base_model import ResolvedBase, content_stamp
from gks_eval.model.inject import Attachment, attach
from gks_eval.model.packed_lm import PackedLM
from gks_eval.scoring.request_cache import stamp
from gks_eval.scoring.unscorable import without_context
from gks_eval.util.digest import digest
from gks_eval.util.versions import versions

__all__ = ["RoutedLM"]


class RoutedLM(PackedLM):
    """`PackedLM` with a library attached to its base.

    Attributes:
        setting: How the library runs.
        library: The adapters; None for the base alone.
        attachment: The library on the model; None where the setting needs none.
        base: Where the base came from; None for a model that the caller loaded.
        quantization: How the base's weights are held.
    """

    setting: Setting
    library: Library | None = None
    attachment: Attachment | None = None
    base: ResolvedBase | None = None
    quantization: str
    _identity_arguments: dict[str, str]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_name!r}, {self.attachment or 'the base alone'})"

    def apply(self, setting: Setting, library: Library | None = None) -> None:
        """Run with another setting from now on, on the loaded base.

        A request cache in use is dropped, because it belongs to the setting that filled it.

        Args:
            setting: The new setting.
            library: Its library; default: the current one.

        Raises:
            UsageError: There is no library, or it lacks what the setting names.
            CompatibilityError: The adapters do not fit the base or the setting; the model then
                keeps its previous setting, or if that fails too, is the base alone.
        """
        wanted, held = library or self.library, self.attachment
        setting = wanted.check(setting) if wanted is not None else setting
        if not setting.uses_library:
            if held is not None:
                held.detach()
            self.attachment = None
        elif wanted is None:
            raise UsageError("this setting needs a library; name one with library=...")
        else:
            try:
                self._attach(wanted, setting)
            except BaseException:
                if self.attachment is not None and not self.attachment.layers:
                    self.attachment, self.setting = None, Setting(router="none")
                raise
        self.library, self.setting = wanted, setting
        self.cache_hook = CacheHook(None)

    def _attach(self, library: Library, setting: Setting) -> None:
        held = self.attachment
        if held is None:
            self.attachment = attach(self.model, library, setting)
        elif held.library is library:
            held.apply(setting)
        else:
            held.detach()
            try:
                self.attachment = attach(self.model, library, setting)
            except BaseException:
                self.attachment = attach(self.model, held.library, self.setting)
                raise

    def context_fault(self, requests: list[Any]) -> str | None:
        """Return why a request cannot run with one choice per context; None if all can."""
        return without_context(requests) if self.setting.by_context else None

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score requests, see `PackedLM`.

        Raises:
            DataError: As `PackedLM`; or the setting makes one choice per context, and a request has
                no context.
            UsageError: The setting makes one choice per context, and the scorer is not the packed.
        """
        if self.setting.by_context and not (self.scoring == "packed" and self._packs()):
            why = "scoring=plain was given"
            if self._unpackable is not None:
                why = f"this model does not support it, as {self._unpackable}"
            raise UsageError(f"level=sequence needs packed scoring, and {why}; use level=token.")
        return super().loglikelihood(requests, disable_tqdm)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's request cache, unless another setting filled it.

        Raises:
            UsageError: Another setting filled it.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            stamp(cache_hook.dbdict, self.identity())
        super().set_cache_hook(cache_hook)

    @property
    def _base_name(self) -> str:
        return self.base.name if self.base else str(self.model.name_or_path)

    def identity(self) -> str:
        """Return a digest of everything that determines this run's scores."""
        base, library = self.base, self.library
        return digest(
            {
                "base": self._base_name,
                "base_content": content_stamp(base.source) if base else None,
                "quantization": self.quantization,
                "arguments": self._identity_arguments,
                "dtype": str(self.model.dtype),
                "library": library.content_of(self.setting) if library else None,
                "setting": self.setting.identity(),
                "scoring": self.scoring,
            }
        )

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval records in a results file, with ours under ``gks_eval``."""
        info: dict[str, Any] = super().get_model_info()
        base, library = self.base, self.library
        starts = self.attachment.starts if self.attachment else None
        info["gks_eval"] = {
            "identity": self.identity(),
            "setting": self.setting.identity(),
            "family": family_of(self.setting),
            "needs": needs_of(self.setting) or "nothing",
            "library": library.describe(self.setting)
            if library and self.setting.uses_library
            else None,
            "seed": library.config.provenance.get("seed")
            if library and self.setting.uses_library
            else None,
            "starts": starts.record() if starts else None,
            "base_model": self._base_name,
            "revision": base.revision or "main" if base else None,
            "quantization": self.quantization,
            "scoring": self.scoring if self._unpackable is None else "plain",
            "versions": versions(),
        }
        return info
