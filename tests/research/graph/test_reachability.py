import pytest
import torch

from eggs_ptp.research.graph.reachability import compose_reachability, share, with_residual


def random_mask(seed, rows, columns, density):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_a_path_is_a_pair_of_connections_that_meet(density):
    for seed in range(5):
        first = random_mask(seed, 30, 20, density)
        second = random_mask(seed + 50, 25, 30, density)
        first[:, 3] = False
        second[7] = False
        expected = (second.unsqueeze(2) & first.unsqueeze(0)).any(1)
        assert torch.equal(compose_reachability(first, second), expected)
        assert not compose_reachability(first, second)[:, 3].any()


def test_masks_of_zeros_and_ones():
    assert not compose_reachability(random_mask(0, 6, 5, 1.0), torch.zeros(4, 6, dtype=torch.bool)).any()
    assert compose_reachability(random_mask(0, 6, 5, 1.0), torch.ones(4, 6, dtype=torch.bool)).all()


def test_a_residual_connection_makes_every_channel_reach_itself():
    reached = with_residual(torch.zeros(4, 4, dtype=torch.bool))
    assert torch.equal(reached, torch.eye(4, dtype=torch.bool))
    assert share(reached) == 0.25
