"""Products of one shape for several batches: packed against the fastest dense ones."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.bench.dense import prepack, prepack_unsupported_reason, prepacked_linear
from eggs_ptp.bench.hardware import check_memory, largest_cache, load_averages
from eggs_ptp.bench.timing import Candidate, Timing, time_interleaved
from eggs_ptp.core.pack import pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import NumericsError, PatternError
from eggs_ptp.sparse.backends import choose_backend

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
_MAX_COPIES = 64
_CHECKED_INPUTS = 4  # inputs of a product that are compared with float64


@dataclass(frozen=True)
class ProductMeasurement:
    """Timings of the products of one shape and batch.

    Attributes:
        rows: Rows of the matrices.
        columns: Columns of the matrices.
        batch: Inputs multiplied at once.
        threads: Threads of torch.
        copies: Matrices of each candidate, used in turn.
        backends: Backend of each packed candidate, such as "2:4 bf16".
        timings: By candidate: "dense fp32 stock", "dense fp32 prepacked", "2:4 bf16", ...
        load_before: Load averages before the measurement.
        load_after: Load averages after it.
    """

    rows: int
    columns: int
    batch: int
    threads: int
    copies: int
    backends: dict[str, str]
    timings: dict[str, Timing]
    load_before: list[float]
    load_after: list[float]

    def best_dense(self, dtype_name: str) -> str:
        """Return the name of the fastest dense candidate of a type, such as "bf16"."""
        dense = [name for name in self.timings if name.startswith(f"dense {dtype_name}")]
        return min(dense, key=lambda name: self.timings[name].median)

    def ratios(self) -> dict[str, tuple[float, bool]]:
        """Return how many times faster packed is than the best dense product of its type, and whether to trust it."""
        ratios = {}
        for name in self.backends:
            best = self.best_dense(name.split()[1])
            ratios[f"{name} over {best}"] = self.timings[name].speedup_over(self.timings[best])
        return ratios

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as records store it, with all samples."""
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
) -> Iterator[ProductMeasurement]:
    """Time products with random N:M matrices (rows, columns), all candidates of a batch interleaved.

    The dense candidates are torch's `linear` ("stock") and, if torch has it, oneDNN's product with a weight prepacked
    for this batch ("prepacked"). A packed candidate is the whole product of the backend that is chosen for it. Every
    candidate alternates between several matrices, enough that each has left every cache before it is read again (64
    at most).

    Args:
        rows: Rows of the matrices.
        columns: Columns of the matrices.
        batches: Numbers of inputs multiplied at once.
        patterns: Patterns of the matrices.
        dtypes: Types of matrices and inputs.
        rounds: Samples of each candidate.
        limit: Seconds after which a batch ends, see `time_interleaved`.
        clock: Returns the current time in seconds.

    Yields:
        One measurement per batch.

    Raises:
        PatternError: A pattern does not fit the columns.
        BackendError: The backend that EGGS_BACKEND names does not support a product; or too little memory is free.
        NumericsError: A product differs from that in float64; wrong products are not timed.
    """
    for pattern in patterns:
        if columns % pattern.group:
            raise PatternError(
                f"{rows}x{columns}: {columns} columns are not a multiple of {pattern.group}, as {pattern} needs"
            )
    copies = copies_beyond_cache(rows, columns, patterns, dtypes)
    generator = torch.Generator().manual_seed(0)
    weights = {pattern: random_pruned(rows, columns, pattern, generator) for pattern in patterns}
    for batch in batches:
        candidates: dict[str, Candidate] = {}
        backends: dict[str, str] = {}
        with torch.inference_mode():
            for dtype in dtypes:
                x = torch.randn(batch, columns, generator=generator).to(dtype)
                dense_weight = next(iter(weights.values())).to(dtype)
                for name, candidate in _dense_candidates(dense_weight, x, copies).items():
                    candidates[name] = _checked(name, candidate, dense_weight, x)
                for pattern, weight in weights.items():
                    name = f"{pattern} {DTYPE_NAMES[dtype]}"
                    candidate, backends[name] = _packed_candidate(weight.to(dtype), pattern, x, copies)
                    candidates[name] = _checked(name, candidate, weight.to(dtype), x)
            load_before = load_averages()
            timings = time_interleaved(candidates, rounds=rounds, limit=limit, clock=clock)
        yield ProductMeasurement(
            rows=rows,
            columns=columns,
            batch=batch,
            threads=torch.get_num_threads(),
            copies=copies,
            backends=backends,
            timings=timings,
            load_before=load_before,
            load_after=load_averages(),
        )


def random_pruned(rows: int, columns: int, pattern: Pattern, generator: torch.Generator) -> Tensor:
    """Return a random N:M weight (rows, columns), float32."""
    ranks = torch.rand(rows, columns // pattern.group, pattern.group, generator=generator).argsort(-1)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight.masked_fill_((ranks >= pattern.keep).view(rows, columns), 0)


def _dense_candidates(weight: Tensor, x: Tensor, copies: int) -> dict[str, Candidate]:
    """Return the dense products of a weight and x, by name."""
    name = f"dense {DTYPE_NAMES[weight.dtype]}"
    stock = [weight.clone() for _ in range(copies)]
    candidates: dict[str, Candidate] = {f"{name} stock": lambda number: dense_linear(x, stock[number % copies])}
    if prepack_unsupported_reason(weight.dtype) is None:
        prepacked = [prepack(copy, x.shape[0]) for copy in stock]
        candidates[f"{name} prepacked"] = lambda number: prepacked_linear(x, prepacked[number % copies])
    return candidates


def _packed_candidate(weight: Tensor, pattern: Pattern, x: Tensor, copies: int) -> tuple[Candidate, str]:
    """Return the packed product of a weight and x, and the name of its backend."""
    backend = choose_backend(x.device, x.dtype, pattern, weight.shape[0], weight.shape[1], x.shape[0])
    states = [backend.prepare(pack(weight, pattern)) for _ in range(copies)]
    return lambda number: backend.linear(x, states[number % copies]), backend.name


def _checked(name: str, candidate: Candidate, weight: Tensor, x: Tensor) -> Candidate:
    """Return a candidate whose product agrees with float64."""
    exact = x[:_CHECKED_INPUTS].double() @ weight.double().T
    y: Any = candidate(0)
    error = float((y[:_CHECKED_INPUTS].double() - exact).abs().max() / exact.abs().max())
    if not error < _TOLERANCE[x.dtype]:
        raise NumericsError(f"{name}, {weight.shape[0]}x{weight.shape[1]}, batch {len(x)}: relative error {error:.1e}")
    return candidate


def copies_beyond_cache(rows: int, columns: int, patterns: Sequence[Pattern], dtypes: Sequence[torch.dtype]) -> int:
    """Return how many copies of the matrices make two caches' worth of reads between two reads of one; at least 2.

    Raises:
        BackendError: Too little memory is free for them.
    """
    dense_sizes = [rows * columns * dtype.itemsize for dtype in dtypes]
    round_bytes = int(sum(size * (2 + sum(pattern.density for pattern in patterns)) for size in dense_sizes))
    copies = min(_MAX_COPIES, max(2, 1 + -(-2 * largest_cache() // max(1, round_bytes))))
    # The matrices, and what making one takes.
    check_memory(copies * round_bytes + rows * columns * 4 * (len(patterns) + 5))
    return copies
