"""Reading adapters: what PEFT writes is read exactly, anything doubtful refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_sentence, edit_json
from safetensors.torch import load, load_file, save_file

from gks_eval.errors import LibraryError
from gks_eval.library.peft_adapter import CONFIG_FILE, PICKLED, WEIGHTS_FILE, read_adapter
from gks_eval.library.peft_config import Scaling, Targets

KEY = "base_model.model.model.layers.0.self_attn.o_proj.lora_{}.weight"


@pytest.fixture
def folder(tmp_path: Path, tiny_library: Callable[..., Path]) -> Path:
    """A good adapter to spoil."""
    return Path(shutil.copytree(tiny_library("phi3") / "experts" / "alpha", tmp_path / "adapter"))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def put(key: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Replace one factor by a function of itself."""

    def spoil(folder: Path) -> None:
        name = KEY.format(key)
        edit_weights(folder, lambda t: t.__setitem__(name, value(t[name]).contiguous()))

    return spoil


def holding(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoiled(tensor: torch.Tensor) -> torch.Tensor:
        tensor[1, 1] = value
        return tensor

    return spoiled


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / CONFIG_FILE, **changes)


def text(content: str | bytes, name: str = CONFIG_FILE) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data) and None


def cut_short(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def as_pickle(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS_FILE).unlink()
        (folder / name).write_bytes(pickle.dumps({"lora": 1}))

    return spoil


def second_adapter(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[KEY.format("A.other")] = tensors[KEY.format("A")] + 1

    edit_weights(folder, change)


UNSUPPORTED = "which routed layers do not support"


def four_bit_floats(folder: Path) -> None:
    header = json.dumps(
        {
            f"m.lora_{factor}.weight": {"dtype": "F4", "shape": shape, "data_offsets": offsets}
            for factor, shape, offsets in (("A", [1, 2], [0, 1]), ("B", [2, 1], [1, 2]))
        }
    ).encode()
    raw = struct.pack("<Q", len(header)) + header + b"\x11\x11"
    (folder / WEIGHTS_FILE).write_bytes(raw)


CASES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no config": (
        lambda f: (f / CONFIG_FILE).unlink(),
        ["has no adapter_config.json", "save_pretrained"],
    ),
    "config is a folder": (
        lambda f: ((f / CONFIG_FILE).unlink(), (f / CONFIG_FILE).mkdir()),
        ["has no adapter_config.json"],
    ),
    "config cut short": (text('{"r": 4,'), [CONFIG_FILE, "half written (line 1)", "copy it again"]),
    "config not UTF-8": (text(b'{"r": "\xff"}'), [CONFIG_FILE, "is not UTF-8 at byte 7"]),
    "config nested": (text("[" * 100_000), [CONFIG_FILE, "nested too deeply"]),
    "config with a key twice": (text('{"r": 4, "r": 8}'), [CONFIG_FILE, "the key 'r' twice"]),
    "config a list": (text("[1]"), [CONFIG_FILE, "no JSON object", "copy it again"]),
    "no weights": (
        lambda f: (f / WEIGHTS_FILE).unlink(),
        ["has no adapter_model.safetensors", "copy it again"],
    ),
    **{
        f"pickle {name}": (
            as_pickle(name),
            [name, "is a pickle, which can run code", "gks-eval convert bin "],
        )
        for name in PICKLED
    },
    "weights cut short": (cut_short, [WEIGHTS_FILE, "not a readable safetensors file", "again"]),
    "weights empty": (text(b"", WEIGHTS_FILE), [WEIGHTS_FILE, "not a readable safetensors"]),
    "weights are HTML": (text("<html>not found", WEIGHTS_FILE), ["not a readable safetensors"]),
    "weights are a pickle": (
        text(pickle.dumps([1] * 99), WEIGHTS_FILE),
        ["not a readable safetensors"],
    ),
    "a git-lfs pointer": (
        text("version https://git-lfs.github.com/spec/v1\n", WEIGHTS_FILE),
        ["not a readable safetensors"],
    ),
    "no tensors": (lambda f: edit_weights(f, dict.clear), ["holds no LoRA factors", "export"]),
    "NaN": (put("B", holding(math.nan)), [KEY.format("B"), "NaN or Inf", "train it again"]),
    "Inf": (put("A", holding(-math.inf)), [KEY.format("A"), "NaN or Inf"]),
    "overflows float32": (
        put("A", lambda t: t.double() * 0 + 1e300),
        [KEY.format("A"), "NaN or Inf"],
    ),
    "float8 NaN": (
        put("A", lambda t: (t * math.nan).to(torch.float8_e4m3fn)),
        [KEY.format("A"), "NaN or Inf"],
    ),
    "integers": (put("A", lambda t: t.to(torch.int8)), ["int8", "not floating point", "export"]),
    "booleans": (put("B", lambda t: t > 0), ["bool", "not floating point"]),
    "4-bit floats": (four_bit_floats, ["not a readable safetensors file", "copy it again"]),
    "complex": (put("A", lambda t: t.to(torch.complex64)), ["complex64", "not floating point"]),
    "ranks differ": (
        put("B", lambda t: t[:, :3]),
        ["model.layers.0.self_attn.o_proj", "(4, 64) and (64, 3)", "export"],
    ),
    "factors swapped": (put("A", lambda t: t.T), ["(64, 4) and (64, 4)", "(rank, in)"]),
    "rank 0": (
        lambda f: (put("A", lambda t: t[:0])(f), put("B", lambda t: t[:, :0])(f)),
        ["(0, 64)"],
    ),
    "one dimension": (put("A", lambda t: t[0]), ["(64,) and (64, 4)"]),
    "a convolution": (
        lambda f: [put(factor, lambda t: t[..., None, None])(f) for factor in "AB"],
        ["o_proj is a convolution", "(4, 64, 1, 1)", "leaves it out"],
    ),
    "A without B": (
        lambda f: edit_weights(f, lambda t: t.pop(KEY.format("B"))),
        ["model.layers.0.self_attn.o_proj has no lora_B", "copy it again"],
    ),
    "B without A": (
        lambda f: edit_weights(f, lambda t: t.pop(KEY.format("A"))),
        ["has no lora_A", "copy it again"],
    ),
    "rank unlike the config's": (
        config(r=8),
        [
            CONFIG_FILE,
            "gives rank 8 for model.layers.0.self_attn.o_proj",
            "have rank 4",
            "copy both",
        ],
    ),
    "rank unlike its pattern": (config(rank_pattern={"o_proj": 2}), ["gives rank 2"]),
    "two adapters in one file": (second_adapter, ["second lora_A", "one adapter per folder"]),
    "a DoRA magnitude": (
        lambda f: edit_weights(
            f, lambda t: t.update({KEY.format("magnitude_vector"): torch.ones(64)})
        ),
        ["lora_magnitude_vector", "DoRA's magnitudes", "only plain LoRA"],
    ),
    "a router": (
        lambda f: edit_weights(f, lambda t: t.update({"m.lora_router": torch.ones(2)})),
        ["m.lora_router", "neither a LoRA factor nor a weight of the base"],
    ),
    "a bias in B": (
        lambda f: edit_weights(f, lambda t: t.update({"m.lora_B.bias": torch.ones(2)})),
        ["m.lora_B.bias", "a bias in B"],
    ),
    "layers that the config leaves out": (
        config(target_modules=["qkv_proj"]),
        [WEIGHTS_FILE, "updates model.layers.0.self_attn.o_proj", "target_modules", "copy both"],
    ),
    "an embedding's factors": (
        lambda f: edit_weights(f, lambda t: t.update({"m.lora_embedding_A": torch.ones(2, 2)})),
        ["m.lora_embedding_A", "a LoRA of the token embeddings"],
    ),
    "another method": (config(peft_type="IA3"), ["of kind IA3", "only LORA"]),
    "DoRA": (config(use_dora=True), ["DoRA (use_dora)", UNSUPPORTED, "trained without it"]),
    "a trained bias": (
        lambda f: (
            config(bias="all")(f),
            edit_weights(f, lambda t: t.update({"m.base_layer.bias": torch.ones(2)})),
        ),
        ["m.bias, a trained bias (bias='all'", UNSUPPORTED, "bias='none'"],
    ),
    "lora_bias": (config(lora_bias=True), ["(lora_bias)", UNSUPPORTED]),
    "saved modules": (
        config(modules_to_save=["lm_head"]),
        ["uses fully trained modules (modules_to_save), which", UNSUPPORTED],
    ),
    "token embeddings": (config(trainable_token_indices=[1]), ["trained token embeddings"]),
    "replicated layers": (config(layer_replication=[[0, 1]]), ["(layer_replication)", UNSUPPORTED]),
    "QA-LoRA": (config(use_qalora=True), ["QA-LoRA", UNSUPPORTED]),
    "BD-LoRA": (config(use_bdlora={"nblocks": 2}), ["block-diagonal LoRA", UNSUPPORTED]),
    "KaSA": (config(kasa_config={"beta": 1}), ["KaSA", UNSUPPORTED]),
    "aLoRA": (config(alora_invocation_tokens=[1, 2]), ["activated LoRA", UNSUPPORTED]),
    "bare parameters": (
        config(target_parameters=["x.weight"]),
        ["(target_parameters)", UNSUPPORTED],
    ),
    "an Arrow router": (config(arrow_config={"top_k": 2}), ["its own router", UNSUPPORTED]),
    **{
        f"starts from {init}": (
            config(init_lora_weights=init),
            [f"started from {init.lower()}", "changes the base's weights", "convert it"],
        )
        for init in ("pissa", "pissa_niter_16", "PISSA", "olora", "corda", "lora_ga")
    },
    **{
        f"lora_alpha {value!r:.12}": (
            config(lora_alpha=value),
            [CONFIG_FILE, "lora_alpha", "not a finite number above 0", "correct it"],
        )
        for value in (0, -1, "16", None, True, math.nan, math.inf, [16], 10**400)
    },
    "alpha_pattern a list": (config(alpha_pattern=["x"]), ["alpha_pattern", "no mapping"]),
    "rank_pattern a word": (config(rank_pattern="x"), ["rank_pattern", "no mapping"]),
    "alpha_pattern malformed": (config(alpha_pattern={"(": 1}), ["alpha_pattern '('", "malformed"]),
    "target_modules malformed": (config(target_modules="("), ["target_modules '('", "malformed"]),
    "target_modules a number": (config(target_modules=7), ["target_modules is 7", "correct it"]),
    "target_modules of numbers": (config(target_modules=[7]), ["target_modules is [7]"]),
    "layers_to_transform a word": (config(layers_to_transform="x"), ["layers_to_transform is 'x'"]),
    "alpha_pattern long": (config(alpha_pattern={"a" * 10_001: 1}), ["too long"]),
    "a name of thousands": (
        lambda f: edit_weights(
            f, lambda t: t.update({"a." * 5000 + "lora_A.weight": torch.ones(2, 2)})
        ),
        ["a.a.a.", "neither a LoRA factor"],
    ),
    "a huge config": (text(b" " * (5 << 20)), [CONFIG_FILE, "larger than 4 MiB"]),
    "r a word": (config(r="4"), [CONFIG_FILE, "r is '4'", "not a finite number"]),
    "r a list": (config(r=[4]), [CONFIG_FILE, "r is [4]"]),
    "alpha_pattern zero": (config(alpha_pattern={"x": 0}), ["alpha_pattern.x", "above 0"]),
}


