"""The one writer of adapter folders: what PEFT reads back, equal bytes, and names of folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence, load_tiny, random_pair
from safetensors import safe_open
from safetensors.torch import load_file

from gks_eval.errors import LibraryError
from gks_eval.library.peft_adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from gks_eval.library.writer import check_folder_names, write_adapter
from gks_eval.method.lora import LoraPair
from gks_eval.training.conversion import convert_mttl

LAYERS = [f"model.layers.{n}.self_attn.{name}" for n in (0, 1) for name in ("q_proj", "o_proj")]


def pairs(ranks: list[int], scalings: list[float]) -> dict[str, LoraPair]:
    return {
        layer: random_pair(rank, 64, 64, scaling, seed=n)
        for n, (layer, rank, scaling) in enumerate(zip(LAYERS, ranks, scalings, strict=True))
    }


def write(folder: Path, content: dict[str, LoraPair], **more: Any) -> dict[str, Any]:
    config = {"target_modules": ["o_proj", "q_proj"]}
    write_adapter(folder, content, base_model="org/base", config=config, **more)
    return dict(json.loads((folder / CONFIG_FILE).read_text("utf-8")))


@pytest.mark.parametrize(
    ("ranks", "scalings", "r", "alpha", "patterns"),
    [
        ([4, 4, 4, 4], [4.0] * 4, 4, 16, ([], [])),
        ([49, 49, 49, 49], [1 / 49] * 4, 49, 1, ([], [])),
        ([4, 4, 2, 4], [4.0] * 4, 4, 16, ([2], [2])),
        ([3, 4, 4, 5], [1.0, 0.5, 0.5, 0.3], 4, 2, ([0, 3], [0, 3])),
    ],
)
def test_peft_reads_the_same_update_with_any_ranks_and_scalings(
    ranks: list[int],
    scalings: list[float],
    r: int,
    alpha: float,
    patterns: tuple[list[int], list[int]],
    tmp_path: Path,
    tiny_base: Callable[..., Path],
) -> None:
    from peft import PeftModel

    content = pairs(ranks, scalings)
    config = write(tmp_path / "one", content)
    assert (config["r"], config["lora_alpha"]) == (r, alpha)
    found = [list(config[field]) for field in ("rank_pattern", "alpha_pattern")]
    assert found == [[f"^{LAYERS[n]}" for n in one] for one in patterns]
    base = load_tiny(tiny_base("llama"))
    model = PeftModel.from_pretrained(base, tmp_path / "one")
    for layer, pair in content.items():
        theirs = model.base_model.model.get_submodule(layer).get_delta_weight("default")
        torch.testing.assert_close(theirs, pair.delta())
    ours = read_adapter(tmp_path / "one", "one").pairs
    assert all(torch.equal(ours[layer].B, content[layer].B) for layer in LAYERS)


def test_a_pattern_fits_its_own_layer_only(tmp_path: Path) -> None:
    content = {
        "a.q_proj": random_pair(2, 8, 8, 1.0, seed=0),
        "b.a.q_proj": random_pair(3, 8, 8, 1.0, seed=1),
        "c.q_proj": random_pair(3, 8, 8, 1.0, seed=2),
    }
    write(tmp_path / "one", content)
    assert {k: p.rank for k, p in read_adapter(tmp_path / "one", "one").pairs.items()} == {
        "a.q_proj": 2, "b.a.q_proj": 3, "c.q_proj": 3,
    }  # fmt: skip


def test_equal_factors_give_equal_bytes_and_all_files_are_there(tmp_path: Path) -> None:
    content = {layer: pair.to(torch.bfloat16) for layer, pair in pairs([4] * 4, [4.0] * 4).items()}
    more: dict[str, Any] = {
        "record": ("record.json", {"b": 1}),
        "texts": {"curve": "1\n"},
        "metadata": {str(n): "ü" * n for n in range(9)},
    }
    write(tmp_path / "one", content, **more)
    write(tmp_path / "two", dict(reversed(content.items())), **more)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert set(one) == {CONFIG_FILE, WEIGHTS_FILE, "record.json", "curve"}
    held = load_file(tmp_path / "one" / WEIGHTS_FILE)
    with safe_open(tmp_path / "one" / WEIGHTS_FILE, framework="pt") as file:
        assert file.metadata() == {"format": "pt", **more["metadata"]}
    key = f"base_model.model.{LAYERS[0]}.lora_A.weight"
    assert held[key].dtype == torch.bfloat16
    assert torch.equal(held[key], content[LAYERS[0]].A)


@pytest.mark.parametrize("name", ["con", "NUL", "aux.v1", "Com1", "lpt9.a.b", "end."])
def test_names_that_windows_cannot_have(name: str) -> None:
    with pytest.raises(LibraryError) as caught:
        check_folder_names(["alpha", name], "lib")
    assert_sentence(caught.value, "lib", name, "Windows", "another name")


def test_names_that_differ_in_case_only() -> None:
    check_folder_names(["alpha", "beta", "console", "com", "a.con"], "lib")
    with pytest.raises(LibraryError) as caught:
        check_folder_names(["alpha", "beta", "Alpha"], "lib")
    assert_sentence(caught.value, "lib", "'Alpha'", "ignore case")


def test_two_checkpoints_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for name in ("a b.ckpt", "a_b.ckpt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(LibraryError) as caught:
        convert_mttl(tmp_path, tmp_path / "out", base_model="x")
    assert_sentence(caught.value, "'a_b' would share a folder")
    assert not (tmp_path / "out").exists()
