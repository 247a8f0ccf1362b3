"""The GPU benchmark's parts, on the CPU: what it records is what was timed, and without a GPU it measures nothing."""

import importlib.util
from pathlib import Path

import pytest
import torch

from eggs_ptp.core.pattern import Pattern

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", Path(__file__).parents[2] / "benchmarks" / "gpu.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_product_is_timed_beside_the_dense_one(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "SAMPLE", 1e-5)
    found = gpu.measure(32, 64, 2, [Pattern(2, 4), Pattern(3, 4)], 5, CPU, thresholds=False)
    names = [name for name in found["microseconds"] if name != "dense"]
    assert [name.split()[0] for name in names] == ["2:4", "3:4"]
    assert all(len(samples) == 5 and min(samples) > 0 for samples in found["microseconds"].values())
    for name, (ratio, _) in found["times_faster_than_dense"].items():
        medians = [sorted(found["microseconds"][each])[2] for each in ("dense", name)]
        assert ratio == pytest.approx(medians[0] / medians[1], rel=0.01)
    gpu.report(found)


def test_a_model_generates_packed_what_it_generates_dense(gpu):
    config = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    found = gpu.measure_generate(config, Pattern(2, 4), 2, CPU, prompt=4, tokens=3)
    assert set(found["seconds"]) == set(found["same_tokens_as_dense_eager"]) == {"dense, eager", "packed, eager"}
    assert found["linears_bytes"]["packed"] == 0.5625 * found["linears_bytes"]["dense"]
    assert found["same_tokens_as_dense_eager"]["dense, eager"] == 3


def test_without_a_gpu_nothing_is_measured(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["gpu.py", "--record", str(tmp_path / "record.json")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^nothing to measure: torch finds no GPU$"):
        gpu.main()
    assert not (tmp_path / "record.json").exists()
