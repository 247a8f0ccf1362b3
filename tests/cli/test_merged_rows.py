from eggs_ptp.cli.merged_rows import MergedRow, merge_rows, number_ranges


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
