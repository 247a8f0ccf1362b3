"""Text generation of a checkpoint, packed and dense: one model whose linears are exchanged."""

import pytest
import torch
from torch import nn

import eggs_ptp
from eggs_ptp.bench import checkpoint
from eggs_ptp.bench.checkpoint import PACKED, PREPACKED, STOCK, measure_generate, open_packed, packed_shapes
from eggs_ptp.bench.dense import PrepackedLinear
from eggs_ptp.checkpoint.packed import export
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import ModelError, PatternError
from eggs_ptp.sparse.linear import NMLinear


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    eggs_ptp.prune(str(tiny("qwen2")), folder / "dense", method="magnitude")
    export(folder / "dense", folder / "packed", "packed")
    return folder / "dense", folder / "packed"


def test_a_pruned_folder_is_packed_in_memory(folders, tiny):
    for folder in folders:
        shapes = packed_shapes(open_packed(folder))
        assert sum(shapes.values()) == 14
        assert shapes[64, 32, Pattern(2, 4)] == 4  # gate and up of two blocks
    with pytest.raises(PatternError, match="no linear of this Qwen2ForCausalLM is N:M"):
        open_packed(tiny("qwen2"))
    assert open_packed(folders[0], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_all_forms_generate_the_same_tokens_and_the_model_stays_packed(folders):
    model = open_packed(folders[1])
    before = {name: id(module) for name, module in model.named_modules()}
    measurement = measure_generate(model, prompt=4, tokens=12, rounds=5)
    assert {name: id(module) for name, module in model.named_modules()} == before
    assert measurement.same_tokens == measurement.tokens == 12
    assert {PACKED, STOCK} <= set(measurement.timings)
    assert all(len(timing.seconds) == 5 for timing in measurement.timings.values())
    packed = [module for module in model.modules() if isinstance(module, NMLinear)]
    biases = sum(module.bias.nbytes for module in packed if module.bias is not None)
    assert biases > 0
    assert measurement.packed_bytes == sum(module.packed.nbytes for module in packed) + biases
    assert measurement.dense_bytes == sum(module.out_features * module.in_features * 4 for module in packed) + biases
    record = measurement.to_dict()
    assert record["tokens_per_second"][PACKED] == round(12 / measurement.timings[PACKED].median, 2)
    assert record["ratio"]["over"] in (STOCK, PREPACKED)
    assert record["dtype"] == "float32"


def test_each_form_is_timed_with_its_own_linears(folders, monkeypatch):
    model = open_packed(folders[1])
    linears = []

    def generate(**settings):
        linears.append((type(model.model.layers[1].mlp.up_proj), type(model.lm_head)))
        return torch.zeros(1, 10, dtype=torch.long)

    monkeypatch.setattr(model, "generate", generate)
    measurement = measure_generate(model, prompt=4, tokens=6, rounds=5)
    kinds = {(NMLinear, nn.Linear), (nn.Linear, nn.Linear)}
    if PREPACKED in measurement.timings:
        kinds.add((PrepackedLinear, PrepackedLinear))
    assert set(linears) == kinds
    assert {kind: linears.count(kind) for kind in kinds} == dict.fromkeys(kinds, 8)


def test_different_tokens_of_a_form_are_counted(folders, monkeypatch):
    model = open_packed(folders[1])
    generated_tokens = iter([[0, 1, 2, 3], [0, 1, 9, 3]])
    monkeypatch.setattr(checkpoint, "prepack_unsupported_reason", lambda dtype: "no")
    monkeypatch.setattr(checkpoint, "time_interleaved", lambda forms, **options: {})
    monkeypatch.setattr(model, "generate", lambda **settings: torch.tensor([[7, 7, *next(generated_tokens)]]))
    assert measure_generate(model, prompt=2, tokens=4).same_tokens == 2


def test_prompt_and_tokens_must_fit_the_context(folders):
    with pytest.raises(ModelError, match="100 prompt tokens and 100 new ones exceed the model's context of 128"):
        measure_generate(open_packed(folders[1]), prompt=100, tokens=100)
