"""Runs: pruned folders with their records."""

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.staging import MANIFEST
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.json_file import JSON_ERRORS
from eggs_ptp.errors import CheckpointError, EggsError
from eggs_ptp.models.folder import read_config
from eggs_ptp.report.record_files import Kind, Record, Skipped
from eggs_ptp.sparse.packed_config import is_packed_block

_MATRIX_NAME = re.compile(r"^(?P<prefix>.*?)\.(?P<block>\d+)\.(?P<linear>.+)$")


@dataclass
class Run:
    """One pruned folder.

    Attributes:
        folder: The folder.
        label: A short name that no other run of the report has.
        manifest: The content of eggs.json.
        sha256: Hash of eggs.json.
        stored: Bytes of the safetensors files; None if there are none.
        packed: Whether the weights are packed.
        records: The records that are about this run, by kind.
    """

    folder: Path
    label: str
    manifest: dict[str, Any]
    sha256: str
    stored: int | None
    packed: bool
    records: dict[Kind, list[Record]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The dense model it was made from, with its revision."""
        source = self.manifest["source"]
        return f"{source['model']}@{source['revision']}" if source.get("revision") else str(source["model"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the pruned matrices by name."""
        return {matrix["name"]: tuple(matrix["shape"]) for matrix in self.matrices}

    @property
    def matrices(self) -> list[dict[str, Any]]:
        """The records of the pruned matrices."""
        return list(self.manifest["matrices"])

    @property
    def method(self) -> str:
        """The method, or all methods if matrices differ."""
        return _join_distinct(str(matrix.get("method", "unknown")) for matrix in self.matrices)

    @property
    def pattern(self) -> str:
        """The pattern, or all patterns if matrices differ."""
        return _join_distinct(str(matrix["pattern"]) for matrix in self.matrices)

    @property
    def weights(self) -> int:
        """Number of weights of the pruned matrices, removed ones included."""
        return sum(weight_count(matrix) for matrix in self.matrices)

    @property
    def kept(self) -> float:
        """Share of these weights that was kept."""
        kept = sum(matrix["density"] * weight_count(matrix) for matrix in self.matrices)
        return float(kept) / max(1, self.weights)

    @property
    def error(self) -> float | None:
        """Mean relative output error of the matrices; None if none is recorded."""
        errors = [matrix["output_error"] for matrix in self.matrices if matrix.get("output_error") is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def all_records(self) -> list[Record]:
        """The records of every kind."""
        return [record for records in self.records.values() for record in records]

    def records_of(self, kind: Kind) -> list[Record]:
        """Return the records of a kind."""
        return self.records.get(kind, [])


def weight_count(matrix: dict[str, Any]) -> int:
    """Return the number of weights of a matrix, by its record."""
    rows, columns = matrix.get("shape", (0, 0))
    return int(rows) * int(columns)


def block_and_linear(name: str) -> tuple[int, str]:
    """Split the name of a matrix: `model.layers.3.mlp.down_proj` is (3, "mlp.down_proj"); (0, name) without a block."""
    match = _MATRIX_NAME.match(name)
    return (int(match["block"]), match["linear"]) if match else (0, name)


def group_by_model(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs of the same model: the same name, type and revision, and no matrix of another shape."""
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if all(_same_model(run, member) for member in group)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[Skipped]]:
    """Read pruned folders, in their order; those whose eggs.json is missing or broken are skipped.

    Returns:
        The runs, and the folders that were skipped.

    Raises:
        CheckpointError: No run is left.
    """
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for folder, label in _labels(folders).items():
        try:
            runs.append(_read_run(folder, label))
        except EggsError as error:
            skipped.append(Skipped(folder, str(error).removeprefix(f"{folder}: ")))
    if not runs:
        reasons = "; ".join(f"{folder.path}: {folder.reason}" for folder in skipped)
        raise CheckpointError(f"no run is left to report ({reasons}); give folders that eggs prune has written")
    return runs, skipped


def attach_to_runs(runs: Sequence[Run], records: Sequence[Record]) -> list[Record]:
    """Attach each record to the run that it is about.

    Returns:
        The records that are about none of the runs.
    """
    remaining = []
    for record in records:
        run = _run_of_record(runs, record)
        if run is None:
            remaining.append(record)
        else:
            run.records.setdefault(record.kind, []).append(record)
    return remaining


def _read_run(folder: Path, label: str) -> Run:
    manifest = read_manifest(folder)
    if not manifest["matrices"]:
        raise CheckpointError(f"{folder}: {MANIFEST} has no matrices, so nothing was pruned")
    for matrix in manifest["matrices"]:
        if not isinstance(matrix.get("shape"), list) or len(matrix["shape"]) != 2:
            raise CheckpointError(f"{folder}: {MANIFEST}: {matrix['name']} has no shape")
    files = list(folder.glob("*.safetensors"))
    packed = bool(files) and is_packed_block(read_config(folder, packed=True).get("quantization_config"))
    return Run(
        folder=folder,
        label=label,
        manifest=manifest,
        sha256=hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
        stored=sum(file.stat().st_size for file in files) if files else None,
        packed=packed,
    )


def packed_sibling_bytes(run: Run) -> int | None:
    """Return the size of the packed weights of the same run in a folder beside it; None if there is none.

    A folder beside it counts if its name starts with that of the run, and source, recipe and calibration are the same.
    """
    folder = run.folder.resolve()
    if run.packed:
        return None
    for sibling in sorted(folder.parent.glob(f"{glob.escape(folder.name)}?*")):
        files = list(sibling.glob("*.safetensors"))
        if files and _is_same_run(run, sibling) and _is_packed(sibling):
            return sum(file.stat().st_size for file in files)
    return None


def _is_packed(folder: Path) -> bool:
    try:
        return is_packed_block(read_config(folder, packed=True).get("quantization_config"))
    except EggsError:
        return False


def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """Return each folder with the shortest end of its path that tells it apart; a folder given twice counts once."""
    resolved = {folder: folder.resolve() for folder in folders}
    first_given = {path: folder for folder, path in reversed(resolved.items())}
    suffixes: dict[Path, str] = {}
    for depth in range(1, max(len(path.parts) for path in first_given) + 1):
        suffixes = {path: "/".join(path.parts[-depth:]) for path in first_given}
        if len(set(suffixes.values())) == len(first_given):
            break
    return {folder: suffixes[path] for folder, path in resolved.items() if first_given[path] == folder}


def _run_of_record(runs: Sequence[Run], record: Record) -> Run | None:
    if record.kind is Kind.compared_run:
        digest = record.data.get("recipe_sha256")
        return next((run for run in runs if digest and digest == run.manifest.get("recipe_sha256")), None)
    if record.model is None:
        return None
    recorded = Path(record.model).expanduser()
    if recorded.is_dir():
        same_folder = next((run for run in runs if run.folder.resolve() == recorded.resolve()), None)
        return same_folder or next((run for run in runs if _is_same_run(run, recorded)), None)
    same_name = [run for run in runs if run.folder.resolve().name == recorded.name]
    return same_name[0] if len(same_name) == 1 and len(recorded.parts) > 1 else None


def _same_model(first: Run, second: Run) -> bool:
    model_types = [run.manifest["source"].get("model_type") for run in (first, second)]
    shapes = second.shapes
    same_shapes = all(shapes.get(name, shape) == shape for name, shape in first.shapes.items())
    return first.model == second.model and model_types[0] == model_types[1] and same_shapes


def _is_same_run(run: Run, folder: Path) -> bool:
    """Return whether the folder holds the same run in another form, such as packed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, *JSON_ERRORS):
        return False
    keys = ("source", "recipe_sha256", "calibration")
    return isinstance(manifest, dict) and all(manifest.get(key) == run.manifest.get(key) for key in keys)


def _join_distinct(names: Iterable[str]) -> str:
    return " and ".join(sorted(set(names)))