@pytest.mark.parametrize(("spoil", "parts"), CASES.values(), ids=CASES.keys())
def test_bad_adapters(spoil: Callable[[Path], Any], parts: list[str], folder: Path) -> None:
    spoil(folder)
    with pytest.raises(LibraryError) as caught:
        read_adapter(folder, "mine")
    assert_sentence(caught.value, str(folder), *parts)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_nothing_is_unpickled(folder: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    for name in (*PICKLED, WEIGHTS_FILE):
        (folder / name).write_bytes(pickle.dumps(Touch()))
    with pytest.raises(LibraryError):
        read_adapter(folder, "mine")
    assert not (tmp_path / "ran").exists()


def test_a_good_adapter_is_read_exactly(folder: Path) -> None:
    adapter = read_adapter(folder, "mine")
    tensors = load_file(folder / WEIGHTS_FILE)
    assert len(tensors) == 2 * len(adapter.pairs) == 8
    for module, pair in adapter.pairs.items():
        assert torch.equal(pair.A, tensors[f"base_model.model.{module}.lora_A.weight"])
        assert torch.equal(pair.B, tensors[f"base_model.model.{module}.lora_B.weight"])
        assert pair.scaling == 4.0
    assert list(adapter.pairs) == sorted(adapter.pairs)
    assert adapter.folder == folder
    assert not adapter.copies
    saved = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    assert adapter.base_model == saved["base_model_name_or_path"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_factors_come_in_float32(dtype: torch.dtype, folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    stored = load_file(folder / WEIGHTS_FILE)
    pair = read_adapter(folder, "mine").pairs["model.layers.0.self_attn.o_proj"]
    assert pair.A.dtype == pair.B.dtype == torch.float32
    assert torch.equal(pair.A, stored[KEY.format("A")].float())


@pytest.mark.parametrize("size", [0, 100, None])
def test_a_file_that_is_overwritten_later_changes_nothing(size: int | None, folder: Path) -> None:
    """In place, as `cp` writes: truncated, or with other bytes."""
    path = folder / WEIGHTS_FILE
    expected = {key: tensor.clone() for key, tensor in load_file(path).items()}
    content = path.read_bytes()
    adapter = read_adapter(folder, "mine")
    with path.open("r+b") as file:
        if size is None:
            file.write(b"\x01" * len(content))
        else:
            file.truncate(size)
    assert path.read_bytes() != content
    for module, pair in adapter.pairs.items():
        for factor, tensor in (("A", pair.A), ("B", pair.B)):
            key = f"base_model.model.{module}.lora_{factor}.weight"
            assert torch.equal(tensor, expected[key])
    assert adapter.weights_sha256 == hashlib.sha256(content).hexdigest()


def test_a_file_that_is_replaced_during_the_read_is_not_mixed_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / WEIGHTS_FILE
    content, old = path.read_bytes(), {key: one.clone() for key, one in load_file(path).items()}
    other = folder / "other.safetensors"
    save_file({key: -tensor for key, tensor in old.items()}, other)

    def parsed(raw: bytes) -> dict[str, torch.Tensor]:
        other.replace(path)
        return load(raw)

    monkeypatch.setattr("gks_eval.library.weights_file.load", parsed)
    adapter = read_adapter(folder, "mine")
    assert adapter.weights_sha256 == hashlib.sha256(content).hexdigest()
    pair = adapter.pairs["model.layers.0.self_attn.o_proj"]
    assert torch.equal(pair.A, old[KEY.format("A")])
    assert torch.equal(pair.B, old[KEY.format("B")])


def test_keys_may_carry_an_adapters_name_or_lack_the_prefix(folder: Path) -> None:
    # Copies: older safetensors write over the very file that a tensor in memory is mapped from.
    expected = {m: pair.A.clone() for m, pair in read_adapter(folder, "mine").pairs.items()}
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS_FILE).items()}
    for rename in (
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix("base_model.model."),
    ):
        save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS_FILE)
        found = read_adapter(folder, "mine").pairs
        assert set(found) == set(expected)
        assert all(torch.equal(found[m].A, expected[m]) for m in expected)


