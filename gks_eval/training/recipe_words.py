"""Names in PEFT, TRL and transformers, and the recipe's keys for them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["NOT_HERE", "WORDS", "suggestion"]

WORDS: Mapping[str, str] = MappingProxyType(
    {
        # PEFT's LoraConfig
        "r": "adapter.rank",
        "lora_r": "adapter.rank",
        "lora_rank": "adapter.rank",
        "lora_alpha": "adapter.alpha",
        "lora_dropout": "adapter.dropout",
        "target_modules": "adapter.targets",
        "lora_target_modules": "adapter.targets",
        "init_lora_weights": "adapter.init",
        "loftq_config": "adapter.init",
        "base_model_name_or_path": "base_model",
        # TrainingArguments, SFTConfig
        "num_train_epochs": "schedule.epochs",
        "num_epochs": "schedule.epochs",
        "lr": "schedule.learning_rate",
        "per_device_train_batch_size": "schedule.batch_size",
        "train_batch_size": "schedule.batch_size",
        "micro_batch_size": "schedule.batch_size",
        "gradient_accumulation_steps": "schedule.accumulation",
        "lr_scheduler_type": "schedule.decay",
        "lr_scheduler": "schedule.decay",
        "warmup_ratio": "schedule.warmup",
        "max_grad_norm": "schedule.clip",
        "optim": "schedule.optimizer",
        "save_steps": "schedule.checkpoint_steps",
        "activation_checkpointing": "schedule.gradient_checkpointing",
        "data_seed": "seed",
        "max_length": "experts.max_tokens",
        "max_seq_length": "experts.max_tokens",
        "completion_only_loss": "experts.loss",
        "assistant_only_loss": "experts.loss",
        "chat_template": "experts.format",
        "train_test_split": "experts.held_out",
        # SFT scripts' ScriptArguments, ModelConfig
        "dataset_name": "data.hub",
        "dataset_config": "data.config",
        "dataset_train_split": "data.split",
        "dataset_text_field": "data.column",
        "data_path": "data.file",
        "train_file": "data.file",
        "packing": "data.cut",
        "model_name_or_path": "base_model",
        "model": "base_model",
        "pretrained": "base_model",
        "model_revision": "revision",
        "torch_dtype": "load.dtype",
        "bf16": "load.dtype",
        "fp16": "load.dtype",
        "load_in_4bit": "load.quantization",
        "quantization_config": "load.quantization",
        # names of sections
        "lora": "adapter",
        "lora_config": "adapter",
        "peft": "adapter",
        "peft_config": "adapter",
        "training": "schedule",
        "training_arguments": "schedule",
        "training_args": "schedule",
        "data": "experts.data",
    }
)
"""The recipe's key for each name, with its section if it has one."""

NOT_HERE: Mapping[str, str] = MappingProxyType(
    {
        "modules_to_save": "only LoRA factors are trained, leave it out",
        "trainable_token_indices": "only LoRA factors are trained, leave it out",
        "bias": "biases are never trained, leave it out",
        "lora_bias": "biases are never trained, leave it out",
        "task_type": "the base is always a causal LM, leave it out",
        "use_rslora": "the update is scaled by alpha / rank, set `alpha` to"
        " lora_alpha * sqrt(rank) instead",
        "use_dora": "only plain LoRA is trained, leave it out",
        "rank_pattern": "all layers have the same rank, leave it out",
        "alpha_pattern": "all layers have the same alpha, leave it out",
        "layers_to_transform": "all layers are trained, leave it out",
        "fan_in_fan_out": "only nn.Linear is trained, leave it out",
        "warmup_steps": "the warm-up is a share of the steps, write `schedule.warmup`",
        "max_steps": "a run is given in passes over the rows, write `schedule.epochs`",
        "output_dir": "the library's folder is given by --output",
        "logging_steps": "every step is logged, leave it out",
        "report_to": "losses go to loss.jsonl, leave it out",
    }
)
"""Names that a recipe has no key for, and what to do instead."""


def suggestion(path: tuple[str | int, ...], keys: Mapping[str, str]) -> str | None:
    """Return what to write instead of an unknown key; None if nothing fits.

    Args:
        path: The key, after its sections.
        keys: The recipe's own keys, each with its section.
    """
    word = str(path[-1])
    if word in NOT_HERE:
        return NOT_HERE[word]
    place = WORDS.get(word, keys.get(word))
    if place is None:
        return None
    section, _, key = place.rpartition(".")
    inside = str(path[-2]) if len(path) > 1 else ""
    if path[-3:-2] == ("members",):  # a member takes the keys of `data`
        inside = "data"
    if inside and not section:
        return f"write {place!r} at the top of the recipe"
    return f"did you mean {(key if section == inside else place)!r}"
