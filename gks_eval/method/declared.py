"""Checks declarations of other packages when they are loaded or added."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from gks_eval.errors import GksError, whole_reason
from gks_eval.method.declaration import Merge, Method, Parameters, Router, Rule

__all__ = ["OTHER_ARGUMENTS", "RESERVED", "fault_of"]

RESERVED: Final = frozenset(
    "base gks expert merge none avg experts true false rule router combine subtract preset".split()
)
"""Words of settings and of lm-eval's command line, which no method can have as its name."""
OTHER_ARGUMENTS: Final = frozenset(
    "rule router combine subtract preset library scoring pretrained backend tokenizer truncation "
    "logits_cache subfolder revision dtype max_length device batch_size max_batch_size "
    "softmax_dtype mixed_precision_dtype trust_remote_code use_fast_tokenizer add_bos_token "
    "prefix_token_id parallelize tp_plan max_memory_per_gpu max_cpu_memory offload_folder peft "
    "delta autogptq gptqmodel gguf_file think_end_token enable_thinking chat_template_args token "
    "load_in_4bit load_in_8bit bnb_4bit_compute_dtype".split()
)
"""Arguments of settings and of the model, which no parameter can have as its name."""


def fault_of(method: Any, kind: type[Method]) -> str | None:
    """Return what is wrong with a declaration, as half a sentence; None if it can be used."""
    if not isinstance(method, kind):
        return f"it is no {kind.__name__}"
    name: Any = method.name
    if not isinstance(name, str) or not _is_word(name.replace("-", "_")):
        return f"its name {name!r:.80} has other characters than letters, digits, - and _"
    if name.lower() in RESERVED:
        return f"its name {name} is a word of settings"
    for attribute in ("summary", "paper", "needs"):
        if not isinstance(getattr(method, attribute), str):
            return f"its {attribute} is no text"
    if not all(map(callable, _functions(method))):
        return "it lacks its function"
    parameters: Any = method.parameters
    if not isinstance(parameters, type) or not issubclass(parameters, Parameters):
        return "its parameters are no subclass of Parameters"
    for parameter in parameters.fields():
        if not _is_word(parameter) or parameter in OTHER_ARGUMENTS:
            return f"its parameter {parameter!r:.80} has the name of another argument, or no name"
    return _fault_of_defaults(parameters)


def _is_word(name: str) -> bool:
    return name.isidentifier() and len(name) <= 64


def _functions(method: Method) -> list[Callable[..., Any] | None]:
    if isinstance(method, Rule):
        return [method.residual]
    if isinstance(method, Router):
        return [method.prepare]
    assert isinstance(method, Merge)
    return [method.combine]


def _fault_of_defaults(parameters: type[Parameters]) -> str | None:
    for name, field in parameters.model_fields.items():
        if field.is_required():
            return f"its parameter {name} has no default"
    try:
        held = parameters().model_dump(mode="json", warnings="error")
        if parameters(**held) != parameters():
            return "the defaults of its parameters change when they are written as JSON"
        json.dumps(held, allow_nan=False)
        if not isinstance(parameters().by_context, bool):
            return "by_context of its parameters is neither True nor False"
        for experts in (1, 4):
            try:
                parameters().fitted(experts).model_dump()
            except GksError:
                continue  # they need more experts
    except Exception as error:
        return f"the defaults of its parameters are no usable values ({whole_reason(error)})"
    return None
