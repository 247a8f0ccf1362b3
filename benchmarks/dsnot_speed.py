"""DSnoT for all rows at once, compared with a loop over the rows, from Wanda's mask of one matrix.

The loop sorts the candidates of a row once and then swaps in plain Python, row after row. Both must give the same mask
(otherwise exit code 1). Rounds are interleaved; seconds are medians, the ratio is a median over the rounds.

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

from eggs_ptp.checkpoint.run_record import versions
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import AnyPattern, Pattern, parse_pattern
from eggs_ptp.refine.dsnot import dsnot

CYCLES, THRESHOLD, TOKENS = 50, 0.1, 2048
Layer = dict[str, Tensor]


def make_layer(out: int, width: int) -> Layer:
    """Return a weight, and statistics of inputs whose means are small compared with their deviations."""
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


def at_once(layer: Layer, mask: Tensor, score: Tensor, pattern: AnyPattern) -> Tensor:
    options = {"max_cycles": CYCLES, "threshold": THRESHOLD, "sample_tokens": TOKENS}
    return dsnot(mask, score, pattern=pattern, role="attention", **layer, **options)


def by_row(layer: Layer, mask: Tensor, score: Tensor, pattern: AnyPattern) -> Tensor:
    result = mask.clone()
    group = pattern.group if isinstance(pattern, Pattern) else 0
    for row, weight in enumerate(layer["weight"]):
        contribution = weight * (layer["input_mean"] * TOKENS)
        swap_row(result[row], contribution, contribution / layer["input_var_within"], score[row], group)
    return result


def swap_row(mask: Tensor, contribution: Tensor, key: Tensor, score: Tensor, group: int) -> None:
    """Do the swaps of one row, in place.

    Args:
        mask: The row's mask (in,).
        contribution: What each weight contributes to the expected output (in,).
        key: By which pruned weights are chosen to be grown (in,).
        score: By which kept weights are chosen to be pruned (in,).
        group: M of an N:M pattern; 0 for an unstructured one.
    """
    ascending = key.sort(stable=True).indices.tolist()
    kept = mask.tolist()
    contributions = contribution.tolist()
    keys = key.tolist()
    scores = score.tolist()
    grow_negative = iter([j for j in ascending if not kept[j] and keys[j] < 0])
    grow_positive = iter([j for j in reversed(ascending) if not kept[j] and keys[j] > 0])
    prunable = list(kept)  # kept from the start, and not pruned since
    by_score = [] if group else score.sort(stable=True).indices.tolist()
    prune_negative = iter([j for j in by_score if kept[j] and contributions[j] < 0])
    prune_positive = iter([j for j in by_score if kept[j] and contributions[j] > 0])
    error = float(contribution.masked_fill(mask, 0.0).sum(dtype=torch.float64))
    was_positive = error > 0
    for _ in range(CYCLES):
        if abs(error) <= THRESHOLD:
            break
        grown = next(grow_positive if error > 0 else grow_negative, None)
        if grown is None:
            break
        if group:
            start = grown // group * group
            candidates = [j for j in range(start, start + group) if prunable[j]]
            pruned = min(candidates, key=scores.__getitem__, default=None)
        else:
            pruned = next(prune_negative if error > 0 else prune_positive, None)
        if pruned is None:
            break
        new_error = error + contributions[pruned] - contributions[grown]
        if group and (new_error == 0 or (new_error > 0) != was_positive):
            break
        mask[grown] = True
        mask[pruned] = False
        prunable[pruned] = False
        error = new_error


def measure(layer: Layer, pattern: AnyPattern, rounds: int) -> dict[str, Any]:
    score = layer["weight"].abs() * layer["input_norm"]
    start = keep_top(score, pattern, group="row")
    seconds: dict[str, list[float]] = {"at_once": [], "by_row": []}
    masks = {}
    for _ in range(rounds):
        for name, function in (("by_row", by_row), ("at_once", at_once)):
            before = time.perf_counter()
            masks[name] = function(layer, start, score, pattern)
            seconds[name].append(time.perf_counter() - before)
    ratios = [slow / fast for slow, fast in zip(seconds["by_row"], seconds["at_once"], strict=True)]
    return {
        "pattern": str(pattern),
        "seconds": {name: statistics.median(samples) for name, samples in seconds.items()},
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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = {"shape": arguments.shape, "threads": arguments.threads, "rounds": arguments.rounds}
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + f", torch {torch.__version__}\n")
    print(f"{'pattern':8} {'loop over rows':>15} {'all at once':>12} {'x faster':>9} {'swaps a row':>12} other masks")
    layer = make_layer(*map(int, arguments.shape.split("x")))
    rows = []
    for pattern in arguments.patterns.split(","):
        row = measure(layer, parse_pattern(pattern), arguments.rounds)
        rows.append(row)
        print(f"{row['pattern']:8} {row['seconds']['by_row']:13.2f} s {row['seconds']['at_once']:10.3f} s ", end="")
        print(f"{row['times_faster']:9.1f} {row['swaps_per_row']:12.1f} {row['rows_with_another_mask']}", flush=True)
    if arguments.record:
        record = {"command": "python " + " ".join(sys.argv), "versions": versions(), **setting, "rows": rows}
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    if any(row["rows_with_another_mask"] for row in rows):
        sys.exit("the masks differ")


if __name__ == "__main__":
    main()
