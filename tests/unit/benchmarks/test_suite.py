"""What a run checks before it measures, and the pieces on disk that it makes."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from common import assert_sentence

from benchmarks.evaluation_items import build_items, build_set, collections
from benchmarks.machine import hardware
from benchmarks.plot import FORMATS, check_plot, draw_growth
from benchmarks.process import output_of
from benchmarks.record import Growth, GrowthPoint
from benchmarks.request import BenchmarkRequest, rows_of
from benchmarks.sizes import FULL, QUICK
from benchmarks.startup import TASK, write_task
from benchmarks.subject import open_subject
from benchmarks.suite import _out_of_memory
from benchmarks.timing import timing_of
from gks_eval.errors import DataError, ResourceError, UsageError
from gks_eval.tasklib.local_data import DATA_ROOT

HUB = Path(__file__).parents[2] / "data" / "hub"


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        (BenchmarkRequest(rows=("layers",)), ("--rows", "'layer'")),
        (BenchmarkRequest(rows=()), ("--rows", "startup")),
        (BenchmarkRequest(dtype="float16"), ("--dtype", "float16")),
        (BenchmarkRequest(device="tpu"), ("tpu",)),
        (BenchmarkRequest(device="mps"), ("--device", "mps")),
    ],
)
def test_arguments_are_checked_first(request_: BenchmarkRequest, parts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        request_.check()
    assert_sentence(caught.value, *parts)


def test_rows_are_run_in_one_order() -> None:
    assert rows_of("growth, layer,layer") == ("layer", "growth")
    assert rows_of("nonsense,model") == ("model", "nonsense")


def test_sizes_follow_the_request() -> None:
    assert BenchmarkRequest(quick=True).sizes() == QUICK
    assert BenchmarkRequest().sizes() == FULL
    assert BenchmarkRequest(layers=32).sizes().slice.layers == 32
    assert FULL.slice.layers == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu() -> None:
    with pytest.raises(UsageError, match="--device cuda is not on this machine"):
        BenchmarkRequest(device="cuda").check()


def test_pictures_of_a_known_format_only() -> None:
    check_plot(Path("growth.svg"))
    with pytest.raises(UsageError) as caught:
        check_plot(Path("growth.gif"))
    assert_sentence(caught.value, "growth.gif", "png")


def _growth(seconds: tuple[float, ...]) -> Growth:
    points = {
        names: tuple(
            GrowthPoint(at=2**i, seconds={name: timing_of([s, 1.1 * s]) for name in names})
            for i, s in enumerate(seconds)
        )
        for names in (("routed", "peft"), ("plain", "packed"))
    }
    return Growth(
        layer="8->8, 4 tokens",
        experts=points["routed", "peft"],
        model="a base",
        choices=points["plain", "packed"],
        contexts=points["plain", "packed"],
    )


@pytest.mark.parametrize("ending", FORMATS)
def test_growth_is_drawn(tmp_path: Path, ending: str) -> None:
    draw_growth(_growth((0.1, 0.2, 0.4)), tmp_path / f"g.{ending}")
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert (tmp_path / f"g.{ending}").read_bytes().startswith(begins[ending])


@pytest.mark.parametrize(
    "seconds", [(0.1, 0.2, 0.4), (0.012, 0.013, 0.015), (0.03, 0.04), (1e-4, 1.0), (0.5, 0.5)]
)
def test_each_axis_has_two_labels_or_more(tmp_path: Path, seconds: tuple[float, ...]) -> None:
    draw_growth(_growth(seconds), tmp_path / "g.svg")
    svg = (tmp_path / "g.svg").read_text("utf-8")
    # Each tick is a group of the SVG, its text a comment in it; an axis ends the one before it.
    labels = [re.findall(r'id="ytick_[^"]*".*?<!-- (.*?) -->', axis, re.DOTALL)
              for axis in svg.split('id="axes_')[1:]]  # fmt: skip
    assert len(labels) == 3
    for axis in labels:
        assert len([label for label in axis if re.fullmatch(r"[\d.]+", label)]) >= 2, axis


def test_a_process_that_fails_is_named_with_its_last_line() -> None:
    code = "import sys; print('first\\nlast words', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ResourceError) as caught:
        output_of([sys.executable, "-c", code], {}, "start-up")
    assert_sentence(caught.value, "start-up", "status 3", "last words", "--rows")
    code = "import os; print(os.environ['A'])"
    assert output_of([sys.executable, "-c", code], {"A": "b"}, "start-up").strip() == "b"


def test_only_a_lack_of_memory_is_called_one() -> None:
    with pytest.raises(ResourceError) as caught, _out_of_memory("cpu"):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    assert_sentence(caught.value, "cpu has too little memory", "--rows")
    with pytest.raises(RuntimeError, match="shapes"), _out_of_memory("cpu"):
        raise RuntimeError("shapes do not fit")


def test_the_machine_is_described() -> None:
    found = hardware("cpu")
    assert found["threads"] == torch.get_num_threads()
    assert 0 < int(found["cores"]) <= (os.cpu_count() or 1)
    assert found["cpu"]
    assert "gpu" not in found


def test_items_are_lm_evals_own_requests() -> None:
    (built,) = build_items(["gks_demo_goals_en"], 3).values()
    assert len(built.sizes) == 3
    assert sum(built.sizes) == len(built.requests)
    contexts = [request.args[0] for request in built.requests[: built.sizes[0]]]
    assert len(set(contexts)) == 1
    with pytest.raises(DataError) as caught:
        build_items(["gks_demo_goals_en"], 10_000)
    assert_sentence(caught.value, "--items 10000", "gks_demo_goals_en")


@pytest.mark.parametrize(("items", "parts"), [(5, [3, 2]), (1, [1]), (4, [2, 2])])
def test_a_set_of_several_tasks_has_a_part_of_each(items: int, parts: list[int]) -> None:
    tasks = ["gks_demo_goals_en", "gks_demo_science_de"]
    built = build_set(tasks, items)
    assert len(built.sizes) == items
    names = [request.task_name for request in built.requests]
    starts = [sum(built.sizes[:item]) for item in range(items)]
    of_items = [names[start] for start in starts]
    assert [of_items.count(task) for task in tasks if task in of_items] == parts


def test_the_data_root_is_read_from_where_one_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv(DATA_ROOT, raising=False)
    assert list(collections(1)) == ["demo"]
    monkeypatch.setenv(DATA_ROOT, str(HUB))
    before = Path.cwd()
    found = collections(1)
    assert list(found) == ["demo", "mix"]
    assert len(found["mix"]) == 9
    assert all(len(one.sizes) == 1 for one in found["mix"].values())
    assert Path.cwd() == before
    monkeypatch.setenv(DATA_ROOT, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError) as caught:
        collections(1)
    assert_sentence(caught.value, DATA_ROOT, "nowhere")


def test_the_tiny_task_is_one_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / 'with space and "quote"'
    folder.mkdir()
    write_task(folder)
    task = TaskManager(include_path=str(folder), include_defaults=False).load([TASK])["tasks"][TASK]
    assert len(list(task.eval_docs)) == 1
    assert task.doc_to_choice(next(iter(task.eval_docs))) == ["four", "five"]


def test_a_library_that_peft_cannot_run_is_refused(tiny_library: object) -> None:
    folder = tiny_library("phi3", adapters={"alpha": {"r": 2}})  # type: ignore[operator]
    with (
        pytest.raises(UsageError) as caught,
        open_subject(str(folder), tiny=False, device="cpu", dtype=torch.float32, seed=0),
    ):
        pass
    assert_sentence(caught.value, "rank 2, 4", "PEFT")


def test_a_library_of_ones_own(tiny_library: object) -> None:
    folder = tiny_library("phi3")  # type: ignore[operator]
    with open_subject(str(folder), tiny=True, device="cpu", dtype=torch.bfloat16, seed=0) as found:
        assert found.model.dtype == torch.bfloat16
        assert found.adapters == str(folder)
        assert found.name == found.library.config.base_model
        assert os.path.isdir(found.name)  # noqa: PTH112
