import pytest
import torch

from eggs_ptp.research.graph.layer_error import layer_errors, output_energy


def layer(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 12, generator=generator)
    weight = torch.randn(7, 12, generator=generator)
    return x, weight, x.T @ x / len(x)


def test_errors_equal_those_computed_from_the_outputs():
    x, dense, gram = layer()
    pruned = dense * (torch.rand(7, 12, generator=torch.Generator().manual_seed(1)) < 0.5)
    pruned[:, [2, 9]] = 0
    pruned[:, 4] *= 1.5  # an update
    errors = layer_errors(dense, pruned, gram)
    x = x.double()
    dense = dense.double()
    pruned = pruned.double()
    dense_energy = (x @ dense.T).square().sum()
    dead = (pruned == 0).all(0)
    assert dead[[2, 9]].all()
    expected = {
        "dead_activation": x[:, dead].square().sum() / x.square().sum(),
        "dead_output": (x[:, dead] @ dense[:, dead].T).square().sum() / dense_energy,
        "output_error": (x @ (dense - pruned).T).square().sum() / dense_energy,
        "mask_error": (x @ (dense * (pruned == 0)).T).square().sum() / dense_energy,
    }
    for name, value in expected.items():
        assert getattr(errors, name) == pytest.approx(float(value), rel=1e-5)
    assert output_energy(dense, gram.double()) * 200 == pytest.approx(float(dense_energy), rel=1e-5)


def test_errors_without_pruning_without_weights_and_without_inputs():
    _, dense, gram = layer()
    assert layer_errors(dense, dense, gram) == (0.0, 0.0, 0.0, 0.0)
    assert layer_errors(dense * 0, dense * 0, gram)[1:] == (0.0, 0.0, 0.0)
    assert layer_errors(dense, dense * 0, torch.zeros(12, 12)) == (0.0, 0.0, 0.0, 0.0)
    assert layer_errors(dense, dense * 0, gram) == pytest.approx((1.0, 1.0, 1.0, 1.0), abs=1e-6)
