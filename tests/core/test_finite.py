"""Detecting NaN and infinity."""

import pytest
import torch

from eggs_ptp.core.finite import is_finite

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("index", [0, 57, 119])
def test_a_single_nonfinite_entry_is_detected(bad, dtype, index):
    tensor = torch.linspace(-1, 1, 120).to(dtype)
    assert is_finite(tensor.view(3, 2, 20))
    tensor[index] = bad
    assert not is_finite(tensor.view(3, 2, 20))
    assert not is_finite(tensor.view(30, 4).T)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_number_is_finite(dtype):
    assert is_finite(torch.full((3,), torch.finfo(dtype).max, dtype=dtype))


def test_float8_integers_and_empty_tensors():
    float8 = torch.ones(4).to(torch.float8_e4m3fn)
    assert is_finite(float8)
    float8[1] = torch.nan
    assert not is_finite(float8)
    assert is_finite(torch.arange(4))
    assert is_finite(torch.empty(0))
