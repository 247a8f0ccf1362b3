from eggs_ptp.cli.rows import Folded, fold, ranges


def test_folds_the_same_matrix_of_several_blocks():
    rows = [
        ("model.layers.0.mlp.up_proj", ("2:4",)),
        ("model.layers.0.mlp.down_proj", ("2:4",)),
        ("model.layers.1.mlp.up_proj", ("2:4",)),
        ("model.layers.1.mlp.down_proj", ("4:8",)),
        ("model.layers.2.mlp.up_proj", ("2:4",)),
        ("ties", ("2:4",)),
    ]
    assert fold(rows) == [
        Folded("model.layers.0-2.mlp.up_proj", ("2:4",), tuple(rows[i][0] for i in (0, 2, 4))),
        Folded("model.layers.0.mlp.down_proj", ("2:4",), (rows[1][0],)),
        Folded("model.layers.1.mlp.down_proj", ("4:8",), (rows[3][0],)),
        Folded("ties", ("2:4",), ("ties",)),
    ]


def test_the_first_number_alone_between_dots_is_the_block():
    rows = [(f"model.layers2.{block}.experts.7.w1", ()) for block in (0, 1)]
    assert [each.label for each in fold(rows)] == ["model.layers2.0-1.experts.7.w1"]


def test_ranges():
    assert ranges([5, 0, 2, 1, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""
