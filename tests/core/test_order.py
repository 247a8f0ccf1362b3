import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eggs_ptp.core import order as orders
from eggs_ptp.errors import MethodError


@given(st.permutations(range(12)), st.sampled_from([torch.int32, torch.int64]))
def test_round_trip(channels, dtype):
    order = torch.tensor(channels, dtype=dtype)
    matrix = torch.arange(36).view(3, 12)
    inverse = orders.invert(order)
    orders.check(order, 12, "order")
    orders.check(inverse, 12, "inverse")
    assert torch.equal(orders.take_columns(orders.take_columns(matrix, order), inverse), matrix)
    assert torch.equal(orders.invert(inverse), order.long())


def test_place_i_holds_the_channel_that_order_names():
    matrix = torch.tensor([[10, 11, 12]])
    assert orders.take_columns(matrix, torch.tensor([2, 0, 1])).tolist() == [[12, 10, 11]]
    assert orders.invert(torch.tensor([2, 0, 1])).tolist() == [1, 2, 0]
    assert torch.equal(orders.take_columns(matrix, orders.identity(3)), matrix)


@pytest.mark.parametrize(
    "order",
    [
        torch.tensor([0, 1]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 1, 3]),
        torch.tensor([0, 1, -1]),
    ],
)
def test_what_is_no_order_is_refused_by_name(order):
    with pytest.raises(MethodError, match=r"model\.layers\.3"):
        orders.check(order, 3, "model.layers.3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.float64])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_columns_are_taken_bit_for_bit_whatever_their_type(dtype, shape, kind):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    order = torch.tensor([4, 0, 5, 1, 3, 2], dtype=kind)
    assert torch.equal(orders.take_columns(matrix, order), matrix[..., order.long()])
    slanted = matrix[..., None].expand(*shape, 6).mT  # no contiguous one
    assert torch.equal(orders.take_columns(slanted, order), slanted[..., order.long()])