def test_fields_that_change_nothing_are_accepted(folder: Path) -> None:
    edit_json(
        folder / CONFIG_FILE,
        init_lora_weights="gaussian",
        modules_to_save=[],
        lora_dropout=0.5,
        bias=None,
        a_field_of_tomorrow={"x": 1},
    )
    assert read_adapter(folder, "mine").init == "gaussian"
    saved = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    del saved["r"], saved["lora_alpha"]  # PEFT's default alpha is 8
    (folder / CONFIG_FILE).write_text(json.dumps(saved), "utf-8")
    assert {pair.scaling for pair in read_adapter(folder, "mine").pairs.values()} == {2.0}


def test_digests_follow_the_content(folder: Path, tmp_path: Path) -> None:
    import hashlib

    first = read_adapter(folder, "mine")
    assert first.weights_sha256 == hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert read_adapter(moved, "yours").digest == first.digest
    edit_json(folder / CONFIG_FILE, lora_alpha=17)
    second = read_adapter(folder, "mine")
    assert second.digest != first.digest
    assert second.weights_sha256 == first.weights_sha256
    put("A", lambda t: t + 1)(folder)
    third = read_adapter(folder, "mine")
    assert len({first.digest, second.digest, third.digest}) == 3
    assert third.weights_sha256 != second.weights_sha256


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_a_strangers_pattern_cannot_keep_us_busy(field: str) -> None:
    fields = {"target_modules": [], field: "(a|a)+x"}
    with pytest.raises(LibraryError) as caught:
        Targets.read(fields, Path("some/config")).named(["a" * 60])
    assert_sentence(caught.value, f"some/config: {field} '(a|a)+x' takes too long")
    patterns = {"alpha_pattern": {"(a|a)+x": 1}}
    with pytest.raises(LibraryError, match=r"alpha_pattern '.*' takes too long"):
        Scaling(patterns, Path("some/config")).of("a" * 60, 4)


