"""Complete runs on a tiny Llama compared with runs of the public code: statistics, all masks, and the perplexity."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN, manifest, needs_golden
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig

from eggs_ptp import api
from eggs_ptp.engine import pipeline
from eggs_ptp.evaluation.perplexity import perplexity
from eggs_ptp.models.load import load_model
from eggs_ptp.models.registry import FAMILIES
from eggs_ptp.recipe.recipe import CalibrationSpec, Recipe

# Settings with which the methods here do what the public code did in each run.
ORIGINAL_COUNT = {"select": {"count": "original"}}
# The golden runs have windows of 64 tokens and 5 cycles; the threshold is on a window's sum.
_DSNOT = {**ORIGINAL_COUNT, "refine": {"max_cycles": 5, "sample_tokens": 64}}
RUNS: dict[str, dict[str, Any]] = {
    "magnitude_0.5": {"method": "magnitude", "pattern": "0.5", "steps": ORIGINAL_COUNT},
    "wanda_0.5": {"method": "wanda", "pattern": "0.5", "steps": ORIGINAL_COUNT},
    "wanda_2:4": {"method": "wanda", "pattern": "2:4"},
    "ria_a0.5_per_layer_0.5": {"method": "ria", "pattern": "0.5", "steps": ORIGINAL_COUNT},
    "ria_a0.5_per_output_0.5": {
        "method": "ria",
        "pattern": "0.5",
        "steps": {"select": {"count": "original", "group": "row"}},
    },
    "ria_a0.5_2:4_reallocation_lsa": {"method": "ria_cp", "pattern": "2:4", "share": "matrix", "permutation": "mask"},
    "sparsegpt_0.5": {"method": "sparsegpt", "pattern": "0.5", "steps": {"update": {"original": True}}},
    "sparsegpt_2:4": {"method": "sparsegpt", "pattern": "2:4", "steps": {"update": {"original": True}}},
    "dsnot_wanda_0.6_mlp_skipped": {"method": "dsnot", "pattern": "0.6", "steps": _DSNOT},
    "dsnot_wanda_0.6_all": {
        "method": "dsnot",
        "pattern": "0.6",
        "steps": {**_DSNOT, "refine": {**_DSNOT["refine"], "skip": "none"}},
    },
}

INPUT_ACTIVATIONS = {linear.path: linear.input_activation for linear in FAMILIES["llama"].linears}

pytestmark = needs_golden


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return manifest()["pipeline"]["tiny_llama_1"]


@pytest.fixture(scope="module")
def inputs(golden) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / golden["inputs"]))


@pytest.fixture(scope="module")
def source(golden, inputs, tmp_path_factory) -> Path:
    """The public code's model as a folder without a tokenizer, with its calibration tokens next to it."""
    folder = tmp_path_factory.mktemp("golden") / "model"
    AutoConfig.for_model("llama", **golden["config"]).save_pretrained(folder)
    weights = {name[6:]: torch.from_numpy(array) for name, array in inputs.items() if name.startswith("param.")}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    np.save(folder.parent / "calibration.npy", inputs["calib_tokens"])
    return folder


@pytest.fixture
def measured(golden, inputs):
    def perplexity_of(folder: Path) -> float:
        encoded = {"input_ids": inputs["test_tokens"][0].tolist()}
        model = load_model(folder, dtype=torch.float32)
        return perplexity(model, lambda *_, **__: encoded, [""], protocol="packed", seqlen=golden["seqlen"]).value

    return perplexity_of


def test_the_dense_model_equals_that_of_the_public_code(golden, inputs, source, measured):
    model = load_model(source, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(inputs["calib_tokens"][:1])).logits[0]
    assert_close(logits, torch.from_numpy(inputs["dense_logits_sample0"]), rtol=1e-4, atol=1e-4)
    assert measured(source) == pytest.approx(golden["dense_perplexity"], rel=1e-4)


def test_every_golden_run_is_covered(golden):
    assert {run["run"] for run in golden["runs"]} == RUNS.keys()


@pytest.mark.parametrize("name", RUNS)
def test_a_complete_run_equals_that_of_the_public_code(golden, source, measured, tmp_path, monkeypatch, name):
    stored = next(run for run in golden["runs"] if run["run"] == name)
    expected = {key: torch.from_numpy(array) for key, array in np.load(GOLDEN / stored["file"]).items()}
    collected = []
    monkeypatch.setattr(
        pipeline,
        "collect_statistics",
        lambda *args, real=pipeline.collect_statistics, **rest: collected.append(real(*args, **rest)) or collected[-1],
    )

    tokens = CalibrationSpec(text=str(source.parent / "calibration.npy"))
    api.prune(str(source), tmp_path / "out", Recipe(calibration=tokens, **RUNS[name]))

    for key, value in expected.items():
        kind, _, module = key.partition(".")
        if kind == "scaler_row":  # a sum over all tokens divided by the number of samples
            block, path = module.removeprefix("model.layers.").split(".", 1)
            norm = collected[int(block)][INPUT_ACTIVATIONS[path]].moments.read("input_norm", module)
            assert_close(norm.square() * golden["seqlen"], value, rtol=1e-4, atol=0.0)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    masks = {key.removeprefix("mask."): mask for key, mask in expected.items() if key.startswith("mask.")}
    assert len(masks) == 14
    different = {module: int(((weights[f"{module}.weight"] == 0) != mask).sum()) for module, mask in masks.items()}
    assert different == dict.fromkeys(masks, 0)
    for key, value in expected.items():
        if key.startswith("weight_after."):
            assert_close(weights[f"{key.removeprefix('weight_after.')}.weight"], value, rtol=0.0, atol=1e-5)
    assert measured(tmp_path / "out") == pytest.approx(stored["perplexity"], rel=1e-4)
