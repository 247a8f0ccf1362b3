"""Connectivity: what the weights of a run say of its masks: degrees of inputs, and a corner of chosen matrices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eggs_ptp.checkpoint.unpacked import open_shards
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.errors import ModelError
from eggs_ptp.graph.connections import connections
from eggs_ptp.graph.degrees import degrees
from eggs_ptp.report.run import Run, place, size

BINS = 400  # of the share of outputs that an input is connected with
ROWS, COLUMNS = 16, 64  # of a corner
MOST_WEIGHTS = 400_000_000  # of a run that are read for its degrees: some seconds


@dataclass(frozen=True)
class Corner:
    """The mask of the first rows and columns of a matrix, and the pattern that it holds in this order, if it does."""

    name: str
    mask: NDArray[np.bool_]
    pattern: Pattern | None


@dataclass
class Connectivity:
    """Of one run. `shares` counts the inputs of each linear by the share of outputs that they are connected with."""

    shares: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    dead: int = 0
    inputs: int = 0
    read: int = 0  # matrices
    corners: dict[str, Corner] = field(default_factory=dict)


def connectivity(run: Run, chosen: Sequence[str] = (), most: int = MOST_WEIGHTS) -> Connectivity | None:
    """Read the masks of a run, one matrix at a time; None where its weights are not in the folder.

    d_j / outputs of input j, d_j = sum_i m_ij, m_ij = 1 where a weight is not zero. Of a run with more than `most`
    weights, blocks that are evenly spaced are read: as many as fit, one at least. `chosen` are read in any case.

    Raises:
        EggsError: the folder's weights cannot be read, or are not those of its record.
    """
    if run.stored is None:
        return None
    shards = open_shards(run.folder)
    found = Connectivity()
    blocks = _blocks(run, most)
    for matrix in run.matrices:
        name = str(matrix["name"])
        block, linear = place(name)
        if block not in blocks and name not in chosen:
            continue
        weight = shards.read(f"{name}.weight")
        if tuple(weight.shape) != tuple(matrix["shape"]):
            raise ModelError(f"{name}.weight is {tuple(weight.shape)}, expected {tuple(matrix['shape'])} as recorded")
        mask = connections(weight, f"{run.folder}: {name}.weight")
        if name in chosen:
            found.corners[name] = Corner(name, mask[:ROWS, :COLUMNS].numpy().copy(), _pattern(matrix))
        if block in blocks:
            counts = degrees(mask).inputs
            places = np.minimum(counts * BINS // len(mask), BINS - 1)
            share = np.bincount(places, minlength=BINS)
            found.shares[linear] = found.shares.get(linear, 0) + share
            found.dead += int((counts == 0).sum())
            found.inputs += len(counts)
            found.read += 1
    return found


def choose(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[str]:
    """Matrices to look at: those whose names match, else the ones of the least and of the highest mean output error.

    Raises:
        ModelError: a name that no matrix has.
    """
    names = list(dict.fromkeys(str(matrix["name"]) for run in runs for matrix in run.matrices))
    if wanted:
        if bad := [each for each in wanted if not any(fnmatchcase(name, each) for name in names)]:
            raise ModelError(f"--matrix {bad[0]}: no pruned matrix is so named; there is {names[0]}, for example")
        return [name for name in names if any(fnmatchcase(name, each) for each in wanted)]
    errors: dict[str, list[float]] = {}
    for run in runs:
        for matrix in run.matrices:
            if matrix.get("output_error") is not None:
                errors.setdefault(str(matrix["name"]), []).append(float(matrix["output_error"]))
    means = {name: sum(found) / len(found) for name, found in errors.items()}
    if not means:
        return names[:1]
    return list(dict.fromkeys([max(means, key=means.__getitem__), min(means, key=means.__getitem__)]))


def _blocks(run: Run, most: int) -> set[int]:
    sizes: dict[int, int] = {}
    for matrix in run.matrices:
        block, _ = place(str(matrix["name"]))
        sizes[block] = sizes.get(block, 0) + size(matrix)
    numbers = sorted(sizes)
    fit = max(1, min(len(numbers), most // max(1, max(sizes.values()))))
    spaced = np.linspace(0, len(numbers) - 1, fit).round().astype(int) if fit > 1 else [len(numbers) // 2]
    return {numbers[index] for index in spaced}


def _pattern(matrix: dict[str, Any]) -> Pattern | None:
    pattern = parse_pattern(str(matrix["pattern"]))
    return pattern if isinstance(pattern, Pattern) and matrix.get("in_order") else None
