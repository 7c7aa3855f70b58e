"""What `--help` and a shell's completion say, over all commands alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gks_eval.cli import _complete
from gks_eval.cli.main import build_app

BASH = shutil.which("bash")


def walk(command: Any, name: str = "gks-eval") -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {word}")


COMMANDS = dict(walk(typer.main.get_command(build_app())))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_is_a_sentence(name: str) -> None:
    command = COMMANDS[name]
    texts = {name: command.help or ""}
    assert texts[name][:1].isupper()
    for one in command.params:
        texts |= {f"{name} {one.name}": getattr(one, "help", None) or ""}
    for where, text in texts.items():
        assert text.rstrip().endswith("."), f"{where}: {text!r}"


def test_an_option_of_lm_evals_has_its_names_here() -> None:
    """`--batch_size` and `-b` work wherever `--batch-size` does."""
    from lm_eval._cli import HarnessCLI

    run = HarnessCLI()._subparsers.choices["run"]
    theirs = {max(a.option_strings, key=len): a.option_strings for a in run._actions}
    checked = 0
    for name, command in COMMANDS.items():
        for one in command.params:
            long = "--" + one.name
            # The commands that evaluate; elsewhere an option of one name is another thing.
            if long in theirs and name in ("gks-eval grid", "gks-eval controls", "gks-eval routes"):
                missing = set(theirs[long]) - set(one.opts)
                assert not missing, f"{name}: {long} lacks {missing}"
                checked += 1
    assert checked >= 8


@pytest.mark.parametrize("words", [[], ["library"], ["convert"]])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_help_of_a_group_cuts_no_description(words: list[str], width: int) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(
        build_app(), [*words, "--help"], terminal_width=width, max_content_width=width
    )
    assert done.exit_code == 0
    assert "..." not in done.output.partition("Commands:")[2]
    text = "".join(done.output.split())  # lines also break at hyphens
    inner = [name for name in COMMANDS if name.split()[1:-1] == words and " " in name]
    assert len(inner) >= 2
    for name in inner:
        first = COMMANDS[name].help.split("\n\n")[0].partition(". ")[0]
        assert "".join(first.split()) in text, name


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("li", {"lint", "library"}),
        ("library show p", {"phi2", "phi3-mini"}),
        ("export p", {"phi2", "phi3-mini"}),
        ("export phi2 --setting gks : a", {"avg"}),
        ("train smollm2", {"smollm2-demo"} & set(_complete.recipes(""))),
        ("grid --library ", {"phi2", "phi3-mini", "smollm2-demo"}),
        ("grid --tasks gks_demo,gks_paper_eng", {"gks_demo,gks_paper_english"}),
        ("grid --settings base,a", {"base,arrow"}),
        # bash splits at colons and equals signs, and replaces what stands behind the last.
        ("grid --settings base,gks : a", {"avg"}),
        ("grid --settings gks : avg,u", {"avg,uniform"}),
        ("grid --settings gks :", {"avg"}),
        ("grid --settings = base,a", {"base,arrow"}),
        ("grid --settings 'base,gks:a", {"base,gks:avg"}),
        ("controls --treatment spec", {"spectr:avg"}),
        ("controls --treatment gks : a", {"avg"}),
        ("compare x --format ", {"terminal", "markdown", "csv", "json", "latex"}),
        ("lint gks_xnli_f", {"gks_xnli_fr"}),
        ("report results --ou", {"--output"}),
    ],
)
def test_bash_completes(line: str, offered: set[str]) -> None:
    """With the script that ``--show-completion`` prints, in a real bash."""
    asked = " ".join(f'"{word}"' for word in f"gks-eval {line}".split(" "))
    script = (
        'eval "$(gks-eval --show-completion bash)"\n'
        f"COMP_WORDS=({asked}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_gks_eval_completion gks-eval; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(BASH), "-c", script],
        env={**os.environ, "PATH": path, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert set(done.stdout.split()) == offered, done.stderr


def test_a_log_has_no_progress_bars() -> None:
    code = (
        "import sys, gks_eval.cli.main as cli; sys.argv = ['gks-eval', '--version']\n"
        "try: cli.main()\n"
        "except SystemExit: import tqdm; list(tqdm.tqdm(range(3)))"
    )
    shown = []
    for given in ({}, {"TQDM_DISABLE": ""}):
        environment = {name: v for name, v in os.environ.items() if name != "TQDM_DISABLE"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | given, capture_output=True, text=True, check=True,
        )  # fmt: skip
        shown.append("3/3" in done.stderr)
    assert shown == [False, True]


def test_completion_offers_every_task_that_lm_eval_finds() -> None:
    from lm_eval.tasks import TaskManager

    from gks_eval.util.paths import tasks_dir

    found = TaskManager(include_path=str(tasks_dir()), include_defaults=False).all_tasks
    assert _complete.task("") == sorted(found)
