"""Every kind of LoRA adapter that PEFT can build: PEFT's own logits, or one sentence why not.

Each case is built, saved and loaded again by PEFT, on a tiny random model in float32. `FIELDS`
decides about every field of LoraConfig: a new one in PEFT fails the test until it is decided here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from common import TARGETS, assert_sentence, edit_json, load_tiny, relative_error, tiny_config
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from gks_eval.errors import CompatibilityError, LibraryError
from gks_eval.library.fit import check_fit, meta_model, routable_layers
from gks_eval.library.load import load_library
from gks_eval.library.peft_adapter import CONFIG_FILE, WEIGHTS_FILE
from gks_eval.library.peft_config import Targets
from gks_eval.method.setting import Setting
from gks_eval.model.inject import attach
from gks_eval.model.quantized import keep_portable_layout
from gks_eval.scoring import packed_log_likelihoods, supports_packed

TOKENS = torch.randint(4, 260, (2, 11), generator=torch.Generator().manual_seed(0))
ALONE = Setting(router="mine", subtract=())
UNSUPPORTED = "which routed layers do not support"
ATTENTION = {**TARGETS, "gpt2": ("c_attn", "c_proj"), "mixtral": ("q_proj", "v_proj")}


@dataclass(frozen=True)
class Case:
    """A LoraConfig on a base.

    Attributes:
        family: Of the base.
        fields: Of the LoraConfig; target_modules are the attention's layers unless given.
        refused: Words of the refusing sentence; none where the logits must equal PEFT's.
        base: Changes of the base's config.
        save: Arguments of PEFT's save_pretrained.
        since: The attribute of PEFT that knows the kind, where the oldest supported one does not.
    """

    family: str = "llama"
    fields: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    save: Mapping[str, Any] = field(default_factory=dict)
    since: str | None = None


def equal(family: str = "llama", *, base: Any = None, save: Any = None, **fields: Any) -> Case:
    return Case(family, fields, (), base or {}, save or {})


def refused(*words: str, family: str = "llama", base: Any = None, **fields: Any) -> Case:
    return Case(family, fields, words, base or {})


TIED = {"tie_word_embeddings": True}
CASES: dict[str, Case] = {
    "plain llama": equal(),
    "plain phi3": equal("phi3"),
    "plain phi": equal("phi"),
    "plain gpt2": equal("gpt2"),
    "plain mixtral": equal("mixtral"),
    # Which layers.
    "feed-forward layers": equal(target_modules=["gate_proj", "up_proj", "down_proj"]),
    "a whole name": equal(target_modules=["model.layers.1.self_attn.q_proj"]),
    "a name from its layer on": equal(target_modules=["1.self_attn.q_proj"]),
    "a regular expression": equal(target_modules=r".*layers\.(0|1)\.self_attn\.[qv]_proj"),
    "all linear layers": equal(target_modules="all-linear"),
    "all linear layers of phi": equal("phi", target_modules="all-linear"),
    "all linear layers of gpt2": equal("gpt2", target_modules="all-linear"),
    "PEFT's own choice": equal(target_modules=None),
    "PEFT's own choice for gpt2": equal("gpt2", target_modules=None),
    "one layer": equal(layers_to_transform=1),
    "a list of layers": equal(layers_to_transform=[0]),
    "a list of layers with its pattern": equal(layers_to_transform=[1], layers_pattern="layers"),
    "layers of gpt2 with their pattern": equal(
        "gpt2", layers_to_transform=[1], layers_pattern=["layers", "h"]
    ),
    "excluded names": equal(exclude_modules=["1.self_attn.q_proj", "o_proj"]),
    "an excluding expression": equal(exclude_modules=r".*\.0\..*"),
    "nothing but parameters": refused(
        "(target_parameters)", UNSUPPORTED, target_modules=[], target_parameters=["q_proj.weight"]
    ),
    # Scalings.
    "rank and alpha": equal(r=3, lora_alpha=5),
    "rank-stabilised": equal(use_rslora=True),
    "a rank of its own": equal(rank_pattern={"q_proj": 2, r".*1\.self_attn\.o_proj": 7}),
    "an alpha of its own": equal(alpha_pattern={"^model.layers.0.self_attn.q_proj": 3}),
    "both, rank-stabilised": equal(
        use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"(q|k)_proj": 9}
    ),
    "dropout": equal(lora_dropout=0.5),
    # How weights are stored.
    "fan_in_fan_out on nn.Linear": equal(fan_in_fan_out=True),
    "fan_in_fan_out on Conv1D": equal("gpt2", fan_in_fan_out=True),
    # The output embeddings.
    "lm_head": equal(target_modules=["q_proj", "lm_head"]),
    "lm_head with its bias": equal("phi", target_modules=["q_proj", "lm_head"]),
    "lm_head of gpt2": equal("gpt2", target_modules=["c_attn", "lm_head"]),
    "lm_head, tied": equal(target_modules=["q_proj", "lm_head"], base=TIED),
    "lm_head, tied, to stay so": refused(
        "a LoRA of the token embeddings",
        target_modules=["q_proj", "lm_head"],
        base=TIED,
        ensure_weight_tying=True,
    ),
    "no tied layer, to stay so": equal(base=TIED, ensure_weight_tying=True),
    "lm_head without its copy": equal(
        target_modules=["q_proj", "lm_head"], save={"save_embedding_layers": False}
    ),
    "embeddings saved along": equal(save={"save_embedding_layers": True}),
    "embeddings saved along, tied": equal(save={"save_embedding_layers": True}, base=TIED),
    "token embeddings": refused(
        "lora_embedding_", "a LoRA of the token embeddings", target_modules=["embed_tokens"]
    ),
    # What is trained next to the factors.
    "biases of a model without any": equal(bias="all"),
    "all biases": refused("a trained bias (bias='all'", UNSUPPORTED, family="phi", bias="all"),
    "biases of the layers": refused(
        "a trained bias (bias='lora_only'", UNSUPPORTED, family="phi", bias="lora_only"
    ),
    "a bias in B": refused("a bias in B (lora_bias)", UNSUPPORTED, family="phi", lora_bias=True),
    "whole modules": refused(
        "fully trained modules (modules_to_save)", UNSUPPORTED, modules_to_save=["lm_head"]
    ),
    "single tokens": refused(
        "trained token embeddings (trainable_token_indices)", trainable_token_indices=[1, 2]
    ),
    # Starts.
    "start at random": equal(init_lora_weights=False),
    "start at zero": equal(init_lora_weights=True),
    "start from Gauss": equal(init_lora_weights="gaussian"),
    "start orthogonal": equal(init_lora_weights="orthogonal"),
    "start from minor components": dataclasses.replace(
        equal(init_lora_weights="mica"), since="tuners.lora.variants.MiCALinearVariant"
    ),
    "start from EVA": equal(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)),
    "start from PiSSA": refused("started from pissa", "changes", init_lora_weights="pissa"),
    "start from fast PiSSA": refused(
        "started from pissa_niter_4", "changes", init_lora_weights="pissa_niter_4"
    ),
    "start from OLoRA": refused("started from olora", "convert it", init_lora_weights="olora"),
    # Other updates than B A.
    "DoRA": refused("DoRA (use_dora)", UNSUPPORTED, use_dora=True),
    "activated LoRA": refused(
        "activated LoRA (alora_invocation_tokens)", UNSUPPORTED, alora_invocation_tokens=[5, 6]
    ),
    "QA-LoRA": refused("QA-LoRA (use_qalora)", UNSUPPORTED, use_qalora=True, qalora_group_size=8),
    "replicated layers": refused(
        "replicated layers (layer_replication)", UNSUPPORTED, layer_replication=[(0, 2), (1, 2)]
    ),
    "parameters": refused(
        "LoRA of single parameters instead of layers (target_parameters)",
        family="mixtral",
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.down_proj"],
    ),
}


def config_case(since: str, name: str, *words: str, **arguments: Any) -> Case:
    """A kind that newer PEFT alone knows, configured by a class of its own."""
    parts = name.split("=")
    kind = getattr(peft.tuners.lora.config, parts[1], None)
    fields = {parts[0]: kind(**arguments) if kind else None}
    return Case("llama", fields, words, since=since)


SUB = "tuners.lora.config."
CASES |= {
    "block-diagonal": config_case(
        SUB + "BdLoraConfig", "use_bdlora=BdLoraConfig", "block-diagonal LoRA (use_bdlora)",
        UNSUPPORTED, target_modules_bd_a=["o_proj"], nblocks=2, match_strict=False,
    ),
    "KaSA": config_case(
        SUB + "KasaConfig", "kasa_config=KasaConfig", "KaSA (kasa_config)", UNSUPPORTED
    ),
    "VeLoRA": config_case(SUB + "VeloraConfig", "velora_config=VeloraConfig", num_groups=8),
    "MonteCLoRA": config_case(SUB + "MontecloraConfig", "monteclora_config=MontecloraConfig"),
}  # fmt: skip

# Fields that no case above sets, and why: what PEFT writes about a file, or what it cannot build
# here. What their values do to an adapter is tested below, on its config.
FIELDS = {
    "task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path",
    "revision", "inference_mode",  # about the file
    "runtime_config",  # not saved
    "megatron_config", "megatron_core",  # parallel layers of Megatron, which is not installed
    "loftq_config",  # PEFT's own start needs CUDA
    "corda_config", "lora_ga_config",  # need statistics or gradients of the base
    "arrow_config",  # made from several adapters
}  # fmt: skip


def test_every_field_of_a_lora_config_is_decided() -> None:
    known = {f.name for f in dataclasses.fields(LoraConfig)}
    tried = {name for case in CASES.values() for name in case.fields} | {"target_modules"}
    assert not known - tried - FIELDS, "decide what an adapter with these fields is"
    assert not tried & FIELDS


def has(path: str | None) -> bool:
    found: Any = peft
    for part in (path or "").split("."):
        found = getattr(found, part, None) if part else found
    return found is not None


@contextlib.contextmanager
def peft_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def base_config(family: str, **changes: Any) -> Any:
    from transformers import GPT2Config, MixtralConfig

    if family == "gpt2":
        return GPT2Config(
            vocab_size=260, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0,
            eos_token_id=0, initializer_range=0.15, **changes,
        )  # fmt: skip
    if family == "mixtral":
        return MixtralConfig(
            vocab_size=260, hidden_size=64, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=2, initializer_range=0.15, max_position_embeddings=64, **changes,
        )  # fmt: skip
    return tiny_config(family, **changes)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saved random models, one for each family and change."""
    from transformers import AutoModelForCausalLM

    made: dict[str, Path] = {}

    def base(family: str, **changes: Any) -> Path:
        key = f"{family} {sorted(changes.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("base")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                model = AutoModelForCausalLM.from_config(base_config(family, **changes))
                for name, parameter in model.named_parameters():
                    if name.endswith("bias"):
                        torch.nn.init.normal_(parameter, std=0.1)
                model.save_pretrained(made[key])
        return made[key]

    return base


