"""The tasks through the real commands, offline, in a folder that stands in for the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gks_eval.cli.main import main
from gks_eval.util.paths import tasks_dir

HUB = Path(__file__).parent.parent / "data" / "hub"


def offline(tmp_path: Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "GKS_DATA_ROOT"} | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def lm_eval(tmp_path: Path, model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--batch_size", "8"]
    command += ["--include_path", str(tasks_dir()), *arguments]
    return subprocess.run(
        command, cwd=HUB, env=offline(tmp_path), capture_output=True, text=True, check=False
    )


def test_lm_eval_runs_the_pack_on_another_model(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    tasks = "gks_all,gks_demo,gks_bbh_object_counting"
    done = lm_eval(
        tmp_path,
        tiny_base("llama"),
        *(
            "--tasks",
            tasks,
            "--limit",
            "3",
            "--log_samples",
            "--output_path",
            str(tmp_path / "out"),
        ),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    for group in ("gks_english", "gks_german", "gks_french", "gks_demo"):
        scores = results["groups"][group]
        assert {"acc,none", "acc_norm,none", "acc_bytes,none"} <= set(scores)
        assert "acc_token_norm,none" not in scores
    assert results["n-shot"]["gks_bbh"] == 0
    assert len(list((tmp_path / "out").rglob("samples_gks_*.jsonl"))) == 17 + 1 + 6 + 1


def test_lm_eval_refuses_the_paper_family_early(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    done = lm_eval(tmp_path, tiny_base("llama"), "--tasks", "gks_paper_german")
    assert done.returncode != 0
    assert "gks_paper_arc_challenge_de scores whole texts" in done.stderr
    assert "run it with --model gks_arrow" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lm_eval: error: gks_paper_arc_challenge_de")
    assert "Running loglikelihood requests" not in done.stdout + done.stderr


def test_lm_eval_names_the_task_whose_yaml_is_wrong(
    tmp_path: Path, tiny_library: Callable[..., Path]
) -> None:
    rows = [{"q": "Bees make", "c": ["honey", "stone"], "a": 5}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n",
        "utf-8",
    )
    code = (
        "import sys; sys.argv[0] = 'lm_eval'\n"
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )
    done = subprocess.run(
        [
            sys.executable, "-c", code, "run", "--model", "gks_arrow", "--tasks", "toy",
            "--model_args", f"library={tiny_library('phi3')}", "--include_path", str(tmp_path),
            "--device", "cpu",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lm_eval: error in task toy, item 0: ")
    assert last.endswith("toy.yaml.")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gks-eval", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_tasks_prints_the_folder_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "tasks") == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{tasks_dir()}\n", "")
    assert (Path(out.strip()) / "demo" / "gks_demo.yaml").is_file()


@pytest.fixture
def hub_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("GKS_DATA_ROOT", raising=False)
    monkeypatch.chdir(shutil.copytree(HUB, tmp_path / "hub"))
    return tmp_path / "hub"


def test_lint_of_sound_data_ends_well(
    hub_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "lint", "gks_german", "gks_swag") == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "gks_hellaswag_de" in line]
    assert " item " not in out


def test_lint_reports_and_ends_with_the_data_error(
    hub_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = hub_copy / "facebook" / "xnli" / "de" / "validation.jsonl"
    text = rows.read_text(encoding="utf-8").replace('"label": 2', '"label": 7')
    rows.write_text(text, encoding="utf-8")
    assert run_main(monkeypatch, "lint", "gks_xnli_de") == 6
    out, err = capsys.readouterr()
    told = "gks_xnli_de item 2: gold answer outside the choices (7 with 3 choices)"
    assert told in out.splitlines()
    assert "gks-eval: error: faulty items: 1, in 1 of 1 tasks" in err


def test_lint_of_an_unknown_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "lint", "gks_pika") == 2
    err = capsys.readouterr().err
    assert "gks-eval: error: 'gks_pika' is no task of this pack; did you mean 'gks_piqa'" in err


def test_lint_goes_on_past_a_set_that_is_not_there(
    hub_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(hub_copy / "aps")
    (hub_copy / "baber/piqa/plain_text/validation.jsonl").write_text('{"goal": 1', "utf-8")
    rows = hub_copy / "facebook/xnli/de/validation.jsonl"
    text = rows.read_text(encoding="utf-8").replace('"label": 2', '"label": 7')
    rows.write_text(text, encoding="utf-8")
    assert run_main(monkeypatch, "lint", "gks_english", "gks_xnli_de", "gks_xnli_de") == 8
    out, err = capsys.readouterr()
    lines = out.splitlines()
    unread = [line for line in lines if "not read" in line]
    assert [line.split(":")[0] for line in unread] == ["gks_piqa", "gks_boolq"]
    assert "'aps/super_glue', subset 'boolq' could not be loaded" in unread[1]
    assert "gks_xnli_de item 2: gold answer outside the choices (7 with 3 choices)" in lines
    named = {line.split()[0].rstrip(":") for line in lines if line.strip().startswith("gks_")}
    assert len(named) == 10
    said = "gks-eval: error: 2 of 10 tasks could not be read, gks_piqa first:"
    assert said in err
    assert "faulty items in the others: 1." in err


def test_lint_reads_the_folder_of_data_sets(
    hub_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKS_DATA_ROOT", str(hub_copy))
    assert run_main(monkeypatch, "lint", "gks_boolq") == 0


def test_lint_reports_an_item_that_offers_one_option(
    hub_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (rows,) = (hub_copy / "SaylorTwift/bbh/snarks").glob("*.jsonl")
    # As item 88 of the official set is cut off.
    cut = {"input": "Which statement is sarcastic?\nOptions:\n(A) The NB", "target": "(A)"}
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(cut) + "\n")
    count = len(rows.read_text("utf-8").splitlines())
    assert run_main(monkeypatch, "lint", "gks_bbh_snarks") == 6
    told = f"gks_bbh_snarks item {count - 1}: single option ('(A)' alone)"
    assert told in capsys.readouterr().out.splitlines()
