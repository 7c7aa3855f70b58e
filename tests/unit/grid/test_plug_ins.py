"""A finished setting is not kept if the code of a method from another package has changed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from gks_eval.grid.cell import cell_request
from gks_eval.grid.kept import differences
from gks_eval.grid.settings import Grid, parse_settings
from gks_eval.method.registry import MERGES

CODE = '''
from gks_eval import merge

@merge(paper="a test")
def chosen(layer, parameters):
    """One of the experts."""
    return layer.residuals[{at}]
'''


def request(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    file = folder / f"plugin{at}" / "chosen_merge.py"
    file.parent.mkdir()
    file.write_text(CODE.format(at=at), encoding="utf-8", newline="\n")
    spec = importlib.util.spec_from_file_location("chosen_merge", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "chosen_merge", module)
    spec.loader.exec_module(module)
    with MERGES.lent(module.chosen):
        (cell,) = parse_settings(["merge:chosen"])
        return cell_request(cell, None, {}, {}, Grid(["merge:chosen"], ["task"], folder))


def test_the_code_of_a_plug_in_is_part_of_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (request(tmp_path, at, monkeypatch) for at in (0, 1))
    assert list(differences(first, first)) == []
    assert list(differences(first, second)) == ["the code of merge chosen"]


def test_methods_of_this_package_add_nothing(tmp_path: Path) -> None:
    for cell in parse_settings(["gks:avg", "merge:ties", "base"]):
        assert "plug_ins" not in cell_request(cell, None, {}, {}, Grid([], [], tmp_path))
