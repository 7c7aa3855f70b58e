"""The model card of an exported library: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from gks_eval.library.hub import HubSource
from gks_eval.library.load import Library
from gks_eval.method.grammar import EXPERT, EXPERTS
from gks_eval.method.lora import LoraPair
from gks_eval.method.registry import ROUTERS
from gks_eval.method.setting import Setting

__all__ = ["CARD", "Facts", "model_card"]

CARD: Final = "README.md"
_EMBEDDED: Final = "embedded:"

_LOAD: Final = """\
{needed}from transformers import AutoModelForCausalLM

folder = "."  # this folder, or the name of its repository on the hub
base = AutoModelForCausalLM.from_pretrained({base})
"""
_WITH_PEFT: Final = """\
With PEFT:

```python
from peft import PeftModel
{load}model = PeftModel.from_pretrained(base, folder)
```
"""
_WITH_ARROW: Final = """\
With PEFT's Arrow, which mixes the experts' outputs{mixing}. `use_gks=True` would subtract again:

```python
from peft import ArrowConfig, create_arrow_model
{load}model = create_arrow_model(
    base_model=base,
    task_specific_adapter_paths=[f"{{folder}}/{{path}}" for path in {paths}],
    arrow_config=ArrowConfig(top_k={top_k}, router_temperature={temperature}, use_gks=False),
)
```
"""
_WITH_GKS_EVAL: Final = """\
With lm-eval and gks_eval, in this folder; on the hub, `library` is the name of the repository:

