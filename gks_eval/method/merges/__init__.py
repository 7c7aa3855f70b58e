"""Merges: all experts become one adapter; one merge per file."""
