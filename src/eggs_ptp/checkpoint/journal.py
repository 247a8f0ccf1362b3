"""Journal: the finished blocks of an unfinished run, from which the same run resumes, bit for bit."""

import hashlib
import json
import re
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from humanize import naturalsize
from torch import Tensor

from eggs_ptp.checkpoint.run_record import RunRecord, versions
from eggs_ptp.checkpoint.signals import deferred_signals
from eggs_ptp.checkpoint.working_directory import flush
from eggs_ptp.engine.tensors.reader import CheckpointReader, save_tensors
from eggs_ptp.engine.tensors.writer import SafetensorsWriter, TensorSpec
from eggs_ptp.errors import CheckpointError, ModelError

_IDENTITY_FILE = "journal.json"
_ENTRY_FILE = "facts.json"
_PERMUTATIONS_FILE = "orders.safetensors"
_HIDDEN_FOLDER = "stream"
_CHECKSUMS_FILE = "checks.json"
_ENTRY_NAME = re.compile(r"entry-(\d{5})")
_HASHED_FILES = ("config.json", "model.safetensors.index.json")
MAX_HASHED_WEIGHT_BYTES = 1024**3  # a model of at most this many bytes is identified by the content of its weights
_BATCH_TOKENS = "batch tokens that --memory allows"  # key of an identity; a larger budget may differ in it
_SHOWN_DIFFERENCES = 3
_CHUNK_BYTES = 1 << 22


