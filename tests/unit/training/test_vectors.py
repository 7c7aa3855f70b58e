"""Vectors for routers: the formulas, what stays frozen, and runs that are resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from common import TARGETS, load_tiny, random_pair, save_adapter, save_two_expert_recipe
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from gks_eval.errors import LibraryError, ResourceError, UsageError
from gks_eval.library.load import load_library
from gks_eval.method.setting import Setting
from gks_eval.model.load_base import load_tokenizer
from gks_eval.training.examples import Example
from gks_eval.training.gates import Gate, gated, train_gates
from gks_eval.training.job_data import load_job_data
from gks_eval.training.jobs import make_plan
from gks_eval.training.vector_plan import VectorOptions, VectorPlan, plan_vectors
from gks_eval.training.vectors import prepare
from gks_eval.util.files import exclusive

SHORT = VectorOptions(steps=4, batch_size=2)
TOKENS = torch.arange(20, 44).reshape(2, 12)


@pytest.fixture
def folder(
    tiny_base: Callable[..., Path], tiny_library: Callable[..., Path], tmp_path: Path
) -> Path:
    """A library of the experts `one` and `two` with a recipe of eleven rows."""
    folder = tmp_path / "library"
    shutil.copytree(tiny_library("phi3", experts=("one", "two")), folder)
    save_two_expert_recipe(folder, tiny_base("phi3"), rows=11, dropout=0.0)
    return folder


def plan(folder: Path, router: str = "phatgoose", options: VectorOptions = SHORT) -> VectorPlan:
    library = load_library(str(folder))
    return plan_vectors(library, router, make_plan(folder / "recipe.yaml"), options)


def test_the_gates_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    pair, layer = random_pair(seed=1), nn.Linear(16, 24).requires_grad_(False)
    x, target = torch.randn(3, 5, 16), torch.randn(3, 5, 24)
    gate = Gate(pair, torch.float32, torch.device("cpu"))
    gate.v.data = torch.randn(16)
    layer.register_forward_hook(gate, with_kwargs=True)
    (0.5 * (layer(x) - target).square().sum()).backward()
    found = gate.v.grad
    assert found is not None
    expected = torch.zeros(16, dtype=torch.float64)
    wide = [one.double() for one in (layer.weight, layer.bias, pair.A, pair.B, gate.v.detach())]
    weight, bias, A, B, v = wide
    for one, wanted in zip(
        x.reshape(-1, 16).double(), target.reshape(-1, 24).double(), strict=True
    ):
        update = pair.scaling * B @ (A @ one)
        share = 1 / (1 + torch.exp(-(v @ one)))
        error = weight @ one + bias + share * update - wanted
        expected += (error @ update) * share * (1 - share) * one
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_gates_of_zero_give_half_of_pefts_update(
    folder: Path, tiny_base: Callable[..., Path]
) -> None:
    theirs = PeftModel.from_pretrained(load_tiny(tiny_base("phi3")), folder / "experts/one").eval()
    for module in theirs.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: value / 2 for name, value in module.scaling.items()}
    model = load_tiny(tiny_base("phi3"))
    plain = model(TOKENS).logits
    with gated(model, load_library(str(folder)).experts["one"].pairs):
        torch.testing.assert_close(model(TOKENS).logits, theirs(TOKENS).logits)
    assert torch.equal(model(TOKENS).logits, plain)


def test_training_changes_the_gates_alone_and_lowers_the_loss(
    folder: Path, tiny_base: Callable[..., Path]
) -> None:
    model = load_tiny(tiny_base("phi3")).requires_grad_(False)
    pairs = load_library(str(folder)).experts["one"].pairs
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    factors = {name: (pair.A.clone(), pair.B.clone()) for name, pair in pairs.items()}
    row = tuple(TOKENS[0].tolist())
    rows = [Example(row, (-100, *row[1:])), Example(row[:7], row[:7])]
    vectors, losses = train_gates(
        model, pairs, rows, steps=60, learning_rate=1e-2, batch_size=2, seed=0
    )
    assert len(losses) == 60
    assert losses[-1] < losses[0] - 0.05
    assert {name: vector.shape[0] for name, vector in vectors.items()} == {
        name: pair.shape[1] for name, pair in pairs.items()
    }
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for name, (A, B) in factors.items():
        assert torch.equal(pairs[name].A, A)
        assert torch.equal(pairs[name].B, B)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    # The first loss is the mean over the scored tokens of both rows, none of them padding.
    with torch.no_grad(), gated(model, pairs):
        logits = [model(torch.tensor([e.input_ids])).logits[0, :-1] for e in rows]
    wanted = [torch.tensor(e.labels[1:]) for e in rows]
    naive = nn.functional.cross_entropy(torch.cat(logits), torch.cat(wanted))
    assert abs(losses[0] - float(naive)) < 1e-5


def test_mean_activations_are_those_of_a_plain_loop(
    folder: Path, tiny_base: Callable[..., Path]
) -> None:
    options = VectorOptions(samples=3)
    planned = plan(folder, "mean_activation", options)
    prepare(planned)
    found = load_file(folder / "prepared/mean_activation/vectors.safetensors")
    model = PeftModel.from_pretrained(load_tiny(tiny_base("phi3")), folder / "experts/one").eval()
    rows = planned.jobs[0].data.train
    assert len(rows) == 3
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, args: seen.setdefault(name, []).append(args[0][0])

    for name, module in model.named_modules():
        if name.endswith(TARGETS["phi3"]):
            module.register_forward_pre_hook(keep(name.removeprefix("base_model.model.")))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row.input_ids]))
    assert len(seen) == 4
    for name, inputs in seen.items():
        expected = sum(x.double().sum(0) / len(x) for x in inputs) / 3
        torch.testing.assert_close(found[f"one/{name}"].double(), expected, rtol=1e-5, atol=1e-5)


def test_an_interrupted_run_resumes_with_the_next_expert(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    prepare(plan(whole))
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == SHORT.steps + 2:  # in the second expert
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(plan(folder), on_step=stop)
    resumed = plan(folder)
    assert [job.done for job in resumed.jobs] == [True, False]
    made: list[str] = []
    prepare(resumed, on_expert=lambda job: made.append(job.name))
    assert made == ["two"]
    file = Path("prepared/phatgoose/vectors.safetensors")
    assert (folder / file).read_bytes() == (whole / file).read_bytes()
    assert [path.name for path in (folder / "prepared").iterdir() if path.is_dir()] == ["phatgoose"]
    library = load_library(str(folder))
    library.check(Setting(router="phatgoose", subtract=()))
    record = json.loads((folder / "prepared/phatgoose/prepared.json").read_text())
    assert record["library"] == library.content_hash
    assert record["steps"] == SHORT.steps
    assert record["experts"]["one"]["rows"] == 8  # of eleven: four steps of two


@pytest.mark.parametrize("change", ["adapter", "data", "steps"])
def test_what_has_changed_is_made_again(
    change: str, folder: Path, tiny_base: Callable[..., Path]
) -> None:
    prepare(plan(folder))
    assert all(job.done for job in plan(folder).jobs)
    options = SHORT
    if change == "adapter":
        base = load_tiny(tiny_base("phi3"))
        save_adapter(base, folder / "experts/two", TARGETS["phi3"], seed=9)
    elif change == "data":
        text = (folder / "rows.jsonl").read_text().replace("say", "tell")
        (folder / "rows.jsonl").write_text(text)
    else:
        options = VectorOptions(steps=5, batch_size=2)
    again = plan(folder, options=options)
    assert [job.done for job in again.jobs] == [change == "adapter", False]
    prepare(again)
    assert all(job.done for job in plan(folder, options=options).jobs)


def test_a_second_process_is_refused(folder: Path) -> None:
    lock = exclusive(folder / "prepared/.phatgoose.lock")
    with lock, pytest.raises(ResourceError, match="another process"):
        prepare(plan(folder))


def test_experts_without_data_and_other_routers_are_refused(
    folder: Path, tiny_library: Callable[..., Path]
) -> None:
    recipe = make_plan(folder / "recipe.yaml")
    with pytest.raises(UsageError, match="no rows for alpha, beta, gamma, delta"):
        plan_vectors(load_library(str(tiny_library("phi3"))), "phatgoose", recipe, SHORT)
    with pytest.raises(UsageError, match="did you mean 'phatgoose'"):
        plan(folder, "phatgose")


def test_rows_held_out_from_training_are_not_used(folder: Path) -> None:
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace("experts:", "experts:\n  held_out: 5"))
    trained = make_plan(file)
    planned = plan(folder, options=VectorOptions(samples=50))
    whole = load_job_data(trained.jobs[0], trained.root, load_tokenizer(planned.base))
    assert len(whole.held_out) == 5
    assert planned.jobs[0].data.train == whole.train
    assert plan(folder, options=VectorOptions(samples=2)).jobs[0].data.train == whole.train[:2]


def test_tied_layers_share_a_gate_as_one_layer_would(tiny_base: Callable[[str], Path]) -> None:
    model = load_tiny(tiny_base("phi")).requires_grad_(False)
    names = [f"model.layers.{n}.self_attn.{part}_proj" for n in (0, 1) for part in "qkv"]
    pairs = {name: random_pair(width_in=64, width_out=64, seed=n) for n, name in enumerate(names)}
    tied = {name: name[:14] for name in names}
    for shared in ({}, tied):
        with gated(model, pairs, shared) as gates:
            model(TOKENS).logits.square().sum().backward()
        if not shared:
            parts = [gates[name].v.grad for name in names]
            continue
        for n in (0, 1):
            group = names[3 * n : 3 * n + 3]
            assert gates[group[0]].v is gates[group[1]].v is gates[group[2]].v
            # One gate before three layers has the sum of their gradients.
            torch.testing.assert_close(gates[group[0]].v.grad, sum(parts[3 * n : 3 * n + 3]))
    rows = [Example(list(range(20, 30)), list(range(20, 30)))] * 2
    how = {"steps": 2, "learning_rate": 0.1, "batch_size": 1, "seed": 0}
    found, _ = train_gates(model, pairs, rows, tied=tied, **how)
    assert torch.equal(found[names[0]], found[names[2]])
    assert not torch.equal(found[names[0]], found[names[3]])


def test_a_record_of_gates_names_the_tied_layers(folder: Path) -> None:
    manifest = folder / "library.yaml"
    text = manifest.read_text("utf-8")
    prepare(plan(folder))
    manifest.write_text(f"{text}tied_prototypes: [{{layers: [qkv_proj, o_proj]}}]\n", "utf-8")
    library = load_library(str(folder))
    setting = Setting.from_arguments(router="phatgoose", subtract="none", combine="outputs")
    with pytest.raises(LibraryError, match="other tied layers"):
        library.check(setting)
    assert not any(job.done for job in plan(folder).jobs)
    prepare(plan(folder))
    vectors = library.vectors(library.check(setting))
    assert vectors is not None
    tensors = vectors.of("one")
    for n in (0, 1):
        q, o = (tensors[f"one/model.layers.{n}.self_attn.{p}"] for p in ("qkv_proj", "o_proj"))
        assert torch.equal(q, o)
