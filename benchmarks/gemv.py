"""Products with packed matrices on this CPU, compared with the fastest dense ones of torch.

Measured by `eggs_ptp.bench`; see `bench/product.py` for the candidates, and `bench/timing.py` for how they are
interleaved. This script uses several numbers of threads, compares types with each other, and can measure processor
time.

A ratio is the quotient of two medians; it is marked "?" if the middle half of either's samples spreads over more than a
tenth of its median. The record has all samples. On a shared CPU, `--clock cpu` measures the time that the thread ran
instead of wall-clock time; caches and memory are shared nevertheless.

    python benchmarks/gemv.py [--shapes 4096x4096,11008x4096] [--threads 1,2] [--batches 1,2,4,8,16]
        [--patterns 2:4,4:8] [--rounds 60] [--clock wall|cpu] [--record FILE.json]
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from eggs_ptp.bench.benchmark_run import DEFAULT_DTYPES, parse_batches, parse_patterns, parse_shapes
from eggs_ptp.bench.hardware import hardware
from eggs_ptp.bench.product import ProductMeasurement, measure_shape
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import cpu

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def report(measured: ProductMeasurement, patterns: list[Pattern]) -> dict[str, list[object]]:
    """Print a measurement; return its ratios, including those between types."""
    load = f"load {measured.load_before[0]:.1f} to {measured.load_after[0]:.1f}"
    print(f"\n{measured.rows} x {measured.columns}, batch {measured.batch}, {measured.threads} thread(s), {load}")
    timings = measured.timings
    for name, timing in timings.items():
        least = min(timing.seconds) * 1e6
        print(f"  {name:22} {timing.median * 1e6:9.0f} us   spread {timing.spread:5.1%}   least {least:9.0f} us")
    pairs = []
    for pattern in patterns:
        pairs += [(f"{pattern} fp32", "dense fp32 stock"), (f"{pattern} fp32", measured.best_dense("fp32"))]
        pairs += [(f"{pattern} bf16", measured.best_dense("bf16")), (f"{pattern} bf16", "dense bf16 stock")]
        pairs += [(f"{pattern} bf16", "dense fp32 stock")]
    ratios: dict[str, list[object]] = {}
    for fast, slow in dict.fromkeys(pairs):
        value, trusted = timings[fast].speedup_over(timings[slow])
        ratios[f"{fast} over {slow}"] = [round(value, 3), trusted]
        print(f"  {fast:10} {value:5.2f}x{' ' if trusted else '?'} {slow}")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4096x4096,11008x4096", type=parse_shapes)
    parser.add_argument("--threads", default="1,2", type=parse_batches)
    parser.add_argument("--batches", default="1,2,4,8,16", type=parse_batches)
    parser.add_argument("--patterns", default="2:4,4:8", type=parse_patterns)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu counts one thread: add --threads 1")
    if reason := cpu.unsupported_reason(torch.device("cpu"), torch.float32, options.patterns[0], 64, 64, 1):
        sys.exit(f"nothing to measure: {reason}")
    record = {
        "command": " ".join(sys.argv),
        "clock": options.clock,
        "hardware": hardware(),
        "measured": (rows := []),
    }
    print(record["hardware"])
    for shape in options.shapes:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for measured in measure_shape(
                *shape,
                options.batches,
                patterns=options.patterns,
                dtypes=DEFAULT_DTYPES,
                rounds=options.rounds,
                clock=CLOCKS[options.clock],
            ):
                rows.append({**measured.to_dict(), "ratios": report(measured, options.patterns)})
                if options.record:  # after each measurement, so that an interrupted run keeps the finished ones
                    options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