def randomise(model: Any) -> None:
    """Give every factor and every other trained weight a value as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "sampler" in name or not (weight.requires_grad or "lora_B" in name):
                continue
            scale = 0.2 if "lora_B" in name or "lora_embedding_B" in name else 1.0
            drawn = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
            weight.copy_(scale * drawn + (0 if "lora_" in name else weight))


def build(case: Case, base: Path, folder: Path) -> None:
    """Have PEFT make the adapter and save it."""
    fields = {
        "r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM",
        "target_modules": list(ATTENTION[case.family]), **case.fields,
    }  # fmt: skip
    with peft_may_warn(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        adapted = get_peft_model(load_tiny(base), LoraConfig(**fields))
        if fields.get("init_lora_weights") == "eva":
            peft.initialize_lora_eva_weights(
                adapted, [{"input_ids": TOKENS, "labels": TOKENS}] * 2, show_progress_bar=False
            )
        randomise(adapted)
        adapted.save_pretrained(folder, **case.save)


def library_of(folder: Path, base: Path) -> Path:
    manifest = {"base_model": str(base), "experts": {"mine": "adapter"}}
    (folder / "library.yaml").write_text(yaml.safe_dump(manifest), "utf-8")
    return folder


@torch.no_grad()
def ours(base: Path, library: Path) -> torch.Tensor:
    model = load_tiny(base)
    with attach(model, load_library(str(library)), ALONE):
        return model(TOKENS).logits


@torch.no_grad()
def pefts(base: Path, folder: Path) -> torch.Tensor:
    with peft_may_warn():
        return PeftModel.from_pretrained(load_tiny(base), folder).eval()(TOKENS).logits


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_configuration(case: Case, bases: Callable[..., Path], tmp_path: Path) -> None:
    if not has(case.since) or any(
        name not in {f.name for f in dataclasses.fields(LoraConfig)} for name in case.fields
    ):
        pytest.skip("this PEFT does not know the kind")
    base = bases(case.family, **case.base)
    folder = tmp_path / "adapter"
    build(case, base, folder)
    library = library_of(tmp_path, base)
    if case.refused:
        with pytest.raises(LibraryError) as caught:
            ours(base, library)
        assert_sentence(caught.value, *case.refused)
        return
    expected = pefts(base, folder)
    with torch.no_grad():
        plain = load_tiny(base)(TOKENS).logits
    assert relative_error(plain, expected) > 1e-3, "the adapter does nothing"
    assert relative_error(ours(base, library), expected) < 1e-5


@pytest.fixture
def made(bases: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Builds a case and returns its base and its library's folder."""

    def make(case: Case) -> tuple[Path, Path]:
        base = bases(case.family, **case.base)
        build(case, base, tmp_path / "adapter")
        return base, library_of(tmp_path, base)

    return make


