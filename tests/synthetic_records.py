"""Synthetic runs: folders as `eggs prune` writes them, with random 2:4 masks, and records of the other verbs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LINEARS = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "mlp.gate_proj": (40, 16),
    "mlp.up_proj": (40, 16),
    "mlp.down_proj": (16, 40),
}


def pruned_run(
    folder: Path, *, blocks: int = 2, width: int = 1, method: str = "eggs+", model: str = "org/base", **changes: Any
) -> Path:
    """Write the folder of a run.

    Args:
        folder: The folder to write.
        blocks: Number of blocks.
        width: Factor of the sizes in `LINEARS`.
        method: The recorded method.
        model: The recorded source model.
        **changes: Keys of its eggs.json.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(folder.name))
    tensors = {}
    matrices = []
    for block in range(blocks):
        for linear, shape in LINEARS.items():
            name = f"model.layers.{block}.{linear}"
            rows, columns = (side * width for side in shape)
            mask = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1) < 2
            weight = torch.randn(rows, columns // 4, 4, generator=generator).abs() + 0.1
            tensors[f"{name}.weight"] = (weight * mask).view(rows, columns).bfloat16()
            error = round(0.01 * (block + 1) + 0.001 * len(matrices), 6)
            matrices.append({
                "name": name, "shape": [rows, columns], "pattern": "2:4", "method": method, "density": 0.5,
                "permuted": False, "in_order": True, "updated": False, "output_error": error, "B": 1,
            })  # fmt: skip
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    manifest = {
        "format": 2,
        "versions": {"eggs-ptp": "0.1.0"},
        "source": {"model": model, "revision": None, "model_type": "llama"},
        "recipe": {"seed": 0, "method": method, "mask": None, "calibration": {"text": "c4", "seed": None}},
        "recipe_sha256": f"hash of {method}",
        "calibration": {"source": "c4", "nsamples": 8, "seqlen": 32, "sha256": "aa11"},
        "device": "cpu",
        "dtype": "float32",
        "orders": None,
        "seconds": 75.0,
        "peak_memory_bytes": 812_000_000,
        "matrices": matrices,
        **changes,
    }
    (folder / "eggs.json").write_text(json.dumps(manifest))
    return folder


def write_record(path: Path, record: Any) -> Path:
    """Write a record as JSON, or a text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def perplexity(value: float, **changes: Any) -> dict[str, Any]:
    """Return a perplexity as `eggs evaluate` records it; the standard error, of the loss, is 2 %."""
    return {
        "value": value, "protocol": "packed", "seqlen": 256, "windows": 250, "tokens": 63750, "truncated": 0,
        "nll": 3.0, "standard_error": 0.02, "seconds": 1.0, "stride": 256, "text_tokens": 64000, "sha256": "ab12cd34ef",
        **changes,
    }  # fmt: skip


def evaluation(model: str, against: str, value: float = 28.0, dense: float = 20.0) -> dict[str, Any]:
    """Return a complete record of `eggs evaluate --against --record`."""

    def tasks(accuracy: float) -> dict[str, Any]:
        return {"boolq_local": {"items": 50, "metrics": {"acc": {"value": accuracy, "standard_error": 0.05}}}}

    paired = {"value": value / dense, "standard_error": 0.01, "low": 1.37, "high": 1.43, "pairs": 250}
    return {
        "kind": "evaluation",
        "format": 1,
        "model": model,
        "against": against,
        "text": "wikitext2, test",
        "perplexity": perplexity(value),
        "tasks": tasks(0.6),
        "reference": {"perplexity": perplexity(dense), "tasks": tasks(0.7)},
        "fidelity": {
            "kl": {"value": 0.31, "standard_error": 0.004},
            "agreement": {"value": 0.72, "standard_error": 0.002},
            "hidden": [{"value": 0.1, "standard_error": 0.01}, {"value": 0.25, "standard_error": 0.01}],
        },
        "paired": {
            "perplexity_ratio": paired,
            "tasks": {"boolq_local": {"acc": {"value": -0.1, "standard_error": 0.03, "low": -0.16, "high": -0.04}}},
        },
    }


def bench(folder: str) -> dict[str, Any]:
    """Return a record of `eggs bench DIR --record`."""
    return {
        "command": "eggs bench",
        "hardware": {"processor": "a processor", "cpus": 4, "torch": "2.13.0"},
        "products": [
            {
                "rows": 16,
                "columns": 16,
                "batch": 1,
                "threads": 2,
                "ratios": {"2:4 fp32 over dense fp32 stock": {"value": 1.31, "trusted": False}},
            }
        ],
        "folder": folder,
        "generate": {
            "prompt_tokens": 8,
            "new_tokens": 32,
            "threads": 2,
            "microseconds": {"packed": [1e5, 1.1e5, 1.2e5], "dense stock": [2e5, 2.1e5, 2.2e5]},
            "spread": {"packed": 0.1, "dense stock": 0.05},
            "tokens_per_second": {"packed": 290.9, "dense stock": 152.4},
            "ratio": {"over": "dense stock", "value": 1.909, "trusted": True},
            "linears_bytes": {"packed": 600_000, "dense": 1_000_000},
        },
    }


def comparison(model: str) -> dict[str, Any]:
    """Return a record of `eggs compare --json`."""
    cell = {"column": "2:4", "seeds": 3, "difference": 8.0, "remark": ""}
    return {
        "model": model,
        "title": "Methods",
        "heads": ["method"],
        "columns": ["2:4"],
        "dense": {"perplexity": 20.0},
        "table": [
            {**cell, "row": ["wanda"], "perplexity": 28.0, "sd": 0.3},
            {
                **cell,
                "row": ["ria"],
                "perplexity": None,
                "sd": None,
                "seeds": 0,
                "difference": None,
                "remark": "failed",
            },
        ],
        "records": [],
    }


def diagnosis(folder: str) -> dict[str, Any]:
    """Return a record of `eggs diagnose --json`."""
    return {
        "folder": folder,
        "against": None,
        "whole": {
            "dead_inputs": 3,
            "least_input_degree": {"value": 0.0, "matrix": "m"},
            "highest_gini": {"value": 0.21, "matrix": "m"},
            "floors": 14,
            "floors_broken": ["m"],
            "retained": None,
            "highest_sigma2": None,
            "mean_calibrated": {"output_error": 0.0711},
            "mean_bounds": {
                "least_unchanged": 0.0511,
                "best_unchanged": 0.0611,
                "least_updated": 0.0111,
                "best_updated": 0.0311,
            },
        },
        "matrices": [],
    }


def sample(model: str, text: str) -> dict[str, Any]:
    """Return a record of `eggs generate --json`."""
    return {"model": model, "prompt": "Once", "text": f"Once{text}", "temperature": 0.8, "seed": 0}
