"""Diagnosis of a pruned folder: the connectivity of its matrices, read one at a time; see docs/diagnose.md."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from eggs_ptp.checkpoint.staging import MANIFEST
from eggs_ptp.checkpoint.unpacked import open_reader
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.connections import BITS, connections
from eggs_ptp.core.degrees import Degrees, degrees, gini, percentiles
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.load import load_family, load_skeleton
from eggs_ptp.research.diagnosis.calibration_metrics import CalibrationText, compare_gradient_flows, matrix_metrics
from eggs_ptp.research.diagnosis.dense_source import DenseSource, retained
from eggs_ptp.research.diagnosis.reachability import residual_reachability_of
from eggs_ptp.research.diagnosis.results import Diagnosis, MatrixDiagnosis
from eggs_ptp.research.graph.neighbours import expands_to
from eggs_ptp.research.graph.spectrum import spectrum


@dataclass(frozen=True)
class DiagnosisOptions:
    """What to measure in addition to the degrees.

    Args:
        spectra: Spectra of the masks, and with `text` of the activation-weighted matrices.
        reach: Reachability within the residual stream.
        bounds: Lower bounds of the output error; needs `text`.
        flow: Jacobians and gradient norms; needs `text`.
        text: Calibration text for both models; needs a model to compare with.
    """

    spectra: bool = False
    reach: bool = False
    bounds: bool = False
    flow: bool = False
    text: CalibrationText | None = None


def diagnose_folder(
    folder: Path,
    against: Path | None = None,
    *,
    spectra: bool = False,
    options: DiagnosisOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Diagnose every pruned matrix of a folder, dense with zeros or packed, one at a time.

    Matrices, patterns, B and output errors come from `eggs.json`. In a folder without one, all linears of all blocks
    are taken to be pruned.

    Args:
        folder: The pruned folder.
        against: The model it was pruned from, to measure what was retained; folded permutations are applied to it.
        spectra: Short for options that request spectra only.
        options: What to measure in addition.
        progress: Called with the number of finished steps and of all: matrices, and blocks if they are measured too.

    Raises:
        CheckpointError: A damaged record, or `against` is missing or not the model that the folder was pruned from.
        ModelError: One of the two is not a model folder.
        NumericsError: A matrix or an activation holds NaN or infinity, or singular values were not found.
    """
    options = options or DiagnosisOptions(spectra=spectra)
    text = options.text
    if (text is not None or options.bounds or options.flow) and (against is None or text is None):
        raise CheckpointError(
            f"{folder}: what needs text (--calibration, --bounds, --flow) is a comparison with the dense model; pass "
            "both --against and --calibration"
        )
    reader = open_reader(folder)
    entries = list(_matrix_entries(folder, reader))
    if not entries:
        raise CheckpointError(
            f"{folder}: no matrix is recorded or recognised as pruned; expected a folder written by eggs prune, or a "
            "model of a known family"
        )
    ties = dict(load_skeleton(against).ties) if against and text else None
    source = DenseSource(folder, against, ties) if against else None
    blocks = _block_names(folder, reader) if options.reach or options.flow else []
    steps = len(entries) * (1 + (text is not None)) + len(blocks) * (options.reach + 4 * options.flow)
    counter = _ProgressCounter(steps, progress)
    matrices = []
    for entry in entries:
        matrices.append(_diagnose_matrix(folder, reader, entry, source, options.spectra))
        counter.advance()
    diagnosis = Diagnosis(str(folder), None if against is None else str(against), tuple(matrices))
    if options.reach:
        reachability = residual_reachability_of(reader, *load_family(folder), blocks, counter.advance)
        diagnosis = replace(diagnosis, reachability=tuple(reachability))
    if source is not None and text is not None:
        reader = open_reader(folder, ties)
        metrics = matrix_metrics(
            folder,
            reader,
            source,
            text,
            entries,
            spectra=options.spectra,
            bounds=options.bounds,
            on_progress=counter.advance,
        )
        measured = tuple(replace(matrix, **metrics[matrix.name]) for matrix in diagnosis.matrices)
        diagnosis = replace(diagnosis, matrices=measured, calibration=text.windows.to_dict())
        if options.flow:
            dense, pruned = compare_gradient_flows(reader, source, text, counter.advance)
            diagnosis = replace(diagnosis, gradient_flow=tuple(zip(dense, pruned, strict=True)))
    return diagnosis


