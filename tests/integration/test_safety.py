"""Nothing unsafe by default: secrets stay secret, texts stay texts, strangers' code is not run."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from common import save_tiny_base
from evidence_factory import sample, write_run

from gks_eval.cli.main import main
from gks_eval.evidence.results import read_results

SECRETS = {
    "HF_TOKEN": "hf_PlantedToken",
    "AWS_SECRET_ACCESS_KEY": "PlantedAwsKey",
    "OPENAI_API_KEY": "sk-PlantedKey",
    "HTTPS_PROXY": "http://me:PlantedPassword@127.0.0.1:9",
}
HOSTILE = "<script>x</script>|=1+1|\\end{tabular}[1em]*_&%$#~^{}`"
FORMULAS = ("=cmd|'/c calc'!A1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1")


@pytest.fixture
def gks_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return ``run(*arguments)``: exit status and all that was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gks-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capfd.readouterr())

    return run


# --------------------------------------------------------------------------- secrets


def assert_no_secret(folder: Path, printed: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"Planted" not in path.read_bytes(), path
    assert "Planted" not in printed, printed


def test_no_secret_of_the_environment_is_written_or_printed(
    gks_eval: Callable[..., tuple[int, str]],
    tiny_base: Callable[[str], Path],
    tiny_library: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    library = tiny_library("phi3")
    rows = "".join(json.dumps({"source": f"{n}", "target": "x"}) + "\n" for n in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    recipe = {
        "base_model": str(tiny_base("phi3")),
        "adapter": {"targets": ["o_proj"]},
        "schedule": {"optimizer": "adamw"},
        "experts": {"members": {"one": {"file": "rows.jsonl"}}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    grid = ["grid", "--library", library, "--tasks", "gks_demo_goals_en", "--limit", "2"]
    routes = ["routes", "--library", library, "--task", "gks_demo_goals_en", "--limit", "1"]
    commands: list[list[object]] = [
        [*grid, "--settings", "base,arrow", "--output", "runs", "--model-args", "token=hf_Planted"],
        [*routes, "--output", "runs/routes.json"],
        ["report", "runs", "--output", "page.html"],
        *(["compare", "runs", "--format", f] for f in ("terminal", "json", "csv", "latex")),
        ["library", "show", library],
        ["train", "recipe.yaml", "--output", "made"],
    ]
    for command in commands:
        status, printed = gks_eval(*command)
        assert status == 0, printed
        assert_no_secret(tmp_path, printed)
    misspelt = ["--settings", "base", "--output", "other", "--model-args", "tokne=hf_Planted"]
    status, printed = gks_eval(*grid, *misspelt)
    assert status == 2
    assert "unknown argument tokne;" in printed
    assert_no_secret(tmp_path, printed)
    malformed = [
        ["--settings", "base", "--model-args", "token=hf_Planted,hf_Planted"],
        ["--settings", "base", "--model-args", "token=hf_Planted,dtype="],
        ["--settings", "arrow;token=hf_Planted"],
        ["--settings", "arrow,token=hf_Planted"],
    ]
    for options in malformed:
        status, printed = gks_eval(*grid, *options, "--output", "other")
        assert status == 2
        assert_no_secret(tmp_path, printed)


def test_no_secret_goes_through_lm_evals_command_line(
    tiny_library: Callable[..., Path], tmp_path: Path
) -> None:
    code = "from gks_eval.cli.main import main; main()"
    command = [
        sys.executable, "-c", code, "run", "--model", "gks_arrow", "--model_args",
        f"library={tiny_library('phi3')},subtract=en,token=hf_PlantedArgument", "--tasks",
        "gks_demo_goals_en", "--limit", "2", "--output_path", "out", "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **SECRETS, "LMEVAL_LOG_LEVEL": "DEBUG"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("samples_*.jsonl"))) == 1
    assert_no_secret(tmp_path, done.stdout + done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        "base_url=https://me:Planted@host/v1,model=x",
        "pretrained=x,hf_token=Planted,password=Planted",
        "api_key=Planted",
        {"base_url": "https://me:Planted@host/v1", "header": {"Authorization": "Bearer Planted"}},
        {"proxies": [{"https": "http://me:Planted@host:1"}], "aws_secret_access_key": "Planted"},
        {"x-api-key": "Planted", "credentials": ["Planted"]},
    ],
    ids=str,
)
def test_secrets_in_the_arguments_of_any_model_are_not_shown(
    arguments: Any, gks_eval: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """lm-eval itself writes them into its results: what we make of these must not hold them."""
    change = {"model_name": "https://me:Planted@host/v1"}
    path = write_run(tmp_path / "a", {"t": [1.0, 0.0] * 9}, model_args=arguments, change=change)
    write_run(tmp_path / "b", {"t": [1.0, 0.0] * 9}, model_args=arguments, change=change)
    found = read_results(path)
    assert "***" in found.model_args
    assert "Planted" not in f"{found.model_args} {found.info}"
    assert gks_eval("report", "a", "b", "--output", "page.html")[0] == 0
    assert "Planted" not in (tmp_path / "page.html").read_text("utf-8")
    status, printed = gks_eval("compare", "a", "b", "--format", "json")
    assert status == 0
    assert "Planted" not in printed


# --------------------------------------------------------------------------- texts


@pytest.fixture
def hostile_runs(tmp_path: Path) -> list[str]:
    """Two runs whose labels, tasks, prompts and arguments are out to break what shows them."""
    sources = []
    for n, label in enumerate((f"{HOSTILE}".replace("/", ""), FORMULAS[0].replace("/", ""))):
        task = HOSTILE.replace("/", "")
        rows = [sample(i, float((i + n) % 3 > 0), prompt=f"{HOSTILE} {i}") for i in range(30)]
        folder = tmp_path / f"run-{n}"
        write_run(folder, {task: rows, "+1": [1.0, 0.0] * 9}, model_args=f"pretrained={HOSTILE}")
        sources.append(f"{label.split('=')[0] or 'x'}={folder}")
    return sources


def test_texts_stay_texts_in_every_format(
    hostile_runs: list[str], gks_eval: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    shown = {}
    for how in ("terminal", "markdown", "latex", "csv", "json"):
        status, shown[how] = gks_eval("compare", *hostile_runs, "--format", how)
        assert status == 0, shown[how]
    rows = [line for line in shown["markdown"].splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert set(bars[: bars.index(bars[0]) + 3]) == {bars[0]}
    assert "<script>" not in shown["markdown"]
    for line in csv.reader(io.StringIO(shown["csv"])):
        for cell in line:
            number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)
            assert number or cell.lstrip()[:1] not in ("=", "+", "-", "@"), cell
    plain = re.sub(r"\\[\\{}$&#%_]|\\text\w+\{\}|\{[*\[]\}", "", shown["latex"])
    assert not re.findall(r"\\(?!begin|end|[a-z]+rule|textbf|underline|usepackage)", plain)
    assert shown["latex"].count(r"\end{tabular}") == 1
    assert json.loads(shown["json"])
    assert not set(shown["terminal"]) & {"\x1b", "\r", "\t"}


def test_texts_stay_texts_in_the_gate_and_on_the_page(
    hostile_runs: list[str], gks_eval: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    old, new = (source.rpartition("=")[2] for source in hostile_runs)
    outputs = ["--junit", "g.xml", "--markdown", "g.md", "--json", "g.json"]
    status, _ = gks_eval("gate", "--baseline", old, "--candidate", new, *outputs)
    assert status in (1, 2)
    assert ET.parse(tmp_path / "g.xml").getroot().tag == "testsuites"
    assert "<script>" not in (tmp_path / "g.md").read_text("utf-8")
    assert json.loads((tmp_path / "g.json").read_text("utf-8"))
    assert gks_eval("report", *hostile_runs, "-o", "page.html", "--title", HOSTILE)[0] == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "<script>x" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?i)\b(?:src|href|action)\s*=\s*["']?[^"'#\s]""", page)
    assert not re.findall(
        r"(?i)url\(\s*[\"']?(?!#|data:)|@import|\bfetch\(|XMLHttp|sendBeacon", page
    )


