"""Models packed in memory, and dense again."""

import pytest
import torch
from oracles.packing import nm_matrix, same_bits
from torch import nn

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.sparse.contents import Contents
from eggs_ptp.sparse.convert import contents_of, pack, unpack
from eggs_ptp.sparse.linear import NMLinear


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
        made = nn.Linear(16, 16, bias=bias)
        made.weight.data = nm_matrix(16, 16, pattern, seed=pattern.group)
        return made

    def forward(self, ids):
        return self.head(self.dense(self.inner(self.two(self.embed(ids)))))


IDS = torch.arange(10)


def test_each_matrix_gets_the_first_pattern_that_fits():
    model = Model().eval()
    before = model(IDS)
    assert pack(model) is model
    patterns = {"two": Pattern(2, 4), "inner.0": Pattern(4, 8), "inner.2": Pattern(1, 4)}
    assert contents_of(model) == Contents(patterns)
    assert type(model.dense) is nn.Linear
    assert model.head.weight is model.embed.weight
    torch.testing.assert_close(model(IDS), before)
    assert not model.two.training


def test_a_pattern_that_is_asked_for_is_the_only_one():
    model = pack(Model(), "4:8")
    assert contents_of(model) == Contents(dict.fromkeys(("two", "inner.0", "inner.2"), Pattern(4, 8)))
    assert contents_of(pack(Model(), Pattern(1, 4))) == Contents({"inner.2": Pattern(1, 4)})


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_values_are_quantised_when_asked_for(values):
    model, plain = Model().eval(), Model()
    plain.load_state_dict(model.state_dict())
    pack(model, values=values)
    assert contents_of(model).values == dict.fromkeys(("two", "inner.0", "inner.2"), values)
    apart = (model(IDS) - plain(IDS)).norm() / plain(IDS).norm()
    assert 0 < apart < {"int8": 0.02, "int4": 0.3}[values]
    numbers = unpack(model).state_dict()
    pack(model, values=values)
    again = unpack(model).state_dict()
    assert all(same_bits(numbers[name], again[name]) for name in numbers)
    with pytest.raises(PatternError, match=r"^values 'int2': expected one of int8, int4"):
        pack(Model(), values="int2")


def test_unpacking_gives_every_bit_back():
    model, packed = Model(), unpack(pack(Model()))
    again = Model()
    again.load_state_dict(model.state_dict())
    packed_state = unpack(pack(again)).state_dict()
    assert packed_state.keys() == model.state_dict().keys()
    assert all(same_bits(packed_state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, NMLinear) for module in packed.modules())


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(PatternError, match=r"^no linear of this Sequential is N:M \(1:4, 2:8, 2:4, .*eggs prune$"):
        pack(nn.Sequential(nn.Linear(16, 16)))
    with pytest.raises(PatternError, match=r"^no linear of this Model is N:M \(1:16\)"):
        pack(Model(), "1:16")
    with pytest.raises(PatternError, match=r"^Model: sparsity 0\.5 is unstructured"):
        pack(Model(), "0.5")
