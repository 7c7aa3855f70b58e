"""The list of a treatment's controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from common import assert_sentence

from gks_eval.errors import UsageError
from gks_eval.grid.controls import controls_of, read_treatment
from gks_eval.grid.settings import parse_settings
from gks_eval.library.load import load_library
from gks_eval.method.setting import as_setting

LibraryOf = Callable[..., Path]


def written(
    library: Path, treatment: str, seeds: int = 2
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    found, left_out = controls_of(read_treatment(treatment), load_library(str(library)), seeds)
    return {control.name: control.settings for control in found}, left_out


def test_the_controls_of_gks_avg(tiny_library: LibraryOf) -> None:
    found, left_out = written(tiny_library(), "gks:avg")
    assert left_out == []
    assert found == {
        "no subtraction": ("arrow",),
        "experts=rescaled": ("gks:avg;experts=rescaled",),
        "general=random": ("gks:avg;general=random;seed=0", "gks:avg;general=random;seed=1"),
        "general=rotated": ("gks:avg;general=rotated;seed=0", "gks:avg;general=rotated;seed=1"),
        "general=permuted": ("gks:avg;general=permuted;seed=0", "gks:avg;general=permuted;seed=1"),
        "general=other": ("gks:avg;general=other",),
        "scale=-1": ("gks:avg;scale=-1",),
        "scale=0.25": ("gks:avg;scale=0.25",),
        "scale=0.5": ("gks:avg;scale=0.5",),
        "scale=2": ("gks:avg;scale=2",),
        "experts=random": ("gks:avg;experts=random;seed=0", "gks:avg;experts=random;seed=1"),
        "router random": ("random:avg;seed=0", "random:avg;seed=1"),
        "router shuffled": ("shuffled:avg;seed=0", "shuffled:avg;seed=1"),
        "router uniform": ("uniform:avg",),
        "best single expert": ("expert:alpha", "expert:beta", "expert:gamma", "expert:delta"),
    }
    every = ["gks:avg", *(text for settings in found.values() for text in settings)]
    assert len(parse_settings(every)) == len(every) == 25


def test_every_control_keeps_the_other_arguments(tiny_library: LibraryOf) -> None:
    treatment = "mine=spectr:en+de; preset=exact ;top_k=2;scale=0.5;scoring=tree;seed=7"
    found, _ = written(tiny_library(), treatment, seeds=1)
    kept = "preset=exact;top_k=2"
    assert found["no subtraction"] == (f"spectr;{kept};scale=0.5;scoring=tree",)
    assert found["scale=-0.5"] == (f"spectr:en+de;{kept};scale=-0.5;scoring=tree",)
    assert found["scale=1"] == (f"spectr:en+de;{kept};scale=1;scoring=tree",)
    assert found["general=random"] == (
        f"spectr:en+de;{kept};scale=0.5;scoring=tree;general=random;seed=0",
    )
    assert found["router random"] == (f"random:en+de;{kept};scale=0.5;scoring=tree;seed=0",)
    assert found["best single expert"][0] == "expert:alpha;scoring=tree"


def test_router_controls_mix_as_many_experts_as_the_treatment(tiny_library: LibraryOf) -> None:
    found, _ = written(tiny_library(), "lag:avg", seeds=1)  # top_k is 1 by default
    assert found["router random"] == ("random:avg;top_k=1;seed=0",)
    assert found["router shuffled"] == ("shuffled:avg;top_k=1;seed=0",)
    assert found["router uniform"] == ("uniform:avg",)


def test_router_controls_choose_per_sequence_as_the_treatment(tiny_library: LibraryOf) -> None:
    found, _ = written(tiny_library(), "gks:avg;level=sequence", seeds=1)
    for name in ("router random", "router shuffled", "scale=-1", "experts=random"):
        (text,) = found[name]
        assert as_setting(text).by_context


def test_router_and_languages_written_as_arguments(tiny_library: LibraryOf) -> None:
    found, _ = written(tiny_library(), "arrow;subtract=en;router=norm", seeds=1)
    assert found["no subtraction"] == ("norm",)
    assert found["router uniform"] == ("uniform:en",)
    assert found["general=other"] == ("norm:en;general=other",)


def test_what_a_library_cannot_do_is_left_out_and_named(tiny_library: LibraryOf) -> None:
    found, left_out = written(tiny_library(experts=("alpha",)), "gks:en")
    assert set(found) == {
        "no subtraction", "experts=rescaled", "general=random", "general=rotated",
        "general=permuted", "scale=-1", "scale=0.25", "scale=0.5", "scale=2", "experts=random",
    }  # fmt: skip
    assert len(left_out) == 5
    assert left_out[0].startswith("general=other: library ")
    assert left_out[-1].startswith("best single expert: library ")

    one_layer = tiny_library(target_modules=["o_proj"], layers_to_transform=[0])
    found, left_out = written(one_layer, "uniform:avg")
    assert [reason.partition(": ") for reason in left_out] == [
        ("general=permuted", ": ", "no two layers of the general adapters have the same shape"),
        *(
            (name, ": ", "the treatment does not route")
            for name in ("router random", "router shuffled", "router uniform", "best single expert")
        ),
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("base", "routes nothing"),
        ("expert:alpha", "routes nothing"),
        ("merge:mean", "routes nothing"),
        ("arrow", "subtracts no general adapter"),
        ("arrow;rule=pico", "subtracts no general adapter"),
        ("gks:avg;general=random", "is itself a control"),
        ("gks:avg;experts=rescaled", "is itself a control"),
        ("shuffled:avg", "is itself a control"),
    ],
)
def test_what_is_no_treatment(text: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_treatment(text)
    assert_sentence(caught.value, f"--treatment {text!r}", part, "gks:avg")
