"""Ours, evalsig and evalstats on the same simulated pairs of runs and the same results files.

``python -m benchmarks.evidence --peers FOLDER`` prints the tables of ``docs/evidence.md``. The
peers run in the virtual environment FOLDER, which is made if it is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks import evidence_peer
from benchmarks.item_score import DESIGNS, Design, draw
from gks_eval.errors import GksError
from gks_eval.evidence.compare import compare
from gks_eval.evidence.gate import gate
from gks_eval.evidence.policy import GatePolicy, Limits
from gks_eval.evidence.runs import one_run
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.item_score import item_score
from gks_eval.evidence.stats.paired_test import paired_test
from gks_eval.evidence.task_rows import CompareOptions
from gks_eval.util.json_file import parse_json

__all__ = ["OURS", "PLANTED", "Planted", "cases", "file_table", "ours", "rates", "request"]

Floats = npt.NDArray[np.float64]
OURS: Final = "gks_eval"
VERSIONS: Final = {"evalsig": "0.1.2", "evalstats": "0.3.3"}
_GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "evidence"


@dataclass(frozen=True)
class Planted:
    """A design of the item score's table with a drop.

    Attributes:
        design: The tasks.
        drops: Per task.
        each: Whether the tasks are tested one by one, instead of their average.
    """

    design: Design
    drops: Sequence[float]
    each: bool = False

    @property
    def change(self) -> float:
        """Return the true change of the plain average over tasks."""
        return -float(np.mean(self.drops))

    @property
    def linked(self) -> bool:
        """Return whether items are linked."""
        return self.design.correlation > 0.0


_FIVE = Design([200] * 5, [0.15] * 5, [list(range(200 * t, 200 * t + 200)) for t in range(5)])
_THREE = DESIGNS["3 tasks of 200, 500 and 2,000 items"]
PLANTED: Final[Mapping[str, Planted]] = {
    "1 task of 300 items, 2% change; drop of 2": Planted(
        DESIGNS["1 task of 300 items, 2% change"], [0.02]
    ),
    "57 tasks of 1 to 10 items; drop of 5 in each": Planted(
        DESIGNS["57 tasks of 1 to 10 items"], [0.05] * 57
    ),
    "3 tasks of 200, 500 and 2,000 items; drop of 3 in each": Planted(_THREE, [0.03] * 3),
    "the same; drop of 12 in the smallest": Planted(_THREE, [0.12, 0.0, 0.0]),
    "400 questions in 3 languages, r = 0.6; drop of 3 in each": Planted(
        DESIGNS["400 questions in 3 languages, r = 0.6"], [0.03] * 3
    ),
    "5 tasks of 200 items, one by one; drop of 10 in one": Planted(
        _FIVE, [0.1, 0.0, 0.0, 0.0, 0.0], each=True
    ),
}


@dataclass
class Request:
    """Questions for a peer, see `evidence_peer.answers`."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    labels: list[str] | None = None
    sizes: list[int] | None = None
    files: list[dict[str, Any]] = field(default_factory=list)


def request(planted: Planted, repeats: int, seed: int) -> Request:
    """Return pairs of runs: first `repeats` unchanged candidates, then as many with the drop."""
    rng = np.random.default_rng(seed)
    design = planted.design
    labels = [str(c) for ids in design.clusters for c in ids] if planted.linked else None
    asked = Request(labels=labels, sizes=list(design.sizes) if planted.each else None)
    for k in range(2 * repeats):
        drops = planted.drops if k >= repeats else [0.0] * len(planted.drops)
        asked.pairs.append(_scores(np.concatenate(_changes(design, drops, rng)), rng))
    return asked


def _changes(design: Design, drops: Sequence[float], rng: np.random.Generator) -> list[Floats]:
    # Linked items share their draws, so a drop differs between tasks only without links.
    if len(set(drops)) == 1:
        return draw(design, rng, drops[0])
    parts = zip(design.sizes, design.discordance, drops, strict=True)
    return [draw(Design([n], [share], [range(n)]), rng, drop)[0] for n, share, drop in parts]


