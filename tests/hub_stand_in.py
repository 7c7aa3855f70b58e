"""What the documentation takes from the hub, as tiny stand-ins in the hub client's cache layout.

The names are the real ones, so that the commands can be run word for word, offline.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from common import TARGETS, load_tiny, save_adapter, save_tiny_base
from readme_blocks import ROOT

from gks_eval.library.hub import HubSource
from gks_eval.model.embedded import EMBEDDED_MODELS

PHI3 = "microsoft/Phi-3-mini-4k-instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lay_out_phi3_mini(hf_home: Path) -> None:
    """Fill a hub cache with a tiny Phi-3 and the adapters of ``library=phi3-mini``."""
    base = save_tiny_base(snapshot(hf_home, PHI3), "phi3", max_position_embeddings=4096)
    manifest = yaml.safe_load((ROOT / "adapters/phi3-mini/library.yaml").read_text("utf-8"))
    assert manifest["base_model"] == PHI3
    model = load_tiny(base)
    for seed, source in enumerate([*manifest["experts"].values(), *manifest["general"].values()]):
        one = HubSource.parse(source)
        save_adapter(model, snapshot(hf_home, one.repo) / one.folder, TARGETS["phi3"], seed=seed)


def snapshot(hf_home: Path, repo: str) -> Path:
    """Return the folder of the one revision of `repo` that the cache has."""
    root = hf_home / "hub" / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def lay_out_library(folder: Path, manifest: str, hf_home: Path, org: str) -> None:
    """Write a library whose ``library.yaml`` is the text `manifest`, and its adapters.

    Those whose source starts with `org` are laid out in the hub's cache, the others in `folder`.
    """
    folder.mkdir(parents=True)
    (folder / "library.yaml").write_text(manifest, encoding="utf-8")
    content = yaml.safe_load(manifest)
    model = load_tiny(snapshot(hf_home, content["base_model"]))
    for seed, source in enumerate([*content["experts"].values(), *content["general"].values()]):
        place = folder / source
        if source.startswith(f"{org}/"):
            one = HubSource.parse(source)
            place = snapshot(hf_home, one.repo) / one.folder
        save_adapter(model, place, TARGETS["phi3"], seed=100 + seed)


def lay_out_embedded(cache: Path, name: str) -> None:
    """Put a tiny Llama where ``embedded:NAME`` is unpacked to."""
    model = EMBEDDED_MODELS[name]
    save_tiny_base(cache / "models" / f"{name}-{model.sha256[:12]}", "llama")


def lay_out_short_recipe(folder: Path, bundled: str) -> None:
    """Write a bundled recipe into a folder of its name, which comes first, with less data.

    What is left are two rows to train on beside those held out, and a page of each language.
    """
    source = ROOT / "adapters" / bundled
    recipe = yaml.safe_load((source / "recipe.yaml").read_text("utf-8"))
    rows = recipe["experts"]["held_out"] + 2
    for path in sorted((source / "data").glob("*/*.*")):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        short = folder / path.relative_to(source)
        short.parent.mkdir(parents=True, exist_ok=True)
        short.write_text("".join(lines[: rows if path.suffix == ".jsonl" else 9]), "utf-8")
    (folder / "recipe.yaml").write_bytes((source / "recipe.yaml").read_bytes())
