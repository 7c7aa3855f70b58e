"""Every task of the pack on invented rows in the hub's schema, and on real ones where there are.

``GKS_DATA_ROOT=<folder>`` names a folder that holds samples as ``<org>/<name>/``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from task_pack import (
    DEMO,
    ENGLISH,
    GROUPS,
    METRICS,
    MULTILINGUAL,
    PEFT,
    PUBLISHED,
    SETS,
    TASKS,
    evaluate,
    load,
    on_this_hub,
)

from gks_eval.errors import HubError
from gks_eval.tasklib.bbh import CHOICE_SUBTASKS, OPEN_SUBTASKS
from gks_eval.util.paths import tasks_dir


# ---------------------------------------------------------------------- the folder
def test_the_names_are_all_there_and_none_is_lm_evals(
    pack: TaskManager, built_in_pack: TaskManager
) -> None:
    assert pack.all_subtasks == sorted(TASKS)
    assert pack.all_groups == sorted(GROUPS)
    assert pack.all_tags == ["gks_bbh_subtasks"]
    assert not set(pack.all_tasks) & set(built_in_pack.all_tasks)


FILES = sorted(p for p in tasks_dir().rglob("*") if p.name.endswith(("yaml", "_yaml")))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(tasks_dir())))
def test_a_file_opens_with_the_command_that_runs_it(path: Path, pack: TaskManager) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    match = re.fullmatch(r"# gks-eval run --model gks_arrow --model_args \S+ --tasks (\S+)", first)
    assert match, first
    named = match[1]
    assert named in pack.all_tasks
    if path.suffix == ".yaml":

        class Plain(yaml.SafeLoader):
            pass

        Plain.add_constructor("!function", lambda loader, node: node.value)
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=Plain)
        assert named == content.get("task" if "include" in content else "group")


def test_a_family_has_a_readme_with_a_changelog() -> None:
    families = [p for p in tasks_dir().iterdir() if p.is_dir() and any(p.glob("*.yaml"))]
    assert families
    for family in families:
        text = (family / "README.md").read_text(encoding="utf-8")
        for heading in ("## Paper", "## Variant", "## Changelog"):
            assert heading in text, family


# ---------------------------------------------------------------------- scores
def test_all_tasks_build_and_score(data_hub: Path, pack: TaskManager, our_model_made: None) -> None:
    names = on_this_hub(data_hub, TASKS)
    results = evaluate(pack, names, with_tokens=True)
    for name in names:
        found = {key.split(",")[0] for key in results["results"][name] if "," in key}
        found -= {key for key in found if key.endswith("_stderr")}
        if name in PUBLISHED:
            assert found == {"acc"}
        elif name.removeprefix("gks_bbh_") in OPEN_SUBTASKS:
            assert found == {"exact_match"}
        else:
            assert found == set(METRICS), name


def test_the_open_subtasks_match_the_first_line_exactly(data_hub: Path, pack: TaskManager) -> None:
    results = evaluate(pack, ["gks_bbh_object_counting"], with_tokens=False)
    samples = results["samples"]["gks_bbh_object_counting"]
    share = np.mean([sample["doc"]["target"] == "3" for sample in samples])
    assert 0 < share < 1
    assert results["results"]["gks_bbh_object_counting"]["exact_match,none"] == share


def test_group_means_are_unweighted_and_gks_all_has_none(
    data_hub: Path, pack: TaskManager, our_model_made: None
) -> None:
    if len(on_this_hub(data_hub, TASKS)) < len(TASKS):
        pytest.skip("the folder lacks alexandrainst/m_hellaswag")
    results = evaluate(pack, ["gks_all", "gks_demo", "gks_peft"], with_tokens=True)
    scores = results["results"]
    members = {"gks_english": [f"gks_{name}" for name in ENGLISH]}
    for group, lang in (("gks_german", "de"), ("gks_french", "fr")):
        members[group] = [f"gks_{name}_{lang}" for name in MULTILINGUAL]
    members["gks_demo"] = [f"gks_{name}" for name in DEMO]
    members["gks_peft"] = [f"gks_peft_{name}" for name in PEFT]
    for group, names in members.items():
        for metric in METRICS if group != "gks_peft" else ["acc"]:
            expected = np.mean([scores[name][f"{metric},none"] for name in names])
            assert scores[group][f"{metric},none"] == pytest.approx(expected, abs=1e-12)
    assert set(results["groups"]) == set(members)
    assert not [key for key in scores["gks_all"] if key.startswith("acc")]
    assert "gks_xnli_en" in scores


def test_bbh_is_the_accuracy_over_all_items_of_23_subtasks(
    data_hub: Path, pack: TaskManager
) -> None:
    names = [f"gks_bbh_{name}" for name in CHOICE_SUBTASKS]
    apart = evaluate(pack, names, with_tokens=True)
    merged = evaluate(pack, ["gks_bbh"], with_tokens=True)
    for metric in METRICS:
        values = [s[metric] for name in names for s in apart["samples"][name]]
        assert merged["results"]["gks_bbh"][f"{metric},none"] == pytest.approx(np.mean(values))
    order = [sample["doc"]["subtask"] for sample in merged["samples"]["gks_bbh"]]
    assert order[:46] == [*CHOICE_SUBTASKS, *CHOICE_SUBTASKS]


@pytest.mark.parametrize("name", [f"gks_{name}" for name in (*SETS, *DEMO)])
def test_metrics_are_lm_evals_own(name: str, data_hub: Path, pack: TaskManager) -> None:
    if not on_this_hub(data_hub, [name]):
        pytest.skip("not in this folder")
    task = load(pack, [name])["tasks"][name]
    random = np.random.default_rng()
    for doc in list(task.eval_docs)[:20]:
        choices = task.doc_to_choice(doc)
        results = [(float(-random.exponential(20)), False) for _ in choices]
        ours = task.process_results(doc, results)
        theirs = ConfigurableTask.process_results(task, doc, results)
        assert "acc_token_norm" not in ours
        if task.multiple_input:
            # lm-eval divides by the length of the contexts; what is scored is the same for both.
            assert ours["acc_norm"] == ours["acc_bytes"] == ours["acc"] == theirs["acc"]
        else:
            assert ours == theirs


def test_samples_hold_token_counts_and_the_same_doc_hash(data_hub: Path, pack: TaskManager) -> None:
    names = ["gks_piqa", "gks_winogrande"]
    plain = evaluate(pack, names, with_tokens=False)
    counted = evaluate(pack, names, with_tokens=True)
    for name in names:
        pairs = zip(plain["samples"][name], counted["samples"][name], strict=True)
        for without, with_counts in pairs:
            for response, filtered in zip(
                with_counts["resps"], with_counts["filtered_resps"], strict=True
            ):
                assert response == [(filtered[0], filtered[1], filtered.tokens)]
                assert len(filtered) == 2
            assert [len(response[0]) for response in without["resps"]] == [2, 2]
            for key in ("doc_hash", "prompt_hash", "target_hash", "doc"):
                assert without[key] == with_counts[key]
            assert "acc_token_norm" not in without["metrics"]
            assert "acc_token_norm" in with_counts["metrics"]


# ---------------------------------------------------------------------- where the data are
def test_the_demo_loads_from_any_folder_and_any_copy_of_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / "elsewhere" / "tasks"
    shutil.copytree(tasks_dir(), copy)
    for root in (tasks_dir(), copy):
        pack = TaskManager(include_path=str(root), include_defaults=False)
        tasks = pack.load(["gks_demo"])["tasks"]
        assert len(tasks) == 6
        assert all(len(task.eval_docs) >= 100 for task in tasks.values())


def test_the_readme_s_task_draws_rows_as_the_authors_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (tasks_dir() / "paper" / "README.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    mine = tmp_path / "my_tasks"
    mine.mkdir()
    (mine / "draw.yaml").write_text(recipe.replace("TASKS", str(tasks_dir())), encoding="utf-8")
    hub = tmp_path / "hub" / "alexandrainst" / "m_arc" / "de"
    hub.mkdir(parents=True)
    rows = [
        {"id": f"r{n}", "instruction": f"Frage {n}?", "answer": "ABCD"[n % 4]}
        | {f"option_{letter}": f"{letter}{n}" for letter in "abcd"}
        for n in range(1000)
    ]
    table = datasets.Dataset.from_list(rows)
    for split in ("train", "val"):
        table.to_json(hub / f"{split}.jsonl")
    (hub.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: de\n  data_files:\n"
        "  - {split: train, path: de/train.jsonl}\n  - {split: val, path: de/val.jsonl}\n---\n"
    )
    monkeypatch.setenv("GKS_DATA_ROOT", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pack = TaskManager(include_path=[str(tasks_dir()), str(mine)], include_defaults=False)
    (task,) = pack.load(["my_arc_challenge_de"])["tasks"].values()
    expected = table.train_test_split(test_size=400, seed=1234)["test"]["id"]
    assert list(task.eval_docs["id"]) == list(expected)
    # From the split that is scored, and from merged subsets.
    for change in ("test_split: train\nvalidation_split: val", "validation_split: train"):
        other = recipe.replace("TASKS", str(tasks_dir())).replace("validation_split: train", change)
        if "test_split" not in change:
            other = other.replace("  draw:", "  subsets: [de]\n  draw:")
        (mine / "draw.yaml").write_text(other, encoding="utf-8")
        (task,) = (
            TaskManager(include_path=[str(tasks_dir()), str(mine)], include_defaults=False)
            .load(["my_arc_challenge_de"])["tasks"]
            .values()
        )
        assert list(task.eval_docs["id"]) == list(expected)


def test_data_that_are_nowhere_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    pack = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    with pytest.raises(HubError, match="'facebook/xnli', subset 'de' could not be loaded"):
        pack.load(["gks_xnli_de"])


# ---------------------------------------------------------------------- linked items
LINKED = {
    **{f"{family}{name}_{lang}": field for family in ("gks_", "gks_paper_")
       for name, field in (("arc_challenge", "id"), ("mmlu", "id"), ("hellaswag", "ind"))
       for lang in ("de", "fr")},
    **{f"{family}xnli_{lang}": "doc_id" for family in ("gks_", "gks_paper_")
       for lang in ("de", "en", "fr")},
    **{f"gks_{name}": "id" for name in DEMO},
    **{f"gks_{family}boolq": "passage" for family in ("", "paper_", "peft_")},
}  # fmt: skip


def test_tasks_declare_what_links_their_items(
    data_hub: Path, pack: TaskManager, our_model_made: None
) -> None:
    """The results record the field, and every document has it."""
    linked = {name: LINKED[name] for name in on_this_hub(data_hub, list(LINKED))}
    results = evaluate(pack, list(linked), with_tokens=True)
    values = {}
    for name, field in linked.items():
        assert results["configs"][name]["metadata"]["cluster"] == field
        rows = results["samples"][name]
        values[name] = {row["doc_id"] if field == "doc_id" else row["doc"][field] for row in rows}
        assert None not in values[name]
    for name in ("gks_demo_science_", "gks_demo_goals_", "gks_xnli_"):
        assert values[f"{name}de"] == values[f"{name}en"] == values[f"{name}fr"]
    for name in MULTILINGUAL:
        if f"gks_{name}_de" in linked:
            assert values[f"gks_{name}_de"] & values[f"gks_paper_{name}_fr"]
    others = [name for name in on_this_hub(data_hub, TASKS) if name not in LINKED]
    assert not any(task.config.metadata.get("cluster")
                   for task in load(pack, others)["tasks"].values())  # fmt: skip
