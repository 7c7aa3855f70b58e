"""Conversion of MTTL experts and pickled PEFT adapters, checked by equal outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence
from safetensors.torch import load_file, save_file

from gks_eval.errors import LibraryError, UsageError
from gks_eval.library.load import load_library
from gks_eval.training.conversion import convert_bin, convert_mttl
from gks_eval.training.mttl_expert import peft_factors

WIDTH, LAYERS, RANK, ALPHA = 64, 2, 4, 16


def mttl_tensors(seed: int, prefix: str = "model.transformer.h") -> dict[str, torch.Tensor]:
    """An expert on the fused layers of the original Phi-2 code."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, width_out in (("Wqkv", 3 * WIDTH), ("out_proj", WIDTH)):
            key = f"{prefix}.{layer}.mixer.{name}"
            tensors[f"{key}.lora_a"] = torch.randn(WIDTH, RANK, generator=generator) / 8
            tensors[f"{key}.lora_b"] = torch.randn(RANK, width_out, generator=generator) / 8
    return tensors


def lightning(folder: Path, name: str, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"lora_rank": RANK, "lora_alpha": ALPHA, "expert_name": name}
    torch.save(
        {"state_dict": mttl_tensors(seed), "hyper_parameters": config}, folder / f"{name}.ckpt"
    )
    return folder


def merge_fused(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Add dW to a transformers Phi the way MTTL's layer computes it: x @ lora_a @ lora_b."""
    x = torch.eye(WIDTH)
    for number, layer in enumerate(model.model.layers):
        for name in ("Wqkv", "out_proj"):
            key = f"model.transformer.h.{number}.mixer.{name}"
            out = (x @ tensors[f"{key}.lora_a"] @ tensors[f"{key}.lora_b"]) * (ALPHA / RANK)
            if name == "out_proj":
                layer.self_attn.dense.weight.data += out.T
                continue
            attention = layer.self_attn
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            for part, columns in zip(parts, out.split(WIDTH, 1), strict=True):
                part.weight.data += columns.T


def test_a_fused_expert_gives_the_same_outputs_on_separate_layers(
    tmp_path: Path, tiny_base: Callable[[str], Path], tiny_model: Callable[..., Any]
) -> None:
    from peft import PeftModel

    source = lightning(tmp_path / "mttl", "expert", 0)
    convert_mttl(source, tmp_path / "library", base_model=str(tiny_base("phi")))
    merged = tiny_model("phi")
    merge_fused(merged, mttl_tensors(0))
    base = tiny_model("phi")
    adapted = PeftModel.from_pretrained(base, tmp_path / "library/experts/expert")
    ids = torch.randint(4, 250, (2, 17))
    with torch.no_grad():
        expected = merged(ids).logits
        torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-4)
        with adapted.disable_adapter():
            assert (adapted(ids).logits - expected).abs().max() > 0.1


def test_a_library_folder_with_metadata_beside_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "mttl"
    folder.mkdir()
    for number in (0, 1, 2, 10):
        tensors = mttl_tensors(number, "transformer.h")
        torch.save(tensors, folder / f"c{number}o10.ckpt")
        config = {"expert_config": {"lora_rank": RANK, "lora_alpha": ALPHA}}
        torch.save({"expert_name": f"c{number}o10", **config}, folder / f"c{number}o10.meta")
    done = convert_mttl(folder, tmp_path / "out", base_model="org/phi", numbered="cluster")
    assert done.experts == ("cluster_0", "cluster_1", "cluster_2", "cluster_3")
    library = load_library(str(tmp_path / "out"))
    pair = library.experts["cluster_3"].pairs["model.layers.1.self_attn.k_proj"]
    tensors = mttl_tensors(10, "transformer.h")
    a = tensors["transformer.h.1.mixer.Wqkv.lora_a"].double()
    b = tensors["transformer.h.1.mixer.Wqkv.lora_b"].double()[:, WIDTH : 2 * WIDTH]
    torch.testing.assert_close(pair.delta().double(), (a @ b).T * ALPHA / RANK)


def test_a_manifest_that_is_there_stays(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    ties = "tied_prototypes: [{layers: [q_proj, k_proj, v_proj]}]\n"
    text = f"base_model: org/phi\nexperts: {{a: experts/a}}\n{ties}"
    (output / "library.yaml").write_text(text)
    done = convert_mttl(lightning(tmp_path / "mttl", "a", 0), output, base_model="org/phi")
    assert done.manifest is None
    assert (output / "library.yaml").read_text().startswith("base_model")


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/gks-eval-a-pickle-ran-code",)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    folder = lightning(tmp_path / "mttl", "a", 0)
    torch.save({"state_dict": mttl_tensors(0), "hyper_parameters": Runs()}, folder / "a.ckpt")
    with pytest.raises(LibraryError) as caught:
        convert_mttl(folder, tmp_path / "out", base_model="org/phi")
    assert_sentence(caught.value, "a.ckpt", "run code")
    assert not Path("/tmp/gks-eval-a-pickle-ran-code").exists()
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    tensors = mttl_tensors(0)
    with pytest.raises(LibraryError, match="no LoRA factor"):
        peft_factors({**tensors, "model.layers.0.ln.weight": torch.ones(3)}, "x.ckpt")
    with pytest.raises(LibraryError, match="lacks lora_a or lora_b"):
        peft_factors({k: v for k, v in tensors.items() if "0.mixer.Wqkv.lora_b" not in k}, "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LibraryError, match=r"no \.ckpt"):
        convert_mttl(tmp_path / "empty", tmp_path / "out", base_model="org/phi")
    folder = tmp_path / "bare"
    folder.mkdir()
    torch.save(tensors, folder / "a.ckpt")
    with pytest.raises(LibraryError, match="names lora_rank and lora_alpha"):
        convert_mttl(folder, tmp_path / "out", base_model="org/phi")
    (folder / "a.ckpt").write_bytes(b"torn")
    with pytest.raises(LibraryError, match=r"a\.ckpt"):
        convert_mttl(folder, tmp_path / "out", base_model="org/phi")


def test_a_pickled_peft_adapter_becomes_safetensors(
    tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    import shutil

    folder = tmp_path / "alpha"
    shutil.copytree(tiny_library() / "experts/alpha", folder)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(UsageError, match="exists already"):
        convert_bin(folder)
    weights.unlink()
    convert_bin(folder)
    found = load_file(weights)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)
    save_file(found, weights)
