"""Reads JSON files with size limits; each error names the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gks_eval.errors import GksError

__all__ = ["JsonError", "JsonFile", "parse_json", "read_or_empty"]

ModelT = TypeVar("ModelT", bound=BaseModel)
_RECORD_BYTES = 1 << 28
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """Invalid JSON.

    Attributes:
        line: Line of the fault, if known.
    """

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.line = line


def parse_json(raw: bytes, constants: bool = False) -> Any:
    r"""Return the content of a JSON text.

    JSON can contain lone surrogates (``"\ud800"``), which UTF-8 cannot encode. Question marks
    replace them, so that the content can be written again.

    Args:
        raw: The text, in UTF-8, UTF-16 or UTF-32.
        constants: Whether NaN and infinities are allowed; Python writes them, JSON excludes them.

    Raises:
        JsonError: The text is not JSON, or an object has a key twice.
    """
    try:
        text = raw.decode(json.detect_encoding(raw))  # json.loads would not be strict
        refuse = None if constants else _refuse_constant
        content = json.loads(text, object_pairs_hook=_object, parse_constant=refuse)
        if _SURROGATE.search(text):
            whole = json.dumps(content, ensure_ascii=False)
            content = json.loads(whole.encode("utf-8", "replace"))
    except JsonError:
        raise
    except UnicodeDecodeError as error:
        raise JsonError(f"is not {error.encoding.upper()} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonError("is broken or only half written", error.lineno) from None
    except ValueError:
        raise JsonError("holds a number of too many digits") from None
    except RecursionError:
        raise JsonError("is nested too deeply") from None
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonError(f"has the key {twice[:60]!r} twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise JsonError(f"holds {name}, which is not a JSON number")


@dataclass(frozen=True, slots=True)
class JsonFile:
    """A kind of JSON file and the error class for its faults.

    Attributes:
        what: Its name in errors, such as ``results file``.
        error: The class of every error.
        mend: What the user can do about a broken file.
        limit: Maximum size in bytes, of the file or, for `lines`, of a line.
        constants: Whether NaN and infinities are allowed.
    """

    what: str
    error: type[GksError]
    mend: str
    limit: int = 1 << 24
    constants: bool = False

    def read(self, path: Path) -> dict[str, Any]:
        """Return the object in a file.

        Raises:
            GksError: As `error`: the file is missing, too large, or not a JSON object.
        """
        return self.parse(self.read_bytes(path), path)

    def read_as(self, path: Path, model: type[ModelT]) -> ModelT:
        """Return the object in a file, validated as `model`.

        Raises:
            GksError: As `read`, or the object does not satisfy the model.
        """
        content = self.read(path)
        try:
            return model.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise self.error(
                f"{path} is no {self.what}: {where}: {first['msg'].lower()}; {self.mend}."
            ) from None

    def read_bytes(self, path: Path) -> bytes:
        """Return the bytes of a file of at most `limit`.

        Raises:
            GksError: As `error`: the file is missing or too large.
        """
        try:
            with path.open("rb") as file:
                raw = file.read(self.limit + 1)
        except OSError as error:
            raise self._unreadable(path, error) from None
        if len(raw) > self.limit:
            raise self._too_large(path)
        return raw

    def parse(self, raw: bytes, path: Path, line: int | None = None) -> dict[str, Any]:
        """Return the object in the bytes of a file or of one line.

        Raises:
            GksError: As `error`: they are not a JSON object.
        """
        try:
            content = parse_json(raw, self.constants)
            if not isinstance(content, dict):
                raise JsonError("holds no JSON object")
        except JsonError as fault:
            number = line or fault.line
            where = f" (line {number})" if number else ""
            raise self.error(f"{path} {fault}{where}; {self.mend}.") from None
        return content

    def lines(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, object) of a file with one JSON object per line.

        Raises:
            GksError: As `error`: the file cannot be read, or a line is too long or not an object.
        """
        try:
            with path.open("rb") as file:
                number = 0
                while line := file.readline(self.limit + 1):
                    number += 1
                    if len(line) > self.limit:
                        raise self._too_large(f"{path} line {number}")
                    if line.strip():
                        yield number, self.parse(line, path, number)
        except OSError as error:
            raise self._unreadable(path, error) from None

    def _unreadable(self, path: Path, error: OSError) -> GksError:
        if isinstance(error, FileNotFoundError):
            return self.error(f"{path} does not exist; check the path.")
        return self.error(f"{path} cannot be read: {error.strerror}; check the path.")

    def _too_large(self, where: Path | str) -> GksError:
        return self.error(
            f"{where} is larger than {self.limit >> 20} MiB, too large for a {self.what}; "
            f"{self.mend}."
        )


def read_or_empty(path: Path) -> dict[str, Any]:
    """Return the object in a file that gks_eval wrote; empty if it is missing or broken."""
    try:
        with path.open("rb") as file:
            content = parse_json(file.read(_RECORD_BYTES), constants=True)
    except (OSError, JsonError):
        return {}
    return content if isinstance(content, dict) else {}