def refusal(base: Path, library: Path) -> LibraryError:
    with pytest.raises(LibraryError) as caught:
        ours(base, library)
    return caught.value


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


HEAD = "base_model.model.lm_head.base_layer.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_the_packed_scorer_applies_the_heads_adapter(
    dtype: torch.dtype, tied: bool, made: Callable[..., tuple[Path, Path]]
) -> None:
    """The head is computed at scored positions only; its adapter must be there, too."""
    base, library = made(
        equal(target_modules=["q_proj", "lm_head"], base={"tie_word_embeddings": tied})
    )
    assert HEAD in load_file(library / "adapter" / WEIGHTS_FILE)
    pairs = [([5, 9, 7], [token]) for token in range(4, 200)]
    model = load_tiny(base, dtype)
    with attach(model, load_library(str(library)), ALONE), torch.no_grad():
        answers = packed_log_likelihoods(model, pairs, device="cpu", max_length=64)
        last = model.model(torch.tensor([[5, 9, 7]])).last_hidden_state[0, -1].float()
    found = torch.tensor([float(value) for value, _ in answers])
    # The head in float32 from the definition, on the hidden state as it comes.
    tensors = load_file(library / "adapter" / WEIGHTS_FILE)
    A, B = (tensors[f"base_model.model.lm_head.lora_{factor}.weight"] for factor in "AB")
    logits = (tensors[HEAD].to(dtype).float() + 4.0 * B @ A) @ last
    expected = torch.log_softmax(logits, -1)[4:200]
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert (found - expected).abs().max() < tolerance