def test_log_likelihoods_that_are_no_numbers_leave_the_page_alone(
    gks_eval: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Python writes them as NaN and Infinity, at which a browser's JSON stops."""
    rows = [sample(i, float(i % 2)) for i in range(12)]
    rows[0]["filtered_resps"] = [["nan", "False"], ["-inf", "False"]]
    rows[1]["filtered_resps"] = [[float("inf"), "False"], [10**400, "False"]]
    write_run(tmp_path / "a", {"t": rows})
    assert gks_eval("report", "a", "-o", "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text("utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    items = json.loads(data, parse_constant=pytest.fail)["items"]
    assert items[0][7] == items[1][7] == [[None, None]]
    assert items[2][7] != [[None, None]]


# --------------------------------------------------------------------------- strangers' code


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["pickle", "remote code", "half a file"])
def test_a_base_that_brings_code_or_is_torn_ends_in_a_sentence(
    how: str, gks_eval: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    base, mark = save_tiny_base(tmp_path / "base", "llama"), tmp_path / "code-ran"
    if how == "pickle":
        (base / "model.safetensors").unlink()
        (base / "pytorch_model.bin").write_bytes(pickle.dumps(_Runs(mark), protocol=2))
    elif how == "half a file":
        weights = base / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config = json.loads((base / "config.json").read_text("utf-8"))
        classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
        config |= {"model_type": "mine", "auto_map": classes}
        (base / "config.json").write_text(json.dumps(config))
        (base / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    status, printed = gks_eval(
        "grid", "--settings", "base", "--tasks", "gks_demo_goals_en", "--limit", "1",
        "--pretrained", base, "--output", "out",
    )  # fmt: skip
    assert not mark.exists()
    assert status != 0
    assert "Traceback" not in printed
    assert "gks-eval: error: " in printed.splitlines()[-1]
