"""`gks-eval run`: what it hands to lm-eval, and a real run of lm-eval with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gks_eval.cli.run import (
    check_asked,
    check_output_path,
    config_of,
    folders_of_config,
    harness_argv,
    include_paths,
    token_to_environment,
)
from gks_eval.errors import ResourceError, UsageError
from gks_eval.util.paths import tasks_dir


@pytest.mark.parametrize(
    ("given", "argv", "folders"),
    [
        ("", "run", ""),
        ("--help", "run --help", ""),
        ("--model hf --tasks a b", "run --model hf --tasks a b", ""),
        ("run --model hf", "run --model hf", ""),
        ("ls tasks", "ls tasks", ""),
        ("validate --tasks a", "validate --tasks a", ""),
        ("--include_path x --model hf", "run --model hf", "x"),
        ("--model hf --include_path=x", "run --model hf", "x"),
        ("ls tasks --include_path x --include_path=y", "ls tasks", "x y"),
        ("--model_args a=1 b=2 -b 8", "run --model_args a=1 b=2 -b 8", ""),
    ],
)
def test_include_path_is_parted_from_the_rest(given: str, argv: str, folders: str) -> None:
    assert harness_argv(given.split()) == (argv.split(), folders.split())


@pytest.mark.parametrize("given", ["--include_path", "--include_path=", "--include_path --model"])
def test_include_path_without_a_folder_is_a_usage_error(given: str) -> None:
    with pytest.raises(UsageError, match="needs a folder"):
        harness_argv(given.split())


def test_the_users_folders_come_after_ours(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    ours = str(tasks_dir())
    assert include_paths([]) == [ours]
    assert include_paths([str(one), str(two)]) == [ours, str(one), str(two)]
    assert include_paths([], [str(two)]) == [ours, str(two)]
    assert include_paths([str(one)], [str(two)]) == [ours, str(one)]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path / 'no'} is not a folder"):
        include_paths([str(tmp_path / "no")])


@pytest.fixture
def toy_task(tmp_path: Path) -> Path:
    """A folder with one task of one item."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"q": "2 + 2 =", "c": ["4", "5"], "a": 0}) + "\n")
    (tmp_path / "toy.yaml").write_text(
        f"task: toy\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\ndoc_to_target: "{{a}}"\n'
    )
    return tmp_path


def gks_eval_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from gks_eval.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "run", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "GKS_EVAL_BRIDGE": "0"},
    )


def test_lm_eval_runs_the_users_task_and_is_given_ours(toy_task: Path) -> None:
    # argparse lets the flag be written shorter; it must not get lost.
    done = gks_eval_run(toy_task, "--model", "dummy", "--tasks", "toy", "--include", str(toy_task))
    assert done.returncode == 0, done.stderr
    assert "|toy" in done.stdout
    assert str([str(tasks_dir()), str(toy_task)]) in done.stderr


@pytest.mark.parametrize("value", ["x", "[x]", "[x, y]", "", None])
def test_the_folders_of_lm_evals_configuration_file(tmp_path: Path, value: str | None) -> None:
    file = tmp_path / "config.yml"
    file.write_text("model: hf\n" if value is None else f"include_path: {value}\n")
    expected = {"x": ["x"], "[x]": ["x"], "[x, y]": ["x", "y"]}.get(value or "", [])
    assert folders_of_config(config_of(str(file))) == expected


def test_lm_evals_own_error_is_one_sentence_and_knows_our_model(toy_task: Path) -> None:
    done = gks_eval_run(
        toy_task, "--model", "no-such-model", "--tasks", "toy", "--include_path", str(toy_task)
    )
    assert done.returncode == UsageError.exit_code
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gks-eval: error: lm-eval stopped:")
    assert "gks_arrow" in last  # though the start-up bridge is off


@pytest.mark.parametrize("output", ["file", "file/below", "file/results.json"])
def test_an_output_that_cannot_be_written_is_told_at_once(tmp_path: Path, output: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        check_output_path(str(tmp_path / output))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("output", ["new/folder", "new/results.json", "results.json", "."])
def test_an_output_that_can_be_written_is_left_alone(tmp_path: Path, output: str) -> None:
    check_output_path(str(tmp_path / output))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_comes_before_the_model(toy_task: Path) -> None:
    arguments = ("--tasks", "toy", "--include_path", str(toy_task), "--output_path")
    early = gks_eval_run(toy_task, "--model", "no-such-model", *arguments, "rows.jsonl/x")
    assert early.returncode == ResourceError.exit_code
    assert early.stderr.splitlines()[-1].startswith("gks-eval: error: rows.jsonl/x cannot be")
    assert "no-such-model" not in early.stderr


def test_results_that_lm_eval_could_not_save_are_an_error(toy_task: Path) -> None:
    (toy_task / "out").mkdir()
    (toy_task / "out/x").touch()  # where lm-eval wants a folder
    arguments = ("--tasks", "toy", "--include_path", str(toy_task), "--output_path", "out")
    late = gks_eval_run(toy_task, "--model", "dummy", "--model_args", "pretrained=x", *arguments)
    assert "|toy" in late.stdout
    assert late.returncode == ResourceError.exit_code
    assert "could not save all of the results" in late.stderr.splitlines()[-1]


def test_a_token_goes_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "old")
    arguments = {"pretrained": "x", "token": "hf_new"}
    token_to_environment("local-completions", arguments)
    assert arguments["token"] == "hf_new"
    token_to_environment("gks_arrow", arguments)
    assert arguments == {"pretrained": "x"}
    assert os.environ["HF_TOKEN"] == "hf_new"


@pytest.mark.parametrize("items", [{"limit": 5.0}, {"limit": 0}, {"samples": '{"toy": [1]}'}])
@pytest.mark.parametrize("cache", [{"cache_requests": True}, "true"])
def test_kept_prompts_and_a_part_of_the_items_exclude_each_other(
    items: dict[str, object], cache: object
) -> None:
    with pytest.raises(UsageError, match="other items; leave --cache_requests out"):
        check_asked({"cache_requests": cache, "tasks": ["toy"], **items}, [])
    check_asked({"cache_requests": cache, "tasks": ["toy"]}, [])
    check_asked({"cache_requests": {"cache_requests": False}, "tasks": ["toy"], **items}, [])


@pytest.mark.parametrize(
    ("tasks", "asked", "said"),
    [
        (["gks_demo"], {"num_fewshot": 5}, "--num_fewshot 5 asks for examples, but gks_demo_"),
        ("gks_bbh", {"num_fewshot": 1}, "but gks_bbh has no split"),
        (["gks_paper_german"], {"num_fewshot": 2}, "gks_paper_arc_challenge_de follows a "),
        (["gks_peft"], {"num_fewshot": 2}, "or run gks_arc_challenge."),
        (["gks_paper_piqa"], {"apply_chat_template": True}, "--apply_chat_template cannot be"),
        (["gks_paper_piqa"], {"system_instruction": "x"}, "--system_instruction cannot be used"),
    ],
)
def test_what_a_task_cannot_do_is_refused_before_a_model_is_loaded(
    tasks: object, asked: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_asked({"tasks": tasks, **asked}, [])
    check_asked({"tasks": ["gks_piqa", "unknown"], "num_fewshot": 5}, [])
