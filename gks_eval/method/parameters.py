"""Checks the values of a method's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gks_eval.errors import UsageError, whole_reason
from gks_eval.method.declaration import Parameters

__all__ = ["checked"]


def checked(parameters: type[Parameters], values: Mapping[str, object]) -> Parameters:
    """Return a method's parameters with these values.

    Raises:
        UsageError: A value does not fit; the message says which values do.
    """
    fields = parameters.fields()
    # lm-eval's command line turns the word `none` into None.
    values = {
        name: "none" if value is None and "none" in get_args(fields[name].annotation) else value
        for name, value in values.items()
    }
    for name, value in values.items():
        field = fields[name]
        if isinstance(value, bool) and field.annotation is not bool:
            raise UsageError(f"{name}={value}: {_expectation(field)}.")
    try:
        return parameters(**values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0]) if fault["loc"] else ""
        if name in values:
            raise UsageError(f"{name}={values[name]}: {_expectation(fields[name])}.") from None
        why = fault["msg"].removeprefix("Value error, ").rstrip(".")
    except UsageError:
        raise
    except Exception as error:  # of a method of another package
        why = f"{type(error).__name__}: {whole_reason(error)}"
    given = ", ".join(f"{name}={value}" for name, value in values.items())
    raise UsageError(f"{given}: {why}; give other values.")


def _expectation(field: FieldInfo) -> str:
    """Return which values a parameter takes, from its type and bounds."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expected" in extra:
        return f"needs {extra['expected']}"
    # None is a default that depends on the library; it cannot be given.
    types = [one for one in get_args(field.annotation) if one is not type(None)]
    wanted = types[0] if len(types) == 1 else field.annotation
    choices = [str(choice) for choice in get_args(wanted)]
    kinds: dict[object, str] = {int: "a whole number", float: "a number", bool: "True or False"}
    kind = kinds.get(wanted, f"one of {', '.join(choices)}" if choices else "a value")
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    bounds = [
        f"{word} {getattr(bound, name):g}"
        for name, word in words.items()
        for bound in field.metadata
        if getattr(bound, name, None) is not None
    ]
    return f"needs {kind} {' and '.join(bounds)}".rstrip()
