"""Decoding with a cache: token by token, routing and logits are those of a full forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import FAMILIES

from gks_eval.library.load import load_library
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.scoring.tree_model import cache_argument

PAPER = Setting()
EXACT = Setting(rule="delta", combine="outputs", subtract=("en", "de"), top_k=2)
TOKENS = torch.randint(4, 260, (1, 13), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("setting", [PAPER, EXACT], ids=["paper", "exact"])
@torch.no_grad()
def test_decoding_token_by_token_routes_as_a_full_forward(
    family: str,
    setting: Setting,
    tiny_library: Callable[..., Path],
    tiny_model: Callable[..., Any],
) -> None:
    library, model = load_library(str(tiny_library(family))), tiny_model(family)
    tokens = TOKENS
    with attach(model, library, setting) as attachment:
        seen: dict[str, list[torch.Tensor]] = {}
        attachment.observe(lambda name, c_TE: seen.setdefault(name, []).append(c_TE.clone()))
        full = model(tokens, use_cache=False).logits
        whole = {name: c for name, (c,) in seen.items()}
        seen.clear()
        cache, steps, name = None, [], cache_argument(model)
        for t in range(tokens.shape[1]):
            out = model(tokens[:, t : t + 1], **{name: cache}, use_cache=True)
            cache = getattr(out, name)
            steps.append(out.logits)
    stepwise = {name: torch.cat(parts) for name, parts in seen.items()}
    flips = sum(int(((whole[n] > 0) != (c > 0)).any(1).sum()) for n, c in stepwise.items())
    decisions = len(stepwise) * tokens.shape[1]
    assert flips <= 0.01 * decisions, f"{flips} of {decisions} routing decisions differ"
    if flips == 0:
        torch.testing.assert_close(torch.cat(steps, 1), full, rtol=1e-4, atol=1e-4)
        for name, c_TE in stepwise.items():
            torch.testing.assert_close(c_TE, whole[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_follows_the_routed_logits(
    family: str, tiny_library: Callable[..., Path], tiny_model: Callable[..., Any]
) -> None:
    library, model = load_library(str(tiny_library(family))), tiny_model(family)
    prompt = TOKENS[:, :5]
    how = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    with attach(model, library, EXACT):
        generated = model.generate(prompt, **how)
        expected = prompt
        for _ in range(6):  # greedy, without a cache
            with torch.no_grad():
                following = model(expected).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, following], dim=1)
            if following == 0:
                break
    assert torch.equal(generated, expected)
    assert generated.shape[1] > 5
    assert not torch.equal(model.generate(prompt, **how), generated), "the base writes differently"
