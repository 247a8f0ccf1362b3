"""DSnoT over all rows at once beside a loop over the rows, from Wanda's mask, on one matrix.

The loop draws up a row's lists with one sort each and then swaps in plain numbers, one row after the other. Both have
to end at the same mask (else exit code 1). Rounds are interleaved; seconds are medians, the ratio a median over rounds.

    python benchmarks/dsnot_speed.py [--rounds 3] [--shape 4096x4096] [--patterns 0.6,2:4] [--threads 1] [--record FILE]
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eggs_ptp.checkpoint.record import versions
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern, Pattern, parse_pattern
from eggs_ptp.refine.dsnot import dsnot

CYCLES, THRESHOLD, TOKENS = 50, 0.1, 2048
Layer = dict[str, Tensor]


def layer(out: int, width: int) -> Layer:
    """A weight, and statistics of inputs whose means are small beside their spread."""
    generator = torch.Generator().manual_seed(0)
    variance = torch.rand(width, generator=generator) + 0.1
    mean = 0.1 * torch.randn(width, generator=generator)
    return {
        "weight": torch.randn(out, width, generator=generator) / width**0.5,
        "input_mean": mean,
        "input_var": variance,
        "input_var_within": variance,
        "input_norm": (variance + mean.square()).sqrt(),
    }


def at_once(given: Layer, mask: Tensor, score: Tensor, pattern: AnyPattern) -> Tensor:
    options = {"max_cycles": CYCLES, "threshold": THRESHOLD, "sample_tokens": TOKENS}
    return dsnot(mask, score, pattern=pattern, role="attention", **given, **options)


def by_row(given: Layer, mask: Tensor, score: Tensor, pattern: AnyPattern) -> Tensor:
    result, group = mask.clone(), pattern.group if isinstance(pattern, Pattern) else 0
    for i, weight in enumerate(given["weight"]):
        part = weight * (given["input_mean"] * TOKENS)
        swap_row(result[i], part, part / given["input_var_within"], score[i], group)
    return result


def swap_row(mask: Tensor, part: Tensor, key: Tensor, score: Tensor, group: int) -> None:
    """The swaps of one row, in place: `group` is M of an N:M pattern, 0 where there is none."""
    ascending = key.sort(stable=True).indices.tolist()
    kept, parts, keys, cost = mask.tolist(), part.tolist(), key.tolist(), score.tolist()
    low = iter([j for j in ascending if not kept[j] and keys[j] < 0])
    high = iter([j for j in reversed(ascending) if not kept[j] and keys[j] > 0])
    free = list(kept)  # kept from the start, and still there
    cheapest = [] if group else score.sort(stable=True).indices.tolist()
    negative = iter([j for j in cheapest if kept[j] and parts[j] < 0])
    positive = iter([j for j in cheapest if kept[j] and parts[j] > 0])
    error = float(part.masked_fill(mask, 0.0).sum(dtype=torch.float64))
    above = error > 0
    for _ in range(CYCLES):
        if abs(error) <= THRESHOLD or (grown := next(high if error > 0 else low, None)) is None:
            break
        if group:
            start = grown // group * group
            places = [j for j in range(start, start + group) if free[j]]
            pruned = min(places, key=cost.__getitem__, default=None)
        else:
            pruned = next(negative if error > 0 else positive, None)
        if pruned is None:
            break
        after = error + parts[pruned] - parts[grown]
        if group and (after == 0 or (after > 0) != above):
            break
        mask[grown], mask[pruned], free[pruned], error = True, False, False, after


def measure(given: Layer, pattern: AnyPattern, rounds: int) -> dict[str, Any]:
    score = given["weight"].abs() * given["input_norm"]
    start = keep_top(score, pattern, group="row")
    seconds: dict[str, list[float]] = {"at_once": [], "by_row": []}
    masks = {}
    for _ in range(rounds):
        for name, function in (("by_row", by_row), ("at_once", at_once)):
            before = time.perf_counter()
            masks[name] = function(given, start, score, pattern)
            seconds[name].append(time.perf_counter() - before)
    ratios = [slow / fast for slow, fast in zip(seconds["by_row"], seconds["at_once"], strict=True)]
    return {
        "pattern": str(pattern),
        "seconds": {name: statistics.median(of) for name, of in seconds.items()},
        "times_faster": statistics.median(ratios),
        "all_seconds": seconds,
        "swaps_per_row": float((masks["at_once"] & ~start).sum()) / len(start),
        "rows_with_another_mask": int((masks["at_once"] != masks["by_row"]).any(1).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="4096x4096", help="rows x inputs")
    parser.add_argument("--patterns", default="0.6,2:4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = {"shape": given.shape, "threads": given.threads, "rounds": given.rounds}
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + f", torch {torch.__version__}\n")
    print(f"{'pattern':8} {'loop over rows':>15} {'all at once':>12} {'x faster':>9} {'swaps a row':>12} other masks")
    data, found = layer(*map(int, given.shape.split("x"))), []
    for text in given.patterns.split(","):
        row = measure(data, parse_pattern(text), given.rounds)
        found.append(row)
        print(f"{row['pattern']:8} {row['seconds']['by_row']:13.2f} s {row['seconds']['at_once']:10.3f} s ", end="")
        print(f"{row['times_faster']:9.1f} {row['swaps_per_row']:12.1f} {row['rows_with_another_mask']}", flush=True)
    if given.record:
        whole = {"command": "python " + " ".join(sys.argv), "versions": versions(), **setting, "rows": found}
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps(whole, indent=1) + "\n")
    if any(row["rows_with_another_mask"] for row in found):
        sys.exit("the two ended at different masks")


if __name__ == "__main__":
    main()
