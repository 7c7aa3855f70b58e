"""`gks-eval export --push` with the hub's real client, against a stand-in of the hub's API."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from common import save_random_vectors
from hub_server import OWNER, TOKEN, HubServer, hub_server

from gks_eval.cli.main import main
from gks_eval.library.load import load_library
from gks_eval.library.prepared import vectors_folder
from gks_eval.method.setting import Setting

# The hub's client uploads bytes in a way that its HTTP client warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

Run = Callable[..., tuple[int, str]]
REPO = f"{OWNER}/residuals"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        files = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # The transfer of large files by Xet speaks to another server.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def push(
    tmp_path: Path,
    tiny_library: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Return ``run(repo, *more)``: exports to ``new`` and pushes; exit status and all output."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_library("phi3"), "library")
    manifest = yaml.safe_load(Path("library/library.yaml").read_text("utf-8"))
    Path("library/library.yaml").write_text(yaml.safe_dump(manifest | {"base_model": "org/base"}))

    def run(repo: str, *more: str) -> tuple[int, str]:
        command = ["export", "library", "--setting", "gks:en", "--output", "new", *more]
        monkeypatch.setattr(sys, "argv", ["gks-eval", *command, "--push", repo])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capfd.readouterr())

    return run


def assert_refused(found: tuple[int, str], *parts: str, status: int = 8) -> None:
    code, printed = found
    sentences = [line for line in printed.splitlines() if line.startswith("gks-eval: error: ")]
    assert len(sentences) == 1, printed
    for part in parts:
        assert part in sentences[0], sentences[0]
    assert code == status
    assert "Traceback" not in printed
    assert "Planted" not in printed, "the token was printed"


def test_all_files_arrive_in_one_commit(hub: HubServer, push: Run, tmp_path: Path) -> None:
    status, printed = push(REPO)
    assert status == 0, printed
    assert f"{hub.address}/{REPO}: uploaded, 10 files" in printed
    assert sum("/commit/main" in one for one in hub.asked) == 1
    (tmp_path / "got").mkdir()
    for path, content in hub.repos[REPO].items():
        (tmp_path / "got" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / path).write_bytes(content)
    got, new = load_library("got"), load_library("new")
    assert got.content_hash == new.content_hash
    assert "base_model: org/base" in (tmp_path / "got/README.md").read_text("utf-8")
    for path in (tmp_path / "new").rglob("*"):
        assert path.is_dir() or b"Planted" not in path.read_bytes()
    assert "Planted" not in printed


def test_prepared_vectors_come_back_with_a_library(
    hub: HubServer, push: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("GKS_EVAL_CACHE", str(tmp_path / "own"))
    save_random_vectors(Path("library"), "phatgoose")
    status, printed = push(REPO, "--setting", "phatgoose:en;preset=exact")
    assert status == 0, printed
    routed = Setting(router="phatgoose", subtract=(), combine="outputs")
    new, got = load_library("new"), load_library(REPO)
    expected, found = new.vectors(routed), got.vectors(got.check(routed))
    assert expected is not None
    assert found is not None
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)
    assert got.content_of(routed) == new.content_of(routed)
    # Vectors that a user prepares for the same library are written to the cache and come first.
    save_random_vectors(Path(REPO), "phatgoose", seed=1)
    assert (vectors_folder(tmp_path / "own", got.content_hash) / "phatgoose").is_dir()
    assert got.content_of(routed) != new.content_of(routed)


def test_nothing_but_the_export_is_uploaded(hub: HubServer, push: Run, tmp_path: Path) -> None:
    hub.failing["/api/repos/create"] = (503, "sorry")
    assert_refused(push(REPO), REPO, "503", "run the same command again")
    (tmp_path / "new/private.txt").write_text("mine")
    del hub.failing["/api/repos/create"]
    status, printed = push(REPO)
    assert status == 0, printed
    assert "exported before" in printed
    assert "private.txt" not in hub.repos[REPO]
    assert len(hub.repos[REPO]) == 1 + 10


def test_an_interrupted_upload_is_resumed(hub: HubServer, push: Run) -> None:
    commit = f"/api/models/{REPO}/commit/main"
    hub.failing[commit] = (500, "sorry")
    assert_refused(push(REPO), REPO, "500", "run the same command again")
    assert set(hub.repos[REPO]) == {".gitattributes"}
    del hub.failing[commit]
    assert push(REPO)[0] == 0
    assert "library.yaml" in hub.repos[REPO]


def test_a_repository_with_files_is_left_alone(hub: HubServer, push: Run) -> None:
    hub.repos[REPO] = {"README.md": b"somebody's"}
    assert_refused(push(REPO), REPO, "holds files", "choose another name", "hf upload")
    assert hub.repos[REPO] == {"README.md": b"somebody's"}


def test_a_wrong_token_and_none(
    hub: HubServer, push: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_PlantedOther")
    assert_refused(push(REPO), REPO, "does not accept the token", "hf auth login")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert_refused(push(REPO), REPO, "or there is none", "hf auth login")


def test_somebody_elses_name(hub: HubServer, push: Run) -> None:
    assert_refused(push("other/residuals"), "other/residuals", "may not write there")


def test_a_licence_that_the_hub_does_not_know(hub: HubServer, push: Run) -> None:
    assert_refused(push(REPO, "--license", "mine"), '"license" must be one of', "apache-2.0")


def test_a_server_that_repeats_the_token(hub: HubServer, push: Run) -> None:
    hub.failing["/api/repos/create"] = (400, f"bad token {TOKEN}")
    assert_refused(push(REPO), REPO, "bad token ...")


def test_offline(hub: HubServer, push: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.shutdown()
    hub.server_close()
    assert_refused(push(REPO), REPO, "could not be uploaded", "run the same command again")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(push(REPO), REPO, "could not be uploaded", "ffline")


@pytest.mark.parametrize("name", ["residuals", "org/residuals/sub", "org/residuals@v1", "../x"])
def test_a_name_that_is_none_is_refused_before_the_export(name: str, push: Run) -> None:
    assert_refused(push(name), "--push", name, "ORG/NAME", status=2)
    assert not Path("new").exists()


def test_a_local_base_is_refused_before_the_export(push: Run, tmp_path: Path) -> None:
    manifest = yaml.safe_load(Path("library/library.yaml").read_text("utf-8"))
    text = yaml.safe_dump(manifest | {"base_model": "/home/me/base"})
    Path("library/library.yaml").write_text(text)
    assert_refused(push(REPO), "library.yaml", "/home/me/base", "before you push", status=4)
    assert not Path("new").exists()
