"""Meaning: what each number of a diagnosis is, for whoever reads its JSON; docs/diagnose.md says more."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_ERROR = "as shares of tr(W G W^T), G = X^T X / tokens of the inputs that the matrix has in the pruned model"

MEANING: Mapping[str, str] = MappingProxyType(
    {
        "folder": "what was looked at",
        "against": "the dense model it was compared with",
        "calibration": "the tokens that ran through both models",
        "whole": "sums over matrices; highest_ and least_ name the place; mean_ are plain means over matrices",
        "whole.reach": "as blocks.reach, of the last block: from before the first block to behind it",
        "whole.gradient_ratio": "gradient norm before the first block / behind the last, of each model",
        "blocks.block": "number of the decoder block",
        "blocks.reach.inside": "share of pairs (channel in, channel out) of the residual stream that a path through "
        "weights that are not 0 joins, by what it passes; queries and keys carry nothing. About 1 for any mask at 50 %",
        "blocks.reach.chained": "the same from before the first block, through every attention and MLP, none skipped",
        "blocks.reach.with_residual": "the same where residual connections may skip any: each channel reaches itself",
        "blocks.flow.singular_values": "largest singular values of the block's Jacobian J at its own hidden states, "
        "first window, at most 64 tokens: the directions that grow most, often those of a few outlier channels",
        "blocks.flow.rms": "sqrt(||J||_F^2 / n): root mean square of all n singular values, from 8 random directions",
        "blocks.flow.rms_written": "the same of J - I: how strongly what the block writes answers to its input",
        "blocks.flow.gradient_in": "||dL/dh|| before the block, L the mean cross-entropy of the first windows",
        "blocks.flow.gradient_ratio": "gradient norm before the block / behind it; what it says of quality is unproven",
        "matrices.name": "module name",
        "matrices.outputs": "rows of the matrix",
        "matrices.inputs": "columns of the matrix",
        "matrices.pattern": "N:M (N kept) or sparsity, as recorded",
        "matrices.connections": "weights that are not 0",
        "matrices.density": "connections / (outputs x inputs)",
        "matrices.dead_inputs": "inputs without any connection: lost to this matrix, not to the model",
        "matrices.dead_outputs": "outputs without any connection",
        "matrices.input_degrees": "order statistics, mean and Gini of d_j = sum_i (W_ij != 0); unequal is not bad",
        "matrices.output_degrees": "of d_i = sum_j (W_ij != 0); constant for N:M",
        "matrices.floor": "min(B, out // M) connections that Lemma 1 promises every input; says nothing of quality",
        "matrices.floor_held": "whether every input has as many",
        "matrices.expands_to": "largest t so that any set of up to t inputs has more neighbours than members, by "
        "degrees alone",
        "matrices.output_error": "||X (W - W')^T||^2 / ||X W^T||^2 on about 256 tokens, as recorded when it was pruned",
        "matrices.retained": "of the dense weights: sum |W| m, sum W^2 m, sum of W^2 over dead inputs, as shares; "
        "dense_ are the denominators; activations are not in it",
        "matrices.spectrum.sigma2": "2nd singular value of D_out^-1/2 m D_in^-1/2, dead ones left out; hardly moves "
        "at 50 %",
        "matrices.spectrum.random_edge": "sigma2 of random masks of the same density",
        "matrices.spectrum.pattern_edge": "sigma2 of random N:M masks",
        "matrices.spectrum.ramanujan": "(sqrt(d_out - 1) + sqrt(d_in - 1)) / sqrt(d_out d_in); nearly every mask at "
        "50 % passes",
        "matrices.spectrum.cheeger": "(1 - sigma2) / 2 <= conductance",
        "matrices.spectrum.tanner_outputs": "least share of live outputs that any 1 % of the live inputs reach",
        "matrices.spectrum.tanner_inputs": "least share of live inputs that any 1 % of the live outputs read",
        "matrices.calibrated.dead_activation": "sum of G_jj over dead inputs / tr G: energy that nothing here reads",
        "matrices.calibrated.dead_output": "tr(W_D G_DD W_D^T) of dead inputs D, " + _ERROR,
        "matrices.calibrated.output_error": "tr((W - W') G (W - W')^T), " + _ERROR + "; on these very tokens",
        "matrices.calibrated.mask_error": "tr(D G D^T), D = W where W' is 0, " + _ERROR + ": what the mask alone loses",
        "matrices.calibrated.retained_wanda": "sum of |W_ij| n_j that is kept / of all, n_j^2 = G_jj",
        "matrices.calibrated.retained_ria": "the same of RIA's score, alpha 0.5",
        "matrices.weighted": "largest singular values of W diag(n), n_j^2 = G_jj, dense and pruned; correlations are "
        "not in it",
        "matrices.bounds.least_unchanged": "proven: no mask of this pattern in this column order that leaves kept "
        "weights as they are loses less on these tokens, " + _ERROR,
        "matrices.bounds.best_unchanged": "the least that was found for one: an upper bound of the optimum, no more",
        "matrices.bounds.least_updated": "proven: nor does any with any kept weights; often far below what can be had",
        "matrices.bounds.best_updated": "the least that was found for one, on these very tokens",
    }
)


_MODELS = ("dense", "pruned")


def meaning_of(found: Mapping[str, Any]) -> dict[str, str]:
    """The meanings of the keys that a diagnosis as plain data has values for."""
    there = set(_paths(found, ""))
    return {key: text for key, text in MEANING.items() if key in there}


def explained(path: str) -> bool:
    """Whether a key, with dots between the levels, or one above it, has a meaning."""
    parts = path.split(".")
    return any(".".join(parts[:size]) in MEANING for size in range(1, len(parts) + 1))


def _paths(value: Any, path: str) -> list[str]:
    """Every key below, with dots between the levels; items of lists and the two models of a pair share theirs."""
    if isinstance(value, list | tuple):
        return [each for one in value for each in _paths(one, path)] if value and isinstance(value[0], dict) else [path]
    if not isinstance(value, Mapping):
        return [] if value is None else [path]
    keys = [path] if path else []
    for key, below in value.items():
        inside = path if path == "blocks.flow" and key in _MODELS else f"{path}.{key}" if path else str(key)
        keys += _paths(below, inside)
    return keys
