"""A checkpoint's text, packed and dense: the same model whose linears change places."""

import pytest
import torch
from torch import nn

import eggs_ptp
from eggs_ptp.bench import checkpoint
from eggs_ptp.bench.checkpoint import PACKED, PREPACKED, STOCK, measure_generate, open_packed, shapes
from eggs_ptp.bench.dense import Prepacked
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import ModelError, PatternError
from eggs_ptp.sparse.linear import NMLinear


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    top = tmp_path_factory.mktemp("bench")
    eggs_ptp.prune(str(tiny("qwen2")), top / "dense", method="magnitude")
    export(top / "dense", top / "packed", "packed")
    return top / "dense", top / "packed"


def test_a_pruned_folder_is_packed_in_memory(folders, tiny):
    for folder in folders:
        found = shapes(open_packed(folder))
        assert sum(found.values()) == 14
        assert found[64, 32, Pattern(2, 4)] == 4  # gate and up of two blocks
    with pytest.raises(PatternError, match="no linear of this Qwen2ForCausalLM is N:M"):
        open_packed(tiny("qwen2"))
    assert open_packed(folders[0], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_every_form_says_the_same_and_the_model_is_left_packed(folders):
    model = open_packed(folders[1])
    before = {name: id(module) for name, module in model.named_modules()}
    found = measure_generate(model, prompt=4, tokens=12, rounds=5)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert found.same_tokens == found.tokens == 12
    assert {PACKED, STOCK} <= set(found.timings)
    assert all(len(timing.seconds) == 5 for timing in found.timings.values())
    packed = [module for module in model.modules() if isinstance(module, NMLinear)]
    biases = sum(module.bias.nbytes for module in packed if module.bias is not None)
    assert biases > 0
    assert found.packed_bytes == sum(module.packed.nbytes for module in packed) + biases
    assert found.dense_bytes == sum(module.out_features * module.in_features * 4 for module in packed) + biases
    record = found.to_dict()
    assert record["tokens_per_second"][PACKED] == round(12 / found.timings[PACKED].median, 2)
    assert record["ratio"]["over"] in (STOCK, PREPACKED)
    assert record["dtype"] == "float32"


def test_each_form_is_timed_with_its_own_linears(folders, monkeypatch):
    model = open_packed(folders[1])
    seen = []

    def generate(**settings):
        seen.append((type(model.model.layers[1].mlp.up_proj), type(model.lm_head)))
        return torch.zeros(1, 10, dtype=torch.long)

    monkeypatch.setattr(model, "generate", generate)
    found = measure_generate(model, prompt=4, tokens=6, rounds=5)
    kinds = {(NMLinear, nn.Linear), (nn.Linear, nn.Linear)}
    if PREPACKED in found.timings:
        kinds.add((Prepacked, Prepacked))
    assert set(seen) == kinds
    assert {kind: seen.count(kind) for kind in kinds} == dict.fromkeys(kinds, 8)


def test_a_form_that_says_something_else_is_seen(folders, monkeypatch):
    model = open_packed(folders[1])
    answers = iter([[0, 1, 2, 3], [0, 1, 9, 3]])
    monkeypatch.setattr(checkpoint, "why_not_prepacked", lambda dtype: "no")
    monkeypatch.setattr(checkpoint, "contest", lambda forms, **how: {})
    monkeypatch.setattr(model, "generate", lambda **settings: torch.tensor([[7, 7, *next(answers)]]))
    assert measure_generate(model, prompt=2, tokens=4).same_tokens == 2


def test_the_context_is_respected(folders):
    with pytest.raises(ModelError, match="100 prompt tokens and 100 new ones exceed the model's context of 128"):
        measure_generate(open_packed(folders[1]), prompt=100, tokens=100)
