"""Diagnosis: the connectivity of a folder's matrices, read one at a time; docs/diagnose.md says what it can tell."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.checkpoint.draft import MANIFEST, ORDERS
from eggs_ptp.checkpoint.unpacked import open_shards
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError, MethodError
from eggs_ptp.graph.connections import BITS, connections
from eggs_ptp.graph.degrees import degrees, gini, percentiles
from eggs_ptp.graph.neighbours import expands_to
from eggs_ptp.graph.spectrum import spectrum
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.load import load_heads
from eggs_ptp.models.table import family_for

_ELEMENTS = 1 << 16  # weights in float64 at a time: they stay in the cache


class Retained(NamedTuple):
    """What of the dense matrix W the mask m keeps, as shares, and what they are shares of."""

    magnitude: float  # sum |W| m / sum |W|
    energy: float  # sum W^2 m / sum W^2
    dead_energy: float  # sum of W^2 over dead inputs / sum W^2
    dense_magnitude: float
    dense_energy: float


@dataclass(frozen=True)
class MatrixDiagnosis:
    """One matrix. Degrees are numbers of weights that are not zero, dead inputs and outputs included."""

    name: str
    outputs: int
    inputs: int
    pattern: str | None
    connections: int
    dead_inputs: int
    dead_outputs: int
    input_degrees: dict[str, float]  # min, p1, p10, p50, max, mean, gini
    output_degrees: dict[str, float]  # min, mean, max
    floor: int | None  # connections that Lemma 1 promises every input: min(B, out // M); None where no B is recorded
    floor_held: bool | None
    expands_to: int  # any set of up to so many inputs is sure to have more neighbours than members
    output_error: float | None  # as recorded
    retained: dict[str, float] | None
    spectrum: dict[str, float | None] | None

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return self.connections / (self.outputs * self.inputs)


@dataclass(frozen=True)
class Diagnosis:
    """All matrices of a folder."""

    folder: str
    against: str | None
    matrices: tuple[MatrixDiagnosis, ...]

    @property
    def whole(self) -> dict[str, Any]:
        """The model as a whole: sums over its matrices, and its worst places by name."""
        each = self.matrices
        errors = {one.name: one.output_error for one in each if one.output_error is not None}
        kept = [one.retained for one in each if one.retained is not None]
        size = sum(one.outputs * one.inputs for one in each)
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
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        matrices = [{**asdict(one), "density": one.density} for one in self.matrices]
        return {"folder": self.folder, "against": self.against, "whole": self.whole, "matrices": matrices}


def diagnose_folder(
    folder: Path,
    against: Path | None = None,
    *,
    spectra: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Look at every pruned matrix of a folder, dense with zeros or packed, one at a time.

    Matrices, patterns, B and output errors come from `eggs.json`; a folder without one is taken for one whose block
    linears are all pruned. `against` is the model it was made from, for what was retained; folded orders are applied
    to it first. `progress` is told how many of all matrices are finished.

    Raises:
        CheckpointError: a broken record, or `against` is not what the folder was made from.
        ModelError: one of the two is no model folder.
        NumericsError: a matrix holds NaN or infinity, or a spectrum was not found.
    """
    shards = open_shards(folder)
    recorded = list(_recorded(folder, shards))
    if not recorded:
        raise CheckpointError(f"{folder}: no matrix is recorded or recognised as pruned, so there is nothing to see")
    source = _Source(folder, against) if against else None
    found = []
    for matrix in recorded:
        found.append(_diagnose(folder, shards, matrix, source, spectra))
        if progress:
            progress(len(found), len(recorded))
    return Diagnosis(str(folder), str(against) if against else None, tuple(found))


class _Source:
    """The dense model, in the orders that the folder's weights stand in."""

    def __init__(self, folder: Path, against: Path) -> None:
        self.shards, self.fold = open_shards(against), None
        if not (folder / MANIFEST).exists() or read_manifest(folder).get("orders") != "fold":
            return
        if not (folder / ORDERS).exists():
            raise CheckpointError(f"{folder}: its orders were folded into the weights, but {ORDERS} is missing")
        orders = Shards.of_file(folder / ORDERS)
        family = family_for(str(read_config(folder, packed=True)["model_type"]), str(folder))
        try:
            self.fold = Fold(family, load_heads(folder), {name: orders.read(name) for name in orders.names})
        except MethodError as error:
            raise CheckpointError(f"{folder}: {ORDERS}: {error}") from error

    def retained(self, matrix: dict[str, Any], weight: Tensor, mask: Tensor) -> Retained:
        name = f"{matrix['name']}.weight"
        dense = self.shards.read_sound(name)
        where = self.shards.folder
        if dense.shape != weight.shape:
            raise CheckpointError(f"{where}: {name} is {tuple(dense.shape)}, expected {tuple(weight.shape)}")
        if self.fold is not None:
            for order, size in zip(self.fold.axes(name), dense.shape, strict=False):
                if order is not None and len(order) != size:
                    raise CheckpointError(f"{ORDERS}: an order of {name} has {len(order)} channels, expected {size}")
            dense = self.fold.apply(name, dense)
        if not matrix.get("updated", True) and not bool(((dense == weight) | ~mask).all()):
            raise CheckpointError(f"{where}: {name} has other weights than were kept; pass what the folder was made of")
        return _retained(dense, mask)


