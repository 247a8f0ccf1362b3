"""Files that appear when they are whole."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eggs_ptp.errors import CheckpointError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft of `path` to write inside, which then takes its place in one step; if anything fails, nothing changes.

    The folder is made where it is missing. What is there and no file, such as /dev/stdout, is written to as it is.

    Raises:
        CheckpointError: it cannot be written there.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    if path.exists() and not path.is_file() and not path.is_dir():
        draft = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        if draft != path:
            draft.replace(path)
    except BaseException as error:
        if draft != path:
            with contextlib.suppress(OSError):
                draft.unlink()
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        CheckpointError: it cannot be written there.
    """
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
