"""Kinds of faults for benchmarks/faults.py: what is done to a run, when, and how it is mended."""

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
_LARGE = 1 << 24  # bytes of a disk that is large enough


class Missed(Exception):  # noqa: N818 - a signal, not an error
    """The run had ended before the fault came."""


class Scene(NamedTuple):
    """Where a fault strikes: what draws it, the folder that is written to, the source, and how long a run takes."""

    draw: random.Random
    disk: Path
    source: Path
    seconds: float


def _nothing() -> None:
    pass


@dataclass
class Fault:
    """`before` runs first, `prepare` inside the process, `strike` at a `moment` after its start, `mend` at the end."""

    detail: str
    before: Callable[[Callable[[], int]], None] | None = None
    prepare: Callable[[], None] = _nothing
    strike: Callable[[int], None] | None = None
    moment: float = 0.0
    mend: Callable[[], None] = _nothing
    anew: bool = False  # what is kept is damaged: afterwards the command needs --overwrite


@dataclass
class Kind:
    """How faults of a kind are drawn, and which verbs they make sense for."""

    make: Callable[[Scene], Fault]
    verbs: tuple[str, ...] = _BOTH
    possible: Callable[[], bool] = lambda: True


def _signal(number: signal.Signals) -> Callable[..., Fault]:
    def make(scene: Scene) -> Fault:
        moment = scene.draw.uniform(0.02, scene.seconds)
        return Fault(
            f"after {moment / scene.seconds:.0%} of a run's time", strike=lambda it: os.kill(it, number), moment=moment
        )

    return make


def _size_limit(scene: Scene) -> Fault:
    limit = int(10 ** scene.draw.uniform(3, 4.9))

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return Fault(f"no file over {limit} bytes", prepare=prepare)


