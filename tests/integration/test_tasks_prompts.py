"""The pack's requests: those of lm-eval's own tasks, and the authors' protocol."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest
from common import certain, token_losses
from lm_eval.tasks import TaskManager
from task_pack import BUILT_IN, ENGLISH, NO_EXAMPLES, PEFT, SETS, evaluate, load, on_this_hub

from gks_eval.errors import UsageError
from gks_eval.model.lm import GksArrowLM
from gks_eval.scoring.loglikelihood import TokenLogLikelihood
from gks_eval.tasklib.faults import gold_index


# ---------------------------------------------------------------------- prompts
def built_in_task(pack: TaskManager, name: str, split: str) -> Any:
    """Load lm-eval's own task, told to score the split that ours scores."""
    source = {"task": name, "test_split": split, "training_split": "train"}
    entry = pack.task_index[name]
    if "hellaswag_" in name:
        del source["training_split"]
    return pack._factory.build(entry, overrides=source, registry=pack.task_index)


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_requests_are_those_of_the_built_in_task(
    name: str, num_fewshot: int, data_hub: Path, pack: TaskManager, built_in_pack: TaskManager
) -> None:
    ours_name = f"gks_{name}"
    if not on_this_hub(data_hub, [ours_name]):
        pytest.skip("not in this folder")
    if num_fewshot and ours_name in NO_EXAMPLES:
        pytest.skip("has no split for examples")
    ours = load(pack, [ours_name], num_fewshot)["tasks"][ours_name]
    theirs_name = BUILT_IN[name]
    scores_ours = (theirs_name in ENGLISH and ours.config.training_split) or "xnli" in name
    if scores_ours:
        theirs = built_in_pack.load([theirs_name])["tasks"][theirs_name]
    else:
        theirs = built_in_task(built_in_pack, theirs_name, ours.config.validation_split)
    theirs.set_config("num_fewshot", num_fewshot)
    theirs.set_fewshot_seed(1234)
    for task in (ours, theirs):
        task.build_all_requests()
    # Items that ours drops or theirs has in another form would show here.
    assert len(ours.instances) == len(theirs.instances) > 0
    for a, b in zip(ours.instances, theirs.instances, strict=True):
        assert a.arguments == b.arguments
        assert (a.request_type, a.idx, a.doc_id) == (b.request_type, b.idx, b.doc_id)


@pytest.mark.parametrize("name", NO_EXAMPLES)
@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_examples_are_refused_where_no_split_is_left(
    name: str, data_hub: Path, pack: TaskManager
) -> None:
    task = load(pack, [name], num_fewshot=1)["tasks"][name]
    with pytest.raises(UsageError, match="no split besides the scored one"):
        task.build_all_requests()


# ---------------------------------------------------------------------- the authors' protocol
CHAT = {
    "piqa": ("Remove a candle stain from a tablecloth.", "Freeze the wax, then lift it off."),
    "boolq": (
        "[passage]The ferry runs from six in the morning until eight in the evening."
        "[question]does the orn ferry run at night",
        "true",
    ),
    "swag": ("A girl sits down at the piano. She", "plays a slow tune."),
    "hellaswag": ("A woman kneads dough on a table. she", "puts it into a tin and covers it."),
    "arc_challenge": ("Which object gives off its own light?", "a mirror"),
    "arc_easy": ("Which object gives off its own light?", "a mirror"),
    "winogrande": ("Tom asked Ben for salt, but _ had none left.", "Tom"),
    "openbookqa": ("To see in a dark cave one needs", "a torch"),
    "bbh": ("( True ) and not False is", "True"),
    "xnli_fr": (
        "[premise]Le magasin ferme à midi."
        "[hypothesis]À trois heures, le magasin est fermé.[relationship]",
        "entailment",
    ),
    "arc_challenge_de": ("Welcher Stoff leitet Strom gut?", "Kupfer"),
    "mmlu_de": (" Wie viele Ecken hat ein Würfel?", "4"),
    "hellaswag_de": (
        "Eine Frau knetet Teig auf einem Tisch. sie",
        "legt ihn in eine Form und deckt ihn zu.",
    ),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("paper", name) for name in sorted(CHAT)), *(("peft", name) for name in PEFT)],
)
@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_the_published_protocols_score_chat_texts(
    family: str, name: str, data_hub: Path, pack: TaskManager, our_model_made: None
) -> None:
    task = load(pack, [f"gks_{family}_{name}"])["tasks"][f"gks_{family}_{name}"]
    task.build_all_requests()
    content, choice = CHAT[name]
    first = task.instances[0]
    assert first.request_type == "loglikelihood"
    assert first.arguments == (
        f"<|user|>\n{content}<|end|>\n<|assistant|>",
        f"{choice}<|end|>\n",
        {"protocol": {"paper": "whole_text", "peft": "choice_text"}[family], "max_tokens": 512},
    )


