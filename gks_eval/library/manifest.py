"""`library.yaml`: which adapters make up a library, and for which base model."""

from __future__ import annotations

import ast
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from gks_eval.method.declaration import TieOp
from gks_eval.util.yaml import FrozenModel

__all__ = ["LibraryConfig", "LoadConfig", "TiedPrototypes"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
# Names that are keywords of the command line's grammar.
_RESERVED: Final = frozenset({"arrow", "uniform", "none", "base", "avg", "experts"})
# lm-eval's command line turns these into Python's values, in upper and lower case.
_VALUES: Final = frozenset({"true", "false", "none"})
_MAYBE_LITERAL: Final = re.compile(r"[0-9][0-9a-fA-FoOxXjJ_.-]*")


def _is_number(name: str) -> bool:
    """Return whether lm-eval's command line reads this word as a number."""
    try:
        float(name)  # 7, 01, 1e3, 1_000, nan, Infinity
    except ValueError:
        pass
    else:
        return True
    try:
        ast.literal_eval(name if _MAYBE_LITERAL.fullmatch(name) else "")  # 0x1f, 2j
    except (SyntaxError, ValueError):
        return False
    return True


def _as_written(key: object) -> object:
    # YAML also reads such words as numbers.
    return str(key) if isinstance(key, (int, float)) else key


def _adapter_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r:.80} is no usable name: letters, digits, '_', '.' and '-' only, "
            "the first a letter or digit, 200 characters at most"
        )
    if name in _RESERVED:
        raise ValueError(f"{name!r} is a reserved word; choose another name")
    if name.lower() in _VALUES or _is_number(name):
        kind = "true, false or none" if name.lower() in _VALUES else "a number"
        raise ValueError(
            f"{name!r:.80} is no usable name: lm-eval's command line reads it as {kind}; "
            f"choose another name, such as adapter_{name:.80}"
        )
    return name


AdapterName = Annotated[str, BeforeValidator(_as_written), AfterValidator(_adapter_name)]
Source = Annotated[str, Field(min_length=1, max_length=1000)]


class LoadConfig(FrozenModel):
    """How the base model is loaded unless an argument says otherwise."""

    quantization: Literal["none", "nf4", "int8"] = "none"


class TiedPrototypes(FrozenModel):
    """Layers that share one prototype per expert.

    Attributes:
        layers: Last parts of their names, such as ``q_proj``; layers with the same text before
            them form a group.
        op: What the prototype is made of: ``concat``, the updates one above the other, or ``sum``.
    """

    layers: Annotated[list[Source], Field(min_length=2, max_length=100)]
    op: TieOp = "concat"

    @field_validator("layers")
    @classmethod
    def _different(cls, layers: list[str]) -> list[str]:
        if len(set(layers)) < len(layers):
            raise ValueError("a layer is named twice")
        return layers


class LibraryConfig(FrozenModel):
    """The typed content of one library.yaml.

    Attributes:
        base_model: Hub id or path of the base model, or ``embedded:<name>``.
        revision: Revision of the base model on the hub.
        experts: Task adapters by name: a path relative to the file, or
            ``org/repo[/subfolder][@revision]`` on the hub.
        general: General-knowledge adapters by language, in the same form.
        load: How to load the base.
        tied_prototypes: Layers that share one prototype per expert.
        made_by: Commands that make the adapters, for a library whose adapters are made locally;
            shown when adapters are missing.
        hashes: SHA-256 of each adapter's weights file, by ``experts/<name>`` or
            ``general/<language>``; checked on loading.
        license: License of the adapters, as the hub writes it, such as ``apache-2.0``.
        provenance: Any record of where the adapters come from; it is copied, not interpreted.
    """

    base_model: Source
    revision: str | None = None
    experts: dict[AdapterName, Source]
    general: dict[AdapterName, Source] = Field(default_factory=dict)
    load: LoadConfig = LoadConfig()
    tied_prototypes: list[TiedPrototypes] = Field(default_factory=list, max_length=1000)
    made_by: list[str] = Field(default_factory=list)
    hashes: dict[str, str] = Field(default_factory=dict)
    license: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("experts")
    @classmethod
    def _some_expert(cls, experts: dict[str, str]) -> dict[str, str]:
        if not experts:
            raise ValueError("name at least one expert")
        return experts

    @model_validator(mode="after")
    def _hashes_name_adapters(self) -> LibraryConfig:
        known = {f"experts/{n}" for n in self.experts} | {f"general/{n}" for n in self.general}
        if unknown := sorted(set(self.hashes) - known):
            raise ValueError(
                f"hashes names adapters that are not listed: {', '.join(unknown)[:200]}"
            )
        return self
