"""adapter_config.json and safetensors headers, as strangers' adapters bring them."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import bytes_spoilt, holds, json_files, json_text, spoilt, values
from hypothesis import strategies as st
from peft import LoraConfig

from gks_eval.library.peft_adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from gks_eval.library.prepared import read_vectors, write_vectors

PREFIX = "base_model.model.model.layers"
DTYPES = (
    "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E8M0 F4 F6_E2M3 F6_E3M2 I64 I32 I16 I8 U64 U32 U16 U8 "
    "BOOL C64 F128 f32 X"
).split()
PATTERNS = (
    "",
    ".*",
    "o_proj",
    "(a|a)+$",
    "a" * 400,
    "(",
    "[",
    "^model",
    r"layers\.\d+",
    "a*b*c*d*",
)
NUMBERS = (0, -1, 1, 2, 3, 4, 32, 64, 2**31, 2**40, 2**63, 2**64, 2**64 - 1, -(2**63), 0.5, True)


def config() -> dict[str, Any]:
    whole = LoraConfig(
        r=2, lora_alpha=4, target_modules=["o_proj"], bias="none", task_type="CAUSAL_LM",
        rank_pattern={"layers.1.x.o_proj": 2}, alpha_pattern={"o_proj": 8},
    ).to_dict()  # fmt: skip
    whole["target_modules"] = ["o_proj"]
    return json.loads(json.dumps(whole, default=str))  # type: ignore[no-any-return]


def tensors() -> tuple[dict[str, Any], bytes]:
    """Header and body of two layers of rank 2, (2,4) and (3,2)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for layer in (0, 1):
        for factor, shape in (("A", [2, 4]), ("B", [3, 2])):
            raw = torch.arange(1.0, 1 + shape[0] * shape[1]).numpy().tobytes()
            header[f"{PREFIX}.{layer}.x.o_proj.lora_{factor}.weight"] = {
                "dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(raw)],
            }  # fmt: skip
            body += raw
    return header, body


def written(header: str | bytes, body: bytes, length: int | None = None) -> bytes:
    raw = header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


@st.composite
def weights(draw: Any) -> bytes:
    """Files whose header, its length, or whose body was tampered with."""
    header, body = tensors()
    names = [name for name in header if name.startswith(PREFIX)]
    for _ in range(draw(st.integers(0, 2))):
        entry = header[draw(st.sampled_from(names))]
        field = draw(st.sampled_from(("dtype", "shape", "data_offsets")))
        number = st.sampled_from(NUMBERS)
        if field == "dtype":
            entry[field] = draw(st.sampled_from(DTYPES))
        elif draw(st.booleans()):
            entry[field] = [draw(number), *entry[field][1:]]
        elif field == "shape":
            entry[field] = draw(st.lists(number, max_size=4))
        else:  # another's bytes, or nobody's
            entry[field] = draw(
                st.sampled_from([header[n]["data_offsets"] for n in names]) | st.lists(number)
            )
    tree = draw(st.just(header) | spoilt(header))
    text = json_text(tree, None).encode("utf-8", "surrogatepass")
    text = draw(st.just(text) | bytes_spoilt(text))
    text += b" " * draw(st.sampled_from((0, 0, 0, 1, 7, 8, 4096)))
    body = draw(st.sampled_from((body,) * 8 + (body[:-1], body + b"\0", b"", b"\xff" * 112)))
    lengths = (None,) * 16 + (
        0,
        1,
        max(0, len(text) - 1),
        len(text) + 1,
        10**8,
        2**62,
        2**63,
        2**64 - 1,
    )
    whole = written(text, body, draw(st.sampled_from(lengths)))
    return draw(st.just(whole) | bytes_spoilt(whole))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    (folder / CONFIG_FILE).write_text(json.dumps(config()), "utf-8")
    header, body = tensors()
    (folder / WEIGHTS_FILE).write_bytes(written(json_text(header), body))
    assert len(read_adapter(folder, "sound").pairs) == 2
    return folder


def test_adapter_config(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")

    def parse(raw: bytes) -> None:
        (other / CONFIG_FILE).write_bytes(raw)
        adapter = read_adapter(other, "mine")
        assert all(0 < pair.scaling < float("inf") for pair in adapter.pairs.values())

    patterns = st.dictionaries(st.sampled_from(PATTERNS), st.sampled_from((2, 0, "2", 1e400)))
    holds(
        "adapter_config.json",
        json_files(config(), others=values | patterns),
        parse,
        str(other),
    )


def test_safetensors(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")

    def parse(raw: bytes) -> None:
        # A new file each time: the library maps it, and a mapped file must not shrink.
        (other / WEIGHTS_FILE).unlink()
        (other / WEIGHTS_FILE).write_bytes(raw)
        adapter = read_adapter(other, "mine")
        for pair in adapter.pairs.values():
            assert pair.A.dtype == pair.B.dtype == torch.float32
            assert pair.A.shape[0] == pair.B.shape[1]
            assert torch.isfinite(pair.A).all()

    holds("safetensors", weights(), parse, str(other))


def test_prepared_vectors(tmp_path: Path) -> None:
    place = tmp_path / "phatgoose"
    place.mkdir()

    def parse(raw: bytes) -> None:
        (place / "vectors.safetensors").write_bytes(raw)
        record = {"sha256": hashlib.sha256(raw).hexdigest(), "experts": {}}
        (place / "prepared.json").write_text(json.dumps(record), "utf-8")
        for vector in read_vectors(place).tensors.values():
            assert vector.dtype == torch.float32
            assert torch.isfinite(vector).all()

    holds("prepared vectors", weights(), parse, str(place))


def test_record_of_prepared_vectors(tmp_path: Path) -> None:
    place = tmp_path / "phatgoose"
    made = {"one": {"adapter": "ab", "fingerprint": "cd"}}
    write_vectors(place, {"one/x": torch.ones(3)}, {"experts": made, "steps": 100})
    record = json.loads((place / "prepared.json").read_text("utf-8"))

    def parse(raw: bytes) -> None:
        (place / "prepared.json").write_bytes(raw)
        for entry in read_vectors(place).record["experts"].values():
            assert isinstance(entry["adapter"], str)
            assert isinstance(entry["fingerprint"], str)

    holds("prepared.json", json_files(record), parse, str(place))
