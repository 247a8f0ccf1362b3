import pytest

from eggs_ptp.cli.merged_rows import (
    MergedRow,
    merge_rows,
    number_ranges,
    value_range,
    without_common_prefix,
    without_constant_columns,
)


def test_merges_the_same_matrix_of_several_blocks():
    rows = [
        ("model.layers.0.mlp.up_proj", ("2:4",)),
        ("model.layers.0.mlp.down_proj", ("2:4",)),
        ("model.layers.1.mlp.up_proj", ("2:4",)),
        ("model.layers.1.mlp.down_proj", ("4:8",)),
        ("model.layers.2.mlp.up_proj", ("2:4",)),
        ("ties", ("2:4",)),
    ]
    assert merge_rows(rows) == [
        MergedRow("model.layers.0-2.mlp.up_proj", ("2:4",), tuple(rows[i][0] for i in (0, 2, 4))),
        MergedRow("model.layers.0.mlp.down_proj", ("2:4",), (rows[1][0],)),
        MergedRow("model.layers.1.mlp.down_proj", ("4:8",), (rows[3][0],)),
        MergedRow("ties", ("2:4",), ("ties",)),
    ]


def test_the_first_number_between_dots_is_the_block():
    rows = [(f"model.layers2.{block}.experts.7.w1", ()) for block in (0, 1)]
    assert [row.label for row in merge_rows(rows)] == ["model.layers2.0-1.experts.7.w1"]


def test_number_ranges():
    assert number_ranges([5, 0, 2, 1, 7, 8]) == "0-2,5,7-8"
    assert number_ranges([]) == ""


@pytest.mark.parametrize(
    ("labels", "prefix", "rest"),
    [
        (
            ["model.layers.0-1.mlp.up_proj", "model.layers.0-1.mlp.down_proj"],
            "model.layers.0-1.mlp",
            ["up_proj", "down_proj"],
        ),
        (["h.0-3.attn.c_proj", "h.0-3.mlp.c_proj"], "h.0-3", ["attn.c_proj", "mlp.c_proj"]),
        (["layers.0.a", "layers.1.a"], "layers", ["0.a", "1.a"]),
        (["a.b", "a.b.c"], "a", ["b", "b.c"]),
        (["model.layers.0.a"], "", ["model.layers.0.a"]),
        (["lm_head", "model.a"], "", ["lm_head", "model.a"]),
        ([], "", []),
    ],
)
def test_common_prefixes_are_split_off(labels, prefix, rest):
    assert without_common_prefix(labels) == (prefix, rest)


def test_constant_columns_are_taken_out_of_the_table():
    columns, rows, constants = without_constant_columns(
        ["name", "p", "q"], [["a", "x", "y"], ["b", "x", "z"]], ("p", "q")
    )
    assert (columns, rows, constants) == (["name", "q"], [["a", "y"], ["b", "z"]], {"p": "x"})
    assert without_constant_columns(["name"], [], ("name",)) == (["name"], [], {})


@pytest.mark.parametrize(("texts", "text"), [([], ""), (["1", "1"], "1"), (["0", "1", "7"], "0 to 7")])
def test_ranges_of_values(texts, text):
    assert value_range(texts) == text
