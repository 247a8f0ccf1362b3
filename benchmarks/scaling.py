"""Seconds by stage of one process with two threads, and of 1, 2 and 4 processes of torchrun with one thread each.

The same random Llama-shaped checkpoint and windows for all, rounds interleaved (A B C D A B C D ...), every run a
process group of its own. The record holds each run, medians, and the SHA-256 of the weights that each wrote (those with
one thread a process must be the same); docs/scaling.md is made of it.

    python benchmarks/scaling.py [--rounds 2] [--methods eggs,eggs+] [--record docs/results/scaling.json]
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prune_speed import HIDDEN, INTERMEDIATE, SEQLEN, make_checkpoint

LAYERS, WINDOWS = 2, 16
SHAPE = (HIDDEN, LAYERS, INTERMEDIATE, WINDOWS, SEQLEN)
# processes, threads of each
SETTINGS = {"1 x 2 threads": (1, 2), "1 x 1": (1, 1), "2 x 1": (2, 1), "4 x 1": (4, 1)}


def run(folder: Path, method: str, processes: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        words = ["-m", "eggs_ptp", "prune", str(folder / "model"), "-o", f"{out}/pruned", "--method", method]
        words += ["--calibration", str(folder / "windows.npy"), "--no-journal", "--json", "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        ran = subprocess.run(
            [sys.executable, *launcher, *words], env=environment, capture_output=True, text=True, check=False
        )
        if ran.returncode:
            sys.exit(f"{method}, {processes} processes: {ran.stderr.strip()}")
        record = json.loads(ran.stdout)
        weights = hashlib.sha256(Path(out, "pruned", "model.safetensors").read_bytes()).hexdigest()
    return {"seconds": record["seconds"], "stages": record["stages"], "weights": weights}


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    base = [one["seconds"] for one in runs["1 x 2 threads"]]
    for setting, seen in runs.items():
        stages = {stage for one in seen for stage in one["stages"]}
        found[setting] = {
            "seconds": statistics.median(one["seconds"] for one in seen),
            "ratio_to_two_threads": statistics.median(o["seconds"] / b for o, b in zip(seen, base, strict=False)),
            "stages": {s: statistics.median(one["stages"].get(s, 0.0) for one in seen) for s in sorted(stages)},
            "weights": sorted({one["weights"] for one in seen}),
            "all_seconds": [one["seconds"] for one in seen],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, choices=range(1, 100), metavar="N")
    parser.add_argument("--methods", default="eggs,eggs+")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    from eggs_ptp.checkpoint.record import versions

    methods, load = given.methods.split(","), os.getloadavg()[0]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {m: {setting: [] for setting in SETTINGS} for m in methods}
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name), LAYERS, WINDOWS)
        for done in range(1, given.rounds + 1):
            for method in methods:
                for setting, (processes, threads) in SETTINGS.items():
                    if done > 1 and processes > 2:  # for its weights; there are rarely so many idle cores
                        continue
                    runs[method][setting].append(run(Path(name), method, processes, threads))
                    seconds = runs[method][setting][-1]["seconds"]
                    print(f"round {done} of {given.rounds}: {method}, {setting}: {seconds:.1f} s", file=sys.stderr)
    shape = dict(zip(("hidden", "layers", "intermediate", "windows", "seqlen"), SHAPE, strict=True))
    whole = {"command": "python " + " ".join(sys.argv), "versions": versions(), "rounds": given.rounds, "shape": shape}
    whole |= {"cpus": os.cpu_count(), "load": load, "methods": {m: summarise(seen) for m, seen in runs.items()}}
    for method, found in whole["methods"].items():
        print(f"\n{method:14} seconds  x two threads  stages")
        for setting, row in found.items():
            stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in row["stages"].items() if spent >= 0.005)
            print(f"{setting:14} {row['seconds']:7.2f}  {row['ratio_to_two_threads']:13.2f}  {stages}")
        alike = {row["weights"][0] for setting, row in found.items() if SETTINGS[setting][1] == 1}
        print(f"weights of 1, 2 and 4 processes of one thread: {'the same' if len(alike) == 1 else 'DIFFERENT'}")
    if given.record:
        given.record.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
