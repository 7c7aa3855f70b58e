"""What float32 loses against the same model in float64: packed no more than lm-eval's own class.

torch's log_softmax adds up a row's exponentials in a few running sums, which lose more the more
tokens a vocabulary has; the packed scorer's head does not. So with a large vocabulary the two
differ, and the model in float64 says which is right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from common import load_tiny, save_tiny_base
from lm_eval.models.huggingface import HFLM
from one_by_one import one_by_one

from gks_eval.scoring import packed_log_likelihoods

VOCABULARY = 262_144
LENGTHS = (1, 2, 8, 30, 60, 100, 100, 100)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Logits with a standard deviation of 4: a few tokens are likely, and very many are not quite.
    return save_tiny_base(
        tmp_path_factory.mktemp("large-vocabulary") / "base", "llama", vocab_size=VOCABULARY,
        tie_word_embeddings=True, initializer_range=0.5,
    )  # fmt: skip


def drawn(seed: int) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(VOCABULARY, (count,), generator=generator).tolist()

    shared = tokens(20)
    return [(shared[: 5 + 5 * (n % 4)], tokens(length)) for n, length in enumerate(LENGTHS)]


def most_off(found: list[Any], exact: list[Any]) -> float:
    return max(abs(one[0] - other[0]) for one, other in zip(found, exact, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_a_large_vocabulary_packed_is_the_nearer_to_float64(base: Path, seed: int) -> None:
    pairs = drawn(seed)
    exact = one_by_one(load_tiny(base, torch.float64), pairs, 512)
    hf = HFLM(str(base), device="cpu", dtype="float32", batch_size=4)
    theirs = hf._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm=True)
    ours = packed_log_likelihoods(hf.model, pairs, device="cpu", max_length=512)
    lowest = min(one[0] for one in exact)
    hf_off, packed_off = most_off(theirs, exact), most_off(ours, exact)
    print(f"down to {lowest:.0f}: hf off by {hf_off:.1e}, packed by {packed_off:.1e}")
    assert lowest < -1000
    assert packed_off <= 5e-4  # rounding: 2e-7 of the sum
    assert packed_off <= hf_off
