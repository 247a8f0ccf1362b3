"""Diagnosis: the connectivity of a folder's matrices, read one at a time; docs/diagnose.md says what it can tell."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.calibrated import Text, activation_figures, flows
from eggs_ptp.checkpoint.draft import MANIFEST
from eggs_ptp.checkpoint.meaning import meaning_of
from eggs_ptp.checkpoint.passage import Reach, reach_of
from eggs_ptp.checkpoint.source import Source, retained
from eggs_ptp.checkpoint.unpacked import open_shards
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.checkpoint.whole import whole_of
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.engine.flow import BlockFlow
from eggs_ptp.engine.shards import Shards
from eggs_ptp.errors import CheckpointError
from eggs_ptp.graph.connections import BITS, connections
from eggs_ptp.graph.degrees import degrees, gini, percentiles
from eggs_ptp.graph.neighbours import expands_to
from eggs_ptp.graph.spectrum import spectrum
from eggs_ptp.models.load import load_family, load_skeleton


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
    calibrated: dict[str, float] | None = None  # from here on as `checkpoint.calibrated` has them
    weighted: dict[str, list[float]] | None = None
    bounds: dict[str, float] | None = None

    @property
    def density(self) -> float:
        """Share of the weights that are not zero."""
        return self.connections / (self.outputs * self.inputs)


@dataclass(frozen=True)
class Diagnosis:
    """All matrices of a folder, and its blocks as far as they were asked for."""

    folder: str
    against: str | None
    matrices: tuple[MatrixDiagnosis, ...]
    reach: tuple[Reach, ...] = ()
    flow: tuple[tuple[BlockFlow, BlockFlow], ...] = ()  # dense and pruned, block by block
    calibration: dict[str, Any] | None = None

    @property
    def whole(self) -> dict[str, Any]:
        """The model as a whole: sums over its matrices, and its worst places by name."""
        return whole_of(self)

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """Block by block, `reach` and the `flow` of both models, where they were asked for."""
        found: list[dict[str, Any]] = [{"block": index} for index in range(max(len(self.reach), len(self.flow)))]
        for block, reach in zip(found, self.reach, strict=False):
            block["reach"] = {key: value for key, value in reach._asdict().items() if key != "block"}
        for block, pair in zip(found, self.flow, strict=False):
            block["flow"] = {
                which: {**each.gain._asdict(), "gradient_in": each.gradient_in, "gradient_ratio": each.gradient_ratio}
                for which, each in zip(("dense", "pruned"), pair, strict=True)
            }
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the meaning of its keys."""
        found = {
            "folder": self.folder,
            "against": self.against,
            "calibration": self.calibration,
            "whole": self.whole,
            "blocks": self.blocks,
            "matrices": [{**asdict(one), "density": one.density} for one in self.matrices],
        }
        return {**found, "meaning": meaning_of(found)}


@dataclass(frozen=True)
class Ask:
    """What to look at beside the degrees. `bounds` and `flow` need `text`, and `text` a model to compare with."""

    spectra: bool = False
    reach: bool = False
    bounds: bool = False
    flow: bool = False
    text: Text | None = None


def diagnose_folder(
    folder: Path,
    against: Path | None = None,
    *,
    spectra: bool = False,
    ask: Ask | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Look at every pruned matrix of a folder, dense with zeros or packed, one at a time.

    Matrices, patterns, B and output errors come from `eggs.json`; a folder without one is taken for one whose block
    linears are all pruned. `against` is the model it was made from, for what was retained; folded orders are applied
    to it first. `ask` is for what takes longer, `spectra` short for one that asks for spectra alone. `progress` is told
    how many of all matrices (and blocks, where these are looked at too) are finished.

    Raises:
        CheckpointError: a broken record, `against` is not what the folder was made from, or is missing.
        ModelError: one of the two is no model folder.
        NumericsError: a matrix or an activation holds NaN or infinity, or singular values were not found.
    """
    wanted = ask or Ask(spectra=spectra)
    if (wanted.text is not None or wanted.bounds or wanted.flow) and (against is None or wanted.text is None):
        raise CheckpointError(
            f"{folder}: what text shows (--calibration, --bounds, --flow) is a comparison with the dense model; pass "
            "both --against and --calibration"
        )
    shards = open_shards(folder)
    recorded = list(_recorded(folder, shards))
    if not recorded:
        raise CheckpointError(f"{folder}: no matrix is recorded or recognised as pruned, so there is nothing to see")
    ties = dict(load_skeleton(against).ties) if against and wanted.text else None
    source = Source(folder, against, ties) if against else None
    blocks = _block_names(folder, shards) if wanted.reach or wanted.flow else []
    steps = len(recorded) * (1 + (wanted.text is not None)) + len(blocks) * (wanted.reach + 4 * wanted.flow)
    count = _Count(steps, progress)
    found = []
    for matrix in recorded:
        found.append(_diagnose(folder, shards, matrix, source, wanted.spectra))
        count.one_more()
    made = Diagnosis(str(folder), None if against is None else str(against), tuple(found))
    if wanted.reach:
        reached = reach_of(shards, *load_family(folder), blocks, count.one_more)
        made = replace(made, reach=tuple(reached))
    if source is not None and (text := wanted.text) is not None:
        shards = open_shards(folder, ties)
        figures = activation_figures(
            folder, shards, source, text, recorded, spectra=wanted.spectra, bounds=wanted.bounds, told=count.one_more
        )
        matrices = tuple(replace(one, **figures[one.name]) for one in made.matrices)
        made = replace(made, matrices=matrices, calibration=text.windows.to_dict())
        if wanted.flow:
            dense, pruned = flows(shards, source, text, count.one_more)
            made = replace(made, flow=tuple(zip(dense, pruned, strict=True)))
    return made


class _Count:
    """Tells whoever wants to know how much is finished."""

    def __init__(self, steps: int, progress: Callable[[int, int], None] | None) -> None:
        self._done, self._steps, self._progress = 0, steps, progress

    def one_more(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._steps)


def _block_names(folder: Path, shards: Shards) -> list[str]:
    """The names of all blocks, in the order they run."""
    prefix = f"{load_family(folder)[0].blocks}."
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in shards.names if name.startswith(prefix)}
    return [f"{prefix}{number}" for number in sorted(numbers)]


def _diagnose(
    folder: Path, shards: Shards, matrix: dict[str, Any], source: Source | None, spectra: bool
) -> MatrixDiagnosis:
    name = str(matrix["name"])
    weight = shards.read(f"{name}.weight")
    weight = weight.T.contiguous() if matrix.get("transposed") else weight
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
        retained=retained(source.matrix(matrix, weight, mask), mask)._asdict() if source else None,
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


def _recorded(folder: Path, shards: Shards) -> Iterator[dict[str, Any]]:
    if (folder / MANIFEST).exists():
        record = read_manifest(folder)
        for matrix in record["matrices"]:
            if f"{matrix['name']}.weight" not in shards:
                raise CheckpointError(f"{folder}: {matrix['name']} is in {MANIFEST}, but its weight is in no file")
            yield matrix
        return
    for linear in load_family(folder)[0].linears:
        for name in shards.names:
            if name.endswith(f".{linear.path}.weight"):
                yield {"name": name.removesuffix(".weight"), "pattern": None, "transposed": linear.transposed}
