"""What benchmarks/family_table.py sees of a model, and what it calls a fault."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import family_table

    return family_table


def test_a_mixture_is_walked_through_up_to_its_packed_text(table, tiny, tmp_path):
    row = table.walk(tiny("qwen2_moe"), tmp_path, "qwen2_moe", "magnitude")
    assert (row["pruned"], row["linears"], row["missed"]) == (32, 32, [])
    assert (row["new_tokens"], row["same_tokens"]) == (table.NEW_TOKENS, True)
    assert 0 < row["apart"] < 1e-5
    assert not table.faults(row)
    assert table.cells(row)[:4] == ["qwen2_moe", "qwen2_moe", "yes", "32 of 32"]


def test_matrices_are_counted_in_the_checkpoint_without_routers(table, tiny):
    found = table.matrices_in_blocks(tiny("qwen2_moe"), "model.layers")
    assert sum(found.values()) == len(found) == 32
    assert "model.layers.1.mlp.experts.5.down_proj" in found
    assert not [name for name in found if name.endswith(("mlp.gate", "shared_expert_gate", "norm"))]


@pytest.mark.parametrize(
    "change", [{"missed": ["a.q"]}, {"failures": ["density: a.q"]}, {"pruned": 13}, {"apart": 1e-3}, {"apart": 2.0}]
)
def test_a_fault_is_one(table, change):
    row = {"missed": [], "failures": [], "pruned": 14, "linears": 14, "apart": 1e-6}
    assert not table.faults(row)
    assert table.faults({**row, **change})
