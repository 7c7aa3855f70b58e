"""What becomes a token that is scored, and every way in which training data can be bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from common import CHAT_TEMPLATE, assert_sentence, save_with_bos
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from gks_eval.errors import DataError, GksError, HubError
from gks_eval.training.examples import IGNORED, DataReport, SourceTarget, encode_pairs
from gks_eval.training.job_data import load_job_data
from gks_eval.training.jobs import make_plan
from gks_eval.training.sources import expert_rows, general_texts
from gks_eval.training.windows import cut_first, cut_packed, window_example


@pytest.fixture
def tokenizer(tiny_base: Callable[[str], Path]) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base("phi3"))


def encode(tokenizer: Any, pairs: list[tuple[str, str]], **options: Any) -> Any:
    report = DataReport()
    how = {"chat": True, "template": "{source}\n", "max_tokens": 512, "loss": "completion"}
    rows = [SourceTarget(number, *pair) for number, pair in enumerate(pairs, start=1)]
    return encode_pairs(tokenizer, rows, report=report, **(how | options)), report


def scored_text(tokenizer: Any, example: Any) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


def test_only_the_answer_and_its_end_are_scored(tokenizer: Any) -> None:
    (example,), _ = encode(tokenizer, [("Say it", "yes")])
    assert tokenizer.decode(list(example.input_ids)) == (
        "<|user|>Say it<|end|><|assistant|>yes<|end|>"
    )
    assert scored_text(tokenizer, example) == "yes<|end|>"


def test_loss_all_scores_every_token(tokenizer: Any) -> None:
    (example,), _ = encode(tokenizer, [("Say it", "yes")], loss="all")
    assert example.labels == example.input_ids
    assert example.scored == len(example.input_ids) - 1


def test_plain_format_ends_with_the_end_of_text(tokenizer: Any) -> None:
    (example,), _ = encode(tokenizer, [("Q", "A")], chat=False, template="In: {source}\nOut: ")
    assert tokenizer.decode(list(example.input_ids)) == "In: Q\nOut: A<|endoftext|>"
    assert scored_text(tokenizer, example) == "A<|endoftext|>"


def test_a_long_row_loses_the_end_of_its_source_and_nothing_else(tokenizer: Any) -> None:
    (example,), report = encode(tokenizer, [("abcdefghij", "answer")], max_tokens=15)
    assert tokenizer.decode(list(example.input_ids)) == (
        "<|user|>abcde<|end|><|assistant|>answer<|end|>"
    )
    assert scored_text(tokenizer, example) == "answer<|end|>"
    assert (report.sources_cut, report.targets_too_long) == (1, 0)


def test_a_target_that_does_not_fit_is_left_out_and_counted(tokenizer: Any) -> None:
    examples, report = encode(tokenizer, [("a", "b"), ("a", "long answer")], max_tokens=12)
    assert len(examples) == 1
    assert (report.targets_too_long, report.first_too_long) == (1, [2])


def test_the_first_window_of_each_long_text() -> None:
    texts = {"a": [1, 2, 3, 4, 5], "b": [6], "c": [7, 8, 9]}
    assert list(cut_first(texts, texts.__getitem__, 3)) == [[1, 2, 3], [], [7, 8, 9]]


def test_packed_windows_lose_only_the_rest() -> None:
    texts = {"a": [1, 2], "b": [3, 4, 5, 6], "c": [7]}
    windows = list(cut_packed(texts, texts.__getitem__, 3, separator=0))
    assert windows == [[1, 2, 0], [3, 4, 5], [6, 0, 7]]
    example = window_example(windows[0], 2, "completion")
    assert example.labels == (IGNORED, IGNORED, 0)


def test_rows_are_drawn_by_seed_and_chosen_by_column(recipe_file: Any, tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "a": "x", "group": n % 2} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    drawn = {}
    for name in ("rows.jsonl", "rows.parquet"):
        member = {
            "file": name, "source": "q", "target": "a", "where": {"group": 1}, "fraction": 0.5,
        }  # fmt: skip
        plan = make_plan(recipe_file(experts={"members": {"x": member}}))
        drawn[name] = expert_rows(plan.jobs[0], tmp_path)
    assert drawn["rows.jsonl"] == drawn["rows.parquet"]
    assert len(drawn["rows.jsonl"]) == 5
    # Row n of the file, from 1, holds q(n-1), whatever `where` and the draw made of it.
    assert all(pair.source == f"q{pair.number - 1}" for pair in drawn["rows.jsonl"])
    assert {int(pair.source[1:]) % 2 for pair in drawn["rows.jsonl"]} == {1}


def test_a_row_is_named_by_its_place_in_the_file(
    recipe_file: Any, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [{"source": f"s{n}", "target": "t", "group": n % 3} for n in range(1, 31)]
    rows[19]["target"] = "long " * 50
    rows[19]["group"] = rows[23]["group"] = 2
    member = {"file": "rows.jsonl", "where": {"group": 2}}
    plan = make_plan(recipe_file(experts={"members": {"x": member}}))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    report = load_job_data(plan.jobs[0], plan.root, tokenizer).report
    assert (report.targets_too_long, report.first_too_long) == (1, [20])
    rows[23]["target"] = ""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(DataError, match="row 24: column 'target' is empty"):
        expert_rows(plan.jobs[0], tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_row(recipe_file: Any, tmp_path: Path) -> None:
    plan = make_plan(recipe_file(experts={"members": {"x": {"file": "marked.jsonl"}}}))
    (tmp_path / "marked.jsonl").write_text('{"source": "a", "target": "b"}', "utf-8-sig")
    assert expert_rows(plan.jobs[0], tmp_path) == [(1, "a", "b")]


def test_a_folder_named_as_the_hub_names_it_is_read_in_its_place(
    recipe_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "org/rows"
    folder.mkdir(parents=True)
    rows = [{"source": f"s{n}", "target": f"t{n}", "group": n % 2} for n in range(10)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    member = {"hub": "org/rows", "where": {"group": [1]}, "rows": 3}
    texts = {"data": {"hub": "org/rows", "column": "source"}, "members": {"en": {}}}
    plan = make_plan(recipe_file(experts={"members": {"x": member}}, general=texts))
    drawn = expert_rows(plan.jobs[0], tmp_path)
    assert len(drawn) == 3
    assert {row.target for row in drawn} <= {f"t{n}" for n in (1, 3, 5, 7, 9)}
    assert list(general_texts(plan.jobs[1], tmp_path)) == [f"s{n}" for n in range(10)]
    gone = make_plan(recipe_file(experts={"members": {"x": {**member, "split": "test"}}}))
    with pytest.raises(HubError, match="Available splits"):
        expert_rows(gone.jobs[0], tmp_path)


def test_windows_in_the_chat_template_with_loss_all(
    recipe_file: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """As the authors train general adapters: the template's text, and nothing masked."""
    member = {"file": "mine.txt", "prompt": 6, "completion": 2}
    general = {"format": "chat", "loss": "all", "held_out": 0, "members": {"en": member}}
    path = recipe_file(general=general)
    (tmp_path / "mine.txt").write_text("abcdefghij", "utf-8")
    plan = make_plan(path)
    job = next(job for job in plan.jobs if job.key == "general/en")
    (example,) = load_job_data(job, plan.root, tokenizer).train
    turns = [{"role": "user", "content": "abcdef"}, {"role": "assistant", "content": "gh"}]
    assert tokenizer.decode(list(example.input_ids)) == tokenizer.apply_chat_template(
        turns, tokenize=False
    )
    assert example.labels == example.input_ids


