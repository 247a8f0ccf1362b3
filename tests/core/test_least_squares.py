import torch
from oracles import least_squares as oracle
from torch.testing import assert_close

from eggs_ptp.core.least_squares import least_squares, loss_alone, row_losses


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 8, generator=generator).double()
    weight = torch.randn(3, 8, generator=generator).double()
    return weight, torch.rand(3, 8, generator=generator) < 0.5, x.T @ x / 100


def test_losses_are_quadratic_forms():
    weight, _, hessian = case()
    assert_close(row_losses(weight, hessian), oracle.losses(weight, torch.zeros_like(weight), hessian))


def test_it_solves_every_row():
    weight, mask, hessian = case()
    found = least_squares(weight, mask, hessian, weight, 50, 0.0)
    assert_close(found, oracle.on_support(weight, mask, hessian))


def test_the_loss_of_each_weight_alone():
    weight, mask, hessian = case()
    solved = weight * mask * 0.7
    alone, score, losses = loss_alone(weight, solved, hessian)
    assert_close(losses, oracle.losses(weight, solved, hessian))
    for i, j in ((0, 0), (1, 3), (2, 7)):
        best, without = solved.clone(), solved.clone()
        best[i, j], without[i, j] = alone[i, j], 0.0
        losses = [oracle.losses(weight, tried, hessian)[i] for tried in (best, without)]
        assert_close(losses[1] - losses[0], score[i, j])
        for step in (-0.01, 0.01):
            near = best.clone()
            near[i, j] += step
            assert oracle.losses(weight, near, hessian)[i] > losses[0]


def test_an_input_without_variance_says_nothing():
    weight, _, hessian = case()
    hessian[:, 2], hessian[2] = 0.0, 0.0
    alone, score, _ = loss_alone(weight, weight * 0.5, hessian)
    assert torch.equal(alone[:, 2], weight[:, 2] * 0.5)
    assert not score[:, 2].any()
