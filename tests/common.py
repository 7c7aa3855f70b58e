"""Tiny random models and libraries on disk, as transformers and PEFT themselves write them.

Everything is seeded and small: two layers of width 64, a byte-level tokenizer, vocabulary 260.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from gks_eval.errors import GksError
from gks_eval.method.lora import LoraPair

FAMILIES = ("phi3", "phi", "llama")

# The attention's linear layers: fused in Phi-3, separate in the others.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "phi3": ("qkv_proj", "o_proj"),
    "phi": ("q_proj", "k_proj", "v_proj", "dense"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
# For `save_library` of a llama: adapters of other layers, ranks and scalings than alpha's and en's.
# No expert updates gate_proj, and alone gamma updates down_proj.
MIXED: Mapping[str, Mapping[str, Any]] = {
    "beta": {"target_modules": ["q_proj", "v_proj", "up_proj"], "r": 2, "lora_alpha": 6},
    "gamma": {
        "target_modules": ["q_proj", "down_proj"],
        "r": 8,
        "rank_pattern": {"layers.1.mlp.down_proj": 3},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
    },
    "delta": {
        "target_modules": ["q_proj", "up_proj"],
        "layers_to_transform": [1],
        "use_rslora": True,
    },
    "de": {"target_modules": ["q_proj", "up_proj"], "r": 3},
    "fr": {"target_modules": ["gate_proj", "down_proj"]},
}
SPECIAL_TOKENS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def random_pair(
    rank: int = 4,
    width_in: int = 16,
    width_out: int = 24,
    scaling: float = 4.0,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> LoraPair:
    """Return a pair of Gaussian factors with singular values of order 1."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, width_in, generator=generator, dtype=torch.float64)
    B = torch.randn(width_out, rank, generator=generator, dtype=torch.float64)
    return LoraPair((A / width_in**0.5).to(dtype), (B / width_out**0.5).to(dtype), scaling)


