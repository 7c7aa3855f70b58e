"""The verdict on a treatment and its controls, on planted item scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy.stats import norm

from gks_eval.evidence.claims import claims
from gks_eval.evidence.question import Claim, Contrast, Role
from gks_eval.evidence.referee import (
    Rules,
    Sample,
    best_of_the_other_half,
    judge,
    mean_of_draws,
)
from gks_eval.evidence.stats.streams import Floats

STAND_INS = ("experts=rescaled", "general=random", "general=rotated", "general=permuted",
             "general=other")  # fmt: skip
AMOUNTS = ("scale=-1", "scale=0.25", "scale=0.5", "scale=2")
ROUTERS = ("router random", "router shuffled", "router uniform")
ROLES: Mapping[str, Role] = {
    "no subtraction": "subtraction",
    **dict.fromkeys(STAND_INS, "subtraction"),
    **dict.fromkeys(AMOUNTS, "amount"),
    "experts=random": "library",
    **dict.fromkeys((*ROUTERS, "best single expert"), "routing"),
}
DRAWN = ("general=random", "general=rotated", "general=permuted", "experts=random",
         "router random", "router shuffled")  # fmt: skip
TASKS, ITEMS, LIFT = 4, 1000, 0.05
RULES = Rules()


def scores(rng: np.random.Generator, right: Floats, lifted: bool) -> Floats:
    """Right or wrong as the item is easy or hard, 5% flipped; `lifted` ones are LIFT better."""
    flipped = np.abs(right - (rng.random(right.shape) < 0.05))
    turned = (flipped == 0.0) & (rng.random(right.shape) < 2 * LIFT)
    return np.where(turned, 1.0, flipped) if lifted else flipped


def planted(rng: np.random.Generator, lifted: Sequence[str], three: int = 3) -> list[Sample]:
    """Controls of a treatment that is LIFT better than all but those of `lifted`."""
    right = (rng.random((TASKS, ITEMS)) < 0.5).astype(float)
    treatment = scores(rng, right, lifted=True)

    def changes(name: str) -> dict[str, Floats]:
        values = treatment - scores(rng, right, name in lifted)
        return {f"task {n}": row for n, row in enumerate(values)}

    samples = []
    for name, role in ROLES.items():
        if name == "best single expert":
            found, draws = best_of_the_other_half([changes(name) for _ in range(three)]), three
        else:
            draws = three if name in DRAWN else 1
            found = mean_of_draws([changes(name) for _ in range(draws)])
        samples.append(Sample(name, role, draws, 0.5, found, binary=name not in DRAWN))
    return samples


def verdicts(lifted: Sequence[str]) -> list[tuple[dict[str, Contrast], dict[Role, Claim]]]:
    found = []
    for seed in range(100):
        contrasts = judge(planted(np.random.default_rng(seed), lifted), RULES)
        said = {claim.role: claim for claim in claims("gks:avg", contrasts, RULES)}
        found.append(({contrast.name: contrast for contrast in contrasts}, said))
    return found


def test_subtraction_that_truly_helps() -> None:
    found = verdicts(lifted=AMOUNTS)
    for role in ("subtraction", "routing", "library"):
        assert sum(said[role].holds is True for _, said in found) >= 95, role
    assert found[0][1]["subtraction"].sentence == (
        "General knowledge subtraction helps here: gks:avg beats no subtraction, experts=rescaled, "
        "general=random, general=rotated, general=permuted, general=other (Holm over 15 controls)."
    )


def test_any_subtraction_helps_equally() -> None:
    found = verdicts(lifted=(*AMOUNTS, *STAND_INS))
    right = [
        contrasts["no subtraction"].state == "beaten" and said["subtraction"].holds is False
        for contrasts, said in found
    ]
    assert sum(right) >= 95
    sentence = found[0][1]["subtraction"].sentence
    assert sentence.startswith("Not shown that general knowledge subtraction helps here: ")
    assert sentence.endswith(" as well as gks:avg (margin 2 points).")
    assert "general=" in sentence
    assert "no subtraction" not in sentence


def test_nothing_helps() -> None:
    found = verdicts(lifted=tuple(ROLES))
    for role in ("subtraction", "routing"):
        assert sum(said[role].holds is False for _, said in found) >= 95, role
    # Any claim is false: at most alpha, and twice the Monte Carlo error of 100 data sets.
    false = sum(any(claim.holds for claim in said.values()) for _, said in found)
    assert false <= 100 * (0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5)


@pytest.mark.parametrize("equal", ["general=other", "general=random"])
def test_one_equal_among_worse_controls_prevents_the_claim(equal: str) -> None:
    """The least favourable case: Holm's last step, where p is not multiplied."""
    false = sum(said["subtraction"].holds is True for _, said in verdicts(lifted=[equal]))
    assert false <= 100 * (0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5)


def one(
    values: Mapping[str, Sequence[float]], role: Role = "subtraction", name: str = "arrow"
) -> Sample:
    arrays = {task: np.array(row, dtype=float) for task, row in values.items()}
    binary = all(set(row) <= {-1.0, 0.0, 1.0} for row in arrays.values())
    return Sample(name, role, 1, 0.5, arrays, binary)


