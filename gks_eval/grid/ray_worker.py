"""What runs in the process of a Ray worker."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gks_eval.errors import GksError, ResultsError, reason
from gks_eval.grid.kept import differences
from gks_eval.grid.runner import GridRun
from gks_eval.tasklib.local_data import DATA_ROOT, local_data
from gks_eval.util.digest import digest
from gks_eval.util.files import sha256_of
from gks_eval.util.grid_order import read_order
from gks_eval.util.versions import versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gks_eval.grid.settings import Grid
    from gks_eval.grid.units import Unit

__all__ = ["RayWorker", "software"]

_CODE: Final = "the code of gks-eval"


def software() -> dict[str, str]:
    """Return what the hosts of a cluster must have in common: versions, and a digest of our code.

    Builds for other devices (``2.6.0+cpu``) count as equal.
    """
    package = Path(__file__).parents[1]
    sources = {p.relative_to(package).as_posix(): p for p in package.rglob("*.py")}
    code = {n: sha256_of(path) for n, path in sources.items() if not n.startswith("_data/")}
    found = {name: version.partition("+")[0] for name, version in versions().items()}
    # Ray checks Python; not every host needs the others.
    for name in ("python", "bitsandbytes", "trl"):
        found.pop(name, None)
    return {**found, _CODE: digest(code)}


@contextmanager
def _naming(host: str) -> Iterator[None]:
    """Name the host in errors of what the command itself has read without one."""
    try:
        yield
    except GksError as error:
        raise type(error)(f"{host}: {error}") from None


class RayWorker:
    """A worker, which loads the base once. A GksError is returned, because Ray would wrap it."""

    def __init__(
        self,
        grid: Grid,
        requests: Sequence[Mapping[str, Any]],
        folder: str,
        data: str | None,
        software: Mapping[str, str],
    ) -> None:
        self._asked = grid, requests, folder, data
        self._software = software
        self._data = ExitStack()

    def start(self) -> GksError | None:
        """Read libraries and tasks, and check that this host has what the command has."""
        try:
            self._start(f"--ray: host {platform.node()}")
        except GksError as error:
            return error
        return None

    def _start(self, host: str) -> None:
        grid, requests, folder, data = self._asked
        here = software()
        names = sorted({*here, *self._software})
        if others := [name for name in names if here.get(name) != self._software.get(name)]:
            found = (
                name if name == _CODE else f"{name} {here.get(name)} for {self._software.get(name)}"
                for name in others
            )
            raise ResultsError(
                f"{host} has other software than the command ({', '.join(found)}); install the "
                "same versions on all hosts."
            )
        try:
            os.chdir(folder)  # paths are relative to it
        except OSError as error:
            raise ResultsError(
                f"{host} cannot enter {folder} ({reason(error)}); run the command in a folder that "
                "all hosts share."
            ) from None
        if data is not None:
            os.environ[DATA_ROOT] = data
        with _naming(host):
            self._data.enter_context(local_data())
            self._run = GridRun(grid)
        if not {cell.slug for cell in self._run.cells} <= {*read_order(grid.output)}:
            raise ResultsError(
                f"{host} does not see what the command wrote to {grid.output}; name an --output in "
                "a file system that all hosts share."
            )
        with _naming(host):
            self._run.read_tasks()
        for asked, read in zip(requests, self._run.requests, strict=True):
            if differing := list(differences(asked, read)):
                raise ResultsError(
                    f"{host} reads other content than the command ({'; '.join(differing)}); give "
                    "all hosts the same files and versions."
                )

    def evaluate(
        self, unit: Unit, before: Mapping[str, float]
    ) -> GksError | Mapping[str, float] | None:
        """Evaluate a unit, unless a worker that died afterwards has finished its setting.

        Args:
            unit: A setting or a part.
            before: What the parts of the setting took so far.

        Returns:
            What a part took.
        """
        try:
            if self._run.finished()[unit.at]:
                return None
            if unit.part is not None:
                return self._run.evaluate_part(unit.at, unit.part, unit.tasks)
            self._run.evaluate(unit.at, before)
        except GksError as error:
            return error
        return None
