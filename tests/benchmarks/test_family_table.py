"""benchmarks/family_table.py: the row of a model, and which rows have failed."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import family_table

    return family_table


def test_a_mixture_of_experts_is_checked_up_to_generating_from_the_packed_folder(table, tiny, tmp_path):
    row = table.check_model(tiny("qwen2_moe"), tmp_path, "qwen2_moe", "magnitude")
    assert (row["pruned"], row["linears"], row["missed"]) == (32, 32, [])
    assert (row["new_tokens"], row["same_tokens"]) == (table.NEW_TOKENS, True)
    assert 0 < row["apart"] < 1e-5
    assert not table.has_failed(row)
    assert table.cells(row)[:4] == ["qwen2_moe", "qwen2_moe", "yes", "32 of 32"]


def test_matrices_are_counted_in_the_checkpoint_without_routers(table, tiny):
    counts = table.matrices_in_blocks(tiny("qwen2_moe"), "model.layers")
    assert sum(counts.values()) == len(counts) == 32
    assert "model.layers.1.mlp.experts.5.down_proj" in counts
    assert not [name for name in counts if name.endswith(("mlp.gate", "shared_expert_gate", "norm"))]


@pytest.mark.parametrize(
    "change", [{"missed": ["a.q"]}, {"failures": ["density: a.q"]}, {"pruned": 13}, {"apart": 1e-3}, {"apart": 2.0}]
)
def test_a_row_with_any_fault_has_failed(table, change):
    row = {"missed": [], "failures": [], "pruned": 14, "linears": 14, "apart": 1e-6}
    assert not table.has_failed(row)
    assert table.has_failed({**row, **change})
