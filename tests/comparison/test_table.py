"""A comparison as text, Markdown and CSV."""

import csv
import io

import pytest

from eggs_ptp.comparison.result import CellSummary, Comparison
from eggs_ptp.comparison.table import comma_separated, markdown, text_rows

COMPARISON = Comparison(
    model="models/small",
    title="A table",
    heads=("method", "group"),
    rows=(("wanda", "row"), ("a|b", "-")),
    columns=("0.5", "2:4"),
    dense={"perplexity": 10.0, "evaluation": {}},
    records={
        (("wanda", "row"), "0.5"): [{"perplexity": value, "seed": seed} for seed, value in enumerate((12, 13, 17))],
        (("wanda", "row"), "2:4"): [{"perplexity": 20.125, "seed": 0}],
    },
    undefined={(("a|b", "-"), "0.5"): "a|b - at 0.5: is not defined"},
    failed={(("a|b", "-"), "2:4"): "a|b - at 2:4, seed 0 failed: why"},
)


def test_a_summary_has_mean_and_deviation_over_seeds_and_the_difference_to_dense():
    assert COMPARISON.summary(("wanda", "row"), "0.5") == CellSummary(14.0, pytest.approx(7**0.5), 3, 4.0)
    assert COMPARISON.summary(("wanda", "row"), "2:4") == CellSummary(20.125, None, 1, 10.125)
    assert COMPARISON.summary(("a|b", "-"), "0.5") is None


def test_text_has_the_dense_model_first_and_marks_missing_cells():
    assert text_rows(COMPARISON) == [
        ["dense", "-", "10.00", "10.00"],
        ["wanda", "row", "14.00 ± 2.65 (+4.00)", "20.12 (+10.12)"],
        ["a|b", "-", "-", "failed"],
    ]


def test_markdown_is_a_table_with_remarks():
    assert markdown(COMPARISON).splitlines() == [
        "A table",
        "",
        "| method | group | 0.5 | 2:4 |",
        "|---|---|---:|---:|",
        "| dense | - | 10.00 | 10.00 |",
        "| wanda | row | 14.00 ± 2.65 (+4.00) | 20.12 (+10.12) |",
        "| a\\|b | - | - | failed |",
        "",
        "| method | column | perplexity | × dense | × best (95 %) | CPU s | MB |",
        "|---|---|---:|---:|---:|---:|---:|",
        "| wanda row | 0.5 | 14.00 | 1.40 | best | - | - |",
        "| wanda row | 2:4 | 20.12 | 2.0 | best | - | - |",
        "",
        "- a|b - at 0.5: is not defined",
        "- a|b - at 2:4, seed 0 failed: why",
    ]


def test_csv_has_a_line_a_cell():
    rows = list(csv.DictReader(io.StringIO(comma_separated(COMPARISON))))
    assert [(row["method"], row["group"], row["column"]) for row in rows] == [
        ("dense", "-", ""),
        *((*labels, column) for labels in COMPARISON.rows for column in COMPARISON.columns),
    ]
    assert rows[1] == {
        "method": "wanda",
        "group": "row",
        "column": "0.5",
        "perplexity": "14",
        "sd": "2.64575",
        "seeds": "3",
        "difference": "4",
        "ratio_to_best": "",  # it is the best
        "ratio_low": "",
        "ratio_high": "",
        "processor_seconds": "",
        "peak_memory_bytes": "",
        "remark": "",
    }
    assert (rows[2]["sd"], rows[3]["perplexity"], rows[3]["seeds"]) == ("", "", "0")
    assert [row["remark"] for row in rows[3:]] == [*COMPARISON.undefined.values(), *COMPARISON.failed.values()]


def test_plain_data_has_the_table_and_the_records():
    data = COMPARISON.to_dict()
    assert data["table"][0] == {
        "row": ["wanda", "row"],
        "column": "0.5",
        "perplexity": 14.0,
        "sd": pytest.approx(7**0.5),
        "seeds": 3,
        "difference": 4.0,
        "ratio_to_dense": None,  # these records have no losses
        "ratio_to_best": None,
        "processor_seconds": None,
        "peak_memory_bytes": None,
        "remark": "",
    }
    assert data["table"][3]["perplexity"] is None
    assert [record["perplexity"] for record in data["records"]] == [12, 13, 17, 20.125]
    assert data["records"][3] == {"row": ["wanda", "row"], "column": "2:4", "perplexity": 20.125, "seed": 0}
    assert (data["model"], data["heads"], data["columns"]) == ("models/small", ["method", "group"], ["0.5", "2:4"])
