"""Fresh environments: one with everything from the built wheel, and light ones beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Other versions than those of `make setup`, such as .ci/lowest.txt.
CONSTRAINTS = os.environ.get("GKS_CONSTRAINTS")
PROGRAM = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
for variable in ("GKS_EVAL_BRIDGE", "PYTHONPATH", "VIRTUAL_ENV"):
    PROGRAM.pop(variable, None)


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder outside the checkout to work in."""

    folder: Path
    work: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        (site,) = self.folder.glob("lib/python3*/site-packages")
        return site

    def run(
        self, program: str, *arguments: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment from the folder outside the checkout."""
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.work,
            env={**PROGRAM, **variables},
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def code(self, text: str, **variables: str) -> str:
        """Run Python code that must say nothing on stderr, and return what it prints."""
        done = self.run("python", "-c", text, **variables)
        assert done.stderr == ""
        return done.stdout

    def pip(self, *arguments: str | Path) -> None:
        """Run the test interpreter's pip on this environment."""
        quiet = ["-qq", "--no-input", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments, *quiet]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source archive, as a release's would be."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "-o", out, ROOT], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A fresh environment with the wheel and all that it needs, as `make setup` makes it."""
    folder = tmp_path_factory.mktemp("fresh")
    script = ROOT / ".ci" / "setup_env.py"
    held_to = ["--constraints", ROOT / CONSTRAINTS] if CONSTRAINTS else []
    extras = "demo,evidence" if CONSTRAINTS else "demo"
    command = [sys.executable, script, *held_to, folder / "venv", f"{wheel}[{extras}]"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    work = folder / "elsewhere"
    work.mkdir()
    return Environment(folder / "venv", work)


@pytest.fixture(scope="session")
def fresh_packages(fresh: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that shows the fresh environment's packages, all but ours."""
    folder = tmp_path_factory.mktemp("packages")
    for package in fresh.site.iterdir():
        if not package.name.startswith(("gks_eval", "_gks_eval")) and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    return folder


@pytest.fixture
def light(fresh_packages: Path, tmp_path: Path) -> Environment:
    """An environment that sees the fresh one's packages, all but ours."""
    work = tmp_path / "elsewhere"
    work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    environment = Environment(tmp_path / "venv", work)
    (environment.site / "others.pth").write_text(f"{fresh_packages}\n", encoding="utf-8")
    return environment


@pytest.fixture(params=["wheel", "source", "editable"])
def installed(
    request: pytest.FixtureRequest, light: Environment, wheel: Path
) -> tuple[str, Environment]:
    """A light environment with the package in it, for each way to install it."""
    what = {"wheel": [wheel], "source": [ROOT], "editable": ["-e", ROOT]}[request.param]
    light.pip("install", "--no-deps", *what)
    return request.param, light
