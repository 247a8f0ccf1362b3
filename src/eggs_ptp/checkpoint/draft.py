"""Draft: an output folder that is written beside its place and moved there when it is whole."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from torch import Tensor

from eggs_ptp.engine.shards import Shards, save_tensors
from eggs_ptp.errors import CheckpointError

MANIFEST = "eggs.json"
ORDERS = "eggs/orders.safetensors"
CARD = "README.md"
_ONE_FILE = 2 * 1024**3  # checkpoints up to this many bytes become a single model.safetensors
_COPIED = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
_NAMED = ("LICENSE", "NOTICE")  # files that must go where the weights go
_OURS = {"model.safetensors.index.json", MANIFEST}


class Draft:
    """A context manager: `with Draft(output) as draft: ...; draft.finish(...)`; without finish nothing stays.

    Raises:
        CheckpointError: the output exists and is not empty (without `overwrite`), or cannot be written.
    """

    def __init__(self, output: Path, *, overwrite: bool = False) -> None:
        self.output = output.resolve()  # a link, or the current folder as ".", could not be moved
        if output.exists() and not output.is_dir():
            raise CheckpointError(f"{output}: expected a folder to write to, found a file")
        if output.is_dir() and any(output.iterdir()) and not overwrite:
            raise CheckpointError(f"{output}: not empty; pass --overwrite to replace it, or another folder")
        if output.is_dir() and overwrite and any(output.iterdir()) and not (output / "config.json").exists():
            raise CheckpointError(f"{output}: --overwrite replaces model folders only, and this has no config.json")

    def __enter__(self) -> "Draft":
        parent = self.output.parent
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.output.name}.", dir=parent))
        except OSError as error:
            raise CheckpointError(f"{self.output}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # not empty: the output is there
            for folder in self._made:
                folder.rmdir()

    def write_block(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Put one block's tensors on disk."""
        save_tensors(tensors, self.folder / f"block-{index:05d}.safetensors")

    def finish(
        self,
        shards: Shards,
        orders: Mapping[str, Tensor],
        manifest: Mapping[str, object],
        card: str,
        change: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    ) -> None:
        """Add everything that is not in a block, and move the folder into place.

        Tensors outside the blocks, by name as `change` leaves them, config, generation config and tokenizer files are
        the source's own, byte for byte.

        Raises:
            CheckpointError: something cannot be written; the previous output is untouched.
        """
        try:
            self._gather(shards, change)
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
                (self.folder / file.name).write_bytes(file.read_bytes())

    def publish(self) -> None:
        """Move the folder into place."""
        umask = os.umask(0)
        os.umask(umask)
        self.folder.chmod(0o777 & ~umask)  # mkdtemp makes it private
        self._move()

    def _gather(self, shards: Shards, change: Callable[[str, Tensor], Tensor]) -> None:
        """Turn the block files and the rest into model.safetensors, or into shards with an index."""
        blocks = sorted(self.folder.glob("block-*.safetensors"))
        parts = {path: Shards.of_file(path) for path in blocks}
        inside = {name for part in parts.values() for name in part.names}
        rest = [name for name in shards.names if name not in inside]
        total = sum(shards.bytes(name) for name in shards.names)
        if total <= _ONE_FILE:
            tensors = {name: part.read(name) for part in parts.values() for name in part.names}
            tensors.update({name: change(name, shards.read_sound(name)) for name in rest})
            save_tensors(tensors, self.folder / "model.safetensors")
            for path in blocks:
                path.unlink()
            return
        count = len(blocks) + 1
        where = {}
        for number, path in enumerate(blocks, 1):
            target = f"model-{number:05d}-of-{count:05d}.safetensors"
            where.update(dict.fromkeys(parts[path].names, target))
            path.rename(self.folder / target)
        target = f"model-{count:05d}-of-{count:05d}.safetensors"
        save_tensors({name: change(name, shards.read_sound(name)) for name in rest}, self.folder / target)
        where.update(dict.fromkeys(rest, target))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _move(self) -> None:
        aside = self.folder.with_name(f"{self.folder.name}.old")
        try:
            if self.output.exists():
                self.output.rename(aside)
            self.folder.rename(self.output)
        except BaseException:  # an interruption here must not lose the previous output either
            if aside.exists():
                aside.rename(self.output)
            raise
        shutil.rmtree(aside, ignore_errors=True)