def _scores(changes: Floats, rng: np.random.Generator) -> tuple[str, str]:
    first = np.where(changes == 0.0, rng.random(changes.size) < 0.6, changes < 0.0).astype(int)
    second = first + changes.astype(int)
    return "".join(map(str, first)), "".join(map(str, second))


def ours(planted: Planted, asked: Request) -> Iterator[dict[str, float]]:
    """Answer a request as `gks-eval compare` does."""
    tasks = planted.design.sizes
    ends = np.cumsum(tasks)[:-1]
    labels = [[str(c) for c in ids] for ids in planted.design.clusters] if planted.linked else None
    for runs in asked.pairs:
        first, second = (np.frombuffer(run.encode(), dtype=np.uint8).astype(float) for run in runs)
        changes = np.split(second - first, ends)
        if planted.each:
            yield {"p": min(holm([paired_test(d, binary=True).two_sided_p() for d in changes]))}
            continue
        if len(tasks) == 1 and labels is None:
            test = paired_test(changes[0], binary=True)
            interval, p = test.interval(0.95), test.two_sided_p()
        else:
            score = item_score(changes, [1.0 / len(tasks)] * len(tasks), labels)
            interval, p = score.interval(0.95), score.two_sided_p()
        low, high = interval or (-1.0, 1.0)
        yield {"p": p, "low": low, "high": high}


def rates(found: Sequence[Mapping[str, float]], change: float) -> list[float | None]:
    """Return the shares of false alarms, coverage unchanged, detected drops, coverage dropped."""
    half = len(found) // 2
    shares: list[float | None] = []
    for part, true in ((found[:half], 0.0), (found[half:], change)):
        shares.append(float(np.mean([answer["p"] < 0.05 for answer in part])))
        inside = [a["low"] <= true <= a["high"] for a in part if "low" in a]
        shares.append(float(np.mean(inside)) if inside else None)
    return shares


