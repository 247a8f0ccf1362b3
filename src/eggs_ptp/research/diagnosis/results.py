"""The diagnosis of a folder as data: matrix by matrix, block by block, and summarised over the model."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from eggs_ptp.research.diagnosis.field_descriptions import field_descriptions_of
from eggs_ptp.research.diagnosis.gradient_flow import BlockGradientFlow
from eggs_ptp.research.diagnosis.reachability import ResidualReachability


@dataclass(frozen=True)
class MatrixDiagnosis:
    """The diagnosis of one matrix. Degrees are numbers of nonzero weights and include dead inputs and outputs.

    Attributes:
        name: Module name.
        outputs: Rows.
        inputs: Columns.
        pattern: As recorded.
        connections: Nonzero weights.
        dead_inputs: Inputs without a connection.
        dead_outputs: Outputs without a connection.
        input_degrees: min, p1, p10, p50, max, mean, gini.
        output_degrees: min, mean, max.
        floor: Connections that Lemma 1 guarantees every input, min(B, out // M); None if no B is recorded.
        floor_held: Whether every input has them.
        expands_to: Any set of up to this many inputs has more neighbours than members, by the degrees alone.
        output_error: As recorded.
        retained: See `dense_source.Retained`.
        spectrum: See `graph.spectrum.Spectrum`.
        calibrated: See `graph.layer_error.LayerErrors`, with the retained shares of Wanda's and RIA's score.
        weighted: Singular values of the activation-weighted matrix, dense and pruned.
        bounds: Lower bounds of the output error, and the smallest errors found.
    """

    name: str
    outputs: int
    inputs: int
    pattern: str | None
    connections: int
    dead_inputs: int
    dead_outputs: int
    input_degrees: dict[str, float]
    output_degrees: dict[str, float]
    floor: int | None
    floor_held: bool | None
    expands_to: int
    output_error: float | None
    retained: dict[str, float] | None
    spectrum: dict[str, float | None] | None
    calibrated: dict[str, float] | None = None
    weighted: dict[str, list[float]] | None = None
    bounds: dict[str, float] | None = None

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return self.connections / (self.outputs * self.inputs)


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a folder.

    Attributes:
        folder: The diagnosed folder.
        against: The dense model.
        matrices: All pruned matrices.
        reachability: Block by block, if requested.
        gradient_flow: Block by block, of the dense and the pruned model, if requested.
        calibration: The calibration windows, as plain data.
    """

    folder: str
    against: str | None
    matrices: tuple[MatrixDiagnosis, ...]
    reachability: tuple[ResidualReachability, ...] = ()
    gradient_flow: tuple[tuple[BlockGradientFlow, BlockGradientFlow], ...] = ()
    calibration: dict[str, Any] | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """The model as a whole: sums, means and extremes over its matrices."""
        return summarise(self)

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """Block by block, what was requested of `reach` and `flow`, as plain data."""
        count = max(len(self.reachability), len(self.gradient_flow))
        blocks: list[dict[str, Any]] = [{"block": index} for index in range(count)]
        for block, reachability in zip(blocks, self.reachability, strict=False):
            block["reach"] = {key: value for key, value in reachability._asdict().items() if key != "block"}
        for block, (dense, pruned) in zip(blocks, self.gradient_flow, strict=False):
            block["flow"] = {"dense": _flow_fields(dense), "pruned": _flow_fields(pruned)}
        return blocks

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with descriptions of its fields."""
        diagnosis = {
            "folder": self.folder,
            "against": self.against,
            "calibration": self.calibration,
            "whole": self.summary,
            "blocks": self.blocks,
            "matrices": [{**asdict(matrix), "density": matrix.density} for matrix in self.matrices],
        }
        return {**diagnosis, "meaning": field_descriptions_of(diagnosis)}


def _flow_fields(flow: BlockGradientFlow) -> dict[str, Any]:
    return {**flow.jacobian._asdict(), "gradient_in": flow.gradient_in, "gradient_ratio": flow.gradient_ratio}


def summarise(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return sums over the matrices, extremes with the matrix that has them, and means of what needed text."""
    matrices = diagnosis.matrices
    errors = {matrix.name: matrix.output_error for matrix in matrices if matrix.output_error is not None}
    retained = [matrix.retained for matrix in matrices if matrix.retained is not None]
    calibrated = {matrix.name: matrix.calibrated for matrix in matrices if matrix.calibrated}
    least_degrees = {matrix.name: matrix.input_degrees["min"] for matrix in matrices}
    ginis = {matrix.name: matrix.input_degrees["gini"] for matrix in matrices}
    sigmas = {matrix.name: matrix.spectrum["sigma2"] for matrix in matrices if matrix.spectrum}
    dead_outputs = {name: metrics["dead_output"] for name, metrics in calibrated.items()}
    weights = sum(matrix.outputs * matrix.inputs for matrix in matrices)
    shares = ("magnitude", "energy", "dead_energy")
    return {
        "matrices": len(matrices),
        "weights": weights,
        "density": sum(matrix.connections for matrix in matrices) / weights,
        "inputs": sum(matrix.inputs for matrix in matrices),
        "dead_inputs": sum(matrix.dead_inputs for matrix in matrices),
        "dead_outputs": sum(matrix.dead_outputs for matrix in matrices),
        "least_input_degree": _extreme(least_degrees, min),
        "highest_gini": _extreme(ginis, max),
        "floors": sum(matrix.floor is not None for matrix in matrices),
        "floors_broken": [matrix.name for matrix in matrices if matrix.floor_held is False],
        "mean_output_error": sum(errors.values()) / len(errors) if errors else None,
        "highest_output_error": _extreme(errors, max),
        "retained": {share: _combined_share(retained, share) for share in shares} if retained else None,
        "highest_sigma2": _extreme(sigmas, max),
        "mean_calibrated": _means(calibrated.values()),
        "highest_dead_output": _extreme(dead_outputs, max),
        "mean_bounds": _means(matrix.bounds for matrix in matrices if matrix.bounds),
        "reach": diagnosis.reachability[-1]._asdict() if diagnosis.reachability else None,
        "gradient_ratio": _gradient_ratio(diagnosis),
    }


def _gradient_ratio(diagnosis: Diagnosis) -> dict[str, float] | None:
    """Return the factor by which the gradient grows from the last block to the first, for both models."""
    if not diagnosis.gradient_flow:
        return None
    first = diagnosis.gradient_flow[0]
    last = diagnosis.gradient_flow[-1]
    return {
        name: first[index].gradient_in / last[index].gradient_out if last[index].gradient_out else 0.0
        for index, name in enumerate(("dense", "pruned"))
    }


def _means(metrics: Iterable[dict[str, float]]) -> dict[str, float] | None:
    rows = list(metrics)
    return {key: statistics.mean(row[key] for row in rows) for key in rows[0]} if rows else None


def _extreme(values: dict[str, Any], choose: Callable[..., str]) -> dict[str, Any] | None:
    """Return the minimum or maximum and the matrix that has it; None if there are no values."""
    if not values:
        return None
    name = choose(values, key=values.__getitem__)
    return {"value": values[name], "matrix": name}


def _combined_share(retained: list[dict[str, float]], share: str) -> float:
    """Combine the shares of all matrices, each weighted by its denominator."""
    denominator = "dense_magnitude" if share == "magnitude" else "dense_energy"
    total = sum(row[denominator] for row in retained)
    return sum(row[share] * row[denominator] for row in retained) / total if total else 1.0
