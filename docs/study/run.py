#!/usr/bin/env python3
"""Run the study of docs/study.md, stage by stage.

docs/study/run.py --data DATA --work WORK                      all stages, SmolLM2-135M
docs/study/run.py --library phi3-mini --work WORK --dry-run    the authors' adapters, on a GPU

DATA holds instruction_clusters.jsonl (source, target, cluster) and wiki_en.txt, wiki_de.txt,
wiki_fr.txt. The script prints and runs commands of gks-eval. Each stage resumes, and writes its
record into RECORD; a stage whose record is there is not run again, only restored. The stage
evidence always runs, over the results that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plan import TASKS, Study
from records import pack, portable, unpack

from gks_eval import __version__
from gks_eval.errors import GksError, ResultsError
from gks_eval.util.files import sha256_of, write_text
from gks_eval.util.json_file import JsonFile, parse_json

ROOT = Path(__file__).absolute().parents[2]
STAGES = {"train": None, "leaderboard": "leaderboard", "controls": "controls", "evidence": None}
"""The stages, and their folders of results."""


def run_stage(study: Study, stage: str, dry: bool) -> None:
    """Run the commands of a stage, pack its results, and write its record."""
    record = study.record / f"stage-{stage}.json"
    archive = study.record / f"{stage}.tar.xz"
    kept: dict[str, Any] = {}
    if record.exists() and stage != "evidence":
        kept = read_record(record, study.identity(stage))
    if archive.exists():
        unpack(archive, study.work / (STAGES[stage] or ""), kept.get("archive"))
    if kept and (stage != "train" or study.trained()):
        print(f"{stage}: finished, see {record}")
        return
    commands = list(getattr(study, stage)())
    for command in commands:
        if not dry:
            run(command, study.work)
        elif command[1] == "train" or (stage != "evidence" and study.trained()):
            run([*command, "--dry-run"], study.work)
        else:
            print("+", shlex.join(command))
    if dry:
        return
    local = (study.work / study.base).resolve()
    base = local if local.is_dir() else None
    if stage == "evidence":
        import page  # imported late because it needs matplotlib

        stages = set(study.record.glob("stage-*.json"))  # they have the base as it was given
        for path in set(study.record.glob("*.json")) - stages:
            write_text(path, portable(path.read_bytes(), base).decode("utf-8"))
        page.main(study.record)
    if folder := STAGES[stage]:
        pack(study.work / folder, archive, base)
    names = ("torch", "transformers", "peft", "lm-eval")
    found = {
        "study": study.identity(stage),
        "commands": [shlex.join(c).replace(f"{ROOT}/", "") for c in commands],
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "versions": {"gks-eval": __version__, **{name: version(name) for name in names}},
    }
    if stage != "evidence":
        found["seconds"] = round(seconds(study, stage))
    if STAGES[stage]:
        found["archive"] = sha256_of(archive)
    write_text(record, json.dumps(found, indent=1) + "\n")


def read_record(record: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a stage.

    Args:
        record: Its file.
        now: The arguments that decide the results of the stage.

    Raises:
        ResultsError: It cannot be read, or is of a study with other arguments.
    """
    mend = f"delete {record} to run the stage again"
    found = JsonFile("record of a stage", ResultsError, mend).read(record)
    before = found.get("study", now)  # records of older versions do not say
    names = [
        f"--{name.replace('_', '-')}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    if names:
        raise ResultsError(
            f"{record} is of a study with another {', '.join(names)}; name another --record, or "
            f"{mend}."
        )
    return found


def seconds(study: Study, stage: str) -> float:
    """Return what the stage's adapters or settings took, in all runs of the stage together."""
    if stage == "train":
        folders = (study.work / name for name in study.libraries)
        records = [path for folder in folders for path in folder.glob("*/*/training.json")]
        return sum(parse_json(path.read_bytes())["seconds"] for path in records)
    cells = (study.work / (STAGES[stage] or "")).rglob("cell.json")
    return sum(parse_json(path.read_bytes())["spent"]["seconds"] for path in cells)


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder; if it fails, exit with its exit code."""
    print("+", shlex.join(command), flush=True)
    try:
        code = subprocess.run(command, cwd=folder, check=False).returncode  # noqa: S603
    except OSError as error:
        sys.exit(f"run.py: {command[0]} cannot be started: {error.strerror}.")
    if code:
        sys.exit(code)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or `words` in its place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="Folder of libraries and results.")
    add("--record", type=Path, help="Folder of the records; default: WORK/record.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="Folder of the training data.")
    what.add_argument("--library", help="A trained library: bundled name, folder or hub id.")
    add("--base", default="embedded:smollm2-135m-instruct", help="Base to train on.")
    formats = ("chat", "plain")
    add("--format", default="chat", choices=formats, help="Rows of experts; plain: no template.")
    add("--starts", default="own", help="own, shared, or both with a comma.")
    add("--seeds", type=int, default=3, help="Seeds of training, from 0 on.")
    add("--stages", default=",".join(STAGES), help="Stages to run, with commas.")
    add("--methods", default="", help="Of the leaderboard, with commas; default: all.")
    add("--tasks", default=TASKS, help="Tasks or groups, with commas.")
    add("--limit", type=int, default=80, help="Items per task; 0 for all.")
    add("--model-args", default="dtype=bfloat16", help="As lm-eval takes them.")
    add("--batch-size", default="8", help="As lm-eval takes it.")
    add("--launch", default="", help="Launcher, such as 'torchrun --nproc_per_node 2 --no-python'.")
    add("--dry-run", action="store_true", help="Check and estimate only.")
    return parser.parse_args(words)


def main() -> None:
    """Run the stages that have no record yet."""
    given = arguments()
    stages = given.stages.split(",")
    if unknown := set(stages) - set(STAGES):
        sys.exit(f"run.py: no stage {', '.join(sorted(unknown))}; stages: {', '.join(STAGES)}.")
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    study = Study(
        work,
        (given.record or work / "record").absolute(),
        given.data and given.data.absolute(),
        given.library,
        given.base,
        given.format,
        tuple(given.starts.split(",")),
        given.seeds,
        given.tasks,
        ("--model-args", given.model_args, "--batch-size", given.batch_size),
        given.limit,
        tuple(shlex.split(given.launch)),
        tuple(filter(None, given.methods.split(","))),
    )
    try:
        study.ranked  # noqa: B018 - checks the methods before hours of training
        for stage in stages:
            run_stage(study, stage, given.dry_run)
    except GksError as error:
        sys.exit(f"run.py: {error}")


if __name__ == "__main__":
    main()
