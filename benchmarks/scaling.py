"""Seconds by stage: one process with two threads, and 1, 2 and 4 torchrun processes with one thread each.

All runs use the same random Llama-shaped checkpoint and windows, with rounds interleaved (A B C D A B C D ...), each in
its own process group. The record has each run, medians, and the SHA-256 of the weights that each wrote, which must be
equal for all runs with one thread per process. docs/scaling.md is generated from it.

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
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*torchrun, "-m", "eggs_ptp", "prune", str(folder / "model"), "-o", f"{out}/pruned"]
        command += ["--method", method, "--calibration", str(folder / "windows.npy")]
        command += ["--no-journal", "--json", "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{method}, {processes} processes: {done.stderr.strip()}")
        record = json.loads(done.stdout)
        weights = hashlib.sha256(Path(out, "pruned", "model.safetensors").read_bytes()).hexdigest()
    return {"seconds": record["seconds"], "stages": record["stages"], "weights": weights}


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians over the rounds, by setting."""
    summary: dict[str, Any] = {}
    baseline = [run["seconds"] for run in runs["1 x 2 threads"]]
    for setting, rounds in runs.items():
        ratios = [run["seconds"] / seconds for run, seconds in zip(rounds, baseline, strict=False)]
        stages = sorted({stage for run in rounds for stage in run["stages"]})
        summary[setting] = {
            "seconds": statistics.median(run["seconds"] for run in rounds),
            "ratio_to_two_threads": statistics.median(ratios),
            "stages": {stage: statistics.median(run["stages"].get(stage, 0.0) for run in rounds) for stage in stages},
            "weights": sorted({run["weights"] for run in rounds}),
            "all_seconds": [run["seconds"] for run in rounds],
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, choices=range(1, 100), metavar="N")
    parser.add_argument("--methods", default="eggs,eggs+")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    from eggs_ptp.checkpoint.run_record import versions

    methods = arguments.methods.split(",")
    load = os.getloadavg()[0]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {
        method: {setting: [] for setting in SETTINGS} for method in methods
    }
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name), LAYERS, WINDOWS)
        for number in range(1, arguments.rounds + 1):
            for method in methods:
                for setting, (processes, threads) in SETTINGS.items():
                    if number > 1 and processes > 2:  # runs for its weights only: so many cores are rarely idle
                        continue
                    runs[method][setting].append(run(Path(name), method, processes, threads))
                    seconds = runs[method][setting][-1]["seconds"]
                    print(
                        f"round {number} of {arguments.rounds}: {method}, {setting}: {seconds:.1f} s", file=sys.stderr
                    )
    shape = dict(zip(("hidden", "layers", "intermediate", "windows", "seqlen"), SHAPE, strict=True))
    summaries = {method: summarise(by_setting) for method, by_setting in runs.items()}
    record = {
        "command": "python " + " ".join(sys.argv),
        "versions": versions(),
        "rounds": arguments.rounds,
        "shape": shape,
    }
    record |= {"cpus": os.cpu_count(), "load": load, "methods": summaries}
    for method, by_setting in summaries.items():
        print(f"\n{method:14} seconds  x two threads  stages")
        for setting, row in by_setting.items():
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row["stages"].items() if seconds >= 0.005)
            print(f"{setting:14} {row['seconds']:7.2f}  {row['ratio_to_two_threads']:13.2f}  {stages}")
        hashes = {row["weights"][0] for setting, row in by_setting.items() if SETTINGS[setting][1] == 1}
        print(f"weights of 1, 2 and 4 processes of one thread: {'equal' if len(hashes) == 1 else 'DIFFERENT'}")
    if arguments.record:
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
