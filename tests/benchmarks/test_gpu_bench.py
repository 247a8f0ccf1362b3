"""The functions of the GPU benchmark on the CPU; without a GPU the benchmark itself measures nothing."""

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


def test_products_are_timed_and_compared_with_the_dense_one(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "SAMPLE", 1e-5)
    product = gpu.measure(32, 64, 2, [Pattern(2, 4), Pattern(3, 4)], 5, CPU, thresholds=False)
    names = [name for name in product["microseconds"] if name != "dense"]
    assert [name.split()[0] for name in names] == ["2:4", "3:4"]
    assert all(len(samples) == 5 and min(samples) > 0 for samples in product["microseconds"].values())
    for name, (ratio, _) in product["times_faster_than_dense"].items():
        medians = [sorted(product["microseconds"][candidate])[2] for candidate in ("dense", name)]
        assert ratio == pytest.approx(medians[0] / medians[1], rel=0.01)
    gpu.report(product)


def test_a_packed_model_generates_the_same_tokens_as_the_dense_one(gpu):
    config = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    generate = gpu.measure_generate(config, Pattern(2, 4), 2, CPU, prompt=4, tokens=3)
    assert set(generate["seconds"]) == set(generate["same_tokens_as_dense_eager"]) == {"dense, eager", "packed, eager"}
    assert generate["linears_bytes"]["packed"] == 0.5625 * generate["linears_bytes"]["dense"]
    assert generate["same_tokens_as_dense_eager"]["dense, eager"] == 3


def test_without_a_gpu_nothing_is_measured(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["gpu.py", "--record", str(tmp_path / "record.json")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^nothing to measure: torch finds no GPU$"):
        gpu.main()
    assert not (tmp_path / "record.json").exists()
