"""Products of one shape: packed beside the strongest dense ones, for several batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.bench.contest import Contestant, Timing, contest
from eggs_ptp.bench.dense import prepacked, prepacked_linear, why_not_prepacked
from eggs_ptp.bench.hardware import check_memory, largest_cache, load
from eggs_ptp.core.pack import pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import NumericsError, PatternError
from eggs_ptp.sparse.backends import choose

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
_MOST_COPIES = 64
_CHECKED = 4  # inputs of a product that are compared with float64


@dataclass(frozen=True)
class Measured:
    """Times of the products of one shape and batch, by contestant: "dense fp32 stock", "2:4 bf16", ..."""

    rows: int
    columns: int
    batch: int
    threads: int
    copies: int
    backends: dict[str, str]  # of the packed ones
    timings: dict[str, Timing]
    load_before: list[float]
    load_after: list[float]

    def best_dense(self, short: str) -> str:
        """The fastest dense contestant of a type."""
        dense = [name for name in self.timings if name.startswith(f"dense {short}")]
        return min(dense, key=lambda name: self.timings[name].median)

    def ratios(self) -> dict[str, tuple[float, bool]]:
        """How many times faster packed is than the best dense product of its type; whether that is trusted."""
        bests = {name: self.best_dense(name.split()[1]) for name in self.backends}
        return {f"{name} over {best}": self.timings[name].over(self.timings[best]) for name, best in bests.items()}

    def to_dict(self) -> dict[str, Any]:
        """As a record keeps it, with all samples."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "batch": self.batch,
            "threads": self.threads,
            "copies": self.copies,
            "load_before": self.load_before,
            "load_after": self.load_after,
            "backends": self.backends,
            "microseconds": {name: timing.microseconds for name, timing in self.timings.items()},
            "spread": {name: round(timing.spread, 4) for name, timing in self.timings.items()},
            "ratios": {
                name: {"value": round(value, 3), "trusted": trusted} for name, (value, trusted) in self.ratios().items()
            },
        }


def measure_shape(
    rows: int,
    columns: int,
    batches: Sequence[int],
    *,
    patterns: Sequence[Pattern],
    dtypes: Sequence[torch.dtype],
    rounds: int = 60,
    limit: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Measured]:
    """Time products with random N:M matrices (rows, columns): one contest a batch, see `contest.contest`.

    Dense are torch's `linear` ("stock") and, where torch has it, oneDNN's product with a weight laid out for this
    batch ("prepacked"). Packed is the whole product of the backend that is chosen for it. Every contestant has several
    matrices and takes them in turn, so many that one has left every cache before it is read again (64 at most).

    Raises:
        PatternError: a pattern that does not fit the columns.
        BackendError: the backend that EGGS_BACKEND names cannot compute this; or too little memory is free.
        NumericsError: a product that is not what float64 gives; a wrong one is not timed.
    """
    for pattern in patterns:
        if columns % pattern.group:
            raise PatternError(
                f"{rows}x{columns}: {columns} columns are no multiple of {pattern.group}, as {pattern} needs"
            )
    copies = _copies(rows, columns, patterns, dtypes)
    generator = torch.Generator().manual_seed(0)
    weights = {pattern: _pruned(rows, columns, pattern, generator) for pattern in patterns}
    for batch in batches:
        contestants: dict[str, Contestant] = {}
        backends: dict[str, str] = {}
        with torch.inference_mode():
            for dtype in dtypes:
                x = torch.randn(batch, columns, generator=generator).to(dtype)
                first = next(iter(weights.values())).to(dtype)
                for name, run in _dense(first, x, copies).items():
                    contestants[name] = _checked(name, run, first, x)
                for pattern, weight in weights.items():
                    name = f"{pattern} {SHORT[dtype]}"
                    run, backends[name] = _packed(weight.to(dtype), pattern, x, copies)
                    contestants[name] = _checked(name, run, weight.to(dtype), x)
            before = load()
            timings = contest(contestants, rounds=rounds, limit=limit, clock=clock)
        threads = torch.get_num_threads()
        yield Measured(rows, columns, batch, threads, copies, backends, timings, before, load())


def _pruned(rows: int, columns: int, pattern: Pattern, generator: torch.Generator) -> Tensor:
    places = torch.rand(rows, columns // pattern.group, pattern.group, generator=generator).argsort(-1)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight.masked_fill_((places >= pattern.keep).view(rows, columns), 0)


def _dense(weight: Tensor, x: Tensor, copies: int) -> dict[str, Contestant]:
    name = f"dense {SHORT[weight.dtype]}"
    stock = [weight.clone() for _ in range(copies)]
    made: dict[str, Contestant] = {f"{name} stock": lambda turn: dense_linear(x, stock[turn % copies])}
    if why_not_prepacked(weight.dtype) is None:
        laid = [prepacked(each, x.shape[0]) for each in stock]
        made[f"{name} prepacked"] = lambda turn: prepacked_linear(x, laid[turn % copies])
    return made


def _packed(weight: Tensor, pattern: Pattern, x: Tensor, copies: int) -> tuple[Contestant, str]:
    backend = choose(x.device, x.dtype, pattern, weight.shape[0], weight.shape[1], x.shape[0])
    states = [backend.prepare(pack(weight, pattern)) for _ in range(copies)]
    return lambda turn: backend.linear(x, states[turn % copies]), backend.name


def _checked(name: str, run: Contestant, weight: Tensor, x: Tensor) -> Contestant:
    exact = x[:_CHECKED].double() @ weight.double().T
    y: Any = run(0)
    error = float((y[:_CHECKED].double() - exact).abs().max() / exact.abs().max())
    if not error < _TOLERANCE[x.dtype]:
        raise NumericsError(f"{name}, {weight.shape[0]}x{weight.shape[1]}, batch {len(x)}: relative error {error:.1e}")
    return run


def _copies(rows: int, columns: int, patterns: Sequence[Pattern], dtypes: Sequence[torch.dtype]) -> int:
    """So many that two caches' worth is read between two readings of a matrix; at least 2."""
    sizes = [rows * columns * dtype.itemsize for dtype in dtypes]
    turn = int(sum(size * (2 + sum(pattern.density for pattern in patterns)) for size in sizes))
    copies = min(_MOST_COPIES, max(2, 1 + -(-2 * largest_cache() // max(1, turn))))
    # The matrices, and what making one takes.
    check_memory(copies * turn + rows * columns * 4 * (len(patterns) + 5))
    return copies
