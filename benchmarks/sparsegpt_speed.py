"""SparseGPT at 2:4 on one matrix, beside a literal column-by-column sweep written from the paper.

Stated apart: factorisation (everything before the first column), products (what settled columns do to columns beyond
their own block of 128), and the sweep inside the blocks. Both run in one process, rounds interleaved; medians. Masks
are compared: both are float32, so a near tie may be broken either way, and the rest of its row then follows.

    python benchmarks/sparsegpt_speed.py [--rounds 5] [--shapes 2048x2048,2048x8192] [--pattern 2:4] [--device cpu]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.update import sparsegpt as ours

BLOCK, DAMPING = 128, 0.01
Seconds = dict[str, float]


def layer(out: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Weights of unlike columns, and the gram of inputs that share 512 sources."""
    generator = torch.Generator().manual_seed(out + width)
    weight = torch.randn(out, width, generator=generator) * torch.rand(width, generator=generator).exp()
    shared = torch.randn(512, width, generator=generator)
    own = torch.rand(width, generator=generator) + 0.1
    return weight.to(device), (shared.T @ shared / len(shared) + own.diag()).to(device)


class Clock:
    """Seconds by name; waits for the device before it looks."""

    def __init__(self, device: str) -> None:
        self.seconds: Seconds = {}
        self._wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def time(self, name: str, function: Callable[..., object], *given: object) -> object:
        self._wait()
        start = time.perf_counter()
        result = function(*given)
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result


def literal(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of arXiv:2301.00774, column by column, with a lazy update after each block."""

    def factorise() -> Tensor:
        hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)

    upper = clock.time("factorisation", factorise)
    assert isinstance(upper, Tensor)
    weight, keep = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        error = clock.time(
            "sweep", sweep_block, weight[:, start:stop], keep[:, start:stop], upper[start:stop], start, pattern
        )
        assert isinstance(error, Tensor)
        clock.time("products", lambda a, b, e: weight[:, b:].sub_(e @ upper[a:b, b:]), start, stop, error)
    return weight, keep


def sweep_block(weight: Tensor, keep: Tensor, upper: Tensor, start: int, pattern: Pattern) -> Tensor:
    work, error = weight.clone(), torch.zeros_like(weight)
    corner = upper[:, start : start + work.shape[1]]
    diagonal = corner.diagonal()
    for j in range(work.shape[1]):
        if j % pattern.group == 0:
            group = slice(j, j + pattern.group)
            score = work[:, group].square() / diagonal[group].square()
            lowest = score.topk(pattern.group - pattern.keep, dim=1, largest=False).indices
            keep[:, group].scatter_(1, lowest, False)
        column = work[:, j].clone()
        weight[:, j] = torch.where(keep[:, j], column, 0.0)
        error[:, j] = (column - weight[:, j]) / diagonal[j]
        work[:, j:] -= error[:, j : j + 1] @ corner[j : j + 1, j:]
    return error


def product(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock) -> tuple[Tensor, Tensor]:
    """The package's own, with two of its functions on the clock."""
    factor, carry = ours.upper_factor, ours._Sweep.carry

    def timed_carry(self: object, low: int, middle: int, high: int) -> None:
        if middle - low >= BLOCK:
            clock.time("products", carry, self, low, middle, high)
        else:
            carry(self, low, middle, high)

    ours.upper_factor = lambda *given: clock.time("factorisation", factor, *given)
    ours._Sweep.carry = timed_carry
    try:
        result = clock.time("total", ours.sparsegpt, weight, None, pattern, gram)
    finally:
        ours.upper_factor, ours._Sweep.carry = factor, carry
    total = clock.seconds.pop("total")
    clock.seconds["sweep"] = total - sum(clock.seconds.values())
    return result


def measure(out: int, width: int, pattern: Pattern, rounds: int, device: str) -> dict[str, object]:
    weight, gram = layer(out, width, device)
    runs: dict[str, list[Seconds]] = {"literal": [], "ours": []}
    for _ in range(rounds):
        results = {}
        for name, function in (("literal", literal), ("ours", product)):
            clock = Clock(device)
            results[name] = function(weight, gram, pattern, clock)
            runs[name].append({**clock.seconds, "total": sum(clock.seconds.values())})
    differ = (results["literal"][1] != results["ours"][1]).any(1)
    apart = (results["literal"][0] - results["ours"][0])[~differ].abs().max()
    stages = ("factorisation", "products", "sweep", "total")
    medians = {name: {stage: statistics.median(r[stage] for r in of) for stage in stages} for name, of in runs.items()}
    return {
        "shape": f"{out}x{width}",
        "seconds": medians,
        "ratio": {stage: medians["literal"][stage] / medians["ours"][stage] for stage in stages},
        "rows_with_another_mask": int(differ.sum()),
        "largest_difference_in_equal_rows": float(apart),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", default="2048x2048,2048x8192", help="rows x inputs")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    pattern = parse_pattern(given.pattern)
    if not isinstance(pattern, Pattern):
        sys.exit("--pattern: expected N:M")
    threads = torch.get_num_threads()
    print(f"{threads} threads, torch {torch.__version__}, {given.device}, {given.rounds} rounds, {pattern}")
    records = []
    for shape in given.shapes.split(","):
        record = measure(*map(int, shape.split("x")), pattern, given.rounds, given.device)
        records.append(record)
        print(f"\n{shape:12}" + "".join(f"{stage:>15}" for stage in record["ratio"]))
        for name, seconds in record["seconds"].items():
            print(f"{name:12}" + "".join(f"{value:13.3f} s" for value in seconds.values()))
        print(f"{'ratio':12}" + "".join(f"{value:14.2f}x" for value in record["ratio"].values()))
        print(f"rows with another mask: {record['rows_with_another_mask']}; ", end="")
        print(f"largest difference of a weight elsewhere: {record['largest_difference_in_equal_rows']:.1e}", flush=True)
    if given.record:
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
