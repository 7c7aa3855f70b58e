"""`gks_arrow`: the model class that lm-eval runs."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from gks_eval.errors import UsageError
from gks_eval.library.fit import check_fit, meta_model
from gks_eval.library.load import load_library, read_manifest
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import NOT_GIVEN, NotGiven, Setting, setting_arguments
from gks_eval.model.arguments import check_near, check_unknown, check_values
from gks_eval.model.base_model import MODEL_ARGUMENTS, check_quantization, resolve_base
from gks_eval.model.device import choose_device
from gks_eval.model.load_base import loading, quantization_config, warn_if_emulated
from gks_eval.model.quantized import keep_portable_layout, quantization_of
from gks_eval.model.routed_lm import RoutedLM
from gks_eval.tasklib.excepthook import say_errors_under_lm_eval

__all__ = ["CREATED", "DEFAULT_LIBRARY", "GksArrowLM"]

logger = logging.getLogger(__name__)
say_errors_under_lm_eval()

DEFAULT_LIBRARY = "phi3-mini"

# Number of instances in this process. Tasks that only this class can score check it before they
# build thousands of requests.
CREATED = 0

_LOADING_ARGUMENTS = frozenset(
    {"library", "scoring", "load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype"}
)
# Arguments of HFLM that place or batch the work and do not change the scores.
_PLACEMENT = frozenset(
    "batch_size max_batch_size device parallelize max_memory_per_gpu max_cpu_memory "
    "offload_folder logits_cache token cache_dir local_files_only force_download proxies".split()
)


class GksArrowLM(RoutedLM):
    """A causal LM with a library of task LoRAs, general knowledge subtracted, routed by Arrow.

    Takes every argument of lm-eval's ``hf``, and the arguments below. Lists are joined by ``+``, as
    in ``--model_args library=phi3-mini,subtract=en+de``.

    Args:
        pretrained: Base model; default: the library's.
        library: Bundled name, folder, or hub id of the adapters.
        subtract: ``none``, ``avg`` (of all languages the library has), or languages.
        preset: ``paper`` (rule factors, combine factors), ``peft`` (factors, outputs) or ``exact``
            (delta, outputs); arguments given with it override it.
        rule: ``factors``, ``delta`` or ``orthogonal``, see `gks_eval.method.rules`.
        combine: ``factors`` or ``outputs``, see `gks_eval.method.routed`.
        router: A router such as ``arrow``, ``merge:NAME``, the name of one expert, or ``none`` for
            the base alone. ``gks-eval methods`` lists rules, routers and merges with their
            parameters, such as ``top_k``, which are arguments of the model too.
        load_in_4bit: NF4, no double quantisation.
        load_in_8bit: LLM.int8.
        bnb_4bit_compute_dtype: In which NF4 layers compute: ``bfloat16`` (default), ``float16`` or
            ``float32``.
        scoring: ``packed`` computes each distinct token prefix once, see `gks_eval.scoring`. Models
            that it does not support use ``plain``, lm-eval's own scorer.

    Raises:
        GksError: A subclass says what is wrong with the arguments, library or base. All checks that
            need no weights come before the base model's weights are read.
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
        bnb_4bit_compute_dtype: str | NotGiven = NOT_GIVEN,
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
        self._extra_arguments = {k: v for k, v in hf_arguments.items() if k not in _HF_ARGUMENTS}

        self._own_arguments = own | _LOADING_ARGUMENTS
        check_near(self._extra_arguments, self._own_arguments)
        check_values(library, revision, hf_arguments)
        manifest = None
        named = None if isinstance(library, NotGiven) else str(library)
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

        if not isinstance(pretrained, PreTrainedModel):
            self.base = resolve_base(
                pretrained, revision, manifest, load_in_4bit, load_in_8bit, bnb_4bit_compute_dtype
            )
            pretrained = self.base.source
            if self.base.differs_from_library and self.library is not None:
                logger.warning(
                    "Library %s was made for %s; running it on %s.",
                    self.library.name,
                    self.library.config.base_model,
                    self.base.name,
                )
            hf_arguments["revision"] = self.base.revision or "main"
            hf_arguments["device"] = choose_device(hf_arguments.get("device"))
        else:
            known = _HF_ARGUMENTS | self._own_arguments
            check_unknown(self._extra_arguments, known, pretrained.config)
            for name, value in (
                ("load_in_4bit", load_in_4bit),
                ("load_in_8bit", load_in_8bit),
                ("bnb_4bit_compute_dtype", bnb_4bit_compute_dtype),
                ("revision", revision),
            ):
                if not isinstance(value, NotGiven):
                    raise UsageError(
                        f"{name}= has no effect on a model that is loaded already; leave it out."
                    )
        self._identity_arguments = {
            name: str(value)
            for name, value in sorted(hf_arguments.items())
            if name not in _PLACEMENT and value is not None
        }
        # A model that the caller loaded, or one split by tensors, is the same in every process.
        if isinstance(pretrained, str) and not hf_arguments.get("tp_plan"):
            self.connect_processes()
        with loading(self.base, hf_arguments.get("device") or "the device"):
            super().__init__(pretrained, **hf_arguments)
        if self.backend != "causal":
            raise UsageError(
                f"{pretrained} is no causal language model, as gks_arrow needs; name another base."
            )
        self.divide_requests()
        keep_portable_layout(self.model)
        self.quantization = quantization_of(self.model)
        self.apply(setting)
        global CREATED
        CREATED += 1

    def _get_config(self, pretrained: str, **how: Any) -> None:
        # The base's shape is known from here on; its weights are read much later.
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
        # For an adapter of peft=, which has its own tokenizer, HFLM resizes the embeddings.
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
        # HFLM passes load_in_4bit to transformers 5, which only accepts quantization_config. If the
        # base is saved quantised, HFLM passes the saved configuration.
        if how.get("quantization_config") is None and self.base is not None:
            how["quantization_config"] = quantization_config(self.base)
        super()._create_model(pretrained, **how)
        if how.get("quantization_config") is None:
            warn_if_emulated(self.model.dtype, self.model.device, MODEL_ARGUMENTS)


_HF_ARGUMENTS = frozenset(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs"}
