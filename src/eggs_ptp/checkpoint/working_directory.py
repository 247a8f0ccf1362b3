"""Working directory: the hidden folder next to an output in which one process at a time builds that output."""

import ctypes
import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from eggs_ptp.errors import CheckpointError

_LOCK_FILE = "lock"
_RENAME_EXCHANGE = 2  # flag of renameat2(2)
_AT_FDCWD = -100  # renameat2(2): relative paths start from the current folder


class WorkingDirectory:
    """The folder `.NAME.draft` next to the output NAME, held by a file lock.

    The folder survives a process that is killed; the lock does not.

    Attributes:
        output: The folder that will be the output.
        path: The working directory.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(f".{output.name}.draft")
        self._lock: int | None = None

    def acquire(self) -> None:
        """Create the folder if it is missing, and lock it for this process.

        Raises:
            CheckpointError: Another process holds it, or the system, such as Windows, has no POSIX locks.
            OSError: It cannot be created or locked.
        """
        try:
            import fcntl
        except ImportError:
            raise CheckpointError(
                f"{self.output}: writing folders needs the file locks of Linux and macOS, which this system lacks; "
                "run eggs there, or on Windows in WSL"
            ) from None
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)
            lock_path = self.path / _LOCK_FILE
            try:
                lock = os.open(lock_path, os.O_CREAT | os.O_RDWR, 0o600)
            except FileNotFoundError:  # the process that held the folder has just removed it
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), lock_path.stat()):
                        self._lock = lock
                        break
            except BlockingIOError:
                os.close(lock)
                raise CheckpointError(
                    f"{self.output}: another run is writing to it (it holds {self.path}); wait until it ends, or pass "
                    "another folder"
                ) from None
            except OSError:
                os.close(lock)
                raise
            os.close(lock)
        self._remove_released()

    def clear(self) -> None:
        """Delete everything in the folder except the lock."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK_FILE:
                path.unlink()

    def publish(self, folder: Path) -> None:
        """Rename a folder to the output, which must be missing or empty, in one step.

        Args:
            folder: The complete folder.

        Raises:
            CheckpointError: Another process has written to the output meanwhile.
        """
        try:
            folder.rename(self.output)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise CheckpointError(
                f"{self.output}: is no longer empty; pass --overwrite to replace it, or move its new files away"
            ) from error

    def release(self, *, keep: bool) -> None:
        """Unlock the folder, and delete it unless it is to be kept; nothing happens if this process does not hold it.

        Args:
            keep: Keep the folder and its files.
        """
        if self._lock is None:
            return
        if not keep:
            # Renamed first: as soon as its name is free, the next process may create a folder that must not be deleted.
            released = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            with suppress(OSError):
                self.path.rename(released)
            shutil.rmtree(released, ignore_errors=True)
        os.close(self._lock)

    def _remove_released(self) -> None:
        """Delete what processes left that were killed between renaming their folder and deleting it."""
        for path in self.path.parent.iterdir():
            if re.fullmatch(rf"{re.escape(self.path.name)}\.\d+", path.name):
                shutil.rmtree(path, ignore_errors=True)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at a path, including mounts of the same file system.

    `os.path.ismount` does not see the latter, so /proc/self/mountinfo is read too where there is one.
    """
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        mountinfo = ""
    fields = (line.split()[4] for line in mountinfo.splitlines())
    mount_points = (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), field) for field in fields)
    return os.path.ismount(path) or str(path) in mount_points


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step.

    Returns:
        Whether they are swapped; False if the system cannot do it, which leaves both as they are.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)


def flush(path: Path) -> None:
    """Write a file, or a folder with everything in it, from the system's caches to the disk (fsync).

    Raises:
        OSError: The disk is full or fails.
    """
    if path.is_dir():
        for child in path.iterdir():
            flush(child)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
