"""The request for a benchmark run, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.sizes import ASKED, FULL, QUICK, ROWS, Sizes
from gks_eval.errors import UsageError, did_you_mean
from gks_eval.model.device import choose_device

__all__ = ["DTYPES", "BenchmarkRequest", "rows_of"]

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to run.

    Attributes:
        rows: Names in `ROWS`.
        device: ``cpu``, ``cuda``, ``cuda:0``.
        dtype: Dtype of weights and inputs, by name.
        repeats: Rounds; evaluations and growth rows use a third of them, single sets a sixth.
        items: Items per evaluated set.
        library: Library of whole-model rows; None for the bundled demo.
        layers: Layers of the random Phi-3; None for two, and for 32 in the rows `full`.
        quick: Tiny shapes and a tiny model, only to test the benchmark.
    """

    rows: tuple[str, ...] = tuple(row for row in ROWS if row not in ASKED)
    device: str = "cpu"
    dtype: str = "float32"
    repeats: int = 6
    items: int = 6
    library: str | None = None
    layers: int | None = None
    quick: bool = False

    def sizes(self) -> Sizes:
        """Return the cases to run."""
        chosen = QUICK if self.quick else FULL
        if self.layers is None:
            return chosen
        return replace(
            chosen,
            slice=replace(chosen.slice, layers=self.layers),
            full=replace(chosen.full, layers=self.layers),
        )

    def check(self) -> None:
        """Check the request.

        Raises:
            UsageError: A value is unknown or invalid.
        """
        for row in self.rows:
            if row not in ROWS:
                raise UsageError(f"--rows: {row!r} is unknown; {did_you_mean(row, ROWS)}.")
        if not self.rows:
            raise UsageError(f"--rows names nothing; choose from {', '.join(ROWS)}.")
        if self.dtype not in DTYPES:
            raise UsageError(
                f"--dtype {self.dtype} is unknown; {did_you_mean(self.dtype, DTYPES)}."
            )
        # Without a GPU, choose_device maps `cuda` to the CPU; here that is an error.
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda") or choose_device(self.device) != self.device:
            raise UsageError(
                f"--device {self.device} is not on this machine; use cpu, or cuda on a GPU."
            )


def rows_of(text: str) -> tuple[str, ...]:
    """Read a comma-separated list: each name once, in the order in which rows are run."""
    named = {part.strip() for part in text.split(",") if part.strip()}
    return (*(row for row in ROWS if row in named), *sorted(named - set(ROWS)))