def test_few_items_decide_nothing_and_say_how_many_would() -> None:
    rules = Rules()
    contrasts = judge([one({"a": [1, 0, 0, -1], "b": [0, 1, 0, 0]})], rules)
    (contrast,) = contrasts
    assert (contrast.difference, contrast.gains, contrast.losses) == (0.125, 2, 1)
    assert contrast.state == "undecided"
    # Variance of the eight changes: 3/8 - 1/64.
    assert contrast.needed == np.ceil((1.959964 + 0.841621) ** 2 * 23 / 64 / 0.02**2)
    (claim,) = claims("gks:avg", contrasts, rules)
    assert claim.holds is None
    assert claim.sentence == (
        "Too few items to say whether general knowledge subtraction helps here: with n = 8, arrow "
        f"is neither beaten nor shown to do as well; a difference of 2 points needs about "
        f"{contrast.needed:,} items (power 80%)."
    )


def test_no_item_differs() -> None:
    few, many = (
        judge([one({"a": [0] * n, "b": [0] * n})], Rules(margin=0.02))[0] for n in (4, 1000)
    )
    assert (few.state, few.needed, few.p) == ("undecided", None, 1.0)
    # Clopper-Pearson of no loss among all items: 1 - 0.025^(1/n).
    assert few.high == pytest.approx(1 - 0.025 ** (1 / 8))
    assert many.high == pytest.approx(1 - 0.025 ** (1 / 2000))
    assert many.state == "as well"
    (claim,) = claims("gks:avg", [few], Rules())
    assert "as no item differs, the number needed is not known" in claim.sentence


def test_a_single_loss_of_few_items_does_not_make_a_control_equal() -> None:
    (contrast,) = judge([one({"a": [-1, 0, 0, 0], "b": [0, 0, 0, 0]})], Rules())
    assert contrast.state == "undecided"
    assert contrast.high == pytest.approx(1 - 0.025 ** (1 / 8))
    # One loss of eight: the bound p solves (1 - p)^8 + 8 p (1 - p)^7 = 0.025.
    loss = -(contrast.low or 0.0)
    assert (1 - loss) ** 8 + 8 * loss * (1 - loss) ** 7 == pytest.approx(0.025)


def test_tasks_of_one_item_are_tested() -> None:
    (contrast,) = judge([one({f"task {n}": [1] for n in range(30)})], Rules())
    assert (contrast.state, contrast.p) == ("beaten", pytest.approx(2 * norm.sf(30**0.5)))
    (contrast,) = judge([one({"a": [1], "b": [0]})], Rules())
    assert (contrast.p, contrast.state) == (1.0, "undecided")


def test_a_control_that_is_better_is_called_so() -> None:
    better = one({"a": [-1, 0, -1, 0, -1] * 40, "b": [-1, 0, 0] * 60}, name="arrow")
    worse = one({"a": [1, 0, 1, 0, 1] * 40, "b": [1, 0, 0] * 60}, name="general=other")
    contrasts = judge([better, worse], Rules())
    assert [contrast.state for contrast in contrasts] == ["better", "beaten"]
    (claim,) = claims("gks:avg", contrasts, Rules())
    assert claim.holds is False
    assert "arrow does better than gks:avg" in claim.sentence


def test_holm_runs_over_the_controls_of_all_roles() -> None:
    lift = {"a": [1, 0, 0, 0, 0] * 20}
    noise = {"a": [1, -1, 0, 0, 0] * 20}
    samples = [one(lift), one(noise, "amount"), one(noise, "routing"), one(lift, "library")]
    contrasts = judge(samples, Rules())
    # One task of zeros and ones: McNemar's exact test, 20 gains and no loss.
    assert contrasts[0].p == pytest.approx(2 * 0.5**20)
    assert contrasts[0].p_holm == pytest.approx(4 * 2 * 0.5**20)
    assert contrasts[1].p_holm == 1.0


def test_the_best_expert_of_the_other_half_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    treatment = rng.integers(0, 2, 11).astype(float)
    experts = [rng.integers(0, 2, 11).astype(float) for _ in range(4)]
    expected = []
    for place in range(11):
        others = [other for other in range(11) if other % 2 != place % 2]
        totals = [sum(expert[other] for other in others) for expert in experts]
        expected.append(treatment[place] - experts[totals.index(max(totals))][place])
    found = best_of_the_other_half([{"a": treatment - expert} for expert in experts])
    np.testing.assert_array_equal(found["a"], expected)


def test_chance_experts_give_the_best_of_them_no_advantage() -> None:
    """Choosing and scoring on the same items would: the best of 8 fair coins is above 1/2."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(300):
        experts = [{"a": -rng.integers(0, 2, 20).astype(float)} for _ in range(8)]
        means.append(-best_of_the_other_half(experts)["a"].mean())
    error = np.std(means) / 300**0.5
    assert abs(np.mean(means) - 0.5) < 3 * error
