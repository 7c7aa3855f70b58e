"""Plan for reproducing a published table: command, downloads, time."""

from __future__ import annotations

from gks_eval.evidence.paper import Family, PaperTable

__all__ = ["plan"]

_SOURCES = {
    "piqa": "baber/piqa",
    "boolq": "google/boolq",
    "swag": "allenai/swag",
    "hellaswag": "Rowan/hellaswag",
    "arc_easy": "allenai/ai2_arc",
    "arc_challenge": "allenai/ai2_arc",
    "winogrande": "allenai/winogrande",
    "openbookqa": "allenai/openbookqa",
    "bbh": "SaylorTwift/bbh",
    "hellaswag_de": "alexandrainst/m_hellaswag",
    "hellaswag_fr": "alexandrainst/m_hellaswag",
    "arc_challenge_de": "alexandrainst/m_arc",
    "arc_challenge_fr": "alexandrainst/m_arc",
    "mmlu_de": "alexandrainst/m_mmlu",
    "mmlu_fr": "alexandrainst/m_mmlu",
    "xnli_de": "facebook/xnli",
    "xnli_fr": "facebook/xnli",
}
# Model on the hub, number of parameters, size of its 16-bit weights.
_MODELS = {
    "phi-3-mini": ("microsoft/Phi-3-mini-4k-instruct", 3.8e9, "7.6 GB"),
    "phi-2": ("microsoft/phi-2", 2.8e9, "5.6 GB"),
}
_TOKENS_PER_ITEM = 250
_FLOPS = 2e14


def plan(
    name: str, table: PaperTable, family: Family = "gks_paper", output: str = "results"
) -> str:
    """Return the plan as text, with an estimate of the time and its assumptions."""
    settings = ",".join(
        f"{row}={table.settings[row]}" if row in table.settings else row.replace("gks_", "gks:")
        for row in table.rows
    )
    settings = f"'{settings}'" if ";" in settings else settings  # a shell would end the command
    model, parameters, size = _MODELS[table.model]
    sources = list(dict.fromkeys(_SOURCES[column] for column in table.columns))
    lines = [
        f"# {table.title}",
        f"gks-eval grid --library {table.library} --settings {settings} "
        f"--tasks {_tasks(table, table.family(family))} --batch-size auto --output {output}/{name}",
        "",
        f"then:      gks-eval paper --table {name} --results {output}/{name}"
        + (" --family gks" if family == "gks" else ""),
        f"model:     {model} (about {size})",
    ]
    if table.library == "phi2":
        lines.append(
            "adapters:  made locally first: gks-eval convert mttl and gks-eval train (see the "
            "library's recipe)"
        )
    else:
        lines.append("adapters:  named in library.yaml, a few MB each, downloaded on first use")
    lines.append(f"data sets: {', '.join(sources)}")
    known = sum(table.full_split.values())
    if known:
        seconds = 2 * parameters * _TOKENS_PER_ITEM * known / _FLOPS
        total = seconds * len(table.rows) / 60
        lines.append(
            f"items:     {known:,} x {len(table.rows)} settings; estimated, not measured: about "
            f"{total:.0f} minutes on a GPU that sustains {_FLOPS / 1e12:.0f} TFLOP/s, at 2 FLOP "
            f"per parameter and token and {_TOKENS_PER_ITEM} tokens per item"
        )
    else:
        lines.append("items:     not known beforehand; add --limit 100 for a first look")
    return "\n".join(lines) + "\n"


def _tasks(table: PaperTable, family: Family) -> str:
    if table.group:
        return f"{family}_{table.group}"
    if family == table.protocol:
        return family
    return ",".join(f"{family}_{column}" for column in table.columns)
