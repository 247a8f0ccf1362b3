"""SparseGPT at N:M on one matrix, beside two literal readings of arXiv:2301.00774, algorithm 1.

`columns` settles column after column, each time correcting every column to its right. `blocks` does so within blocks
of 128 columns only and then carries the errors of the whole block on in one product, as the published algorithm does.
Stated apart: factorisation (all before the first column), products (what settled columns do to columns beyond their
own block of 128; `columns` has none), and the sweep inside the blocks. All run in one process, rounds interleaved;
seconds are medians, ratios medians over the rounds.

Masks: the reference is `columns` in float64 on the same Hessian. Ours in float64 has to choose the same mask (else exit
code 1). In float32 a near tie may fall either way, and the rest of its row then follows; for ours and for both literal
sweeps in float32 it is counted in how many rows that happens. Beyond --widest inputs `columns` would take a quarter of
an hour a run: it is left out, and `blocks` in float64 is the reference.

    python benchmarks/sparsegpt_speed.py [--rounds 3] [--shapes 2048x2048,2048x8192] [--widest 4096] [--pattern 2:4]
                                         [--device cpu] [--record FILE]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.checkpoint.record import versions
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.update import sparsegpt as ours

BLOCK, DAMPING = 128, 0.01
STAGES = ("factorisation", "products", "sweep")
Result = tuple[Tensor, Tensor]  # weight, mask


def layer(out: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Weights of unlike columns, and the gram of inputs that share 512 sources."""
    generator = torch.Generator().manual_seed(out + width)
    weight = torch.randn(out, width, generator=generator) * torch.rand(width, generator=generator).exp()
    shared = torch.randn(512, width, generator=generator)
    own = torch.rand(width, generator=generator) + 0.1
    return weight.to(device), (shared.T @ shared / len(shared) + own.diag()).to(device)


class Clock:
    """Seconds by stage; waits for the device before it looks."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def time(self, stage: str, function: Callable[..., Any], *given: object) -> Any:
        self._wait()
        start = time.perf_counter()
        result = function(*given)
        self._wait()
        self.seconds[stage] += time.perf_counter() - start
        return result


def literal(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock, block: int) -> Result:
    """Algorithm 1, errors carried beyond a block of columns once it is settled."""
    upper = clock.time("factorisation", inverse_factor, gram)
    weight, keep = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        corner = upper[start:stop, start:stop]
        error = clock.time("sweep", sweep, weight[:, start:stop], keep[:, start:stop], corner, pattern)
        clock.time("products", lambda a, b, e: weight[:, b:].sub_(e @ upper[a:b, b:]), start, stop, error)
    return weight, keep


def inverse_factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped gram."""
    hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def sweep(weight: Tensor, keep: Tensor, upper: Tensor, pattern: Pattern) -> Tensor:
    """Settle these columns of weight and mask in place; returns their errors, each over its column's diagonal entry."""
    work = weight.clone(memory_format=torch.contiguous_format)  # a few columns in one piece
    error, diagonal = torch.zeros_like(work), upper.diagonal()
    for j in range(work.shape[1]):
        if j % pattern.group == 0:
            group = slice(j, j + pattern.group)
            score = work[:, group].square() / diagonal[group].square()
            lowest = score.topk(pattern.group - pattern.keep, dim=1, largest=False).indices
            keep[:, group].scatter_(1, lowest, False)
        error[:, j] = work[:, j].masked_fill(keep[:, j], 0.0) / diagonal[j]
        work[:, j:].addr_(error[:, j], upper[j, j:], alpha=-1)
    weight.copy_(work.masked_fill_(~keep, 0.0))
    return error


def by_columns(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock) -> Result:
    return literal(weight, gram, pattern, clock, len(gram))


def by_blocks(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock) -> Result:
    return literal(weight, gram, pattern, clock, BLOCK)


