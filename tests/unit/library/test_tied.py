"""Layers that share one prototype: which they are, and what every part of the package does then."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from common import assert_sentence, save_random_vectors
from oracle import residual_dense, top_direction

from gks_eval.errors import ConfigError, GksError, LibraryError
from gks_eval.evidence.observed import RoutingShares
from gks_eval.library.card import CARD
from gks_eval.library.export import export
from gks_eval.library.geometry import library_geometry
from gks_eval.library.load import Library, load_library
from gks_eval.library.tied import TiedLayers, manifest_entries
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.model.observe import RoutingTally, routing_record

LibraryOf = Callable[..., Path]
GROUP = ["q_proj", "k_proj", "v_proj"]
CONCAT, SUM = [{"layers": GROUP}], [{"layers": GROUP, "op": "sum"}]
FIRST = [f"model.layers.0.self_attn.{name}" for name in GROUP]
IDS = torch.randint(4, 250, (2, 11), generator=torch.Generator().manual_seed(0))


def with_ties(source: Path, folder: Path, ties: Any) -> Path:
    """Copy a library, with tied layers in its manifest."""
    shutil.copytree(source, folder)
    manifest = folder / "library.yaml"
    content = yaml.safe_load(manifest.read_text("utf-8"))
    manifest.write_text(yaml.safe_dump({**content, "tied_prototypes": ties}), "utf-8")
    return folder


@pytest.fixture
def tied(tiny_library: LibraryOf, tmp_path: Path) -> Callable[..., Library]:
    def library(ties: Any = CONCAT, family: str = "phi", name: str = "library") -> Library:
        return load_library(str(with_ties(tiny_library(family), tmp_path / name, ties)))

    return library


def test_layers_of_one_parent_form_a_group(tied: Callable[..., Library]) -> None:
    library = tied()
    assert {name.rpartition(".")[2] for name in library.tied} == set(GROUP)
    assert library.tied[FIRST[1]] == TiedLayers("concat", tuple(FIRST))
    assert len(set(library.tied.values())) == 2
    whole = tied([{"layers": FIRST}], name="whole")  # one group, by full names
    assert dict.fromkeys(whole.tied.values()) == {TiedLayers("concat", tuple(FIRST)): None}
    assert "; one prototype for q_proj + k_proj + v_proj (concat)." in library.summary()


@pytest.mark.parametrize(
    ("ties", "family", "error", "parts"),
    [
        ([{"layers": ["q_proj", "kproj"]}], "phi", LibraryError, ["q_proj, kproj", "no two such"]),
        ([{"layers": ["fc1", "fc2"]}], "phi", LibraryError, ["fc1, fc2", "no two such"]),
        ([{"layers": ["q_proj", "k_prj", "v_proj"]}], "phi", LibraryError, ["a layer k_prj;"]),
        ([*CONCAT, {"layers": ["v_proj", "dense"]}], "phi", LibraryError, ["v_proj", "two groups"]),
        (SUM, "llama", LibraryError, ["(64, 64)", "(32, 64)", "share a prototype by sum"]),
        ([{"layers": ["q_proj"]}], "phi", ConfigError, ["tied_prototypes", "at least 2"]),
        ([{"layers": ["q_proj", "q_proj"]}], "phi", ConfigError, ["named twice"]),
        ([{"layers": GROUP, "op": "mean"}], "phi", ConfigError, ["op", "'concat' or 'sum'"]),
    ],
)
def test_ties_that_cannot_be(
    tied: Callable[..., Library], ties: Any, family: str, error: type[GksError], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        tied(ties, family)
    for part in ("library.yaml", *parts):
        assert part in str(caught.value)
    if error is LibraryError:
        assert_sentence(caught.value)


def test_the_identity_knows_ties_and_is_the_same_without(
    tied: Callable[..., Library], tiny_library: LibraryOf
) -> None:
    plain = load_library(str(tiny_library("phi")))
    # As it was before there were ties, written out.
    content = {
        "base_model": plain.config.base_model,
        "revision": plain.config.revision,
        "experts": {name: adapter.digest for name, adapter in plain.experts.items()},
        "general": {name: adapter.digest for name, adapter in plain.general.items()},
    }
    text = json.dumps(content, sort_keys=True).encode()
    assert plain.content_hash == hashlib.sha256(text).hexdigest()
    by_parent = [{"layers": [f"self_attn.{name}" for name in GROUP]}]
    libraries = [tied(CONCAT, name="a"), tied(SUM, name="b"), tied(by_parent, name="c")]
    hashes = [library.content_hash for library in libraries]
    assert len({plain.content_hash, *hashes}) == 3
    assert hashes[0] == hashes[2]  # the same groups
    assert "tied_prototypes" not in plain.describe()
    assert libraries[1].describe()["tied_prototypes"] == SUM


def test_manifest_entries_give_the_groups_back() -> None:
    layers = [f"model.layers.{n}.self_attn.{name}" for n in range(3) for name in (*GROUP, "dense")]
    whole = [
        TiedLayers("sum", tuple(f"model.layers.{n}.self_attn.{name}" for name in GROUP))
        for n in range(3)
    ]
    assert manifest_entries(whole, layers) == SUM
    some = manifest_entries(whole[:2], layers)  # of the last layers nothing is tied
    assert [entry["layers"] for entry in some] == [list(group.layers) for group in whole[:2]]
    assert manifest_entries([], layers) == []


def residuals(library: Library, setting: Setting, layer: str) -> list[torch.Tensor]:
    """The residuals of all experts at a layer, written out."""
    general = [library.pair(library.general[name], layer) for name in library.languages(setting)]
    return [
        residual_dense(library.pair(expert, layer), general, setting.rule if general else "factors")
        for expert in library.experts.values()
    ]


def shared_directions(library: Library, setting: Setting, op: str) -> torch.Tensor:
    """The prototypes of the first group from its full matrices, (E, K)."""
    by_layer = [residuals(library, setting, layer) for layer in FIRST]
    found = []
    for updates in zip(*by_layer, strict=True):
        direction, gap = top_direction(torch.cat(updates) if op == "concat" else sum(updates))
        assert gap > 1e-3
        found.append(direction)
    return torch.stack(found)


@pytest.mark.parametrize("op", ["concat", "sum"])
@pytest.mark.parametrize(
    "text",
    [
        "arrow",
        "gks:en",
        "gks:avg;rule=delta",
        "gks:avg;preset=exact",
        "gks:de;rule=orthogonal",
    ],
)
def test_one_prototype_for_the_group_whatever_is_subtracted(
    tied: Callable[..., Library], tiny_model: Callable[..., Any], op: str, text: str
) -> None:
    # The A's of these adapters are not shared, neither the experts' nor the general ones'.
    library = tied(CONCAT if op == "concat" else SUM)
    setting, _ = Setting.parse(text)
    expected = shared_directions(library, setting, op)
    with attach(tiny_model("phi"), library, setting) as attachment:
        found = []
        for layer in (*FIRST, "model.layers.0.self_attn.dense"):
            weights = attachment.layers[layer].weights
            assert weights is not None
            held = weights.fused if weights.directions is None else weights.directions
            found.append(held.double())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close((found[0] * expected).sum(1).abs(), torch.ones(4).double())
    alone = [top_direction(update)[0] for update in residuals(library, setting, FIRST[0])]
    assert ((found[0] * torch.stack(alone)).sum(1).abs() < 0.99).any()
    dense = "model.layers.0.self_attn.dense"
    own = torch.stack([top_direction(update)[0] for update in residuals(library, setting, dense)])
    torch.testing.assert_close((found[3] * own).sum(1).abs(), torch.ones(4).double())


@pytest.mark.parametrize("text", ["random;seed=2", "shuffled:en", "gks:en;general=random;seed=1"])
def test_controls_route_tied_layers_alike(
    tied: Callable[..., Library], tiny_model: Callable[..., Any], text: str
) -> None:
    seen: dict[str, torch.Tensor] = {}
    model, library = tiny_model("phi"), tied()
    with attach(model, library, text) as attachment, torch.no_grad():
        attachment.observe(lambda layer, shares: seen.update({layer: shares}))
        model(IDS)
    for layer in (0, 1):
        q, k, v = (seen[f"model.layers.{layer}.self_attn.{name}"] for name in GROUP)
        assert torch.equal(q, k)
        assert torch.equal(q, v)
    assert not torch.equal(seen[FIRST[0]], seen["model.layers.0.self_attn.dense"])


@pytest.mark.parametrize("text", ["lag;shortlist=2;top_k=2", "lag:avg;preset=exact;shortlist=2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shortlist_of_tied_layers_is_that_of_their_prototypes(
    tied: Callable[..., Library], tiny_model: Callable[..., Any], text: str, dtype: torch.dtype
) -> None:
    library, setting = tied(), Setting.parse(text)[0]
    setting = library.check(setting)
    directions = shared_directions(library, setting, "concat")
    inputs: dict[str, torch.Tensor] = {}
    seen: dict[str, torch.Tensor] = {}
    model = tiny_model("phi", dtype=dtype)
    layer = model.get_submodule(FIRST[1])
    layer.register_forward_pre_hook(lambda _, args: inputs.update(x=args[0].flatten(0, 1)))
    with attach(model, library, setting) as attachment, torch.no_grad():
        attachment.observe(lambda name, shares: seen.update({name: shares}))
        model(IDS)
    updates = residuals(library, setting, FIRST[1])
    spans = [torch.linalg.svd(update) for update in updates]
    rows = [right[: int((values > 1e-6).sum())] for _, values, right in spans]
    top_k, equal = setting.parameters["top_k"], 0
    for x, found in zip(inputs["x"].double(), seen[FIRST[1]], strict=True):
        near = sorted(range(4), key=lambda e: -abs(float(x @ directions[e])))
        scores = [float((rows[e] @ x).norm()) for e in range(4)]
        best = sorted(near[:2], key=lambda e: -scores[e])[:top_k]
        weights = torch.zeros(4)
        for e in best:
            weights[e] = math.exp(scores[e] - scores[best[0]])
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        equal += bool((found - weights / weights.sum()).abs().max() < tolerance)
    assert equal >= (22 if dtype == torch.float32 else 19)  # in 16 bits, close ones change places


def test_an_expert_that_lacks_one_of_the_layers_is_routed_as_the_group(
    tiny_library: LibraryOf, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    source = tiny_library("phi", adapters={"beta": {"target_modules": ["k_proj", "v_proj"]}})
    library = load_library(str(with_ties(source, tmp_path / "library", CONCAT)))
    seen: dict[str, torch.Tensor] = {}
    model = tiny_model("phi")
    with attach(model, library, "arrow;preset=exact;top_k=2") as attachment, torch.no_grad():
        attachment.observe(lambda layer, shares: seen.update({layer: shares}))
        model(IDS)
    assert torch.equal(seen[FIRST[0]], seen[FIRST[1]])
    assert seen[FIRST[0]][:, 1].any()


@pytest.mark.parametrize("text", ["arrow", "gks:en", "gks:avg;preset=exact"])
def test_an_export_routes_as_its_source(
    tied: Callable[..., Library], tiny_model: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    library, model = tied(SUM), tiny_model("phi")
    export(library, text, tmp_path / "out")
    assert export(library, text, tmp_path / "out").kept
    exported = load_library(str(tmp_path / "out"))
    assert exported.tied == library.tied
    setting = Setting.parse(text)[0]
    with torch.no_grad():
        with attach(model, library, setting):
            expected = model(IDS).logits
        with attach(model, exported, f"arrow;combine={setting.combine}"):
            found = model(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    card = (tmp_path / "out" / CARD).read_text("utf-8")
    assert "`q_proj`, `k_proj`, `v_proj` share one prototype per expert (sum)" in card
    assert "create_arrow_model" not in card  # PEFT has one prototype per layer


def test_an_export_of_one_adapter_ties_nothing(
    tied: Callable[..., Library], tmp_path: Path
) -> None:
    export(tied(), "merge:mean", tmp_path / "out")
    assert not load_library(str(tmp_path / "out")).tied


@pytest.mark.parametrize("setting", ["arrow;input_norm=unit", "arrow;temperature=0"])
def test_a_card_offers_pefts_arrow_only_if_it_routes_alike(
    tiny_library: LibraryOf, tmp_path: Path, setting: str
) -> None:
    library = load_library(str(tiny_library("phi")))
    for text, offered in ((setting, False), ("arrow;temperature=0.5", True)):
        folder = tmp_path / str(offered)
        export(library, text, folder)
        card = (folder / CARD).read_text("utf-8")
        assert ("create_arrow_model" in card) is offered
        assert "proto_scale" not in card  # what was not given is left out
        assert f",{text.partition(';')[2]}" in card


def test_geometry_compares_the_shared_prototypes(tied: Callable[..., Library]) -> None:
    library = tied()
    found = library_geometry(library, ["en"])
    for rule in ("none", "factors", "delta"):
        setting = Setting(
            subtract=() if rule == "none" else ("en",), rule=rule.replace("none", "delta")
        )
        total = torch.zeros(4, 4, dtype=torch.float64)
        for n in (0, 1):
            names = [f"model.layers.{n}.self_attn.{name}" for name in (*GROUP, "dense")]
            by_layer = [residuals(library, setting, name) for name in names]
            shared = [torch.cat(updates) for updates in zip(*by_layer[:3], strict=True)]
            for updates, times in ((shared, 3), (by_layer[3], 1)):
                rows = torch.stack([top_direction(update)[0] for update in updates])
                total += times * (rows @ rows.T).abs() / 8
        assert found["prototype_similarity"][rule] == [
            pytest.approx(row, abs=1e-5) for row in total.tolist()
        ]


def test_a_routing_record_names_the_groups(
    tied: Callable[..., Library], tiny_model: Callable[..., Any]
) -> None:
    class Model:
        library = tied()
        setting = library.check(Setting.parse("arrow")[0])

    model, tally = tiny_model("phi"), RoutingTally()
    with attach(model, Model.library, Model.setting) as attachment, torch.no_grad():
        attachment.observe(tally)
        model(IDS)
        Model.attachment = attachment  # type: ignore[attr-defined]
        record = routing_record(Model, "arrow", {"text": tally})  # type: ignore[arg-type]
    assert FIRST in RoutingShares.model_validate(record).tied_prototypes
    rows = dict(zip(record["layers"], record["tasks"]["text"]["mean_coefficient"], strict=True))
    assert rows[FIRST[0]] == rows[FIRST[1]] == rows[FIRST[2]]


def test_gates_that_were_trained_for_other_ties_are_refused(
    tied: Callable[..., Library], tiny_library: LibraryOf, tmp_path: Path
) -> None:
    library = tied()
    for router in ("phatgoose", "mean_activation"):
        save_random_vectors(library.path.parent, router)
    library.check(Setting.parse("mean_activation;combine=outputs")[0])
    with pytest.raises(LibraryError) as caught:
        library.check(Setting.parse("phatgoose;combine=outputs")[0])
    assert_sentence(caught.value, "other tied layers", "gks-eval prepare")
