"""Shared starts: experts that were initialized with the same A as the general adapters.

LoRA starts from a random A and B = 0. Adapters trained with the same seed, the default of TRL and
many scripts, start from the same A, and training changes A little. Then ``A_t - A_g`` is small: the
residual of `factors` is ``(B_t - B_g)(A_t - A_g)``, a product of two small differences, and
`orthogonal` removes nearly all of A_t. `delta` does not depend on the starts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from gks_eval.library.load import Library
from gks_eval.method.batches import squared_norms
from gks_eval.method.foreign import residuals_of
from gks_eval.method.lora import LoraPair
from gks_eval.method.setting import Setting
from gks_eval.util.process_group import ProcessGroup

__all__ = ["SHARED", "Starts", "StartsTally", "starts_of", "starts_tally", "warn_of_shared_starts"]

logger = logging.getLogger(__name__)

# Content hashes of the libraries whose shared starts this process has warned about.
_WARNED: set[str] = set()

SHARED: Final = 0.5
"""An expert's start is shared if its mean |cosine| with the general adapters' A is above this.

Independent starts of rank R and width K have about ``1 / sqrt(R K)``: 0.02 for R = 4, K = 576.
"""


@dataclass(frozen=True)
class Starts:
    """How similar the starts of a library's experts are to those of what a setting subtracts.

    Attributes:
        rule: The rule that subtracts.
        cosine: |cosine| of an expert's A with a general adapter's, both as one vector; the mean
            over general adapters and layers, by expert.
        left: |dW_residual| / |dW_task| over all layers, by expert.
    """

    rule: str
    cosine: Mapping[str, float]
    left: Mapping[str, float]

    @property
    def shared(self) -> list[str]:
        """Return the experts that share their start with what is subtracted."""
        return [name for name, cosine in self.cosine.items() if cosine > SHARED]

    def warning(self, library: str) -> str | None:
        """Return one sentence on shared starts; None where there are none."""
        names = self.shared
        if not names:
            return None
        cosine = sum(self.cosine[name] for name in names) / len(names)
        return (
            f"Library {library} has shared starts: {len(names)} of {len(self.cosine)} experts "
            f"have nearly the same A as what is subtracted (cosine {cosine:.2f}), and "
            f"rule={self.rule} leaves {self.left_of_shared:.0%} of the norm of their updates; use "
            "preset=exact (in a grid, --preset exact), which does not depend on the starts."
        )

    @property
    def left_of_shared(self) -> float:
        """Return `left` as a mean over the experts with shared starts; at least one must be."""
        return sum(self.left[name] for name in self.shared) / len(self.shared)

    def record(self) -> dict[str, Any]:
        """Return what results record, as plain JSON values."""
        return {
            "rule": self.rule,
            "shared": self.shared,
            "cosine": dict(self.cosine),
            "left": dict(self.left),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Starts:
        """Return the `Starts` that `record` describes.

        Raises:
            KeyError: A field is missing.
        """
        return cls(record["rule"], record["cosine"], record["left"])


class StartsTally:
    """Sums over layers: call it with each layer's pairs, then call `result`."""

    def __init__(self, experts: Sequence[str], rule: str) -> None:
        self._rule = rule
        self._layers = dict.fromkeys(experts, 0)
        self._cosine = dict.fromkeys(experts, 0.0)
        self._task = dict.fromkeys(experts, 0.0)
        self._residual = dict.fromkeys(experts, 0.0)

    def __call__(
        self,
        experts: Sequence[LoraPair],
        general: Sequence[LoraPair],
        residuals: Sequence[LoraPair],
    ) -> None:
        """Add one layer.

        Args:
            experts: The task adapters, in the order of their names.
            general: What is subtracted from them; at least one, of the experts' rank.
            residuals: The task adapters after subtraction.
        """
        sums = _cosines(experts, general), squared_norms(experts), squared_norms(residuals)
        rows = zip(self._cosine, experts, torch.stack(sums, 1).tolist(), strict=True)
        for name, task, (cosine, square, left) in rows:
            if task.missing:
                continue
            self._layers[name] += 1
            self._cosine[name] += cosine
            self._task[name] += square
            self._residual[name] += left

    def result(self) -> Starts:
        """Return the means over the added layers; per expert, over the layers that it updates."""
        return Starts(
            self._rule,
            {name: total / max(1, self._layers[name]) for name, total in self._cosine.items()},
            {
                name: math.sqrt(self._residual[name] / square) if square > 0 else 1.0
                for name, square in self._task.items()
            },
        )


def starts_tally(library: Library, setting: Setting) -> StartsTally | None:
    """Return an empty tally; None if `setting` does not subtract from the experts' factors."""
    experts = library.chosen_experts(setting)
    own = setting.subtract and not setting.stand_ins.used
    if not experts or not own or not setting.rule_method()[0].equal_factors:
        return None
    return StartsTally(experts, setting.rule)


def starts_of(library: Library, setting: Setting) -> Starts | None:
    """Measure the starts before any model is loaded; None as for `starts_tally`.

    Raises:
        CompatibilityError: The adapters do not allow the setting's rule.
    """
    tally = starts_tally(library, setting)
    if tally is None:
        return None
    rule, parameters = setting.rule_method()
    for name in library.modules:
        tasks, general = library.layer(name, setting)
        if all(task.missing for task in tasks):
            continue
        tasks = [task.to(torch.float32) for task in tasks]
        general = [pair.to(torch.float32) for pair in general]
        tally(tasks, general, residuals_of(rule, tasks, general, parameters, name))
    return tally.result()


def warn_of_shared_starts(library: Library, starts: Starts | None) -> None:
    """Log the warning on shared starts, once per library and process, in process 0."""
    warning = starts and starts.warning(library.name)
    if warning and library.content_hash not in _WARNED and ProcessGroup().is_main:
        _WARNED.add(library.content_hash)
        logger.warning(warning)


def _cosines(experts: Sequence[LoraPair], general: Sequence[LoraPair]) -> torch.Tensor:
    """Return the mean |cosine| of each expert's A with the general adapters' A, (E,) float64.

    It is computed in the factors' dtype: messages show two digits.
    """
    found = torch.zeros(len(experts), dtype=torch.float64)
    present = [n for n, task in enumerate(experts) if not task.missing]
    if not present:
        return found
    own = torch.stack([experts[n].A for n in present]).flatten(1)
    others = torch.stack([one.A for one in general]).flatten(1)
    scale = own.norm(dim=1)[:, None] * others.norm(dim=1)
    cosines = (own @ others.T).abs() / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    found[present] = cosines.double().mean(1)
    return found
