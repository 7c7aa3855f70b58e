"""Writes run folders in lm-eval's format, for tests that need more than the golden ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STAMP = "2026-01-02T03-04-05.000006"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(
    doc_id: int,
    value: float,
    *,
    question: str | None = None,
    prompt: str | None = None,
    metric: str = "acc",
    filter_name: str = "none",
    choices: Sequence[str] = ("yes", "no"),
    answer: int = 0,
) -> dict[str, Any]:
    """One row of a samples file; the score and the log-likelihoods agree for two choices."""
    question = question if question is not None else f"Question {doc_id}?"
    prompt = prompt if prompt is not None else f"{question}\nAnswer:"
    scores = [-1.0 if (index == answer) == bool(value) else -2.0 for index in range(len(choices))]
    return {
        "doc_id": doc_id,
        "doc": {"question": question, "choices": list(choices), "answer": answer},
        "target": str(answer),
        "arguments": {
            f"gen_args_{index}": {"arg_0": prompt, "arg_1": f" {choice}"}
            for index, choice in enumerate(choices)
        },
        "resps": [[[str(score), "False"]] for score in scores],
        "filtered_resps": [[str(score), "False"] for score in scores],
        "filter": filter_name,
        "metrics": [metric],
        "doc_hash": _hash(question),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(str(answer)),
        metric: value,
    }


def write_run(
    folder: Path,
    tasks: Mapping[str, Sequence[float] | Sequence[dict[str, Any]]],
    *,
    metric: str = "acc",
    groups: Mapping[str, tuple[Sequence[str], bool]] | None = None,
    stamp: str = STAMP,
    samples: bool = True,
    version: object = 1.0,
    shots: int = 0,
    higher_is_better: bool | None = True,
    model_args: Any = "pretrained=tiny",
    change: Mapping[str, Any] | None = None,
) -> Path:
    """Write results and samples of a run; returns the results file.

    `tasks` gives each task's scores, or ready rows. `groups` gives members and whether the average
    weighs by size. `change` overwrites keys of the results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, entries in tasks.items():
        rows = [
            entry if isinstance(entry, dict) else sample(i, float(entry), metric=metric)
            for i, entry in enumerate(entries)
        ]
        values = [row[metric] for row in rows]
        n = counts[name] = len(values)
        mean = sum(values) / n
        stderr = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else "N/A"
        results[name] = {
            "name": name,
            "alias": name,
            "sample_len": n,
            f"{metric},none": mean,
            f"{metric}_stderr,none": stderr,
        }
        if samples:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"samples_{name}_{stamp}.jsonl").write_text(lines, encoding="utf-8")
    for name, (members, weighted) in (groups or {}).items():
        values = [results[member][f"{metric},none"] for member in members]
        weights = [counts[member] if weighted else 1 for member in members]
        results[name] = {
            "name": name,
            "alias": name,
            "sample_len": sum(counts[member] for member in members),
            f"{metric},none": sum(v * w for v, w in zip(values, weights, strict=True))
            / sum(weights),
            f"{metric}_stderr,none": "N/A",
        }
    content: dict[str, Any] = {
        "results": results,
        "groups": {name: results[name] for name in groups or {}},
        "group_subtasks": {name: list(members) for name, (members, _) in (groups or {}).items()},
        "configs": {
            name: {
                "task": name,
                "doc_to_text": "{{question}}\nAnswer:",
                "metric_list": [{"metric": metric, "aggregation": "mean"}],
            }
            for name in tasks
        },
        "versions": dict.fromkeys(tasks, version),
        "n-shot": dict.fromkeys(tasks, shots),
        "higher_is_better": {name: {metric: higher_is_better} for name in tasks},
        "n-samples": {name: {"original": n, "effective": n} for name, n in counts.items()},
        "config": {"model": "hf", "model_args": model_args, "limit": None},
        "date": 1.0,
        "model_source": "hf",
        "model_name": "tiny",
        "model_name_sanitized": "tiny",
        "lm_eval_version": "0.4.13",
    }
    content.update(change or {})
    path = folder / f"results_{stamp}.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def planted(n: int, gains: int, losses: int, right_in_both: int) -> tuple[list[float], list[float]]:
    """Scores of two runs with the given numbers of discordant items, spread evenly."""
    kinds = [(0.0, 1.0)] * gains + [(1.0, 0.0)] * losses + [(1.0, 1.0)] * right_in_both
    kinds += [(0.0, 0.0)] * (n - len(kinds))
    kinds = [kinds[(i * 7919) % n] for i in range(n)] if math.gcd(n, 7919) == 1 else kinds
    return [first for first, _ in kinds], [second for _, second in kinds]
