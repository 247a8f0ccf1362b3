"""The block of config.json: read back as written, and refused if it is malformed."""

import pytest

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import CheckpointError
from eggs_ptp.sparse.packed_config import PackedConfig

PATTERNS = {"a.q": Pattern(2, 4), "a.down": Pattern(4, 8)}
CONFIG = PackedConfig(PATTERNS, frozenset({"a.down"}), {"a.q": "int8"})
BLOCK = {
    "eggs": "packed by eggs-ptp: import eggs_ptp before transformers loads this",
    "format": 2,
    "matrices": {"a.q": "2:4", "a.down": "4:8"},
    "values": {"a.q": "int8"},
    "ordered": ["a.down"],
}
FORMAT_1 = {
    "quant_method": "eggs",
    "format": 1,
    "matrices": {"a.q": "2:4", "a.down": "4:8"},
    "ordered": ["a.down"],
}


def test_the_block_is_the_one_in_the_format_description():
    assert CONFIG.to_dict() == BLOCK
    assert PackedConfig.read(BLOCK, "config.json") == CONFIG


def test_format_1_is_still_read():
    assert PackedConfig.read(FORMAT_1, "config.json") == PackedConfig(PATTERNS, frozenset({"a.down"}))


def test_transposed_matrices_need_a_format_that_older_versions_refuse():
    packed_config = PackedConfig(PATTERNS, transposed=frozenset({"a.q"}))
    block = packed_config.to_dict()
    assert (block["format"], block["transposed"]) == (3, ["a.q"])
    assert PackedConfig.read(block, "config.json") == packed_config


def test_quant_method_is_absent_so_that_transformers_alone_refuses_the_folder():
    assert "quant_method" not in CONFIG.to_dict()


def test_tensors_of_a_matrix():
    assert CONFIG.tensors("a.q") == ["a.q.values", "a.q.bits", "a.q.scales"]
    assert CONFIG.tensors("a.down") == ["a.down.values", "a.down.bits", "a.down.order"]


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
        ({"matrices": {"a.down": "0.5"}}, r"^here: a\.down: packed matrices are N:M, got 0\.5$"),
        ({"matrices": {"a.down": "4:2"}}, r"^here: a\.down: pattern 4:2 keeps 4 of 2"),
        ({"matrices": {"a.down": "half"}}, r"^here: a\.down: pattern 'half' is not understood"),
    ],
)
def test_malformed_blocks_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        PackedConfig.read({**BLOCK, "values": {}, **change}, "here")


@pytest.mark.parametrize("block", [None, [], "eggs", {}, {"quant_method": "gptq"}])
def test_blocks_of_other_methods_are_refused(block):
    with pytest.raises(CheckpointError, match="so nothing is packed"):
        PackedConfig.read(block, "here")
