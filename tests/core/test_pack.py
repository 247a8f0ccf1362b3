"""Packing preserves every bit, and refuses weights that are not N:M."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.grid import rows_on_grid
from oracles.packing import nm_matrix, packed_rows, same_bits

from eggs_ptp.core.layout import check_packed
from eggs_ptp.core.pack import FLOAT_DTYPES, Packed, expand, keep_mask, kept_values, pack, quantise, unpack
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.quantisation import GRIDS
from eggs_ptp.errors import MethodError, PatternError

PATTERNS = [
    Pattern(*pair) for pair in ((1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (5, 8), (1, 3), (2, 5), (8, 16), (9, 20))
]

PATTERN = Pattern(2, 4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 7),
    dtype=st.sampled_from(FLOAT_DTYPES),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
    ordered=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_packing_and_unpacking_preserves_every_bit(pattern, rows, groups, dtype, zeros, ordered, seed):
    columns = groups * pattern.group
    permuted = nm_matrix(rows, columns, pattern, dtype, seed, zeros)
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed)) if ordered else None
    weight = permuted if order is None else torch.empty_like(permuted).index_copy_(1, order, permuted)
    packed = pack(weight, pattern, order)
    assert same_bits(unpack(packed), weight)
    assert same_bits(expand(packed), permuted)
    check_packed(packed, "matrix")


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@given(rows=st.integers(1, 4), groups=st.integers(1, 9), zeros=st.sampled_from([0.0, 0.4]), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_the_format_is_the_documented_one(pattern, rows, groups, zeros, seed):
    weight = nm_matrix(rows, groups * pattern.group, pattern, seed=seed, zeros=zeros)
    packed = pack(weight, pattern)
    values, bits = packed_rows(weight.tolist(), pattern.keep, pattern.group)
    assert same_bits(packed.values, torch.tensor(values).view(packed.values.shape))
    assert packed.bits.tolist() == bits


def test_a_matrix_larger_than_a_tile():
    """Only the middle tile has groups with fewer than N values, so that all branches are covered."""
    pattern = Pattern(2, 4)
    weight = nm_matrix(700, 2048, pattern, torch.bfloat16)
    weight[300:310, :64] = 0.0
    packed = pack(weight, pattern)
    assert same_bits(unpack(packed), weight)
    assert packed.nbytes == 700 * 2048 * 2 * 9 // 16
    assert int(keep_mask(packed).sum()) == 700 * 1024


def test_sizes_are_the_documented_ones():
    for dtype, pattern, share in (
        (torch.bfloat16, Pattern(2, 4), 0.5625),
        (torch.float16, Pattern(4, 8), 0.5625),
        (torch.float32, Pattern(2, 4), 0.53125),
        (torch.bfloat16, Pattern(1, 4), 0.3125),
    ):
        weight = nm_matrix(8, 64, pattern, dtype)
        assert pack(weight, pattern).nbytes == share * weight.nbytes


def test_special_values_keep_their_bits():
    weight = torch.zeros(2, 8)
    weight[0, 1] = float("nan")
    weight[0, 3] = float("-inf")
    weight[0, 4] = 1e-45
    weight[0, 6] = -0.0
    weight[1, 7] = -0.0
    for dtype in FLOAT_DTYPES:
        cast = weight.to(dtype)
        assert same_bits(unpack(pack(cast, Pattern(2, 4))), cast)


def test_negative_zeros_beyond_n_become_positive():
    weight = torch.tensor([[1.0, -0.0, -0.0, 2.0]])
    assert same_bits(unpack(pack(weight, Pattern(2, 4))), torch.tensor([[1.0, 0.0, 0.0, 2.0]]))
    assert same_bits(unpack(pack(weight, Pattern(3, 4))), torch.tensor([[1.0, -0.0, 0.0, 2.0]]))


def test_overfull_groups_are_counted_over_all_tiles():
    weight = nm_matrix(700, 2048, Pattern(2, 4))
    weight[0, :4] = weight[699, 4:8] = 1.0
    with pytest.raises(PatternError, match=r"^some\.name: not 2:4: 2 of 358400 groups keep more than 2; name"):
        pack(weight, Pattern(2, 4), name="some.name")


def test_the_column_order_matters():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7], dtype=torch.int32)
    packed = pack(weight, Pattern(2, 4), order)
    assert packed.values.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert packed.bits.tolist() == [[0b01010101]]
    assert packed.order.dtype == torch.int32
    with pytest.raises(PatternError, match=r"in the given column order"):
        pack(weight, Pattern(2, 4), torch.arange(8))


@pytest.mark.parametrize(
    ("weight", "pattern", "order", "message"),
    [
        (torch.zeros(2, 8), Unstructured(0.5), None, r"^w: sparsity 0\.5 is unstructured"),
        (torch.zeros(2, 6), Pattern(2, 4), None, r"^w: 6 input features cannot be cut"),
        (torch.zeros(8), Pattern(2, 4), None, r"^w: expected a matrix .* got torch\.float32 \(8,\)"),
        (torch.zeros(2, 8).double(), Pattern(2, 4), None, r"^w: expected a matrix .* got torch\.float64"),
        (torch.zeros(2, 8), Pattern(2, 4), torch.zeros(8, dtype=torch.int64), r"^w: expected a channel permutation"),
    ],
)
def test_weights_that_cannot_be_packed_are_refused(weight, pattern, order, message):
    with pytest.raises((PatternError, MethodError), match=message):
        pack(weight, pattern, order, name="w")


def damaged(part: str, packed: Packed) -> Packed:
    """A packed matrix with one damaged tensor."""
    tensors = {"values": packed.values.clone(), "bits": packed.bits.clone(), "order": packed.order.clone()}
    if part == "bit":
        tensors["bits"][1, 0] ^= 1
    elif part == "moved bit":  # the same number of bits, in the wrong groups
        tensors["bits"][0, 0] = 0b11110011
        tensors["bits"][0, 1] = 0
    elif part == "padding":
        tensors["bits"][0, 1] |= 0x80
    elif part == "order":
        tensors["order"][0] = tensors["order"][1]
    elif part == "wide values":
        tensors["values"] = tensors["values"].repeat(1, 2)
    elif part == "short bits":
        tensors["bits"] = tensors["bits"][:, :1]
    elif part == "signed bits":
        tensors["bits"] = tensors["bits"].to(torch.int8)
    elif part == "integer values":
        tensors["values"] = tensors["values"].int()
    return Packed(pattern=packed.pattern, columns=packed.columns, **tensors)


@pytest.mark.parametrize(
    ("part", "columns", "message"),
    [
        ("bit", 16, r"^w: the bits of 1 groups do not mark 2 of 4"),
        ("bit", 12, r"^w: the bits of 1 groups do not mark 2 of 4"),
        ("moved bit", 16, r"^w: the bits of 3 groups do not mark 2 of 4"),
        ("padding", 12, r"^w: the bits of 1 groups"),
        ("order", 16, r"^w: expected a channel permutation"),
        ("wide values", 16, r"^w: 2:4 of 16 columns has values of 8 floats a row, got torch\.float32 \(2, 16\)"),
        ("short bits", 16, r"^w: 2:4 of 16 columns has bits of shape \(2, 2\), uint8, got torch\.uint8 \(2, 1\)"),
        ("signed bits", 16, r"got torch\.int8 \(2, 2\)"),
        ("integer values", 16, r"got torch\.int32 \(2, 8\)"),
    ],
)
def test_damaged_tensors_are_refused(part, columns, message):
    packed = pack(nm_matrix(2, columns, Pattern(2, 4)), Pattern(2, 4), torch.arange(columns))
    check_packed(packed, "w")
    with pytest.raises((PatternError, MethodError), match=message):
        check_packed(damaged(part, packed), "w")


def test_a_matrix_without_rows():
    empty = torch.zeros(0, 8)
    packed = pack(empty, Pattern(2, 4))
    assert (packed.values.shape, packed.bits.shape) == ((0, 4), (0, 1))
    assert same_bits(unpack(packed), empty)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", ["int8", "int4"])
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(3, 4), Pattern(1, 4)], ids=str)
def test_quantised_matrices_unpack_to_the_nearest_values_and_quantise_to_the_same_again(dtype, values, pattern):
    weight = nm_matrix(9, 272, pattern, dtype)
    packed = quantise(pack(weight, pattern), values)
    assert (packed.kind, packed.dtype) == (values, dtype)
    check_packed(packed, "m")
    dense = unpack(packed)
    grid = GRIDS[values]
    group_size = grid.scale_group_size(pattern, packed.kept)
    assert dense.dtype == dtype
    integers, scales = rows_on_grid(pack(weight, pattern).values.double().tolist(), grid.max_level, group_size)
    assert packed.scales.tolist() == scales
    exact = [
        [scales[i][k // group_size] * integer / grid.max_level for k, integer in enumerate(row)]
        for i, row in enumerate(integers)
    ]
    assert same_bits(kept_values(packed), torch.tensor(exact, dtype=torch.float64).to(dtype))
    again = quantise(pack(dense, pattern), values)
    assert same_bits(unpack(again), dense)
    assert same_bits(again.scales, packed.scales)


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_quantised_rows_and_orders(values):
    weight = nm_matrix(9, 64, PATTERN)
    order = torch.randperm(64)
    packed = quantise(pack(weight[:, order.argsort()], PATTERN, order), values)
    assert same_bits(unpack(packed)[:, order], unpack(quantise(pack(weight, PATTERN), values)))
    assert same_bits(unpack(packed.row_slice(2, 5)), unpack(packed)[2:5])
    assert packed.nbytes == sum(tensor.nbytes for tensor in packed.tensors().values())


def test_weights_that_cannot_be_quantised_are_refused():
    weight = nm_matrix(4, 8, PATTERN)
    for bad in (torch.nan, torch.inf):
        broken = weight.clone()
        broken[1, int(weight[1].nonzero()[0])] = bad
        with pytest.raises(PatternError, match=r"^m: the weight holds NaN or infinity, which int8 cannot$"):
            quantise(pack(broken, PATTERN), "int8", "m")
    with pytest.raises(PatternError, match=r"^m: its values are int8 already$"):
        quantise(quantise(pack(weight, PATTERN), "int8"), "int4", "m")
    with pytest.raises(PatternError, match=r"^m: 3 values a row, which int4 cannot store in pairs; use int8$"):
        quantise(pack(nm_matrix(4, 6, Pattern(1, 2)), Pattern(1, 2)), "int4", "m")


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        (
            "int8",
            {"scales": torch.tensor([[1.0], [torch.nan]])},
            "scales must be finite and not negative, and some are",
        ),
        ("int8", {"scales": torch.tensor([[1.0], [-1.0]])}, "scales must be finite and not negative, and some are"),
        (
            "int4",
            {"scales": torch.ones(2, 2)},
            r"expected scales of shape \(2, 1\), float32, .*, got torch.float32 \(2, 2\)",
        ),
        (
            "int4",
            {"scales": torch.ones(2, 1).int()},
            r"expected scales of shape \(2, 1\), float32, .*, got torch.int32",
        ),
        ("int8", {"values": torch.full((2, 4), -128, dtype=torch.int8)}, "values of int8 lie between -127 and 127"),
        ("int4", {"values": torch.zeros(2, 2, dtype=torch.uint8)}, "values of int4 lie between -7 and 7"),
        (
            "int8",
            {"values": torch.ones(2, 3, dtype=torch.int8)},
            r"with scales has values of 4 int8, or 2 bytes of int4",
        ),
        (
            "int8",
            {"values": torch.ones(2, 4)},
            r"with scales has values of 4 int8, or 2 bytes of int4, a row, got torch.f",
        ),
    ],
)
def test_damaged_quantised_tensors_are_refused(values, change, message):
    packed = quantise(pack(nm_matrix(2, 8, PATTERN), PATTERN), values)
    check_packed(packed, "m")
    with pytest.raises(PatternError, match=rf"^m: .*{message}"):
        check_packed(replace(packed, **change), "m")
