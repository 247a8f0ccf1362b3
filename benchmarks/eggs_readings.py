"""Readings of EGGS-PTP: every kind of diagonal block and B, compared with RIA with the same permutation, over seeds.

    python benchmarks/eggs_readings.py MODEL --calibration TEXT --text TEXT [--pattern 2:4] [--seeds 3] [--record FILE]

Each row prunes the model once per seed, which draws the calibration windows, and evaluates it on the same windows.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

KINDS = ("circulant", "staircase", "forced", "block", "best")
BLOCKS: tuple[int | str, ...] = (1, "auto")
MORE_BLOCKS = (2, 5)
KINDS_WITH_MORE_BLOCKS = ("circulant", "best")


def rows_for(pattern: str) -> list[tuple[str, dict]]:
    """Return labels and settings of all rows that the pattern allows."""
    keep, group = (int(part) for part in pattern.split(":"))
    rows: list[tuple[str, dict]] = [
        ("ria", {"method": "ria"}),
        ("ria_cp", {"method": "ria_cp"}),
        ("eggs_paper", {"method": "eggs_paper"}),
    ]
    for kind in KINDS:
        if kind == "block" and group % keep:
            continue
        for blocks in (*BLOCKS, *(MORE_BLOCKS if kind in KINDS_WITH_MORE_BLOCKS else ())):
            options = {"diagonal": kind, "B": blocks}
            rows.append((f"eggs {kind} B={blocks}", {"method": "eggs", "steps": {"select": options}}))
    for label, options in (
        ("circulant offset=best", {"diagonal": "circulant", "offset": "best", "B": 2}),
        ("rri=weight", {"rri": "weight", "B": 2}),
        ("rri=score", {"rri": "score", "B": 2}),
    ):
        rows.append((f"eggs {label} B=2", {"method": "eggs", "steps": {"select": options}}))
    if group % keep == 0:
        short = {"diagonal": "staircase", "block": "short", "B": 2}
        rows.append(("eggs short staircase B=2", {"method": "eggs", "steps": {"select": short}}))
    rows.append(("eggs B=auto, one permutation per matrix", {"method": "eggs", "share": "matrix"}))
    rows.append(("ria_cp, one permutation per matrix", {"method": "ria_cp", "share": "matrix"}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=None)
    parser.add_argument("--max-windows", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()

    from eggs_ptp import evaluate, prune
    from eggs_ptp.checkpoint.run_record import versions

    def measure(model: str) -> float:
        return evaluate(model, arguments.text, max_windows=arguments.max_windows).value

    dense = measure(arguments.model)
    print(f"dense {dense:.3f}")
    rows = {}
    print(f"{'row':38} {'mean':>8} {'sd':>6}  {'each seed':24} B")
    with tempfile.TemporaryDirectory() as scratch:
        for label, settings in rows_for(arguments.pattern):
            values = []
            blocks = []
            for seed in range(arguments.seeds):
                run_record = prune(
                    arguments.model,
                    f"{scratch}/model",
                    overwrite=True,
                    pattern=arguments.pattern,
                    calibration=arguments.calibration,
                    nsamples=arguments.nsamples,
                    seqlen=arguments.seqlen,
                    seed=seed,
                    begin="never",  # as the papers' code
                    permutation="gather",  # as in the paper: a permutation for each input activation
                    **settings,
                )
                values.append(measure(f"{scratch}/model"))
                blocks += [matrix["B"] for matrix in run_record.matrices if "B" in matrix]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            chosen = f"{min(blocks)}..{max(blocks)}" if blocks else ""
            rows[label] = {"perplexity": values, "B": blocks, "settings": settings}
            by_seed = " ".join(f"{value:.2f}" for value in values)
            print(f"{label:38} {statistics.mean(values):8.2f} {deviation:6.2f}  {by_seed:24} {chosen}", flush=True)
    if arguments.record:
        record = {
            "command": "python " + " ".join(sys.argv),
            "versions": versions(),
            "dense": dense,
            "rows": rows,
            "pattern": arguments.pattern,
        }
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
