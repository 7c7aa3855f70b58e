"""Exported libraries under PEFT, loaded as their model cards say: logits equal the setting's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import MIXED, TARGETS, load_tiny, relative_error, save_library

import gks_eval
from gks_eval.library.card import CARD
from gks_eval.library.export import export
from gks_eval.library.load import Library, load_library

PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
ARGUMENTS = re.compile(r"--model_args (\S+) ")


@pytest.fixture
def exact_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's power iteration with enough steps to converge; it takes 15."""
    from peft.tuners.lora.arrow import ArrowLoraLinearLayer

    iterate = ArrowLoraLinearLayer.top_right_singular_vec_from_BA
    monkeypatch.setattr(
        ArrowLoraLinearLayer,
        "top_right_singular_vec_from_BA",
        lambda self, A, B: iterate(self, A, B, iters=3000),
    )


@pytest.fixture
def exported(
    tmp_path: Path, tiny_library: Callable[..., Path]
) -> Callable[..., tuple[Library, Path]]:
    """Return ``export(setting, family, rank)``: the source, and the new library's folder."""

    def make(setting: str, family: str = "phi3", rank: int | None = None) -> tuple[Library, Path]:
        library = load_library(str(tiny_library(family)))
        return library, export(library, setting, tmp_path / "exported", rank).folder

    return make


def logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(4, 260, (3, 24), generator=generator)
    with torch.no_grad():
        return model.eval()(tokens).logits


def ours(base: Path, library: Library, setting: Any) -> torch.Tensor:
    model = load_tiny(base)
    with gks_eval.attach(model, library, setting):
        return logits(model)


