import pytest
import torch
from oracles.bounds import least_error as exact_least_error

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.research.bound.least_error import least_error
from eggs_ptp.research.bound.minorant import minorant


def layer(seed, rows, columns, spread):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + spread * torch.randn(columns, columns, generator=generator)
    x = torch.randn(20 * columns, columns, generator=generator) @ mix
    x[:, 1] *= 10  # an outlier channel
    return torch.randn(rows, columns, generator=generator).double(), (x.T @ x / len(x)).double()


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("keep", "group", "columns"), [(2, 4, 12), (1, 4, 8), (3, 4, 8), (4, 8, 8)])
def test_no_mask_has_a_smaller_error(keep, group, columns, spread, updated):
    for seed in range(2):
        weight, hessian = layer(seed, 2, columns, spread)
        pattern = Pattern(keep, group)
        below = minorant(hessian, weight.square().sum(0))
        exact = torch.tensor([exact_least_error(row.numpy(), hessian.numpy(), keep, group, updated) for row in weight])
        for diagonal in (below, 0.3 * below, torch.zeros_like(below)):
            bound = least_error(weight, hessian, pattern, diagonal, updated=updated)
            assert (bound <= exact * (1 + 1e-9)).all()
        bound = least_error(weight, hessian, pattern, below, updated=updated)
        assert (bound > 0).all()
        if not updated:
            assert float(bound.sum()) > 0.2 * float(exact.sum())


@pytest.mark.parametrize("updated", [False, True])
def test_without_correlations_the_bound_is_the_optimum(updated):
    """The smallest w_j^2 H_jj of every group are pruned, and no update of the others can compensate."""
    weight, _ = layer(0, 5, 16, 0.0)
    diagonal = torch.rand(16, generator=torch.Generator().manual_seed(1)).double() + 0.1
    costs = (weight.square() * diagonal).view(5, 4, 4).sort(-1).values[..., :2].sum((1, 2))
    bound = least_error(weight, torch.diag(diagonal), Pattern(2, 4), diagonal, updated=updated)
    assert torch.allclose(bound, costs, rtol=1e-6)


@pytest.mark.parametrize("updated", [False, True])
def test_more_steps_are_never_worse_than_the_diagonal_alone(updated):
    weight, hessian = layer(5, 30, 32, 0.3)
    below = minorant(hessian, weight.square().sum(0))
    no_steps, some_steps, more_steps = (
        float(least_error(weight, hessian, Pattern(2, 4), below, updated=updated, steps=steps).sum())
        for steps in (0, 10, 60)
    )
    assert 0 < no_steps <= some_steps <= more_steps * (1 + 1e-3)
    assert updated or some_steps > 1.5 * no_steps


def test_updating_weights_can_only_lower_the_bound():
    weight, hessian = layer(7, 10, 24, 0.2)
    below = minorant(hessian, weight.square().sum(0))
    with_updates, without = (
        least_error(weight, hessian, Pattern(2, 4), below, updated=updated).sum() for updated in (True, False)
    )
    assert with_updates < without


def test_a_layer_with_zero_output_has_no_error():
    weight = torch.zeros(3, 8)
    hessian = torch.eye(8)
    assert torch.equal(least_error(weight, hessian, Pattern(2, 4), torch.ones(8)), torch.zeros(3).double())
    assert not least_error(torch.ones(3, 8), torch.zeros(8, 8), Pattern(2, 4), torch.zeros(8), updated=True).any()
