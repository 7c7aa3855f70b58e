"""Every command in the documents can be parsed: its names, options and values are those we have.

The README's are run as well, in tests/integration/test_readme.py.
"""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from readme_blocks import (
    EXTENDING,
    ROOT,
    Command,
    block_commands,
    fences,
    inline_commands,
    run_extending_blocks,
)

from gks_eval.method.registry import ROUTERS
from gks_eval.training.jobs import make_plan

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "tasks").rglob("*.md")),
]
HEADED = [*sorted((ROOT / "adapters").glob("*/*.yaml")), *sorted((ROOT / "tasks").glob("*/*.yaml"))]
# Options that documents name of programs other than ours, lm-eval's and torchrun's.
FOREIGN = {"--no-deps", "--target"}
TASK_LINE = re.compile(r"^(?:task|group|tag): *['\"]?([\w-]+)", re.MULTILINE)


def headers(path: Path) -> list[Command]:
    """Return the commands that a YAML of ours opens with, and those that it was made by."""
    first = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    found = [first] if first.startswith(("gks-eval ", "lm_eval ", "OMP_NUM_THREADS")) else []
    if path.name == "library.yaml":
        found += yaml.safe_load(path.read_text("utf-8")).get("made_by", [])
    name = path.relative_to(ROOT).as_posix()
    return [Command(name, 1, text) for text in found if not text.startswith("hf download ")]


def job_commands(path: Path) -> list[Command]:
    """Return the grids that a job's script starts, without srun."""
    whole = path.read_text("utf-8").replace("\\\n", " ")
    name = path.relative_to(ROOT).as_posix()
    return [Command(name, 1, text) for text in re.findall(r"((?:torchrun|gks-eval) .*)", whole)]


JOBS = sorted((ROOT / "docs/examples").glob("*.sbatch"))
COMMANDS = [
    *(command for path in DOCUMENTS for command in block_commands(path)),
    *(command for path in DOCUMENTS for command in inline_commands(path)),
    *(command for path in HEADED for command in headers(path)),
    *(command for path in JOBS for command in job_commands(path)),
]


@pytest.fixture(scope="module")
def app() -> Any:
    from gks_eval.cli.main import build_app

    return typer.main.get_command(build_app())


def benchmark_app() -> Any:
    from benchmarks.__main__ import build_app

    return typer.main.get_command(build_app())


@pytest.fixture(scope="module")
def known_tasks() -> set[str]:
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "tasks").rglob("*.yaml"))]
    return {name for text in texts for name in TASK_LINE.findall(text)}


