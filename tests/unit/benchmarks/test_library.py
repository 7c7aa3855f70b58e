"""The rows of large libraries, in a tiny size and in this process."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bars import bars_of
from benchmarks.library import SETTINGS, measured, written
from benchmarks.request import BenchmarkRequest
from benchmarks.sizes import FULL
from benchmarks.tables.processes import library


def test_a_library_is_loaded_attached_and_evaluated(tmp_path: Path) -> None:
    base = written(tmp_path, 5, rank=2, tiny=True, seed=0)
    row = measured(str(tmp_path / "library"), base, 1, "cpu", "float32")
    assert row.experts == 5
    assert row.items == 6
    assert list(row.attach) == list(SETTINGS)
    # 6 adapters of rank 2 in float32: two layers of q, k, v and o; widths 64 and 32.
    least = 6 * 2 * 4 * 2 * (128 + 96 + 96 + 128)
    assert least < row.file_bytes < 3 * least
    peaks = list(row.peak_bytes.values())
    assert peaks == sorted(peaks)
    assert peaks[0] > 10e6
    assert library([row]).table.row_count == 1
    assert not bars_of(library=[row])
    (bar,) = bars_of(library=[row.model_copy(update={"experts": 1000, "load": 61.0})])
    assert (bar.wanted, bar.met) == ("at most 60", False)


def test_large_libraries_are_not_run_by_default() -> None:
    assert FULL.libraries == (100, 1000)
    assert "library" not in BenchmarkRequest().rows
