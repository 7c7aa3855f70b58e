"""Exports: what is written, recorded, kept and refused; their logits are in tests/parity."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import assert_sentence, edit_json, load_tiny, save_adapter, save_random_vectors
from safetensors import safe_open

import gks_eval
from gks_eval.errors import CompatibilityError, ConfigError, GksError, LibraryError, UsageError
from gks_eval.library.card import CARD
from gks_eval.library.export import export
from gks_eval.library.load import MANIFEST, Library, load_library
from gks_eval.library.peft_adapter import CONFIG_FILE, EXPORT, WEIGHTS_FILE
from gks_eval.library.peft_check import check_with_peft
from gks_eval.method.declaration import Layer, Parameters
from gks_eval.method.decorators import merge
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import MERGES


@pytest.fixture
def library(tiny_library: Callable[..., Path]) -> Library:
    return load_library(str(tiny_library("phi3")))


def manifest(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / MANIFEST).read_text("utf-8")))


def front(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / CARD).read_text("utf-8").split("---\n")[1]))


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("setting", "rank", "expected"),
    [
        ("gks:avg", None, (4, 16)),
        ("gks:avg;rule=delta", None, (16, 16)),
        ("gks:en;rule=delta", None, (8, 8)),
        ("gks:en;rule=delta", 3, (3, 3)),
        ("gks:en;rule=delta", 8, (8, 8)),
        ("gks:en", 5, (4, 16)),
        ("arrow", None, (4, 16)),
    ],
)
def test_residuals_are_one_folder_per_expert_with_plain_rank_and_alpha(
    setting: str, rank: int | None, expected: tuple[int, int], library: Library, tmp_path: Path
) -> None:
    done = export(library, setting, tmp_path / "new", rank)
    assert list(done.adapters) == list(library.experts)
    assert set(content(done.folder)) == set(done.files)
    for name, folder in done.adapters.items():
        assert folder == done.folder / "experts" / name
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        assert (config["r"], config["lora_alpha"]) == expected
        assert config["rank_pattern"] == config["alpha_pattern"] == {}
        assert config["target_modules"] == ["o_proj", "qkv_proj"]
        assert config["base_model_name_or_path"] == library.config.base_model
    new = load_library(str(done.folder))
    assert not new.general
    hashes = {f"experts/{name}": one.weights_sha256 for name, one in new.experts.items()}
    assert new.config.hashes == hashes


@pytest.mark.parametrize(
    ("setting", "name"),
    [("expert:beta", "beta"), ("merge:mean;subtract=en+de;rule=delta", "merge-mean")],
)
def test_one_adapter_lies_at_the_top(
    setting: str, name: str, library: Library, tmp_path: Path
) -> None:
    done = gks_eval.export(library, gks_eval.Setting.parse(setting)[0], tmp_path / "new")
    assert done.adapters == {name: tmp_path / "new"}
    assert set(content(done.folder)) == {MANIFEST, CARD, CONFIG_FILE, WEIGHTS_FILE}
    assert not {path.name for path in tmp_path.iterdir()} - {"new"}
    assert manifest(done.folder)["experts"] == {name: "."}
    assert list(load_library(str(done.folder)).experts) == [name]


def test_provenance_is_in_the_manifest_and_in_the_weights(library: Library, tmp_path: Path) -> None:
    done = export(library, "gks:en+de;rule=delta;top_k=2", tmp_path / "new", 3)
    record = manifest(done.folder)["provenance"]["exported"]
    assert record["content_hash"] == library.content_hash
    assert record["library"] == library.path.parent.name  # no path of this machine
    assert record["subtracted"] == ["en", "de"]
    assert record["setting"]["rule"] == "delta"
    assert record["setting"]["top_k"] == 2
    assert record["rank"] == 3
    assert done.truncation is not None
    assert record["relative_error"] == pytest.approx(done.truncation.total, rel=1e-5)
    del record["versions"]
    with safe_open(done.adapters["alpha"] / WEIGHTS_FILE, framework="pt") as file:
        assert json.loads(file.metadata()[EXPORT]) == record


def test_truncation_errors_are_those_of_dense_matrices(library: Library, tmp_path: Path) -> None:
    exact = load_library(str(export(library, "gks:avg;rule=delta", tmp_path / "exact").folder))
    done = export(library, "gks:avg;rule=delta", tmp_path / "new", 2)
    new = load_library(str(done.folder))
    assert done.truncation is not None
    lost = whole = 0.0
    for layer in library.modules:
        squares = [0.0, 0.0]
        for name, expert in exact.experts.items():
            update = expert.pairs[layer].delta().double()
            rest = update - new.experts[name].pairs[layer].delta().double()
            # No approximation of rank 2 is better: Eckart and Young.
            tail = torch.linalg.svdvals(update)[2:].square().sum()
            assert float(rest.square().sum()) == pytest.approx(float(tail), rel=1e-4)
            squares = [squares[0] + float(tail), squares[1] + float(update.square().sum())]
        error = done.truncation.layers[layer]
        assert error == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-4)
        lost, whole = lost + squares[0], whole + squares[1]
    assert done.truncation.total == pytest.approx(math.sqrt(lost / whole), rel=1e-4)
    assert 0.05 < done.truncation.total < 1


def test_options_of_the_authors_code_are_exported(library: Library, tmp_path: Path) -> None:
    """The mean of the experts subtracted, and half a residual with half a target language."""
    done = export(library, "gks:experts", tmp_path / "less")
    assert manifest(done.folder)["provenance"]["exported"]["subtracted"] == ["experts"]
    assert "The mean of all experts is already subtracted" in (done.folder / CARD).read_text()
    new = load_library(str(done.folder))
    mixed = load_library(
        str(export(library, "gks:en;rule=cross_lingual;target=de", tmp_path / "half").folder)
    )
    assert "general adapter de is mixed into each" in (tmp_path / "half" / CARD).read_text()
    for module in library.modules:
        every = {name: adapter.pairs[module] for name, adapter in library.experts.items()}
        en, de = (library.general[name].pairs[module] for name in ("en", "de"))
        mean = sum(pair.B for pair in every.values()) / len(every)
        for name, pair in every.items():
            found = new.experts[name].pairs[module], mixed.experts[name].pairs[module]
            torch.testing.assert_close(found[0].B, pair.B - mean)
            torch.testing.assert_close(found[1].B, 0.5 * (pair.B - en.B) + 0.5 * de.B)
    with pytest.raises(UsageError) as caught:
        new.check(gks_eval.Setting.parse("gks:experts")[0])
    assert_sentence(caught.value, "experts was subtracted", "use subtract=none")


def test_a_second_subtraction_is_refused(library: Library, tmp_path: Path) -> None:
    folder = export(library, "gks:avg", tmp_path / "new").folder
    new = load_library(str(folder))
    with pytest.raises(UsageError) as caught:
        new.check(gks_eval.Setting.parse("gks:avg")[0])
    assert_sentence(caught.value, "has no general adapters", "subtract=none")
    shutil.copytree(library.general["en"].folder, folder / "general/en")
    mixed = {**manifest(folder), "general": {"en": "general/en"}}
    (folder / MANIFEST).write_text(yaml.safe_dump(mixed), "utf-8")
    with pytest.raises(UsageError) as caught:
        load_library(str(folder)).check(gks_eval.Setting.parse("gks:en")[0])
    assert_sentence(caught.value, "en, de, fr was subtracted", "'alpha'", "use subtract=none")
    load_library(str(folder)).check(gks_eval.Setting.parse("arrow")[0])
    plain = export(library, "arrow", tmp_path / "plain").folder
    assert load_library(str(plain)).experts["alpha"].subtracted == ()


def test_the_same_command_again_keeps_what_is_there(library: Library, tmp_path: Path) -> None:
    first = export(library, "gks:en", tmp_path / "new", license="mit")
    before = content(first.folder)
    (first.folder / "notes.txt").write_text("mine")
    again = export(library, "gks:en", tmp_path / "new", license="mit")
    assert (first.kept, again.kept) == (False, True)
    assert again.adapters == first.adapters
    assert again.files == first.files
    assert content(first.folder) == before | {"notes.txt": b"mine"}
    other = export(library, "gks:en", tmp_path / "other", license="mit")
    named = (CARD, MANIFEST)  # the card has the folder's name, the manifest the card's SHA-256
    assert {k: v for k, v in content(other.folder).items() if k not in named} == {
        k: v for k, v in before.items() if k not in named
    }


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        ("experts/beta/adapter_config.json", "{}", "has changed"),
        ("experts/beta/adapter_config.json", None, "is missing"),
        (CARD, "mine", "has changed"),
        (CARD, None, "is missing"),
        ("prepared/phatgoose/prepared.json", "{}", "has changed"),
        ("prepared/phatgoose/vectors.safetensors", None, "is missing"),
    ],
)
def test_a_damaged_export_is_not_taken_for_a_finished_one(
    file: str, edit: str | None, said: str, library: Library, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(library.path.parent, source)
    save_random_vectors(source, "phatgoose")
    library = load_library(str(source))
    setting = "phatgoose:en;preset=exact"
    done = export(library, setting, tmp_path / "new")
    assert set(done.files) == set(content(done.folder))
    assert export(library, setting, done.folder).kept
    if edit is None:
        (done.folder / file).unlink()
    else:
        (done.folder / file).write_text(edit)
    before = content(done.folder)
    with pytest.raises(LibraryError) as caught:
        export(library, setting, done.folder)
    assert_sentence(caught.value, str(done.folder / file), said, "delete the folder")
    assert content(done.folder) == before


@pytest.mark.parametrize(
    "edit", [{"base_model": "org/other"}, {"hashes": {}}, {"made_by": ["x"]}, {"revision": "v2"}]
)
def test_an_edited_manifest_is_not_taken_for_a_finished_export(
    edit: dict[str, Any], library: Library, tmp_path: Path
) -> None:
    done = export(library, "gks:en", tmp_path / "new")
    text = yaml.safe_dump(manifest(done.folder) | edit)
    (done.folder / MANIFEST).write_text(text, "utf-8")
    with pytest.raises(LibraryError) as caught:
        export(library, "gks:en", done.folder)
    assert_sentence(caught.value, MANIFEST, "has changed", "delete the folder")


@pytest.mark.parametrize(
    ("given", "license", "shown"),
    [(None, None, "unknown"), (None, "mit", "mit"), ("apache-2.0", None, "apache-2.0"),
     ("mit", "mit", "mit")],
)  # fmt: skip
def test_the_licence_is_the_sources_or_the_given_one(
    given: str | None, license: str | None, shown: str, library: Library, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(library.path.parent, source)
    if given:
        text = yaml.safe_dump(manifest(source) | {"license": given})
        (source / MANIFEST).write_text(text, "utf-8")
    done = export(load_library(str(source)), "arrow", tmp_path / "new", license=license)
    assert front(done.folder)["license"] == shown
    assert manifest(done.folder).get("license", "unknown") == shown


def test_the_card_names_a_base_of_the_hub_only(library: Library, tmp_path: Path) -> None:
    assert "base_model" not in front(export(library, "arrow", tmp_path / "local").folder)
    source = tmp_path / "source"
    shutil.copytree(library.path.parent, source)
    (source / MANIFEST).write_text(
        yaml.safe_dump(manifest(source) | {"base_model": "org/base", "revision": "v2"}), "utf-8"
    )
    done = export(load_library(str(source)), "gks:en", tmp_path / "new")
    assert front(done.folder) == {
        "base_model": "org/base", "library_name": "peft", "license": "unknown",
        "tags": ["lora", "gks-eval", "genknowsub"],
    }  # fmt: skip
    assert manifest(done.folder)["revision"] == "v2"


def fill(name: str, text: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_text(text)

    return prepare


REFUSED: dict[str, tuple[dict[str, Any], type[GksError], list[str], Any]] = {
    "base": ({"setting": "base"}, UsageError, ["base has no adapter", "gks:avg"], None),
    "an argument of the model": ({"setting": "arrow;dtype=float32"}, UsageError, ["dtype"], None),
    "unknown language": ({"setting": "gks:it"}, UsageError, ["subtract=it", "en, de, fr"], None),
    "rank 0": ({"rank": 0}, UsageError, ["rank=0", "1 or more"], None),
    "something else": ({}, LibraryError, ["new is not empty and holds no export"],
        fill("a.txt", "x")),
    "another library": ({}, LibraryError, ["new is not empty and holds no export"],
        fill(MANIFEST, "base_model: x\nexperts: {a: a}\n")),
    "a manifest with faults": ({}, ConfigError, ["library.yaml", "experts is missing"],
        fill(MANIFEST, "base_model: x\n")),
    "a file": ({}, UsageError, ["new is a file", "name a folder"], lambda f: f.write_text("x")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "kind", "parts", "prepare"), REFUSED.values(), ids=REFUSED.keys()
)
def test_what_is_refused_leaves_everything_as_it_is(
    arguments: dict[str, Any], kind: type[GksError], parts: list[str], prepare: Any,
    library: Library, tmp_path: Path,
) -> None:  # fmt: skip
    if prepare:
        prepare(tmp_path / "new")
    before = content(tmp_path)
    with pytest.raises(kind) as caught:
        export(library, **{"setting": "gks:en", "folder": tmp_path / "new", **arguments})
    assert_sentence(caught.value, *parts)
    assert content(tmp_path) == before


def test_another_export_or_a_changed_one_is_not_overwritten(
    library: Library, tmp_path: Path
) -> None:
    done = export(library, "gks:en", tmp_path / "new")
    for other in ({"setting": "gks:de"}, {"rank": 2}, {"license": "mit"}):
        with pytest.raises(LibraryError) as caught:
            export(library, **{"setting": "gks:en", "folder": done.folder, **other})
        assert_sentence(caught.value, "holds another export", "delete this one")
    (done.adapters["beta"] / WEIGHTS_FILE).write_bytes(
        (done.adapters["alpha"] / WEIGHTS_FILE).read_bytes()
    )
    with pytest.raises(LibraryError) as caught:
        export(library, "gks:en", done.folder)
    assert_sentence(caught.value, "beta", "has changed since the export")


@pytest.mark.parametrize("name", ["nul", "Beta"])
def test_names_that_some_system_cannot_have(name: str, library: Library, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(library.path.parent, source)
    experts = {name: "experts/alpha", "beta": "experts/beta"}
    (source / MANIFEST).write_text(yaml.safe_dump(manifest(source) | {"experts": experts}), "utf-8")
    with pytest.raises(LibraryError, match="Windows"):
        export(load_library(str(source)), "arrow", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_adapter_with_weights_of_the_base_is_refused(
    library: Library, tmp_path: Path, tiny_base: Callable[..., Path]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(library.path.parent, source)
    folder = source / "experts/beta"
    model = load_tiny(tiny_base("phi3"))
    from peft import PeftModel

    PeftModel.from_pretrained(model, folder).save_pretrained(folder, save_embedding_layers=True)
    copied = load_library(str(source))
    with pytest.raises(LibraryError) as caught:
        export(copied, "arrow", tmp_path / "new")
    assert_sentence(caught.value, "'beta'", "embed", "save_embedding_layers=False")
    export(copied, "expert:alpha", tmp_path / "new")


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\..*o_proj"},
        {
            "target_modules": ["o_proj", "qkv_proj"],
            "exclude_modules": ["layers.0.self_attn.o_proj"],
        },
        {"target_modules": ["o_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ],
)
def test_configs_select_the_same_layers_as_the_sources(
    config: dict[str, Any], tmp_path: Path, tiny_base: Callable[..., Path]
) -> None:
    base = tiny_base("phi3")
    save_adapter(load_tiny(base), tmp_path / "one", (), seed=1, **config)
    (tmp_path / MANIFEST).write_text(f"base_model: {base}\nexperts: {{one: one}}\n")
    library = load_library(str(tmp_path))
    done = export(library, "expert:one", tmp_path / "new")
    with gks_eval.attach(load_tiny(base), load_library(str(done.folder)), "expert:one"):
        pass  # the base has exactly the layers that the new config names


def test_targets_left_to_pefts_table_are_written_out(
    tmp_path: Path, tiny_base: Callable[..., Path]
) -> None:
    base = tiny_base("llama")
    save_adapter(load_tiny(base), tmp_path / "one", ["q_proj", "v_proj"], seed=1)
    edit_json(tmp_path / "one" / CONFIG_FILE, target_modules=None)
    (tmp_path / MANIFEST).write_text(f"base_model: {base}\nexperts: {{one: one}}\n")
    done = export(load_library(str(tmp_path)), "arrow", tmp_path / "new")
    config = json.loads((done.adapters["one"] / CONFIG_FILE).read_text("utf-8"))
    assert config["target_modules"] == ["q_proj", "v_proj"]


def test_merges_of_adapters_with_different_targets_name_every_layer(
    tmp_path: Path, tiny_base: Callable[..., Path]
) -> None:
    base = tiny_base("phi3")
    save_adapter(load_tiny(base), tmp_path / "one", ["o_proj"], seed=1)
    save_adapter(load_tiny(base), tmp_path / "two", [r"self_attn.o_proj"], seed=2)
    text = f"base_model: {base}\nexperts: {{one: one, two: two}}\n"
    (tmp_path / MANIFEST).write_text(text)
    library = load_library(str(tmp_path))
    done = export(library, "merge:mean", tmp_path / "new")
    config = json.loads((done.folder / CONFIG_FILE).read_text("utf-8"))
    assert config["target_modules"] == list(library.modules)
    with gks_eval.attach(load_tiny(base), load_library(str(done.folder)), "expert:merge-mean"):
        pass


def test_peft_is_asked_for_the_update(library: Library, tmp_path: Path) -> None:
    done = export(library, "arrow", tmp_path / "new")
    pairs = library.experts["alpha"].pairs
    check_with_peft(done.adapters["alpha"], pairs)
    other = {**pairs, library.modules[0]: library.experts["beta"].pairs[library.modules[0]]}
    for wrong in (other, {**pairs, "model.more": pairs[library.modules[0]]}):
        with pytest.raises(LibraryError, match="PEFT"):
            check_with_peft(done.adapters["alpha"], wrong)
    edit_json(done.adapters["alpha"] / CONFIG_FILE, lora_alpha=15)
    with pytest.raises(LibraryError) as caught:
        check_with_peft(done.adapters["alpha"], pairs)
    assert_sentence(caught.value, "PEFT reads another update", library.modules[0])


def test_nothing_is_left_where_the_check_fails(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise LibraryError("PEFT reads another update.")

    monkeypatch.setattr("gks_eval.library.export.check_with_peft", fail)
    with pytest.raises(LibraryError):
        export(library, "gks:en", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_start_from_loftq_stays_known(library: Library, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(library.path.parent, source)
    (source / "experts/beta/training.json").write_text('{"init": "loftq"}')
    folder = export(load_library(str(source)), "arrow", tmp_path / "new").folder
    assert load_library(str(folder)).experts["beta"].init == "loftq"
    alone = export(load_library(str(source)), "expert:alpha", tmp_path / "alone").folder
    assert load_library(str(alone)).experts["alpha"].init is True


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("gks:avg;rule=delta;scale=1e39", "scale=1e+39 overflows float32"),
        ("gks:avg;rule=delta;scale=-1e39", "scale=-1e+39 overflows float32"),
        ("gks:avg;scale=1e39", "scale=1e+39 overflows float32"),
        ("merge:ties;subtract=en;rule=delta;scale=1e39", "scale=1e+39"),
        ("merge:ties;lambda=1e308", "lambda=1e+308 overflows float32"),
        ("merge:task_arithmetic;lambda=1e308", "lambda=1e+308 overflows float32"),
        ("merge:svd;lambda=1e308", "lambda=1e+308 overflows float32"),
    ],
)
def test_an_overflow_names_the_setting_and_nothing_is_written(
    setting: str, named: str, rank: int | None, library: Library, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        export(library, setting, tmp_path / "new", rank)
    assert_sentence(caught.value, f"setting {setting}: ", named, library.modules[0])
    assert list(tmp_path.iterdir()) == []


def test_a_merge_of_another_shape_is_refused(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @merge(paper="none")
    def narrow(layer: Layer, _parameters: Parameters) -> LoraPair:
        """Returns an update that lacks the layer's last output."""
        pair = layer.residuals[0]
        return LoraPair(pair.A, pair.B[:-1], pair.scaling)

    monkeypatch.setattr(MERGES, "_added", {"narrow": narrow})
    with pytest.raises(CompatibilityError) as caught:
        export(library, "merge:narrow", tmp_path / "new")
    assert_sentence(caught.value, "narrow", library.modules[0])
    assert list(tmp_path.iterdir()) == []
