"""One `results_*.json` of lm-eval 0.4.x as typed, frozen values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from gks_eval.errors import ResultsError
from gks_eval.evidence.records import (
    GroupResult,
    Metric,
    ResultsFile,
    TaskResult,
    is_finite,
)
from gks_eval.util.json_file import JsonFile
from gks_eval.util.result_files import samples_of, timestamp_of

__all__ = ["read_results"]

_FILE: Final = JsonFile(
    "results file of lm-eval",
    ResultsError,
    "delete it or run the evaluation again",
    limit=1 << 28,
    constants=True,
)

MAX_ITEMS = 1 << 40
# Secrets such as `token=hf_...` or `https://name:password@host` must not reach a table or page.
_WORDS = "token|password|passwd|secret|api[_-]?key|access[_-]?key|auth|authorization|credentials?"
_SECRET = re.compile(rf"(?i)(^|[_-])({_WORDS})($|[_-])")
_SECRET_TEXT = re.compile(rf"(?i)\b((?:\w+_)?(?:{_WORDS})(?:_\w+)?\s*=\s*)[^,\s]+")
_LOGIN = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@,\"']+@")
_LINES = re.compile(r"\s+")


class _SampleCount(BaseModel):
    original: int | None = None
    effective: int | None = None


class _Raw(BaseModel):
    model_config = ConfigDict(extra="ignore")

    results: dict[str, dict[str, Any]]
    group_subtasks: dict[str, list[str]] = Field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    n_shot: dict[str, int | None] = Field(default_factory=dict, alias="n-shot")
    higher_is_better: dict[str, dict[str, bool | None]] = Field(default_factory=dict)
    n_samples: dict[str, _SampleCount] = Field(default_factory=dict, alias="n-samples")
    config: dict[str, Any] = Field(default_factory=dict)
    date: float | None = None
    model_source: str | None = None
    model_name: str | None = None
    model_name_sanitized: str | None = None
    lm_eval_version: str | None = None
    transformers_version: str | None = None
    git_hash: str | None = None
    chat_template_sha: str | None = None
    system_instruction_sha: str | None = None
    total_evaluation_time_seconds: str | None = None


def read_results(path: Path) -> ResultsFile:
    """Read one results file.

    Raises:
        ResultsError: It is missing, not complete JSON, too large, or not lm-eval's.
    """
    raw = _FILE.read_as(path, _Raw)
    # lm-eval 0.4.0 to 0.4.11 list a task in no group as a group without members.
    members = {name: kids for name, kids in raw.group_subtasks.items() if kids and name not in kids}
    tasks = {
        name: _task(name, entry, raw, path)
        for name, entry in raw.results.items()
        if name not in members
    }
    if not tasks:
        raise ResultsError(f"{path} records no task; give a results file that lm-eval finished.")
    found = {name: _group(name, members, raw, tasks, path) for name in members}
    groups = {name: group for name, group in found.items() if group.metrics or group.unusable}
    model_args = raw.config.get("model_args")
    return ResultsFile(
        path=path,
        stamp=timestamp_of(path) or _iso(raw.date),
        model=str(raw.config.get("model", raw.model_source)),
        model_args=_shown(model_args),
        tasks=tasks,
        groups=groups,
        unaveraged=tuple(name for name in found if name not in groups),
        info=_info(raw),
        ours=_ours(raw),
    )


def _task(name: str, entry: Mapping[str, Any], raw: _Raw, path: Path) -> TaskResult:
    counts = raw.n_samples.get(name, _SampleCount())
    n = entry.get("sample_len", counts.effective)
    if n is None and not raw.n_samples and not raw.higher_is_better:
        raise ResultsError(
            f"{path} is of lm-eval before 0.4.3, which records no number of items; run the "
            "evaluation again with lm-eval 0.4.3 or later."
        )
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n <= MAX_ITEMS:
        raise ResultsError(
            f"{path} does not say how many items {name} scored; run the evaluation again."
        )
    version = raw.versions.get(name)
    config = raw.configs.get(name, {})
    metadata = config.get("metadata")
    cluster = metadata.get("cluster") if isinstance(metadata, dict) else None
    metrics, unusable = _metrics(name, entry, raw)
    return TaskResult(
        name=name,
        alias=str(entry.get("alias", name)).strip(" -"),
        version=None if version is None else str(version),
        shots=raw.n_shot.get(name),
        n=n,
        original=counts.original,
        metrics=metrics,
        unusable=unusable,
        config=config,
        source=path,
        samples=samples_of(path, name),
        prompt_stamp=f"{raw.chat_template_sha or ''}/{raw.system_instruction_sha or ''}",
        cluster=cluster if isinstance(cluster, str) else "",
    )


def _metrics(
    name: str, entry: Mapping[str, Any], raw: _Raw
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return an entry's metrics, and the recorded values of those that cannot be compared."""
    usable: dict[str, Metric] = {}
    unusable: dict[str, str] = {}
    keys = [key for key in entry if "," in key and not key.split(",")[0].endswith("_stderr")]
    directions = raw.higher_is_better.get(name, {})
    # A function may return several metrics (pass_at_k gives pass@1 and pass@10). Before 0.4.12 the
    # direction is recorded under the function's name only.
    known = {key.partition(",")[0] for key in keys}
    by_function = {higher for metric, higher in directions.items() if metric not in known}
    other = by_function.pop() if len(by_function) == 1 else None
    for key in keys:
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
            unusable[key] = _LINES.sub(" ", str(value))[:20]
            continue
        metric, _, filter_name = key.partition(",")
        stderr = entry.get(f"{metric}_stderr,{filter_name}")
        finite = isinstance(stderr, (int, float)) and is_finite(stderr) and stderr >= 0
        usable[key] = Metric(
            name=metric,
            filter=filter_name,
            value=float(value),
            stderr=float(stderr) if finite and stderr is not None else None,
            higher_is_better=directions.get(metric, other),
        )
    return usable, unusable