@dataclass
class Entry:
    """What finishing one block has added to a run.

    Attributes:
        blocks: How many blocks are finished with it; 0 for the permutations found before the first block.
        permutations: Permutations found for the block, by the name of their channel space or matrix.
        matrices: Records of its pruned matrices.
        untouched: SHA-256 of its tensors that were neither pruned nor tuned.
        tuned: Names of its tensors that were not pruned but tuned.
        stages: Seconds since the run began, by stage, all its processes together.
        seconds: The same in total.
    """

    blocks: int
    permutations: dict[str, Tensor] = field(default_factory=dict)
    matrices: list[dict[str, Any]] = field(default_factory=list)
    untouched: dict[str, str] = field(default_factory=dict)
    tuned: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Journal:
    """The entries of a run in its working directory, one folder each.

    An entry's folder is renamed into place once everything in it is on the disk. It holds the entry, its permutations,
    the hidden states that enter the next block (kept for the last entry only), and checksums of all its files and of
    the file that the block's tensors were written to.

    Attributes:
        folder: The working directory.
        entries: The entries, in order.
        batch_tokens: Tokens a batch. They show in the last bits of the result, so a run resumes with those it began
            with, even if --memory allows more by now.
    """

    batch_tokens: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self._start = time.perf_counter()
        self._earlier_seconds = 0.0

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a working directory holds entries to resume from."""
        return (folder / _IDENTITY_FILE).exists() and any(_ENTRY_NAME.fullmatch(path.name) for path in folder.iterdir())

    def open(self, identity: Mapping[str, Any]) -> list[str]:
        """Read the entries of an interrupted run if it was the same run, or begin a new journal if there are none.

        Args:
            identity: The identity of this run, see `run_identity`.

        Returns:
            How this run differs from the interrupted one; empty if they are the same, or there was none.

        Raises:
            CheckpointError: The journal is damaged.
        """
        current = json.loads(json.dumps(identity))
        self.batch_tokens = current[_BATCH_TOKENS]
        if not self.exists(self.folder):
            (self.folder / _IDENTITY_FILE).write_text(json.dumps(current), encoding="utf-8")
            return []
        stored = self._read_json(self.folder / _IDENTITY_FILE)
        # A budget that allows larger batches allows those of the interrupted run too.
        if isinstance(stored, dict) and stored.get(_BATCH_TOKENS) in range(1, current[_BATCH_TOKENS]):
            self.batch_tokens = current[_BATCH_TOKENS] = stored[_BATCH_TOKENS]
        if stored != current:
            return list(_differences(stored, current))
        matches = (_ENTRY_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        numbers = sorted(int(match[1]) for match in matches if match)
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
            raise self._damaged(self._entry_folder(numbers[-1]))
        self.entries = [self._read_entry(number) for number in numbers]
        self._earlier_seconds = self.entries[-1].seconds
        for number in numbers[:-1]:
            shutil.rmtree(self._entry_folder(number) / _HIDDEN_FOLDER, ignore_errors=True)
        return []

    def matches(self, identity: Mapping[str, Any]) -> bool:
        """Whether the journal is undamaged and that of the same run, or has no entries yet."""
        try:
            return not Journal(self.folder).open(identity)
        except CheckpointError:
            return False

    def delete(self) -> None:
        """Delete all entries, so that no run can resume from them."""
        (self.folder / _IDENTITY_FILE).unlink(missing_ok=True)
        for path in self.folder.glob("entry-*"):
            shutil.rmtree(path)

    @property
    def blocks(self) -> int:
        """Number of finished blocks."""
        return self.entries[-1].blocks if self.entries else 0

    def add(
        self,
        entry: Entry,
        hidden_states: Mapping[str, tuple[TensorSpec, Iterable[Tensor]]],
        block_file: Path | None = None,
    ) -> None:
        """Write an entry to the disk, and delete the hidden states of the previous one.

        Args:
            entry: The entry.
            hidden_states: The hidden states that enter the next block, by name: type and shape, and the rows, a few
                at a time.
            block_file: The file that the block's tensors were written to.

        Raises:
            CheckpointError: The disk is full, or the folder cannot be written.
        """
        entry.seconds = self._earlier_seconds + time.perf_counter() - self._start
        path = self._entry_folder(entry.blocks)
        staging = self.folder / "entry.part"
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            if hidden_states:
                _write_hidden_states(staging / _HIDDEN_FOLDER, hidden_states)
            if entry.permutations:
                save_tensors(entry.permutations, staging / _PERMUTATIONS_FILE)
            plain = {key: value for key, value in asdict(entry).items() if key != "permutations"}
            (staging / _ENTRY_FILE).write_text(json.dumps(plain), encoding="utf-8")
            checksums = {
                str(file.relative_to(staging)): _checksum(file) for file in staging.rglob("*") if file.is_file()
            }
            if block_file is not None:
                flush(block_file)
                flush(block_file.parent)
                checksums[f"../{block_file.relative_to(self.folder)}"] = _checksum(block_file)
            (staging / _CHECKSUMS_FILE).write_text(json.dumps(checksums), encoding="utf-8")
            flush(staging)
            with deferred_signals():  # an interruption reports how many blocks are kept: this one is to count
                staging.rename(path)
                self.entries.append(entry)
            flush(self.folder)
            for previous in self.entries[-2:-1]:
                shutil.rmtree(self._entry_folder(previous.blocks) / _HIDDEN_FOLDER, ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error

    def read_hidden_states(self) -> dict[str, Iterator[Tensor]]:
        """Read the hidden states that enter the first unfinished block.

        Returns:
            By name, an iterator over the windows.
        """
        path = self._entry_folder(self.blocks) / _HIDDEN_FOLDER / "model.safetensors"
        reader = CheckpointReader.of_file(path)
        return {name: (window for piece in reader.pieces(name) for window in piece) for name in reader.names}

    def disk_space_warning(self, hidden_bytes: int, output_bytes: int) -> str | None:
        """Compare the free disk space with what the output and the hidden states need.

        The latter need twice their size: those of the previous entry are deleted once the next one is written.

        Args:
            hidden_bytes: Size of the hidden states that an entry keeps.
            output_bytes: Size of the output.

        Returns:
            A message that no journal can be kept; None if the space suffices.
        """
        free = shutil.disk_usage(self.folder).free
        if free >= 2 * hidden_bytes + output_bytes:
            return None
        return (
            f"no journal is kept: {self.folder.parent} has {naturalsize(free)} free, the output needs up to "
            f"{naturalsize(output_bytes)} and the hidden states twice {naturalsize(hidden_bytes)}; if this run is "
            "interrupted, it has to start again"
        )

    def _read_entry(self, number: int) -> Entry:
        folder = self._entry_folder(number)
        try:
            for name, checksum in self._read_json(folder / _CHECKSUMS_FILE).items():
                is_deleted = name.startswith(_HIDDEN_FOLDER) and self._entry_folder(number + 1).exists()
                if not is_deleted and _checksum(folder / name) != checksum:
                    raise self._damaged(folder / name)
            permutations = {}
            if (folder / _PERMUTATIONS_FILE).exists():
                reader = CheckpointReader.of_file(folder / _PERMUTATIONS_FILE)
                permutations = {name: reader.read(name) for name in reader.names}
            return Entry(**self._read_json(folder / _ENTRY_FILE), permutations=permutations)
        except (OSError, ModelError, AttributeError, TypeError) as error:
            raise self._damaged(folder) from error

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(path) from error
        return content

    def _damaged(self, path: Path) -> CheckpointError:
        return CheckpointError(
            f"{path.resolve()}: the journal of an interrupted run is damaged; start again with --overwrite, or delete "
            f"{self.folder}"
        )

    def _entry_folder(self, number: int) -> Path:
        return self.folder / f"entry-{number:05d}"


def run_identity(record: RunRecord, folder: Path) -> dict[str, Any]:
    """Describe everything that decides the result of a run: model, recipe, calibration tokens, device, and versions.

    Args:
        record: The record of the run.
        folder: The folder of the model that is pruned.
    """
    mask = record.recipe.get("mask")
    return {
        "versions": versions(),
        "model": {"name": record.source["model"], "revision": record.source["revision"], **_model_files(folder)},
        "recipe": record.recipe,
        "mask file": _sha256(Path(mask)) if mask else None,
        "calibration": record.calibration,
        "computing": {"device": record.device, "dtype": record.dtype, "orders": record.permutations},
        _BATCH_TOKENS: record.batch_tokens,
    }


def _model_files(folder: Path) -> dict[str, Any]:
    """Identify the files of a model folder.

    Configuration, index, code, and weights of up to 1 GiB by the SHA-256 of their content; larger weights by header,
    size and time of modification.
    """
    weights = sorted(folder.glob("*.safetensors"))
    small_files = sorted(path for path in folder.iterdir() if path.suffix == ".py" or path.name in _HASHED_FILES)
    if sum(path.stat().st_size for path in weights) <= MAX_HASHED_WEIGHT_BYTES:
        return {path.name: _sha256(path) for path in (*small_files, *weights)}
    identities = {path.name: _sha256(path) for path in small_files}
    for path in weights:
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
        stat = path.stat()
        digest = hashlib.sha256(header).hexdigest()
        identities[path.name] = f"{digest[:12]}, {stat.st_size} bytes, {stat.st_mtime_ns}"
    return identities


def _write_hidden_states(folder: Path, hidden_states: Mapping[str, tuple[TensorSpec, Iterable[Tensor]]]) -> None:
    """Write hidden states to a single safetensors file."""
    folder.mkdir()
    specs = {name: spec for name, (spec, _) in hidden_states.items()}
    total = sum(spec.nbytes for spec in specs.values())
    with SafetensorsWriter(folder, specs, largest=total) as writer:
        for name, (_, rows) in hidden_states.items():
            writer.put_rows(name, rows)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def _differences(stored: object, current: object) -> Iterator[str]:
    """Describe the first few values in which two identities differ."""
    before = dict(_flatten(stored))
    after = dict(_flatten(current))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in names[:_SHOWN_DIFFERENCES]:
        yield f"{name} was {_shortened(before.get(name))}, now {_shortened(after.get(name))}"
    if len(names) > _SHOWN_DIFFERENCES:
        yield f"and {len(names) - _SHOWN_DIFFERENCES} more"


def _flatten(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested objects with the path of their keys."""
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _flatten(child, f"{name} {key}".strip())
    else:
        yield name, value


def _shortened(value: object) -> str:
    text = "none" if value is None else str(value)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return f"{text[:12]}..."
    return text if len(text) <= 60 else f"{text[:57]}..."
