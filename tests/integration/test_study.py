"""The study of the documents, run whole on a tiny model."""

from __future__ import annotations

import importlib
import json
import random
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from gks_eval.cli.main import main
from gks_eval.errors import ResultsError
from gks_eval.util.files import sha256_of
from tests.common import TARGETS, assert_sentence

FOLDER = Path(__file__).parents[2] / "docs/study"
OWN = ("run", "plan", "records", "page")
EXPERTS = ("low", "high", "same")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Return the study's modules; run.py runs its commands in this process."""
    monkeypatch.syspath_prepend(FOLDER)
    found = {name: importlib.import_module(name) for name in OWN}

    def run(command: list[str], folder: Path) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("gks_eval.model.lm.CREATED", 0)
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, command

    monkeypatch.setattr(found["run"], "run", run)
    yield found
    for name in OWN:
        sys.modules.pop(name, None)


@pytest.fixture
def small(
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tiny_base: Callable[[str], Path],
    tmp_path: Path,
) -> Callable[..., None]:
    """Return ``small(*words)``: run.py with three experts, one task and few methods."""
    plan = scripts["plan"]
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"source": f"{name} {n}", "target": str(n), "cluster": name}
        for n in range(6)
        for name in EXPERTS
    ]
    (data / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (data / "en.txt").write_text("one two three four five six seven\n\n" * 20, "utf-8")
    recipe = {
        "base_model": "BASE",
        "seed": "SEED",
        "start": "START",
        "load": {"dtype": "DTYPE", "device": "cpu"},
        "adapter": {"targets": list(TARGETS["phi3"])},
        "schedule": {"accumulation": 2, "optimizer": "adamw", "gradient_checkpointing": False},
        "experts": {
            "format": "FORMAT",
            "held_out": 2,
            "data": {"file": "DATA/rows.jsonl"},
            "members": {name: {"where": {"cluster": name}} for name in EXPERTS},
        },
        "general": {
            "data": {"prompt": 20, "completion": 5, "cut": "packed", "windows": 4},
            "members": {"en": {"file": "DATA/en.txt"}},
        },
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe).replace("'", ""), "utf-8")
    monkeypatch.setattr(plan, "FOLDER", folder)
    monkeypatch.setattr(plan, "ROUTERS", ("arrow",))
    monkeypatch.setattr(plan, "PREPARED", ("mean_activation",))
    monkeypatch.setattr(plan, "MERGES", "mean")
    monkeypatch.setattr(plan, "SUBTRACTIONS", ("gks:avg",))
    monkeypatch.setattr(plan, "WITHOUT_CONTROL", ("uniform",))
    monkeypatch.setattr(plan, "TREATMENTS", {"paper": "gks:avg"})
    (folder / "tasks").mkdir()
    fixed = (
        "--data",
        str(data),
        "--work",
        str(tmp_path / "work"),
        "--base",
        str(tiny_base("phi3")),
    )
    fixed += ("--tasks", "gks_demo_goals_en", "--limit", "3", "--seeds", "3")

    def started(*words: str) -> None:
        monkeypatch.setattr(
            sys, "argv", ["run.py", *fixed, "--model-args", "dtype=float32", *words]
        )
        scripts["run"].main()

    return started


