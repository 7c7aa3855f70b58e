"""Reads the versioned JSON of routing shares and of library geometry.

Files are found by name: ``routes.json``, ``routes_*.json``, ``geometry.json``,
``geometry_*.json``. Unknown schemas and unknown keys are refused, so a change of
meaning needs a new schema number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from gks_eval.errors import ResultsError
from gks_eval.util.json_file import JsonFile
from gks_eval.util.schemas import GeometrySchema, RoutingSchema
from gks_eval.util.yaml import FrozenModel

__all__ = ["LibraryGeometry", "RoutingShares", "TaskRouting", "files_named", "find_observed"]

Share = Annotated[float, Field(ge=-1e-6, le=1.0 + 1e-6)]
Cosine = Annotated[float, Field(ge=-1.0 - 1e-4, le=1.0 + 1e-4)]
Size = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_ROUTES: Final = JsonFile("routing file", ResultsError, "write it again", limit=1 << 27)
_GEOMETRY: Final = JsonFile("geometry file", ResultsError, "write it again", limit=1 << 27)


class TaskRouting(FrozenModel):
    """Routing on one task or text.

    Attributes:
        tokens: Tokens routed, per layer.
        share: Per layer and expert, (L, E): share of tokens with the expert among the top k.
        mean_coefficient: Per layer and expert, (L, E): mean coefficient over all tokens; a row
            sums to 1.
        entropy: Per layer, (L,): mean entropy of a token's coefficients, in nats.
    """

    tokens: Annotated[int, Field(ge=0)]
    share: list[list[Share]]
    mean_coefficient: list[list[Share]]
    entropy: list[Size]


class RoutingShares(FrozenModel):
    """Routing shares of one setting.

    Attributes:
        library: The library's name.
        setting: The setting in the grid's grammar, such as ``gks:avg``.
        top_k: Experts per token.
        experts: Their names, E.
        layers: The routed modules' names, L.
        tied_prototypes: Groups of them that share one prototype per expert.
        tasks: Routing by task.
        provenance: How the file was made.
    """

    schema_: RoutingSchema = Field(alias="schema")
    library: str
    setting: str
    top_k: Annotated[int, Field(ge=1)]
    experts: list[str]
    layers: list[str]
    tied_prototypes: list[list[str]] = Field(default_factory=list)
    tasks: dict[str, TaskRouting]
    provenance: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shapes(self) -> RoutingShares:
        for name, task in self.tasks.items():
            for field in ("share", "mean_coefficient"):
                table: list[list[float]] = getattr(task, field)
                if len(table) != len(self.layers) or any(
                    len(row) != len(self.experts) for row in table
                ):
                    raise ValueError(f"tasks.{name}.{field} is not layers x experts")
            if len(task.entropy) != len(self.layers):
                raise ValueError(f"tasks.{name}.entropy is not one number per layer")
        return self


class LibraryGeometry(FrozenModel):
    """Norms and angles of a library's adapters.

    Norms are Frobenius norms of dW = s B A; cosines are of the dW of all layers as one vector,
    unless a field is by layer.

    Attributes:
        library: The library's name.
        experts: Their names, E.
        general: Names of the general adapters, G.
        layers: The adapted modules' names, L.
        norm: Per expert, (L,): |dW|.
        residual_norm: By rule (``factors``, ``delta``, ...), per expert, (L,): |dW residual|.
        cosine_general: (E, G): each expert with each general adapter.
        cosine_experts: By rule, and ``none`` without subtraction, (E, E).
        prototype_similarity: Likewise, (E, E): mean over layers of |prototype . prototype|.
        rule_distance: Per expert, (L,): |factors - delta| / |delta|.
        mixture_norm: By rule or ``none``, by combine, (L,): norm of an even mixture of all experts.
        starts: By rule on factors: per expert the |cosine| of its A with the general A's and the
            remaining share of |dW|, and the experts with shared starts.
        provenance: How the file was made.
    """

    schema_: GeometrySchema = Field(alias="schema")
    library: str
    experts: list[str]
    general: list[str]
    layers: list[str]
    norm: dict[str, list[Size]]
    residual_norm: dict[str, dict[str, list[Size]]]
    cosine_general: list[list[Cosine]]
    cosine_experts: dict[str, list[list[Cosine]]]
    prototype_similarity: dict[str, list[list[Cosine]]]
    rule_distance: dict[str, list[Size]] = Field(default_factory=dict)
    mixture_norm: dict[str, dict[str, list[Size]]] = Field(default_factory=dict)
    starts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    provenance: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shapes(self) -> LibraryGeometry:
        squares = [*self.cosine_experts.values(), *self.prototype_similarity.values()]
        tables = [(table, len(self.experts)) for table in squares]
        tables.append((self.cosine_general, len(self.general)))
        for table, width in tables:
            if len(table) != len(self.experts) or any(len(row) != width for row in table):
                raise ValueError("a table of cosines does not fit experts and general")
        return self


def find_observed(folder: Path) -> tuple[list[RoutingShares], list[LibraryGeometry]]:
    """Read every routing and geometry file under a folder.

    Raises:
        ResultsError: A file is broken or of another schema.
    """
    routes = [_ROUTES.read_as(path, RoutingShares) for path in files_named(folder, "routes")]
    geometry = [
        _GEOMETRY.read_as(path, LibraryGeometry) for path in files_named(folder, "geometry")
    ]
    return routes, geometry


def files_named(folder: Path, stem: str) -> list[Path]:
    """Return ``STEM.json`` and ``STEM_*.json`` anywhere under a folder, sorted."""
    return sorted([*folder.rglob(f"{stem}.json"), *folder.rglob(f"{stem}_*.json")])