def _diagnose(
    folder: Path, shards: Shards, matrix: dict[str, Any], source: _Source | None, spectra: bool
) -> MatrixDiagnosis:
    name = str(matrix["name"])
    weight = shards.read(f"{name}.weight")
    if weight.ndim != 2 or not weight.numel() or weight.dtype not in BITS:
        raise CheckpointError(
            f"{folder}: {name}.weight is {weight.dtype} of shape {tuple(weight.shape)}, expected a float matrix"
        )
    mask = connections(weight, f"{folder}: {name}.weight")
    found = degrees(mask)
    pattern = None if matrix["pattern"] is None else parse_pattern(str(matrix["pattern"]))
    low, p1, p10, p50, high = percentiles(found.inputs, (0, 1, 10, 50, 100))
    floor = _floor(folder, matrix, pattern.group, len(weight)) if isinstance(pattern, Pattern) else None
    seen = spectrum(mask, pattern.group if isinstance(pattern, Pattern) else None) if spectra else None
    return MatrixDiagnosis(
        name=name,
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        pattern=None if pattern is None else str(pattern),
        connections=int(found.inputs.sum()),
        dead_inputs=int((found.inputs == 0).sum()),
        dead_outputs=int((found.outputs == 0).sum()),
        input_degrees={
            "min": low, "p1": p1, "p10": p10, "p50": p50, "max": high,
            "mean": float(found.inputs.mean()), "gini": gini(found.inputs),
        },
        output_degrees={
            "min": float(found.outputs.min()), "mean": float(found.outputs.mean()), "max": float(found.outputs.max())
        },
        floor=floor,
        floor_held=None if floor is None else low >= floor,
        expands_to=expands_to(found),
        output_error=matrix.get("output_error"),
        retained=source.retained(matrix, weight, mask)._asdict() if source else None,
        spectrum=seen._asdict() if seen else None,
    )  # fmt: skip


def _floor(folder: Path, matrix: dict[str, Any], group: int, outputs: int) -> int | None:
    """min(B, out // height) connections: each of the B blocks of a group gives every input of it one at least."""
    blocks, rows = matrix.get("B"), matrix.get("diagonal_rows")
    if blocks is None:
        return None
    if not isinstance(blocks, int) or not isinstance(rows, int | None) or blocks < 0:
        raise CheckpointError(f"{folder / MANIFEST}: {matrix['name']}: B is {blocks!r}, expected a number of blocks")
    height = rows // blocks if rows and blocks else group  # M, or M / N where blocks are short
    return min(blocks, outputs // max(1, height))


def _retained(dense: Tensor, mask: Tensor) -> Retained:
    dead = ~mask.any(0)
    sums = torch.zeros(5, dtype=torch.float64)
    rows = max(1, _ELEMENTS // dense.shape[1])
    for part, kept in zip(dense.split(rows), mask.split(rows), strict=True):
        size = part.double().abs()
        left, lost = size * kept, size[:, dead].flatten() if dead.any() else size.new_zeros(0)
        energies = (torch.dot(each.flatten(), each.flatten()) for each in (left, lost, size))
        sums += torch.stack([left.sum(), size.sum(), *energies])
    magnitude, all_magnitude, energy, dead_energy, all_energy = sums.tolist()
    return Retained(
        magnitude / all_magnitude if all_magnitude else 1.0,
        energy / all_energy if all_energy else 1.0,
        dead_energy / all_energy if all_energy else 0.0,
        all_magnitude,
        all_energy,
    )


def _recorded(folder: Path, shards: Shards) -> Iterator[dict[str, Any]]:
    if (folder / MANIFEST).exists():
        record = read_manifest(folder)
        for matrix in record["matrices"]:
            if f"{matrix['name']}.weight" not in shards:
                raise CheckpointError(f"{folder}: {matrix['name']} is in {MANIFEST}, but its weight is in no file")
            yield matrix
        return
    family = family_for(str(read_config(folder, packed=True)["model_type"]), str(folder))
    endings = tuple(f".{linear.path}.weight" for linear in family.linears)
    for name in shards.names:
        if name.endswith(endings):
            yield {"name": name.removesuffix(".weight"), "pattern": None}


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
