"""StochRIA's sampled sums beside RIA's full sums, and the whole scores beside RIA's, on one matrix on the CPU.

Rounds are interleaved; medians. A ratio is of medians, time over RIA's: below 1 is cheaper. `sums` is only the two
sums, from sizes that are already there; `score` is all that a score does, which reads and writes the matrix as well.
Its row `full sums` is StochRIA's arithmetic, which is in place where RIA's is not, with nothing sampled.

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

from eggs_ptp.checkpoint.record import versions
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
SAME = 0.05  # nearer to 1 than this is neither cheaper nor dearer


def full_sums(size: Tensor) -> tuple[Tensor, Tensor]:
    return size.sum(1, keepdim=True), size.sum(0, keepdim=True)


def some_sums(size: Tensor, count: int, shared: bool, replacement: bool) -> tuple[Tensor, Tensor]:
    generator = generator_for(0, "sums")
    sums = functools.partial(sampled_sums, generator=generator, shared=shared, replacement=replacement)
    return sums(size, 1, count), sums(size, 0, count)


def some_score(weight: Tensor, norm: Tensor, beta: float, shared: bool, replacement: bool) -> Tensor:
    draw = "shared" if shared else "each"
    return stochria(weight, norm, generator_for(0, "score"), beta=beta, draw=draw, replacement=replacement)


def control_score(weight: Tensor, norm: Tensor) -> Tensor:
    """What `stochria` does around its samples, with full sums: tells the samples' part from that of the arithmetic."""
    size = weight.float().abs()
    row, column = full_sums(size)
    score = relative(size, column)
    score += relative(size, row)
    score *= norm.float().pow(0.5)
    return score


def contestants(out: int, width: int, beta: float) -> dict[str, dict[str, Callable[[], object]]]:
    generator = torch.Generator().manual_seed(0)
    weight, norm = torch.randn(out, width, generator=generator), torch.rand(width, generator=generator)
    size, count = weight.abs(), max(1, int(beta * min(out, width)))
    found = {
        "sums": {"ria": functools.partial(full_sums, size)},
        "score": {"ria": functools.partial(ria, weight, norm), CONTROL: functools.partial(control_score, weight, norm)},
    }
    for name, how in DRAWS.items():
        found["sums"][name] = functools.partial(some_sums, size, count, **how)
        found["score"][name] = functools.partial(some_score, weight, norm, beta, **how)
    return found


def measure(functions: dict[str, dict[str, Callable[[], object]]], rounds: int) -> dict[str, dict[str, dict]]:
    """Seconds and ratios to RIA by what is done and who does it; the first round, which warms up, is not counted."""
    seen: dict[str, dict[str, list[float]]] = {what: {name: [] for name in of} for what, of in functions.items()}
    for turn in range(rounds + 1):
        for what, of in functions.items():
            for name, function in of.items():
                start = time.perf_counter()
                function()
                if turn:
                    seen[what][name].append(time.perf_counter() - start)
    record: dict[str, dict[str, dict]] = {}
    for what, runs in seen.items():
        medians = {name: statistics.median(seconds) for name, seconds in runs.items()}
        record[what] = {
            name: {"seconds": median, "ratio_to_ria": median / medians["ria"], "all_seconds": runs[name]}
            for name, median in medians.items()
        }
    return record


def sentence(what: str, found: dict[str, dict]) -> str:
    """Which draws are cheaper than RIA's, and which are not."""
    ratios = {name: found[name]["ratio_to_ria"] for name in DRAWS}
    verdicts = {
        "cheaper than RIA's": [f"{name} ({ratio:.2f}x)" for name, ratio in ratios.items() if ratio < 1 - SAME],
        "about the same": [f"{name} ({ratio:.2f}x)" for name, ratio in ratios.items() if abs(ratio - 1) <= SAME],
        "dearer than RIA's": [f"{name} ({ratio:.2f}x)" for name, ratio in ratios.items() if ratio > 1 + SAME],
    }
    return f"{what}: " + "; ".join(f"{verdict}: {', '.join(of) or 'none'}" for verdict, of in verdicts.items()) + "."


def where_from(found: dict[str, dict[str, dict]]) -> str:
    """How much of RIA's score its sums are, and what StochRIA's arithmetic alone does to it."""
    share = found["sums"]["ria"]["seconds"] / found["score"]["ria"]["seconds"]
    control = found["score"][CONTROL]["ratio_to_ria"]
    return (
        f"The sums are {share:.0%} of RIA's score, so sampling alone can make it {1 - share:.2f}x at best; "
        f"StochRIA's arithmetic with full sums, nothing sampled, is {control:.2f}x."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", default="4096x14336", help="rows x inputs")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    setting = {"shape": given.shape, "beta": given.beta, "threads": given.threads, "rounds": given.rounds}
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + f", torch {torch.__version__}")
    out, width = map(int, given.shape.split("x"))
    found = measure(contestants(out, width, given.beta), given.rounds)
    for what, of in found.items():
        print(f"\n{what:24}{'seconds':>9}{'x RIA':>9}")
        for name, row in of.items():
            print(f"{name:24}{row['seconds']:9.3f}{row['ratio_to_ria']:9.2f}")
    said = [*(sentence(what, of) for what, of in found.items()), where_from(found)]
    print("\n" + "\n".join(said))
    if given.record:
        whole = {"command": "python " + " ".join(sys.argv), "versions": versions()}
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps({**whole, **setting, "rows": found, "conclusion": said}, indent=1) + "\n")


if __name__ == "__main__":
    main()
