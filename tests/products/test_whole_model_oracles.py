"""Whole models: perplexities on which two independent implementations agree to all printed digits.

Windows and evaluation are those of the comparison that the numbers come from: 64 calibration windows of 256 tokens
drawn from the training stories, and the first 60 packed windows of the held-out stories.
"""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eggs_ptp import prune

# SparseGPT accumulates in another order than the original, so its last digits may differ.
ORACLES = [
    ("wanda", "2:4", {}, 130.527, 1e-5),
    ("wanda", "4:8", {}, 97.402, 1e-5),
    ("wanda", "0.5", {}, 63.908, 1e-5),
    ("ria", "2:4", {}, 128.343, 1e-5),
    ("ria", "4:8", {}, 96.729, 1e-5),
    ("ria", "0.5", {"select": {"group": "row"}}, 64.979, 1e-5),
    ("sparsegpt", "2:4", {}, 84.634, 1e-3),
    ("sparsegpt", "4:8", {}, 68.254, 1e-3),
    ("sparsegpt", "0.5", {"update": {"original": True}}, 51.996, 1e-3),
]


@pytest.fixture(scope="module")
def stories(shared, tmp_path_factory):
    """The model folder, a file of calibration windows, and the evaluation windows."""
    folder = shared / "data" / "models" / "tinystories-656k"
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(name):
        lines = (shared / "data" / "tinystories" / name).read_text(encoding="utf-8").splitlines()
        text = "\n\n".join(json.loads(line)["text"] for line in lines)
        pieces = [text[start : start + 200_000] for start in range(0, len(text), 200_000)]
        return torch.tensor([i for piece in pieces for i in tokenizer(piece, add_special_tokens=False).input_ids])

    train = tokens("train_stories.jsonl")
    valid = tokens("valid_stories.jsonl")
    starts = np.random.default_rng(0).integers(0, train.numel() - 256, size=64)
    calibration = tmp_path_factory.mktemp("oracles") / "windows.npy"
    np.save(calibration, np.stack([train[start : start + 256].numpy() for start in starts]))
    return folder, calibration, valid[: 60 * 256].view(60, 256)


def perplexity(folder, windows):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch, use_cache=False).logits[:, :-1] for batch in windows.split(10)])
        return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item())


@pytest.mark.parametrize(
    ("method", "pattern", "steps", "expected", "tolerance"),
    ORACLES,
    ids=[f"{method}-{pattern}" for method, pattern, *_ in ORACLES],
)
def test_perplexity_equals_that_of_the_original(stories, tmp_path, method, pattern, steps, expected, tolerance):
    folder, calibration, windows = stories
    prune(str(folder), tmp_path / "out", method=method, pattern=pattern, steps=steps, calibration=calibration)
    assert perplexity(tmp_path / "out", windows) == pytest.approx(expected, rel=tolerance)


def test_dense_perplexity(stories):
    folder, _, windows = stories
    assert perplexity(folder, windows) == pytest.approx(33.026, rel=2e-5)
