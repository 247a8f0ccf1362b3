import pytest
import torch

from eggs_ptp.core.connections import connections
from eggs_ptp.errors import NumericsError

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES)
def test_connections_are_the_nonzero_weights(dtype):
    weight = torch.randn(150, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    limits = torch.finfo(dtype)
    weight[:, ::3] = 0
    weight[:, 1::6] = -0.0
    extremes = [limits.max, limits.min, limits.smallest_normal, -limits.smallest_normal / 2]
    weight[70, :4] = torch.tensor(extremes, dtype=dtype)
    assert torch.equal(connections(weight, "w"), weight != 0)
    assert torch.equal(connections(weight.T, "w"), (weight != 0).T)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, -torch.nan])
def test_weights_that_are_not_finite_are_refused_by_name(dtype, value):
    weight = torch.zeros(130, 5, dtype=dtype)
    weight[129, 4] = value
    with pytest.raises(NumericsError, match=r"a\.weight holds NaN"):
        connections(weight, "a.weight")