@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_the_paper_predicts_the_lowest_mean_loss(
    data_hub: Path, pack: TaskManager, our_model_made: None
) -> None:
    task = load(pack, ["gks_paper_piqa"])["tasks"]["gks_paper_piqa"]
    doc = task.eval_docs[0]
    assert doc["label"] == 0

    def accuracy(*results: TokenLogLikelihood) -> dict[str, float]:
        return task.process_results(doc, list(results))

    # Mean losses by hand: 3.0 and 2.5; 2.0 and 2.5; a tie at 2.0, where the first is predicted.
    pair = TokenLogLikelihood
    assert accuracy(pair(-30.0, False, 10), pair(-50.0, False, 20)) == {"acc": 0.0}
    assert accuracy(pair(-20.0, False, 10), pair(-50.0, False, 20)) == {"acc": 1.0}
    assert accuracy(pair(-20.0, False, 10), pair(-40.0, False, 20)) == {"acc": 1.0}
    # Tokens of loss 0 do not count: 30 / 10 and 50 / 20, then 30 / 15 and 50 / 10.
    assert accuracy(pair(-30.0, False, 15, 10), pair(-50.0, False, 20, 20)) == {"acc": 0.0}
    assert accuracy(pair(-30.0, False, 15, 15), pair(-50.0, False, 20, 10)) == {"acc": 1.0}
    # If all are 0, the sum 0 is divided by 1: the lowest loss there is. Of two, the first.
    assert accuracy(pair(-1e-6, False, 10), pair(0.0, True, 20, 0)) == {"acc": 0.0}
    assert accuracy(pair(0.0, True, 10, 0), pair(0.0, True, 20, 0)) == {"acc": 1.0}
    with pytest.raises(UsageError, match="run it with --model gks_arrow"):
        task.process_results(doc, [(-1.0, False), (-2.0, False)])


@pytest.mark.parametrize(("family", "sets"), [("paper", SETS), ("peft", PEFT)])
def test_the_published_protocols_predict_as_a_naive_loop_does(
    family: str, sets: list[str], data_hub: Path, pack: TaskManager, tiny_base: Any
) -> None:
    """Every set, on a model that is certain of some tokens: tokens of loss 0 do not count."""
    lm = GksArrowLM(str(tiny_base("phi3")), router=None, dtype="float32")
    names = [f"gks_{family}_{name}" for name in on_this_hub(data_hub, sets)]
    tasks = load(pack, names)
    seen = {"items": 0, "changed": 0}
    with certain(lm, "e"):
        found = lm_eval.evaluate(
            lm=lm, task_dict=tasks, bootstrap_iters=0, log_samples=True, limit=12
        )
        assert found is not None
        for name in names:
            task = tasks["tasks"][name]
            for sample in found["samples"][name]:
                losses = [
                    scored_losses(lm, family, prompt, text)
                    for prompt, text, _ in sample["arguments"]
                ]
                predicted = best_of(losses, [sum(loss != 0 for loss in one) for one in losses])
                gold = gold_index(task.doc_to_choice(sample["doc"]), sample["target"])
                assert sample["acc"] == float(predicted == gold), (name, sample["doc_id"])
                seen["items"] += 1
                seen["changed"] += predicted != best_of(losses, [len(one) for one in losses])
    assert seen["items"] >= len(names)
    assert seen["changed"] > 0, "dividing by all tokens would predict the same"


