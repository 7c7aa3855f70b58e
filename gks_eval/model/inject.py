"""Attaching a library to a model: every linear layer that it updates gets a forward hook.

The base's modules and weights keep their names and places.
"""

from __future__ import annotations

import logging
from types import TracebackType

import torch
from torch import nn

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.library.fit import check_fit, routable_layers
from gks_eval.library.load import Library
from gks_eval.library.starts import Starts, starts_tally, warn_of_shared_starts
from gks_eval.method.build import build
from gks_eval.method.hook import Observer, RoutedUpdate, share, updates_of
from gks_eval.method.setting import Setting, as_setting
from gks_eval.method.siblings import same_input
from gks_eval.model.prompts import Prompts
from gks_eval.model.quantized import compute_dtype, is_quantized, keep_portable_layout

__all__ = ["Attachment", "attach"]

logger = logging.getLogger(__name__)


class Attachment:
    """A library attached to a model; `apply` swaps settings, `detach` restores the model.

    Also a context manager that detaches on leaving.

    Attributes:
        setting: The current setting.
        starts: What the setting's rule keeps of the experts, see `gks_eval.library.starts`; None
            where nothing is subtracted, or by the rule `delta`.
    """

    def __init__(self, model: nn.Module, library: Library) -> None:
        self.model = model
        self.library = library
        self.setting: Setting | None = None
        self.starts: Starts | None = None
        self._prompts: Prompts | None = None
        found = routable_layers(model)
        self.layers = {name: RoutedUpdate(found[name], name) for name in library.modules}

    def __repr__(self) -> str:
        state = f"{self.setting!r}, layers: {len(self.layers)}" if self.layers else "detached"
        return f"Attachment({self.library.name!r}, {state})"

    def apply(self, setting: Setting | str) -> None:
        """Run the model with `setting` from now on.

        Args:
            setting: As for `attach`.

        Raises:
            UsageError: The library lacks what the setting names, or is detached.
            CompatibilityError: Its adapters do not allow the rule or combination. After any error
                the model runs with the setting before; without one, it is the base again.
        """
        if not self.layers:
            raise UsageError("the library is detached; attach it again.")
        setting = self.library.check(as_setting(setting))
        if setting.by_context:
            self._check_head()
        try:
            self._build(setting)
        except BaseException:
            # Some layers may have the new weights already.
            before, self.setting = self.setting, None
            if before is None:
                self.detach()
            else:
                self.apply(before)
            raise

    def _build(self, setting: Setting) -> None:
        experts = self.library.chosen_experts(setting)
        vectors = self.library.vectors(setting)
        tally = starts_tally(self.library, setting)
        for name, update in self.layers.items():
            if not any(name in self.library.experts[expert].pairs for expert in experts):
                update.weights = None
                continue
            update.weights = build(
                *self.library.layer(name, setting),
                setting,
                dtype=compute_dtype(update.layer, self.model),
                device=_device(update.layer),
                name=name,
                measure=tally,
                prepared=None if vectors is None else vectors.at(experts, name),
                tied=self.library.tied_layers(name, setting),
            )
        for names in same_input(self.layers):
            share([self.layers[name] for name in names])
        self.setting = setting
        self._follow_prompts(setting.by_context)
        self.starts = None if tally is None else tally.result()
        warn_of_shared_starts(self.library, self.starts)

    def _check_head(self) -> None:
        head_of = getattr(self.model, "get_output_embeddings", None)
        head = head_of() if callable(head_of) else None
        for name, update in self.layers.items():
            if update.layer is head:
                raise CompatibilityError(
                    f"library {self.library.name}: level=sequence needs all tokens of a prompt at "
                    f"every layer, and {name} sees only the scored ones; use level=token, or "
                    f"adapters without {name}."
                )

    def _follow_prompts(self, by_context: bool) -> None:
        # Choices of the setting before are not continued.
        if self._prompts is not None:
            self._prompts.remove()
        self._prompts = Prompts(self.model) if by_context else None

    def observe(self, observer: Observer | None) -> None:
        """Make every layer report its coefficients to `observer`; None stops it."""
        for update in self.layers.values():
            update.observer = observer

    def detach(self) -> None:
        """Restore the base; further calls do nothing."""
        self._follow_prompts(by_context=False)
        for update in self.layers.values():
            update.remove()
        self.layers = {}

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


def attach(model: nn.Module, library: Library, setting: Setting | str) -> Attachment:
    """Attach `library` to `model` and apply `setting`.

    Logs a warning, once per library and process, if the experts share their starts with the
    adapters that are subtracted from their factors, see `gks_eval.library.starts`.

    Args:
        model: A causal LM of transformers with linear layers; it may be quantised or split over
            devices.
        library: Adapters that fit it.
        setting: How they are subtracted, routed and combined; a text is in the grid's grammar, see
            `Setting.parse`.

    Raises:
        CompatibilityError: The adapters do not fit the model or the setting.
        UsageError: The library lacks what the setting names, or one is attached already.
    """
    setting = library.check(as_setting(setting))
    if updates_of(model):
        raise UsageError("the model already carries a library; detach that one first.")
    check_fit(library, model, getattr(model, "name_or_path", "") or type(model).__name__)
    _warn_of_loftq(library, model)
    keep_portable_layout(model)
    attachment = Attachment(model, library)
    attachment.apply(setting)
    logger.info("Attached library %s to %d linear layers.", library.name, len(attachment.layers))
    return attachment


def _warn_of_loftq(library: Library, model: nn.Module) -> None:
    started = [one for one in library.adapters if str(one.init).lower() == "loftq"]
    found = routable_layers(model)
    layers = [found[name] for one in started for name in one.pairs]
    # On the meta device nothing is quantised yet, or the weights are offloaded.
    if any(not (m.get_parameter("weight").is_meta or is_quantized(m)) for m in layers):
        logger.warning(
            "Library %s: %s started from LoftQ, so their updates also compensate for the error of "
            "a 4-bit base, and this base is not quantised; load it with load_in_4bit=True, unless "
            "its weights are LoftQ's own.",
            library.name,
            ", ".join(one.name for one in started),
        )


def _device(layer: nn.Module) -> torch.device:
    weight = layer.get_parameter("weight")
    if not weight.is_meta:
        return weight.device
    # accelerate keeps offloaded weights on meta, and their device in its hook.
    hook = getattr(layer, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")