@pytest.mark.parametrize("name", ["lm_head", "lm_head of gpt2", "plain phi", "plain mixtral"])
def test_packed_scores_are_those_of_pefts_logits(
    name: str, made: Callable[..., tuple[Path, Path]]
) -> None:
    base, library = made(CASES[name])
    pairs = [([5, 9, 7], [31, 8]), ([5, 9], [77]), ([5, 9, 7], [44, 8, 9])]
    model = load_tiny(base)
    with attach(model, load_library(str(library)), ALONE):
        assert supports_packed(model) is None
        answers = packed_log_likelihoods(model, pairs, device="cpu", max_length=64)
    with peft_may_warn():
        theirs = PeftModel.from_pretrained(load_tiny(base), library / "adapter").eval()
    for (before, after), (value, _) in zip(pairs, answers, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[range(len(after)), after].sum()
        assert abs(value - float(expected)) < 2e-5


@pytest.mark.parametrize("save", [{}, {"save_embedding_layers": True}], ids=["auto", "asked"])
def test_another_head_than_the_bases_is_refused(
    save: dict[str, bool], made: Callable[..., tuple[Path, Path]]
) -> None:
    targets = ["q_proj"] if save else ["q_proj", "lm_head"]
    base, library = made(equal(target_modules=targets, save=save))
    key = "base_model.model.lm_head.weight" if save else HEAD
    change_weights(library / "adapter", lambda t: t[key][3, 4].add_(0.01))
    assert len(load_library(str(library)).experts) == 1, "without a base there is no fault"
    assert_sentence(refusal(base, library), key, "differs from the weight of", "trained too")


def test_a_copy_in_another_type_is_the_same_weight(
    made: Callable[..., tuple[Path, Path]],
) -> None:
    base, library = made(equal(target_modules=["q_proj", "lm_head"]))
    expected = ours(base, library)
    change_weights(library / "adapter", lambda t: t.update({HEAD: t[HEAD].bfloat16()}))
    assert torch.equal(ours(base, library), expected)
    change_weights(library / "adapter", lambda t: t[HEAD][3, 4].mul_(1.1))
    assert_sentence(refusal(base, library), "differs from the weight of")


def test_copies_of_one_weight_in_two_16_bit_types(
    made: Callable[..., tuple[Path, Path]],
) -> None:
    """Rounded twice, a few weights end on the neighbouring number."""
    base, library = made(equal(target_modules=["q_proj", "lm_head"]))
    for held, saved in (
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.bfloat16, torch.float32),
    ):
        change_weights(
            library / "adapter",
            lambda t, saved=saved: t.update({HEAD: load_tiny(base).lm_head.weight.to(saved)}),
        )
        attach(load_tiny(base, held), load_library(str(library)), ALONE).detach()


