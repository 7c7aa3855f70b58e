"""The results of a benchmark run, as JSON with the schema ``gks_eval.bench/1``.

Seconds are per call, and ratios are of seconds. Contestants are ``base`` (no
adapters), ``routed`` (ours), ``peft`` (PEFT's Arrow); in evaluations they carry the scorer and the
batch size: ``peft 8``, ``base 8``, ``plain 8``, ``packed``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from gks_eval.errors import ResultsError
from gks_eval.util.json_file import JsonFile
from gks_eval.util.yaml import FrozenModel

__all__ = [
    "SCHEMA", "Agreement", "Bar", "Evaluation", "EvaluationSet", "ExpertsRow", "FullEvaluation",
    "FullModel", "GenerationRow", "Growth", "GrowthPoint", "LayerRow", "LibraryRow",
    "ModelForward", "ModelRow", "Phase", "PlainForward", "Ratio", "Record", "RouterRow", "Startup",
    "Timing", "read_record",
]  # fmt: skip

SCHEMA: Final = "gks_eval.bench/1"
_FILE: Final = JsonFile(f"benchmark record ({SCHEMA})", ResultsError, "run the benchmark again")


class Timing(FrozenModel):
    """Seconds per call, over interleaved rounds.

    Attributes:
        median: Median over the rounds.
        minimum: Minimum over the rounds.
        maximum: Maximum over the rounds.
        rounds: One number per round, in order.
        calls: Number of calls per round; the round's number is their mean.
    """

    median: float
    minimum: float
    maximum: float
    rounds: tuple[float, ...]
    calls: int


class Ratio(FrozenModel):
    """How many times as long one contestant took as another.

    Attributes:
        of_medians: Ratio of the two medians.
        median_of_rounds: Median of the rounds' ratios, which does not depend on drift of the
            machine's speed.
    """

    of_medians: float
    median_of_rounds: float


class LayerRow(FrozenModel):
    """One linear layer: the base's product, and the two routed updates without it.

    Attributes:
        width_in: K.
        width_out: D.
        tokens: T.
        seconds: Of ``base``, ``routed``, ``peft``; in 16-bit layers also of ``prototypes``, the
            float32 product of tokens and prototypes, which is a part of ``routed``.
        peft_over_routed: Speed-up.
        routed_over_base: Cost of the update.
        peak_bytes: Allocated by ``routed`` and ``peft``, their results included.
        max_difference: Largest entry of the difference of the two updates.
        largest: Largest entry of PEFT's update, both by magnitude.
    """

    width_in: int
    width_out: int
    tokens: int
    seconds: dict[str, Timing]
    peft_over_routed: Ratio
    routed_over_base: Ratio
    peak_bytes: dict[str, int]
    max_difference: float
    largest: float


class RouterRow(FrozenModel):
    """The routed update of one linear layer under several routers, one general adapter subtracted.

    Seconds are processor time on a CPU.

    Attributes:
        width_in: K.
        width_out: D.
        tokens: T.
        rank: Rank of all adapters.
        rule: How the general adapter is subtracted.
        seconds: By router.
        over_uniform: By router.
        over_arrow: By router.
    """

    width_in: int
    width_out: int
    tokens: int
    rank: int
    rule: str
    seconds: dict[str, Timing]
    over_uniform: dict[str, Ratio]
    over_arrow: dict[str, Ratio]


class ExpertsRow(FrozenModel):
    """One layer with a library of some size: the base's forward, and the routed one's.

    Attributes:
        layer: ``K->D`` of a linear layer, or a whole transformer layer.
        experts: Experts of the library.
        tokens: T.
        seconds: Of ``base`` and ``routed``; at a linear layer also of the update alone by each
            plan of `gks_eval.method.mixing.plan`.
        routed_over_base: Cost of the routed layer, the base's part included.
        plan: The plan that ``routed`` follows at a linear layer; else empty.
        plan_over_fastest: Cost of that plan's update relative to the fastest plan's.
    """

    layer: str
    experts: int
    tokens: int
    seconds: dict[str, Timing]
    routed_over_base: Ratio
    plan: str = ""
    plan_over_fastest: Ratio | None = None


Phase = Literal["prefill", "decode", "decode, captured"]


class ModelForward(FrozenModel):
    """One forward of a transformer without its head.

    Attributes:
        phase: ``prefill``; ``decode``, one token per row after `cached` ones; or ``decode,
            captured``, as a CUDA graph.
        batch: Rows.
        tokens: Tokens per row.
        cached: Tokens whose keys and values are cached.
        seconds: Of ``base`` and ``routed``; in the rows `model` also of ``peft``, and of ``hooks``
            and ``products``, see `benchmarks.floor`.
        routed_over_base: Cost of our routing.
    """

    phase: Phase
    batch: int
    tokens: int
    cached: int
    seconds: dict[str, Timing]
    routed_over_base: Ratio


class ModelRow(ModelForward):
    """A forward that PEFT runs too.

    Attributes:
        model: Description of the model.
        peft_over_base: Cost of PEFT's routing.
    """

    model: str
    peft_over_base: Ratio


class FullEvaluation(FrozenModel):
    """The packed scorer on random texts, and what follows for the paper's Table 1.

    Attributes:
        requests: Texts.
        distinct_tokens: Distinct token prefixes.
        computed_tokens: Tokens run, padding included.
        seconds: Of ``base`` and ``routed``.
        tokens_per_second: Distinct tokens of ``routed``.
        table_tokens: Distinct tokens of all sets of Table 1, as `benchmarks.table_one` assumes.
        table_settings: Its rows.
        table_minutes: Time of all settings at this speed, without loading and tokenising.
    """

    requests: int
    distinct_tokens: int
    computed_tokens: int
    seconds: dict[str, Timing]
    tokens_per_second: float
    table_tokens: float
    table_settings: int
    table_minutes: float


class FullModel(FrozenModel):
    """A model of Phi-3-mini's size with one kind of weights.

    Attributes:
        weights: ``bfloat16`` or ``nf4``.
        layers: Decoder layers.
        hidden: Width.
        forwards: Prefill and decoding.
        evaluation: The packed scorer.
        peak_bytes: Largest memory in use on the GPU; None on a CPU.
    """

    weights: Literal["bfloat16", "nf4"]
    layers: int
    hidden: int
    forwards: tuple[ModelForward, ...]
    evaluation: FullEvaluation
    peak_bytes: int | None


class Agreement(FrozenModel):
    """Agreement of predicted choices with the reference.

    Attributes:
        items: Number of items.
        equal: Number of items with the same predicted choice.
        max_difference: Largest difference of a log-likelihood.
    """

    items: int
    equal: int
    max_difference: float


class EvaluationSet(FrozenModel):
    """The log-likelihood requests of one set, or of several at once.

    Attributes:
        items: Items.
        requests: Choices of all items together.
        distinct_tokens: Distinct token prefixes, the least that must be computed.
        computed_tokens: Tokens that each contestant's transformer ran, padding included.
        seconds: By contestant, tokenisation included.
        peer_best: PEFT's fastest batch size here.
        peft_over_packed: Speed-up of ``packed`` over `peer_best`.
    """

    items: int
    requests: int
    distinct_tokens: int
    computed_tokens: dict[str, int]
    seconds: dict[str, Timing]
    peer_best: str
    peft_over_packed: Ratio


class PlainForward(FrozenModel):
    """The routed model's plain forward, without head, over several batch shapes.

    Attributes:
        seconds: By shape, ``rows x tokens``.
        tokens_per_second: By shape.
        best: The fastest shape.
        packed_tokens_per_second: Distinct tokens per second of the packed evaluation, which also
            tokenises, plans and computes the head.
        share: `packed_tokens_per_second` relative to the best shape's.
    """

    seconds: dict[str, Timing]
    tokens_per_second: dict[str, float]
    best: str
    packed_tokens_per_second: float
    share: float


class Evaluation(FrozenModel):
    """A collection of sets on one model.

    Attributes:
        name: ``demo`` or ``mix``.
        base: Base model.
        library: Adapters.
        experts: Number of experts.
        together: All sets in one call, as in lm-eval.
        alone: Each set in a separate call.
        agreement: Agreement with ``peft 1``, by contestant, over all sets together.
        forward: Upper bound for the packed scorer.
    """

    name: str
    base: str
    library: str
    experts: int
    together: EvaluationSet
    alone: dict[str, EvaluationSet]
    agreement: dict[str, Agreement]
    forward: PlainForward


class Startup(FrozenModel):
    """Time of whole processes.

    Attributes:
        seconds: ``hf`` and ``gks_arrow``: lm_eval on a tiny model, from start to end.
        difference: Median over the rounds of ``gks_arrow`` minus ``hf``.
        python: ``bridge`` and ``no bridge``: an interpreter that does nothing.
        bridge: Median over the rounds of their difference.
    """

    seconds: dict[str, Timing]
    difference: float
    python: dict[str, Timing]
    bridge: float


class GrowthPoint(FrozenModel):
    """Seconds at one size, by contestant."""

    at: int
    seconds: dict[str, Timing]


class Growth(FrozenModel):
    """How cost grows.

    Attributes:
        layer: The layer of `experts`, as ``K->D, T tokens``.
        experts: Seconds of a layer's update against the number of experts: ``routed``, ``peft``.
        model: The model of `choices` and `contexts`.
        choices: Seconds of an evaluation against choices per item: ``plain``, ``packed``.
        contexts: Seconds of an evaluation against tokens of context: ``plain``, ``packed``.
    """

    layer: str
    experts: tuple[GrowthPoint, ...]
    model: str
    choices: tuple[GrowthPoint, ...]
    contexts: tuple[GrowthPoint, ...]


class GenerationRow(FrozenModel):
    """Greedy `generate_until` of the same prompts.

    Attributes:
        model: Base model.
        kind: When a text ends.
        prompts: Number of prompts.
        batch: Batch size.
        seconds: Seconds of all prompts, by contestant: lm-eval's ``hf`` without adapters, ours
            with ``router=none``, and ours by setting; on a CPU processor time of all threads.
        over_hf: The same, relative to ``hf``.
        equal: Texts of ours with ``router=none`` that equal those of ``hf``.
    """

    model: str
    kind: str
    prompts: int
    batch: int
    seconds: dict[str, Timing]
    over_hf: dict[str, Ratio]
    equal: int


class LibraryRow(FrozenModel):
    """A library of many random adapters, read from disk once by a new process.

    Attributes:
        base: Base model.
        experts: Task adapters; there is one general adapter.
        file_bytes: Size of all adapters on disk.
        load: Seconds of `load_library`.
        attach: Seconds of attaching the loaded library to the model, by setting, in order.
        evaluated: The setting of the evaluation, the library already attached.
        items: Items of all the demo's tasks together.
        evaluate: Seconds of the evaluation.
        base_evaluate: Seconds of the same evaluation by the base without adapters.
        peak_bytes: Largest resident memory of the process until the end of ``start`` (model and
            tasks), ``load``, ``attach`` (all settings) and ``evaluate``; none of them is
            subtracted from another.
    """

    base: str
    experts: int
    file_bytes: int
    load: float
    attach: dict[str, float]
    evaluated: str
    items: int
    evaluate: float
    base_evaluate: float
    peak_bytes: dict[str, int]


class Bar(FrozenModel):
    """A goal and what was measured.

    Attributes:
        what: The quantity.
        wanted: The goal, in words.
        measured: The quantity's value.
        met: Whether it meets the goal.
    """

    what: str
    wanted: str
    measured: float
    met: bool


class Record(FrozenModel):
    """One run.

    Attributes:
        schema_: ``gks_eval.bench/1``.
        arguments: The command's arguments, parsed.
        date: Start of the run, ISO 8601, UTC.
        minutes: Duration of the run.
        seed: Seed of all random weights, inputs and tokens.
        versions: Versions of Python and packages.
        hardware: See `benchmarks.machine`.
        layer: The rows `layer`; rows that were not requested are empty, as below.
        router: The rows `router`.
        experts: The rows `experts`.
        model: The rows `model`.
        evaluation: The rows `evaluation`.
        startup: The row `startup`.
        growth: The rows `growth`.
        generation: The rows `generation`.
        library: The rows `library`.
        full: The rows `full`.
        bars: Goals that these rows have values for.
    """

    schema_: Literal["gks_eval.bench/1"] = Field(default=SCHEMA, alias="schema")
    arguments: dict[str, Any]
    date: str
    minutes: float
    seed: int
    versions: dict[str, str]
    hardware: dict[str, str | int]
    layer: tuple[LayerRow, ...] = ()
    router: tuple[RouterRow, ...] = ()
    experts: tuple[ExpertsRow, ...] = ()
    model: tuple[ModelRow, ...] = ()
    evaluation: tuple[Evaluation, ...] = ()
    startup: Startup | None = None
    growth: Growth | None = None
    generation: tuple[GenerationRow, ...] = ()
    library: tuple[LibraryRow, ...] = ()
    full: tuple[FullModel, ...] = ()
    bars: tuple[Bar, ...] = ()

    def to_json(self) -> str:
        """Return the file's content."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def read_record(path: Path) -> Record:
    """Read what `Record.to_json` wrote.

    Raises:
        ResultsError: The file cannot be read, or has another schema.
    """
    return _FILE.read_as(path, Record)
