import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core import linalg
from eggs_ptp.core.linalg import upper_factor
from eggs_ptp.errors import NumericsError


def gram(width: int, tokens: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(tokens or 2 * width, width, generator=generator, dtype=torch.float64)
    x *= torch.rand(width, generator=generator, dtype=torch.float64).mul(3).exp()
    return x.T @ x / len(x)


def damped(h: Tensor, damping: float) -> Tensor:
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


@pytest.mark.parametrize("width", [1, 2, 7, 127, 128, 129, 300])
@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_the_factor_times_its_transpose_is_the_damped_gram(width, damping):
    h = gram(width)
    factor = upper_factor(h, damping)
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal() > 0).all()
    assert_close(factor @ factor.T, damped(h, damping))


@pytest.mark.parametrize("width", [5, 200])
def test_the_inverse_factor_is_the_upper_factor_of_the_inverse(width):
    h = gram(width)
    upper = upper_factor(h, 0.01).inverse()
    assert_close(upper, torch.linalg.cholesky(damped(h, 0.01).inverse(), upper=True), rtol=1e-6, atol=1e-9)


def test_a_leading_corner_of_the_inverse_needs_only_the_leading_corner():
    factor = upper_factor(gram(40), 0.01)
    assert_close(factor[:9, :9].inverse(), factor.inverse()[:9, :9])


def test_float32_is_near_float64():
    h = gram(260)
    assert_close(upper_factor(h.float(), 0.01).double(), upper_factor(h, 0.01), rtol=1e-3, atol=1e-4)


def test_a_channel_that_is_always_zero_is_independent_of_the_others():
    h = gram(140)
    h[130] = 0.0
    h[:, 130] = 0.0
    others = torch.arange(140) != 130
    for damping in (0.0, 0.01):
        factor = upper_factor(h, damping)
        assert (factor[130, others] == 0).all()
        assert (factor[others, 130] == 0).all()
        expected = h + damping * h.diagonal().mean() * torch.eye(140)
        assert_close((factor @ factor.T)[others][:, others], expected[others][:, others])
        assert factor[130, 130] > 0


def test_the_gram_is_not_changed():
    h = gram(150)
    before = h.clone()
    upper_factor(h, 0.5)
    assert torch.equal(h, before)


@pytest.mark.parametrize("channel", [0, 3, 130, 149])
def test_a_gram_that_is_not_positive_definite_is_refused_naming_the_channel_and_the_option(channel):
    h = torch.eye(150)
    h[channel, channel] = -1e-3
    with pytest.raises(NumericsError, match=rf"channel {channel} of 150.*steps\.update\.damping to 0\.01"):
        upper_factor(h, 0.0)
    h[channel, channel] = float("nan")
    with pytest.raises(NumericsError, match="got a mean of nan"):
        upper_factor(h, 0.01)


def test_the_message_suggests_ten_times_the_damping():
    with pytest.raises(NumericsError, match=r"with damping 0\.05 .*damping to 0\.5"):
        upper_factor(torch.tensor([[1.0, 3.0], [3.0, 1.0]]), 0.05)


@pytest.mark.parametrize("size", [1, 4, 150])
def test_the_hessian_of_inputs_that_never_fired_is_the_identity(size):
    zero = torch.zeros(size, size)
    assert torch.equal(upper_factor(zero, 0.01), torch.eye(size))
    assert torch.equal(linalg.damped(zero, 0.01), torch.eye(size))
    assert not zero.any()
    with pytest.raises(NumericsError, match="expected calibration tokens, got 0"):
        linalg.damped(zero, 0.01, torch.tensor(0.0))