def dense(pair: LoraPair) -> torch.Tensor:
    """Return dW = s B A in float64, entry by entry from the definition."""
    return pair.scaling * torch.einsum("dr,rk->dk", pair.B.double(), pair.A.double())


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return max |found - expected| / max |expected|."""
    scale = expected.double().abs().max().clamp_min(1e-30)
    return float((found.double() - expected.double()).abs().max() / scale)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def save_byte_tokenizer(folder: Path) -> None:
    """Write a fast tokenizer with one token a byte, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[0],
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def save_with_bos(base: Path, folder: Path) -> Path:
    """Copy a base; its tokenizer begins every text with ``<s>``, as those of Llama and Gemma do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


def tiny_config(family: str, **changes: Any) -> Any:
    """Return the transformers config of a two-layer model of the family."""
    from transformers import LlamaConfig, Phi3Config, PhiConfig

    shape = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        # The default, 0.02, makes all logits of so narrow a model nearly equal.
        "initializer_range": 0.15,
    }
    if family == "llama":
        shape["num_key_value_heads"] = 2
    return {"phi3": Phi3Config, "phi": PhiConfig, "llama": LlamaConfig}[family](**shape | changes)


def save_tiny_base(folder: Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random causal LM with its tokenizer and return the folder."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    model.save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


def load_tiny(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Load a model that `save_tiny_base` wrote, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()


def save_adapter(
    model: Any, folder: Path, targets: Sequence[str], *, seed: int, gain: float = 0.2, **config: Any
) -> Path:
    """Have PEFT write a LoRA adapter with random A and B for `model`, which is left as it was.

    Args:
        gain: Scale of B; at 0.2 and scaling 4 the update is comparable with the layer's output.
        config: Further fields of the LoraConfig; r is 4 and lora_alpha 16 unless given.
    """
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 16,
            "target_modules": list(targets),
            "init_lora_weights": False,
            "task_type": "CAUSAL_LM",
            **config,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, lora)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_A" in name:
                    weight.normal_(std=weight.shape[1] ** -0.5)
                elif "lora_B" in name:
                    weight.normal_(std=gain * weight.shape[1] ** -0.5)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    adapted.unload()
    model.requires_grad_(True)
    return folder


def save_library(
    folder: Path,
    base: Path,
    family: str,
    *,
    experts: Sequence[str] = ("alpha", "beta", "gamma", "delta"),
    general: Sequence[str] = ("en", "de", "fr"),
    seed: int = 0,
    adapters: Mapping[str, Mapping[str, Any]] | None = None,
    **config: Any,
) -> Path:
    """Write a library of random adapters for the model in `base` and return its folder.

    Args:
        adapters: LoraConfig fields of single adapters, by name.
        config: LoraConfig fields of all adapters.
    """
    model = load_tiny(base)
    for n, (kind, name) in enumerate(
        [("experts", name) for name in experts] + [("general", name) for name in general]
    ):
        fields = {**config, **(adapters or {}).get(name, {})}
        save_adapter(model, folder / kind / name, TARGETS[family], seed=100 * seed + n, **fields)
    manifest = {
        "base_model": str(base),
        "experts": {name: f"experts/{name}" for name in experts},
        "general": {name: f"general/{name}" for name in general},
    }
    (folder / "library.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False), "utf-8")
    return folder


def save_random_vectors(folder: Path, router: str, *, seed: int = 0) -> None:
    """Write random prepared vectors of a router into a library's folder."""
    from gks_eval.library.load import load_library
    from gks_eval.library.prepared import home_of_vectors, write_vectors

    library, generator = load_library(str(folder)), torch.Generator().manual_seed(seed)
    tensors = {
        f"{name}/{layer}": torch.randn(pair.shape[1], generator=generator)
        for name, adapter in library.experts.items()
        for layer, pair in adapter.pairs.items()
    }
    made = {name: {"adapter": adapter.digest} for name, adapter in library.experts.items()}
    write_vectors(home_of_vectors(library, router), tensors, {"experts": made})


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON object on disk."""
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | changes), "utf-8")


def assert_sentence(error: GksError, *parts: str) -> None:
    """Assert that the message is one line that names all `parts` and ends as a sentence does."""
    message = str(error)
    assert "\n" not in message, message
    assert "Traceback" not in message, message
    assert 20 < len(message) < 1000, message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def save_two_expert_recipe(
    folder: Path, base: Path, *, rows: int, dropout: float, **schedule: Any
) -> Path:
    """Write a recipe of two experts, `one` and `two`, on the same rows, and return its file.

    Args:
        folder: Gets recipe.yaml and rows.jsonl.
        base: A tiny Phi-3.
        rows: How many there are.
        dropout: Of the adapters.
        schedule: Further keys of the schedule.
    """
    texts = [{"source": f"say {n}", "target": str(n % 7)} for n in range(rows)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, texts)), "utf-8")
    content = {
        "base_model": str(base),
        "adapter": {"targets": list(TARGETS["phi3"]), "dropout": dropout},
        "schedule": {
            "learning_rate": 1e-2, "accumulation": 4, "optimizer": "adamw",
            "gradient_checkpointing": False, **schedule,
        },
        "experts": {"members": {"one": {"file": "rows.jsonl"}, "two": {"file": "rows.jsonl"}}},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def requests(pairs: list[tuple[Any, ...]], kind: str = "loglikelihood") -> list[Any]:
    """Return lm-eval's requests for pairs of a context and a continuation."""
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=0)  # type: ignore[arg-type]
        for pair in pairs
    ]


@contextmanager
def certain(lm: Any, letter: str) -> Iterator[None]:
    """Put the logit of one byte 22 nats above all others, wherever the model predicts."""
    (token,) = lm.tokenizer(letter, add_special_tokens=False)["input_ids"]

    def raise_one(_module: Any, _arguments: Any, logits: torch.Tensor) -> torch.Tensor:
        raised = logits.clone()
        raised[..., token] = logits.amax(-1) + 22
        return raised

    handle = lm.model.get_output_embeddings().register_forward_hook(raise_one)
    try:
        yield
    finally:
        handle.remove()


def token_losses(lm: Any, text: str, limit: int = 512) -> list[float]:
    """Return the loss of every token of a text but the first, from one forward of its own."""
    tokens = torch.tensor(lm.tokenizer(text)["input_ids"][:limit])
    with torch.no_grad():
        logits = lm.model(tokens[None]).logits[0].float()
    losses: list[float] = torch.nn.functional.cross_entropy(
        logits[:-1], tokens[1:], reduction="none"
    ).tolist()
    return losses
