"""Golden vectors: what the public implementations made of synthetic layers. Skipped where they are absent.

There n:m prunes n of m and a mask is True where it prunes; here N:M keeps N and a mask is True where it keeps.
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
    """The layer cases of these methods that must agree, or the others."""
    if not (GOLDEN / "manifest.json").is_file():
        return []
    return [c for c in manifest()["cases"] if c["method"] in methods and (c.get("match") == "exact") is exact]


def parameters(found: list[dict[str, Any]]) -> list[Any]:
    """For `pytest.mark.parametrize`; one skipped case, with the reason, where nothing was found."""
    if not found:
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=ABSENT))]
    return [pytest.param(c, id=f"{c['layer']}-{c['method']}-{c['case']}") for c in found]


@functools.cache
def layer(name: str) -> tuple[Tensor, Tensor]:
    """The dense weight (out, in), and the inputs (samples, tokens, in)."""
    file = np.load(GOLDEN / manifest()["layers"][name]["file"])
    return torch.from_numpy(file["weight"]), torch.from_numpy(file["calib"])


def arrays(case: dict[str, Any]) -> dict[str, Tensor]:
    """The stored arrays of a case by their short names."""
    file = np.load(GOLDEN / case["file"])
    return {name: torch.as_tensor(file[f"{case['case']}.{name}"]) for name in case["arrays"]}
