"""Workplace: the hidden folder beside an output in which one process at a time makes it."""

import ctypes
import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from eggs_ptp.errors import CheckpointError

_LOCK = "lock"
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD: paths are as they are


class Workplace:
    """The folder `.NAME.draft` beside the output NAME; it outlives the process that has it, its lock does not."""

    def __init__(self, output: Path) -> None:
        self.output, self.path = output, output.with_name(f".{output.name}.draft")
        self._lock: int | None = None

    def enter(self) -> None:
        """Take the folder, made where it is missing.

        Raises:
            CheckpointError: another process has it, or this system, as Windows, has no POSIX locks.
            OSError: it cannot be made or locked.
        """
        try:
            import fcntl
        except ImportError:
            raise CheckpointError(
                f"{self.output}: folders are written with the file locks of Linux and macOS, which this system lacks; "
                "run eggs there, or on Windows in WSL"
            ) from None
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)
            try:
                lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            except FileNotFoundError:  # who had it has just left
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), (self.path / _LOCK).stat()):
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
        for left in self.path.parent.iterdir():  # by a process that was killed while it cleared up
            if re.fullmatch(rf"{re.escape(self.path.name)}\.\d+", left.name):
                shutil.rmtree(left, ignore_errors=True)

    def clear(self) -> None:
        """Empty it, but for the lock."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()

    def give(self, folder: Path) -> None:
        """Move a folder to where the output belongs and nothing is, or an empty folder, in one step.

        Raises:
            CheckpointError: something has come there meanwhile.
        """
        try:
            folder.rename(self.output)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise CheckpointError(
                f"{self.output}: not empty any more; pass --overwrite to replace it, or move away what has come there"
            ) from error

    def leave(self, *, keep: bool) -> None:
        """Let others in; without `keep` nothing of it stays. Does nothing where another process has it."""
        if self._lock is None:
            return
        if not keep:
            # Out of the way in one step, so that what the next process makes under its name is not removed with it.
            gone = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            with suppress(OSError):
                self.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        os.close(self._lock)


def is_mount(path: Path) -> bool:
    """Whether something is mounted there, of the same file system too, which `os.path.ismount` does not see."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        table = ""
    places = (re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in table.splitlines())
    return os.path.ismount(path) or str(path) in places


def exchange(one: Path, other: Path) -> bool:
    """Have two folders change places in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def flush(path: Path) -> None:
    """Have a file, or a folder with all that is in it, reach the disk.

    Raises:
        OSError: the disk is full or fails.
    """
    if path.is_dir():
        for inside in path.iterdir():
            flush(inside)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
