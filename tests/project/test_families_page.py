"""docs/families.md states of the siblings what their record has, and where `eggs+` is not best."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools" / "docs")
    import families_page

    return families_page


def rows(*excess):
    return [{"seed": seed, "excess": value, "perplexity": 10 + value} for seed, value in enumerate(excess)]


def test_findings_follow_from_the_rows(page):
    table = {"magnitude": rows(0.9, 0.9, 0.9), "ria_cp": rows(0.5, 0.6, 0.55), "eggs": rows(0.52, 0.58, 0.55)}
    tables = {
        ("opt", "2:4"): {**table, "eggs+": rows(0.1, 0.1, 0.12)},
        ("opt", "4:8"): {**table, "eggs+": rows(0.7, 0.7, 0.7)},
    }
    text = page.findings(tables)
    assert "`ria_cp` against `magnitude`, difference of the excess: better: opt 2:4 (-0.350), opt 4:8 (-0.350)." in text
    assert (
        "`eggs` against `ria_cp`, difference of the excess: no difference beyond seed noise: opt 2:4 (+0.000)" in text
    )
    assert "better: opt 2:4 (-0.443); worse: opt 4:8 (+0.150)." in text
    assert "`eggs+` has the lowest excess in 1 of 2 columns; not on opt 4:8, where `ria_cp` has." in text


def test_missing_rows_give_empty_cells_and_no_comparison(page):
    assert page.result_cells([]) == ["", "", ""]
    assert page.result_cells(rows(0.5)) == ["10.50", "", "0.500"]
    assert "`eggs` against `ria_cp`" not in page.findings({("opt", "2:4"): {"eggs+": rows(0.1)}})
