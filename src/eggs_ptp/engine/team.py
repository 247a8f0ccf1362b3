"""Team: one of several processes that torchrun has started, and what becomes of them when one of them ends."""

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from eggs_ptp import errors
from eggs_ptp.core.stats import Moments
from eggs_ptp.engine.chain import chain
from eggs_ptp.engine.ranks import ALONE, Ranks, Work
from eggs_ptp.errors import EggsError, TeamError

T = TypeVar("T")

_PATIENCE = timedelta(hours=6)  # one rank may solve for a wide matrix that long; one that is gone is noticed at once
_TO_SPEAK = 3  # seconds that others leave rank 0 to say why it all ends
_TO_MEET = timedelta(minutes=5)
_MENDABLE = (EggsError, OSError, MemoryError, torch.OutOfMemoryError)  # the rest are faults of ours
_WORDS, _SPEAKER = "eggs/words", "eggs/speaker"


class Team(Ranks):
    """One of several processes, over gloo on CPUs and NCCL between GPUs.

    Small things go by gloo wherever tensors live. Every method but `device` and `deal` is called by all ranks in turn.

    Raises:
        EggsError: of any method: what another rank has ended with, or TeamError if it has ended without a word.
    """

    def __init__(self, rank: int, count: int, place: torch.device, store: Any) -> None:
        self.rank, self.count = rank, count
        self._place, self._store = place, store

    def device(self, name: str) -> str:
        """The GPU of its own, where any is asked for."""
        return str(self._place) if name in ("auto", self._place.type) else name

    def add_up(self, sums: Iterable[tuple[Moments, Sequence[Moments]]]) -> None:
        """In a chain."""
        with self._together():
            chain(sums, self.rank, self.count)

    def total(self, counts: Tensor) -> Tensor:
        """Over gloo, so on the CPU."""
        summed = counts.cpu().clone()
        with self._together():
            dist.all_reduce(summed)
        return summed.to(counts.device)

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Every rank sends its part to all others."""
        lengths = torch.zeros(self.count, len(parts), dtype=torch.long)
        lengths[self.rank] = torch.tensor([len(part) for part in parts])
        found: list[Tensor] = []
        for part, rows in zip(parts, self.total(lengths).T.tolist(), strict=True):
            with torch.inference_mode(False):
                whole = part.new_empty(sum(rows), *part.shape[1:])
            for rank, place in enumerate(whole.split(rows)):
                if rank == self.rank:
                    place.copy_(part)
                if len(place):
                    with self._together():
                        dist.broadcast(place, rank)
            found.append(whole)
        return found

    def all(self, here: bool) -> bool:
        """The ranks that say so are counted."""
        return bool(self.total(torch.tensor([here], dtype=torch.long)) == self.count)

    def of_leader(self, make: Callable[[], T]) -> T:
        """Made on rank 0 alone."""
        return cast(T, self._objects(make() if self.leads else None)[0])

    def led(self, make: Callable[[], Work]) -> Work:
        """Made on rank 0 alone."""
        return self.exchanged({"": make()} if self.leads else {})[""]

    def everywhere(self, owner: int, tensor: Tensor | None) -> Tensor:
        """Its form first."""
        shape, dtype = self._objects(None if tensor is None else (tensor.shape, tensor.dtype))[owner]
        found = torch.empty(shape, dtype=dtype) if tensor is None else tensor.contiguous()
        found = found.to(self._place)
        with self._together():
            dist.broadcast(found, owner)
        return found

    def spread(self, over: Tensor, *parts: Tensor) -> None:
        """Each rank's rows go to all others, as many as the one with most has: sent at once, they are of one size."""
        sizes = [sum(rows.stop - rows.start for rows in self.slabs_of(over, rank)) for rank in range(self.count)]
        for part in parts:
            places = part.split(sizes)
            sent = part.new_empty(max(sizes), *part.shape[1:])
            sent[: sizes[self.rank]] = places[self.rank]
            found = [torch.empty_like(sent) for _ in sizes]
            with self._together():
                dist.all_gather(found, sent)
            for place, theirs in zip(places, found, strict=True):
                place.copy_(theirs[: len(place)])

    def agreed(self, tensor: Tensor) -> Tensor:
        """Rank 0's."""
        found = tensor.contiguous()
        with self._together():
            dist.broadcast(found, 0)
        return found

    def exchanged(self, mine: dict[str, Work]) -> dict[str, Work]:
        """Names, forms and small things of all first, then each tensor."""
        forms = {
            n: ({k: (t.shape, t.dtype) for k, t in tensors.items()}, facts) for n, (tensors, facts) in mine.items()
        }
        found: dict[str, Work] = {}
        for owner, theirs in enumerate(self._objects(forms)):
            for name, (tensors, facts) in theirs.items():
                own = mine[name][0] if owner == self.rank else {}
                held = {
                    key: (own[key].contiguous() if own else torch.empty(shape, dtype=dtype)).to(self._place)
                    for key, (shape, dtype) in tensors.items()
                }
                for tensor in held.values():
                    with self._together():
                        dist.broadcast(tensor, owner)
                found[name] = held, facts
        return found

    def deal(self, costs: Mapping[str, float]) -> dict[str, int]:
        """Greedy, the same on all ranks."""
        loads, owners = [0.0] * self.count, dict[str, int]()
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            owners[name] = loads.index(min(loads))
            loads[owners[name]] += costs[name]
        return owners

    def at_once(self, groups: Mapping[str, T]) -> list[dict[str, T]]:
        """All, so that a rank has something to do while another one works on the widest."""
        return [dict(groups)]

    def collected(self, windows: Tensor) -> Tensor | None:
        """As `rows`, put together."""
        found = [window.to(windows.device) for window in self.rows(windows)]
        return torch.cat(found) if self.leads else None

    def rows(self, windows: Tensor) -> Iterable[Tensor]:
        """Window by window, so that rank 0 never holds more than its own; it has to take what is sent."""
        return self._received(windows) if self.leads else self._sent(windows)

    def scatter(self, windows: Iterator[Tensor] | None, into: Tensor) -> None:
        """Window by window."""
        lengths = self._lengths(len(into))
        with self._together(), torch.inference_mode():
            if windows is None:
                window = torch.empty(into.shape[1:], dtype=into.dtype)
                for place in into:
                    dist.recv(window, 0)
                    place.copy_(window)
                return
            for place, window in zip(into, windows, strict=False):  # zip takes the shorter first: none is lost
                place.copy_(window)
            for rank in range(1, self.count):
                for _ in range(lengths[rank]):
                    dist.send(next(windows), rank)

    def wait(self) -> None:
        """A sum of nothing."""
        self.total(torch.zeros(1, dtype=torch.long))

    def _lengths(self, mine: int) -> list[int]:
        found = torch.zeros(self.count, dtype=torch.long)
        found[self.rank] = mine
        return cast(list[int], self.total(found).tolist())

    def _received(self, windows: Tensor) -> Iterator[Tensor]:
        lengths = self._lengths(len(windows))
        yield from windows.split(1)
        for rank in range(1, self.count):
            for _ in range(lengths[rank]):
                window = torch.empty(windows.shape[1:], dtype=windows.dtype)
                with self._together():
                    dist.recv(window, rank)
                yield window[None]

    def _sent(self, windows: Tensor) -> list[Tensor]:
        self._lengths(len(windows))
        with self._together():
            for window in windows:
                dist.send(window.cpu().contiguous(), 0)
        return []

    def _objects(self, value: Any) -> list[Any]:
        """The small things that the ranks have."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        (whole,), lengths = self.gather([data]), self._lengths(len(data))
        return [pickle.loads(part.numpy().tobytes()) for part in whole.split(lengths)]  # noqa: S301 - of this very run

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Have a failure of what is done together say what it comes from."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # gloo and NCCL say in their own words that somebody is gone
            raise self._heard() from error

    def _heard(self) -> EggsError:
        """What has ended the other ranks, as far as they have said so."""
        with suppress(Exception):
            if self._store.check([_WORDS]):
                kind, words = self._store.get(_WORDS).decode().split("\n", 1)
                return cast(EggsError, getattr(errors, kind)(words))
        return TeamError(
            f"another of the {self.count} processes of this run has ended without a word, killed or out of memory; "
            "with a journal kept, the same command goes on behind the last finished block"
        )

    def ended(self, error: BaseException) -> BaseException:
        """What this rank ends with instead of `error`: rank 0 says what it is, or, where it is gone, another."""
        fault = not isinstance(error, (*_MENDABLE, KeyboardInterrupt, SystemExit))
        if self.leads or not isinstance(error, TeamError):
            with suppress(Exception):
                self._store.compare_set(_WORDS, "", self._words(error, fault))
        elif not self._somebody_speaks():
            return error
        return error if self.leads or fault else SystemExit(2)

    def _words(self, error: BaseException, fault: bool) -> str:
        if isinstance(error, EggsError):
            return f"{type(error).__name__}\n{error}"
        what = "failed; see its traceback" if fault else " ".join(str(error).split()) or type(error).__name__
        return f"{TeamError.__name__}\nprocess {self.rank} of {self.count}: {what}"

    def _somebody_speaks(self) -> bool:
        """Whether rank 0 does, or, as it does not in time, another that was faster than this one."""
        with suppress(Exception):  # whatever a store without its server says
            for _ in range(_TO_SPEAK * 10):
                if self._store.check([_WORDS]):
                    return True
                time.sleep(0.1)
            return bool(self._store.add(_SPEAKER, 1) > 1)
        return False

    def end(self, *_signal: object) -> None:
        """Have torchrun's SIGTERM, which it sends when another process has ended, end this one as that would.

        Raises:
            EggsError: what has ended the other, as far as it has said so.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise self._heard()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Be one of the processes that torchrun has started, on one of `device`; the only one where it has not.

    A torchrun that starts workers anew begins here again, each time with a store of its own.

    Raises:
        SystemExit: something has ended all ranks, and another one says what.
        TeamError: the processes do not find each other.
    """
    rank, count = (int(os.environ.get(name, given)) for name, given in (("RANK", 0), ("WORLD_SIZE", 1)))
    if count == 1:
        yield ALONE
        return
    place = torch.device("cpu")  # a device that is not there is refused once there is a team, to say so once
    if device.startswith(("auto", "cuda")) and torch.cuda.is_available():
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
        torch.cuda.set_device(place)
    try:
        store, rank, count = next(rendezvous("env://", timeout=_TO_MEET))
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
        store.set(f"joined {rank}", "")
        if rank == 0:  # it has the store, which the others still need, and may end at once
            store.wait([f"joined {other}" for other in range(count)], _TO_MEET)
    except (RuntimeError, ValueError) as error:
        raise TeamError(f"the {count} processes of this run do not find each other ({error}); see torchrun") from error
    team = Team(rank, count, place, store)
    before = signal.signal(signal.SIGTERM, team.end)
    try:
        yield team
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise team.ended(error) from error
    signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()