```sh
lm_eval --model gks_arrow --model_args {} --tasks ...
```
"""


@dataclass(frozen=True)
class Facts:
    """What a card says in addition to the library and the setting.

    Attributes:
        title: Its heading.
        record: Where the adapters come from, as in ``library.yaml``.
        license: License of the adapters; None if unknown.
        places: The folder of each adapter, relative to the card, by name.
        adapters: The updates of each adapter by layer, by name.
        hashes: SHA-256 of each adapter's weights, by name.
        rank: The rank that the updates were truncated to; None if they are exact.
    """

    title: str
    record: Mapping[str, Any]
    license: str | None
    places: Mapping[str, str]
    adapters: Mapping[str, Mapping[str, LoraPair]]
    hashes: Mapping[str, str]
    rank: int | None


def model_card(library: Library, setting: Setting, facts: Facts) -> str:
    """Return the card: front matter, method, adapters with hashes, how to use them.

    Args:
        library: The source.
        setting: What was exported of it.
        facts: Everything else that the card states.
    """
    base = library.config.base_model
    front = {
        # The hub accepts only names of hub models here.
        **({"base_model": base} if HubSource.looks_like(base) else {}),
        "library_name": "peft",
        "license": facts.license or "unknown",
        "tags": ["lora", "gks-eval", *(["genknowsub"] if setting.subtract else [])],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {facts.title}\n",
        _method(library, setting, facts),
        _table(facts),
        "## Use\n",
        *_usage(base, library, setting, facts),
        "## Provenance\n",
        _provenance(facts),
    ]
    return "\n".join(parts)


def _method(library: Library, setting: Setting, facts: Facts) -> str:
    count = len(facts.places)
    first = f"{count} LoRA adapters" if count > 1 else "One LoRA adapter"
    lines = [f"{first} for `{library.config.base_model}`, exported by gks_eval."]
    languages = library.languages(setting)
    rule, _ = setting.rule_method()
    if languages == (EXPERTS,):
        lines.append(
            "The mean of all experts is already subtracted from each expert, by the rule "
            f"`{rule.name}` ({rule.paper})."
        )
    elif languages:
        lines.append(
            "General knowledge is already subtracted from each expert, by the rule "
            f"`{rule.name}` ({rule.paper}). General adapters: {', '.join(languages)}."
        )
    elif rule.joint is not None:
        lines.append(f"The experts are changed by the rule `{rule.name}` ({rule.paper}).")
    else:
        lines.append("Nothing is subtracted from the experts.")
    if setting.target is not None:
        lines.append(f"The general adapter {setting.target} is mixed into each expert.")
    if setting.stand_ins.used:
        replaced = setting.stand_ins.model_dump().items()
        lines.append(
            "This is a control, in which stand-ins replace adapters of the library: "
            f"`{';'.join(f'{name}={value}' for name, value in replaced)}`."
        )
    if setting.merge is not None:
        merge, _ = setting.merge_method()
        experts = ", ".join(library.experts)
        lines.append(f"The experts {experts} are merged by `{merge.name}` ({merge.paper}).")
    elif setting.expert is None:
        router, _ = setting.router_method()
        lines.append(f"The router `{router.name}` mixes the experts per token ({router.paper}).")
        for entry in library.config.tied_prototypes:
            names = ", ".join(f"`{name}`" for name in entry.layers)
            lines.append(f"The layers {names} share one prototype per expert ({entry.op}).")
    if facts.rank is not None:
        error = facts.record["relative_error"]
        lines.append(
            f"Updates are truncated to rank {facts.rank} by SVD; the relative Frobenius error "
            f"over all layers is {error:.3g}."
        )
    return "\n".join(lines) + "\n"


def _table(facts: Facts) -> str:
    rows = ["| adapter | rank | layers | SHA-256 of the weights |", "|---|---|---|---|"]
    for name, pairs in facts.adapters.items():
        ranks = sorted({pair.rank for pair in pairs.values()})
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        rows.append(f"| `{name}` | {shown} | {len(pairs)} | `{facts.hashes[name]}` |")
    return "\n".join(rows) + "\n"


def _usage(base: str, library: Library, setting: Setting, facts: Facts) -> list[str]:
    embedded = base.startswith(_EMBEDDED)
    name = base.removeprefix(_EMBEDDED)
    load = _LOAD.format(
        needed="import gks_eval\n" if embedded else "",
        base=f"gks_eval.embedded_model({name!r})" if embedded else repr(name),
    )
    one, place = next(iter(facts.places.items()))
    if place == ".":
        router = f"{EXPERT}{one}" if one in ROUTERS else one
        arguments = {"library": ".", "subtract": "none", "router": router}
        return [_WITH_PEFT.format(load=load), _with_gks_eval(arguments)]
    method, _ = setting.router_method()
    given = {
        name: value
        for name, value in setting.identity().items()
        if name in method.parameters.fields() and value is not None
    }
    combine = mixes_by(setting, facts.rank)
    arguments = {"library": ".", "subtract": "none", "router": setting.router, "combine": combine}
    parts = [_with_gks_eval(arguments | given)]
    if combine != setting.combine:
        parts.append(
            "The setting mixes the experts' factors. The result depends on how each update is "
            f"factored, and these adapters are factored differently: use combine={combine}.\n"
        )
    if _is_arrow_of_peft(library, setting):
        mixing = "" if setting.combine == "outputs" else "; the setting mixes their factors"
        parts.append(
            _WITH_ARROW.format(load=load, mixing=mixing, paths=[*facts.places.values()], **given)
        )
    return parts


def _is_arrow_of_peft(library: Library, setting: Setting) -> bool:
    """Return whether PEFT's Arrow can route as the setting does."""
    if setting.router != "arrow" or library.tied:
        return False
    _, parameters = setting.router_method()
    own = parameters.model_dump(exclude={"top_k", "temperature"}, exclude_defaults=True)
    return not own and setting.parameters["temperature"] > 0


def _with_gks_eval(arguments: Mapping[str, Any]) -> str:
    return _WITH_GKS_EVAL.format(",".join(f"{name}={value}" for name, value in arguments.items()))


def mixes_by(setting: Setting, rank: int | None) -> str:
    """Return the combine that gives the setting's function with the exported adapters.

    The result of mixing factors depends on how each update is factored. The factors change when
    updates are truncated. They also change under a router with a basis if the rule is linear:
    the setting puts the task adapters into that basis, not the residuals that are exported.
    """
    router, _ = setting.router_method()
    rule, _ = setting.rule_method()
    subtracted_once = bool(setting.subtract) and rule.linear and router.sums_to_one
    same_factors = rank is None and not (subtracted_once and router.basis is not None)
    return setting.combine if same_factors else "outputs"


def _provenance(facts: Facts) -> str:
    record = {name: value for name, value in facts.record.items() if value not in (None, [])}
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    return f"`library.yaml` records where the adapters come from:\n\n```yaml\n{text}```\n"
