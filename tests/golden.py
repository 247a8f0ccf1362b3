"""Golden vectors: results of the public implementations on synthetic layers; tests skip if they are absent.

In these files n:m prunes n of m, and a mask is True for pruned weights; in this package N:M keeps N, True = keep.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

SHARED = Path(os.environ.get("EGGS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
GOLDEN = SHARED / "golden"
ABSENT = f"no golden vectors at {GOLDEN} (set EGGS_SHARED to the folder that holds golden/)"
needs_golden = pytest.mark.skipif(not (GOLDEN / "manifest.json").is_file(), reason=ABSENT)


@functools.cache
def manifest() -> dict[str, Any]:
    return json.loads((GOLDEN / "manifest.json").read_text())


def cases(*methods: str, exact: bool) -> list[dict[str, Any]]:
    """The layer cases of these methods that must agree exactly, or those that need not."""
    if not (GOLDEN / "manifest.json").is_file():
        return []
    return [c for c in manifest()["cases"] if c["method"] in methods and (c.get("match") == "exact") is exact]


def parameters(selected: list[dict[str, Any]]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: one a case, or a single skipped one if there are none."""
    if not selected:
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=ABSENT))]
    return [pytest.param(c, id=f"{c['layer']}-{c['method']}-{c['case']}") for c in selected]


@functools.cache
def layer(name: str) -> tuple[Tensor, Tensor]:
    """The dense weight (out, in), and the inputs (samples, tokens, in)."""
    file = np.load(GOLDEN / manifest()["layers"][name]["file"])
    return torch.from_numpy(file["weight"]), torch.from_numpy(file["calib"])


def arrays(case: dict[str, Any]) -> dict[str, Tensor]:
    """The stored arrays of a case by their short names."""
    file = np.load(GOLDEN / case["file"])
    return {name: torch.as_tensor(file[f"{case['case']}.{name}"]) for name in case["arrays"]}
