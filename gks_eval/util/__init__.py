"""Helpers for every folder: files, JSON, YAML, paths, the process group."""
