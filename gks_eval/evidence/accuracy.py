"""Reads the versioned JSON of routing accuracy: ``accuracy.json`` and ``accuracy_*.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, model_validator

from gks_eval.errors import ResultsError
from gks_eval.evidence.observed import files_named
from gks_eval.util.json_file import JsonFile
from gks_eval.util.schemas import AccuracySchema
from gks_eval.util.yaml import FrozenModel

__all__ = ["RoutingAccuracy", "SettingShares", "find_accuracy"]

Share = Annotated[float, Field(ge=-1e-6, le=1.0 + 1e-6)]
_FILE: Final = JsonFile("file of routing accuracy", ResultsError, "write it again", limit=1 << 27)


class SettingShares(FrozenModel):
    """One setting.

    Attributes:
        layers: The routed modules' names, L.
        tokens: (L,) share of tokens that go to their own expert.
        sequences: (L,) share of sequences that go to their own expert by majority.
        all_tokens: Mean of `tokens`.
        all_sequences: Share of sequences by majority over the tokens of all layers.
        confusion: (E, E) share of tokens by the text's expert and the chosen one.
    """

    layers: list[str]
    tokens: list[Share]
    sequences: list[Share]
    all_tokens: Share
    all_sequences: Share
    confusion: list[list[Share]]


class RoutingAccuracy(FrozenModel):
    """Routing accuracy of a library under several settings.

    Attributes:
        library: The library's name.
        experts: Names of its experts, E.
        chance: 1/E.
        rows: Held-out rows by expert.
        tokens: Their tokens by expert.
        settings: What was found, by setting.
        provenance: How the file was made.
    """

    schema_: AccuracySchema = Field(alias="schema")
    library: str
    experts: list[str]
    chance: Share
    rows: dict[str, int]
    tokens: dict[str, int]
    settings: dict[str, SettingShares]
    provenance: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shapes(self) -> RoutingAccuracy:
        for name, one in self.settings.items():
            if not len(one.layers) == len(one.tokens) == len(one.sequences):
                raise ValueError(f"settings.{name} does not have one share per layer")
            sides = {len(one.confusion), *map(len, one.confusion)}
            if sides != {len(self.experts)}:
                raise ValueError(f"settings.{name}.confusion is not experts x experts")
        return self


def find_accuracy(folder: Path) -> list[RoutingAccuracy]:
    """Read every file of routing accuracy under a folder.

    Raises:
        ResultsError: A file is broken or of another schema.
    """
    return [_FILE.read_as(path, RoutingAccuracy) for path in files_named(folder, "accuracy")]