def scored_losses(lm: GksArrowLM, family: str, prompt: str, text: str) -> list[float]:
    """Return the losses that a protocol looks at: all, or those from the prompt's last token on."""
    losses = token_losses(lm, prompt + text)
    before = len(lm.tokenizer.encode(prompt)) - 1 if family == "peft" else 1
    return [loss for position, loss in enumerate(losses, start=1) if position >= before]


def best_of(losses: list[list[float]], divisors: list[int]) -> int:
    means = [sum(one) / max(1, n) for one, n in zip(losses, divisors, strict=True)]
    return means.index(min(means))


@pytest.mark.parametrize(
    ("options", "num_fewshot", "named"),
    [
        ({"apply_chat_template": True, "chat_template": str}, 0, "--apply_chat_template"),
        ({"system_instruction": "Be brief."}, 0, "--system_instruction"),
        ({}, 3, "--num_fewshot 3"),
    ],
)
@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_the_paper_refuses_other_prompts(
    options: dict[str, Any],
    num_fewshot: int,
    named: str,
    data_hub: Path,
    pack: TaskManager,
    our_model_made: None,
) -> None:
    task = load(pack, ["gks_paper_piqa"], num_fewshot)["tasks"]["gks_paper_piqa"]
    with pytest.raises(UsageError, match=f"{named} cannot be used with it.*run gks_piqa"):
        task.build_all_requests(**options)


@pytest.mark.parametrize("module", [None, SimpleNamespace(CREATED=0)])
@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_the_paper_refuses_another_model_before_it_runs(
    module: Any, data_hub: Path, pack: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gks_eval.model.lm", module)
    with pytest.raises(UsageError, match=r"gks_paper_swag .* run it with --model gks_arrow"):
        evaluate(pack, ["gks_paper_swag"], with_tokens=True)


@pytest.fixture
def kept_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give lm-eval's --cache_requests an empty folder."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "prompts"))
    return tmp_path / "prompts"


@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_kept_prompts_are_those_of_the_tasks_content(
    data_hub: Path, pack: TaskManager, kept_prompts: Path
) -> None:
    def prompts() -> list[str]:
        task.build_all_requests(cache_requests=True)
        return [one.args[0] for one in task.instances]

    task = load(pack, ["gks_piqa"])["tasks"]["gks_piqa"]
    first = prompts()
    assert prompts() == first
    assert len(list(kept_prompts.iterdir())) == 1
    task.set_config("doc_to_text", "{{goal}} So:")
    assert prompts() == [
        text.replace("Question: ", "").replace("\nAnswer:", " So:") for text in first
    ]
    for items in ({"limit": 1}, {"samples": [1]}):
        with pytest.raises(UsageError, match="would score the prompts of other items"):
            task.build_all_requests(cache_requests=True, **items)


@pytest.mark.parametrize("data_hub", ["invented"], indirect=True)
def test_the_paper_refuses_another_model_where_prompts_were_kept(
    data_hub: Path, pack: TaskManager, kept_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gks_eval.model.lm", SimpleNamespace(CREATED=1))
    task = load(pack, ["gks_paper_swag"])["tasks"]["gks_paper_swag"]
    task.build_all_requests(cache_requests=True)
    monkeypatch.setitem(sys.modules, "gks_eval.model.lm", SimpleNamespace(CREATED=0))
    with pytest.raises(UsageError, match="run it with --model gks_arrow"):
        task.build_all_requests(cache_requests=True)
