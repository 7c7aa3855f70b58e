"""`recipe.yaml`: how the adapters of a library are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PositiveInt,
    ValidationError,
    model_validator,
)

from gks_eval.library.manifest import AdapterName, Source
from gks_eval.training.recipe_faults import as_input, cross_field_faults
from gks_eval.training.recipe_words import suggestion
from gks_eval.util.yaml import FrozenModel, KeyPath

__all__ = [
    "AdapterShape",
    "BaseLoad",
    "Clusters",
    "ExpertMember",
    "ExpertSection",
    "GeneralMember",
    "GeneralSection",
    "Place",
    "Recipe",
    "Schedule",
]

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class BaseLoad(FrozenModel):
    """How the base model is loaded for training.

    Attributes:
        quantization: ``nf4`` holds the linear layers in 4 bits (bitsandbytes, no double
            quantisation, products in bfloat16).
        dtype: Of everything that is not quantised.
        device: ``auto`` uses a GPU if there is one; ``cuda`` requires one.
    """

    quantization: Literal["none", "nf4"] = "none"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class AdapterShape(FrozenModel):
    """The shape and start of every LoRA in the library.

    Attributes:
        rank: R of A (R,K) and B (D,R).
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout on the adapter's input in training.
        targets: Names of the linear layers, as PEFT's ``target_modules``.
        init: ``default`` starts from B = 0; ``loftq`` from the factors that correct the
            quantisation error of the base; ``paper`` is what the published code does: it hands
            PEFT a LoftQ configuration that PEFT ignores, hence the same start as ``default``.
        save_dtype: Dtype of the saved factors.
    """

    rank: PositiveInt = 4
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    targets: Annotated[list[Text], Field(min_length=1)]
    init: Literal["default", "loftq", "paper"] = "default"
    save_dtype: Literal["float16", "bfloat16", "float32"] = "float16"


class Schedule(FrozenModel):
    """Optimisation; the defaults are the paper's for task experts.

    Attributes:
        epochs: Passes over the rows.
        learning_rate: Peak learning rate.
        batch_size: Rows per device and micro-step.
        accumulation: Micro-steps per optimiser step.
        decay: Shape of the learning rate after the warm-up.
        warmup: Share of the steps in which the learning rate rises.
        clip: Maximum norm of the gradient; 0 for no clipping.
        weight_decay: Decoupled weight decay, as in AdamW.
        optimizer: The optimiser; `gks_eval.training.sft` has the fallback without a GPU.
        gradient_checkpointing: Saves memory for about a fifth more time.
        checkpoint_steps: Optimiser steps between two checkpoints.
    """

    epochs: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    learning_rate: Annotated[float, Field(gt=0, le=1e4)] = 1e-4
    batch_size: PositiveInt = 1
    accumulation: PositiveInt = 16
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    clip: Annotated[float, Field(ge=0.0)] = 2.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    optimizer: Literal["paged_adamw_8bit", "adamw_8bit", "adamw"] = "paged_adamw_8bit"
    gradient_checkpointing: bool = True
    checkpoint_steps: PositiveInt = 50


class Place(FrozenModel):
    """The place of rows or texts: a local file, or a data set on the hub.

    Attributes:
        file: Path relative to the recipe: ``.jsonl`` or ``.parquet`` (and ``.txt`` for texts:
            paragraphs between blank lines).
        hub: Data set id on the hub.
        config: Its configuration.
        split: Its split.
        revision: Its revision; pin it for a run that can be repeated.
        data_files: Files of the data set to read, instead of a configuration.
    """

    file: Source | None = None
    hub: Source | None = None
    config: Text | None = None
    split: Text = "train"
    revision: Text | None = None
    data_files: Text | None = None


class ExpertMember(Place):
    """The rows of one task expert; what is not given is taken from the section's `data`.

    Attributes:
        source: Column of the instruction.
        target: Column of the answer.
        where: Columns and the value, or list of values, that a row must have.
        fraction: Share of the rows to train on, drawn with the recipe's seed.
        rows: Maximum number of rows, drawn in the same way.
    """

    source: Text = "source"
    target: Text = "target"
    where: dict[str, Any] = Field(default_factory=dict)
    fraction: Share = 1.0
    rows: PositiveInt | None = None


class GeneralMember(Place):
    """The texts of one general adapter; what is not given is taken from the section's `data`.

    Attributes:
        column: Column of the text.
        windows: Maximum number of windows.
        prompt: Tokens of a window that are not trained on (unless `loss` is ``all``).
        completion: Tokens after them.
        cut: ``first`` takes the first window of each text that is long enough, ``packed`` joins
            all texts with the end-of-text token between them and cuts the result.
        min_chars: Shorter texts are skipped.
    """

    column: Text = "text"
    windows: PositiveInt = 5000
    prompt: PositiveInt = 507
    completion: PositiveInt = 5
    cut: Literal["first", "packed"] = "first"
    min_chars: Annotated[int, Field(ge=0)] = 0


class Clusters(FrozenModel):
    """Experts named by a cluster file, one per cluster (`gks-eval cluster` writes it).

    The rows of a cluster also match `data.where`.

    Attributes:
        file: The cluster file, relative to the recipe.
        column: Column of the rows that holds the task's name.
    """

    file: Source
    column: Text = "task_name"


class Section(FrozenModel):
    """What experts and general adapters have in common.

    Attributes:
        schedule: Optimisation; what is not given is taken from the recipe's own `schedule`.
        loss: ``completion`` trains on the answer alone, ``all`` on every token (the published
            code).
        format: ``chat`` is the base model's chat template, ``plain`` uses none.
        held_out: Rows or windows kept from training, on which the base and the adapter are
            measured at the end.
    """

    schedule: Schedule = Schedule()
    loss: Literal["completion", "all"] = "completion"
    format: Literal["chat", "plain"] = "chat"
    held_out: Annotated[int, Field(ge=0)] = 0


class ExpertSection(Section):
    """The task experts.

    Attributes:
        data: Defaults of the members.
        members: The experts by name.
        clusters: Instead of members: one expert per cluster.
        max_tokens: Maximum length of a row; a longer row loses the end of its source, never of its
            target.
        prompt: Text before the target if `format` is ``plain``.
    """

    data: ExpertMember = ExpertMember()
    members: dict[AdapterName, ExpertMember] = Field(default_factory=dict)
    clusters: Clusters | None = None
    max_tokens: Annotated[int, Field(ge=8)] = 4000
    prompt: Text = "{source}\n"


class GeneralSection(Section):
    """The general-knowledge adapters, by language."""

    format: Literal["chat", "plain"] = "plain"
    data: GeneralMember = GeneralMember()
    members: Annotated[dict[AdapterName, GeneralMember], Field(min_length=1)]


class Recipe(FrozenModel):
    """The typed content of one recipe.yaml.

    Attributes:
        base_model: Hub id or path (relative to the recipe when it starts with a dot), or
            ``embedded:<name>``.
        revision: Revision of the base model on the hub.
        load: How the base is loaded.
        adapter: The LoRA.
        seed: Seed of the draw of rows, their order, dropout and the start of A.
        start: ``shared`` starts every adapter from the same A, ``own`` each from another, drawn
            from the seed and its name.
        schedule: Optimisation; a section's `schedule` overrides it, key by key.
        experts: The task experts.
        general: The general-knowledge adapters.
    """

    base_model: Source
    revision: Text | None = None
    load: BaseLoad = BaseLoad()
    adapter: AdapterShape
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    start: Literal["shared", "own"] = "own"
    schedule: Schedule = Schedule()
    experts: ExpertSection | None = None
    general: GeneralSection | None = None

    @classmethod
    def hint(cls, path: KeyPath) -> str | None:
        """Return the recipe's key for a word of PEFT or TRL, or for one in the wrong section."""
        sections: dict[str, type[FrozenModel]] = {
            "adapter": AdapterShape,
            "load": BaseLoad,
            "schedule": Schedule,
        }
        keys = {
            key: f"{name}.{key}" for name, model in sections.items() for key in model.model_fields
        }
        return suggestion(path, keys | {key: key for key in cls.model_fields})

    @model_validator(mode="wrap")
    @classmethod
    def _all_faults_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Recipe]) -> Recipe:
        faults = cross_field_faults(data)
        try:
            recipe = handler(data)
        except ValidationError as error:
            faults = [as_input(fault) for fault in error.errors()] + faults
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return recipe
