"""Results of a study without the texts of the data sets, packed into one file.

A packed file restores folders that `gks-eval grid` resumes from and `gks-eval compare` reads. It
has the scores, log-likelihoods and hashes of every item, but no document and no prompt.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from lm_eval.utils import sanitize_model_name

from gks_eval.errors import ResultsError, reason
from gks_eval.evidence.samples import SAMPLES
from gks_eval.util.files import draft_folder, sha256_of
from gks_eval.util.json_file import parse_json
from gks_eval.util.paths import tasks_dir

__all__ = ["pack", "portable", "unpack"]

KEPT = ("doc_id", "filtered_resps", "filter", "metrics")
HASHES = ("doc_hash", "prompt_hash", "target_hash")


def pack(folder: Path, archive: Path, base: Path | None = None) -> None:
    """Write all results of a folder, at any depth, into a .tar.xz file without texts.

    Equal results give equal bytes. Paths of this machine become `portable`.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    draft = archive.with_suffix(".part")
    with tarfile.open(draft, "w:xz", preset=9) as file:
        for path in sorted(folder.rglob("*.json*")):
            content = portable(_content(path), base)
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    draft.replace(archive)


def portable(content: bytes, base: Path | None) -> bytes:
    """Return JSON without this package's folder, and with the last part of a local base's path."""
    content = content.replace(f"{tasks_dir().parent.as_posix()}/".encode(), b"")
    if base is None:
        return content
    for written in (str(base), sanitize_model_name(str(base))):  # the latter names folders
        content = content.replace(json.dumps(written)[1:-1].encode(), base.name.encode())
    return content


def unpack(archive: Path, folder: Path, sha256: str | None = None) -> None:
    """Restore a packed folder; files that are there stay as they are.

    Args:
        archive: As `pack` wrote it.
        folder: Where to.
        sha256: Of the archive, as recorded; None if it is not.

    Raises:
        ResultsError: The archive is another one, is cut short, or holds what `pack` never writes.
    """
    mend = "copy it again, or delete it and the record of its stage to run that stage again"
    if sha256 not in (None, sha256_of(archive)):
        raise ResultsError(f"{archive} is not the file that its stage recorded; {mend}.")
    # Every file is put in place whole, so that a killed run leaves no half of one.
    with draft_folder(folder) as draft:
        try:
            with tarfile.open(archive) as file:
                members = file.getmembers()
                for one in members:
                    path = PurePosixPath(one.name)
                    if not one.isreg() or path.is_absolute() or ".." in path.parts:
                        raise ResultsError(f"{archive} holds {one.name}, no result; {mend}.")
                missing = [one for one in members if not (folder / one.name).exists()]
                file.extractall(draft, missing, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise ResultsError(f"{archive} cannot be read ({reason(error)}); {mend}.") from None
        for one in missing:
            (folder / one.name).parent.mkdir(parents=True, exist_ok=True)
            (draft / one.name).replace(folder / one.name)


def _content(path: Path) -> bytes:
    if path.suffix == ".jsonl":
        return b"".join(_line(row) for _, row in SAMPLES.lines(path))
    if not path.name.startswith("results_"):
        return path.read_bytes()
    results = parse_json(path.read_bytes(), constants=True)
    results.pop("pretty_env_info", None)
    return json.dumps(results, indent=1, ensure_ascii=False).encode()


def _line(row: dict[str, Any]) -> bytes:
    kept = {key: row[key] for key in (*KEPT, *row.get("metrics", ()), *HASHES) if key in row}
    if isinstance(document := row.get("doc"), dict):
        # Equal values stay equal, so that the items of one text or translation are still linked.
        kept["doc"] = {key: _digest(value) for key, value in document.items()}
    return json.dumps(kept, separators=(",", ":")).encode() + b"\n"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
