"""The prepacked dense layer has the products of torch's linear."""

import pytest
import torch
from torch import nn

from eggs_ptp.bench.dense import PrepackedLinear, prepack_unsupported_reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (1, 1, 24), (2, 7, 24), (40, 24)])
def test_it_is_the_same_product(dtype, bias, shape):
    if reason := prepack_unsupported_reason(dtype):
        pytest.skip(reason)
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(shape).to(dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(PrepackedLinear(linear)(x), linear(x), rtol=tolerance, atol=tolerance)


def test_without_onednn_the_reason_says_so(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert prepack_unsupported_reason(torch.float32) == "torch was built without oneDNN"
