"""Compare PEFT's estimated prototypes with exact ones, and print what a near-tie changes.

``PYTHONPATH=. python docs/study/prototypes.py`` in a checkout: prototypes of ``smollm2-demo``, then
ten random experts of rank 4 on the attention layers of SmolLM2-135M-Instruct, in float32. A
near-tie is decided the other way: for the token of a layer whose third and fourth scores are
closest, the fourth expert is taken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer

import benchmarks.random_library
from benchmarks.random_library import write_random_library
from gks_eval import Layer, Prepared, attach, embedded_model, load_library, router
from gks_eval.library.load import Library
from gks_eval.method.registry import ROUTERS, RULES
from gks_eval.method.routers.arrow import ArrowParameters, LayerArrow
from gks_eval.method.routers.prototypes import prototypes

TEXT = (
    "The harbour of the old town lies below a steep hill. In the morning the boats come back, and "
    "the fish is sold on the quay before the sun is up. Later the market moves to the square, "
    "where bread, cheese and flowers are sold as well, and at noon the bell of the church rings. "
)


def estimated(layer: Layer) -> torch.Tensor:
    """Return PEFT's prototypes, (E, K): 15 steps of power iteration from a random start."""
    unseeded = SimpleNamespace(rng_seed=None)
    found = [
        ArrowLoraLinearLayer.top_right_singular_vec_from_BA(unseeded, pair.A, pair.B)
        for pair in layer.residuals
    ]
    return torch.stack(found)


@router(paper="PEFT", parameters=ArrowParameters)
def arrow_of_peft(layer: Layer, parameters: ArrowParameters) -> Prepared:
    """Arrow with PEFT's prototypes."""
    return LayerArrow.at(estimated(layer), parameters)


@dataclass(frozen=True)
class Flipped(LayerArrow):
    """Arrow that decides the closest tie of all tokens the other way."""

    def chosen(self, scores_TE: torch.Tensor) -> torch.Tensor:
        """Return (T, E)."""
        best, experts = scores_TE.topk(self.top_k + 1)
        token = int((best[:, -2] - best[:, -1]).argmin())
        third, fourth = experts[token, -2], experts[token, -1]
        flipped = scores_TE.clone()
        flipped[token, third] = best[token, -1]
        flipped[token, fourth] = best[token, -2]
        return super().chosen(flipped)


class Where(ArrowParameters):
    """Parameters of `arrow_flipped`."""

    layer: int = Field(default=0, description="Number of the layer with the flipped tie.")


@router(paper="", parameters=Where)
def arrow_flipped(layer: Layer, parameters: Where) -> Prepared:
    """Arrow with one near-tie of one layer's query projection decided the other way."""
    here = layer.name.endswith(f".{parameters.layer}.self_attn.q_proj")
    kind = Flipped if here else LayerArrow
    return kind.at(prototypes(layer.residuals), parameters)


def compare_prototypes(library: Library, subtract: bool) -> None:
    """Print how far the estimates are from the exact prototypes, over experts and layers."""
    cosines = []
    for module in library.modules:
        pairs = [one.pairs[module] for one in library.experts.values()]
        if subtract:
            general = [one.pairs[module] for one in library.general.values()]
            pairs = [RULES.get("factors")(pair, general) for pair in pairs]
        layer = Layer(module, pairs)
        cosines.append((estimated(layer) * prototypes(pairs)).sum(1).abs())
    found = torch.cat(cosines)
    print(
        f"{Path(library.name).name}{', residuals' if subtract else ''}: {len(found)} prototypes, "
        f"{(found < 0.99).float().mean():.1%} below a cosine of 0.99, lowest {found.min():.2f}",
        flush=True,
    )


def main() -> None:
    """Print everything."""
    torch.manual_seed(0)
    ROUTERS.add(arrow_of_peft)
    ROUTERS.add(arrow_flipped)
    demo = load_library("smollm2-demo")
    compare_prototypes(demo, subtract=False)
    compare_prototypes(demo, subtract=True)
    base = embedded_model("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))
    }
    text = tokenizer(TEXT, return_tensors="pt")
    for gain in (0.2, 2.0, 10.0):
        benchmarks.random_library.GAIN = gain
        with tempfile.TemporaryDirectory() as folder:
            library = load_library(
                write_random_library(Path(folder), shapes, experts=10, base_model=str(base))
            )
            if gain == 0.2:
                compare_prototypes(library, subtract=False)
            settings = ["arrow", "arrow_of_peft"]
            settings += [f"arrow_flipped;layer={layer}" for layer in range(0, 30, 6)]
            logits = {"base": logits_of(model, text)}
            for setting in settings:
                with attach(model, library, f"{setting};combine=outputs"):
                    logits[setting] = logits_of(model, text)
        report(gain, logits, text["input_ids"][0])


def logits_of(model: torch.nn.Module, text: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of one text, (T, V)."""
    with torch.no_grad():
        found: torch.Tensor = model(**text).logits[0]
    return found


def report(gain: float, logits: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> None:
    """Print how often the most likely token is the same, and what near-ties change."""
    arrow = logits["arrow"]
    losses = {
        name: torch.nn.functional.cross_entropy(one[:-1], tokens[1:], reduction="sum")
        for name, one in logits.items()
    }
    flips = [name for name in logits if name.startswith("arrow_flipped")]
    moved = torch.tensor([float((logits[name] - arrow).abs().max()) for name in flips])
    lost = torch.tensor([float((losses[name] - losses["arrow"]).abs()) for name in flips])
    same = {
        name: float((logits[name].argmax(-1) == arrow.argmax(-1)).float().mean())
        for name in ("base", "arrow_of_peft")
    }
    n = len(tokens)
    print(
        f"random experts, gain {gain}: of {n} tokens, the most likely next one is the same with "
        f"PEFT's prototypes for {same['arrow_of_peft']:.0%}, without experts for "
        f"{same['base']:.0%}; a flipped tie moves logits by up to {moved.max():.2g} (median "
        f"{moved.median():.2g}), the log-likelihood by up to {lost.max():.2g}, the mean loss by "
        f"{lost.max() / n:.2g}",
        flush=True,
    )


if __name__ == "__main__":
    main()