def test_an_offloaded_head_is_compared(made: Callable[..., tuple[Path, Path]]) -> None:
    from accelerate import cpu_offload

    base, library = made(equal(target_modules=["q_proj", "lm_head"]))
    expected = ours(base, library)
    model = cpu_offload(load_tiny(base), execution_device=torch.device("cpu"))
    assert model.lm_head.weight.is_meta
    with torch.no_grad(), attach(model, load_library(str(library)), ALONE):
        assert relative_error(model(TOKENS).logits, expected) < 1e-5
    change_weights(library / "adapter", lambda t: t[HEAD][3, 4].mul_(1.1))
    with pytest.raises(CompatibilityError, match="differs from the weight of"):
        attach(model, load_library(str(library)), ALONE)


def test_a_resized_vocabulary_is_named(bases: Callable[..., Path], tmp_path: Path) -> None:
    base = bases("llama")
    with peft_may_warn():
        model = load_tiny(base)
        model.resize_token_embeddings(264)
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
        adapted.save_pretrained(tmp_path / "adapter")
    library = library_of(tmp_path, base)
    assert_sentence(
        refusal(base, library), "lm_head.weight", "embeddings of 264 tokens", "has 260",
        "resize the base's embeddings", "pretrained=",
    )  # fmt: skip
    # Before any weight is read, too.
    config = load_tiny(base).config
    with pytest.raises(CompatibilityError, match="embeddings of 264 tokens"):
        check_fit(load_library(str(library)), meta_model(config), "base")


def test_a_weight_that_the_base_lacks(made: Callable[..., tuple[Path, Path]]) -> None:
    base, library = made(equal())
    new = {"base_model.model.score.weight": torch.ones(2, 64)}
    change_weights(library / "adapter", lambda t: t.update(new))
    assert_sentence(refusal(base, library), "score.weight", "nor a weight of", "this base")


