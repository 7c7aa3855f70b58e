"""Attaching a library to a model: every linear layer it updates gets a routed shell.

The base's own modules and weights stay as they are; detaching puts them back where they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

import torch
from torch import nn

from gks_eval.config.setting import Setting
from gks_eval.errors import UsageError
from gks_eval.fit import check_fit, linear_layers, linear_shapes
from gks_eval.library import Library
from gks_eval.quantized import compute_dtype, keep_portable_layout
from gks_eval.routed import RoutedWeights, build, inner, to_device

__all__ = ["Attachment", "Observer", "RoutedLinear", "attach"]

logger = logging.getLogger(__name__)

Observer = Callable[[str, torch.Tensor], None]


class RoutedLinear(nn.Module):
    """A linear layer plus its routed update, ``y = base(x) + routed_delta(x)``.

    Attributes:
        base: The wrapped nn.Linear, Linear4bit or Linear8bitLt, untouched.
        name: The layer's name in the model.
        weights: What is added; None leaves the base alone.
        observer: Called with the name and the coefficients, (T, E), of every forward.
    """

    def __init__(self, base: nn.Linear, name: str) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.weights: RoutedWeights | None = None
        self.observer: Observer | None = None
        self.training = base.training

    @property
    def weight(self) -> torch.Tensor:
        """Return the base's weight, which model code reads for its type or device."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the base's bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Return K."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Return D."""
        return self.base.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return base(x) plus the routed update; any leading shape, last dimension K to D."""
        output: torch.Tensor = self.base(x)
        weights = self.weights
        if weights is None:
            return output
        if weights.read.device != x.device:
            # Layers of an offloaded or split model compute where their input is.
            weights = self.weights = to_device(weights, x.device)
        # Under autocast the products would silently run in another type than the one set here.
        with torch.autocast(x.device.type, enabled=False):
            x_TK = x.reshape(-1, x.shape[-1]).to(weights.read.dtype)
            inner_TM, c_TE = inner(x_TK, weights)
            if self.observer is not None:
                self.observer(self.name, c_TE.expand(x_TK.shape[0], -1))
            if torch.is_grad_enabled() or output.dtype != weights.write.dtype:
                delta = (inner_TM @ weights.write).view_as(output)
                return output + delta.to(output.dtype)
            # The base's output is fresh: add into it rather than allocate (T, D) twice more.
            output_TD = output.view(-1, output.shape[-1])
            output_TD.addmm_(inner_TM, weights.write)
        return output


class Attachment:
    """A library attached to a model; `apply` swaps settings, `detach` restores the model.

    Also a context manager that detaches on leaving.
    """

    def __init__(self, model: nn.Module, library: Library) -> None:
        self.model = model
        self.library = library
        self.setting: Setting | None = None
        self.layers: dict[str, RoutedLinear] = {}
        found = linear_layers(model)
        for module in library.modules:
            shell = RoutedLinear(found[module], module)
            _replace(model, module, shell)
            self.layers[module] = shell

    def apply(self, setting: Setting) -> None:
        """Run the model by `setting` from now on.

        Raises:
            UsageError: The library has not what the setting names.
            CompatibilityError: Its adapters do not allow the rule or combination.
        """
        self.library.check(setting)
        for module, shell in self.layers.items():
            if not setting.uses_library:
                shell.weights = None
                continue
            experts, general = self.library.layer(module, setting)
            shell.weights = build(
                experts,
                general,
                setting,
                dtype=compute_dtype(shell.base, self.model),
                device=_device(shell.base),
            )
        self.setting = setting

    def observe(self, observer: Observer | None) -> None:
        """Have every layer report its coefficients to `observer`; None stops that."""
        for shell in self.layers.values():
            shell.observer = observer

    def detach(self) -> None:
        """Put the base's own layers back; further calls do nothing."""
        for module, shell in self.layers.items():
            _replace(self.model, module, shell.base)
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


def attach(model: nn.Module, library: Library, setting: Setting) -> Attachment:
    """Attach `library` to `model` and apply `setting`.

    Args:
        model: Any causal LM of transformers with linear layers, quantised or not, split over
            devices or not.
        library: Adapters that fit it.
        setting: How they are subtracted, routed and combined.

    Raises:
        CompatibilityError: The adapters do not fit the model or the setting.
        UsageError: The library has not what the setting names, or one is attached already.
    """
    library.check(setting)
    if any(isinstance(module, RoutedLinear) for module in model.modules()):
        raise UsageError("the model already carries a library; detach that one first.")
    shapes = linear_shapes(model)
    check_fit(library, shapes, getattr(model, "name_or_path", "") or type(model).__name__)
    keep_portable_layout(model)
    attachment = Attachment(model, library)
    try:
        attachment.apply(setting)
    except BaseException:
        attachment.detach()
        raise
    logger.info("Attached library %s to %d linear layers.", library.name, len(attachment.layers))
    return attachment


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _device(base: nn.Linear) -> torch.device:
    if base.weight.device.type != "meta":
        return base.weight.device
    # accelerate keeps offloaded weights on meta and says where they run.
    hook = getattr(base, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")