BOS_TEMPLATE = "{{ bos_token }}" + CHAT_TEMPLATE


@pytest.fixture
def bos_base(tiny_base: Callable[[str], Path], tmp_path: Path) -> Path:
    return save_with_bos(tiny_base("llama"), tmp_path / "with-bos")


@pytest.mark.parametrize("loss", ["completion", "all"])
@pytest.mark.parametrize(
    "template", [None, CHAT_TEMPLATE, BOS_TEMPLATE], ids=["plain", "chat", "bos"]
)
def test_a_row_is_encoded_as_lm_eval_encodes_it(bos_base: Path, template: Any, loss: str) -> None:
    lm = HFLM(pretrained=str(bos_base), device="cpu")
    lm.tokenizer.chat_template = template
    chat = template is not None
    rows = [("Say it", "yes"), ("Say it again", "no")]
    examples, _ = encode(lm.tokenizer, rows, chat=chat, loss=loss, template="Q: {source}\nA: ")
    for (source, target), example in zip(rows, examples, strict=True):
        text = f"Q: {source}\nA: {target}{lm.tokenizer.eos_token}"
        if chat:
            turns = [("user", source), ("assistant", target)]
            text = lm.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in turns], tokenize=False
            )
        assert list(example.input_ids) == lm.tok_encode(text)
        assert example.input_ids.count(lm.tokenizer.bos_token_id) == 1
        end = "<|end|>" if chat else lm.tokenizer.eos_token
        assert scored_text(lm.tokenizer, example) == (text if loss == "all" else target + end)


