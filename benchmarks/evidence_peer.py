"""Answers questions about paired runs with a peer's own functions, in the peer's environment.

``PYTHON evidence_peer.py NAME < request.json > answer.json``; imports nothing of this package.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]  # p, low and high of candidate minus baseline; or `refused`, a sentence
# 10,000 draws, evalsig's default, take a second per pair.
_RESAMPLES = 1000


class Evalsig:
    """evalsig: `compare` with method="auto" and its defaults.

    Several tasks are one RunFrame, linked items have a `cluster_id` and 1,000 resamples, and `holm`
    corrects over tasks. Files are read by `read_lm_eval_json`.
    """

    def __init__(self) -> None:
        self.module: Any = importlib.import_module("evalsig")

    def pair(
        self, first: Sequence[float], second: Sequence[float], labels: list[str] | None
    ) -> Answer:
        """Compare two lists of scores."""
        make = self.module.ItemResult
        frames = [
            self.module.RunFrame(
                run_id=name,
                model_id=name,
                task_id="task",
                metric_name="acc",
                items=[
                    make(item_id=str(i), score=score, cluster_id=labels[i] if labels else None)
                    for i, score in enumerate(scores)
                ],
            )
            for name, scores in (("base", first), ("candidate", second))
        ]
        options = {"cluster": "question", "n_resamples": _RESAMPLES} if labels else {}
        return self._answer(self.module.compare(*frames, **options))

    def corrected(self, values: list[float]) -> list[float]:
        """Return p-values corrected over tasks."""
        return [float(p) for p in self.module.holm(values).p_adjusted]

    def files(self, paths: Sequence[str], metric: str) -> Answer:
        """Compare two samples files."""
        read = importlib.import_module("evalsig.io.lm_eval").read_lm_eval_json
        runs = [
            read(path, model_id=str(i), task_id="task", metric_name=metric)
            for i, path in enumerate(paths)
        ]
        return self._answer(self.module.compare(*runs))

    @staticmethod
    def _answer(found: Any) -> Answer:
        return {"p": found.p_value, "low": found.ci[0], "high": found.ci[1], "n": found.n_pairs}


class Evalstats:
    """evalstats: `compare(load_from(table), factors="model", baseline=...)` with its defaults.

    Several tasks are one table. It has no argument for linked items, no correction over tasks and
    no reader of lm-eval's files: the table's items are the `doc_id`, its scores the metrics.
    """

    def __init__(self) -> None:
        self.module: Any = importlib.import_module("evalstats")
        self.pandas: Any = importlib.import_module("pandas")

    def pair(
        self, first: Sequence[float], second: Sequence[float], labels: list[str] | None
    ) -> Answer:
        """Compare two lists of scores."""
        del labels
        rows = [
            {"model": name, "item": i, "score": score}
            for name, scores in (("base", first), ("candidate", second))
            for i, score in enumerate(scores)
        ]
        return self._compared(rows, "score")

    def corrected(self, values: list[float]) -> list[float]:
        """Return the p-values as they are."""
        return values

    def files(self, paths: Sequence[str], metric: str) -> Answer:
        """Compare two samples files."""
        rows = []
        for name, path in zip(("base", "candidate"), paths, strict=True):
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                sample = json.loads(line)
                scores = {key: sample[key] for key in sample["metrics"]}
                rows.append({"model": name, "item": sample["doc_id"], **scores})
        return self._compared(rows, metric)

    def _compared(self, rows: list[dict[str, Any]], metric: str) -> Answer:
        table = self.module.load_from(self.pandas.DataFrame(rows))
        found = self.module.compare(table, factors="model", metric=metric, baseline="base")
        (pair,) = found.to_dict()["pairwise"]
        low, high = pair["ci_low"], pair["ci_high"]
        if pair["a"] == "base":  # its difference is a - b
            low, high = -high, -low
        items = len({row["item"] for row in rows})
        return {"p": pair["p_value"], "low": low, "high": high, "n": items}


PEERS: dict[str, Callable[[], Evalsig | Evalstats]] = {"evalsig": Evalsig, "evalstats": Evalstats}


def answers(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Answer all questions of a request.

    Args:
        name: Of the peer.
        request: `pairs`, each of two strings of 0 and 1 over the items of all tasks; `labels`, per
            item, or None; `sizes` of tasks to be tested one by one, or None; `files`, each with
            `paths` and `metric`.
    """
    peer = PEERS[name]()
    found = []
    for pair in request["pairs"]:
        first, second = ([float(digit) for digit in run] for run in pair)
        if request["sizes"] is None:
            found.append(peer.pair(first, second, request["labels"]))
            continue
        values, start = [], 0
        for size in request["sizes"]:
            part = slice(start, start + size)
            values.append(peer.pair(first[part], second[part], None)["p"])
            start += size
        found.append({"p": min(peer.corrected(values))})
    return {
        "version": importlib.metadata.version(name),
        "pairs": found,
        "files": [_tried(peer, question) for question in request["files"]],
    }


def _tried(peer: Evalsig | Evalstats, question: dict[str, Any]) -> Answer:
    try:
        return peer.files(question["paths"], question["metric"])
    except Exception as error:  # whatever a peer raises is its refusal
        return {"refused": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    json.dump(answers(sys.argv[1], json.load(sys.stdin)), sys.stdout)