def check(words: list[str], command: Command, app: Any, known_tasks: set[str]) -> None:
    """Check one command, given as its words."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, rest = words[0], words[1:]
    if program == "torchrun":
        check(after_torchrun(rest, command), command, app, known_tasks)
        return
    # An ellipsis stands for more arguments, and a code span in running text may be a part only.
    whole = not command.inline and "..." not in rest
    rest = [word for word in rest if word != "..."]
    if program == "lm_eval" or (program == "gks-eval" and rest[:1] == ["run"]):
        check_lm_eval(rest if program == "lm_eval" else rest[1:], command, known_tasks)
    elif program == "gks-eval":
        check_ours(rest, command, app, known_tasks, whole)
    elif [program, *rest[:2]] == ["python", "-m", "benchmarks"]:
        check_ours(rest[2:], command, benchmark_app(), known_tasks, whole)
    elif program.startswith("docs/"):
        assert os.access(ROOT / program, os.X_OK), f"{command.where}: {program} cannot be run"
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend((ROOT / program).parent)
            runpy.run_path(str(ROOT / program))["arguments"](rest)
    elif program == "make":
        assert rest[-1] in make_targets(), command.where
    else:
        assert (program, rest[0]) == ("pip", "install"), f"{command.where}: unknown: {program}"


def check_ours(
    rest: list[str], command: Command, app: Any, known_tasks: set[str], whole: bool
) -> None:
    chosen, name = app, "gks-eval"
    while hasattr(chosen, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in chosen.commands, f"{command.where}: no command {rest[0]!r} in {name}"
        chosen, name = chosen.commands[rest[0]], f"{name} {rest[0]}"
        rest = rest[1:]
    options = options_of(chosen)
    for word in rest:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, f"{command.where}: no {word} in {name}"
    values: dict[str, Any] = {}
    if whole:
        values = chosen.make_context(name, list(rest), resilient_parsing=False).params
    else:
        flags = dict(pairwise(rest))
        values = {key.lstrip("-"): value for key, value in flags.items() if key.startswith("-")}
    if values.get("settings"):
        from gks_eval.grid.settings import parse_settings

        parse_settings(values["settings"].split(","))
    if values.get("treatment"):
        from gks_eval.grid.controls import read_treatment

        read_treatment(values["treatment"])
    if values.get("rows"):
        from benchmarks.request import ROWS, rows_of

        assert set(rows_of(values["rows"])) <= set(ROWS), command.where
    for field in ("tasks", "task"):
        if name.endswith(("grid", "controls", "routes")) and values.get(field):
            assert set(values[field].split(",")) <= known_tasks, command.where


def check_lm_eval(rest: list[str], command: Command, known_tasks: set[str]) -> None:
    from lm_eval._cli import HarnessCLI

    parser = HarnessCLI()._parser
    if not rest or rest[0] not in ("run", "ls", "validate"):
        rest = ["run", *rest]
    if command.inline:
        known = HarnessCLI()._subparsers.choices[rest[0]]._option_string_actions
        assert {word for word in rest if word.startswith("-")} <= set(known), command.where
        return
    try:
        parsed = parser.parse_args(rest)
    except SystemExit:
        pytest.fail(f"{command.where}: lm-eval cannot parse {command.text}")
    if getattr(parsed, "tasks", None):
        words = parsed.tasks if isinstance(parsed.tasks, list) else [parsed.tasks]
        assert {name for word in words for name in word.split(",")} <= known_tasks, command.where
    if getattr(parsed, "model_args", None):
        from lm_eval.models.huggingface import HFLM

        from gks_eval.method.setting import Setting, setting_arguments
        from gks_eval.model.lm import GksArrowLM

        named = dict(parsed.model_args)
        ours = set(inspect.signature(GksArrowLM.__init__).parameters)
        ours |= set(inspect.signature(HFLM.__init__).parameters)
        known = setting_arguments()
        assert set(named) <= ours | known, command.where
        Setting.from_arguments(**{key: value for key, value in named.items() if key in known})


def after_torchrun(rest: list[str], command: Command) -> list[str]:
    """Return the command that torchrun starts."""
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(rest)
    assert parsed.no_python, f"{command.where}: torchrun would take the program for a script"
    return [parsed.training_script, *parsed.training_script_args]


def options_of(command: Any) -> set[str]:
    listed = {option for parameter in command.params for option in parameter.opts}
    return listed | {"--help", "-h"}


def walk(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from walk(inner)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_there_are_commands_in_every_kind_of_place() -> None:
    places = [command.where.partition(":")[0] for command in COMMANDS]
    for name in ("README.md", "docs/running.md", "docs/training.md", "adapters/phi2/library.yaml"):
        assert places.count(name) >= 2, name
    assert len(COMMANDS) > 100


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.where)
def test_a_command_can_be_parsed(
    command: Command, app: Any, known_tasks: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.file == EXTENDING.relative_to(ROOT).as_posix():
        monkeypatch.setattr(ROUTERS, "_added", {})
        run_extending_blocks()
    check(shlex.split(command.text), command, app, known_tasks)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_s_script_is_a_shell_s(path: Path) -> None:
    bash = shutil.which("bash")
    assert bash
    subprocess.run([bash, "-n", path], check=True)
    assert len(job_commands(path)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "gks-eval gird --tasks x",
        "gks-eval grid --settings base --tasks gks_demo --output out --limti 3",
        "gks-eval grid --settings arow --tasks gks_demo --output out",
        "gks-eval grid --settings base --tasks gks_dmo --output out",
        "gks-eval grid --settings base",
        "python -m benchmarks --rows layers",
        "lm_eval --model gks_arrow --taks gks_demo",
        "lm_eval --model gks_arrow --model_args librry=phi3-mini",
        "torchrun --nproc_per_node 4 --no-python gks-eval gird",
        "make dmeo",
        "pipx install gks-eval",
    ],
)
def test_a_misspelt_command_is_noticed(text: str, app: Any, known_tasks: set[str]) -> None:
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(shlex.split(text), Command("x.md", 1, text), app, known_tasks)


def test_the_commands_of_the_study(
    app: Any, known_tasks: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/study/run.py would run; tests/integration/test_study.py runs it.

    Without results of the stage controls, the commands that compare its seeds are left out.
    """
    monkeypatch.syspath_prepend(ROOT / "docs/study")
    plan = runpy.run_path(str(ROOT / "docs/study/plan.py"))
    starts = ("own", "shared")
    words = ("--model-args", "dtype=float32")
    fixed = (tmp_path / "data", None, "base", "plain", starts, 3, plan["TASKS"], words, 80, ())
    trained = plan["Study"](tmp_path, tmp_path / "record", *fixed)
    given = plan["Study"](tmp_path, tmp_path / "record", None, "phi3-mini", *fixed[2:])
    some = plan["Study"](tmp_path, tmp_path / "record", *fixed, ("arrow", "phatgoose", "uniform"))
    studies = ((trained, (8, 1, 12, 34)), (given, (0, 1, 2, 25)), (some, (7, 1, 12, 11)))
    for study, counts in studies:
        stages = [study.train(), study.leaderboard(), study.controls(), study.evidence()]
        commands = [list(stage) for stage in stages]
        assert tuple(map(len, commands)) == counts
        for command in (c for stage in commands for c in stage):
            text = shlex.join(command)
            check(command, Command("docs/study/run.py", 1, text), app, known_tasks | {"study"})
    recipe = make_plan(tmp_path / "shared-2.yaml")
    assert (recipe.recipe.seed, recipe.recipe.experts.format) == (2, "plain")
    assert recipe.recipe.load.dtype == "float32"
    assert [len(recipe.recipe.experts.members), len(recipe.recipe.general.members)] == [12, 3]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_say_their_language_and_options_in_prose_are_there(path: Path, app: Any) -> None:
    from lm_eval._cli import HarnessCLI
    from torch.distributed.run import get_args_parser

    unnamed = [first - 1 for language, first, _ in fences(path) if not language]
    assert not unnamed, f"{path}: blocks without a language at {unnamed}"
    apps = app, benchmark_app()
    known = {option for one in apps for command in walk(one) for option in options_of(command)}
    known |= FOREIGN
    study = (ROOT / "docs/study/run.py").read_text("utf-8")
    known |= set(re.findall(r'add\("(--[a-z-]+)"', study))
    known |= set(HarnessCLI()._subparsers.choices["run"]._option_string_actions)
    known |= set(get_args_parser()._option_string_actions)
    text = path.read_text("utf-8")
    named = set(re.findall(r"`(--[a-z][\w-]*)(?:[ =][^`]*)?`", text))
    assert not named - known
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= make_targets()


def test_a_path_that_contributing_shows_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for named in re.findall(r"`[^`\n]*?((?:tests|tasks|gks_eval|\.ci)/[\w./-]+)`", text):
        # A wheel has the folder of data, a checkout has not.
        assert (ROOT / named).exists() or named == "gks_eval/_data/", named
