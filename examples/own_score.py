"""Prune with a score of your own: a function whose parameters name the statistics that it needs.

docs/guides/adding-a-score.md explains the interface, and how to use such a function from the command line.
"""

import sys
from pathlib import Path

from torch import Tensor

from eggs_ptp import evaluate, prune


def fluctuation(weight: Tensor, input_mean: Tensor, input_var: Tensor, *, mean: float = 0.0) -> Tensor:
    """|W_ij| * sqrt(v_j + mean * m_j^2), m_j and v_j the mean and variance of input j; mean = 1 is Wanda."""
    return weight.abs() * (input_var + mean * input_mean.square()).sqrt()


def main(out: Path) -> None:
    """Only the score differs; patterns, permutations and updates work as with a built-in score."""
    for mean in (0.0, 1.0):
        score = {"name": "own_score:fluctuation", "mean": mean}  # module:function, as Python imports it
        prune("demo", out / f"{mean}", method="wanda", steps={"score": score}, nsamples=16, overwrite=True)
        print(f"mean = {mean}: perplexity {evaluate(out / f'{mean}', max_windows=20).value:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples/score"))
