"""The record's JSON, the goals and the tables that are made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from common import assert_sentence

from benchmarks.bars import bars_of
from benchmarks.record import (
    Agreement,
    Evaluation,
    EvaluationSet,
    ExpertsRow,
    Growth,
    GrowthPoint,
    LayerRow,
    ModelRow,
    PlainForward,
    Ratio,
    Record,
    RouterRow,
    Startup,
    Timing,
    read_record,
)
from benchmarks.tables import rendered
from benchmarks.timing import ratio, timing_of
from gks_eval.errors import ResultsError


def same(number: float) -> Ratio:
    return Ratio(of_medians=number, median_of_rounds=number)


def seconds(**each: float) -> dict[str, Timing]:
    return {name.replace("_", " "): timing_of([one, one, one]) for name, one in each.items()}


def a_set(peft: float, packed: float) -> EvaluationSet:
    found = seconds(peft_1=2 * peft, peft_8=peft, base_8=peft / 2, plain_8=peft / 2, packed=packed)
    return EvaluationSet(
        items=10,
        requests=40,
        distinct_tokens=1000,
        computed_tokens=dict.fromkeys(found, 2500),
        seconds=found,
        peer_best="peft 8",
        peft_over_packed=ratio(found["peft 8"], found["packed"]),
    )


def evaluation(name: str, share: float = 0.9, equal: int = 10) -> Evaluation:
    return Evaluation(
        name=name,
        base="a base",
        library="a library",
        experts=10,
        together=a_set(8.0, 2.0),
        alone={"gks_piqa": a_set(2.0, 1.0), "gks_boolq": a_set(1.0, 1.25)},
        agreement={"packed": Agreement(items=10, equal=equal, max_difference=1e-5)},
        forward=PlainForward(
            seconds=seconds(**{"1x128": 0.5}),
            tokens_per_second={"1x128": 256.0},
            best="1x128",
            packed_tokens_per_second=256.0 * share,
            share=share,
        ),
    )


def layer(width_in: int, width_out: int, tokens: int, speed_up: float, memory: int) -> LayerRow:
    return LayerRow(
        width_in=width_in,
        width_out=width_out,
        tokens=tokens,
        seconds=seconds(base=0.3, routed=0.01, peft=0.01 * speed_up),
        peft_over_routed=same(speed_up),
        routed_over_base=same(0.03),
        peak_bytes={"routed": 1000, "peft": 1000 * memory},
        max_difference=1e-6,
        largest=4.0,
    )


def model(phase: str, cost: float) -> ModelRow:
    return ModelRow(
        model="Phi-3, width 3072, 2 layers, random weights",
        phase=phase,  # type: ignore[arg-type]
        batch=1,
        tokens=512,
        cached=0 if phase == "prefill" else 256,
        seconds=seconds(base=1.0, routed=cost, peft=1.9),
        routed_over_base=same(cost),
        peft_over_base=same(1.9),
    )


def router(rank: int, norm: float) -> RouterRow:
    times = seconds(uniform=0.5, arrow=1.0, spectr=1.1, norm=norm)
    return RouterRow(
        width_in=576,
        width_out=192,
        tokens=8,
        rank=rank,
        rule="delta",
        seconds=times,
        over_uniform={name: ratio(one, times["uniform"]) for name, one in times.items()},
        over_arrow={name: ratio(one, times["arrow"]) for name, one in times.items()},
    )


def experts(cost: float) -> ExpertsRow:
    plans = {"all": 3.0, "write chosen": 2.0, "chosen": 1.0}
    times = {name: timing_of([one]) for name, one in plans.items()}
    return ExpertsRow(
        layer="3072->9216",
        experts=256,
        tokens=512,
        seconds=seconds(base=10.0, routed=12.0) | times,
        routed_over_base=same(cost),
        plan="chosen",
        plan_over_fastest=same(1.02),
    )


STARTUP = Startup(
    seconds={"hf": timing_of([10.0]), "gks_arrow": timing_of([10.4])},
    difference=0.4,
    python=seconds(bridge=0.02, no_bridge=0.019),
    bridge=0.001,
)


def whole() -> Record:
    rows = {
        "layer": (layer(3072, 9216, 512, 20.0, 10), layer(3072, 3072, 512, 9.0, 7)),
        "router": (router(4, 1.2), router(16, 2.0)),
        "experts": (experts(1.2),),
        "model": (model("prefill", 1.05), model("decode", 1.5)),
        "evaluation": (evaluation("mix"),),
        "startup": STARTUP,
    }
    points = tuple(GrowthPoint(at=n, seconds=seconds(plain=0.1 * n, packed=0.05)) for n in (1, 4))
    return Record(
        arguments={"dtype": "float32", "rows": ["layer"]},
        date="2026-01-02T03:04:05+00:00",
        minutes=1.5,
        seed=0,
        versions={"torch": "2.13.0"},
        hardware={"cpu": "a processor", "cores": 2, "threads": 2},
        growth=Growth(
            layer="8->8, 4 tokens",
            experts=(GrowthPoint(at=2, seconds=seconds(routed=0.1, peft=0.2)),),
            model="a base",
            choices=points,
            contexts=points,
        ),
        bars=tuple(bars_of(**rows)),
        **rows,
    )


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record, file = whole(), tmp_path / "bench.json"
    file.write_text(record.to_json(), encoding="utf-8")
    assert read_record(file) == record
    content = json.loads(file.read_text("utf-8"))
    assert content["schema"] == "gks_eval.bench/1"
    assert content["evaluation"][0]["together"]["seconds"]["packed"]["rounds"] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"schema": "gks_eval.bench/2"}', "schema"),
        ("{", "half written"),
        ('{"schema": "gks_eval.bench/1", "unknown": 1}', "arguments"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(text)
    with pytest.raises(ResultsError) as caught:
        read_record(file)
    assert_sentence(caught.value, str(file), part)
    with pytest.raises(ResultsError, match="does not exist"):
        read_record(tmp_path / "none.json")


def test_goals_are_compared_with_what_was_measured() -> None:
    record = whole()
    assert [(bar.measured, bar.met) for bar in record.bars] == [
        (20.0, True),  # speed-up at 3072->9216
        (10.0, True),  # its memory
        (9.0, False),  # 3072->3072
        (7.0, False),
        (1.1, True),  # spectr over arrow at rank 4; rank 16 has no goal
        (1.2, False),  # norm
        (1.2, True),  # 3072->9216 with 256 experts
        (1.02, True),  # its plan
        (1.05, False),  # the slice, prefill
        (1.5, False),  # decoding
        (4.0, True),  # the mix
        (0.8, False),  # its slowest set
        (0.9, True),  # share of the plain forward
        (1.0, True),  # predictions
        (0.4, True),  # start-up
    ]
    slowest = record.bars[11]
    assert "boolq" in slowest.what
    assert slowest.wanted == "at least 1"


def test_goals_say_nothing_of_what_was_not_run() -> None:
    assert bars_of() == []
    assert bars_of(layer=[layer(64, 64, 512, 1.0, 1), layer(3072, 9216, 1, 1.0, 1)]) == []
    demo = bars_of(evaluation=[evaluation("demo", share=0.5, equal=9)])
    assert [bar.met for bar in demo] == [False, False, False]
    assert not any("best" in bar.what and "PEFT" in bar.what for bar in demo)


def test_tables_hold_the_numbers_and_no_line_is_cut() -> None:
    text = rendered(whole())
    assert text.startswith("2026-01-02; a processor, 2 cores")
    for part in (
        "3072->9216",
        "10 (10-10)",  # milliseconds
        "2.40 / 1.20",  # norm over uniform, over arrow
        "decode 1x512 after 256",
        "10 of 10",
        "write chosen",
        "1.200",  # routed over base
        "boolq",
        "lm_eval --model gks_arrow",
        "+0.40",
        "90.0%",
        "at least 15",
    ):
        assert part in text, part
    assert "…" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
