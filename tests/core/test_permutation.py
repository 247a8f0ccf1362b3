import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eggs_ptp.core import permutation as permutations
from eggs_ptp.errors import MethodError


@given(st.permutations(range(12)), st.sampled_from([torch.int32, torch.int64]))
def test_round_trip(channels, dtype):
    permutation = torch.tensor(channels, dtype=dtype)
    matrix = torch.arange(36).view(3, 12)
    inverse = permutations.invert(permutation)
    permutations.check_permutation(permutation, 12, "permutation")
    permutations.check_permutation(inverse, 12, "inverse")
    assert torch.equal(permutations.take_columns(permutations.take_columns(matrix, permutation), inverse), matrix)
    assert torch.equal(permutations.invert(inverse), permutation.long())


def test_entry_i_is_the_old_index_of_the_channel_at_i():
    matrix = torch.tensor([[10, 11, 12]])
    assert permutations.take_columns(matrix, torch.tensor([2, 0, 1])).tolist() == [[12, 10, 11]]
    assert permutations.invert(torch.tensor([2, 0, 1])).tolist() == [1, 2, 0]
    assert torch.equal(permutations.take_columns(matrix, permutations.identity(3)), matrix)


@pytest.mark.parametrize(
    "permutation",
    [
        torch.tensor([0, 1]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 1, 3]),
        torch.tensor([0, 1, -1]),
    ],
)
def test_tensors_that_are_no_permutation_are_refused_by_name(permutation):
    with pytest.raises(MethodError, match=r"model\.layers\.3"):
        permutations.check_permutation(permutation, 3, "model.layers.3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.float64])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_columns_are_permuted_bit_for_bit_in_every_type(dtype, shape, index_dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    permutation = torch.tensor([4, 0, 5, 1, 3, 2], dtype=index_dtype)
    assert torch.equal(permutations.take_columns(matrix, permutation), matrix[..., permutation.long()])
    strided = matrix[..., None].expand(*shape, 6).mT  # not contiguous
    assert torch.equal(permutations.take_columns(strided, permutation), strided[..., permutation.long()])
