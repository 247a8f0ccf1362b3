"""Connectivity: the masks of a run, read from its weights: degrees of inputs, and a corner of some matrices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eggs_ptp.checkpoint.unpacked import open_reader
from eggs_ptp.core.connections import connections
from eggs_ptp.core.degrees import degrees
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import ModelError
from eggs_ptp.report.run_folder import Run, block_and_linear, weight_count

BINS = 400  # of the share of outputs that an input is connected to
CORNER_ROWS = 16
CORNER_COLUMNS = 64
MAX_WEIGHTS = 400_000_000  # weights of a run that are read for its degrees, which takes some seconds


@dataclass(frozen=True)
class Corner:
    """The first rows and columns of a matrix.

    Attributes:
        name: The matrix.
        mask: True where the weight is not zero.
        pattern: The N:M pattern that the matrix satisfies in its stored column order; None if it does not.
    """

    name: str
    mask: NDArray[np.bool_]
    pattern: Pattern | None


@dataclass
class Connectivity:
    """Connectivity of one run.

    Attributes:
        shares: For each linear, a histogram of its inputs over the share of outputs that they are connected to.
        dead: Inputs without any connection.
        inputs: Inputs of the matrices that were read.
        matrices_read: Number of these matrices.
        corners: Corners of the requested matrices.
    """

    shares: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    dead: int = 0
    inputs: int = 0
    matrices_read: int = 0
    corners: dict[str, Corner] = field(default_factory=dict)


def read_connectivity(run: Run, corners: Sequence[str] = (), max_weights: int = MAX_WEIGHTS) -> Connectivity | None:
    """Read the masks of a run, one matrix at a time.

    The degree of input j is d_j = sum_i m_ij, with m_ij = 1 where a weight is not zero; its share is d_j / outputs.

    Args:
        run: The run.
        corners: Names of the matrices whose corners are kept; these are read in any case.
        max_weights: Weights to read for the degrees. Of a run with more, evenly spaced blocks are read: as many as
            fit, at least one.

    Returns:
        The connectivity; None if the folder has no weights.

    Raises:
        EggsError: The weights cannot be read, or do not have the recorded shapes.
    """
    if run.stored is None:
        return None
    reader = open_reader(run.folder)
    connectivity = Connectivity()
    blocks = _blocks_to_read(run, max_weights)
    for matrix in run.matrices:
        name = str(matrix["name"])
        block, linear = block_and_linear(name)
        if block not in blocks and name not in corners:
            continue
        weight = reader.read(f"{name}.weight")
        if tuple(weight.shape) != tuple(matrix["shape"]):
            raise ModelError(
                f"{name}.weight: expected shape {tuple(matrix['shape'])} as recorded, got {tuple(weight.shape)}"
            )
        mask = connections(weight, f"{run.folder}: {name}.weight")
        if name in corners:
            corner = mask[:CORNER_ROWS, :CORNER_COLUMNS].numpy().copy()
            connectivity.corners[name] = Corner(name, corner, _satisfied_pattern(matrix))
        if block in blocks:
            input_degrees = degrees(mask).inputs
            bins = np.minimum(input_degrees * BINS // len(mask), BINS - 1)
            histogram = np.bincount(bins, minlength=BINS)
            connectivity.shares[linear] = connectivity.shares.get(linear, 0) + histogram
            connectivity.dead += int((input_degrees == 0).sum())
            connectivity.inputs += len(input_degrees)
            connectivity.matrices_read += 1
    return connectivity


def choose_matrices(runs: Sequence[Run], requested: Sequence[str] = ()) -> list[str]:
    """Choose the matrices whose corners are drawn.

    Args:
        runs: The runs.
        requested: Names or globs; without any, none: the corner of an N:M mask looks the same for all methods.

    Returns:
        Names of matrices.

    Raises:
        ModelError: No matrix has a requested name.
    """
    names = list(dict.fromkeys(str(matrix["name"]) for run in runs for matrix in run.matrices))
    if requested:
        for glob in requested:
            if not any(fnmatchcase(name, glob) for name in names):
                raise ModelError(f"--matrix {glob}: no pruned matrix has this name; {names[0]} is one, for example")
        return [name for name in names if any(fnmatchcase(name, glob) for glob in requested)]
    return []


def _blocks_to_read(run: Run, max_weights: int) -> set[int]:
    """Return evenly spaced blocks with at most `max_weights` weights together, or a single block."""
    weights: dict[int, int] = {}
    for matrix in run.matrices:
        block, _ = block_and_linear(str(matrix["name"]))
        weights[block] = weights.get(block, 0) + weight_count(matrix)
    blocks = sorted(weights)
    count = max(1, min(len(blocks), max_weights // max(1, max(weights.values()))))
    if count == 1:
        return {blocks[len(blocks) // 2]}
    return {blocks[index] for index in np.linspace(0, len(blocks) - 1, count).round().astype(int)}


def _satisfied_pattern(matrix: dict[str, Any]) -> Pattern | None:
    pattern = parse_pattern(str(matrix["pattern"]))
    return pattern if isinstance(pattern, Pattern) and matrix.get("in_order") else None
