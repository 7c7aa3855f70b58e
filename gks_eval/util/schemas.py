"""Schemas of the files that the model's wing writes and the evidence reads.

A change of meaning gets a new number.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = [
    "ACCURACY",
    "GEOMETRY",
    "OVERLAP",
    "PROFILE",
    "REPLICATES",
    "ROUTING",
    "AccuracySchema",
    "GeometrySchema",
    "OverlapSchema",
    "ProfileSchema",
    "ReplicatesSchema",
    "RoutingSchema",
]

RoutingSchema = Literal["gks_eval.routing/1"]
ROUTING: Final[RoutingSchema] = "gks_eval.routing/1"
GeometrySchema = Literal["gks_eval.geometry/1"]
GEOMETRY: Final[GeometrySchema] = "gks_eval.geometry/1"
AccuracySchema = Literal["gks_eval.routing_accuracy/1"]
ACCURACY: Final[AccuracySchema] = "gks_eval.routing_accuracy/1"
OverlapSchema = Literal["gks_eval.overlap/1"]
OVERLAP: Final[OverlapSchema] = "gks_eval.overlap/1"
ProfileSchema = Literal["gks_eval.profile/1"]
PROFILE: Final[ProfileSchema] = "gks_eval.profile/1"
ReplicatesSchema = Literal["gks_eval.replicates/1"]
REPLICATES: Final[ReplicatesSchema] = "gks_eval.replicates/1"