def _group(
    name: str,
    members: Mapping[str, list[str]],
    raw: _Raw,
    tasks: Mapping[str, TaskResult],
    path: Path,
) -> GroupResult:
    entry = raw.results.get(name, {})
    leaves = tuple(dict.fromkeys(_leaves(name, members, frozenset())))
    known = [tasks[leaf] for leaf in leaves if leaf in tasks]
    metrics, unusable = _metrics(name, entry, raw)
    for key, metric in metrics.items():
        # lm-eval passes the direction up one level of groups only, so the leaves are asked.
        directions = {t.metrics[key].higher_is_better for t in known if key in t.metrics}
        direction = directions.pop() if len(directions) == 1 else None
        metrics[key] = replace(metric, higher_is_better=direction)
    return GroupResult(
        name=name,
        alias=str(entry.get("alias", name)).strip(" -"),
        leaves=leaves,
        metrics=metrics,
        unusable=unusable,
        weighted={
            key: weights.pop() if len(weights) == 1 else None
            for key, metric in metrics.items()
            if (weights := _weightings(metric.value, [t for t in known if key in t.metrics], key))
        },
        source=path,
    )


def _leaves(name: str, members: Mapping[str, list[str]], above: frozenset[str]) -> Iterator[str]:
    for member in members[name]:
        if member not in members:
            yield member
        elif member not in above:
            yield from _leaves(member, members, above | {name})


def _weightings(value: float, tasks: list[TaskResult], key: str) -> set[bool]:
    """Return the weightings that give an average: by size (True), equal (False), both or none."""
    total = sum(task.n for task in tasks)
    if not tasks or not total:
        return {True, False}
    values = [task.metrics[key].value for task in tasks]
    by_size = sum(v * task.n for v, task in zip(values, tasks, strict=True)) / total
    plain = sum(values) / len(values)
    tolerance = 1e-9 * max(1.0, abs(value))
    averages = {True: by_size, False: plain}
    return {way for way, average in averages.items() if abs(average - value) <= tolerance}


def _shown(model_args: object) -> str:
    """Return the model's arguments as one text, with secrets masked."""
    kept = _without_secrets(model_args)
    return kept if isinstance(kept, str) else json.dumps(kept, sort_keys=True, ensure_ascii=False)


def _without_secrets(value: object) -> object:
    if isinstance(value, str):
        return _LOGIN.sub(r"\1***@", _SECRET_TEXT.sub(r"\1***", value))
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {
            key: "***" if _SECRET.search(str(key)) else _without_secrets(item)
            for key, item in value.items()
        }
    return value


def _iso(date: float | None) -> str:
    try:
        moment = datetime.fromtimestamp(date or 0.0, tz=timezone.utc)
    except (OverflowError, OSError, ValueError):
        moment = datetime.fromtimestamp(0, tz=timezone.utc)
    return moment.strftime("%Y-%m-%dT%H-%M-%S")


def _ours(raw: _Raw) -> dict[str, Any]:
    ours = raw.config.get("gks_eval")
    return ours if isinstance(ours, dict) else {}


def _info(raw: _Raw) -> dict[str, str]:
    ours = _ours(raw)
    facts = {
        "model_name": raw.model_name,
        "model_folder": raw.model_name_sanitized,
        "lm_eval": raw.lm_eval_version,
        "transformers": raw.transformers_version,
        "git": raw.git_hash,
        "seconds": raw.total_evaluation_time_seconds,
        "dtype": raw.config.get("model_dtype"),
        "device": raw.config.get("device"),
        "limit": raw.config.get("limit"),
        "family": ours.get("family"),
        "needs": ours.get("needs"),
        "seed": ours.get("seed"),
    }
    return {n: str(_without_secrets(fact)) for n, fact in facts.items() if fact not in (None, "")}
