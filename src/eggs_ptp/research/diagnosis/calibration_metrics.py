"""Metrics that need calibration text to run through the pruned and the dense model."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.calibration.windows import Windows
from eggs_ptp.checkpoint.staging import ORDERS
from eggs_ptp.core.least_squares import least_squares
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.core.permutation import check_permutation
from eggs_ptp.engine.statistics.activation_statistics import ActivationStatistics
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton
from eggs_ptp.refine.bcd import bcd
from eggs_ptp.research.bound.least_error import least_error
from eggs_ptp.research.bound.minorant import minorant
from eggs_ptp.research.diagnosis.blockwise_model import BlockwiseModel
from eggs_ptp.research.diagnosis.dense_source import DenseSource
from eggs_ptp.research.diagnosis.gradient_flow import BlockGradientFlow, gradient_flow_of
from eggs_ptp.research.graph.layer_error import layer_errors, output_energy
from eggs_ptp.research.graph.weighted import weighted_singular_values
from eggs_ptp.score.ria import ria
from eggs_ptp.score.wanda import wanda
from eggs_ptp.update.alps import alps

# Tokens of the gradient flow: every Jacobian takes dozens of products with it
FLOW_WINDOWS = 4
FLOW_TOKENS = 64

_UNCHANGED_STEPS = 30  # of the search for a bound with unchanged kept weights
_UPDATED_STEPS = 100  # with updated ones, where it converges more slowly
_DAMPING = 1e-3  # of the searches for good weights; their results are evaluated without damping
_ITERATIONS = 100
_MOST_PATTERNS = 20_000  # patterns of a group up to which `bcd` searches


@dataclass(frozen=True)
class CalibrationText:
    """The calibration windows, and the device and type that the models run in."""

    windows: Windows
    device: torch.device
    dtype: torch.dtype


def matrix_metrics(
    folder: Path,
    reader: CheckpointReader,
    source: DenseSource,
    text: CalibrationText,
    matrices: Iterable[dict[str, Any]],
    *,
    spectra: bool,
    bounds: bool,
    on_progress: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    """Run the pruned model over the text, block by block, and compare each pruned matrix with the dense one.

    Both matrices are evaluated on the inputs that the pruned matrix has in the pruned model.

    Args:
        folder: The pruned folder.
        reader: Its tensors.
        source: The dense model.
        text: The calibration windows.
        matrices: Their entries in the record.
        spectra: Add singular values of the activation-weighted matrices.
        bounds: Add lower bounds of the output error, and the smallest errors found by search.
        on_progress: Called after each matrix.

    Returns:
        By matrix name, the metrics under the keys `calibrated`, `weighted` and `bounds`.

    Raises:
        ModelError: transformers cannot build the model.
        NumericsError: An activation is not finite, or singular values are not found.
    """
    skeleton = load_skeleton(source.folder)
    model = BlockwiseModel(skeleton, reader, text.windows.tokens, text.dtype, text.device)
    by_name = {str(matrix["name"]): matrix for matrix in matrices}
    metrics: dict[str, dict[str, Any]] = {}
    for index in range(len(skeleton.blocks)):
        block_name = skeleton.block_name(index)
        linears = [linear for linear in skeleton.family.linears if f"{block_name}.{linear.path}" in by_name]
        with model.loaded_block(index) as block:
            names = frozenset({"gram", "input_norm", "tokens"})
            requests = {}
            for linear in linears:
                shape = reader.shape(f"{block_name}.{linear.path}.weight")
                width = shape[0 if linear.transposed else 1]
                requests[linear.input_activation] = StatisticRequest(linear.path, width, names)
            statistics = model.advance(index, block, requests)
        for linear in linears:
            matrix = by_name[f"{block_name}.{linear.path}"]
            dense, pruned = _dense_and_pruned(reader, source, matrix, text.device)
            metrics[str(matrix["name"])] = _metrics_of_matrix(
                folder, matrix, dense, pruned, statistics[linear.input_activation], spectra, bounds
            )
            on_progress()
    return metrics


def compare_gradient_flows(
    reader: CheckpointReader, source: DenseSource, text: CalibrationText, on_progress: Callable[[], None]
) -> tuple[list[BlockGradientFlow], list[BlockGradientFlow]]:
    """Measure the gradient flow of the dense and of the pruned model over the first 4 x 64 tokens.

    Each model runs on its own hidden states.
    """
    skeleton = load_skeleton(source.folder)
    tokens = text.windows.tokens[:FLOW_WINDOWS, :FLOW_TOKENS]
    dense, pruned = (
        gradient_flow_of(BlockwiseModel(skeleton, model, tokens, text.dtype, text.device), tokens, on_progress)
        for model in (source, reader)
    )
    return dense, pruned


def _dense_and_pruned(
    reader: CheckpointReader, source: DenseSource, matrix: dict[str, Any], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read both matrices, (out, in) in float32."""
    weight = reader.read(f"{matrix['name']}.weight")
    weight = weight.T if matrix.get("transposed") else weight
    dense = source.matrix(matrix, weight, weight != 0)
    return dense.to(device, torch.float32), weight.to(device, torch.float32)


