"""The block of config.json: read back as written, and refused when it is not understood."""

import pytest

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import CheckpointError
from eggs_ptp.sparse.contents import Contents

PATTERNS = {"a.q": Pattern(2, 4), "a.down": Pattern(4, 8)}
CONTENTS = Contents(PATTERNS, frozenset({"a.down"}), {"a.q": "int8"})
BLOCK = {
    "eggs": "packed by eggs-ptp: import eggs_ptp before transformers loads this",
    "format": 2,
    "matrices": {"a.q": "2:4", "a.down": "4:8"},
    "values": {"a.q": "int8"},
    "ordered": ["a.down"],
}
FIRST = {
    "quant_method": "eggs",
    "format": 1,
    "matrices": {"a.q": "2:4", "a.down": "4:8"},
    "ordered": ["a.down"],
}


def test_it_is_what_the_document_shows():
    assert CONTENTS.to_dict() == BLOCK
    assert Contents.read(BLOCK, "config.json") == CONTENTS


def test_the_first_format_is_still_read():
    assert Contents.read(FIRST, "config.json") == Contents(PATTERNS, frozenset({"a.down"}))


def test_what_is_transposed_makes_it_a_format_that_older_versions_refuse():
    contents = Contents(PATTERNS, transposed=frozenset({"a.q"}))
    block = contents.to_dict()
    assert (block["format"], block["transposed"]) == (3, ["a.q"])
    assert Contents.read(block, "config.json") == contents


def test_no_method_is_named_so_that_transformers_alone_refuses_it():
    assert "quant_method" not in CONTENTS.to_dict()


def test_tensors_of_a_matrix():
    assert CONTENTS.tensors("a.q") == ["a.q.values", "a.q.bits", "a.q.scales"]
    assert CONTENTS.tensors("a.down") == ["a.down.values", "a.down.bits", "a.down.order"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 4}, r"^here: packed format 4, this version reads formats 1, 2, 3; update eggs-ptp$"),
        ({"format": None}, r"^here: packed format None"),
        (
            {"values": {"a.q": "int3"}},
            r"^here: quantization_config\.values: expected int8 or int4 for a .*, got 'int3'$",
        ),
        ({"values": "int8"}, r"^here: quantization_config\.values: expected int8 or int4 for a .*, got 'int8'$"),
        ({"values": {"b": "int8"}}, r"^here: quantization_config\.values: b is not one of its matrices$"),
        ({"matrices": {}}, r"^here: quantization_config names no matrices$"),
        ({"matrices": ["a.q"]}, r"^here: quantization_config names no matrices$"),
        ({"transposed": ["b"]}, r"^here: quantization_config\.transposed: b is not one of its matrices$"),
        ({"transposed": "a.q"}, r"^here: quantization_config names no matrices$"),
        ({"ordered": ["b"]}, r"^here: quantization_config\.ordered: b is not one of its matrices$"),
        ({"matrices": {"a.down": "0.5"}}, r"^here: a\.down: packed matrices are N:M, not 0\.5$"),
        ({"matrices": {"a.down": "4:2"}}, r"^here: a\.down: pattern 4:2 keeps 4 of 2"),
        ({"matrices": {"a.down": "half"}}, r"^here: a\.down: pattern 'half' is not understood"),
    ],
)
def test_what_is_not_understood_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        Contents.read({**BLOCK, "values": {}, **change}, "here")


@pytest.mark.parametrize("block", [None, [], "eggs", {}, {"quant_method": "gptq"}])
def test_other_blocks_are_refused(block):
    with pytest.raises(CheckpointError, match="so nothing is packed"):
        Contents.read(block, "here")
