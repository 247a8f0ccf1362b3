"""Staging folder: an output is written next to its final path, and moved there once it is complete."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from humanize import naturalsize
from torch import Tensor

from eggs_ptp.checkpoint.copied_files import files_to_copy
from eggs_ptp.checkpoint.journal import Journal, run_identity
from eggs_ptp.checkpoint.run_record import RunRecord
from eggs_ptp.checkpoint.signals import deferred_signals
from eggs_ptp.checkpoint.working_directory import WorkingDirectory, exchange, flush, is_mount_point
from eggs_ptp.engine.tensors.reader import CheckpointReader, save_tensors
from eggs_ptp.engine.tensors.writer import SafetensorsWriter, TensorSpec
from eggs_ptp.errors import (
    CalibrationError,
    CheckpointError,
    MethodError,
    ModelError,
    NumericsError,
    PatternError,
    RecipeError,
)
from eggs_ptp.models.path_validation import TEMPLATES

MANIFEST = "eggs.json"
ORDERS = "eggs/orders.safetensors"
CARD = "README.md"
_INDEX = "model.safetensors.index.json"
_MODEL_CONFIG = "config.json"
MAX_SINGLE_FILE_BYTES = 2 * 1024**3  # checkpoints of at most this many bytes become a single model.safetensors
# Errors that the same command would end with again, so that keeping its finished blocks is no use.
_REPEATABLE_ERRORS = (CalibrationError, MethodError, NumericsError, PatternError, RecipeError)

RowTransform = Callable[[str, Iterable[Tensor]], Iterable[Tensor]]
"""Takes the name of a tensor and its rows, a few at a time, and returns the rows to store."""


class StagingFolder:
    """Collects an output folder, and puts it in place once it is complete; a context manager.

    Use it as `with StagingFolder(output) as staging: ...; staging.finish(...)`. If the `with` block ends without
    `finish` or `publish`, everything written is deleted, and a previous output is unchanged. A run that keeps a journal
    and has finished a block is an exception: its working directory stays, and the same run resumes from it.

    Attributes:
        output: The path of the output, with links resolved.
        folder: The folder to write to.
        journal: The journal of the run, once `open_journal` has opened it.

    Args:
        output: The folder to write.
        overwrite: Replace a model folder that is there.
        journal: Keep the finished blocks of a run that does not reach its end.
        config: The file by which a folder that may be replaced is recognised; that of a model by default.

    Raises:
        CheckpointError: The output exists and is not empty (without `overwrite`), is no model folder, or cannot be
            written; another process is writing it; or it has an interrupted run (without `overwrite`).
    """

    def __init__(
        self, output: Path, *, overwrite: bool = False, journal: bool = False, config: str = _MODEL_CONFIG
    ) -> None:
        try:
            self.output = output.resolve()  # links, and the current folder given as ".", cannot be renamed
        except RuntimeError as error:  # Python 3.11 and 3.12, if links form a ring
            raise CheckpointError(f"{output}: a link that leads nowhere; pass another folder") from error
        _check_output(output, self.output, overwrite=overwrite, config=config)
        self.journal: Journal | None = None
        self._overwrite = overwrite
        self._keeps_journal = journal
        self._published = False
        self._working_directory = WorkingDirectory(self.output)
        self._path = self._working_directory.path
        self._blocks = self._path / "blocks"
        self._previous = self._path / "previous"
        self.folder = self._path / "folder"

    def __enter__(self) -> "StagingFolder":
        parent = self.output.parent
        self._created_parents = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            try:
                with deferred_signals():
                    parent.mkdir(parents=True, exist_ok=True)
                    self._working_directory.acquire()
                self._prepare()
            except BaseException:
                with deferred_signals():
                    self._release(keep=Journal.exists(self._path))
                raise
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred_signals():
            self._close(error)

    def open_journal(self, record: RunRecord, source: Path) -> Journal | None:
        """Open the journal of this run, or begin one.

        Args:
            record: The record of the run.
            source: The folder of the model that is pruned.

        Returns:
            The journal; None if the run keeps none.

        Raises:
            CheckpointError: There is an interrupted run that differs from this one, or is damaged (without
                `overwrite`).
        """
        if not self._keeps_journal:
            return None
        journal = Journal(self._path)
        identity = run_identity(record, source)
        if self._overwrite and not journal.matches(identity):
            self.discard_journal(journal)
        try:
            differences = journal.open(identity)
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written ({error.strerror})") from error
        if differences:
            raise CheckpointError(
                f"{self.output}: an interrupted run in {self._path} differs from this one "
                f"({'; '.join(differences)}); repeat its command to resume it, or start again with --overwrite or by "
                "deleting that folder"
            )
        self.journal = journal
        return journal

    def discard_journal(self, journal: Journal) -> None:
        """Delete a journal with all finished blocks, and keep none for this run unless another one is opened."""
        journal.delete()
        shutil.rmtree(self._blocks)
        self._blocks.mkdir()
        self.journal = None

    @property
    def finished_bytes(self) -> int:
        """Size of the blocks that an interrupted run has written."""
        return sum(path.stat().st_size for path in self._blocks.glob("block-*.safetensors"))

    def write_block(self, index: int, tensors: Mapping[str, Tensor]) -> Path:
        """Write the tensors of one block to a file that appears once it is complete.

        Args:
            index: Number of the block, from 0.
            tensors: Its tensors, by the names that they are stored under.

        Returns:
            The file.

        Raises:
            CheckpointError: The file cannot be written.
        """
        path = self._blocks / f"block-{index:05d}.safetensors"
        incomplete = path.with_suffix(".part")
        save_tensors(tensors, incomplete)
        try:
            incomplete.rename(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
        return path

    def finish(
        self,
        reader: CheckpointReader,
        permutations: Mapping[str, Tensor],
        manifest: Mapping[str, object],
        card: str,
        transform: RowTransform = lambda _, rows: rows,
    ) -> None:
        """Add everything that is not in a block, and move the folder into place.

        Names and shapes of tensors are those that the source stores. Config, generation config, tokenizer and licence
        files are the source's, byte for byte.

        Args:
            reader: The source model.
            permutations: Channel permutations to store, by the name of their channel space or matrix.
            manifest: Content of `eggs.json`.
            card: Content of `README.md`.
            transform: Changes the tensors outside of blocks; by default they stay as they are.

        Raises:
            CheckpointError: Something cannot be written; a previous output is unchanged.
        """
        try:
            self._write_weights(reader.as_stored, transform)
            if permutations:
                (self.folder / "eggs").mkdir()
                save_tensors(permutations, self.folder / ORDERS)
            self.copy_files(reader.folder)
            (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            (self.folder / CARD).write_text(card, encoding="utf-8")
            self.publish()
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written ({error.strerror})") from error

    def copy_files(self, source: Path) -> None:
        """Copy a folder's config, generation config, tokenizer and licence files, byte for byte.

        Args:
            source: The folder to copy from.

        Raises:
            ModelError: A file cannot be read.
        """
        for file in files_to_copy(source):
            try:
                content = file.read_bytes()
            except OSError as error:
                raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
            target = self.folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        if (source / TEMPLATES).is_dir():
            shutil.copytree(source / TEMPLATES, self.folder / TEMPLATES)

    def publish(self) -> None:
        """Move the folder into place, in one step where the system can."""
        replaces = self.output.exists()
        if replaces or self.journal:  # a previous output, or finished blocks, are deleted next: worth waiting for
            flush(self.folder)
        with deferred_signals():
            if not self._overwrite:
                self._working_directory.publish(self.folder)
            elif not (replaces and exchange(self.folder, self.output)):
                self._replace_in_two_steps()
            self._published = True

    def _close(self, error: BaseException | None) -> None:
        """Delete or keep the working directory, and name the file of an error that the system raised."""
        is_hopeless = self.journal is not None and isinstance(error, _REPEATABLE_ERRORS)
        keep = not self._published and Journal.exists(self._path) and not is_hopeless
        raised = error
        if isinstance(error, OSError):
            raised = CheckpointError(f"{error.filename or self.output}: {error.strerror}")
        if keep and self.journal and raised:
            raised.add_note(
                f"{self.journal.blocks} finished blocks are kept in {self._path}; the same command resumes from there"
            )
        self._release(keep=keep)
        if raised is not error and raised:
            raise raised from error

    def _release(self, *, keep: bool) -> None:
        self._working_directory.release(keep=keep or self._holds_previous())
        with suppress(OSError):  # not empty: the output is there
            for folder in self._created_parents:
                folder.rmdir()

    def _prepare(self) -> None:
        """Empty the working directory, except for what a run can resume from."""
        if self._holds_previous():
            self._previous.rename(self.output)
        if not Journal.exists(self._path):
            self._working_directory.clear()
        elif not self._keeps_journal:
            if not self._overwrite:
                raise CheckpointError(
                    f"{self.output}: an interrupted run is kept in {self._path}; repeat its command to resume it, or "
                    "discard it with --overwrite or by deleting that folder"
                )
            self._working_directory.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._blocks.mkdir(exist_ok=True)

    def _write_weights(self, reader: CheckpointReader, transform: RowTransform) -> None:
        """Assemble the block files and all other tensors to one file, or to one file a block with an index."""
        block_files = sorted(self._blocks.glob("block-*.safetensors"))
        blocks = {path: CheckpointReader.of_file(path) for path in block_files}
        in_blocks = {name: block for block in blocks.values() for name in block.names}
        others = [name for name in reader.names if name not in in_blocks]
        specs = {name: TensorSpec(reader.dtype(name), reader.shape(name)) for name in others}
        total = sum(reader.bytes(name) for name in reader.names)
        if total <= MAX_SINGLE_FILE_BYTES:
            specs |= {name: TensorSpec(block.dtype(name), block.shape(name)) for name, block in in_blocks.items()}
            with SafetensorsWriter(self.folder, {name: specs[name] for name in reader.names}) as writer:
                for name in reader.names:
                    block = in_blocks.get(name)
                    rows = [block.read(name)] if block else transform(name, reader.pieces(name))
                    writer.put_rows(name, rows)
            return
        count = len(block_files) + 1
        weight_map = {}
        for number, path in enumerate(block_files, 1):
            target = f"model-{number:05d}-of-{count:05d}.safetensors"
            weight_map.update(dict.fromkeys(blocks[path].names, target))
            try:
                os.link(path, self.folder / target)  # the journal needs its own file until the output is in place
            except OSError:
                shutil.copyfile(path, self.folder / target)
        target = f"model-{count:05d}-of-{count:05d}.safetensors"
        with SafetensorsWriter(self.folder, specs, largest=total) as writer:
            for name in others:
                writer.put_rows(name, transform(name, reader.pieces(name)))
        (self.folder / "model.safetensors").rename(self.folder / target)
        weight_map.update(dict.fromkeys(others, target))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _replace_in_two_steps(self) -> None:
        """Move a previous output away and the folder into place; if that fails, move the previous output back."""
        try:
            if self.output.exists():
                self.output.rename(self._previous)
            self.folder.rename(self.output)
        except BaseException:
            if self._previous.exists():
                self._previous.rename(self.output)
            raise

    def _holds_previous(self) -> bool:
        """Whether the only copy of a previous output is here: a process was killed between two renames."""
        return self._previous.exists() and not self.output.exists()


def _check_output(given: Path, output: Path, *, overwrite: bool, config: str) -> None:
    """Refuse outputs that cannot be written or must not be replaced.

    Args:
        given: The path as the caller gave it, for messages.
        output: The same with links resolved.
        overwrite: A folder of the same kind may be replaced.
        config: The file that a folder of this kind has.

    Raises:
        CheckpointError: A mount point, a file, or a folder that is not empty (with `overwrite`: that has no config).
    """
    if is_mount_point(output):
        raise CheckpointError(
            f"{given}: a mount point, which cannot be replaced as a whole; write to a folder below it"
        )
    if not output.exists():  # not the given path, which may lead through folders that are not there yet
        return
    if not output.is_dir():
        raise CheckpointError(f"{given}: expected a folder to write to, got a file; pass another path")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{given}: not empty; pass --overwrite to replace it, or another folder")
    if not (output / config).exists():
        kind = "model" if config == _MODEL_CONFIG else "adapter"
        raise CheckpointError(
            f"{given}: --overwrite replaces {kind} folders only, and this one has no {config}; pass another folder"
        )


def check_space(output: Path, reader: CheckpointReader, *, finished_bytes: int = 0) -> None:
    """Refuse a disk that cannot hold the output, from the headers of the source's weights.

    Args:
        output: The folder to write.
        reader: The source model.
        finished_bytes: What an interrupted run has already written.

    Raises:
        CheckpointError: Weights of the size of the source's do not fit.
    """
    stored = reader.as_stored
    sizes = {name: stored.bytes(name) for name in stored.names}
    needed = sum(sizes.values())
    if needed <= MAX_SINGLE_FILE_BYTES:  # finished blocks are copied to a single file, not linked
        needed += sum(size for name, size in sizes.items() if re.search(r"\.\d+\.", name))
    needed -= finished_bytes
    resolved = output.resolve()
    disk = next(folder for folder in (resolved, *resolved.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise CheckpointError(
            f"{output}: expected {naturalsize(needed)} free on its disk for the pruned weights, got "
            f"{naturalsize(free)}; free some, or write to another disk"
        )


def check_apart(output: Path, source: Path, *inputs: Path) -> None:
    """Refuse an output inside the source model, and one that would replace the source or another input.

    Args:
        output: The folder to write.
        source: The folder of the model.
        inputs: Other files and folders that are read.

    Raises:
        CheckpointError: The output is in the source, or the source or an input is in the output.
    """
    if source.resolve() in (output.resolve(), *output.resolve().parents):
        raise CheckpointError(f"{output}: inside the model's own folder {source}; write to another folder")
    check_survives(output, source, *inputs)


def check_survives(output: Path, *inputs: Path) -> None:
    """Refuse to replace a folder that contains an input.

    Args:
        output: The folder to write.
        inputs: Files and folders that are read.

    Raises:
        CheckpointError: An input is in the output.
    """
    for path in inputs:
        if output.resolve() in path.resolve().parents:
            raise CheckpointError(f"{output}: contains {path}, which would be deleted; write to another folder")
