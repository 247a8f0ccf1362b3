"""The process group of a run that torchrun has started, and how its processes end when one of them fails."""

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
from eggs_ptp.engine.distributed.process_group import SINGLE_PROCESS, NamedTensors, ProcessGroup
from eggs_ptp.engine.distributed.reductions import ordered_all_reduce
from eggs_ptp.errors import EggsError, ProcessGroupError

T = TypeVar("T")

_TIMEOUT = timedelta(hours=6)  # one rank may solve for a wide matrix that long; a rank that has died is noticed at once
_REPORT_SECONDS = 3  # how long other ranks wait for rank 0 to report the error
_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
_USER_ERRORS = (EggsError, OSError, MemoryError, torch.OutOfMemoryError)  # anything else is a bug of this package
_ERROR_KEY, _REPORTER_KEY = "eggs/error", "eggs/reporter"


class DistributedGroup(ProcessGroup):
    """One of several processes, over gloo on CPUs and NCCL between GPUs.

    Small objects go over gloo, wherever tensors live.

    Args:
        rank: Of this process; 0 is the main process.
        world_size: Number of processes.
        device: The device whose tensors are exchanged.
        store: The key-value store of the rendezvous, through which a failing process reports its error.

    Raises:
        EggsError: From any method: the error that has ended another rank, or ProcessGroupError if that rank ended
            without reporting one.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device, store: Any) -> None:
        self.rank = rank
        self.world_size = world_size
        self._device = device
        self._store = store

    def device(self, name: str) -> str:
        """Return this process's own GPU where any GPU was requested."""
        return str(self._device) if name in ("auto", self._device.type) else name

    def all_reduce_moments(self, sums: Iterable[tuple[Moments, Sequence[Moments]]]) -> None:
        """Pass the sums from rank to rank."""
        with self._reporting():
            ordered_all_reduce(sums, self.rank, self.world_size)

    def all_reduce(self, counts: Tensor) -> Tensor:
        """Sum over gloo, so on the CPU."""
        total = counts.cpu().clone()
        with self._reporting():
            dist.all_reduce(total)
        return total.to(counts.device)

    def all_gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Broadcast the part of every rank."""
        lengths = torch.zeros(self.world_size, len(parts), dtype=torch.long)
        lengths[self.rank] = torch.tensor([len(part) for part in parts])
        gathered: list[Tensor] = []
        for part, rows in zip(parts, self.all_reduce(lengths).T.tolist(), strict=True):
            with torch.inference_mode(False):
                whole = part.new_empty(sum(rows), *part.shape[1:])
            for rank, slot in enumerate(whole.split(rows)):
                if rank == self.rank:
                    slot.copy_(part)
                if len(slot):
                    with self._reporting():
                        dist.broadcast(slot, rank)
            gathered.append(whole)
        return gathered

    def all_true(self, condition: bool) -> bool:
        """Count the ranks on which it holds."""
        return bool(self.all_reduce(torch.tensor([condition], dtype=torch.long)) == self.world_size)

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Pickle the result of rank 0."""
        return cast(T, self._all_gather_objects(make() if self.is_main_process else None)[0])

    def broadcast_tensors(self, make: Callable[[], NamedTensors]) -> NamedTensors:
        """Broadcast the result of rank 0."""
        return self.all_gather_tensors({"": make()} if self.is_main_process else {})[""]

    def broadcast_from(self, source: int, tensor: Tensor | None) -> Tensor:
        """Broadcast shape and type first, which the other ranks do not know."""
        header = None if tensor is None else (tensor.shape, tensor.dtype)
        shape, dtype = self._all_gather_objects(header)[source]
        buffer = torch.empty(shape, dtype=dtype) if tensor is None else tensor.contiguous()
        buffer = buffer.to(self._device)
        with self._reporting():
            dist.broadcast(buffer, source)
        return buffer

    def all_gather_rows(self, over: Tensor, *parts: Tensor) -> None:
        """Exchange the row tiles of every rank, padded to the most rows of any: an all-gather wants equal sizes."""
        rows_of_ranks = [
            sum(rows.stop - rows.start for rows in self.tiles_of(over, rank)) for rank in range(self.world_size)
        ]
        for part in parts:
            slots = part.split(rows_of_ranks)
            sent = part.new_empty(max(rows_of_ranks), *part.shape[1:])
            sent[: rows_of_ranks[self.rank]] = slots[self.rank]
            received = [torch.empty_like(sent) for _ in rows_of_ranks]
            with self._reporting():
                dist.all_gather(received, sent)
            for slot, rows in zip(slots, received, strict=True):
                slot.copy_(rows[: len(slot)])

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Broadcast rank 0's tensor."""
        buffer = tensor.contiguous()
        with self._reporting():
            dist.broadcast(buffer, 0)
        return buffer

    def all_gather_tensors(self, local: dict[str, NamedTensors]) -> dict[str, NamedTensors]:
        """Exchange names, shapes, types and the small objects first, then every tensor."""
        headers = {
            name: ({key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}, extra)
            for name, (tensors, extra) in local.items()
        }
        gathered: dict[str, NamedTensors] = {}
        for source, headers_of_rank in enumerate(self._all_gather_objects(headers)):
            for name, (shapes, extra) in headers_of_rank.items():
                own = local[name][0] if source == self.rank else {}
                buffers = {
                    key: (own[key].contiguous() if own else torch.empty(shape, dtype=dtype)).to(self._device)
                    for key, (shape, dtype) in shapes.items()
                }
                for buffer in buffers.values():
                    with self._reporting():
                        dist.broadcast(buffer, source)
                gathered[name] = buffers, extra
        return gathered

    def assign(self, costs: Mapping[str, float]) -> dict[str, int]:
        """Assign greedily; the same on all ranks."""
        loads = [0.0] * self.world_size
        owners: dict[str, int] = {}
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            owners[name] = loads.index(min(loads))
            loads[owners[name]] += costs[name]
        return owners

    def concurrent(self, groups: Mapping[str, T]) -> list[dict[str, T]]:
        """Prune all groups at the same time, so that no rank waits for the one with the widest matrix."""
        return [dict(groups)]

    def gather_windows(self, windows: Tensor) -> Tensor | None:
        """Concatenate what `iterate_windows` yields."""
        gathered = [window.to(windows.device) for window in self.iterate_windows(windows)]
        return torch.cat(gathered) if self.is_main_process else None

    def iterate_windows(self, windows: Tensor) -> Iterable[Tensor]:
        """Send one window at a time, so that rank 0 never holds more than its own; it must consume all of them."""
        return self._receive_windows(windows) if self.is_main_process else self._send_windows(windows)

    def scatter_windows(self, windows: Iterator[Tensor] | None, into: Tensor) -> None:
        """Send one window at a time."""
        lengths = self._all_gather_lengths(len(into))
        with self._reporting(), torch.inference_mode():
            if windows is None:
                window = torch.empty(into.shape[1:], dtype=into.dtype)
                for target in into:
                    dist.recv(window, 0)
                    target.copy_(window)
                return
            for target, window in zip(into, windows, strict=False):  # zip ends with the shorter first: none is lost
                target.copy_(window)
            for rank in range(1, self.world_size):
                for _ in range(lengths[rank]):
                    dist.send(next(windows), rank)

    def barrier(self) -> None:
        """Reduce a zero."""
        self.all_reduce(torch.zeros(1, dtype=torch.long))

    def _all_gather_lengths(self, length: int) -> list[int]:
        lengths = torch.zeros(self.world_size, dtype=torch.long)
        lengths[self.rank] = length
        return cast(list[int], self.all_reduce(lengths).tolist())

    def _receive_windows(self, windows: Tensor) -> Iterator[Tensor]:
        lengths = self._all_gather_lengths(len(windows))
        yield from windows.split(1)
        for rank in range(1, self.world_size):
            for _ in range(lengths[rank]):
                window = torch.empty(windows.shape[1:], dtype=windows.dtype)
                with self._reporting():
                    dist.recv(window, rank)
                yield window[None]

    def _send_windows(self, windows: Tensor) -> list[Tensor]:
        self._all_gather_lengths(len(windows))
        with self._reporting():
            for window in windows:
                dist.send(window.cpu().contiguous(), 0)
        return []

    def _all_gather_objects(self, value: Any) -> list[Any]:
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        (whole,) = self.all_gather([data])
        lengths = self._all_gather_lengths(len(data))
        return [pickle.loads(part.numpy().tobytes()) for part in whole.split(lengths)]  # noqa: S301 - of this very run

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn the failure of a collective into the error that caused it."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # how gloo and NCCL report that another rank has died
            raise self._reported_error() from error

    def _reported_error(self) -> EggsError:
        """Return the error that another rank has reported, if it has."""
        with suppress(Exception):
            if self._store.check([_ERROR_KEY]):
                kind, message = self._store.get(_ERROR_KEY).decode().split("\n", 1)
                return cast(EggsError, getattr(errors, kind)(message))
        return ProcessGroupError(
            f"another of the {self.world_size} processes of this run ended without a message, killed or out of memory; "
            "with a journal, the same command resumes after the last finished block"
        )

    def exception_to_raise(self, error: BaseException) -> BaseException:
        """Return what this rank should end with: rank 0 reports the error, or another rank if rank 0 has died."""
        is_bug = not isinstance(error, (*_USER_ERRORS, KeyboardInterrupt, SystemExit))
        if self.is_main_process or not isinstance(error, ProcessGroupError):
            with suppress(Exception):
                self._store.compare_set(_ERROR_KEY, "", self._message_of(error, is_bug))
        elif not self._another_rank_reports():
            return error
        return error if self.is_main_process or is_bug else SystemExit(2)

    def _message_of(self, error: BaseException, is_bug: bool) -> str:
        if isinstance(error, EggsError):
            return f"{type(error).__name__}\n{error}"
        message = "failed; see its traceback" if is_bug else " ".join(str(error).split()) or type(error).__name__
        return f"{ProcessGroupError.__name__}\nprocess {self.rank} of {self.world_size}: {message}"

    def _another_rank_reports(self) -> bool:
        """Wait for a report of rank 0; without one, whether another rank was faster than this one."""
        with suppress(Exception):  # the store may have gone with its server
            for _ in range(_REPORT_SECONDS * 10):
                if self._store.check([_ERROR_KEY]):
                    return True
                time.sleep(0.1)
            return bool(self._store.add(_REPORTER_KEY, 1) > 1)
        return False

    def on_sigterm(self, *_signal: object) -> None:
        """End this process with the error of the one that failed, when torchrun ends the others by SIGTERM.

        Raises:
            EggsError: The error that the other rank has reported, or ProcessGroupError.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise self._reported_error()


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the process group that torchrun has started; outside of torchrun, a group of one.

    A torchrun that restarts its workers starts here again, each time with a new store.

    Args:
        device: The requested device; "auto" and "cuda" give each process a GPU of its own.

    Raises:
        SystemExit: An error has ended all ranks, and another rank reports it.
        ProcessGroupError: The processes cannot find each other.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    own_device = torch.device("cpu")  # a device that is missing is refused later, once, by the group
    if device.startswith(("auto", "cuda")) and torch.cuda.is_available():
        own_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
        torch.cuda.set_device(own_device)
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=_RENDEZVOUS_TIMEOUT))
        backend = "cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
        store.set(f"joined {rank}", "")
        if rank == 0:  # rank 0 holds the store, which the others still need, and may end at once
            store.wait([f"joined {other}" for other in range(world_size)], _RENDEZVOUS_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ProcessGroupError(
            f"the {world_size} processes of this run cannot find each other ({error}); see torchrun"
        ) from error
    group = DistributedGroup(rank, world_size, own_device, store)
    previous_handler = signal.signal(signal.SIGTERM, group.on_sigterm)
    try:
        yield group
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise group.exception_to_raise(error) from error
    signal.signal(signal.SIGTERM, previous_handler)
    dist.destroy_process_group()