def test_tokens_that_a_template_writes_in_part_are_not_added_twice(bos_base: Path) -> None:
    """As lm-eval, which adds nothing to a text that begins with ``<s>``."""
    lm = HFLM(pretrained=str(bos_base), device="cpu")
    lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> <|end|> $A",
        special_tokens=[(t, lm.tokenizer.convert_tokens_to_ids(t)) for t in ("<s>", "<|end|>")],
    )
    written = "<|user|>Say it<|end|><|assistant|>yes<|end|>"
    for template, bos, added in ((CHAT_TEMPLATE, "", "<s><|end|>"), (BOS_TEMPLATE, "<s>", "")):
        lm.tokenizer.chat_template = template
        (example,), _ = encode(lm.tokenizer, [("Say it", "yes")])
        assert lm.tokenizer.decode(list(example.input_ids)) == added + bos + written
        assert list(example.input_ids) == lm.tok_encode(bos + written)


def test_the_beginning_counts_for_the_length_of_a_row(bos_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bos_base)
    (example,), report = encode(tokenizer, [("abcdefghij", "answer")], max_tokens=16)
    assert tokenizer.decode(list(example.input_ids)) == (
        "<s><|user|>abcde<|end|><|assistant|>answer<|end|>"
    )
    assert report.sources_cut == 1


@pytest.mark.parametrize("loss", ["completion", "all"])
@pytest.mark.parametrize("cut", ["first", "packed"])
def test_a_window_begins_as_lm_eval_begins_a_text(
    recipe_file: Any, bos_base: Path, tmp_path: Path, cut: str, loss: str
) -> None:
    lm = HFLM(pretrained=str(bos_base), device="cpu")
    member = {"file": "mine.txt", "prompt": 4, "completion": 2, "cut": cut}
    path = recipe_file(general={"loss": loss, "held_out": 0, "members": {"en": member}})
    (tmp_path / "mine.txt").write_text("abcdefghij", "utf-8")
    plan = make_plan(path)
    job = next(job for job in plan.jobs if job.key == "general/en")
    examples = load_job_data(job, plan.root, lm.tokenizer).train
    expected = {"first": ["abcde"], "packed": ["abcde", "fghij"]}[cut]
    assert sorted(list(e.input_ids) for e in examples) == sorted(map(lm.tok_encode, expected))
    for example in examples:
        assert example.scored == (2 if loss == "completion" else 5)
        assert example.labels[0] == IGNORED


def test_a_window_in_the_chat_template_has_the_beginning_before_the_template(
    recipe_file: Any, bos_base: Path, tmp_path: Path
) -> None:
    lm = HFLM(pretrained=str(bos_base), device="cpu")
    member = {"file": "mine.txt", "prompt": 6, "completion": 2}
    path = recipe_file(general={"format": "chat", "held_out": 0, "members": {"en": member}})
    (tmp_path / "mine.txt").write_text("abcdefghij", "utf-8")
    plan = make_plan(path)
    job = next(job for job in plan.jobs if job.key == "general/en")
    (example,) = load_job_data(job, plan.root, lm.tokenizer).train
    text = "<|user|>abcdef<|end|><|assistant|>gh<|end|>"
    assert list(example.input_ids) == lm.tok_encode(text)
    assert example.input_ids[0] == lm.tokenizer.bos_token_id


