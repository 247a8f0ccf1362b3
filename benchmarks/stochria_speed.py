"""StochRIA's sampled sums compared with RIA's full sums, and its score with RIA's, on one matrix on the CPU.

Rounds are interleaved; times are medians. A ratio is the median divided by RIA's: below 1 is faster. `sums` are only
the two sums, of magnitudes that are already computed; `score` is the whole score, which also reads and writes the
matrix. Its row `full sums` is StochRIA's arithmetic without sampling: it works in place where RIA's does not.

    python benchmarks/stochria_speed.py [--rounds 5] [--shape 4096x14336] [--beta 0.1] [--threads 1] [--record FILE]
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from eggs_ptp.checkpoint.run_record import versions
from eggs_ptp.core.seed import generator_for
from eggs_ptp.score._relative import relative
from eggs_ptp.score._sample import sampled_sums
from eggs_ptp.score.ria import ria
from eggs_ptp.score.stochria import stochria

DRAWS = {
    "shared": {"shared": True, "replacement": False},
    "each": {"shared": False, "replacement": False},
    "each with replacement": {"shared": False, "replacement": True},
}
CONTROL = "full sums"  # StochRIA's arithmetic without its samples
SAME = 0.05  # ratios closer to 1 than this count as equal


def full_sums(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    return magnitude.sum(1, keepdim=True), magnitude.sum(0, keepdim=True)


def sampled_row_and_column_sums(
    magnitude: Tensor, count: int, shared: bool, replacement: bool
) -> tuple[Tensor, Tensor]:
    generator = generator_for(0, "sums")
    sums = functools.partial(sampled_sums, generator=generator, shared=shared, replacement=replacement)
    return sums(magnitude, 1, count), sums(magnitude, 0, count)


def sampled_score(weight: Tensor, norm: Tensor, beta: float, shared: bool, replacement: bool) -> Tensor:
    draw = "shared" if shared else "each"
    return stochria(weight, norm, generator_for(0, "score"), beta=beta, draw=draw, replacement=replacement)


def control_score(weight: Tensor, norm: Tensor) -> Tensor:
    """The arithmetic of `stochria` with full sums, to separate the effect of sampling from that of the arithmetic."""
    magnitude = weight.float().abs()
    row_sums, column_sums = full_sums(magnitude)
    score = relative(magnitude, column_sums)
    score += relative(magnitude, row_sums)
    score *= norm.float().pow(0.5)
    return score


def functions_to_time(out: int, width: int, beta: float) -> dict[str, dict[str, Callable[[], object]]]:
    """Return the functions by quantity (sums or score) and name."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator)
    norm = torch.rand(width, generator=generator)
    magnitude = weight.abs()
    count = max(1, int(beta * min(out, width)))
    functions = {
        "sums": {"ria": functools.partial(full_sums, magnitude)},
        "score": {"ria": functools.partial(ria, weight, norm), CONTROL: functools.partial(control_score, weight, norm)},
    }
    for name, options in DRAWS.items():
        functions["sums"][name] = functools.partial(sampled_row_and_column_sums, magnitude, count, **options)
        functions["score"][name] = functools.partial(sampled_score, weight, norm, beta, **options)
    return functions


def measure(functions: dict[str, dict[str, Callable[[], object]]], rounds: int) -> dict[str, dict[str, dict]]:
    """Return seconds and ratios to RIA by quantity and name; the first round, which warms up, is not counted."""
    samples: dict[str, dict[str, list[float]]] = {
        quantity: {name: [] for name in by_name} for quantity, by_name in functions.items()
    }
    for round_index in range(rounds + 1):
        for quantity, by_name in functions.items():
            for name, function in by_name.items():
                start = time.perf_counter()
                function()
                if round_index:
                    samples[quantity][name].append(time.perf_counter() - start)
    record: dict[str, dict[str, dict]] = {}
    for quantity, seconds_by_name in samples.items():
        medians = {name: statistics.median(seconds) for name, seconds in seconds_by_name.items()}
        record[quantity] = {
            name: {"seconds": median, "ratio_to_ria": median / medians["ria"], "all_seconds": seconds_by_name[name]}
            for name, median in medians.items()
        }
    return record


def verdict(quantity: str, rows: dict[str, dict]) -> str:
    """State which kinds of sampling are faster than RIA, and which are not."""
    ratios = {name: rows[name]["ratio_to_ria"] for name in DRAWS}
    groups = {
        "faster than RIA": [f"{name} ({ratio:.2f}x)" for name, ratio in ratios.items() if ratio < 1 - SAME],
        "about equal": [f"{name} ({ratio:.2f}x)" for name, ratio in ratios.items() if abs(ratio - 1) <= SAME],
        "slower than RIA": [f"{name} ({ratio:.2f}x)" for name, ratio in ratios.items() if ratio > 1 + SAME],
    }
    return (
        f"{quantity}: " + "; ".join(f"{group}: {', '.join(names) or 'none'}" for group, names in groups.items()) + "."
    )


def explanation(rows: dict[str, dict[str, dict]]) -> str:
    """State the share of the sums in RIA's score, and the cost of StochRIA's arithmetic without sampling."""
    share = rows["sums"]["ria"]["seconds"] / rows["score"]["ria"]["seconds"]
    control = rows["score"][CONTROL]["ratio_to_ria"]
    return (
        f"The sums are {share:.0%} of RIA's score, so sampling alone can make it {1 - share:.2f}x at best; "
        f"StochRIA's arithmetic with full sums, without sampling, is {control:.2f}x."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default="4096x14336", help="rows x inputs")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = {
        "shape": arguments.shape,
        "beta": arguments.beta,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + f", torch {torch.__version__}")
    out, width = map(int, arguments.shape.split("x"))
    rows = measure(functions_to_time(out, width, arguments.beta), arguments.rounds)
    for quantity, by_name in rows.items():
        print(f"\n{quantity:24}{'seconds':>9}{'x RIA':>9}")
        for name, row in by_name.items():
            print(f"{name:24}{row['seconds']:9.3f}{row['ratio_to_ria']:9.2f}")
    conclusion = [*(verdict(quantity, by_name) for quantity, by_name in rows.items()), explanation(rows)]
    print("\n" + "\n".join(conclusion))
    if arguments.record:
        record = {"command": "python " + " ".join(sys.argv), "versions": versions(), **setting}
        record |= {"rows": rows, "conclusion": conclusion}
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
