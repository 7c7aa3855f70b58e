"""Merges: one adapter made out of all experts, one merge per file."""
