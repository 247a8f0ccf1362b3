import math

import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence

from eggs_ptp.errors import NumericsError
from eggs_ptp.graph import jacobian as module
from eggs_ptp.graph.jacobian import gain


def block(hidden):
    """Mixes tokens and channels, with a residual."""
    draw = torch.Generator().manual_seed(0)
    channels, tokens = torch.randn(6, 6, generator=draw), torch.randn(5, 5, generator=draw)
    return hidden + torch.tanh(tokens @ hidden @ channels)


def test_it_is_the_jacobian_of_autograd():
    point = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(1))
    whole = torch.autograd.functional.jacobian(block, point).reshape(30, 30).double()
    values = torch.linalg.svdvals(whole)
    found = gain(block, point, probes=4000)
    assert found.singular_values == pytest.approx(values[:4].tolist(), rel=1e-3)
    assert found.rms == pytest.approx(math.sqrt(float(values.square().mean())), rel=0.03)
    written = whole - torch.eye(30, dtype=torch.float64)
    assert found.rms_written == pytest.approx(math.sqrt(float(written.square().mean(0).sum())), rel=0.03)


def test_a_block_that_passes_everything_on():
    found = gain(lambda hidden: 3.0 * hidden, torch.ones(1, 4, 5), count=2)
    assert found.singular_values == pytest.approx([3.0, 3.0], rel=1e-4)
    assert found.rms == pytest.approx(3.0, rel=1e-5)
    assert found.rms_written == pytest.approx(2.0, rel=1e-5)


def test_what_cannot_be_said_is_refused(monkeypatch):
    with pytest.raises(NumericsError, match="NaN or infinity"):
        gain(lambda hidden: hidden / 0.0, torch.ones(1, 4, 5))

    def never(*_args, **_kwargs):
        raise ArpackNoConvergence("no", [], [])

    monkeypatch.setattr(module, "svds", never)
    with pytest.raises(NumericsError, match="Jacobian were not found"):
        gain(lambda hidden: hidden, torch.ones(1, 4, 5))
