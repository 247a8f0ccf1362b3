"""Run: a pruned folder with its record and what was measured of it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eggs_ptp.checkpoint.draft import MANIFEST
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.errors import CheckpointError, EggsError
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.json_file import JSON_FAULTS
from eggs_ptp.report.record import Kind, Record, Skipped
from eggs_ptp.sparse.contents import is_ours

_PLACE = re.compile(r"^(?P<before>.*?)\.(?P<block>\d+)\.(?P<linear>.+)$")


@dataclass
class Run:
    """One pruned folder. `records` are those that are about it, by kind."""

    folder: Path
    label: str
    manifest: dict[str, Any]
    sha256: str  # of eggs.json
    stored: int | None  # bytes of its safetensors files; None where they are not there
    packed: bool
    records: dict[Kind, list[Record]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """What it was made from, with its revision."""
        source = self.manifest["source"]
        return f"{source['model']}@{source['revision']}" if source.get("revision") else str(source["model"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its matrices by name."""
        return {matrix["name"]: tuple(matrix["shape"]) for matrix in self.matrices}

    @property
    def matrices(self) -> list[dict[str, Any]]:
        """The records of its matrices."""
        return list(self.manifest["matrices"])

    @property
    def method(self) -> str:
        """The methods of its matrices, most often one."""
        return _together(str(matrix.get("method", "unknown")) for matrix in self.matrices)

    @property
    def pattern(self) -> str:
        """The patterns of its matrices, most often one."""
        return _together(str(matrix["pattern"]) for matrix in self.matrices)

    @property
    def weights(self) -> int:
        """Weights of the pruned matrices, the pruned ones too."""
        return sum(size(matrix) for matrix in self.matrices)

    @property
    def kept(self) -> float:
        """Share of them that was kept."""
        return float(sum(matrix["density"] * size(matrix) for matrix in self.matrices)) / max(1, self.weights)

    @property
    def error(self) -> float | None:
        """Mean relative output error of its matrices; None where none has one."""
        found = [matrix["output_error"] for matrix in self.matrices if matrix.get("output_error") is not None]
        return sum(found) / len(found) if found else None

    @property
    def all_records(self) -> list[Record]:
        """Its records of every kind."""
        return [record for found in self.records.values() for record in found]

    def of(self, kind: Kind) -> list[Record]:
        """Its records of a kind."""
        return self.records.get(kind, [])


def size(matrix: dict[str, Any]) -> int:
    """Weights of a matrix, by its record."""
    rows, columns = matrix.get("shape", (0, 0))
    return int(rows) * int(columns)


def place(name: str) -> tuple[int, str]:
    """Block and linear of a matrix: `model.layers.3.mlp.down_proj` is (3, "mlp.down_proj"); (0, name) without one."""
    found = _PLACE.match(name)
    return (int(found["block"]), found["linear"]) if found else (0, name)


def by_model(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one model together: the same name, type and revision, and no matrix of another shape."""
    found: list[list[Run]] = []
    for run in runs:
        home = next((group for group in found if all(_same_model(run, other) for other in group)), None)
        if home is None:
            found.append([run])
        else:
            home.append(run)
    return found


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[Skipped]]:
    """The runs of the folders, in their order; those whose record is missing or broken are skipped.

    Raises:
        CheckpointError: none is left.
    """
    runs: list[Run] = []
    skipped: list[Skipped] = []
    labels = _labels(folders)
    for folder, label in labels.items():
        try:
            runs.append(_read(folder, label))
        except EggsError as error:
            skipped.append(Skipped(folder, str(error).removeprefix(f"{folder}: ")))
    if not runs:
        reasons = "; ".join(f"{each.path}: {each.reason}" for each in skipped)
        raise CheckpointError(f"no run is left to report ({reasons}); give folders that eggs prune has written")
    return runs, skipped


def attach(runs: Sequence[Run], records: Sequence[Record]) -> list[Record]:
    """Give each record to the run that it is about; those about none of them are returned."""
    left = []
    for record in records:
        if (run := _owner(runs, record)) is None:
            left.append(record)
        else:
            run.records.setdefault(record.kind, []).append(record)
    return left


def _read(folder: Path, label: str) -> Run:
    manifest = read_manifest(folder)
    if not manifest["matrices"]:
        raise CheckpointError(f"{folder}: {MANIFEST} has no matrices, so nothing was pruned")
    for matrix in manifest["matrices"]:
        if not isinstance(matrix.get("shape"), list) or len(matrix["shape"]) != 2:
            raise CheckpointError(f"{folder}: {MANIFEST}: {matrix['name']} has no shape")
    files = list(folder.glob("*.safetensors"))
    packed = False
    if files:
        packed = is_ours(read_config(folder, packed=True).get("quantization_config"))
    stored = sum(file.stat().st_size for file in files) if files else None
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return Run(folder, label, manifest, digest, stored, packed)


def _labels(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that tell them apart."""
    wholes = {folder: folder.resolve() for folder in folders}
    once = {whole: folder for folder, whole in reversed(wholes.items())}  # each folder once, as it was first given
    for depth in range(1, max(len(whole.parts) for whole in once) + 1):
        ends = {whole: "/".join(whole.parts[-depth:]) for whole in once}
        if len(set(ends.values())) == len(once):
            break
    return {folder: ends[whole] for folder, whole in wholes.items() if once[whole] == folder}


def _owner(runs: Sequence[Run], record: Record) -> Run | None:
    if record.kind is Kind.compared_run:
        digest = record.data.get("recipe_sha256")
        return next((run for run in runs if digest and digest == run.manifest.get("recipe_sha256")), None)
    if record.model is None:
        return None
    named = Path(record.model).expanduser()
    if named.is_dir():
        exact = next((run for run in runs if run.folder.resolve() == named.resolve()), None)
        return exact or next((run for run in runs if _same_run(run, named)), None)
    alike = [run for run in runs if run.folder.resolve().name == named.name]
    return alike[0] if len(alike) == 1 and len(named.parts) > 1 else None


def _same_model(run: Run, other: Run) -> bool:
    kinds = [each.manifest["source"].get("model_type") for each in (run, other)]
    shapes = other.shapes
    alike = all(shapes.get(name, shape) == shape for name, shape in run.shapes.items())
    return run.model == other.model and kinds[0] == kinds[1] and alike


def _same_run(run: Run, folder: Path) -> bool:
    """Whether the folder is the run in another form, such as packed."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, *JSON_FAULTS):
        return False
    keys = ("source", "recipe_sha256", "calibration")
    return isinstance(found, dict) and all(found.get(key) == run.manifest.get(key) for key in keys)


def _together(names: Any) -> str:
    return " and ".join(sorted(set(names)))
