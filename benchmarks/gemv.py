"""Products with packed matrices on this processor, beside the strongest dense ones that torch has.

Every contestant multiplies the same inputs by matrices of its own. Rounds are interleaved: each runs once in every
round, in random order, on as many copies in turn as let a matrix leave every cache before it is read again. Dense are
torch's `linear` ("stock") and oneDNN's product with a weight laid out beforehand for this batch ("prepacked", what
torch's compiler uses frozen). Packed is the whole of `sparse.cpu.linear`, inputs and outputs included.

A ratio is the quotient of two medians; it is marked "?" where the middle half of either's samples spreads over more
than a tenth of its median. The record keeps all samples. On a processor that others use, too, `--clock cpu` counts the
time that the one thread ran, rather than what passed meanwhile; caches and memory are shared nevertheless.

    python benchmarks/gemv.py [--shapes 4096x4096,11008x4096] [--threads 1,2] [--batches 1,2,4,8,16]
        [--patterns 2:4,4:8] [--rounds 60] [--copies 4] [--clock wall|cpu] [--record FILE.json]
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from eggs_ptp.core.pack import pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import cpu

TRUSTED = 0.1
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Contestant = Callable[[int], Tensor]
Row = dict[str, object]


def pruned(rows: int, columns: int, pattern: Pattern) -> Tensor:
    """A random matrix with N:M zeros."""
    places = torch.rand(rows, columns // pattern.group, pattern.group).argsort(-1)
    return (torch.randn(rows, columns) * 0.02).masked_fill((places >= pattern.keep).view(rows, columns), 0)


def dense_contestants(weight: Tensor, batch: int, copies: int) -> Iterator[tuple[str, Contestant]]:
    """Stock and prepacked, in both types."""
    for name, dtype in TYPES.items():
        stock = [weight.to(dtype, copy=True) for _ in range(copies)]
        reorder, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        laid = [reorder(each, batch) for each in stock]
        x = inputs(batch, weight.shape[1], dtype)
        yield f"dense {name} stock", lambda i, x=x, stock=stock: dense_linear(x, stock[i])
        yield (
            f"dense {name} prepacked",
            lambda i, x=x, laid=laid, product=product: product(x, laid[i], None, "none", [], ""),
        )


def packed_contestants(weight: Tensor, pattern: Pattern, batch: int, copies: int) -> Iterator[tuple[str, Contestant]]:
    """The CPU backend, in both types."""
    for name, dtype in TYPES.items():
        states = [cpu.prepare(pack(weight.to(dtype), pattern)) for _ in range(copies)]
        x = inputs(batch, weight.shape[1], dtype)
        yield f"{pattern} {name}", lambda i, x=x, states=states: cpu.linear(x, states[i])


def inputs(batch: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, columns, generator=torch.Generator().manual_seed(batch)).to(dtype)


def checked(name: str, run: Contestant, weight: Tensor, batch: int) -> None:
    """No figure of a wrong product: each is compared with float64 before it is timed."""
    dtype = TYPES["bf16" if "bf16" in name else "fp32"]
    exact = inputs(batch, weight.shape[1], dtype).double() @ weight.to(dtype).double().T
    error = float((run(0).double() - exact).abs().max() / exact.abs().max())
    assert error < (1e-5 if dtype == torch.float32 else 1e-2), f"{name}, batch {batch}: relative error {error:.1e}"


def measure(rows: int, columns: int, batch: int, patterns: list[Pattern], options: argparse.Namespace) -> Row:
    weights = {str(pattern): pruned(rows, columns, pattern) for pattern in patterns}
    first = next(iter(weights.values()))
    contestants = {name: (run, first) for name, run in dense_contestants(first, batch, options.copies)}
    for pattern in patterns:
        weight = weights[str(pattern)]
        made = packed_contestants(weight, pattern, batch, options.copies)
        contestants |= {name: (run, weight) for name, run in made}
    for name, (run, weight) in contestants.items():
        checked(name, run, weight, batch)
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    before, clock = os.getloadavg(), CLOCKS[options.clock]
    order = random.Random(0)  # noqa: S311
    for turn in range(options.rounds + 2):
        for name in order.sample(list(contestants), len(contestants)):  # nobody always follows the same one
            run = contestants[name][0]
            start = clock()
            run(turn % options.copies)
            if turn >= 2:  # the first turns warm up
                samples[name].append(round((clock() - start) * 1e6, 1))
    return {
        "rows": rows,
        "columns": columns,
        "batch": batch,
        "threads": torch.get_num_threads(),
        "load_before": before,
        "load_after": os.getloadavg(),
        "microseconds": samples,
    }


def spread(samples: list[float]) -> float:
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / statistics.median(samples)


def ratio(samples: dict[str, list[float]], slow: str, fast: str) -> tuple[float, bool]:
    """How many times faster, and whether both were measured steadily."""
    value = statistics.median(samples[slow]) / statistics.median(samples[fast])
    return value, max(spread(samples[slow]), spread(samples[fast])) <= TRUSTED


def best(samples: dict[str, list[float]], name: str) -> str:
    both = (f"dense {name} stock", f"dense {name} prepacked")
    return min(both, key=lambda each: statistics.median(samples[each]))


def report(row: Row, patterns: list[Pattern]) -> dict[str, list[object]]:
    """Print a measurement; return its ratios."""
    samples: dict[str, list[float]] = row["microseconds"]  # type: ignore[assignment]
    load = f"load {row['load_before'][0]:.1f} to {row['load_after'][0]:.1f}"  # type: ignore[index]
    print(f"\n{row['rows']} x {row['columns']}, batch {row['batch']}, {row['threads']} thread(s), {load}")
    for name, each in samples.items():
        print(f"  {name:22} {statistics.median(each):9.0f} us   spread {spread(each):5.1%}   least {min(each):9.0f} us")
    wanted = []
    for pattern in patterns:
        wanted += [(f"{pattern} fp32", "dense fp32 stock"), (f"{pattern} fp32", best(samples, "fp32"))]
        wanted += [(f"{pattern} bf16", best(samples, "bf16")), (f"{pattern} bf16", "dense bf16 stock")]
        wanted += [(f"{pattern} bf16", "dense fp32 stock")]
    ratios: dict[str, list[object]] = {}
    for fast, slow in dict.fromkeys(wanted):
        value, steady = ratio(samples, slow, fast)
        ratios[f"{fast} over {slow}"] = [round(value, 3), steady]
        print(f"  {fast:10} {value:5.2f}x{' ' if steady else '?'} {slow}")
    return ratios


def hardware() -> Row:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "caches": [f"L{(c / 'level').read_text().strip()} {(c / 'size').read_text().strip()}" for c in caches],
        "tier": cpu.tier(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4096x4096,11008x4096")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--patterns", default="2:4,4:8")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != "1":
        parser.error("--clock cpu counts one thread: add --threads 1")
    patterns = [Pattern(*map(int, text.split(":"))) for text in options.patterns.split(",")]
    reason = cpu.why_not(torch.device("cpu"), torch.float32, patterns[0], 64, 64, 1)
    if reason:
        sys.exit(f"nothing to measure: {reason}")
    record = {
        "command": " ".join(sys.argv),
        "clock": options.clock,
        "hardware": hardware(),
        "measured": (measured := []),
    }
    print(record["hardware"])
    torch.manual_seed(0)
    with torch.inference_mode():
        for shape in options.shapes.split(","):
            for threads in map(int, options.threads.split(",")):
                torch.set_num_threads(threads)
                for batch in map(int, options.batches.split(",")):
                    row = measure(*map(int, shape.split("x")), batch, patterns, options)
                    measured.append({**row, "ratios": report(row, patterns)})
                    if options.record:  # after each, so that whatever stops the run leaves what was measured
                        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
