"""Finite numbers."""

import pytest
import torch

from eggs_ptp.core.finite import finite

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("place", [0, 57, 119])
def test_one_number_that_is_not_is_seen(bad, kind, place):
    tensor = torch.linspace(-1, 1, 120).to(kind)
    assert finite(tensor.view(3, 2, 20))
    tensor[place] = bad
    assert not finite(tensor.view(3, 2, 20))
    assert not finite(tensor.view(30, 4).T)


@pytest.mark.parametrize("kind", TYPES)
def test_the_largest_number_is_finite(kind):
    assert finite(torch.full((3,), torch.finfo(kind).max, dtype=kind))


def test_float8_and_whole_numbers():
    eights = torch.ones(4).to(torch.float8_e4m3fn)
    assert finite(eights)
    eights[1] = torch.nan
    assert not finite(eights)
    assert finite(torch.arange(4))
    assert finite(torch.empty(0))
