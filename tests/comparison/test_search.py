"""Rows that are sampled from combinations of choices."""

import pytest

from eggs_ptp.comparison.search import sample_rows
from eggs_ptp.errors import RecipeError

CHOICES = {"steps.refine.p": [1, 2, float("inf")], "steps.refine.relative_grow": [True, False], "pattern": ["2:4"]}
CHANGES = {"method": "ria+r2_dsnot", "steps": {"refine": {"alpha": 0.5}}}


def test_rows_are_different_combinations_merged_into_the_common_changes():
    rows = sample_rows(("RIA",), CHANGES, CHOICES, draws=4, seed=0, seeds=2)
    assert len({row.labels for row in rows}) == 4
    assert {row.seeds for row in rows} == {2}
    for row in rows:
        refine = row.changes["steps"]["refine"]
        assert refine["alpha"] == 0.5
        grow = {True: "true", False: "false"}[refine["relative_grow"]]
        assert row.labels == ("RIA", str(refine["p"]), grow, "2:4")
        assert (row.changes["method"], row.changes["pattern"]) == ("ria+r2_dsnot", "2:4")


def test_the_sample_depends_on_the_seed_alone():
    first, repeated, other_seed = (sample_rows((), {}, CHOICES, draws=2, seed=seed) for seed in (0, 0, 1))
    assert first == repeated
    assert first != other_seed


def test_all_combinations_come_in_order():
    rows = sample_rows((), {}, CHOICES, draws=6, seed=5)
    assert [row.labels[:2] for row in rows] == [(p, grow) for p in ("1", "2", "inf") for grow in ("true", "false")]


def test_more_draws_than_combinations_are_refused():
    with pytest.raises(RecipeError, match=r"^t: draws: 7 are more than the 6 combinations"):
        sample_rows((), {}, CHOICES, draws=7, seed=0, origin="t: ")