def test_held_out_rows_are_not_trained_on(recipe_file: Any, tokenizer: Any) -> None:
    plan = make_plan(recipe_file(experts={"held_out": 3}))
    data = load_job_data(plan.jobs[0], plan.root, tokenizer)
    assert len(data.held_out) == 3
    assert len(data.train) == 9
    assert not {e.input_ids for e in data.train} & {e.input_ids for e in data.held_out}


BAD_ROWS = {
    "no column": ('{"source": "a"}', "no column 'target'"),
    "empty": ('{"source": "a", "target": " "}', "column 'target' is empty"),
    "not JSON": ('{"source": "a", "target": "b"}\n{', "half written (line 2)"),
    "not an object": ("[1]", "no JSON object (line 1)"),
    "nothing": ("", "it is empty"),
    "a number": ('{"source": "a", "target": 3}', "column 'target' holds 3, not text"),
    "null": ('{"source": "a", "target": null}', "column 'target' is empty"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_end_in_a_sentence(case: str, recipe_file: Any, tmp_path: Path) -> None:
    text, told = BAD_ROWS[case]
    plan = make_plan(recipe_file(experts={"members": {"x": {"file": "bad.jsonl"}}}))
    (tmp_path / "bad.jsonl").write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        expert_rows(plan.jobs[0], tmp_path)
    assert_sentence(caught.value, "bad.jsonl", told)


def test_a_wrong_encoding_and_a_missing_file_end_in_a_sentence(
    recipe_file: Any, tmp_path: Path
) -> None:
    plan = make_plan(recipe_file(experts={"members": {"x": {"file": "bad.jsonl"}}}))
    with pytest.raises(DataError) as missing:
        expert_rows(plan.jobs[0], tmp_path)
    assert_sentence(missing.value, "bad.jsonl", "does not exist")
    (tmp_path / "bad.jsonl").write_bytes('{"source": "é"}'.encode("latin-1"))
    with pytest.raises(DataError) as encoding:
        expert_rows(plan.jobs[0], tmp_path)
    assert_sentence(encoding.value, "bad.jsonl", "not UTF-8")


def test_a_cluster_without_rows_is_named(recipe_file: Any, tmp_path: Path) -> None:
    member = {"file": "copy.jsonl", "where": {"source": "nothing like it"}}
    plan = make_plan(recipe_file(experts={"members": {"x": member}}))
    with pytest.raises(DataError, match="no row for experts/x with source = nothing like it"):
        expert_rows(plan.jobs[0], tmp_path)


def test_a_task_of_a_cluster_that_no_row_has_is_named(recipe_file: Any, tmp_path: Path) -> None:
    rows = [{"source": "s", "target": "t", "task": task} for task in (1, "b", "b")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    member = {"file": "rows.jsonl", "where": {"task": [1.0, "b", "bb"]}}
    plan = make_plan(recipe_file(experts={"members": {"x": member}}))
    with pytest.raises(DataError, match="no row for experts/x with task = bb;"):
        expert_rows(plan.jobs[0], tmp_path)


def test_nothing_left_after_cutting_is_refused(recipe_file: Any, tokenizer: Any) -> None:
    plan = make_plan(recipe_file(experts={"held_out": 12}))
    with pytest.raises(DataError, match="none remain for training"):
        load_job_data(plan.jobs[0], plan.root, tokenizer)


class Vanishing:
    """A data set on the hub that breaks off after two rows."""

    def __iter__(self) -> Any:
        yield {"text": "first", "source": "a", "target": "b"}
        yield {"text": "second", "source": "a", "target": "b"}
        raise ConnectionError("the connection was closed\nby the other side")


def test_a_data_set_that_vanishes_midway_is_no_short_data_set(
    recipe_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Vanishing())
    plan = make_plan(
        recipe_file(
            experts={"members": {"x": {"hub": "org/rows"}}},
            general={"members": {"en": {"hub": "org/texts"}}},
        )
    )
    caught: list[GksError] = []
    for job, read in zip(plan.jobs, (expert_rows, general_texts), strict=True):
        with pytest.raises(HubError) as error:
            list(read(job, plan.root))
        caught.append(error.value)
    assert_sentence(caught[0], "org/rows", "the connection was closed")
    assert_sentence(caught[1], "org/texts", "local `file`")
