"""`gks-eval controls` on tiny libraries in which the right verdict is known.

The adapters update the output projection of the last attention layer. With c the difference of the
head's rows for "A" and "B", an update ``k c u^T`` answers "A" where u . x is positive. Items are
contexts whose label is the sign of one such product, in a forward pass of transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import load_tiny, save_tiny_base

from gks_eval.cli.main import main
from gks_eval.library.writer import write_adapter
from gks_eval.method.lora import LoraPair

N = 200
FIRST, LAST = (f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1))
TASK = {
    "task": "planted",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": ["A", "B"],
    "doc_to_target": "{{label}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@dataclass(frozen=True)
class Planted:
    """A base and contexts whose inputs to the last projection are known.

    Attributes:
        base: The base's folder.
        texts: Contexts.
        x: (n, K) the layer's input at their last token.
        u: (K,) unit vector.
        v: (K,) unit vector, orthogonal to u; both are orthogonal to the mean of x.
        c: (D,) unit vector that prefers "A" to "B".
    """

    base: Path
    texts: list[str]
    x: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    c: torch.Tensor

    def update(self, gain: float, read: torch.Tensor) -> LoraPair:
        return LoraPair(read[None], gain * self.c[:, None], 1.0)

    def items(self, order: torch.Tensor) -> list[dict[str, Any]]:
        """Return the N contexts with the largest `order`, labelled by the sign of u . x."""
        chosen = order.argsort(descending=True)[:N].tolist()
        signs = (self.x @ self.u < 0).int().tolist()
        return [{"text": self.texts[i], "label": signs[i]} for i in chosen]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = save_tiny_base(
        tmp_path_factory.mktemp("base"), "llama", hidden_size=256, num_attention_heads=4
    )
    model, generator = load_tiny(folder), torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (4000, 6), generator=generator)
    texts = sorted({bytes(row.tolist()).decode() for row in letters})
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(LAST)
    with layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, -1])):
        model(torch.tensor(tokenizer(texts).input_ids))
    x = seen[0].detach()
    random = torch.randn(x.shape[1], 2, generator=generator)
    axes = torch.linalg.qr(torch.column_stack([x.mean(0), random])).Q
    a, b = tokenizer("AB").input_ids
    rows = model.get_output_embeddings().weight.detach()
    c = torch.nn.functional.normalize(rows[a] - rows[b], dim=0)
    return Planted(folder, texts, x, axes[:, 1], axes[:, 2], c)


Judge = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def judge(
    planted: Planted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Judge:
    """Return ``judge(experts, general, items, arguments)``: contrasts and claims by name."""

    def run(
        experts: Mapping[str, Mapping[str, LoraPair]],
        general: Mapping[str, LoraPair],
        items: list[dict[str, Any]],
        arguments: str = "",
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        for name, pairs in {**experts, "en": general}.items():
            layers = [layer for layer, path in enumerate((FIRST, LAST)) if path in pairs]
            config = {"target_modules": ["o_proj"], "layers_to_transform": layers}
            write_adapter(tmp_path / name, pairs, base_model=str(planted.base), config=config)
        sources = {"experts": {name: name for name in experts}, "general": {"en": "en"}}
        manifest = {"base_model": str(planted.base), **sources}
        (tmp_path / "library.yaml").write_text(yaml.safe_dump(manifest), "utf-8")
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)), "utf-8")
        (tmp_path / "tasks").mkdir()
        data = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}}}
        (tmp_path / "tasks/planted.yaml").write_text(yaml.safe_dump(TASK | data), "utf-8")
        command = ["controls", "--library", ".", "--tasks", "planted", "--include-path", "tasks"]
        command += [
            "--treatment",
            f"gks:en;preset=exact{arguments}",
            "--seeds",
            "1",
            "--margin",
            "0.05",
        ]
        command += ["--output", "out", "--format", "json", "--model-args", "dtype=float32"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "argv", ["gks-eval", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        finding = json.loads(printed.out)["finding"]
        print(
            json.dumps([(f["name"], f["score"], f["state"]) for f in finding["contrasts"]])
        )  # DBG
        contrasts = {one["name"]: one for one in finding["contrasts"]}
        claims = {one["role"]: one for one in finding["claims"]}
        assert all(one["n"] == N for one in contrasts.values())
        return contrasts, {"score": finding["score"], **claims}

    return run


@pytest.mark.filterwarnings("default")
def test_subtraction_helps_where_the_experts_carry_the_general_adapter(
    planted: Planted, judge: Judge
) -> None:
    # Experts: the task's update and a larger one that answers by sign(v . x); the latter alone is
    # the general adapter. The first layer only makes `general=permuted` possible.
    small = {FIRST: planted.update(1e-3, planted.u)}
    general = planted.update(1000.0, planted.v)
    experts = {
        name: {**small, LAST: _sum(planted.update(gain, planted.u), general)}
        for name, gain in (("one", 200.0), ("two", 210.0), ("three", 220.0))
    }
    order = torch.minimum(*(planted.x @ read for read in (planted.u, planted.v)))
    contrasts, found = judge(experts, {**small, LAST: general}, planted.items(order.abs()))
    assert found["score"] > 0.95
    own = [one for one in contrasts.values() if one["role"] == "subtraction"]
    assert len(own) == 6
    assert {one["state"] for one in own} == {"beaten"}
    assert found["subtraction"]["holds"] is True
    assert found["subtraction"]["sentence"].startswith(
        "General knowledge subtraction helps here: gks:en;preset=exact beats no subtraction, "
    )
    assert found["routing"]["holds"] is False  # the experts are nearly the same
    assert found["library"]["holds"] is True


@pytest.mark.filterwarnings("default")
def test_any_subtraction_helps_where_it_evens_out_the_routing(
    planted: Planted, judge: Judge
) -> None:
    # Arrow gives nearly all weight to the expert that answers by sign(v . x). A large update that
    # is subtracted from both, of whatever directions, gives them one prototype: half the weight
    # each, and the other expert's update is the larger one.
    experts = {
        "right": {LAST: planted.update(1000.0, planted.u)},
        "wrong": {LAST: planted.update(100.0, planted.v)},
    }
    generator = torch.Generator().manual_seed(4)
    read, write = torch.randn(2, len(planted.u), generator=generator)
    norm = 1500.0 / float(read.norm() * write.norm())
    general = {LAST: LoraPair(read[None], norm * write[:, None], 1.0)}
    near, far = ((planted.x @ read).abs() for read in (planted.u, planted.v))
    order = torch.where(far > 2.0 * near, near, 0.0)
    contrasts, found = judge(experts, general, planted.items(order), ";temperature=0.4")
    assert found["score"] > 0.95
    for name in ("no subtraction", "experts=rescaled"):
        assert contrasts[name]["state"] == "beaten"
    for name in ("general=random", "general=rotated"):
        assert contrasts[name]["state"] == "as well"
    assert found["subtraction"]["holds"] is False
    assert found["subtraction"]["sentence"].startswith(
        "Not shown that general knowledge subtraction helps here: general=random, general=rotated "
    )


@pytest.mark.filterwarnings("default")
def test_nothing_helps_where_the_adapters_change_no_answer(planted: Planted, judge: Judge) -> None:
    reads = {"one": planted.u, "two": planted.v}
    experts = {name: {LAST: planted.update(1e-4, read)} for name, read in reads.items()}
    general = {LAST: planted.update(1e-4, planted.u)}
    contrasts, found = judge(experts, general, planted.items((planted.x @ planted.u).abs()))
    assert {one["state"] for one in contrasts.values()} == {"as well"}
    for role in ("subtraction", "routing", "library"):
        assert found[role]["holds"] is False
        assert found[role]["sentence"].startswith("Not shown that ")
    assert "no subtraction" in found["subtraction"]["sentence"]


def _sum(one: LoraPair, other: LoraPair) -> LoraPair:
    return LoraPair(torch.cat([one.A, other.A]), torch.cat([one.B, other.B], dim=1), 1.0)
