"""Routing accuracy: planted vectors, and counting token by token in a plain loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from common import assert_sentence

from gks_eval.errors import UsageError
from gks_eval.library.load import load_library
from gks_eval.library.prepared import home_of_vectors, write_vectors
from gks_eval.method.setting import Setting
from gks_eval.model.lm import GksArrowLM
from gks_eval.model.routing_accuracy import divided_argmax, observe_accuracy

Planted = tuple[Path, dict[str, dict[str, torch.Tensor]]]
EXPERTS = ("alpha", "beta", "gamma")
# Unequal numbers and lengths; each expert's text has tokens of its own.
ROWS = {
    "alpha": [[40, 41, 42, 41, 40], [41, 42]],
    "beta": [[100, 101, 102]],
    "gamma": [[200, 201, 200, 202], [202, 200, 201], [201]],
}


def plant(folder: Path, inputs: dict[str, dict[str, torch.Tensor]], order: tuple[str, ...]) -> None:
    library = load_library(str(folder))
    tensors = {
        f"{name}/{layer}": inputs[own][layer].clone()
        for name, own in zip(EXPERTS, order, strict=True)
        for layer in library.experts[name].pairs
    }
    made = {name: {"adapter": adapter.digest} for name, adapter in library.experts.items()}
    write_vectors(home_of_vectors(library, "mean_activation"), tensors, {"experts": made})


@pytest.fixture(scope="module")
def folder(
    tiny_library: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    """A library, and the mean input of each layer on each expert's text."""
    folder = tmp_path_factory.mktemp("planted") / "library"
    shutil.copytree(tiny_library("phi3", experts=EXPERTS), folder)
    lm = GksArrowLM(library=str(folder), dtype="float32", router="uniform")
    assert lm.attachment is not None
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        update.layer.register_forward_pre_hook(
            lambda _m, args, name=name: seen.setdefault(name, []).append(args[0][0].detach())
        )
        for name, update in lm.attachment.layers.items()
    ]
    means = {}
    for name, rows in ROWS.items():
        seen.clear()
        for row in rows:
            lm.model(input_ids=torch.tensor([row]))
        means[name] = {layer: torch.cat(parts).mean(0) for layer, parts in seen.items()}
    for handle in handles:
        handle.remove()
    return folder, means


def routed(folder: Path, text: str = "mean_activation;preset=exact;top_k=1") -> GksArrowLM:
    return GksArrowLM(library=str(folder), dtype="float32", **Setting.parse(text)[0].arguments())


def test_vectors_of_their_own_text_find_the_expert(folder: Planted) -> None:
    path, means = folder
    plant(path, means, EXPERTS)
    lm = routed(path)
    found = observe_accuracy(lm, lm.setting, ROWS)
    first = [n for n, layer in enumerate(found.layers) if "layers.0.self_attn.qkv" in layer]
    assert first
    assert all(found.tokens[n] == 1 and found.sequences[n] == 1 for n in first)
    assert found.all_sequences == 1
    assert found.all_tokens > 2 / 3
    plant(path, means, ("beta", "gamma", "alpha"))
    lm = routed(path)
    moved = observe_accuracy(lm, lm.setting, ROWS)
    assert moved.all_sequences == 0
    assert moved.all_tokens < 1 / 6
    assert all(moved.tokens[n] == 0 for n in first)


@pytest.mark.parametrize("text", ["arrow;top_k=2", "norm:avg;top_k=2", "random;top_k=1"])
def test_the_shares_are_those_of_a_plain_loop(folder: Planted, text: str) -> None:
    path, _ = folder
    lm = routed(path, text)
    found = observe_accuracy(lm, lm.setting, ROWS)
    assert lm.attachment is not None
    shares: dict[str, list[float]] = {layer: [] for layer in found.layers}
    majorities: dict[str, list[float]] = {layer: [] for layer in found.layers}
    overall = []
    for own, name in enumerate(EXPERTS):
        right = dict.fromkeys(found.layers, 0)
        whole = dict.fromkeys(found.layers, 0.0)
        everywhere = 0.0
        for row in ROWS[name]:
            seen: dict[str, list[list[float]]] = {}
            lm.attachment.observe(lambda layer, c, seen=seen: seen.update({layer: c.tolist()}))
            lm.model(input_ids=torch.tensor([row]))
            total = [0] * 3
            for layer, coefficients in seen.items():
                chosen = [one.index(max(one)) for one in coefficients]
                right[layer] += chosen.count(own)
                votes = [chosen.count(e) for e in range(3)]
                total = [a + b for a, b in zip(total, votes, strict=True)]
                ties = votes.count(max(votes))
                whole[layer] += (votes[own] == max(votes)) / ties
            everywhere += (total[own] == max(total)) / total.count(max(total))
        for layer in found.layers:
            shares[layer].append(right[layer] / sum(map(len, ROWS[name])))
            majorities[layer].append(whole[layer] / len(ROWS[name]))
        overall.append(everywhere / len(ROWS[name]))
    lm.attachment.observe(None)
    expected = [sum(shares[layer]) / 3 for layer in found.layers]
    assert found.tokens == pytest.approx(expected)
    assert found.sequences == pytest.approx([sum(majorities[m]) / 3 for m in found.layers])
    assert found.all_tokens == pytest.approx(sum(expected) / len(expected))
    assert found.all_sequences == pytest.approx(sum(overall) / 3)
    diagonal = [found.confusion[n][n] for n in range(3)]
    assert sum(diagonal) / 3 == pytest.approx(found.all_tokens)
    assert [sum(row) for row in found.confusion] == pytest.approx([1.0] * 3)


def test_uniform_is_right_by_chance_and_a_constant_choice_too(folder: Planted) -> None:
    path, means = folder
    lm = routed(path, "uniform")
    found = observe_accuracy(lm, lm.setting, ROWS)
    assert found.tokens == found.sequences == pytest.approx([1 / 3] * len(found.layers))
    assert found.all_sequences == pytest.approx(1 / 3)
    none = {layer: torch.zeros_like(vector) for layer, vector in means["alpha"].items()}
    plant(path, {**means, "none": none}, ("alpha", "none", "none"))
    lm = routed(path)  # experts with the vector zero are chosen after all others
    constant = observe_accuracy(lm, lm.setting, ROWS)
    assert constant.tokens == constant.sequences == pytest.approx([1 / 3] * len(found.layers))


def test_ties_are_divided() -> None:
    scores = torch.tensor([[3.0, 1.0, 3.0], [1 / 3 + 1 / 3 + 1 / 3, 1.0, 0.0]], dtype=torch.float64)
    assert divided_argmax(scores).tolist() == [[0.5, 0, 0.5], [0.5, 0.5, 0]]


def test_what_chooses_no_expert_is_refused(folder: Planted) -> None:
    path, _ = folder
    lm = routed(path, "arrow")
    for text in ("merge:mean", "expert:alpha", "base"):
        with pytest.raises(UsageError) as caught:
            observe_accuracy(lm, Setting.parse(text)[0], ROWS)
        assert_sentence(caught.value, "does not choose among experts")
    with pytest.raises(UsageError) as missing:
        observe_accuracy(lm, Setting.parse("arrow")[0], {**ROWS, "beta": []})
    assert_sentence(missing.value, "no text of expert beta")
