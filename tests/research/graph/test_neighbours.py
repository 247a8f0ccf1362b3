import numpy as np
import pytest
import torch
from oracles.graph import least_neighbours

from eggs_ptp.core.degrees import degrees
from eggs_ptp.research.graph.neighbours import expands_to, neighbour_bound


def random_mask(seed, rows=9, columns=8, density=0.4):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("seed", range(8))
def test_no_set_of_inputs_has_fewer_neighbours(seed):
    mask = random_mask(seed, density=0.2 + 0.08 * seed)
    mask_degrees = degrees(mask)
    exact = [least_neighbours(mask, size) for size in range(1, 9)]
    assert (neighbour_bound(mask_degrees) <= exact).all()
    assert all(exact[size - 1] > size for size in range(1, expands_to(mask_degrees) + 1))


def test_the_bound_is_attained_for_single_blocks():
    """Blocks of 3 x 2: two inputs share their three outputs."""
    mask = torch.block_diag(*[torch.ones(3, 2)] * 3).bool()
    assert neighbour_bound(degrees(mask)).tolist() == [3, 3, 5, 6, 8, 9]
    assert [least_neighbours(mask, size) for size in range(1, 7)] == [3, 3, 6, 6, 9, 9]
    assert expands_to(degrees(mask)) == 6


def test_lemma_1_alone_guarantees_expansion_of_fewer_inputs_than_its_floor():
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[:4] = True  # every input has the same B = 4 outputs
    mask_degrees = degrees(mask)
    assert neighbour_bound(mask_degrees).tolist() == [4] * 12
    assert expands_to(mask_degrees) == 3


def test_a_dead_input_expands_nothing():
    mask = random_mask(3, density=0.7)
    mask[:, 2] = False
    assert neighbour_bound(degrees(mask))[0] == 0
    assert expands_to(degrees(mask)) == 0
    assert neighbour_bound(degrees(torch.zeros(3, 2, dtype=torch.bool))).tolist() == np.zeros(2).tolist()
