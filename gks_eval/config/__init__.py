"""Typed, frozen models of every file and setting that a user writes."""
