"""`gks_arrow`: the model class that lm-eval runs."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from gks_eval.errors import UsageError
from gks_eval.library.fit import check_fit, meta_model
from gks_eval.library.load import Library, load_library, read_manifest
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import NOT_GIVEN, NotGiven, Setting, digest, setting_arguments
from gks_eval.model.base_model import (
    UNLOADABLE,
    BaseModel,
    check_near,
    check_quantization,
    check_unknown,
    choose_device,
    content_stamp,
    quantization_config,
    unloadable,
)
from gks_eval.model.inject import Attachment, attach
from gks_eval.model.packed_lm import PackedLM
from gks_eval.model.quantized import keep_portable_layout, quantization_of
from gks_eval.scoring.request_cache import stamp
from gks_eval.tasklib.excepthook import say_errors_under_lm_eval
from gks_eval.util.versions import versions

__all__ = ["CREATED", "DEFAULT_LIBRARY", "GksArrowLM"]

logger = logging.getLogger(__name__)
say_errors_under_lm_eval()

DEFAULT_LIBRARY = "phi3-mini"

# How many instances this process has made: tasks that only this class can score look here before
# they build thousands of requests.
CREATED = 0

_LOADING_ARGUMENTS = frozenset({"library", "scoring", "load_in_4bit", "load_in_8bit"})
# Arguments of HFLM that place or batch the work and leave the scores as they are.
_PLACEMENT = frozenset(
    "batch_size max_batch_size device parallelize max_memory_per_gpu max_cpu_memory "
    "offload_folder logits_cache token cache_dir local_files_only force_download proxies".split()
)


class GksArrowLM(PackedLM):
    """A causal LM with a library of task LoRAs, general knowledge subtracted, routed by Arrow.

    Takes every argument of lm-eval's ``hf`` and those below. Lists are joined by ``+``, which the
    command line can say: ``--model_args library=phi3-mini,subtract=en+de``.

    Args:
        pretrained: Base model; default: the library's.
        library: Bundled name, folder, or hub id of the adapters.
        subtract: ``none``, ``avg`` (of all languages the library has), or languages.
        preset: ``paper`` (rule factors, combine factors), ``peft`` (factors, outputs) or ``exact``
            (delta, outputs); arguments named beside it win.
        rule: ``factors``, ``delta`` or ``orthogonal``, see `gks_eval.method.rules`.
        combine: ``factors`` or ``outputs``, see `gks_eval.method.routed`.
        router: A router such as ``arrow``, ``merge:NAME``, the name of one expert, or ``none`` for
            the base alone. ``gks-eval methods`` lists rules, routers and merges with their
            parameters, such as ``top_k``, which are arguments of the model too.
        load_in_4bit: NF4, bfloat16 computation, no double quantisation.
        load_in_8bit: LLM.int8.
        scoring: ``packed`` computes each distinct token prefix once, see `gks_eval.scoring`, and
            hands models that it does not support to ``plain``, lm-eval's own scorer.

    Raises:
        GksError: A subclass says what is wrong with the arguments, library or base; all that can
            be known beforehand is raised before the base model's weights are read.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel | None = None,
        *,
        library: str | NotGiven = NOT_GIVEN,
        subtract: str | Iterable[str] | NotGiven | None = NOT_GIVEN,
        preset: str | NotGiven = NOT_GIVEN,
        rule: str | NotGiven = NOT_GIVEN,
        combine: str | NotGiven = NOT_GIVEN,
        router: str | NotGiven | None = NOT_GIVEN,
        load_in_4bit: bool | int | str | NotGiven = NOT_GIVEN,
        load_in_8bit: bool | int | str | NotGiven = NOT_GIVEN,
        scoring: str | None = None,
        revision: str | NotGiven | None = NOT_GIVEN,
        **hf_arguments: Any,
    ) -> None:
        own = setting_arguments()
        setting = Setting.from_arguments(
            preset=preset,
            subtract=subtract,
            rule=rule,
            combine=combine,
            router=router,
            **{name: hf_arguments.pop(name) for name in own & hf_arguments.keys()},
        )
        self.choose_scoring(scoring)
        self.setting = setting
        self.library: Library | None = None
        self.attachment: Attachment | None = None
        self._extra_arguments = {k: v for k, v in hf_arguments.items() if k not in _HF_ARGUMENTS}

        self._own_arguments = own | _LOADING_ARGUMENTS
        check_near(self._extra_arguments, self._own_arguments)
        for name, text in (("library", library), ("revision", revision)):
            if isinstance(text, (int, float)):  # True too
                raise UsageError(
                    f"{name}={text}: lm-eval reads the word as a number or as true or false; "
                    f"write it in quotes, '{name}=\"...\"'."
                )
        manifest = None
        named = None if isinstance(library, NotGiven) else str(library)
        if named == "":
            raise UsageError("library= names nothing; give a bundled name, a folder or a hub id.")
        length = hf_arguments.get("max_length")
        if length is not None and (not isinstance(length, int) or length < 1):
            raise UsageError(f"max_length={length} is no whole number above 0.")
        if "batch_size" in hf_arguments and hf_arguments["batch_size"] is not None:
            self.choose_batch_size(hf_arguments["batch_size"])
        if setting.uses_library:
            if hf_arguments.get("peft"):
                raise UsageError("peft= cannot be combined with a library; use router=none.")
            self.library = load_library(named or DEFAULT_LIBRARY)
            if setting.router in ROUTERS and setting.router in self.library.experts:
                raise UsageError(
                    f"router={setting.router} is a router and an expert of library "
                    f"{self.library.name}; write router=expert:{setting.router} for the expert, or "
                    "rename it to use the router."
                )
            self.setting = setting = self.library.check(setting)
            manifest = self.library.config
        elif named or pretrained is None:
            _, manifest = read_manifest(named or DEFAULT_LIBRARY)

        self.base: BaseModel | None = None
        if not isinstance(pretrained, PreTrainedModel):
            self.base = BaseModel.resolve(
                pretrained, revision, manifest, load_in_4bit, load_in_8bit
            )
            pretrained = self.base.source
            if self.base.differs_from_library and self.library is not None:
                logger.warning(
                    "Library %s was made for %s; running it on %s.",
                    self.library.name,
                    self.library.config.base_model,
                    self.base.name,
                )
            hf_arguments["revision"] = self.base.revision
            hf_arguments["device"] = choose_device(hf_arguments.get("device"))
        else:
            known = _HF_ARGUMENTS | self._own_arguments
            check_unknown(self._extra_arguments, known, pretrained.config)
            for name, value in (
                ("load_in_4bit", load_in_4bit),
                ("load_in_8bit", load_in_8bit),
                ("revision", revision),
            ):
                if not isinstance(value, NotGiven):
                    raise UsageError(f"{name}= is of no use with a model that is loaded already.")
        self._identity_arguments = {
            name: str(value)
            for name, value in sorted(hf_arguments.items())
            if name not in _PLACEMENT and value is not None
        }
        # A model handed over, or split by tensors, is the same in every process.
        if isinstance(pretrained, str) and not hf_arguments.get("tp_plan"):
            self.call_team()
        try:
            super().__init__(pretrained, **hf_arguments)
        except UNLOADABLE as error:
            raise unloadable(error, self.base) from error
        if self.backend != "causal":
            raise UsageError(f"{pretrained} is no causal language model; gks_arrow needs one.")
        self.join_team()
        keep_portable_layout(self.model)
        self.quantization = quantization_of(self.model)
        self.apply(setting)
        global CREATED
        CREATED += 1

    def apply(self, setting: Setting, library: Library | None = None) -> None:
        """Run by another setting from now on, on the base that is loaded.

        A request cache that was in use is let go: it is for the setting that filled it.

        Args:
            setting: The new setting.
            library: Its library; default: the one in use.

        Raises:
            UsageError: No library is there, or it lacks what the setting names.
            CompatibilityError: The adapters do not fit the base or the setting; the model then
                goes on running by the setting it had.
        """
        wanted, held = library or self.library, self.attachment
        setting = wanted.check(setting) if wanted is not None else setting
        if not setting.uses_library:
            if held is not None:
                held.detach()
            self.attachment = None
        elif wanted is None:
            raise UsageError("this setting needs a library; name one with library=...")
        elif held is not None and held.library is wanted:
            held.apply(setting)
        else:
            self._attach(wanted, setting)
        self.library, self.setting = wanted, setting
        self.cache_hook = CacheHook(None)

    def _attach(self, library: Library, setting: Setting) -> None:
        held = self.attachment
        if held is not None:
            held.detach()
        try:
            self.attachment = attach(self.model, library, setting)
        except BaseException:
            if held is not None:
                self.attachment = attach(self.model, held.library, self.setting)
            raise

    def _get_config(self, pretrained: str, **how: Any) -> None:
        # The first moment at which the base's shape is known; its weights are read much later.
        super()._get_config(pretrained, **how)
        check_unknown(self._extra_arguments, _HF_ARGUMENTS | self._own_arguments, self.config)
        if self.base is not None:
            check_quantization(self.base, self.config)
        if self.library is None:
            return
        try:
            model = meta_model(self.config)
        except Exception as error:
            logger.debug("The base could not be built without weights: %s", error)
            return
        check_fit(self.library, model, self.base.name if self.base else pretrained)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **how: Any) -> None:
        super()._create_tokenizer(pretrained, tokenizer, **how)
        # HFLM resizes the embeddings for an adapter of peft=, which was trained with its own.
        if tokenizer is None or "peft" in self._identity_arguments:
            return
        rows = getattr(self.config.get_text_config(), "vocab_size", None)
        if rows is not None and self.tokenizer.vocab_size > rows:
            raise UsageError(
                f"tokenizer={self.tokenizer.name_or_path} has {self.tokenizer.vocab_size} tokens "
                f"and the base model {rows} embeddings; leave tokenizer= out, or name the "
                "tokenizer that the base was trained with."
            )

    def _create_model(self, pretrained: str, **how: Any) -> None:
        # HFLM hands load_in_4bit to transformers 5, which knows quantization_config only. Where the
        # base is saved quantised, HFLM hands over what its config says.
        if how.get("quantization_config") is None and self.base is not None:
            how["quantization_config"] = quantization_config(self.base.quantization)
        super()._create_model(pretrained, **how)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's request cache, unless another setting filled it.

        Raises:
            UsageError: It was.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            stamp(cache_hook.dbdict, self.identity())
        super().set_cache_hook(cache_hook)

    def identity(self) -> str:
        """Return a digest of everything that makes this run's scores what they are."""
        base, library = self.base, self.library
        return digest(
            {
                "base": base.name if base else str(self.model.name_or_path),
                "base_content": content_stamp(base.source) if base else None,
                "quantization": self.quantization,
                "arguments": self._identity_arguments,
                "dtype": str(self.model.dtype),
                "library": library.content_hash if library and self.setting.uses_library else None,
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
            "library": library.describe() if library and self.setting.uses_library else None,
            "starts": starts.record() if starts else None,
            "base_model": base.name if base else str(self.model.name_or_path),
            "revision": base.revision if base else None,
            "quantization": self.quantization,
            "scoring": self.scoring if self._unpackable is None else "plain",
            "versions": versions(),
        }
        return info


_HF_ARGUMENTS = frozenset(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}