MODULES = [
    *(f"model.layers.{i}.self_attn.{leaf}_proj" for i in (0, 1, 10) for leaf in "qkvo"),
    *("lm_head", "model.layers.1.mlp.up_proj", "odd+name.q_proj", "odd+name"),
]  # fmt: skip
PATTERNS = [
    *("q_proj", "proj", "_proj", "self_attn.q_proj", r"layers\.1\..*", ".*1.self_attn.o_proj"),
    *("^model.layers.0.self_attn.k_proj", "(q|k)_proj", "model", "lm_head", "", ".*", "q_proj$"),
    *("odd+name", r"layers.\d.*proj", "[qv]_proj", "(?:up|q)_proj|lm", r"(.*\.)?o_proj"),
]


@pytest.mark.parametrize("seed", range(20))
def test_patterns_choose_as_in_peft(seed: int) -> None:
    from peft.utils.other import get_pattern_key

    rng = random.Random(seed)
    keys = rng.sample(PATTERNS, rng.randint(1, len(PATTERNS)))
    alphas = {key: float(number + 1) for number, key in enumerate(keys)}
    scaling = Scaling({"lora_alpha": 100, "alpha_pattern": alphas}, Path("config"))
    for module in MODULES:
        expected = alphas.get(get_pattern_key(list(alphas), module), 100)
        assert scaling.of(module, 4) == expected / 4, (module, keys)


def test_a_pattern_that_keeps_python_s_engine_busy_is_matched() -> None:
    """PEFT's own function would need hours: `re` tries every way to divide the letters."""
    scaling = Scaling({"lora_alpha": 8, "alpha_pattern": {"(a+)+x": 1}}, Path("config"))
    assert scaling.of("a" * 60, 4) == 2


def test_long_patterns_that_tools_write_are_matched() -> None:
    """Unsloth's kind: eleven repeats and more than 300 characters, matched in no time."""
    parts = "self_attn|attention|attn|mlp|feed_forward|ffn|dense"
    leaves = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    pattern = (
        rf"(?:.*?(?:language|text).*?(?:{parts}).*?(?:{leaves}).*?)"
        rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{parts})\.(?:(?:{leaves})))"
    )
    targets = Targets.read({"target_modules": pattern}, Path("config"))
    names = ["model.layers.10.mlp.up_proj", "model.layers.0.self_attn.o_proj", "lm_head"]
    assert targets.named(names) == set(names[:2])
