"""Descriptions of all fields of a diagnosis, which its JSON contains; docs/diagnose.md says more."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_SHARE = "as a share of tr(W G W^T), G = X^T X / tokens of the matrix's inputs in the pruned model"

FIELD_DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "folder": "the diagnosed folder",
        "against": "the dense model it was compared with",
        "calibration": "the tokens that ran through both models",
        "whole": "sums over matrices; highest_ and least_ name the matrix; mean_ are plain means over matrices",
        "whole.reach": "as blocks.reach of the last block: from the input of the first block to the output of the last",
        "whole.gradient_ratio": "gradient norm at the input of the first block / at the output of the last, by model",
        "blocks.block": "number of the decoder block",
        "blocks.reach.inside": "share of the pairs (channel in, channel out) of the residual stream that a path of "
        "nonzero weights connects, by the inner channels it passes through; queries and keys carry nothing. About 1 "
        "for any mask at 50 %",
        "blocks.reach.chained": "the same from the input of the first block, through every attention and MLP, skipping "
        "none",
        "blocks.reach.with_residual": "the same if residual connections may skip any: each channel reaches itself",
        "blocks.flow.singular_values": "largest singular values of the block's Jacobian J at its own hidden states, "
        "first window, at most 64 tokens: the directions that grow most, often those of a few outlier channels",
        "blocks.flow.rms": "sqrt(||J||_F^2 / n): root mean square of all n singular values, from 8 random directions",
        "blocks.flow.rms_written": "the same of J - I: how strongly what the block adds to the stream depends on its "
        "input",
        "blocks.flow.gradient_in": "||dL/dh|| at the input of the block, L the mean cross-entropy of the first windows",
        "blocks.flow.gradient_ratio": "gradient norm at the input of the block / at its output; whether it indicates "
        "quality is unproven",
        "matrices.name": "module name",
        "matrices.outputs": "rows of the matrix",
        "matrices.inputs": "columns of the matrix",
        "matrices.pattern": "N:M (N kept) or sparsity, as recorded",
        "matrices.connections": "number of nonzero weights",
        "matrices.density": "connections / (outputs x inputs)",
        "matrices.dead_inputs": "inputs without any connection: lost to this matrix, not to the model",
        "matrices.dead_outputs": "outputs without any connection",
        "matrices.input_degrees": "order statistics, mean and Gini of d_j = sum_i (W_ij != 0); unequal is not bad",
        "matrices.output_degrees": "the same of d_i = sum_j (W_ij != 0); constant for N:M",
        "matrices.floor": "min(B, out // M) connections that Lemma 1 guarantees every input, whatever the quality",
        "matrices.floor_held": "whether every input has that many",
        "matrices.expands_to": "largest t for which any set of up to t inputs has more neighbours than members, by the "
        "degrees alone",
        "matrices.output_error": "||X (W - W')^T||^2 / ||X W^T||^2 on about 256 tokens, recorded when it was pruned",
        "matrices.retained": "of the dense weights: sum |W| m, sum W^2 m, sum of W^2 over dead inputs, as shares; "
        "dense_ are the denominators; activations are not considered",
        "matrices.spectrum.sigma2": "second singular value of D_out^-1/2 m D_in^-1/2 without dead inputs and outputs; "
        "hardly varies at 50 %",
        "matrices.spectrum.random_edge": "sigma2 of random masks with the same density",
        "matrices.spectrum.pattern_edge": "sigma2 of random N:M masks",
        "matrices.spectrum.ramanujan": "(sqrt(d_out - 1) + sqrt(d_in - 1)) / sqrt(d_out d_in); nearly every mask at "
        "50 % is below it",
        "matrices.spectrum.cheeger": "(1 - sigma2) / 2 <= conductance",
        "matrices.spectrum.tanner_outputs": "least share of live outputs that any 1 % of the live inputs connect to",
        "matrices.spectrum.tanner_inputs": "least share of live inputs that any 1 % of the live outputs connect to",
        "matrices.calibrated.dead_activation": "sum of G_jj over dead inputs / tr G: energy that no weight here uses",
        "matrices.calibrated.dead_output": "tr(W_D G_DD W_D^T) of dead inputs D, " + _SHARE,
        "matrices.calibrated.output_error": "tr((W - W') G (W - W')^T), "
        + _SHARE
        + "; on the tokens of this diagnosis",
        "matrices.calibrated.mask_error": "tr(D G D^T), D = W where W' is 0, " + _SHARE + ": what the mask alone loses",
        "matrices.calibrated.retained_wanda": "sum of |W_ij| n_j over kept weights / over all, n_j^2 = G_jj",
        "matrices.calibrated.retained_ria": "the same of RIA's score, alpha 0.5",
        "matrices.weighted": "largest singular values of W diag(n), n_j^2 = G_jj, dense and pruned; correlations "
        "between inputs are not considered",
        "matrices.bounds.least_unchanged": "proven: no mask of this pattern, in this column order and with unchanged "
        "kept weights, has a smaller error on these tokens, " + _SHARE,
        "matrices.bounds.best_unchanged": "the smallest error found for such a mask, an upper bound of the optimum",
        "matrices.bounds.least_updated": "proven: no mask with any kept weights has a smaller error; often far from "
        "attainable",
        "matrices.bounds.best_updated": "the smallest error found with updated weights, fitted to these tokens",
    }
)


_MODELS = ("dense", "pruned")


def field_descriptions_of(diagnosis: Mapping[str, Any]) -> dict[str, str]:
    """Return the descriptions of the fields that have a value in a diagnosis as plain data."""
    present = set(_paths(diagnosis, ""))
    return {field: text for field, text in FIELD_DESCRIPTIONS.items() if field in present}


def is_described(path: str) -> bool:
    """Return whether a field (levels separated by dots), or one that contains it, has a description."""
    levels = path.split(".")
    return any(".".join(levels[:depth]) in FIELD_DESCRIPTIONS for depth in range(1, len(levels) + 1))


def _paths(value: Any, path: str) -> list[str]:
    """List the paths of all fields below; items of a list share a path, and so do both models of a gradient flow."""
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], dict):
            return [inner for item in value for inner in _paths(item, path)]
        return [path]
    if not isinstance(value, Mapping):
        return [] if value is None else [path]
    paths = [path] if path else []
    for key, item in value.items():
        is_model = path == "blocks.flow" and key in _MODELS
        paths += _paths(item, path if is_model else f"{path}.{key}".removeprefix("."))
    return paths
