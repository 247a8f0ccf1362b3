"""Which of two methods is better on this model? Several seeds, and a paired test on the same windows.

For whole tables use `eggs compare`; this is what it does, and the paired interval besides.
"""

import statistics
import sys
from pathlib import Path

from eggs_ptp import assess, evaluate, prune

out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples/compare")
methods = ("wanda", "ria_cp")
seeds = range(3)

for method in methods:
    values = []
    for seed in seeds:
        prune("demo", out / f"{method}-{seed}", method=method, seed=seed, nsamples=16, overwrite=True)
        values.append(evaluate(out / f"{method}-{seed}", max_windows=20).value)
    print(f"{method}: perplexity {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} over calibration seeds")

# Both models find the same windows hard, so their difference is known better than either perplexity.
first, second = (out / f"{method}-0" for method in methods)
ratio = assess(first, against=second, max_windows=20).perplexity_ratio()
print(f"{methods[0]} / {methods[1]} with seed 0: {ratio.value:.3f}, 95 % interval {ratio.low:.3f} to {ratio.high:.3f}")