DEEPER: dict[str, dict[str, Any]] = {
    "names": {},
    "a regular expression": {"target_modules": r".*\.self_attn\.[qv]_proj"},
    "excluded names": {"exclude_modules": ["o_proj"]},
    "all linear layers": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("fields", DEEPER.values(), ids=DEEPER.keys())
def test_an_adapter_of_a_shallower_model_is_refused(
    fields: dict[str, Any], made: Callable[..., tuple[Path, Path]], bases: Callable[..., Path]
) -> None:
    _, library = made(equal(**fields))
    if fields.get("target_modules") == "all-linear":
        # Few layers are saved by their whole names; older PEFT wrote the word.
        edit_json(library / "adapter" / CONFIG_FILE, target_modules="all-linear")
    deeper = bases("llama", num_hidden_layers=4)
    assert_sentence(
        refusal(deeper, library),
        "adapter 'mine' leaves out model.layers.2.",
        "model with fewer layers",
    )


def test_only_some_layers_of_a_deeper_model(
    made: Callable[..., tuple[Path, Path]], bases: Callable[..., Path]
) -> None:
    _, library = made(equal(target_modules=["1.self_attn.q_proj"]))
    deeper = bases("llama", num_hidden_layers=4)
    assert relative_error(ours(deeper, library), pefts(deeper, library / "adapter")) < 1e-5


NAMES = (
    "q_proj", "v_proj", "1.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "down_proj",
    "lm_head", "elf_attn.v_proj", "layers", "0", "", "model",
)  # fmt: skip
EXPRESSIONS = (
    r".*q_proj", r"model\.layers\.[01]\..*_proj", "q_proj", "all-linear", "ALL-linear", ".*(q|v)$",
    "", r".*\.1\.(?!mlp).*",
)  # fmt: skip


def test_layers_are_named_by_pefts_own_rules() -> None:
    """Ours against PEFT's matching, on random configs and the names of three models."""
    import random

    from peft.tuners.tuners_utils import (
        _maybe_include_all_linear_layers,
        check_target_module_exists,
    )

    models = [
        meta_model(base_config("llama", num_hidden_layers=12)),
        meta_model(base_config("gpt2")),
        meta_model(base_config("mixtral")),
    ]
    draw = random.Random(0)
    differing = 0
    for _ in range(600):
        words = draw.sample(NAMES, draw.randint(1, 4))
        fields: dict[str, Any] = {
            "target_modules": draw.choice([words, draw.choice(EXPRESSIONS)]),
            "exclude_modules": draw.choice([None, None, draw.sample(NAMES, 2), EXPRESSIONS[0]]),
        }
        if isinstance(fields["target_modules"], list):
            fields["layers_to_transform"] = draw.choice([None, [], 1, [0, 11], [1]])
            if fields["layers_to_transform"] is not None:
                fields["layers_pattern"] = draw.choice([None, "", "layers", ["h"], "l.*", []])
        model = draw.choice(models)
        layers = routable_layers(model)
        targets = Targets.read(fields, Path("config"))
        head = {"lm_head"} if targets.all_linear else set()
        found = targets.named(layers.keys() - head)
        config = _maybe_include_all_linear_layers(LoraConfig(**fields), model)
        expected = {name for name in layers if check_target_module_exists(config, name)}
        assert found == expected, fields
        differing += 0 < len(found) < len(layers)
    assert differing > 150


def test_experts_fused_by_transformers_are_the_reason(
    bases: Callable[..., Path], tmp_path: Path
) -> None:
    """An adapter of transformers 4, which had a linear layer for each expert."""
    base = bases("mixtral")
    build(equal("mixtral"), base, tmp_path / "adapter")
    expert = "base_model.model.model.layers.0.block_sparse_moe.experts.3.w1.lora_{}.weight"
    new = {expert.format("A"): torch.ones(4, 64), expert.format("B"): torch.ones(32, 4)}
    change_weights(tmp_path / "adapter", lambda t: t.update(new))
    edit_json(tmp_path / "adapter" / CONFIG_FILE, target_modules=["q_proj", "v_proj", "w1"])
    assert_sentence(
        refusal(base, library_of(tmp_path, base)),
        "experts.3.w1", "transformers fuses all experts of a layer",
        "model.layers.0.mlp.experts.gate_up_proj", "leave the experts out",
    )  # fmt: skip


def test_a_router_of_experts_is_no_linear_layer(
    made: Callable[..., tuple[Path, Path]],
) -> None:
    base, library = made(equal("mixtral"))
    gate = "base_model.model.model.layers.0.mlp.gate.lora_{}.weight"
    new = {gate.format("A"): torch.ones(4, 64), gate.format("B"): torch.ones(4, 4)}
    change_weights(library / "adapter", lambda t: t.update(new))
    edit_json(library / "adapter" / CONFIG_FILE, target_modules=["q_proj", "v_proj", "gate"])
    assert_sentence(refusal(base, library), "mlp.gate", "is of type MixtralTopKRouter")


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_converted_start_is_plain_lora(
    init: str, bases: Callable[..., Path], tmp_path: Path
) -> None:
    base = bases("llama")
    with peft_may_warn():
        config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=init)
        adapted = get_peft_model(load_tiny(base), config)
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(tmp_path / "start")
        adapted.peft_config["default"].init_lora_weights = init
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_" in name:
                    weight.mul_(1.3)
        trained = adapted.eval()(TOKENS).logits.detach()
        adapted.save_pretrained(
            tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    assert relative_error(ours(base, library_of(tmp_path, base)), trained) < 1e-4


def test_an_arrow_router_saved_by_peft(
    made: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    base, library = made(equal(target_modules=["q_proj"]))
    with peft_may_warn():
        routed = peft.create_arrow_model(
            load_tiny(base), [str(library / "adapter")], peft.ArrowConfig(top_k=1)
        )
        routed.save_pretrained(tmp_path / "routed", selected_adapters=["arrow_router"])
    (library / "adapter").rename(library / "plain")
    (tmp_path / "routed" / "arrow_router").rename(library / "adapter")
    assert_sentence(refusal(base, library), "its own router (arrow_config)", UNSUPPORTED)


EDITS: dict[str, dict[str, Any]] = {
    "Megatron's layers": {"megatron_config": {"x": 1}, "megatron_core": "megatron.core"},
    "settings of a start": {"corda_config": {"x": 1}, "lora_ga_config": {"x": 1}},
    "settings of LoftQ": {"loftq_config": {"loftq_bits": 4}},
    "fan_in_fan_out on nn.Linear": {"fan_in_fan_out": True},
    "about the file": {"revision": "x", "inference_mode": False, "auto_mapping": {"x": 1}},
    "biases that are not there": {"bias": "lora_only"},
}


@pytest.mark.parametrize("fields", EDITS.values(), ids=EDITS.keys())
def test_fields_that_no_forward_reads(
    fields: dict[str, Any], made: Callable[..., tuple[Path, Path]]
) -> None:
    base, library = made(equal())
    expected = pefts(base, library / "adapter")
    edit_json(library / "adapter" / CONFIG_FILE, **fields)
    assert relative_error(ours(base, library), expected) < 1e-5


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("told", ["by PEFT", "by gks-eval train"])
def test_loftq_on_a_base_that_is_not_quantised_warns(
    bits: int | None,
    told: str,
    made: Callable[..., tuple[Path, Path]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from transformers import BitsAndBytesConfig

    base, library = made(equal())
    if told == "by PEFT":
        edit_json(library / "adapter" / CONFIG_FILE, init_lora_weights="loftq")
    else:
        (library / "adapter" / "training.json").write_text(json.dumps({"init": "loftq"}), "utf-8")
    how = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)} if bits else {}
    model = load_tiny(base, **how)
    with caplog.at_level(logging.WARNING, "gks_eval"):
        attach(model, load_library(str(library)), ALONE).detach()
    warned = [r.getMessage() for r in caplog.records if r.name.startswith("gks_eval")]
    with caplog.at_level(logging.WARNING, "gks_eval"):
        caplog.clear()
        attach(meta_model(model.config), load_library(str(library)), ALONE).detach()
    assert not [r for r in caplog.records if r.name.startswith("gks_eval")]
    assert len(warned) == (0 if bits else 1)
    assert bits or ("mine started from LoftQ" in warned[0] and "load_in_4bit=True" in warned[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_on_a_quantised_base(bits: int, made: Callable[..., tuple[Path, Path]]) -> None:
    """The head stays in float there, and its copy is compared as anywhere."""
    from transformers import BitsAndBytesConfig

    base, library = made(equal(target_modules=["q_proj", "down_proj", "lm_head"]))

    def packed() -> Any:
        config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
        return load_tiny(base, quantization_config=config)

    model = packed()
    with torch.no_grad(), attach(model, load_library(str(library)), ALONE):
        found = model(TOKENS).logits
    with torch.no_grad(), peft_may_warn():
        theirs = packed()
        keep_portable_layout(theirs)
        expected = PeftModel.from_pretrained(theirs, library / "adapter").eval()(TOKENS).logits
    assert relative_error(found, expected) < 1e-4
