"""Kinds of faults for benchmarks/faults.py: what is done to a run, when, and how it is undone."""

import ctypes
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_BOTH = ("prune", "export")
_LARGE = 1 << 24  # bytes of a disk with enough space


class FaultMissed(Exception):  # noqa: N818 - not an error
    """The run ended before the fault happened."""


class RunFiles(NamedTuple):
    """A run that a fault is drawn for.

    Attributes:
        rng: Draws the fault.
        disk: The folder that the run writes to.
        source: The folder that it reads.
        seconds: How long an undisturbed run takes.
    """

    rng: random.Random
    disk: Path
    source: Path
    seconds: float


def _nothing() -> None:
    pass


@dataclass
class Fault:
    """One fault.

    Attributes:
        detail: Describes it.
        before: Called before the run; may start another run.
        prepare: Called in the process of the run, before the command.
        strike: Called with the process id, `delay` seconds after its start.
        delay: Seconds.
        undo: Called after the run.
        needs_overwrite: Whether the fault damages the journal, so that the command can only be repeated with
            --overwrite.
    """

    detail: str
    before: Callable[[Callable[[], int]], None] | None = None
    prepare: Callable[[], None] = _nothing
    strike: Callable[[int], None] | None = None
    delay: float = 0.0
    undo: Callable[[], None] = _nothing
    needs_overwrite: bool = False


@dataclass
class Kind:
    """A kind of fault.

    Attributes:
        draw: Draws a fault of this kind for a run.
        verbs: The verbs it applies to.
        is_possible: Whether this machine permits it.
    """

    draw: Callable[[RunFiles], Fault]
    verbs: tuple[str, ...] = _BOTH
    is_possible: Callable[[], bool] = lambda: True


def _signal(number: signal.Signals) -> Callable[..., Fault]:
    def draw(run: RunFiles) -> Fault:
        delay = run.rng.uniform(0.02, run.seconds)
        detail = f"after {delay / run.seconds:.0%} of a run's time"
        return Fault(detail, strike=lambda process: os.kill(process, number), delay=delay)

    return draw


def _size_limit(run: RunFiles) -> Fault:
    limit = int(10 ** run.rng.uniform(3, 4.9))

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return Fault(f"no file over {limit} bytes", prepare=prepare)


