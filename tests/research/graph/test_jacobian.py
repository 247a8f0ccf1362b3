import math

import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence

from eggs_ptp.errors import NumericsError
from eggs_ptp.research.graph import jacobian as module
from eggs_ptp.research.graph.jacobian import jacobian_norms


def block(hidden):
    """A function that mixes tokens and channels, with a residual connection."""
    generator = torch.Generator().manual_seed(0)
    channels, tokens = torch.randn(6, 6, generator=generator), torch.randn(5, 5, generator=generator)
    return hidden + torch.tanh(tokens @ hidden @ channels)


def test_norms_are_those_of_the_jacobian_by_autograd():
    point = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(1))
    jacobian = torch.autograd.functional.jacobian(block, point).reshape(30, 30).double()
    values = torch.linalg.svdvals(jacobian)
    norms = jacobian_norms(block, point, probes=4000)
    assert norms.singular_values == pytest.approx(values[:4].tolist(), rel=1e-3)
    assert norms.rms == pytest.approx(math.sqrt(float(values.square().mean())), rel=0.03)
    written = jacobian - torch.eye(30, dtype=torch.float64)
    assert norms.rms_written == pytest.approx(math.sqrt(float(written.square().mean(0).sum())), rel=0.03)


def test_norms_of_a_scaled_identity():
    norms = jacobian_norms(lambda hidden: 3.0 * hidden, torch.ones(1, 4, 5), count=2)
    assert norms.singular_values == pytest.approx([3.0, 3.0], rel=1e-4)
    assert norms.rms == pytest.approx(3.0, rel=1e-5)
    assert norms.rms_written == pytest.approx(2.0, rel=1e-5)


def test_failures_are_reported(monkeypatch):
    with pytest.raises(NumericsError, match="NaN or infinity"):
        jacobian_norms(lambda hidden: hidden / 0.0, torch.ones(1, 4, 5))

    def never(*_args, **_kwargs):
        raise ArpackNoConvergence("no", [], [])

    monkeypatch.setattr(module, "svds", never)
    with pytest.raises(NumericsError, match="Jacobian were not found"):
        jacobian_norms(lambda hidden: hidden, torch.ones(1, 4, 5))
