"""Which settings of a grid are finished, and how an existing folder differs from a request."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import ResultsError
from gks_eval.grid.record import record_of

__all__ = ["check_commit", "differences", "finished"]

_NAMED: Final = 6

logger = logging.getLogger(__name__)


def finished(folders: Sequence[Path], requests: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return for each folder whether it holds the finished result of its request.

    A folder of an older version, which recorded less, is kept with a warning.

    Raises:
        ResultsError: A folder holds another result; the sentence names folders and differences.
    """
    states, stale = [], {}
    for folder, request in zip(folders, requests, strict=True):
        record = record_of(folder)
        states.append(record is not None)
        if record is None:
            continue
        if found := list(differences(record["request"], request)):
            stale[folder] = found
        elif "content" not in record["request"]:
            logger.warning(
                "%s is kept unchecked: an older version made it and did not record the content "
                "of tasks and data; if they have changed since, delete the folder and run again.",
                folder,
            )
    if stale:
        texts = list(dict.fromkeys(text for found in stale.values() for text in found))
        what = "; ".join(texts[:_NAMED])
        if len(texts) > _NAMED:
            what += f"; and {len(texts) - _NAMED} more"
        names = ", ".join(str(folder) for folder in stale)
        was, them = ("was", "it") if len(stale) == 1 else ("were", "them")
        raise ResultsError(
            f"{names} {was} made with other arguments or content ({what}); name another --output, "
            f"or delete {them} to run again."
        )
    return states


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Describe how a finished cell's request differs from the current one.

    Args:
        found: Of the finished cell; keys that an older version did not record count as equal.
        asked: As `cell_request` returns it.
    """
    if ("policy" in found) != ("policy" in asked):
        yield "gate --run reads a setting in parts, and a grid reads all of it"
    others = {key for key in asked if found.get(key, asked[key]) != asked[key]}
    for key in sorted(others):
        before, now = found[key], asked[key]
        if key == "content":
            if not others & {"tasks", "evaluation"}:  # which choose the items
                yield from _content(before, now)
        elif key in ("evaluation", "model_arguments", "arguments", "folders"):
            flag = "--{}" if key == "evaluation" else "{}"
            for name in sorted({*before, *now}):
                if before.get(name) != now.get(name):
                    yield _change(
                        flag.format(name.replace("_", "-") if key == "evaluation" else name),
                        before.get(name),
                        now.get(name),
                        shown=key != "folders" and name != "samples",
                    )
        elif key == "tasks":
            yield _change("--tasks", ",".join(before), ",".join(now))
        elif key == "base":
            same = before.get("name") == now.get("name")
            name = "the files of the base" if same else "the base"
            yield _change(name, before.get("name"), now.get("name"), shown=not same)
        elif key == "library":
            yield "the adapters of the library, or the vectors prepared for the router"
        elif key == "plug_ins":
            changed = sorted(n for n in {*before, *now} if before.get(n) != now.get(n))
            yield f"the code of {', '.join(changed)}"
        else:
            yield key


def _change(name: str, before: object, now: object, shown: bool = True) -> str:
    if not shown:
        return name
    old, new = (str(v).removesuffix(".0") if v is not None else "not given" for v in (before, now))
    return f"{name}: {old} before, {new} now"


def _content(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Describe which tasks changed, and how."""
    for name in sorted({*before["tasks"], *now["tasks"]}):
        old, new = before["tasks"].get(name), now["tasks"].get(name)
        if old is None or new is None:
            yield f"task {name} {'is gone' if new is None else 'is new'}"
            continue
        keys = sorted({*old["config"], *new["config"]})
        parts = [key for key in keys if old["config"].get(key) != new["config"].get(key)]
        if old["items"] != new["items"]:
            parts.append(f"{old['items']} items before, {new['items']} now")
        elif old["rows"] != new["rows"]:
            parts.append("its data")
        if old["examples"] != new["examples"]:
            parts.append("its few-shot examples")
        if parts:
            yield f"task {name}: {', '.join(parts)}"
    for name in sorted({*before["groups"], *now["groups"]}):
        if before["groups"].get(name) != now["groups"].get(name):
            yield f"group {name}: its members or means"


def check_commit(folders: Sequence[Path], commit: str | None) -> None:
    """Check that the kept settings ran on the commit of the base that is loaded.

    Args:
        folders: Of the kept settings.
        commit: The hub's commit; None for a base from a local folder.

    Raises:
        ResultsError: A setting ran on another commit.
    """
    for folder in folders:
        record = record_of(folder) or {}
        made = record.get("commit")
        if commit and made and commit != made:
            raise ResultsError(
                f"{folder} was made with commit {made[:12]} of the base, and the hub has "
                f"{commit[:12]} now; run with --model-args revision={made}, or name another "
                "--output."
            )