def _small_disk(run: RunFiles) -> Fault:
    free = 4096 * run.rng.randint(1, 36 if _is_pruned(run.source) else 110)
    _mount(run.disk, _LARGE)

    def before(_start: object) -> None:
        used = sum(4096 * (1 + path.stat().st_size // 4096) for path in run.disk.rglob("*"))
        _remount(run.disk, used + free)

    return Fault(f"a disk with {free // 1024} KiB free", before=before, undo=lambda: _remount(run.disk, _LARGE))


def _full_at_journal(run: RunFiles) -> Fault:
    entry = run.rng.randint(0, 3)
    free = 4096 * run.rng.randint(0, 12)
    _mount(run.disk, _LARGE)
    filler = run.disk / "filler"

    def prepare() -> None:
        from eggs_ptp.checkpoint.journal import Journal

        add = Journal.add

        def fill_and_add(self: Journal, *args: Any, **kwargs: Any) -> None:
            if len(self.entries) == entry:
                filler_bytes = shutil.disk_usage(run.disk).free - free
                filler.write_bytes(b"\0" * max(0, filler_bytes))
            add(self, *args, **kwargs)

        Journal.add = fill_and_add  # type: ignore[method-assign]

    return Fault(f"{free} bytes free for entry {entry}", prepare=prepare, undo=lambda: filler.unlink(missing_ok=True))


def _permission(run: RunFiles) -> Fault:
    delay = run.rng.uniform(0.0, run.seconds)
    read_only: list[Path] = []

    def strike(_process: int) -> None:
        for path in (run.disk, *(path for path in run.disk.rglob("*") if path.is_dir())):
            with suppress(FileNotFoundError):  # the run has just moved it
                path.chmod(0o500)
                read_only.append(path)

    def undo() -> None:
        for path in read_only:
            if path.exists():
                path.chmod(0o700 if ".draft" in str(path) else 0o755)

    return Fault(
        f"folders read-only after {delay / run.seconds:.0%}",
        prepare=_drop_privileges,
        strike=strike,
        delay=delay,
        undo=undo,
    )


def _unreadable(run: RunFiles) -> Fault:
    victims = (path for path in run.source.iterdir() if path.suffix in (".safetensors", ".json"))
    victim = run.rng.choice(sorted(victims))
    victim.chmod(0)
    return Fault(f"{victim.name} unreadable", prepare=_drop_privileges, undo=lambda: victim.chmod(0o644))


def _truncated(run: RunFiles) -> Fault:
    victim = run.rng.choice(sorted(run.source.glob("*.safetensors")))
    content = victim.read_bytes()
    delay = run.rng.uniform(0.0, run.seconds)
    length = run.rng.randrange(len(content))
    return Fault(
        f"{victim.name} truncated to {length} of {len(content)} bytes after {delay / run.seconds:.0%}",
        strike=lambda _process: os.truncate(victim, length),
        delay=delay,
        undo=lambda: victim.write_bytes(content),
    )


def _read_error(run: RunFiles) -> Fault:
    number = run.rng.randrange(40 if _is_pruned(run.source) else 120)

    def prepare() -> None:
        real_preadv = os.preadv
        calls = iter(range(1_000_000))

        def preadv(*args: Any) -> int:
            if next(calls) == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real_preadv(*args)

        os.preadv = preadv  # type: ignore[assignment]

    return Fault(f"read {number} of tensors fails with EIO", prepare=prepare)


def _header(run: RunFiles) -> Fault:
    victim = run.rng.choice(sorted(run.source.glob("*.safetensors")))
    content = victim.read_bytes()
    position = run.rng.randrange(8 + int.from_bytes(content[:8], "little"))
    changed = bytearray(content)
    changed[position] ^= run.rng.randrange(1, 256)
    victim.write_bytes(bytes(changed))
    return Fault(f"{victim.name}, header byte {position}", undo=lambda: victim.write_bytes(content))


def _not_a_number(run: RunFiles) -> Fault:
    victim = run.rng.choice(sorted(run.source.glob("*.safetensors")))
    content = victim.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    position = start + 4 * run.rng.randrange((len(content) - start) // 4 - 8)
    size = 4 * run.rng.randint(1, 8)
    victim.write_bytes(content[:position] + b"\xff" * size + content[position + size :])
    return Fault(f"{victim.name}, {size} bytes of 0xff at {position}", undo=lambda: victim.write_bytes(content))


def _corrupt_journal(run: RunFiles) -> Fault:
    """Kill a run once it has journal entries, and change a byte of them."""
    share = run.rng.random()
    flipped_bits = run.rng.randrange(1, 256)
    entries_before_kill = run.rng.randint(1, 2)

    def before(start: Callable[[], int]) -> None:
        process = start()
        while len(list(run.disk.glob(".out.draft/entry-?????"))) < entries_before_kill:
            time.sleep(0.001)
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        staging = run.disk / ".out.draft"
        if not (entries := sorted(staging.glob("entry-?????"))):
            raise FaultMissed
        files = sorted([*entries[-1].rglob("*.*"), *(staging / "blocks").glob("*.safetensors")])
        sizes = [path.stat().st_size for path in files]
        position = int(share * sum(sizes))
        for path, size in zip(files, sizes, strict=True):
            if position < size:
                content = bytearray(path.read_bytes())
                content[position] ^= flipped_bits
                path.write_bytes(bytes(content))
                return
            position -= size

    detail = f"byte at {share:.0%} of the files of {entries_before_kill} entries"
    return Fault(detail, before=before, needs_overwrite=True)


def _is_pruned(folder: Path) -> bool:
    return (folder / "eggs.json").exists()


def _drop_privileges() -> None:
    """Drop root's capabilities, so that file permissions apply to it."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        no_capabilities = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, no_capabilities):
            raise OSError(ctypes.get_errno(), "capset")


def _can_mount() -> bool:
    if os.geteuid():
        return False
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)  # noqa: S607
        unmount(Path(folder))
        return done.returncode == 0


def _mount(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)  # noqa: S607


def _remount(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)  # noqa: S607


def unmount(disk: Path) -> None:
    """Unmount a small disk, if there is one."""
    if os.path.ismount(disk):
        subprocess.run(["umount", disk], check=True)  # noqa: S607


KINDS: dict[str, Kind] = {
    "kill": Kind(_signal(signal.SIGKILL)),
    "interrupt": Kind(_signal(signal.SIGINT)),
    "terminate": Kind(_signal(signal.SIGTERM)),
    "file size limit": Kind(_size_limit),
    "disk full": Kind(_small_disk, is_possible=_can_mount),
    "disk full in the journal": Kind(_full_at_journal, ("prune",), _can_mount),
    "permission lost": Kind(_permission),
    "source unreadable": Kind(_unreadable),
    "source cut short": Kind(_truncated),
    "read error": Kind(_read_error),
    "corrupt header": Kind(_header),
    "corrupt weights (NaN)": Kind(_not_a_number, ("prune",)),
    "corrupt journal": Kind(_corrupt_journal, ("prune",)),
}