def by_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the Python of the card in the folder, and return its model."""
    (code,) = PYTHON.findall((folder / CARD).read_text("utf-8"))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    return names["model"]


def assert_equal_but_for_a_flip(found: torch.Tensor, expected: torch.Tensor) -> None:
    # A near-tie that flips moves its token and those after it in the row; all else agrees.
    off = (found - expected).abs().amax(-1) > 2e-5 * expected.abs().max()
    assert off.any(dim=1).sum() <= 1, f"{int(off.sum())} of {off.numel()} tokens differ"


# What PEFT's Arrow mixes are outputs: the function of the same setting with combine=outputs.
@pytest.mark.usefixtures("exact_prototypes")
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(
    ("setting", "family"),
    [
        ("gks:avg;preset=paper", "phi3"),
        ("gks:avg;preset=paper", "llama"),
        ("gks:en;rule=delta;temperature=0.7;top_k=2", "phi3"),
        ("gks:de+fr;rule=orthogonal;combine=outputs", "phi3"),
        ("gks:avg;preset=exact;scale=0.5", "phi"),
        ("arrow", "phi3"),
    ],
)
def test_residuals_under_pefts_arrow_without_subtraction(
    setting: str,
    family: str,
    exported: Callable[..., tuple[Library, Path]],
    tiny_base: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, folder = exported(setting, family)
    parsed = gks_eval.Setting.parse(setting)[0].model_copy(update={"combine": "outputs"})
    expected = ours(tiny_base(family), library, parsed)
    assert_equal_but_for_a_flip(logits(by_card(folder, monkeypatch)), expected)
    assert relative_error(logits(load_tiny(tiny_base(family))), expected) > 0.05


@pytest.mark.parametrize(
    "setting",
    [
        "gks:avg", "gks:avg;rule=delta", "gks:en;preset=exact", "gks:fr;rule=orthogonal", "arrow",
        "uniform:de", "arrow;rule=pico", "merge:ties;rule=pico", "random:avg;top_k=2",
        "expert:beta", "merge:mean", "merge:ties;subtract=avg", "gks:en;general=other;rule=delta",
        "spectr:en", "spectr:en;preset=exact", "expert:gamma;subtract=en;rule=delta",
    ],
)  # fmt: skip
def test_the_exported_library_gives_the_settings_logits_as_its_card_says(
    setting: str,
    exported: Callable[..., tuple[Library, Path]],
    tiny_base: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, folder = exported(setting)
    expected = ours(tiny_base("phi3"), library, setting)
    found = ARGUMENTS.search((folder / CARD).read_text("utf-8"))
    assert found
    arguments = dict(part.split("=", 1) for part in found[1].split(","))
    monkeypatch.chdir(folder)
    again = load_library(arguments.pop("library"))
    card = gks_eval.Setting.from_arguments(**arguments)
    assert_equal_but_for_a_flip(ours(tiny_base("phi3"), again, card), expected)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("setting", ["expert:beta", "merge:mean;subtract=avg;rule=delta"])
def test_one_adapter_under_peft(
    setting: str,
    family: str,
    exported: Callable[..., tuple[Library, Path]],
    tiny_base: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, folder = exported(setting, family)
    model = by_card(folder, monkeypatch)
    expected = ours(tiny_base(family), library, setting)
    assert relative_error(logits(model), expected) < 1e-5
    assert relative_error(logits(model.merge_and_unload()), expected) < 1e-5


def test_truncated_updates_are_those_of_the_dense_svd(
    exported: Callable[..., tuple[Library, Path]],
    tiny_base: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = "expert:beta;subtract=avg;rule=delta"
    library, folder = exported(setting, rank=3)
    dense = load_tiny(tiny_base("phi3"))
    for name, pair in library.experts["beta"].pairs.items():
        general = [adapter.pairs[name].delta().double() for adapter in library.general.values()]
        update = pair.delta().double() - sum(general) / len(general)
        U, S, V = torch.linalg.svd(update, full_matrices=False)
        best = (U[:, :3] * S[:3]) @ V[:3]
        dense.get_submodule(name).weight.data += best.float()
    assert relative_error(logits(by_card(folder, monkeypatch)), logits(dense)) < 1e-5


@pytest.mark.parametrize(
    "setting",
    [
        "expert:beta", "expert:delta", "expert:gamma;subtract=avg;rule=delta", "merge:mean",
        "merge:mean;subtract=de;rule=delta",
    ],
)  # fmt: skip
def test_layers_ranks_and_scalings_of_their_own_under_peft(
    setting: str, tmp_path: Path, tiny_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    source = save_library(tmp_path / "source", base, "llama", adapters=MIXED)
    library = load_library(str(source))
    expected = ours(base, library, setting)
    folder = export(library, setting, tmp_path / "exported").folder
    model = by_card(folder, monkeypatch)
    assert relative_error(logits(model), expected) < 1e-5
    assert not (tmp_path / "exported/experts").exists()


def test_residuals_of_adapters_of_different_layers(
    tmp_path: Path, tiny_base: Callable[..., Path]
) -> None:
    base = tiny_base("llama")
    library = load_library(str(save_library(tmp_path / "source", base, "llama", adapters=MIXED)))
    done = export(library, "gks:avg;preset=exact", tmp_path / "exported")
    new = load_library(str(done.folder))
    for name, expert in library.experts.items():
        assert new.experts[name].pairs.keys() == expert.pairs.keys()
    expected = ours(base, library, "gks:avg;preset=exact")
    assert_equal_but_for_a_flip(ours(base, new, "arrow;preset=exact"), expected)


def arrow_with_subtraction(base: Path, experts: list[Path], general: list[Path]) -> Any:
    from peft import ArrowConfig, create_arrow_model

    return create_arrow_model(
        base_model=load_tiny(base),
        task_specific_adapter_paths=list(map(str, experts)),
        general_adapter_paths=list(map(str, general)),
        arrow_config=ArrowConfig(top_k=2, use_gks=True, rng_seed=0),
    )


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_peft_subtracts_in_place_and_again_after_a_reload(
    tmp_path: Path,
    exported: Callable[..., tuple[Library, Path]],
    tiny_base: Callable[..., Path],
    tiny_library: Callable[..., Path],
) -> None:
    """What docs/export.md says of `use_gks=True`; so an export must not be given to it."""
    source = tiny_library("phi3")
    library, folder = exported("gks:avg")
    general = [source / "general" / name for name in library.general]
    layer = library.modules[0]
    task = library.experts["alpha"].pairs[layer]
    mean_A = torch.stack([one.pairs[layer].A for one in library.general.values()]).mean(0)

    def first_A(model: Any) -> torch.Tensor:
        return model.base_model.model.get_submodule(layer).lora_A["task_0"].weight.data

    alpha = [source / "experts/alpha", source / "experts/beta"]
    model = arrow_with_subtraction(tiny_base("phi3"), alpha, general)
    torch.testing.assert_close(first_A(model), task.A)
    once = logits(model)
    torch.testing.assert_close(first_A(model), task.A - mean_A)  # at the first forward, in place
    names = ["task_0", "task_1"]
    model.save_pretrained(tmp_path / "saved", selected_adapters=names, save_embedding_layers=False)
    saved = [tmp_path / "saved" / name for name in names]
    ours_A = load_library(str(folder)).experts["alpha"].pairs[layer].A
    for experts in (saved, [folder / "experts/alpha", folder / "experts/beta"]):
        again = arrow_with_subtraction(tiny_base("phi3"), experts, general)
        torch.testing.assert_close(first_A(again), ours_A)
        twice = logits(again)
        torch.testing.assert_close(first_A(again), task.A - 2 * mean_A)
        assert relative_error(twice, once) > 0.01
