import pytest
import torch

from eggs_ptp.graph.lost import energy, lost


def layer(seed=0):
    draw = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(200, 12, generator=draw), torch.randn(7, 12, generator=draw)
    return x, weight, x.T @ x / len(x)


def test_shares_are_those_of_the_outputs_themselves():
    x, dense, gram = layer()
    pruned = dense * (torch.rand(7, 12, generator=torch.Generator().manual_seed(1)) < 0.5)
    pruned[:, [2, 9]] = 0
    pruned[:, 4] *= 1.5  # an update
    found = lost(dense, pruned, gram)
    x, dense, pruned = x.double(), dense.double(), pruned.double()
    whole = (x @ dense.T).square().sum()
    dead = (pruned == 0).all(0)
    assert dead[[2, 9]].all()
    expected = {
        "dead_activation": x[:, dead].square().sum() / x.square().sum(),
        "dead_output": (x[:, dead] @ dense[:, dead].T).square().sum() / whole,
        "output_error": (x @ (dense - pruned).T).square().sum() / whole,
        "mask_error": (x @ (dense * (pruned == 0)).T).square().sum() / whole,
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(float(value), rel=1e-5)
    assert energy(dense, gram.double()) * 200 == pytest.approx(float(whole), rel=1e-5)


def test_nothing_lost_and_nothing_there():
    _, dense, gram = layer()
    assert lost(dense, dense, gram) == (0.0, 0.0, 0.0, 0.0)
    assert lost(dense * 0, dense * 0, gram)[1:] == (0.0, 0.0, 0.0)
    assert lost(dense, dense * 0, torch.zeros(12, 12)) == (0.0, 0.0, 0.0, 0.0)
    assert lost(dense, dense * 0, gram) == pytest.approx((1.0, 1.0, 1.0, 1.0), abs=1e-6)
