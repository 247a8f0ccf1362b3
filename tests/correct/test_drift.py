import pytest
import torch
from layers import layer

from eggs_ptp.correct.drift import drift
from eggs_ptp.errors import NumericsError


def _sample(tokens=200, rows=6, columns=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, columns)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    y = torch.randn(tokens, rows, generator=generator, dtype=torch.float64) * 3
    return weight, x, y


def test_minimises_the_damped_error():
    weight, x, y = _sample()
    tokens, damping = len(x), 0.05
    gram, cross = x.T @ x / tokens, y.T @ x / tokens
    d = damping * gram.diagonal().mean()
    # The same minimum as one ordinary least-squares problem: rows sqrt(d) I below the tokens pull towards W.
    stacked = torch.cat([x / tokens**0.5, d.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)])
    stacked_target = torch.cat([y / tokens**0.5, d.sqrt() * weight.T])
    expected = torch.linalg.lstsq(stacked, stacked_target).solution.T
    corrected = drift(weight.float(), gram.float(), cross.float(), damping=damping)
    torch.testing.assert_close(corrected, expected.float(), rtol=1e-4, atol=1e-4)


def test_without_drift_the_weight_is_returned():
    weight, x, _ = _sample()
    gram = (x.T @ x / len(x)).float()
    cross = (weight @ x.T @ x / len(x)).float()
    torch.testing.assert_close(drift(weight.float(), gram, cross), weight.float(), rtol=1e-4, atol=1e-4)


def test_share_interpolates_between_the_weight_and_the_solution():
    weight, x, y = _sample()
    gram, cross = (x.T @ x / len(x)).float(), (y.T @ x / len(x)).float()
    none, half, full = (drift(weight.float(), gram, cross, share=share) for share in (0.0, 0.5, 1.0))
    assert torch.equal(none, weight.float())
    torch.testing.assert_close(half, (none + full) / 2)


def test_approximating_it_approximates_the_dense_outputs():
    """||Y - X W'^T||^2 differs from ||X (V - W')^T||^2 by the same amount for every W', without damping."""
    weight, x, y = _sample()
    gram, cross = x.T @ x / len(x), y.T @ x / len(x)
    v = drift(weight, gram, cross, damping=1e-12).double()
    differences = [
        float((y - x @ candidate.T).square().sum() - (x @ (v - candidate).T).square().sum())
        for candidate in (weight, torch.zeros_like(weight), weight * (weight > 0))
    ]
    assert differences == pytest.approx([differences[0]] * 3, rel=1e-5)


def test_channels_that_are_always_zero_keep_their_weight():
    weight, x, y = _sample()
    x[:, 3] = 0.0
    gram, cross = (x.T @ x / len(x)).float(), (y.T @ x / len(x)).float()
    torch.testing.assert_close(drift(weight.float(), gram, cross)[:, 3], weight[:, 3].float())


def test_the_weight_of_inputs_that_never_fired_is_not_corrected():
    weight = torch.randn(3, 4)
    zero = torch.zeros(4, 4)
    assert torch.equal(drift(weight, zero, torch.zeros(3, 4)), weight)
    with pytest.raises(NumericsError, match="calibration"):
        drift(weight, zero + torch.nan, torch.zeros(3, 4))


def test_relative_damping_pulls_each_column_by_its_own_energy():
    weight, gram = layer(6, 12)
    cross = weight @ gram * 1.1
    corrected = drift(weight, gram, cross, damping=0.02, relative_damping=0.3)
    pull = (0.02 * gram.diagonal().mean() + 0.3 * gram.diagonal()).double().diag()
    expected = torch.linalg.solve(gram.double() + pull, (cross.double() + weight.double() @ pull).T).T
    torch.testing.assert_close(corrected, expected.float(), rtol=1e-4, atol=1e-5)
