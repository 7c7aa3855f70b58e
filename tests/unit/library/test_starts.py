"""Shared starts: measured like dense updates, told once, and recorded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import MIXED, TARGETS, assert_sentence, dense, load_tiny, random_pair
from oracle import residual_dense
from typer.testing import CliRunner

from gks_eval.cli.main import build_app
from gks_eval.errors import UsageError
from gks_eval.grid import Grid, run_grid
from gks_eval.grid.prepare import prepare
from gks_eval.grid.table import accuracy_table
from gks_eval.library import starts
from gks_eval.library.load import Library, load_library
from gks_eval.library.starts import StartsTally, starts_of
from gks_eval.method.lora import LoraPair, no_update
from gks_eval.method.rules.factors import factors
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.model.lm import GksArrowLM

RULES = ("factors", "orthogonal")
EXPERTS, GENERAL = ("alpha", "beta"), ("en", "de")


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "_WARNED", set())


def trained_library(folder: Path, base: Path, *, one_seed: bool) -> Path:
    """A library as plain PEFT makes it: the default start, a few steps of AdamW an adapter."""
    from peft import LoraConfig, get_peft_model

    for n, key in enumerate(
        [*(f"experts/{name}" for name in EXPERTS), *(f"general/{name}" for name in GENERAL)]
    ):
        model = load_tiny(base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if one_seed else n)
            config = LoraConfig(
                r=4, lora_alpha=16, target_modules=list(TARGETS["phi3"]), task_type="CAUSAL_LM"
            )
            adapted = get_peft_model(model, config)
        weights = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=2e-3)
        generator = torch.Generator().manual_seed(100 + n)
        tokens = torch.randint(4, 260, (4, 24), generator=generator)
        for _ in range(8):
            optimizer.zero_grad()
            adapted(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
        adapted.save_pretrained(folder / key, save_embedding_layers=False)
    manifest = {
        "base_model": str(base),
        "experts": {name: f"experts/{name}" for name in EXPERTS},
        "general": {name: f"general/{name}" for name in GENERAL},
    }
    (folder / "library.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False), "utf-8")
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]) -> Path:
    return trained_library(tmp_path_factory.mktemp("shared"), tiny_base("phi3"), one_seed=True)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path]) -> Path:
    return trained_library(tmp_path_factory.mktemp("own"), tiny_base("phi3"), one_seed=False)


def naive(library: Library, name: str, languages: list[str], rule: str) -> tuple[float, float]:
    """|cosine| of the starts and the share of dW that is left, of matrices written out in full."""
    cosines, whole, left = [], 0.0, 0.0
    for module in library.modules:
        task = library.experts[name].pairs[module]
        general = [library.general[language].pairs[module] for language in languages]
        for one in general:
            flat = torch.stack([task.A.flatten(), one.A.flatten()]).double()
            cosines.append(abs(float(torch.nn.functional.cosine_similarity(*flat, dim=0))))
        whole += float(dense(task).square().sum())
        left += float(residual_dense(task, general, rule).square().sum())
    return sum(cosines) / len(cosines), (left / whole) ** 0.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("start", ["shared", "own"])
def test_an_attachment_measures_what_dense_updates_say(
    start: str, rule: str, request: pytest.FixtureRequest, tiny_model: Callable[..., Any]
) -> None:
    library = load_library(str(request.getfixturevalue(start)))
    for text, languages in (("gks:de", ["de"]), ("gks:avg", ["en", "de"])):
        with attach(tiny_model("phi3"), library, f"{text};rule={rule};top_k=2") as attachment:
            starts = attachment.starts
        assert starts is not None
        for name in EXPERTS:
            found = (starts.cosine[name], starts.left[name])
            assert found == pytest.approx(naive(library, name, languages, rule), rel=1e-3), name
        assert starts.shared == (list(EXPERTS) if start == "shared" else [])
        assert all((cosine > 0.9) == (start == "shared") for cosine in starts.cosine.values())
        if start == "shared":
            assert all(share < 0.6 for share in starts.left.values())


def test_one_expert_of_several_with_a_shared_start_is_enough() -> None:
    general, other = random_pair(seed=1), random_pair(seed=2)
    near = replace(random_pair(seed=3), A=general.A * 1.01)
    tally = StartsTally(["near", "far"], "factors")
    tally([near, other], [general], [factors(p, [general]) for p in (near, other)])
    starts = tally.result()
    assert starts.shared == ["near"]
    # (B_t - B_g)(0.01 A_g), from the definition.
    by_hand = dense(LoraPair(general.A * 0.01, near.B - general.B, near.scaling)).norm()
    assert starts.left["near"] == pytest.approx(float(by_hand / dense(near).norm()), rel=1e-4)
    warning = starts.warning("mine")
    assert warning is not None
    assert "1 of 2 experts" in warning


def test_a_start_is_a_mean_over_the_layers_that_the_expert_updates() -> None:
    general, lacking = random_pair(seed=1), no_update((24, 16))
    near = replace(random_pair(seed=3), A=general.A * 1.01)
    tally = StartsTally(["near"], "factors")
    for task in (near, lacking, lacking):
        tally([task], [general], [factors(task, [general])])
    assert tally.result().cosine["near"] == pytest.approx(1.0)


def test_adapters_without_an_update_lose_nothing() -> None:
    zero = LoraPair(torch.zeros(2, 3), torch.zeros(4, 2))
    tally = StartsTally(["zero"], "factors")
    tally([zero], [zero], [zero])
    assert (tally.result().left, tally.result().cosine) == ({"zero": 1.0}, {"zero": 0.0})


SAYS = ["shared starts", "preset=exact", "cosine 0.9", "% of the norm", "2 of 2 experts"]


def test_a_warning_once_a_library(
    shared: Path, own: Path, tiny_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("phi3")
    library = load_library(str(shared))
    for quiet in ("arrow", "base", "gks:en;rule=delta", "gks:avg;preset=exact"):
        with attach(model, library, f"{quiet};top_k=2" if quiet != "base" else quiet) as attached:
            assert attached.starts is None
    with attach(model, load_library(str(own)), "gks:en;top_k=2"):
        pass
    assert not caplog.records
    for loud in ("gks:en", "gks:de;rule=orthogonal", "gks:avg"):
        with attach(model, library, f"{loud};top_k=2"):
            pass
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert_sentence(UsageError(record.getMessage()), str(shared), "rule=factors", *SAYS)


def test_other_ranks_leave_the_warning_to_the_leader(
    shared: Path,
    tiny_model: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    with attach(tiny_model("phi3"), load_library(str(shared)), "gks:en;top_k=2"):
        pass
    assert not caplog.records


def test_text_is_as_good_as_a_setting(own: Path, tiny_model: Callable[..., Any]) -> None:
    library, tokens = load_library(str(own)), torch.arange(4, 24).unsqueeze(0)
    logits = []
    for setting in ("gks:en+de;top_k=1", Setting(subtract=("en", "de"), top_k=1)):
        with torch.no_grad(), attach(tiny_model("phi3"), library, setting) as attachment:
            logits.append(tiny_model("phi3")(tokens).logits)
            attachment.apply("base")
            assert attachment.setting == Setting(router="none", subtract=())
    assert torch.equal(*logits)
    with pytest.raises(UsageError) as caught:
        attach(tiny_model("phi3"), library, "gks:en;scoring=plain")
    assert_sentence(caught.value, "scoring", "gks_arrow", "leave it out")


def test_lm_eval_warns_and_records(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm = GksArrowLM(library=str(shared), subtract="en", top_k=2)
    assert sum("shared starts" in record.getMessage() for record in caplog.records) == 1
    recorded = lm.get_model_info()["gks_eval"]["starts"]
    assert json.loads(json.dumps(recorded)) == recorded
    assert recorded["rule"] == "factors"
    assert recorded["shared"] == list(EXPERTS)
    assert set(recorded["cosine"]) == set(recorded["left"]) == set(EXPERTS)
    lm.apply(Setting(subtract=("en",), rule="delta", combine="outputs", top_k=2))
    assert lm.get_model_info()["gks_eval"]["starts"] is None


def test_a_grid_warns_once_and_in_its_footer(
    shared: Path, own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(library: Path, settings: list[str]) -> str:
        grid = Grid(
            settings=settings, tasks=["gks_demo_goals_en"], output=tmp_path / library.name,
            library=str(library), model_arguments={"dtype": "float32"},
            evaluation={"limit": 1, "bootstrap_iters": 0},
        )  # fmt: skip
        return str(accuracy_table(run_grid(grid)).caption)

    told = run(shared, ["gks:en;top_k=2", "gks:de;top_k=2", "gks:en;rule=delta;top_k=2"])
    warnings = [r for r in caplog.records if "shared starts" in r.getMessage()]
    assert len(warnings) == 1
    share = warnings[0].getMessage().partition(" leaves ")[2].partition(" ")[0]
    assert "Shared starts" in told
    assert f"leaves {share} (gks:en;top_k=2), " in told
    assert "rule=delta" not in told
    assert "preset=exact" in told
    assert "Shared starts" not in run(own, ["gks:en;top_k=2"])


@pytest.mark.parametrize(
    "setting", ["gks:en;top_k=2", "gks:avg;rule=orthogonal", "merge:mean;subtract=de"]
)
def test_a_grid_warns_before_the_base_is_loaded(
    shared: Path, tiny_model: Callable[..., Any], tmp_path: Path, setting: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    settings = ["base", "arrow;top_k=2", "gks:en;rule=delta;top_k=2", setting]
    prepare(Grid(settings, ["gks_demo_goals_en"], tmp_path, library=str(shared)))
    (record,) = caplog.records
    assert_sentence(UsageError(record.getMessage()), str(shared), *SAYS)
    library = load_library(str(shared))
    with attach(tiny_model("phi3"), library, setting) as attached:
        assert attached.starts == starts_of(library, attached.setting)
    assert len(caplog.records) == 1


def test_library_show_says_what_is_there(
    shared: Path, own: Path, tiny_library: Callable[..., Path]
) -> None:
    def show(library: Path) -> str:
        done = CliRunner().invoke(build_app(), ["library", "show", str(library)])
        assert done.exit_code == 0, done.output
        return done.output

    told = show(shared)
    assert "; 2 experts, general en, de; rank 4, scaling 4; targets o_proj, qkv_proj" in told
    assert f"base {load_library(str(shared)).config.base_model}" in told
    assert "(4 layers)" in told
    assert all(part in told for part in SAYS)
    assert "shared starts:" not in show(own)
    told = show(tiny_library("llama", adapters=MIXED))
    assert "(14 layers, fewer for alpha 8, beta 6" in told
    assert re.search(r"^ +delta +\S+ +\d+% +– ", told, re.MULTILINE)  # no even mix of factors
