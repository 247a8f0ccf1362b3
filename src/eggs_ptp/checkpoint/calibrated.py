"""Calibrated: what diagnosis can say once text has run through the pruned model, and through the dense one."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.bound.least_error import least_error
from eggs_ptp.bound.minorant import minorant
from eggs_ptp.calibration.windows import Windows
from eggs_ptp.checkpoint.draft import ORDERS
from eggs_ptp.checkpoint.source import Source
from eggs_ptp.core.least_squares import least_squares
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.order import check
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.engine.flow import BlockFlow, flow_of
from eggs_ptp.engine.observe import Observation, Want
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.walk import Walk
from eggs_ptp.graph.lost import energy, lost
from eggs_ptp.graph.weighted import weighted_singular_values
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.refine.bcd import bcd
from eggs_ptp.score.ria import ria
from eggs_ptp.score.wanda import wanda
from eggs_ptp.update.alps import alps

FLOW_WINDOWS, FLOW_TOKENS = 4, 64  # a Jacobian is looked at by dozens of products with it
_STEPS = 100  # of the search for a bound where kept weights may be solved for; it is slower to close in
_DAMPING = 1e-3  # of the searches for good weights; what they find is judged without
_ITERATIONS = 100
_MOST_PATTERNS = 20_000  # of a group, that `bcd` tries


@dataclass(frozen=True)
class Text:
    """The tokens to run, and where."""

    windows: Windows
    device: torch.device
    dtype: torch.dtype


def activation_figures(
    folder: Path,
    shards: Shards,
    source: Source,
    text: Text,
    matrices: Iterable[dict[str, Any]],
    *,
    spectra: bool,
    bounds: bool,
    told: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    """Run the pruned model over the text, block by block, and compare each pruned matrix with the dense one.

    Both get the inputs that the pruned matrix has in the pruned model. By matrix name, the figures of `calibrated`,
    and of `weighted` and `bounds` where they are asked for.

    Raises:
        ModelError: transformers cannot build the model.
        NumericsError: an activation is not finite, or singular values are not found.
    """
    skeleton = load_skeleton(source.folder)
    walk = Walk(skeleton, shards, text.windows.tokens, text.dtype, text.device)
    asked = {str(matrix["name"]): matrix for matrix in matrices}
    found: dict[str, dict[str, Any]] = {}
    for index in range(len(skeleton.blocks)):
        name = skeleton.block_name(index)
        linears = [linear for linear in skeleton.family.linears if f"{name}.{linear.path}" in asked]
        with walk.at(index) as block:
            statistics = frozenset({"gram", "input_norm", "tokens"})
            wants = {}
            for linear in linears:
                shape = shards.shape(f"{name}.{linear.path}.weight")
                wants[linear.reads] = Want(linear.path, shape[0 if linear.transposed else 1], statistics)
            seen = walk.onward(index, block, wants)
        for linear in linears:
            matrix = asked[f"{name}.{linear.path}"]
            pair = _pair(shards, source, matrix, text.device)
            found[str(matrix["name"])] = _figures(folder, matrix, pair, seen[linear.reads], spectra, bounds)
            told()
    return found


def flows(
    shards: Shards, source: Source, text: Text, told: Callable[[], None]
) -> tuple[list[BlockFlow], list[BlockFlow]]:
    """The flow through the dense and the pruned model, each on its own hidden states, over the first 4 x 64 tokens."""
    skeleton = load_skeleton(source.folder)
    tokens = text.windows.tokens[:FLOW_WINDOWS, :FLOW_TOKENS]
    dense, pruned = (
        flow_of(Walk(skeleton, each, tokens, text.dtype, text.device), tokens, told) for each in (source, shards)
    )
    return dense, pruned


def _pair(shards: Shards, source: Source, matrix: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """The dense and the pruned matrix, (out, in) in float32."""
    weight = shards.read(f"{matrix['name']}.weight")
    weight = weight.T if matrix.get("transposed") else weight
    dense = source.matrix(matrix, weight, weight != 0)
    return dense.to(device, torch.float32), weight.to(device, torch.float32)


def _figures(
    folder: Path,
    matrix: dict[str, Any],
    pair: tuple[Tensor, Tensor],
    seen: Observation,
    spectra: bool,
    bounds: bool,
) -> dict[str, Any]:
    name = str(matrix["name"])
    dense, pruned = pair
    gram, norm = (seen.moments.read(which, name) for which in ("gram", "input_norm"))
    mask = pruned != 0
    scores = {"retained_wanda": wanda(dense, norm), "retained_ria": ria(dense, norm)}
    kept = {which: _share(score, mask) for which, score in scores.items()}
    found: dict[str, Any] = {"calibrated": {**lost(dense, pruned, gram)._asdict(), **kept}}
    if spectra:
        both = {"dense": dense, "pruned": pruned}
        found["weighted"] = {which: weighted_singular_values(weight, norm) for which, weight in both.items()}
    pattern = None if matrix["pattern"] is None else parse_pattern(str(matrix["pattern"]))
    if bounds and isinstance(pattern, Pattern):
        order = _order(folder, matrix, dense.shape[1], dense.device)
        if order is not None:
            dense, pruned, gram = dense[:, order], pruned[:, order], gram[order][:, order]
        if not mask.any() or energy(dense, gram) <= 0:
            return found
        found["bounds"] = _bounds(dense, pruned, gram, pattern, seen.moments.read("tokens", name))
    return found


def _bounds(dense: Tensor, pruned: Tensor, gram: Tensor, pattern: Pattern, tokens: Tensor) -> dict[str, float]:
    """Shares of tr(W G W^T); the `least_` ones are proven, the `best_` ones only found."""
    whole, mask = energy(dense, gram), pruned != 0
    below = minorant(gram, dense.square().sum(0))
    least = [
        float(least_error(dense, gram, pattern, below, updated=updated, steps=steps).sum())
        for updated, steps in ((False, 30), (True, _STEPS))
    ]
    masks, weights = [mask], [pruned]
    start = keep_top(wanda(dense, gram.diagonal().sqrt()), pattern)
    if math.comb(pattern.group, pattern.keep) <= _MOST_PATTERNS:
        masks += [bcd(each, dense, pattern, gram, damping=0.0) for each in (mask, start)]
    weights.append(alps(dense, start, pattern, gram, tokens, damping=_DAMPING, wider="sparsegpt")[0])
    weights += [least_squares(dense, each != 0, gram, each, _ITERATIONS, 0.0) for each in tuple(weights)]
    unchanged = min(energy(dense * ~each, gram) for each in masks)
    updated = min(unchanged, *(energy(dense - each, gram) for each in weights))
    return {
        "least_unchanged": least[0] / whole,
        "best_unchanged": max(0.0, unchanged) / whole,
        "least_updated": least[1] / whole,
        "best_updated": max(0.0, updated) / whole,
    }


def _order(folder: Path, matrix: dict[str, Any], width: int, device: torch.device) -> Tensor | None:
    """The column order in which the mask has its pattern, where that is not the folder's own."""
    if not matrix.get("permuted") or matrix.get("in_order", True):
        return None
    order = Shards.of_file(folder / ORDERS).read(str(matrix["name"])).long().to(device)
    check(order, width, str(matrix["name"]))
    return order


def _share(score: Tensor, mask: Tensor) -> float:
    whole = score.sum(dtype=torch.float64)
    return float((score * mask).sum(dtype=torch.float64) / whole) if whole > 0 else 1.0