def cases(root: Path, sources: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return questions about results files: real pairs, and pairs that need care.

    Args:
        root: Folder for the changed copies.
        sources: Two folders of results, baseline and candidate.
    """
    first, second = sources
    files = sorted(first.rglob("samples_*.jsonl"))
    tasks = [path.stem.removeprefix("samples_").rpartition("_")[0] for path in files]
    named = {task: _case(first, second, task) for task in tasks}
    task = tasks[-1]
    for name in ("same", "other"):
        shutil.copytree(first, root / name)
    for path in (root / "other").rglob("samples_*.jsonl"):
        rows = [parse_json(line) for line in path.read_bytes().splitlines()]
        for row in rows:
            row["doc"]["question"] = f"Another one: {row['doc'].get('question', '')}"
            row["doc_hash"] = row["doc_hash"][::-1]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    named["other items under the same ids"] = _case(first, root / "other", task)
    named["misspelt metric acc_nrom"] = _case(first, second, task, "acc_nrom")
    named["unchanged run, copied"] = _case(first, root / "same", task)
    named["the same files twice"] = _case(first, first, task)
    return named


def _case(first: Path, second: Path, task: str, metric: str | None = None) -> dict[str, Any]:
    paths = [next(folder.rglob(f"samples_{task}_2*.jsonl")) for folder in (first, second)]
    if metric is None:
        with paths[0].open("rb") as lines:
            metric = parse_json(next(lines))["metrics"][0]
    return {
        "folders": [first, second],
        "task": task,
        "paths": [str(path) for path in paths],
        "metric": metric,
    }


def _ours_on_files(case: Mapping[str, Any]) -> dict[str, Any]:
    first, second = runs = [one_run(str(folder)) for folder in case["folders"]]
    try:
        policy = GatePolicy(min_pairs=1, tasks={case["task"]: Limits()}, only_listed=True)
        reasons = [r for out in gate(first, second, policy).outcomes for r in out.reasons]
        if case["folders"][0] == case["folders"][1]:
            return {"refused": f"gate, status 2: {'; '.join(reasons)}"}
        settings = CompareOptions(metric=case["metric"], tasks=(case["task"],))
        (row, *_) = [row for row in compare(runs, settings).rows if row.name == case["task"]]
    except GksError as error:
        return {"refused": str(error)}
    (one,) = row.differences
    if one.method == "unpaired":
        return {"refused": f"to pair them; {'; '.join(reasons)}"}
    return {"p": one.p, "low": one.low, "high": one.high, "n": one.n}


def file_table(named: Mapping[str, Mapping[str, Any]], peers: Mapping[str, Any]) -> str:
    """Return the answers on results files as a Markdown table."""
    tools = [OURS, *peers]
    lines = [f"| files | {' | '.join(tools)} |", f"| --- {'| --- ' * len(tools)}|"]
    for k, (name, case) in enumerate(named.items()):
        found = [_ours_on_files(case), *(peer["files"][k] for peer in peers.values())]
        lines.append(f"| {name} | {' | '.join(map(_cell, found))} |")
    return "\n".join(lines)


def _cell(answer: Mapping[str, Any]) -> str:
    if "refused" in answer:
        return "refuses: " + " ".join(answer["refused"].split())[:160].replace("|", "/")
    low, high = (100 * answer[key] for key in ("low", "high"))
    return f"p = {answer['p']:.2f}, {low:.1f} to {high:.1f}, n = {answer['n']}"


def ask(python: Path, name: str, asked: Request) -> dict[str, Any]:
    """Return a peer's answers from its own environment."""
    files = [{"paths": case["paths"], "metric": case["metric"]} for case in asked.files]
    done = subprocess.run(  # noqa: S603
        [str(python), "-W", "ignore", str(Path(evidence_peer.__file__)), name],
        input=json.dumps({**vars(asked), "files": files}),
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"{name} failed in {python}: {done.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = parse_json(done.stdout.encode(), constants=True)
    return answer


def environment(folder: Path) -> Path:
    """Return the Python of the peers' environment, after installing both if it is not there."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        packages = [f"{name}=={version}" for name, version in VERSIONS.items()]
        pip = [str(python), "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(pip, check=False).returncode:  # noqa: S603
            shutil.rmtree(folder)
            raise SystemExit(f"pip could not install {' and '.join(packages)} into {folder}.")
    return python


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="folder of the environment")
    parser.add_argument("--repeats", type=int, default=1000, help="0: files only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, nargs=2, help="baseline and candidate")
    words = parser.parse_args()
    python = environment(words.peers)
    versions = {OURS: importlib.metadata.version("gks-eval")}
    with tempfile.TemporaryDirectory() as root:
        sources = words.results or [_GOLDEN / "llama-0", _GOLDEN / "llama-1"]
        named = cases(Path(root), sources)
        asked = Request(files=list(named.values()))
        found = {name: ask(python, name, asked) for name in VERSIONS}
        print(file_table(named, found), flush=True)
    versions |= {name: answer["version"] for name, answer in found.items()}
    print(f"\n{', '.join(f'{name} {version}' for name, version in versions.items())}\n")
    if not words.repeats:
        return
    heads = "items", "tool", "alarms", "coverage", "detected", "coverage at the drop"
    print(f"| {' | '.join(heads)} |\n| --- | --- | --: | --: | --: | --: |")
    for name, planted in PLANTED.items():
        asked = request(planted, words.repeats, words.seed)
        answers = {OURS: list(ours(planted, asked))}
        answers |= {peer: ask(python, peer, asked)["pairs"] for peer in VERSIONS}
        for tool, pairs in answers.items():
            numbers = rates(pairs, planted.change)
            cells = [name, tool, *("-" if x is None else f"{100 * x:.1f}" for x in numbers)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
