"""Reads YAML as typed models; reports all faults at once, each with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gks_eval.errors import ConfigError, did_you_mean, whole_reason

__all__ = ["FrozenModel", "KeyPath", "load_typed", "parse_typed"]

KeyPath = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_BYTES = 1 << 17
MAX_NODES = 20_000
MAX_DEPTH = 40
MAX_FAULTS = 20
MAX_SHOWN = 60
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class FrozenModel(BaseModel):
    """Base of all typed files: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def hint(cls, path: KeyPath) -> str | None:  # noqa: ARG003 - for subclasses
        """Return a hint for an unknown key, or None to suggest near names.

        Args:
            path: The keys from the top of the file to this one.
        """
        return None


def load_typed(path: Path, model: type[ModelT]) -> ModelT:
    """Read one YAML file as `model`.

    Args:
        path: The file; UTF-8, at most 128 KiB.
        model: The pydantic model it must satisfy.

    Returns:
        The validated model.

    Raises:
        ConfigError: The file is missing, not UTF-8, not YAML, too large with its aliases expanded,
            or does not satisfy the model. The message lists all faults, each with its line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than 128 KiB; remove what does not belong there.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; check the path.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    return parse_typed(text, model, source=str(path))


def parse_typed(text: str, model: type[ModelT], source: str) -> ModelT:
    """Parse YAML `text` as `model`; errors call it `source`.

    Raises:
        ConfigError: As `load_typed`.
    """
    data, lines = _parse(text, source)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source} has no mapping of keys at the top level; see the documentation."
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [_sentence(fault, lines, model) for fault in error.errors(include_url=False)]
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
    raise ConfigError(f"{source} has {count}: " + "; ".join(faults[:MAX_FAULTS]) + more)


def _parse(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, {}
        builder = _Builder(loader, source)
        return builder.build(root, (), 0), builder.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(
            f"{source} is not valid YAML: {where}{error.problem or error.context:.200}."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {whole_reason(error)}.") from None
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply; flatten it.") from None
    except (ValueError, OverflowError):  # raised by the scanner for "\\U99999999"
        raise ConfigError(
            f"{source} is not valid YAML: an escape sequence in quotes is not a character."
        ) from None


class _Builder:
    """Turns composed nodes into Python values; records lines and limits aliases."""

    def __init__(self, loader: yaml.SafeLoader, source: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._loader = loader
        self._source = source
        self._nodes = 0

    def build(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        # Aliases share nodes, so a small file can contain billions of values: count each visit.
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(
                f"{self._source} has too many or too deeply nested values with its aliases "
                "expanded; write it without aliases."
            )
        line = node.start_mark.line + 1
        self.lines[path] = line
        if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"{self._source} line {line}: the tag {node.tag} is not allowed.")
        if isinstance(node, yaml.MappingNode):
            built: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self.build(key_node, (*path, "<key>"), depth + 1)
                where = f"{self._source} line {key_node.start_mark.line + 1}"
                if isinstance(key, (dict, list)):
                    raise ConfigError(f"{where}: a key must be a single value.")
                if key is None or isinstance(key, bool):
                    # YAML 1.1 reads the language code of Norwegian as False.
                    raise ConfigError(
                        f"{where}: the key {key_node.value!r} means {key} in YAML; quote it."
                    )
                if key in built:
                    raise ConfigError(
                        f"{where}: the key {key_node.value!r:.60} occurs twice; keep one."
                    )
                key_path = (*path, key)
                built[key] = self.build(value_node, key_path, depth + 1)
                self.lines[key_path] = key_node.start_mark.line + 1
            return built
        if isinstance(node, yaml.SequenceNode):
            return [
                self.build(item, (*path, position), depth + 1)
                for position, item in enumerate(node.value)
            ]
        try:
            value = self._loader.construct_object(node)
            if isinstance(value, str):
                value.encode()  # lone surrogates cannot be written to a file
            return value
        except (ValueError, OverflowError, LookupError, AttributeError):
            # Dates such as 2026-99-99, over-long numbers, `!!bool x`: PyYAML's constructors fail.
            raise ConfigError(
                f"{self._source} is not valid YAML: line {line}: {_shown(node.value)} is not a "
                "valid value; quote it if it is text."
            ) from None


def _sentence(fault: ErrorDetails, lines: dict[KeyPath, int], model: type[BaseModel]) -> str:
    path: KeyPath = fault["loc"]
    line = next(
        (lines[path[:length]] for length in range(len(path), -1, -1) if path[:length] in lines), 1
    )
    name = ".".join(_shown(part) for part in path) or "the file"
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        own = model.hint(path) if issubclass(model, FrozenModel) else None
        hint = own or (did_you_mean(str(path[-1]), known) if known else "")
        hint = f"; {hint}" if hint else ""
        return f"line {line}: {name} is not a known key{hint}"
    if fault["type"] == "missing":
        return f"line {line}: {name} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    return f"line {line}: {name}: {message[:1].lower()}{message[1:]}"


def _shown(part: object) -> str:
    """Return a key or value of the file as printable text."""
    text = str(part)
    plain = text.isprintable() and text == text.strip() != ""
    text = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    return text if plain else ascii(text)


def _fields_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the field names of the sub-model at `path`; empty if there is none."""
    current: Any = model
    in_container = False
    for part in path:
        if in_container:
            in_container = False  # `part` is an index or a free key of that model's container
            continue
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            return []
        current, in_container = _model_in(fields[part].annotation)
    return [] if in_container else list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> tuple[Any, bool]:
    """Return the first model in an annotation, and whether it is in a list or mapping."""
    if hasattr(annotation, "model_fields"):
        return annotation, False
    for argument in getattr(annotation, "__args__", ()):
        found, nested = _model_in(argument)
        if found is not None:
            return found, nested or getattr(annotation, "__origin__", None) in (list, tuple, dict)
    return None, False
