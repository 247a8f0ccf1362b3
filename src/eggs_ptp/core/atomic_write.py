"""Atomic writes: a file appears complete, or not at all."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eggs_ptp.errors import CheckpointError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it replaces `path` by one rename, on failure it is deleted.

    The folder is created if it is missing. A path that exists but is not a regular file, such as /dev/stdout, is
    written to directly.

    Args:
        path: The file to write.

    Raises:
        CheckpointError: The file cannot be written; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    if path.exists() and not path.is_file() and not path.is_dir():
        temporary = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary != path:
            temporary.replace(path)
    except BaseException as error:
        if temporary != path:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    Args:
        path: The file to write.
        text: Its content.

    Raises:
        CheckpointError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
