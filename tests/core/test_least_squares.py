import torch
from oracles import least_squares as oracle
from torch.testing import assert_close

from eggs_ptp.core.least_squares import least_squares, row_losses, single_weight_optima


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, mask and Hessian of a layer of 3 x 8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 8, generator=generator).double()
    weight = torch.randn(3, 8, generator=generator).double()
    return weight, torch.rand(3, 8, generator=generator) < 0.5, x.T @ x / 100


def test_losses_are_quadratic_forms():
    weight, _, hessian = case()
    assert_close(row_losses(weight, hessian), oracle.losses(weight, torch.zeros_like(weight), hessian))


def test_it_solves_every_row():
    weight, mask, hessian = case()
    solved = least_squares(weight, mask, hessian, weight, 50, 0.0)
    assert_close(solved, oracle.on_support(weight, mask, hessian))


def test_the_optimum_and_the_gain_of_each_single_weight():
    weight, mask, hessian = case()
    solved = weight * mask * 0.7
    optimum, gain, losses = single_weight_optima(weight, solved, hessian)
    assert_close(losses, oracle.losses(weight, solved, hessian))
    for i, j in ((0, 0), (1, 3), (2, 7)):
        best = solved.clone()
        best[i, j] = optimum[i, j]
        without = solved.clone()
        without[i, j] = 0.0
        best_loss, loss_without = (oracle.losses(weight, candidate, hessian)[i] for candidate in (best, without))
        assert_close(loss_without - best_loss, gain[i, j])
        for step in (-0.01, 0.01):
            near = best.clone()
            near[i, j] += step
            assert oracle.losses(weight, near, hessian)[i] > best_loss


def test_an_input_that_is_always_zero_has_no_optimum_of_its_own():
    weight, _, hessian = case()
    hessian[:, 2] = 0.0
    hessian[2] = 0.0
    optimum, gain, _ = single_weight_optima(weight, weight * 0.5, hessian)
    assert torch.equal(optimum[:, 2], weight[:, 2] * 0.5)
    assert not gain[:, 2].any()
