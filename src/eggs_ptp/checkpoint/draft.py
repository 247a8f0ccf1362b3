"""Draft: an output folder that is written beside its place and moved there when it is whole."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from torch import Tensor

from eggs_ptp.checkpoint.interruption import deferred
from eggs_ptp.checkpoint.journal import Journal, identity_of
from eggs_ptp.checkpoint.record import RunRecord
from eggs_ptp.checkpoint.stream import Spec, Stream
from eggs_ptp.checkpoint.workplace import Workplace, exchange, flush, is_mount
from eggs_ptp.engine.shards import Shards, save_tensors
from eggs_ptp.errors import (
    CalibrationError,
    CheckpointError,
    MethodError,
    ModelError,
    NumericsError,
    PatternError,
    RecipeError,
)
from eggs_ptp.models.fence import TEMPLATES

MANIFEST = "eggs.json"
ORDERS = "eggs/orders.safetensors"
CARD = "README.md"
_ONE_FILE = 2 * 1024**3  # checkpoints up to this many bytes become a single model.safetensors
_COPIED = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
_NAMED = ("LICENSE", "NOTICE")  # files that must go where the weights go
_OURS = {"model.safetensors.index.json", MANIFEST}
_REPEATED = (CalibrationError, MethodError, NumericsError, PatternError, RecipeError)  # the same run ends so again


class Draft:
    """A context manager: `with Draft(output) as draft: ...; draft.finish(...)`; without finish nothing stays.

    With `journal`, a run that has called `open_journal` and was interrupted after its first block keeps its workplace,
    from which the same run goes on.

    Raises:
        CheckpointError: the output exists and is not empty (without `overwrite`), or cannot be written; another
            process is writing it; or an interrupted run is in the way (without `overwrite`).
    """

    def __init__(self, output: Path, *, overwrite: bool = False, journal: bool = False) -> None:
        try:
            self.output = output.resolve()  # a link, or the current folder as ".", could not be moved
        except RuntimeError as error:  # Python 3.11 and 3.12 on a ring of links
            raise CheckpointError(f"{output}: a link that leads nowhere") from error
        if is_mount(self.output):
            raise CheckpointError(
                f"{output}: a mount point, which cannot be replaced as a whole; write to a folder in it"
            )
        if output.exists() and not output.is_dir():
            raise CheckpointError(f"{output}: expected a folder to write to, found a file")
        if output.is_dir() and any(output.iterdir()) and not overwrite:
            raise CheckpointError(f"{output}: not empty; pass --overwrite to replace it, or another folder")
        if output.is_dir() and overwrite and any(output.iterdir()) and not (output / "config.json").exists():
            raise CheckpointError(f"{output}: --overwrite replaces model folders only, and this has no config.json")
        self.journal: Journal | None = None
        self._overwrite, self._resumable, self._published = overwrite, journal, False
        self._place = Workplace(self.output)
        self.folder, self._blocks = self._place.path / "folder", self._place.path / "blocks"

    def __enter__(self) -> "Draft":
        parent = self.output.parent
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            try:
                with deferred():
                    parent.mkdir(parents=True, exist_ok=True)
                    self._place.enter()
                self._prepare()
            except BaseException:
                with deferred():
                    self._leave(keep=Journal.begun(self._place.path))
                raise
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred():
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        ours, path = self.journal is not None, self._place.path
        keep = not self._published and Journal.begun(path) and not (ours and isinstance(error, _REPEATED))
        raised = error
        if isinstance(error, OSError):
            raised = CheckpointError(f"{error.filename or self.output}: {error.strerror}")
        if keep and self.journal and raised:
            raised.add_note(
                f"{self.journal.blocks} finished blocks are kept in {path}; the same command goes on from there"
            )
        self._leave(keep=keep)
        if raised is not error and raised:
            raise raised from error

    def _leave(self, *, keep: bool) -> None:
        self._place.leave(keep=keep or self._holds_previous)
        with suppress(OSError):  # not empty: the output is there
            for folder in self._made:
                folder.rmdir()

    def _prepare(self) -> None:
        """Make room for what is to be written, and leave what may be gone on from."""
        if self._holds_previous:
            self._previous.rename(self.output)  # a process was killed between two renames
        if not Journal.begun(self._place.path):
            self._place.clear()
        elif not self._resumable:
            if not self._overwrite:
                raise CheckpointError(
                    f"{self.output}: an interrupted run is kept in {self._place.path}; repeat its command to go on "
                    "with it, or discard it with --overwrite or by deleting that folder"
                )
            self._place.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._blocks.mkdir(exist_ok=True)

    def open_journal(self, record: RunRecord, source: Path) -> Journal | None:
        """The journal of this very run, if one is to be kept.

        Raises:
            CheckpointError: an interrupted run, of something else, is in the way (without `overwrite`).
        """
        if not self._resumable:
            return None
        journal, identity = Journal(self._place.path), identity_of(record, source)
        if self._overwrite and not journal.fits(identity):
            self.drop_journal(journal)
        try:
            different = journal.open(identity)
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written ({error.strerror})") from error
        if different:
            raise CheckpointError(
                f"{self.output}: an interrupted run in {self._place.path} differs from this one "
                f"({'; '.join(different)}); repeat its command to go on with it, or start anew with --overwrite or by "
                "deleting that folder"
            )
        self.journal = journal
        return journal

    def drop_journal(self, journal: Journal) -> None:
        """Forget what is finished."""
        journal.close()
        shutil.rmtree(self._blocks)
        self._blocks.mkdir()
        self.journal = None

    def write_block(self, index: int, tensors: Mapping[str, Tensor]) -> Path:
        """Put one block's tensors on disk, in a file that is there only once it is whole."""
        path = self._blocks / f"block-{index:05d}.safetensors"
        part = path.with_suffix(".part")
        save_tensors(tensors, part)
        try:
            part.rename(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
        return path

    def finish(
        self,
        shards: Shards,
        orders: Mapping[str, Tensor],
        manifest: Mapping[str, object],
        card: str,
        change: Callable[[str, Iterable[Tensor]], Iterable[Tensor]] = lambda _, rows: rows,
    ) -> None:
        """Add everything that is not in a block, and move the folder into place.

        Tensors outside the blocks, some rows at a time as `change` gives them by name, config, generation config and
        tokenizer files are the source's own, byte for byte. Names and shapes are those that the source is stored by.

        Raises:
            CheckpointError: something cannot be written; the previous output is untouched.
        """
        try:
            self._gather(shards.as_stored, change)
            if orders:
                (self.folder / "eggs").mkdir()
                save_tensors(orders, self.folder / ORDERS)
            self.copy_files(shards.folder)
            (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            (self.folder / CARD).write_text(card, encoding="utf-8")
            self.publish()
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written ({error.strerror})") from error

    def copy_files(self, folder: Path) -> None:
        """Take over a folder's config, generation config, tokenizer files and licences, byte for byte."""
        for file in sorted(folder.iterdir()):
            named = file.suffix in _COPIED or file.name.startswith(_NAMED)
            if file.is_file() and named and file.name not in _OURS:
                try:
                    content = file.read_bytes()
                except OSError as error:
                    raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
                (self.folder / file.name).write_bytes(content)
        if (folder / TEMPLATES).is_dir():
            shutil.copytree(folder / TEMPLATES, self.folder / TEMPLATES)

    def publish(self) -> None:
        """Move the folder into place, in one step where the system can."""
        replaced = self.output.exists()
        if replaced or self.journal:  # what goes is worth more than the time that this takes
            flush(self.folder)
        with deferred():
            if not self._overwrite:
                self._place.give(self.folder)
            elif not (replaced and exchange(self.folder, self.output)):
                self._move()
            self._published = True

    def _gather(self, shards: Shards, change: Callable[[str, Iterable[Tensor]], Iterable[Tensor]]) -> None:
        """Turn the block files and the rest into model.safetensors, or into shards with an index."""
        blocks = sorted(self._blocks.glob("block-*.safetensors"))
        parts = {path: Shards.of_file(path) for path in blocks}
        inside = {name for part in parts.values() for name in part.names}
        rest = [name for name in shards.names if name not in inside]
        total = sum(shards.bytes(name) for name in shards.names)
        specs = {name: Spec(shards.dtype(name), shards.shape(name)) for name in rest}
        if total <= _ONE_FILE:
            holders = {name: part for part in parts.values() for name in part.names}
            specs |= {name: Spec(part.dtype(name), part.shape(name)) for name, part in holders.items()}
            with Stream(self.folder, {name: specs[name] for name in shards.names}) as stream:
                for name in stream.specs:
                    pruned = holders.get(name)
                    stream.put_rows(name, [pruned.read(name)] if pruned else change(name, shards.pieces(name)))
            return
        count = len(blocks) + 1
        where = {}
        for number, path in enumerate(blocks, 1):
            target = f"model-{number:05d}-of-{count:05d}.safetensors"
            where.update(dict.fromkeys(parts[path].names, target))
            try:
                os.link(path, self.folder / target)  # the journal keeps its own until all is done
            except OSError:
                shutil.copyfile(path, self.folder / target)
        target = f"model-{count:05d}-of-{count:05d}.safetensors"
        with Stream(self.folder, specs, largest=total) as stream:
            for name in rest:
                stream.put_rows(name, change(name, shards.pieces(name)))
        (self.folder / "model.safetensors").rename(self.folder / target)
        where.update(dict.fromkeys(rest, target))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _move(self) -> None:
        try:
            if self.output.exists():
                self.output.rename(self._previous)
            self.folder.rename(self.output)
        except BaseException:  # an interruption here must not lose the previous output either
            if self._previous.exists():
                self._previous.rename(self.output)
            raise

    @property
    def _holds_previous(self) -> bool:
        """Whether the previous output is here alone: it could not be moved back."""
        return self._previous.exists() and not self.output.exists()

    @property
    def _previous(self) -> Path:
        return self._place.path / "previous"


def check_apart(output: Path, source: Path, *read: Path) -> None:
    """Refuse to write into the source, and to replace it or anything else that is read: they must survive the run.

    Raises:
        CheckpointError: the output lies in the source, or one of them in the output.
    """
    if source.resolve() in (output.resolve(), *output.resolve().parents):
        raise CheckpointError(f"{output}: lies in the model's own folder {source}; write to another one")
    check_survives(output, source, *read)


def check_survives(output: Path, *read: Path) -> None:
    """Refuse to replace a folder that holds what is read.

    Raises:
        CheckpointError: it does.
    """
    for path in read:
        if output.resolve() in path.resolve().parents:
            raise CheckpointError(f"{output}: holds {path}, which would go with it; write to another one")