def test_the_study_runs_whole_and_starts_at_its_records(
    small: Callable[..., None],
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    small()
    record, work = tmp_path / "work/record", tmp_path / "work"
    stages = ("train", "leaderboard", "controls", "evidence")
    assert {f"stage-{stage}.json" for stage in stages} <= {path.name for path in record.iterdir()}
    for name in ("own-0", "own-1", "own-2"):
        recipe = yaml.safe_load((work / f"{name}.yaml").read_text("utf-8"))
        assert recipe["load"]["dtype"] == "float32"
    adapters = (json.loads(path.read_text()) for path in work.glob("own-?/*/*/training.json"))
    trained = json.loads((record / "stage-train.json").read_text())["seconds"]
    assert trained == round(sum(adapter["seconds"] for adapter in adapters))
    text = (record / "tables.md").read_text("utf-8")
    for title in (
        "treatments and their controls, 3 seeds",
        "replicates_own-paper",
        "leaderboard",
        "settings against the base",
        "methods, the base and random weights",
        "overlap",
    ):
        assert f"## {title}" in text
    assert text.count("`merge-mean` |") == 2  # in the leaderboard, and against the base
    assert text.count("| `merge:mean` |") == 1
    assert text.count("| `shuffled-avg") == 2  # of all controls, and without the experts
    assert text.count("| `expert-low`") == 1
    assert (record / "study.png").read_bytes().startswith(b"\x89PNG")

    # No text of an item is in the packed results, and all numbers are.
    packed = work / "unpacked"
    scripts["records"].unpack(record / "leaderboard.tar.xz", packed)
    (whole,) = (work / "leaderboard/arrow").glob("samples_*")
    (bare,) = (packed / "arrow").glob("samples_*")
    lines = (path.read_text("utf-8").splitlines() for path in (whole, bare))
    for full_line, line in zip(*lines, strict=True):
        full, kept = json.loads(full_line), json.loads(line)
        assert "arguments" not in kept
        assert all(len(value) == 12 for value in kept["doc"].values())
        assert all(kept[key] == full[key] for key in ("acc", "filtered_resps", "doc_hash"))

    # Nor the folder of the base, which only the records of the stages name as it was given.
    given = set(record.glob("stage-*.json"))
    for path in (*packed.rglob("*.json*"), *set(record.glob("*.json")) - given):
        for folder in (str(tmp_path.parent), str(tmp_path.parent).replace("/", "__")):
            assert folder not in path.read_text("utf-8"), path

    # Without the results, the records are enough; nothing is evaluated again.
    tables = text
    for name in ("leaderboard", "controls"):
        (work / name).rename(work / f"away-{name}")
    run, commands = scripts["run"].run, []

    def noted(command: list[str], folder: Path) -> None:
        commands.append(command[1])
        run(command, folder)

    monkeypatch.setattr(scripts["run"], "run", noted)
    capsys.readouterr()
    small()
    assert not {"train", "grid", "controls"} & set(commands)
    assert capsys.readouterr().out.count("finished, see") == 3  # not of evidence
    assert (record / "tables.md").read_text("utf-8") == tables


def test_the_page_has_the_tables_of_the_records(scripts: dict[str, ModuleType]) -> None:
    study = Path(scripts["page"].__file__).parent
    text = study.with_suffix(".md").read_text("utf-8")
    records = [path for path in (study / "data").iterdir() if (path / "leaderboard.json").exists()]
    assert records
    for record in records:
        assert scripts["page"].overview(record) in text
        if [*record.glob("replicates_*.json")]:
            assert scripts["page"].treatments(record) in text


def test_a_stage_that_does_not_exist_is_a_sentence(small: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match="no stage grid; stages: train, leaderboard"):
        small("--stages", "grid")


def test_methods_that_the_study_does_not_have_are_a_sentence(small: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match="--methods: unknown arow; known: arrow, mean_activation"):
        small("--methods", "arow,gks:avg")


def test_faults_of_records_are_sentences(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    records, folder, archive = scripts["records"], tmp_path / "out", tmp_path / "r/controls.tar.xz"
    for name in ("arrow", "base"):
        (folder / name).mkdir(parents=True)
        (folder / name / "cell.json").write_bytes(random.Random(0).randbytes(9000))
    records.pack(folder, archive)
    whole, restored = archive.read_bytes(), tmp_path / "restored"
    (restored / "base").mkdir(parents=True)
    (restored / "base/cell.json").write_text("newer")
    records.unpack(archive, restored, sha256_of(archive))
    assert (restored / "base/cell.json").read_text() == "newer"
    assert (restored / "arrow/cell.json").read_bytes() == (folder / "arrow/cell.json").read_bytes()

    empty = tmp_path / "empty"
    for raw in (whole[:-40], whole[:9000], whole[:5], b"version https://git-lfs"):
        archive.write_bytes(raw)
        with pytest.raises(ResultsError) as cut:
            records.unpack(archive, empty)
        assert_sentence(cut.value, f"{archive} cannot be read", "copy it again, or delete it")
    with pytest.raises(ResultsError) as other:
        records.unpack(archive, empty, "0" * 64)
    assert_sentence(other.value, "is not the file that its stage recorded")
    link = tarfile.TarInfo("arrow/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for member in (link, tarfile.TarInfo("../outside"), tarfile.TarInfo(f"{tmp_path}/absolute")):
        with tarfile.open(archive, "w:xz") as file:
            file.addfile(member)
        with pytest.raises(ResultsError) as foreign:
            records.unpack(archive, empty)
        assert_sentence(foreign.value, f"holds {member.name}, no result")
    assert not list(empty.rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "r", "restored", "empty"}


def test_a_record_of_another_study_is_refused(
    small: Callable[..., None], scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    record = tmp_path / "work/record/stage-train.json"
    record.parent.mkdir(parents=True)
    for content, said in (
        ({"study": {"base": "other"}}, "of a study with another --base"),
        ([], "holds no JSON object"),
    ):
        record.write_text(json.dumps(content), "utf-8")
        with pytest.raises(SystemExit) as ended:
            small()
        assert said in str(ended.value)
        assert f"delete {record} to run the stage again" in str(ended.value)


@pytest.mark.parametrize("before", [{"limit": 40}, {"limit": 40, "methods": "arrow"}])
@pytest.mark.parametrize("now", [{"limit": 40}, {"limit": 40, "methods": "arrow"}])
def test_a_record_of_other_methods_is_refused(
    before: dict[str, Any], now: dict[str, Any], scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    record = tmp_path / "stage-leaderboard.json"
    record.write_text(json.dumps({"study": before}), "utf-8")
    if before == now:
        assert scripts["run"].read_record(record, now)["study"] == now
        return
    with pytest.raises(ResultsError, match="of a study with another --methods; name another"):
        scripts["run"].read_record(record, now)


@pytest.mark.model
def test_the_table_of_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundled library has starts of its own; losses, which take minutes, are left out."""
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("starts")
    monkeypatch.setattr(script, "mean_loss", lambda _model, rows: float(len(rows)))
    script.main(["smollm2-demo"])
    base, *rows = capsys.readouterr().out.splitlines()
    assert base == "base: loss 10.00, 30 rows"
    left = [row.partition("left ")[2].partition(",")[0] for row in rows]
    assert [row.split()[1] for row in rows] == ["None:", "factors:", "delta:", "orthogonal:"]
    assert left == ["100%", "182%", "130%", "97%"]  # as docs/method.md has them
    assert all("cosine 0.02" in row for row in rows)
