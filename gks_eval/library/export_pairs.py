"""The updates that an export writes, computed and checked layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.library.library import Library
from gks_eval.library.truncation import Truncation, truncated
from gks_eval.method.build import residual_pairs
from gks_eval.method.lora import LoraPair
from gks_eval.method.setting import Setting

__all__ = ["exported_pairs"]

# Parameters that multiply an update.
_FACTORS: Final = ("scale", "lambda")
# Smaller factors overflow with absurd weights only, and are then not the fault.
_LARGE: Final = 1e6


def exported_pairs(
    library: Library, setting: Setting, names: tuple[str, ...], rank: int | None, given: str
) -> tuple[dict[str, dict[str, LoraPair]], Truncation | None]:
    """Return the updates of each new adapter by layer, and what truncating them lost.

    Args:
        library: Where the adapters come from.
        setting: What is exported.
        names: Of the new adapters.
        rank: Truncates every update to this rank; None for exact updates.
        given: The setting as messages name it.

    Raises:
        UsageError: An update overflows float32.
        CompatibilityError: The adapters do not allow the setting, or a method of another package
            returns something else than its kind does.
    """
    sources = [library.experts[name].pairs for name in library.chosen_experts(setting)]
    # A new adapter updates a layer if its expert does; a merge, if any of its experts does.
    owners = [sources] if setting.merge is not None else [[one] for one in sources]
    found: dict[str, dict[str, LoraPair]] = {name: {} for name in names}
    truncation = None if rank is None else Truncation(rank)
    for module in library.modules:
        check = _Check(setting, given, module)
        layer = library.layer(module, setting)
        try:
            residuals = residual_pairs(*layer, setting, module, check.residuals)
        except CompatibilityError as error:
            # From an SVD of NaN or Inf.
            of_numbers = isinstance(error.__cause__, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
            if not of_numbers or not check.large:
                raise
            raise check.overflow(f"merge {setting.merge}") from None
        if setting.merge is not None:
            check(residuals, f"merge {setting.merge}")
        for name, pair, owned in zip(names, residuals, owners, strict=True):
            if not any(module in pairs for pairs in owned):
                continue
            if pair.scaling <= 0:  # PEFT's scaling, alpha / rank, is positive
                pair = LoraPair(pair.A, pair.scaling * pair.B)
            if truncation is not None:
                pair = truncated(pair, truncation, module)
                check([pair], f"rank {rank}")
            found[name][module] = pair
    return found, truncation


@dataclass(frozen=True)
class _Check:
    setting: Setting
    given: str
    module: str

    def residuals(
        self, _experts: Sequence[LoraPair], _general: Sequence[LoraPair], found: Sequence[LoraPair]
    ) -> None:
        """Check what the rule made, before a merge fails on it."""
        self(found, f"rule {self.setting.rule}")

    def __call__(self, pairs: Sequence[LoraPair], method: str) -> None:
        for pair in pairs:
            if not (pair.A.isfinite().all() and (pair.scaling * pair.B).isfinite().all()):
                raise self.overflow(method)

    @property
    def large(self) -> list[str]:
        """The parameters that multiply an update by a very large number."""
        values = self.setting.parameters
        return [
            f"{name}={values[name]:g}" for name in _FACTORS if abs(values.get(name, 1)) > _LARGE
        ]

    def overflow(self, method: str) -> UsageError:
        """Return the error for an update that holds NaN or Inf."""
        if self.large:
            fault = f"{' or '.join(self.large)} overflows float32 in the update at {self.module}"
            mend = "give a value closer to 1"
        else:
            fault = f"the update of {method} at {self.module} holds NaN or Inf"
            mend = "choose another one"
        return UsageError(f"setting {self.given:.200}: {fault}; {mend}.")
