import pytest
import torch
from oracles.bounds import least_error as exact

from eggs_ptp.bound.least_error import least_error
from eggs_ptp.bound.minorant import minorant
from eggs_ptp.core.pattern import Pattern


def layer(seed, rows, columns, spread):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + spread * torch.randn(columns, columns, generator=draw)
    x = torch.randn(20 * columns, columns, generator=draw) @ mix
    x[:, 1] *= 10  # an outlier channel
    return torch.randn(rows, columns, generator=draw).double(), (x.T @ x / len(x)).double()


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("keep", "group", "columns"), [(2, 4, 12), (1, 4, 8), (3, 4, 8), (4, 8, 8)])
def test_no_mask_at_all_loses_less(keep, group, columns, spread, updated):
    for seed in range(2):
        weight, hessian = layer(seed, 2, columns, spread)
        below = minorant(hessian, weight.square().sum(0))
        truth = torch.tensor([exact(row.numpy(), hessian.numpy(), keep, group, updated) for row in weight])
        for diagonal in (below, 0.3 * below, torch.zeros_like(below)):
            found = least_error(weight, hessian, Pattern(keep, group), diagonal, updated=updated)
            assert (found <= truth * (1 + 1e-9)).all()
        found = least_error(weight, hessian, Pattern(keep, group), below, updated=updated)
        assert (found > 0).all()
        if not updated:
            assert float(found.sum()) > 0.2 * float(truth.sum())


@pytest.mark.parametrize("updated", [False, True])
def test_without_correlations_the_bound_is_the_optimum(updated):
    """The smallest w_j^2 H_jj of every group go, and nothing can be made up for."""
    weight, _ = layer(0, 5, 16, 0.0)
    diagonal = torch.rand(16, generator=torch.Generator().manual_seed(1)).double() + 0.1
    costs = (weight.square() * diagonal).view(5, 4, 4).sort(-1).values[..., :2].sum((1, 2))
    found = least_error(weight, torch.diag(diagonal), Pattern(2, 4), diagonal, updated=updated)
    assert torch.allclose(found, costs, rtol=1e-6)


@pytest.mark.parametrize("updated", [False, True])
def test_looking_longer_is_never_worse_than_the_diagonal_alone(updated):
    weight, hessian = layer(5, 30, 32, 0.3)
    below = minorant(hessian, weight.square().sum(0))
    none, some, more = (
        float(least_error(weight, hessian, Pattern(2, 4), below, updated=updated, steps=steps).sum())
        for steps in (0, 10, 60)
    )
    assert 0 < none <= some <= more * (1 + 1e-3)
    assert updated or some > 1.5 * none


def test_solving_can_only_lower_what_must_be_lost():
    weight, hessian = layer(7, 10, 24, 0.2)
    below = minorant(hessian, weight.square().sum(0))
    solved, kept = (
        least_error(weight, hessian, Pattern(2, 4), below, updated=updated).sum() for updated in (True, False)
    )
    assert solved < kept


def test_a_layer_that_gives_nothing_loses_nothing():
    weight, hessian = torch.zeros(3, 8), torch.eye(8)
    assert torch.equal(least_error(weight, hessian, Pattern(2, 4), torch.ones(8)), torch.zeros(3).double())
    assert not least_error(torch.ones(3, 8), torch.zeros(8, 8), Pattern(2, 4), torch.zeros(8), updated=True).any()
