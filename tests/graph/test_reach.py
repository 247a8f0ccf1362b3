import pytest
import torch

from eggs_ptp.graph.reach import beside, share, through


def random(seed, rows, columns, density):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_a_path_is_a_pair_of_connections(density):
    for seed in range(5):
        first, second = random(seed, 30, 20, density), random(seed + 50, 25, 30, density)
        first[:, 3] = False
        second[7] = False
        expected = (second.unsqueeze(2) & first.unsqueeze(0)).any(1)
        assert torch.equal(through(first, second), expected)
        assert not through(first, second)[:, 3].any()


def test_where_nothing_is_read_nothing_is_reached():
    assert not through(random(0, 6, 5, 1.0), torch.zeros(4, 6, dtype=torch.bool)).any()
    assert through(random(0, 6, 5, 1.0), torch.ones(4, 6, dtype=torch.bool)).all()


def test_residual_connections_reach_the_channel_itself():
    reached = beside(torch.zeros(4, 4, dtype=torch.bool))
    assert torch.equal(reached, torch.eye(4, dtype=torch.bool))
    assert share(reached) == 0.25
