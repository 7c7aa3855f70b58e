"""Checks of model arguments by their names and kinds, before anything is looked up or loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gks_eval.errors import UsageError, did_you_mean

__all__ = ["check_near", "check_unknown", "check_values"]

# What transformers' from_pretrained takes besides the attributes of the model's config.
FROM_PRETRAINED: Final = frozenset(
    "attn_implementation cache_dir code_revision device_map experts_implementation "
    "force_download generation_config ignore_mismatched_sizes key_mapping local_files_only "
    "low_cpu_mem_usage max_memory offload_buffers offload_state_dict proxies token "
    "use_kernels use_safetensors variant weights_only".split()
)


def check_near(arguments: Iterable[str], own: frozenset[str]) -> None:
    """Refuse misspelt names of our arguments at once, before a library or base is looked up.

    Any other unknown name may be an attribute of the base's config, which is read later: see
    `check_unknown`.

    Args:
        arguments: Names that the harness's own model class does not take.
        own: Names of our arguments.

    Raises:
        UsageError: A name is close to one of ours.
    """
    for name in arguments:
        # A stricter cutoff than elsewhere: bases have attributes such as attn_temperature_tuning.
        near = difflib.get_close_matches(name, own - {name}, n=1, cutoff=0.8)
        if near and name not in FROM_PRETRAINED:
            raise UsageError(f"unknown argument {name}; did you mean {near[0]!r}?")


def check_unknown(
    arguments: Iterable[str], known: frozenset[str], config: object | None = None
) -> None:
    """Refuse arguments that nothing reads, before a long load ignores them or fails on them.

    Args:
        arguments: Their names.
        known: Names that the model class takes.
        config: The base's config, whose attributes transformers lets arguments override.

    Raises:
        UsageError: An argument is unknown; the sentence suggests the nearest name.
    """
    for name in arguments:
        if name not in known and name not in FROM_PRETRAINED and not hasattr(config, name):
            near = did_you_mean(name, known | FROM_PRETRAINED)
            hint = near if near.startswith("did") else "docs/running.md lists the arguments"
            raise UsageError(f"unknown argument {name}; {hint}.")  # its value may be a secret


def check_values(library: object, revision: object, hf_arguments: Mapping[str, Any]) -> None:
    """Refuse values that lm-eval's command line misread, and lengths that are not lengths.

    Raises:
        UsageError: A name became a number or a truth value, or a value is unusable.
    """
    for name, text in (("library", library), ("revision", revision)):
        if isinstance(text, (int, float)):  # True too
            raise UsageError(
                f"{name}={text}: lm-eval reads the word as a number or as true or false; "
                f"write it in quotes, '{name}=\"...\"'."
            )
    if library == "":
        raise UsageError("library= names nothing; give a bundled name, a folder or a hub id.")
    length = hf_arguments.get("max_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise UsageError(f"max_length={length} is no whole number above 0.")
