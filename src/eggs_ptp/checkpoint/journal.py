"""Journal: what an unfinished run has behind it, so that the same run goes on from there, bit for bit."""

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

from torch import Tensor

from eggs_ptp.checkpoint.interruption import deferred
from eggs_ptp.checkpoint.record import RunRecord, versions
from eggs_ptp.checkpoint.stream import Spec, Stream
from eggs_ptp.checkpoint.workplace import flush
from eggs_ptp.engine.shards import Shards, save_tensors
from eggs_ptp.errors import CheckpointError, ModelError

_RUN = "journal.json"
_FACTS, _ORDERS, _STREAM, _CHECKS = "facts.json", "orders.safetensors", "stream", "checks.json"
_ENTRY = re.compile(r"entry-(\d{5})")
_READ = ("config.json", "model.safetensors.index.json")
_READ_WHOLE = 1024**3  # bytes of weights up to which a model is known by its content
_BATCH = "batch tokens that --memory allows"  # in an identity: what a larger budget may differ in
_SHOWN = 3  # differences that a refusal lists
_PIECE = 1 << 22


@dataclass
class Entry:
    """What finishing block number `blocks` (from 1) has added; at 0, the orders found before the first block.

    `stages` and `seconds` are the time spent since the run began, all its processes together.
    """

    blocks: int
    orders: dict[str, Tensor] = field(default_factory=dict)
    matrices: list[dict[str, Any]] = field(default_factory=list)
    untouched: dict[str, str] = field(default_factory=dict)
    tuned: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Journal:
    """Entries in a draft's workplace: a folder each, which appears by one rename once all in it is on the disk.

    An entry holds its facts, orders, and `stream`: the hidden states as they enter the next block, of which only the
    last entry's are kept. `parts` are the files, relative to the workplace, that blocks were written to. `batch_tokens`
    are those of its batches, which show in the last bits: those that the run began with.
    """

    batch_tokens: int

    def __init__(self, workplace: Path) -> None:
        self.folder = workplace
        self.entries: list[Entry] = []
        self._start = time.perf_counter()
        self._before = 0.0

    @staticmethod
    def begun(workplace: Path) -> bool:
        """Whether a run has left anything there that another can go on from."""
        return (workplace / _RUN).exists() and any(_ENTRY.fullmatch(path.name) for path in workplace.iterdir())

    def open(self, identity: Mapping[str, Any]) -> list[str]:
        """Begin, or read what there is; then, instead, what in `identity` differs from that run's, if anything does.

        Raises:
            CheckpointError: what is there is damaged.
        """
        now = json.loads(json.dumps(identity))
        self.batch_tokens = now[_BATCH]
        if not self.begun(self.folder):
            (self.folder / _RUN).write_text(json.dumps(now), encoding="utf-8")
            return []
        then = self._json(self.folder / _RUN)
        if isinstance(then, dict) and then.get(_BATCH) in range(1, now[_BATCH]):  # what affords more affords these
            self.batch_tokens = now[_BATCH] = then[_BATCH]
        if then != now:
            return list(_differences(then, now))
        numbers = sorted(int(found[1]) for path in self.folder.iterdir() if (found := _ENTRY.fullmatch(path.name)))
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
            raise self._damaged(self.folder / f"entry-{numbers[-1]:05d}")
        self.entries = [self._entry(number) for number in numbers]
        self._before = self.entries[-1].seconds
        for number in numbers[:-1]:
            shutil.rmtree(self._path(number) / _STREAM, ignore_errors=True)
        return []

    def fits(self, identity: Mapping[str, Any]) -> bool:
        """Whether `open` finds nothing that is damaged or of another run."""
        try:
            return not Journal(self.folder).open(identity)
        except CheckpointError:
            return False

    def close(self) -> None:
        """Forget everything, so that nothing can be gone on from."""
        (self.folder / _RUN).unlink(missing_ok=True)
        for path in self.folder.glob("entry-*"):
            shutil.rmtree(path)

    @property
    def blocks(self) -> int:
        """How many blocks are finished."""
        return self.entries[-1].blocks if self.entries else 0

    def add(self, entry: Entry, stream: Mapping[str, tuple[Spec, Iterable[Tensor]]], part: Path | None = None) -> None:
        """Put an entry on the disk, and drop the hidden states of the one before; `part` is its block's file.

        `stream` has what each tensor is, and its rows, some after the others.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        entry.seconds = self._before + time.perf_counter() - self._start
        path, draft = self._path(entry.blocks), self.folder / "entry.part"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            if stream:
                (draft / _STREAM).mkdir()
                specs = {name: spec for name, (spec, _) in stream.items()}
                with Stream(draft / _STREAM, specs, largest=sum(spec.nbytes for spec in specs.values())) as file:
                    for name, (_, rows) in stream.items():
                        file.put_rows(name, rows)
            if entry.orders:
                save_tensors(entry.orders, draft / _ORDERS)
            facts = {key: value for key, value in asdict(entry).items() if key != "orders"}
            (draft / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
            checks = {str(file.relative_to(draft)): _check(file) for file in draft.rglob("*") if file.is_file()}
            if part is not None:
                flush(part)
                flush(part.parent)
                checks[f"../{part.relative_to(self.folder)}"] = _check(part)
            (draft / _CHECKS).write_text(json.dumps(checks), encoding="utf-8")
            flush(draft)
            with deferred():  # who is told how many are kept is told of this one too
                draft.rename(path)
                self.entries.append(entry)
            flush(self.folder)
            for before in self.entries[-2:-1]:
                shutil.rmtree(self._path(before.blocks) / _STREAM, ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error

    def stream(self) -> dict[str, Iterator[Tensor]]:
        """The hidden states that enter the first block that is not finished, window by window."""
        shards = Shards.of_file(self._path(self.blocks) / _STREAM / "model.safetensors")
        return {name: (window for piece in shards.pieces(name) for window in piece) for name in shards.names}

    def lacks_room(self, stream: int, output: int) -> str | None:
        """Say so if the disk has no room for `output` bytes and twice those of the stream (one goes, one comes)."""
        free = shutil.disk_usage(self.folder).free
        if free >= 2 * stream + output:
            return None
        return (
            f"No journal is kept: {self.folder.parent} has {free / 1e9:.1f} GB free, the output takes up to "
            f"{output / 1e9:.1f} GB, and hidden states twice {stream / 1e9:.1f} GB; interrupted, this run is lost"
        )

    def _entry(self, number: int) -> Entry:
        path = self._path(number)
        try:
            for name, check in self._json(path / _CHECKS).items():
                gone = name.startswith(_STREAM) and self._path(number + 1).exists()
                if not gone and _check(path / name) != check:
                    raise self._damaged(path / name)
            orders = Shards.of_file(path / _ORDERS) if (path / _ORDERS).exists() else None
            return Entry(
                **self._json(path / _FACTS), orders={name: orders.read(name) for name in orders.names} if orders else {}
            )
        except (OSError, ModelError, AttributeError, TypeError) as error:
            raise self._damaged(path) from error

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(path) from error
        return found

    def _damaged(self, path: Path) -> CheckpointError:
        return CheckpointError(
            f"{path.resolve()}: what an interrupted run has kept is damaged; start anew with --overwrite, or delete "
            f"{self.folder}"
        )

    def _path(self, number: int) -> Path:
        return self.folder / f"entry-{number:05d}"


def identity_of(record: RunRecord, folder: Path) -> dict[str, Any]:
    """What makes a run this very one and no other: model, recipe, calibration tokens, place, and versions."""
    mask = record.recipe.get("mask")
    return {
        "versions": versions(),
        "model": {"name": record.source["model"], "revision": record.source["revision"], **_files(folder)},
        "recipe": record.recipe,
        "mask file": _sha256(Path(mask)) if mask else None,
        "calibration": record.calibration,
        "computing": {"device": record.device, "dtype": record.dtype, "orders": record.orders},
        _BATCH: record.batch_tokens,
    }


def _files(folder: Path) -> dict[str, Any]:
    """Configuration, index and code by content; weights too up to 1 GiB, larger ones by header, size and mtime."""
    weights = sorted(folder.glob("*.safetensors"))
    others = [path for path in folder.iterdir() if path.suffix == ".py" or path.name in _READ]
    whole = sum(path.stat().st_size for path in weights) <= _READ_WHOLE
    found = {path.name: _sha256(path) for path in (*sorted(others), *(weights if whole else ()))}
    for path in () if whole else weights:
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
        stat = path.stat()
        found[path.name] = f"{hashlib.sha256(header).hexdigest()[:12]}, {stat.st_size} bytes, {stat.st_mtime_ns}"
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path) -> int:
    """CRC-32 of a file: what is gone on from must be what was written."""
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value


def _differences(then: object, now: object) -> Iterator[str]:
    """Say of the first few values that differ what they were and are."""
    before, after = dict(_flat(then)), dict(_flat(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in names[:_SHOWN]:
        yield f"{name} was {_short(before.get(name))}, now {_short(after.get(name))}"
    if len(names) > _SHOWN:
        yield f"and {len(names) - _SHOWN} more"


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    else:
        yield name, value


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return f"{text[:12]}..."
    return text if len(text) <= 60 else f"{text[:57]}..."