def product(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock) -> Result:
    """The package's own, with two of its functions on the clock."""
    factor, carry = ours.upper_factor, ours._Sweep.carry

    def timed_carry(self: object, low: int, middle: int, high: int) -> None:
        if middle - low >= BLOCK:
            clock.time("products", carry, self, low, middle, high)
        else:
            carry(self, low, middle, high)

    ours.upper_factor = lambda *given: clock.time("factorisation", factor, *given)
    ours._Sweep.carry = timed_carry
    before = sum(clock.seconds.values())
    try:
        result = clock.time("sweep", ours.sparsegpt, weight, None, pattern, gram)
    finally:
        ours.upper_factor, ours._Sweep.carry = factor, carry
    clock.seconds["sweep"] -= clock.seconds["factorisation"] + clock.seconds["products"] - before
    return result


CONTESTANTS = {"columns": by_columns, "blocks": by_blocks, "ours": product}


def measure(out: int, width: int, pattern: Pattern, rounds: int, device: str, widest: int = 4096) -> dict[str, Any]:
    weight, gram = layer(out, width, device)
    contestants = {name: run for name, run in CONTESTANTS.items() if name != "columns" or width <= widest}
    trusted = next(iter(contestants))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    masks = {}
    for _ in range(rounds):
        for name, function in contestants.items():
            clock = Clock(gram.device)
            masks[f"{name}, float32"] = function(weight, gram, pattern, clock)[1]
            runs[name].append({**clock.seconds, "total": sum(clock.seconds.values())})
    precise = (weight.double(), gram.double(), pattern, Clock(gram.device))
    reference, mask = contestants[trusted](*precise)
    updated, masks["ours, float64"] = product(*precise)
    totals = {name: [run["total"] for run in of] for name, of in runs.items()}
    return {
        "shape": f"{out}x{width}",
        "seconds": {
            name: {stage: statistics.median(run[stage] for run in of) for stage in (*STAGES, "total")}
            for name, of in runs.items()
        },
        "times_faster": {
            name: statistics.median(a / b for a, b in zip(totals[name], totals["ours"], strict=True))
            for name in contestants
            if name != "ours"
        },
        "all_totals": totals,
        "reference": trusted,
        "rows_with_another_mask": {name: int((found != mask).any(1).sum()) for name, found in masks.items()},
        "largest_difference_in_float64": float((updated - reference).abs().max()),
    }


def show(found: dict[str, Any]) -> None:
    print(f"\n{found['shape']:12}" + "".join(f"{stage:>15}" for stage in (*STAGES, "total")))
    for name, seconds in found["seconds"].items():
        print(f"{name:12}" + "".join(f"{value:13.3f} s" for value in seconds.values()))
    ratios = ", ".join(f"{ratio:.2f}x faster than {name}" for name, ratio in found["times_faster"].items())
    print(f"ours, in total: {ratios}")
    rows = ", ".join(f"{name}: {count}" for name, count in found["rows_with_another_mask"].items())
    print(f"rows of {found['shape'].split('x')[0]} whose mask is not that of {found['reference']} in float64: {rows}")
    print(f"largest difference of a weight in float64: {found['largest_difference_in_float64']:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", default="2048x2048,2048x8192", help="rows x inputs")
    parser.add_argument("--widest", type=int, default=4096, help="inputs up to which `columns` runs")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    pattern = parse_pattern(given.pattern)
    if not isinstance(pattern, Pattern) or BLOCK % pattern.group:
        sys.exit(f"--pattern: expected N:M with M a divisor of {BLOCK}")
    setting = {"pattern": str(pattern), "rounds": given.rounds, "threads": torch.get_num_threads()}
    setting |= {"device": given.device}
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + f", torch {torch.__version__}")
    found = []
    for shape in given.shapes.split(","):
        found.append(measure(*map(int, shape.split("x")), pattern, given.rounds, given.device, given.widest))
        show(found[-1])
    if given.record:
        whole = {"command": "python " + " ".join(sys.argv), "versions": versions(), **setting, "layers": found}
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps(whole, indent=1) + "\n")
    if any(each["rows_with_another_mask"]["ours, float64"] for each in found):
        sys.exit("ours in float64 chose another mask than the literal sweep in float64")


if __name__ == "__main__":
    main()
