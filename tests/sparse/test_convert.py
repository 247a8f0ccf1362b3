"""Models whose linears are packed in memory, and dense again."""

import pytest
import torch
from oracles.packing import nm_matrix, same_bits
from torch import nn

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.sparse.convert import pack, packed_config_of, unpack
from eggs_ptp.sparse.linear import NMLinear
from eggs_ptp.sparse.packed_config import PackedConfig


class Model(nn.Module):
    """Linears of several patterns, a dense one, and one whose weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.two = self.linear(Pattern(2, 4), bias=True)
        self.inner = nn.Sequential(self.linear(Pattern(4, 8)), nn.GELU(), self.linear(Pattern(1, 4)))
        self.dense = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10, bias=False)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            self.embed.weight.copy_(nm_matrix(10, 16, Pattern(2, 4)))

    @staticmethod
    def linear(pattern, bias=False):
        linear = nn.Linear(16, 16, bias=bias)
        linear.weight.data = nm_matrix(16, 16, pattern, seed=pattern.group)
        return linear

    def forward(self, ids):
        return self.head(self.dense(self.inner(self.two(self.embed(ids)))))


IDS = torch.arange(10)


def test_each_matrix_gets_the_first_pattern_that_fits():
    model = Model().eval()
    before = model(IDS)
    assert pack(model) is model
    patterns = {"two": Pattern(2, 4), "inner.0": Pattern(4, 8), "inner.2": Pattern(1, 4)}
    assert packed_config_of(model) == PackedConfig(patterns)
    assert type(model.dense) is nn.Linear
    assert model.head.weight is model.embed.weight
    torch.testing.assert_close(model(IDS), before)
    assert not model.two.training


def test_a_requested_pattern_is_the_only_one():
    model = pack(Model(), "4:8")
    assert packed_config_of(model) == PackedConfig(dict.fromkeys(("two", "inner.0", "inner.2"), Pattern(4, 8)))
    assert packed_config_of(pack(Model(), Pattern(1, 4))) == PackedConfig({"inner.2": Pattern(1, 4)})


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_values_are_quantised_on_request(values):
    model = Model().eval()
    plain = Model()
    plain.load_state_dict(model.state_dict())
    pack(model, values=values)
    assert packed_config_of(model).values == dict.fromkeys(("two", "inner.0", "inner.2"), values)
    error = (model(IDS) - plain(IDS)).norm() / plain(IDS).norm()
    assert 0 < error < {"int8": 0.02, "int4": 0.3}[values]
    unpacked_state = unpack(model).state_dict()
    pack(model, values=values)
    repeated_state = unpack(model).state_dict()
    assert all(same_bits(unpacked_state[name], repeated_state[name]) for name in unpacked_state)
    with pytest.raises(PatternError, match=r"^values 'int2': expected one of int8, int4"):
        pack(Model(), values="int2")


def test_unpacking_gives_every_bit_back():
    model = Model()
    copied = Model()
    copied.load_state_dict(model.state_dict())
    unpacked = unpack(pack(copied))
    unpacked_state = unpacked.state_dict()
    assert unpacked_state.keys() == model.state_dict().keys()
    assert all(same_bits(unpacked_state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, NMLinear) for module in unpacked.modules())


def test_models_that_cannot_be_packed_are_refused():
    with pytest.raises(PatternError, match=r"^no linear of this Sequential is N:M \(1:4, 2:8, 2:4, .*eggs prune$"):
        pack(nn.Sequential(nn.Linear(16, 16)))
    with pytest.raises(PatternError, match=r"^no linear of this Model is N:M \(1:16\)"):
        pack(Model(), "1:16")
    with pytest.raises(PatternError, match=r"^Model: sparsity 0\.5 is unstructured"):
        pack(Model(), "0.5")