class _ProgressCounter:
    """Counts finished steps and reports them."""

    def __init__(self, steps: int, progress: Callable[[int, int], None] | None) -> None:
        self._done = 0
        self._steps = steps
        self._progress = progress

    def advance(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._steps)


def _block_names(folder: Path, reader: CheckpointReader) -> list[str]:
    """Return the names of all blocks, in the order in which they run."""
    prefix = f"{load_family(folder)[0].blocks}."
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in reader.names if name.startswith(prefix)}
    return [f"{prefix}{number}" for number in sorted(numbers)]


def _diagnose_matrix(
    folder: Path, reader: CheckpointReader, entry: dict[str, Any], source: DenseSource | None, spectra: bool
) -> MatrixDiagnosis:
    name = str(entry["name"])
    weight = reader.read(f"{name}.weight")
    weight = weight.T.contiguous() if entry.get("transposed") else weight
    if weight.ndim != 2 or not weight.numel() or weight.dtype not in BITS:
        raise CheckpointError(
            f"{folder}: {name}.weight is {weight.dtype} of shape {tuple(weight.shape)}, expected a float matrix"
        )
    mask = connections(weight, f"{folder}: {name}.weight")
    matrix_degrees = degrees(mask)
    input_degrees = _input_degree_statistics(matrix_degrees)
    outputs = matrix_degrees.outputs
    pattern = None if entry["pattern"] is None else parse_pattern(str(entry["pattern"]))
    group = pattern.group if isinstance(pattern, Pattern) else None
    floor = None if group is None else _connection_floor(folder, entry, group, len(weight))
    return MatrixDiagnosis(
        name=name,
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        pattern=None if pattern is None else str(pattern),
        connections=int(matrix_degrees.inputs.sum()),
        dead_inputs=int((matrix_degrees.inputs == 0).sum()),
        dead_outputs=int((outputs == 0).sum()),
        input_degrees=input_degrees,
        output_degrees={"min": float(outputs.min()), "mean": float(outputs.mean()), "max": float(outputs.max())},
        floor=floor,
        floor_held=None if floor is None else input_degrees["min"] >= floor,
        expands_to=expands_to(matrix_degrees),
        output_error=entry.get("output_error"),
        retained=retained(source.matrix(entry, weight, mask), mask)._asdict() if source else None,
        spectrum=_spectrum_fields(mask, group) if spectra else None,
    )


def _input_degree_statistics(matrix_degrees: Degrees) -> dict[str, float]:
    inputs = matrix_degrees.inputs
    low, p1, p10, p50, high = percentiles(inputs, (0, 1, 10, 50, 100))
    mean = float(inputs.mean())
    return {"min": low, "p1": p1, "p10": p10, "p50": p50, "max": high, "mean": mean, "gini": gini(inputs)}


def _spectrum_fields(mask: Tensor, group: int | None) -> dict[str, float | None] | None:
    mask_spectrum = spectrum(mask, group)
    return mask_spectrum._asdict() if mask_spectrum else None


def _connection_floor(folder: Path, entry: dict[str, Any], group: int, outputs: int) -> int | None:
    """min(B, out // height): each of the B diagonal blocks of a group gives every input of it at least one."""
    blocks = entry.get("B")
    rows = entry.get("diagonal_rows")
    if blocks is None:
        return None
    if not isinstance(blocks, int) or not isinstance(rows, int | None) or blocks < 0:
        raise CheckpointError(
            f"{folder / MANIFEST}: {entry['name']}: B is {blocks!r}, expected a number of diagonal blocks"
        )
    height = rows // blocks if rows and blocks else group  # M, or M / N for short blocks
    return min(blocks, outputs // max(1, height))


def _matrix_entries(folder: Path, reader: CheckpointReader) -> Iterator[dict[str, Any]]:
    """Yield the record's entries of all pruned matrices, or entries made up from the family if there is no record."""
    if (folder / MANIFEST).exists():
        record = read_manifest(folder)
        for entry in record["matrices"]:
            if f"{entry['name']}.weight" not in reader:
                raise CheckpointError(f"{folder}: {entry['name']} is in {MANIFEST}, but no file has its weight")
            yield entry
        return
    for linear in load_family(folder)[0].linears:
        for name in reader.names:
            if name.endswith(f".{linear.path}.weight"):
                yield {"name": name.removesuffix(".weight"), "pattern": None, "transposed": linear.transposed}