def _metrics_of_matrix(
    folder: Path,
    matrix: dict[str, Any],
    dense: Tensor,
    pruned: Tensor,
    statistics: ActivationStatistics,
    spectra: bool,
    bounds: bool,
) -> dict[str, Any]:
    name = str(matrix["name"])
    gram = statistics.moments.read("gram", name)
    input_norm = statistics.moments.read("input_norm", name)
    mask = pruned != 0
    retained = {
        "retained_wanda": _retained_share(wanda(dense, input_norm), mask),
        "retained_ria": _retained_share(ria(dense, input_norm), mask),
    }
    metrics: dict[str, Any] = {"calibrated": {**layer_errors(dense, pruned, gram)._asdict(), **retained}}
    if spectra:
        metrics["weighted"] = {
            "dense": weighted_singular_values(dense, input_norm),
            "pruned": weighted_singular_values(pruned, input_norm),
        }
    pattern = None if matrix["pattern"] is None else parse_pattern(str(matrix["pattern"]))
    if bounds and isinstance(pattern, Pattern):
        permutation = _unfolded_permutation(folder, matrix, dense.shape[1], dense.device)
        if permutation is not None:
            dense = dense[:, permutation]
            pruned = pruned[:, permutation]
            gram = gram[permutation][:, permutation]
        if not mask.any() or output_energy(dense, gram) <= 0:
            return metrics
        metrics["bounds"] = _error_bounds(dense, pruned, gram, pattern, statistics.moments.read("tokens", name))
    return metrics


def _error_bounds(dense: Tensor, pruned: Tensor, gram: Tensor, pattern: Pattern, tokens: Tensor) -> dict[str, float]:
    """Output errors as shares of tr(W G W^T): proven lower bounds (`least_`), and the smallest ones found (`best_`)."""
    dense_energy = output_energy(dense, gram)
    mask = pruned != 0
    below = minorant(gram, dense.square().sum(0))
    least_unchanged = least_error(dense, gram, pattern, below, updated=False, steps=_UNCHANGED_STEPS)
    least_updated = least_error(dense, gram, pattern, below, updated=True, steps=_UPDATED_STEPS)
    masks = [mask]
    weights = [pruned]
    wanda_mask = keep_top(wanda(dense, gram.diagonal().sqrt()), pattern)
    if math.comb(pattern.group, pattern.keep) <= _MOST_PATTERNS:
        masks += [bcd(start, dense, pattern, gram, damping=0.0) for start in (mask, wanda_mask)]
    weights.append(alps(dense, wanda_mask, pattern, gram, tokens, damping=_DAMPING, wider="sparsegpt")[0])
    weights += [least_squares(dense, start != 0, gram, start, _ITERATIONS, 0.0) for start in tuple(weights)]
    best_unchanged = min(output_energy(dense * ~candidate, gram) for candidate in masks)
    best_updated = min(best_unchanged, *(output_energy(dense - candidate, gram) for candidate in weights))
    return {
        "least_unchanged": float(least_unchanged.sum()) / dense_energy,
        "best_unchanged": max(0.0, best_unchanged) / dense_energy,
        "least_updated": float(least_updated.sum()) / dense_energy,
        "best_updated": max(0.0, best_updated) / dense_energy,
    }


def _unfolded_permutation(folder: Path, matrix: dict[str, Any], width: int, device: torch.device) -> Tensor | None:
    """Return the column permutation in which the mask has its pattern; None if the weights are stored in it."""
    if not matrix.get("permuted") or matrix.get("in_order", True):
        return None
    permutation = CheckpointReader.of_file(folder / ORDERS).read(str(matrix["name"])).long().to(device)
    check_permutation(permutation, width, str(matrix["name"]))
    return permutation


def _retained_share(score: Tensor, mask: Tensor) -> float:
    total = score.sum(dtype=torch.float64)
    return float((score * mask).sum(dtype=torch.float64) / total) if total > 0 else 1.0
