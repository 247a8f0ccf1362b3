"""The block of config.json: read back as written, and refused when it is not understood."""

import pytest

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import CheckpointError
from eggs_ptp.sparse.contents import Contents

CONTENTS = Contents({"a.q": Pattern(2, 4), "a.down": Pattern(4, 8)}, frozenset({"a.down"}))
BLOCK = {
    "quant_method": "eggs",
    "format": 1,
    "matrices": {"a.q": "2:4", "a.down": "4:8"},
    "ordered": ["a.down"],
}


def test_it_is_what_the_document_shows():
    assert CONTENTS.to_dict() == BLOCK
    assert Contents.read(BLOCK, "config.json") == CONTENTS


def test_tensors_of_a_matrix():
    assert CONTENTS.tensors("a.q") == ["a.q.values", "a.q.bits"]
    assert CONTENTS.tensors("a.down") == ["a.down.values", "a.down.bits", "a.down.order"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"^here: packed format 2, this version reads format 1; update eggs-ptp$"),
        ({"format": None}, r"^here: packed format None"),
        ({"quant_method": "gptq"}, r"^here: quantization_config\.quant_method is not eggs"),
        ({"matrices": {}}, r"^here: quantization_config names no matrices$"),
        ({"matrices": ["a.q"]}, r"^here: quantization_config names no matrices$"),
        ({"ordered": ["b"]}, r"^here: quantization_config orders b, not one of its matrices$"),
        ({"matrices": {"a.down": "0.5"}}, r"^here: a\.down: packed matrices are N:M, not 0\.5$"),
        ({"matrices": {"a.down": "4:2"}}, r"^here: a\.down: pattern 4:2 keeps 4 of 2"),
        ({"matrices": {"a.down": "half"}}, r"^here: a\.down: pattern 'half' is not understood"),
    ],
)
def test_what_is_not_understood_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        Contents.read({**BLOCK, **change}, "here")


@pytest.mark.parametrize("block", [None, [], "eggs", {}])
def test_other_blocks_are_refused(block):
    with pytest.raises(CheckpointError, match="so nothing is packed"):
        Contents.read(block, "here")
