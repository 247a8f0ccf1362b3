import pytest
import torch

from eggs_ptp.research.bound.minorant import minorant


def gram(seed, size, tokens, spread=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(size) + spread * torch.randn(size, size, generator=generator)
    x = torch.randn(tokens, size, generator=generator) @ mix
    return (x.T @ x / tokens).double()


def smallest_eigenvalue(hessian, below):
    return float(torch.linalg.eigvalsh(hessian - torch.diag(below)).min())


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("size", "tokens"), [(4, 40), (24, 30), (40, 400)])
def test_the_remainder_is_positive_semidefinite(size, tokens, spread):
    hessian = gram(size, size, tokens, spread)
    for mass in (torch.ones(size), torch.rand(size, generator=torch.Generator().manual_seed(1)) ** 4):
        below = minorant(hessian, mass)
        assert (below >= 0).all()
        assert smallest_eigenvalue(hessian, below) > -1e-12 * float(hessian.diagonal().max())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_larger_than_the_textbook_bounds(seed):
    """The smallest eigenvalue, and diagonal dominance: each diagonal entry minus the others of its row."""
    hessian = gram(seed, 20, 200, 0.15)
    mass = torch.rand(20, generator=torch.Generator().manual_seed(seed))
    total = float((mass * minorant(hessian, mass)).sum())
    eigenvalue = float(torch.linalg.eigvalsh(hessian)[0] * mass.sum())
    dominance = 2 * hessian.diagonal() - hessian.abs().sum(1)
    assert total > 1.2 * eigenvalue > 0
    assert total > float((mass * dominance.clamp_min(0)).sum())


def test_the_result_of_a_short_search_is_still_feasible():
    hessian = gram(3, 30, 300, 0.5)
    short, converged = (minorant(hessian, torch.ones(30), sweeps=sweeps) for sweeps in (1, 40))
    assert smallest_eigenvalue(hessian, short) > -1e-12
    assert 0 < float(short.sum()) <= 1.05 * float(converged.sum())


def test_a_diagonal_is_its_own_minorant():
    diagonal = torch.tensor([3.0, 0.0, 1.0, 0.5])
    assert torch.allclose(minorant(torch.diag(diagonal), torch.ones(4)), diagonal.double(), rtol=2e-3)


def test_the_minorant_is_zero_for_silent_channels_and_for_dependent_ones():
    hessian = gram(0, 6, 60)
    hessian[2] = hessian[:, 2] = 0
    below = minorant(hessian, torch.ones(6))
    assert below[2] == 0
    assert (below[[0, 1, 3, 4, 5]] > 0).all()
    assert torch.equal(minorant(torch.ones(3, 3), torch.ones(3)), torch.zeros(3).double())
    assert torch.equal(minorant(torch.zeros(3, 3), torch.ones(3)), torch.zeros(3).double())
