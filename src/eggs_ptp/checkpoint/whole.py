"""Whole: a diagnosis of all matrices summed up."""

import statistics
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eggs_ptp.checkpoint.diagnosis import Diagnosis


def whole_of(found: "Diagnosis") -> dict[str, Any]:
    """Sums over the matrices of a model, its worst places by name, and means of what was measured on text."""
    each = found.matrices
    errors = {one.name: one.output_error for one in each if one.output_error is not None}
    kept = [one.retained for one in each if one.retained is not None]
    size = sum(one.outputs * one.inputs for one in each)
    read = {one.name: one.calibrated for one in each if one.calibrated}
    return {
        "matrices": len(each),
        "weights": size,
        "density": sum(one.connections for one in each) / size,
        "inputs": sum(one.inputs for one in each),
        "dead_inputs": sum(one.dead_inputs for one in each),
        "dead_outputs": sum(one.dead_outputs for one in each),
        "least_input_degree": _extreme({one.name: one.input_degrees["min"] for one in each}, min),
        "highest_gini": _extreme({one.name: one.input_degrees["gini"] for one in each}, max),
        "floors": sum(one.floor is not None for one in each),
        "floors_broken": [one.name for one in each if one.floor_held is False],
        "mean_output_error": sum(errors.values()) / len(errors) if errors else None,
        "highest_output_error": _extreme(errors, max),
        "retained": {part: _share(kept, part) for part in ("magnitude", "energy", "dead_energy")} if kept else None,
        "highest_sigma2": _extreme({one.name: one.spectrum["sigma2"] for one in each if one.spectrum}, max),
        "mean_calibrated": _means(read.values()),
        "highest_dead_output": _extreme({name: one["dead_output"] for name, one in read.items()}, max),
        "mean_bounds": _means(one.bounds for one in each if one.bounds),
        "reach": found.reach[-1]._asdict() if found.reach else None,
        "gradient_ratio": _gradient(found),
    }


def _gradient(found: "Diagnosis") -> dict[str, float] | None:
    """By how much the gradient grows on its way from the last block to the first."""
    if not found.flow:
        return None
    last, first = found.flow[-1], found.flow[0]
    return {
        which: first[side].gradient_in / last[side].gradient_out if last[side].gradient_out else 0.0
        for side, which in enumerate(("dense", "pruned"))
    }


def _means(parts: Iterable[dict[str, float]]) -> dict[str, float] | None:
    every = list(parts)
    return {key: statistics.mean(one[key] for one in every) for key in every[0]} if every else None


def _extreme(values: dict[str, Any], which: Callable[..., str]) -> dict[str, Any] | None:
    """The least, or highest, value and the matrix that has it; None without any."""
    if not values:
        return None
    name = which(values, key=values.__getitem__)
    return {"value": values[name], "matrix": name}


def _share(kept: list[dict[str, float]], part: str) -> float:
    """A share of the whole model: those of its matrices, weighted by what they are shares of."""
    whole = "dense_magnitude" if part == "magnitude" else "dense_energy"
    total = sum(one[whole] for one in kept)
    return sum(one[part] * one[whole] for one in kept) / total if total else 1.0
