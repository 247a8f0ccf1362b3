"""Quantisation follows its definition, and quantising dequantised values changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.grid import rows_on_grid
from oracles.packing import same_bits

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.quantisation import (
    GRIDS,
    compute_scales,
    dequantise,
    find_grid,
    pack_nibbles,
    quantise,
    unpack_nibbles,
)
from eggs_ptp.errors import PatternError

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(rows, kept, dtype, seed=0):
    return torch.randn(rows, kept, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("group_size", [5, 8, 24])
def test_integers_and_scales_are_those_of_the_definition(dtype, kind, group_size):
    values = random(7, 24, dtype)
    grid = GRIDS[kind]
    values[2, :group_size] = 0
    largest = values[3].abs().max()
    values[3, 0] = largest * 2
    values[3, 1] = largest  # exactly half the scale
    scales = compute_scales(values, group_size)
    integers, expected = rows_on_grid(values.double().tolist(), grid.max_level, group_size)
    assert scales.dtype == dtype
    assert scales.tolist() == expected
    assert quantise(values, scales, grid, group_size).tolist() == integers


@given(
    seed=st.integers(0, 999),
    kind=st.sampled_from(sorted(GRIDS)),
    dtype=st.sampled_from(TYPES),
    group_size=st.integers(1, 30),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
)
@settings(max_examples=80, deadline=None)
def test_dequantised_values_have_the_same_integers_and_scales(seed, kind, dtype, group_size, size):
    """So a folder can be converted between packed and dense any number of times."""
    values = random(5, 30, dtype, seed) * size
    grid = GRIDS[kind]
    scales = compute_scales(values, group_size)
    integers = quantise(values, scales, grid, group_size)
    back = dequantise(integers, scales, grid, group_size)
    assert back.dtype == dtype
    assert same_bits(compute_scales(back, group_size), scales)
    assert torch.equal(quantise(back, scales, grid, group_size), integers)
    scale_of_each = scales.double().repeat_interleave(group_size, 1)[:, :30]
    allowed = 0.5 * scale_of_each / grid.max_level + back.double().abs() * torch.finfo(dtype).eps
    assert bool(((back.double() - values.double()).abs() <= allowed).all())


def test_every_integer_survives_packing_into_nibbles():
    integers = torch.arange(-7, 7, dtype=torch.int8).view(2, 7).repeat(1, 2)
    packed = pack_nibbles(integers)
    assert (packed.dtype, packed.shape) == (torch.uint8, (2, 7))
    assert int(packed[0, 0]) == (-7 + 8) | (-6 + 8) << 4
    assert torch.equal(unpack_nibbles(packed), integers)


@pytest.mark.parametrize(
    ("kind", "pattern", "kept", "group_size", "count"),
    [
        ("int8", "2:4", 128, 128, 1),
        ("int4", "2:4", 128, 64, 2),
        ("int4", "4:8", 96, 64, 2),
        ("int4", "2:4", 32, 32, 1),
        ("int4", "3:4", 96, 63, 2),
        ("int4", "80:160", 160, 80, 2),
    ],
)
def test_scales_are_shared_by_whole_groups_of_the_pattern(kind, pattern, kept, group_size, count):
    pattern = Pattern(*map(int, pattern.split(":")))
    grid = find_grid(kind)
    assert grid.scale_group_size(pattern, kept) == group_size
    assert grid.scales_per_row(pattern, kept) == count


def test_unknown_grids_are_refused():
    with pytest.raises(
        PatternError, match=r"^values 'int3': expected one of int8, int4, or none for those of the source"
    ):
        find_grid("int3")
