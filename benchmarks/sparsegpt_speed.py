"""SparseGPT at N:M on one matrix, compared with two literal implementations of arXiv:2301.00774, algorithm 1.

`columns` prunes column after column, each time correcting all columns to its right. `blocks` does so within blocks of
128 columns only, and then propagates the errors of the whole block in one product, as the published algorithm does.
Times are reported separately for the factorisation (everything before the first column), the products (corrections of
columns beyond the own block of 128; `columns` has none), and the sweep within blocks. All run in one process, with
rounds interleaved; seconds are medians, ratios are medians over the rounds.

Masks: the reference is `columns` in float64 on the same Hessian. This project's implementation (`ours`) in float64 must
choose the same mask (otherwise exit code 1). In float32 a near tie may be resolved differently, which changes the rest
of its row; for all three implementations in float32 the number of such rows is counted. Beyond --widest inputs
`columns` would take a quarter of an hour per run: it is left out, and `blocks` in float64 is the reference.

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

from eggs_ptp.checkpoint.run_record import versions
from eggs_ptp.core.pattern import Pattern, parse_pattern
from eggs_ptp.update import sparsegpt as ours

BLOCK, DAMPING = 128, 0.01
STAGES = ("factorisation", "products", "sweep")
Result = tuple[Tensor, Tensor]  # weight, mask


def layer(out: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Return weights with columns of different scale, and the Gram matrix of inputs that share 512 sources."""
    generator = torch.Generator().manual_seed(out + width)
    weight = torch.randn(out, width, generator=generator) * torch.rand(width, generator=generator).exp()
    shared = torch.randn(512, width, generator=generator)
    independent = torch.rand(width, generator=generator) + 0.1
    return weight.to(device), (shared.T @ shared / len(shared) + independent.diag()).to(device)


class Clock:
    """Measures the seconds of each stage, with the device synchronised."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def time(self, stage: str, function: Callable[..., Any], *args: object) -> Any:
        self._synchronise()
        start = time.perf_counter()
        result = function(*args)
        self._synchronise()
        self.seconds[stage] += time.perf_counter() - start
        return result


def literal(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock, block: int) -> Result:
    """Run algorithm 1, with errors propagated beyond a block of columns once it is pruned."""
    upper = clock.time("factorisation", inverse_factor, gram)
    weight = weight.clone()
    keep = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        corner = upper[start:stop, start:stop]
        error = clock.time("sweep", sweep, weight[:, start:stop], keep[:, start:stop], corner, pattern)
        clock.time("products", lambda a, b, e: weight[:, b:].sub_(e @ upper[a:b, b:]), start, stop, error)
    return weight, keep


def inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped Gram matrix."""
    hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def sweep(weight: Tensor, keep: Tensor, upper: Tensor, pattern: Pattern) -> Tensor:
    """Prune these columns of weight and mask in place; return errors divided by their column's diagonal entry."""
    work = weight.clone(memory_format=torch.contiguous_format)  # so that a few columns are contiguous
    error = torch.zeros_like(work)
    diagonal = upper.diagonal()
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


def package(weight: Tensor, gram: Tensor, pattern: Pattern, clock: Clock) -> Result:
    """Run the package's implementation, with two of its functions timed."""
    factor, carry = ours.upper_factor, ours._Sweep.carry

    def timed_carry(self: object, low: int, middle: int, high: int) -> None:
        if middle - low >= BLOCK:
            clock.time("products", carry, self, low, middle, high)
        else:
            carry(self, low, middle, high)

    ours.upper_factor = lambda *args: clock.time("factorisation", factor, *args)
    ours._Sweep.carry = timed_carry
    before = sum(clock.seconds.values())
    try:
        result = clock.time("sweep", ours.sparsegpt, weight, None, pattern, gram)
    finally:
        ours.upper_factor, ours._Sweep.carry = factor, carry
    clock.seconds["sweep"] -= clock.seconds["factorisation"] + clock.seconds["products"] - before
    return result


IMPLEMENTATIONS = {"columns": by_columns, "blocks": by_blocks, "ours": package}


def measure(out: int, width: int, pattern: Pattern, rounds: int, device: str, widest: int = 4096) -> dict[str, Any]:
    weight, gram = layer(out, width, device)
    implementations = {
        name: function for name, function in IMPLEMENTATIONS.items() if name != "columns" or width <= widest
    }
    reference_name = next(iter(implementations))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in implementations}
    masks = {}
    for _ in range(rounds):
        for name, function in implementations.items():
            clock = Clock(gram.device)
            masks[f"{name}, float32"] = function(weight, gram, pattern, clock)[1]
            runs[name].append({**clock.seconds, "total": sum(clock.seconds.values())})
    float64 = (weight.double(), gram.double(), pattern, Clock(gram.device))
    reference_weight, reference_mask = implementations[reference_name](*float64)
    updated_weight, masks["ours, float64"] = package(*float64)
    totals = {name: [run["total"] for run in samples] for name, samples in runs.items()}
    return {
        "shape": f"{out}x{width}",
        "seconds": {
            name: {stage: statistics.median(run[stage] for run in samples) for stage in (*STAGES, "total")}
            for name, samples in runs.items()
        },
        "times_faster": {
            name: statistics.median(a / b for a, b in zip(totals[name], totals["ours"], strict=True))
            for name in implementations
            if name != "ours"
        },
        "all_totals": totals,
        "reference": reference_name,
        "rows_with_another_mask": {name: int((mask != reference_mask).any(1).sum()) for name, mask in masks.items()},
        "largest_difference_in_float64": float((updated_weight - reference_weight).abs().max()),
    }


def show(layer: dict[str, Any]) -> None:
    print(f"\n{layer['shape']:12}" + "".join(f"{stage:>15}" for stage in (*STAGES, "total")))
    for name, seconds in layer["seconds"].items():
        print(f"{name:12}" + "".join(f"{value:13.3f} s" for value in seconds.values()))
    ratios = ", ".join(f"{ratio:.2f}x faster than {name}" for name, ratio in layer["times_faster"].items())
    print(f"ours, in total: {ratios}")
    rows = ", ".join(f"{name}: {count}" for name, count in layer["rows_with_another_mask"].items())
    count = layer["shape"].split("x")[0]
    print(f"of {count} rows with another mask than {layer['reference']} in float64: {rows}")
    print(f"largest difference of a weight in float64: {layer['largest_difference_in_float64']:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", default="2048x2048,2048x8192", help="rows x inputs")
    parser.add_argument("--widest", type=int, default=4096, help="run `columns` for up to this many inputs")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    pattern = parse_pattern(arguments.pattern)
    if not isinstance(pattern, Pattern) or BLOCK % pattern.group:
        sys.exit(f"--pattern: expected N:M with M a divisor of {BLOCK}")
    setting = {"pattern": str(pattern), "rounds": arguments.rounds, "threads": torch.get_num_threads()}
    setting |= {"device": arguments.device}
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + f", torch {torch.__version__}")
    layers = []
    for shape in arguments.shapes.split(","):
        layers.append(
            measure(*map(int, shape.split("x")), pattern, arguments.rounds, arguments.device, arguments.widest)
        )
        show(layers[-1])
    if arguments.record:
        record = {"command": "python " + " ".join(sys.argv), "versions": versions(), **setting, "layers": layers}
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    if any(layer["rows_with_another_mask"]["ours, float64"] for layer in layers):
        sys.exit("ours in float64 chose another mask than the literal sweep in float64")


if __name__ == "__main__":
    main()
