"""Which base model a run uses: found, and checked, before any weight is read.

The model class, the grid, training and the benchmark all resolve a base here and load it with
`gks_eval.model.load_base`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.library.manifest import LibraryConfig
from gks_eval.method.setting import NOT_GIVEN, NotGiven
from gks_eval.model.embedded import resolve_base_model
from gks_eval.model.quantized import four_bits, saved_quantization
from gks_eval.util.digest import digest

__all__ = [
    "MODEL_ARGUMENTS",
    "RECIPE",
    "BaseWords",
    "ComputeDtype",
    "Quantization",
    "ResolvedBase",
    "check_quantization",
    "content_stamp",
    "recipe_base",
    "relative_to_recipe",
    "resolve_base",
]

Quantization = Literal["none", "nf4", "int8"]
ComputeDtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class BaseWords:
    """What error messages call a caller's arguments.

    Attributes:
        name: The argument that names the base.
        smaller: The arguments that make the base need less memory.
        float32: The argument that loads the base in float32.
        free_arguments: Whether users pass further arguments to transformers, which may be the
            reason why a base does not load.
    """

    name: str
    smaller: str
    float32: str
    free_arguments: bool = False


MODEL_ARGUMENTS: Final = BaseWords(
    "pretrained=...", "load_in_4bit=True or dtype=bfloat16", "dtype=float32", free_arguments=True
)
RECIPE: Final = BaseWords(
    "`base_model`", "`load: {quantization: nf4}` or `dtype: bfloat16`", "`load: {dtype: float32}`"
)


@dataclass(frozen=True)
class ResolvedBase:
    """The base of a run.

    Attributes:
        name: As the user, the library or the recipe names it.
        source: What transformers loads: a hub id or a local folder.
        revision: On the hub; None for its default.
        quantization: What is asked for; bitsandbytes makes ``nf4`` and ``int8`` on loading.
        differs_from_library: Whether the library was made for a base of another name.
        compute_dtype: The dtype in which ``nf4`` layers compute.
        words: What messages call the arguments.
    """

    name: str
    source: str
    revision: str | None = None
    quantization: Quantization = "none"
    differs_from_library: bool = False
    compute_dtype: ComputeDtype = "bfloat16"
    words: BaseWords = MODEL_ARGUMENTS

    @property
    def storage(self) -> str:
        """What is asked for, as `gks_eval.model.quantized.quantization_of` describes weights."""
        if self.quantization != "nf4":
            return self.quantization
        return four_bits("nf4", double=False, compute=self.compute_dtype)


def resolve_base(
    pretrained: str | None = None,
    revision: str | NotGiven | None = NOT_GIVEN,
    manifest: LibraryConfig | None = None,
    load_in_4bit: bool | int | str | NotGiven = NOT_GIVEN,
    load_in_8bit: bool | int | str | NotGiven = NOT_GIVEN,
    compute_dtype: Any = NOT_GIVEN,
    words: BaseWords = MODEL_ARGUMENTS,
) -> ResolvedBase:
    """Combine the arguments with what library.yaml says; an argument wins.

    Raises:
        UsageError: No base is named, both 4 and 8 bits are asked for, or a compute dtype is
            unknown or given for a base that is not in 4 bits.
        LibraryError: An embedded base is named whose package is not installed.
    """
    four, eight = _switch("load_in_4bit", load_in_4bit), _switch("load_in_8bit", load_in_8bit)
    if four and eight:
        raise UsageError("load_in_4bit and load_in_8bit are both set; choose one.")
    name = pretrained or (manifest.base_model if manifest else None)
    if name is None:
        raise UsageError("name the base model with pretrained=..., or a library that does.")
    own_revision = manifest.revision if manifest and name == manifest.base_model else None
    given = None if isinstance(revision, NotGiven) else revision
    quantization: Quantization = manifest.load.quantization if manifest else "none"
    if four:
        quantization = "nf4"
    elif eight:
        quantization = "int8"
    elif (four is False and quantization == "nf4") or (eight is False and quantization == "int8"):
        quantization = "none"
    compute = _compute_dtype(compute_dtype)
    if compute is not None and quantization != "nf4":
        raise UsageError(
            f"bnb_4bit_compute_dtype={compute} has no effect on a base that is not loaded in 4 "
            "bits; add load_in_4bit=True, or use dtype= instead."
        )
    return ResolvedBase(
        name=name,
        source=resolve_base_model(str(name)),
        revision=given or own_revision,
        quantization=quantization,
        differs_from_library=manifest is not None and name != manifest.base_model,
        compute_dtype=compute or "bfloat16",
        words=words,
    )


def _switch(name: str, value: bool | int | str | NotGiven) -> bool | None:
    if isinstance(value, NotGiven):
        return None
    # lm-eval's command line makes 1 an int and leaves `true` a word.
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise UsageError(f"{name}={value} is neither True nor False.")
    return word in ("true", "1")


def _compute_dtype(value: Any) -> ComputeDtype | None:
    if isinstance(value, NotGiven) or value is None:
        return None
    given = str(value).strip().removeprefix("torch.")
    for known in get_args(ComputeDtype):
        if given == known:
            found: ComputeDtype = known
            return found
    near = did_you_mean(given, get_args(ComputeDtype))
    raise UsageError(f"bnb_4bit_compute_dtype={value} is unknown; {near}.")


def recipe_base(
    name: str, root: Path, revision: str | None, quantization: Quantization
) -> ResolvedBase:
    """Return the base of a recipe.

    Args:
        name: The recipe's ``base_model``.
        root: The recipe's folder.
        revision: On the hub.
        quantization: How training holds it.

    Raises:
        UsageError: An embedded base of this name does not exist.
        LibraryError: The package of an embedded base is not installed.
    """
    name = relative_to_recipe(name, root)
    return ResolvedBase(name, resolve_base_model(name), revision, quantization, words=RECIPE)


def relative_to_recipe(name: str, root: Path) -> str:
    """Return the name of a base, with a relative path resolved against the recipe's folder."""
    return str((root / name).resolve()) if name.startswith(".") else name


def content_stamp(source: str) -> str | None:
    """Return a digest that changes when a local model folder does; None for a hub id.

    It covers the names, sizes and times of all files, because reading gigabytes of weights would
    cost more than the evaluation that it protects.
    """
    folder = Path(source)
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return digest({"files": facts})


def check_quantization(base: ResolvedBase, config: object) -> None:
    """Refuse to quantise a base that is saved quantised in another way.

    transformers would keep what is saved, with a warning at best. A recipe must name the saved
    quantisation itself, because the trained adapters record it.

    Raises:
        UsageError: The base is saved in another quantisation than the one asked for.
    """
    saved, asked = saved_quantization(config), base.storage
    if saved in ("none", asked) or (asked == "none" and base.words is not RECIPE):
        return
    start = f"base model {base.name} is saved quantised ({saved}) and cannot be loaded "
    if base.words is RECIPE:
        raise UsageError(
            f"{start}with `quantization: {asked}`; name an unquantised base in `base_model`."
        )
    argument = "load_in_8bit" if base.quantization == "int8" else "load_in_4bit"
    raise UsageError(
        f"{start}as {asked}; give {argument}=False to run it as it is saved, or use an unquantised "
        "base."
    )
