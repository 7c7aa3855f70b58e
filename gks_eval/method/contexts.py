"""Sequence-level routing: one choice per context and layer, from the mean of its tokens' scores.

With the scores ``s(x_t)``, (E,), of the tokens t of a context C at one layer, all tokens of C and
all tokens that continue C get the coefficients ``chosen(1 / |C| sum_t s(x_t))``. The inputs of
deeper layers already include the updates that were chosen at the layers before.

In a causal model the inputs of C do not depend on what continues it. So one forward over a context
and its continuations is exact: the choice is made from the context's own tokens and applied to
all. When decoding, later forwards use the choices of the prompt's forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from typing_extensions import Self

from gks_eval.errors import CompatibilityError, UsageError
from gks_eval.method.declaration import ContextRouter, LayerRouter, Tokens

__all__ = ["Contexts", "current_contexts"]


@dataclass(frozen=True)
class Contexts:
    """The contexts that the tokens of one forward belong to, and what was chosen for them.

    Attributes:
        of_token: (T,), the number of each token's context; -1 for padding.
        own: Positions of the tokens that the contexts consist of. All other tokens continue one.
        count: Number of contexts, G.
        choices: Coefficients by layer, (G, E).
    """

    of_token: torch.Tensor
    own: torch.Tensor
    count: int
    choices: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of_rows(
        cls, own: Seq[int], tokens: Seq[int], width: int, device: torch.device | str = "cpu"
    ) -> Self:
        """Return the contexts of rows that each start with their own one.

        Args:
            own: Tokens of each row's context.
            tokens: Tokens of each row.
            width: Length to which rows are padded on the right; 0 for no padding.
            device: Where the model runs.
        """
        of_token: list[int] = []
        positions: list[int] = []
        for number, (context, length) in enumerate(zip(own, tokens, strict=True)):
            positions += range(len(of_token), len(of_token) + context)
            of_token += [number] * length + [-1] * (width - length)
        return cls(
            torch.tensor(of_token, device=device), torch.tensor(positions, device=device), len(own)
        )

    @classmethod
    def of_prompts(cls, mask_BT: torch.Tensor) -> Self:
        """Return B contexts; `mask_BT` is bool, False for padding.

        Raises:
            UsageError: A prompt has no tokens.
        """
        if not bool(mask_BT.any(dim=1).all()):
            raise UsageError(
                "level=sequence chooses experts by a prompt's tokens, and a prompt has none; leave "
                "that prompt out, or use level=token."
            )
        row_B = torch.arange(len(mask_BT), device=mask_BT.device)
        of_token = torch.where(mask_BT, row_B[:, None], -1).flatten()
        return cls(of_token, mask_BT.flatten().nonzero()[:, 0], len(mask_BT))

    def next_token(self) -> Self:
        """Return the contexts of a forward with one more token of each, in order."""
        of_token = torch.arange(self.count, device=self.of_token.device)
        return type(self)(of_token, of_token[:0], self.count, self.choices)

    def coefficients(self, layer: str, router: LayerRouter, tokens: Tokens) -> torch.Tensor:
        """Return the coefficients of all tokens at one layer, (T, E); those of padding are any."""
        choice_GE = self.choices.get(layer)
        if choice_GE is None:
            assert isinstance(router, ContextRouter)
            choice_GE = self.choices[layer] = router.chosen(self._means(router.scores(tokens)))
        return choice_GE[self.of_token.to(choice_GE.device)]

    def _means(self, scores_TE: torch.Tensor) -> torch.Tensor:
        # In float64, so that the order of the sums, which depends on the batch, hardly matters.
        device = scores_TE.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        own = self.own.to(device)
        group = self.of_token.to(device)[own]
        sums_GE = torch.zeros(self.count, scores_TE.shape[1], dtype=wide, device=device)
        sums_GE.index_add_(0, group, scores_TE[own].to(wide))
        # Not bincount, which waits for a GPU to know how long its result is.
        sizes_G = sums_GE.new_zeros(self.count).index_add_(0, group, sums_GE.new_ones(len(group)))
        return sums_GE / sizes_G[:, None]

    def without_padding(self, c_TE: torch.Tensor) -> torch.Tensor:
        """Return the rows that are not padding."""
        return c_TE[self.of_token.to(c_TE.device) >= 0]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make routed layers use these contexts inside the block."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[Contexts | None] = ContextVar("gks_contexts", default=None)


def current_contexts(tokens: int, layer: str) -> Contexts:
    """Return the contexts of the forward that runs.

    Args:
        tokens: Number of tokens that the layer sees.
        layer: Its name.

    Raises:
        UsageError: There are none.
        CompatibilityError: The layer does not see all tokens.
    """
    contexts = _CURRENT.get()
    if contexts is None:
        raise UsageError(
            "level=sequence needs to know the prompt, and a part of the model was called by "
            "itself; call the whole model, or use level=token."
        )
    if len(contexts.of_token) != tokens:
        raise CompatibilityError(
            f"level=sequence needs all tokens of a prompt at every routed layer, and {layer} sees "
            f"{tokens} of {len(contexts.of_token)}; use level=token."
        )
    return contexts
