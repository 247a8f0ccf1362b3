"""EGGS-PTP's readings side by side: every kind of block and B beside RIA with the same permutation, over seeds.

    python benchmarks/eggs_readings.py MODEL --calibration TEXT --text TEXT [--pattern 2:4] [--seeds 3] [--record FILE]

Each row prunes the model once a seed (the seed moves the calibration windows) and evaluates it on the same windows.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

KINDS = ("circulant", "staircase", "forced", "block", "best")
BLOCKS: tuple[int | str, ...] = (1, "auto")
MORE = ("circulant", "best")  # kinds that are run at B = 2 and 5 too


def rows_for(pattern: str) -> list[tuple[str, dict]]:
    keep, group = (int(part) for part in pattern.split(":"))
    rows: list[tuple[str, dict]] = [
        ("ria", {"method": "ria"}),
        ("ria_cp", {"method": "ria_cp"}),
        ("eggs_paper", {"method": "eggs_paper"}),
    ]
    for kind in KINDS:
        if kind == "block" and group % keep:
            continue
        for blocks in (*BLOCKS, *((2, 5) if kind in MORE else ())):
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
    rows.append(("eggs B=auto, an order per matrix", {"method": "eggs", "share": "matrix"}))
    rows.append(("ria_cp, an order per matrix", {"method": "ria_cp", "share": "matrix"}))
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
    given = parser.parse_args()

    from eggs_ptp import evaluate, prune
    from eggs_ptp.checkpoint.record import versions

    def measure(model: str) -> float:
        return evaluate(model, given.text, max_windows=given.max_windows).value

    dense = measure(given.model)
    print(f"dense {dense:.3f}")
    found = {}
    print(f"{'row':36} {'mean':>8} {'sd':>6}  {'each seed':24} B")
    with tempfile.TemporaryDirectory() as scratch:
        for label, settings in rows_for(given.pattern):
            values, blocks = [], []
            for seed in range(given.seeds):
                record = prune(
                    given.model,
                    f"{scratch}/model",
                    overwrite=True,
                    pattern=given.pattern,
                    calibration=given.calibration,
                    nsamples=given.nsamples,
                    seqlen=given.seqlen,
                    seed=seed,
                    orders="gather",  # the paper's: each reader group in an order of its own
                    **settings,
                )
                values.append(measure(f"{scratch}/model"))
                blocks += [matrix["B"] for matrix in record.matrices if "B" in matrix]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            chosen = f"{min(blocks)}..{max(blocks)}" if blocks else ""
            found[label] = {"perplexity": values, "B": blocks, "settings": settings}
            each = " ".join(f"{value:.2f}" for value in values)
            print(f"{label:36} {statistics.mean(values):8.2f} {spread:6.2f}  {each:24} {chosen}", flush=True)
    if given.record:
        whole = {"command": "python " + " ".join(sys.argv), "versions": versions(), "dense": dense, "rows": found}
        given.record.parent.mkdir(parents=True, exist_ok=True)
        given.record.write_text(json.dumps({**whole, "pattern": given.pattern}, indent=1) + "\n")


if __name__ == "__main__":
    main()
