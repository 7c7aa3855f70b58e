"""Adapters on disk: found, read, checked, measured and written."""
