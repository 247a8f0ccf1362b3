"""Values on grids: as the definition has them, back again without a change, and again the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.grid import rows_on_grid
from oracles.packing import same_bits

from eggs_ptp.core.grid import (
    GRIDS,
    find_grid,
    join_nibbles,
    quantise,
    restore,
    scales_of,
    split_nibbles,
)
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(rows, kept, dtype, seed=0):
    return torch.randn(rows, kept, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("run", [5, 8, 24])
def test_numbers_and_scales_are_those_of_the_definition(dtype, kind, run):
    values, grid = random(7, 24, dtype), GRIDS[kind]
    values[2, :run] = 0
    values[3, 0], values[3, 1] = values[3].abs().max() * 2, values[3].abs().max()  # exactly half the scale
    scales = scales_of(values, run)
    numbers, expected = rows_on_grid(values.double().tolist(), grid.top, run)
    assert scales.dtype == dtype
    assert scales.tolist() == expected
    assert quantise(values, scales, grid, run).tolist() == numbers


@given(
    seed=st.integers(0, 999),
    kind=st.sampled_from(sorted(GRIDS)),
    dtype=st.sampled_from(TYPES),
    run=st.integers(1, 30),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_read_back_has_the_same_numbers_and_scales(seed, kind, dtype, run, size):
    """So a folder may change between packed and dense as often as it likes."""
    values, grid = random(5, 30, dtype, seed) * size, GRIDS[kind]
    scales = scales_of(values, run)
    numbers = quantise(values, scales, grid, run)
    back = restore(numbers, scales, grid, run)
    assert back.dtype == dtype
    assert same_bits(scales_of(back, run), scales)
    assert torch.equal(quantise(back, scales, grid, run), numbers)
    spread = scales.double().repeat_interleave(run, 1)[:, :30]
    allowed = 0.5 * spread / grid.top + back.double().abs() * torch.finfo(dtype).eps
    assert bool(((back.double() - values.double()).abs() <= allowed).all())


def test_every_number_comes_back_from_its_nibble():
    numbers = torch.arange(-7, 7, dtype=torch.int8).view(2, 7).repeat(1, 2)
    joined = join_nibbles(numbers)
    assert (joined.dtype, joined.shape) == (torch.uint8, (2, 7))
    assert int(joined[0, 0]) == (-7 + 8) | (-6 + 8) << 4
    assert torch.equal(split_nibbles(joined), numbers)


@pytest.mark.parametrize(
    ("kind", "pattern", "kept", "run", "count"),
    [
        ("int8", "2:4", 128, 128, 1),
        ("int4", "2:4", 128, 64, 2),
        ("int4", "4:8", 96, 64, 2),
        ("int4", "2:4", 32, 32, 1),
        ("int4", "3:4", 96, 63, 2),
        ("int4", "80:160", 160, 80, 2),
    ],
)
def test_scales_are_shared_by_whole_groups_of_the_pattern(kind, pattern, kept, run, count):
    keep, group = map(int, pattern.split(":"))
    grid = find_grid(kind)
    assert (grid.run(Pattern(keep, group), kept), grid.count(Pattern(keep, group), kept)) == (run, count)


def test_unknown_grids_are_refused():
    with pytest.raises(
        PatternError, match=r"^values 'int3': expected one of int8, int4, or none for those of the source"
    ):
        find_grid("int3")