def _small_disk(scene: Scene) -> Fault:
    free = 4096 * scene.draw.randint(1, 36 if _is_pruned(scene.source) else 110)
    _mount(scene.disk, _LARGE)

    def before(_: object) -> None:
        used = sum(4096 * (1 + path.stat().st_size // 4096) for path in scene.disk.rglob("*"))
        _remount(scene.disk, used + free)

    return Fault(f"a disk with {free // 1024} KiB free", before=before, mend=lambda: _remount(scene.disk, _LARGE))


def _full_at_journal(scene: Scene) -> Fault:
    entry, free = scene.draw.randint(0, 3), 4096 * scene.draw.randint(0, 12)
    _mount(scene.disk, _LARGE)
    filler = scene.disk / "filler"

    def prepare() -> None:
        from eggs_ptp.checkpoint.journal import Journal

        add = Journal.add

        def fill_and_add(self: Journal, *what: Any, **how: Any) -> None:
            if len(self.entries) == entry:
                room = shutil.disk_usage(scene.disk).free - free
                filler.write_bytes(b"\0" * max(0, room))
            add(self, *what, **how)

        Journal.add = fill_and_add  # type: ignore[method-assign]

    return Fault(f"{free} bytes free for entry {entry}", prepare=prepare, mend=lambda: filler.unlink(missing_ok=True))


def _permission(scene: Scene) -> Fault:
    moment = scene.draw.uniform(0.0, scene.seconds)
    struck: list[Path] = []

    def strike(_: int) -> None:
        for path in (scene.disk, *(path for path in scene.disk.rglob("*") if path.is_dir())):
            with suppress(FileNotFoundError):  # the run has just moved it
                path.chmod(0o500)
                struck.append(path)

    def mend() -> None:
        for path in struck:
            if path.exists():
                path.chmod(0o700 if ".draft" in str(path) else 0o755)

    return Fault(
        f"folders read-only after {moment / scene.seconds:.0%}",
        prepare=_drop_privileges,
        strike=strike,
        moment=moment,
        mend=mend,
    )


def _unreadable(scene: Scene) -> Fault:
    victims = (path for path in scene.source.iterdir() if path.suffix in (".safetensors", ".json"))
    victim = scene.draw.choice(sorted(victims))
    victim.chmod(0)
    return Fault(f"{victim.name} not to be read", prepare=_drop_privileges, mend=lambda: victim.chmod(0o644))


def _truncated(scene: Scene) -> Fault:
    victim = scene.draw.choice(sorted(scene.source.glob("*.safetensors")))
    whole, moment = victim.read_bytes(), scene.draw.uniform(0.0, scene.seconds)
    length = scene.draw.randrange(len(whole))
    return Fault(
        f"{victim.name} cut to {length} of {len(whole)} bytes after {moment / scene.seconds:.0%}",
        strike=lambda _: os.truncate(victim, length),
        moment=moment,
        mend=lambda: _restore(victim, whole),
    )


def _read_error(scene: Scene) -> Fault:
    number = scene.draw.randrange(40 if _is_pruned(scene.source) else 120)

    def prepare() -> None:
        real, count = os.preadv, iter(range(1_000_000))

        def preadv(*what: Any) -> int:
            if next(count) == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*what)

        os.preadv = preadv  # type: ignore[assignment]

    return Fault(f"read {number} of tensors fails with EIO", prepare=prepare)


def _header(scene: Scene) -> Fault:
    victim = scene.draw.choice(sorted(scene.source.glob("*.safetensors")))
    whole = victim.read_bytes()
    place = scene.draw.randrange(8 + int.from_bytes(whole[:8], "little"))
    return _flip(victim, place, scene.draw, f"{victim.name}, header byte {place}")


def _not_a_number(scene: Scene) -> Fault:
    victim = scene.draw.choice(sorted(scene.source.glob("*.safetensors")))
    whole = victim.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    place = start + 4 * scene.draw.randrange((len(whole) - start) // 4 - 8)
    size = 4 * scene.draw.randint(1, 8)
    _restore(victim, whole[:place] + b"\xff" * size + whole[place + size :])
    return Fault(f"{victim.name}, {size} bytes of 0xff at {place}", mend=lambda: _restore(victim, whole))


def _kept(scene: Scene) -> Fault:
    """Killed once it has kept something; then a byte of that is another."""
    share = scene.draw.random()
    mark = scene.draw.randrange(1, 256)
    reached = scene.draw.randint(1, 2)

    def before(start: Callable[[], int]) -> None:
        process = start()
        while len(list(scene.disk.glob(".out.draft/entry-?????"))) < reached:
            time.sleep(0.001)
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        draft = scene.disk / ".out.draft"
        if not (entries := sorted(draft.glob("entry-?????"))):
            raise Missed
        kept = sorted([*entries[-1].rglob("*.*"), *(draft / "blocks").glob("*.safetensors")])
        sizes = [path.stat().st_size for path in kept]
        place = int(share * sum(sizes))
        for path, size in zip(kept, sizes, strict=True):
            if place < size:
                content = bytearray(path.read_bytes())
                content[place] ^= mark
                path.write_bytes(bytes(content))
                return
            place -= size

    return Fault(f"byte at {share:.0%} of what {reached} entries keep", before=before, anew=True)


def _flip(victim: Path, place: int, draw: random.Random, detail: str) -> Fault:
    whole = victim.read_bytes()
    changed = bytearray(whole)
    changed[place] ^= draw.randrange(1, 256)
    _restore(victim, bytes(changed))
    return Fault(detail, mend=lambda: _restore(victim, whole))


def _is_pruned(folder: Path) -> bool:
    return (folder / "eggs.json").exists()


def _restore(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _drop_privileges() -> None:
    """Root without capabilities is held to the permissions of files like everyone else."""
    if os.geteuid() == 0:
        header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
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
    """Take a small disk away, if there is one."""
    if os.path.ismount(disk):
        subprocess.run(["umount", disk], check=True)  # noqa: S607


KINDS: dict[str, Kind] = {
    "kill": Kind(_signal(signal.SIGKILL)),
    "interrupt": Kind(_signal(signal.SIGINT)),
    "terminate": Kind(_signal(signal.SIGTERM)),
    "file size limit": Kind(_size_limit),
    "disk full": Kind(_small_disk, possible=_can_mount),
    "disk full in the journal": Kind(_full_at_journal, ("prune",), _can_mount),
    "permission lost": Kind(_permission),
    "source unreadable": Kind(_unreadable),
    "source cut short": Kind(_truncated),
    "read error": Kind(_read_error),
    "corrupt header": Kind(_header),
    "corrupt weights (NaN)": Kind(_not_a_number, ("prune",)),
    "corrupt journal": Kind(_kept, ("prune",)),
}
