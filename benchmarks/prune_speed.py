"""Seconds and memory of every method on a Llama-shaped random checkpoint, beside two bare forward passes per block.

Each row runs in a process of its own, rounds interleaved (A B C A B C ...); the table holds medians. `floor` is two
forward passes of every block over all windows, blocks read from the same file, and nothing else. Memory is the peak
resident memory of the pruning call over what the process had after its imports.

Without --methods it is every row of the catalogue and, joined to Wanda, every step that no row has. That is long:
--rounds 1 is enough to rank them. The record is written anew after every round, so whatever stops the run leaves the
rounds before.

    python benchmarks/prune_speed.py [--rounds 5] [--methods wanda,eggs] [--pattern 2:4] [--record FILE.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, LAYERS, INTERMEDIATE, WINDOWS, SEQLEN = 512, 8, 1408, 32, 512


def make_checkpoint(folder: Path, layers: int = LAYERS, windows: int = WINDOWS) -> None:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tokens = torch.randint(0, 8192, (windows, SEQLEN))
    np.save(folder / "windows.npy", tokens.numpy())


def run_method(folder: Path, method: str, pattern: str) -> dict[str, object]:
    from eggs_ptp import api
    from eggs_ptp.recipe.recipe import Recipe

    recipe = Recipe(method=method, pattern=pattern, calibration={"text": str(folder / "windows.npy")})
    with tempfile.TemporaryDirectory(dir=folder) as out:
        record = api.prune(str(folder / "model"), f"{out}/pruned", recipe)
    return {
        "seconds": record.seconds,
        "stages": record.stages,
        "memory": record.peak_memory_bytes - record.baseline_memory_bytes,
    }


def run_floor(folder: Path) -> dict[str, object]:
    """Two passes over every block through the engine's own reading and batching, statistics of none."""
    import numpy as np
    import torch

    from eggs_ptp.engine.budget import BATCH_TOKENS
    from eggs_ptp.engine.capture import capture
    from eggs_ptp.engine.resident import resident
    from eggs_ptp.engine.shards import Shards
    from eggs_ptp.engine.usage import MemoryWatch
    from eggs_ptp.models.load import load_skeleton

    start = time.perf_counter()
    with MemoryWatch() as memory, torch.inference_mode():
        skeleton = load_skeleton(folder / "model")
        shards, cpu, batch = Shards(folder / "model"), torch.device("cpu"), BATCH_TOKENS // SEQLEN
        tokens = torch.from_numpy(np.load(folder / "windows.npy"))
        hidden, kwargs = capture(skeleton, shards, tokens, torch.float32, cpu, batch)
        for index, block in enumerate(skeleton.blocks):
            with resident(block, skeleton.block_name(index), shards, torch.float32, cpu):
                for keep in (False, True):
                    for part in hidden.split(batch):
                        output = block(part, **kwargs[index])
                        if keep:
                            part.copy_(output)
    return {"seconds": time.perf_counter() - start, "stages": {}, "memory": memory.peak - memory.baseline}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 100), metavar="N")
    parser.add_argument("--methods", default="")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "METHOD"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        folder, method = Path(given.one[0]), given.one[1]
        result = run_floor(folder) if method == "floor" else run_method(folder, method, given.pattern)
        print(json.dumps(result))
        return
    from eggs_ptp.checkpoint.record import versions

    defined, undefined = sort_out(given.methods.split(",") if given.methods else every_method(), given.pattern)
    rows = ["floor", *defined]
    seen: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name))
        for done in range(1, given.rounds + 1):
            for row in rows:
                command = [sys.executable, __file__, "--pattern", given.pattern, "--one", name, row]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                if ran.returncode:
                    sys.exit(f"{row}: {ran.stderr.strip()}")
                seen[row].append(json.loads(ran.stdout.strip().splitlines()[-1]))
                print(f"round {done} of {given.rounds}: {row} {seen[row][-1]['seconds']:.1f} s", file=sys.stderr)
            record = summarise(seen)
            whole = {"command": "python " + " ".join(sys.argv), "versions": versions(), "rounds": done}
            whole |= {"pattern": given.pattern, "not_defined": undefined, "rows": record}
            if given.record:
                given.record.parent.mkdir(parents=True, exist_ok=True)
                given.record.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"{given.pattern}, medians of {given.rounds} round{'s' if given.rounds > 1 else ''}")
    print_table(record)
    if undefined:
        print(f"not defined for {given.pattern}: {', '.join(undefined)}")


def every_method() -> list[str]:
    """All rows of the catalogue, and Wanda joined with each step that none of them has."""
    from eggs_ptp.method.catalogue import METHODS
    from eggs_ptp.method.step import SLOTS, names

    used = {step.name for method in METHODS.values() for step in method.bind().steps.values()}
    return [*METHODS, *(f"wanda+{step}" for slot in SLOTS for step in names(slot) if step not in used)]


def sort_out(methods: list[str], pattern: str) -> tuple[list[str], list[str]]:
    """Methods that the pattern is defined for, and those that it is not."""
    from eggs_ptp.core.pattern import parse_pattern
    from eggs_ptp.errors import PatternError
    from eggs_ptp.method.catalogue import find_method

    parsed = parse_pattern(pattern)
    defined, undefined = [], []
    for name in methods:
        try:
            find_method(name).bind().check_pattern(parsed, "--pattern")
        except PatternError:
            undefined.append(name)
        else:
            defined.append(name)
    return defined, undefined


def summarise(seen: dict[str, list[dict]]) -> dict[str, dict]:
    floors = [run["seconds"] for run in seen["floor"]]
    record = {}
    for row, runs in seen.items():
        stages = {stage for run in runs for stage in run["stages"]}
        record[row] = {
            "seconds": statistics.median(run["seconds"] for run in runs),
            "ratio_to_floor": statistics.median(r["seconds"] / f for r, f in zip(runs, floors, strict=True)),
            "memory_mib": statistics.median(run["memory"] for run in runs) / 2**20,
            "stages": {s: statistics.median(run["stages"].get(s, 0.0) for run in runs) for s in sorted(stages)},
            "all_seconds": [run["seconds"] for run in runs],
        }
    return record


def print_table(record: dict[str, dict]) -> None:
    width = max(map(len, record))
    print(f"{'method':{width}} {'seconds':>8} {'x floor':>8} {'MiB':>6}  stages (seconds)")
    for row, found in record.items():
        stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in found["stages"].items() if spent >= 0.005)
        numbers = f"{found['seconds']:8.2f} {found['ratio_to_floor']:8.2f} {found['memory_mib']:6.0f}"
        print(f"{row:{width}} {numbers}  {stages}")


if __name__ == "__main__":
    main()
