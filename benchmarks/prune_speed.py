"""Seconds and memory of every method on a Llama-shaped random checkpoint, compared with two forward passes per block.

Each row runs in its own process, with rounds interleaved (A B C A B C ...); the table has medians. `floor` is two
forward passes of every block over all windows, with blocks read from the same file, and nothing else. Memory is the
peak resident memory of the pruning call minus that of the process after its imports.

Without --methods, the rows are all methods of the catalogue and, added to Wanda, all steps that no method has. That
takes long; --rounds 1 is enough to rank them. The record is written after every round, so an interrupted run keeps the
finished rounds.

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
    """Run every block twice, with the reading and batching of the engine, without statistics."""
    import numpy as np
    import torch

    from eggs_ptp.engine.blocks.inputs import capture_block_inputs
    from eggs_ptp.engine.blocks.weights import loaded_weights
    from eggs_ptp.engine.planning.plan import BATCH_TOKENS
    from eggs_ptp.engine.resources import MemoryMonitor
    from eggs_ptp.engine.tensors.reader import CheckpointReader
    from eggs_ptp.models.load import load_skeleton

    start = time.perf_counter()
    with MemoryMonitor() as memory, torch.inference_mode():
        skeleton = load_skeleton(folder / "model")
        reader = CheckpointReader(folder / "model")
        cpu = torch.device("cpu")
        batch = BATCH_TOKENS // SEQLEN
        tokens = torch.from_numpy(np.load(folder / "windows.npy"))
        hidden, kwargs = capture_block_inputs(skeleton, reader, tokens, torch.float32, cpu, batch)
        for index, block in enumerate(skeleton.blocks):
            with loaded_weights(block, skeleton.block_name(index), reader, torch.float32, cpu):
                for advance in (False, True):
                    for windows in hidden.split(batch):
                        output = block(windows, **kwargs[index])
                        if advance:
                            windows.copy_(output)
    return {"seconds": time.perf_counter() - start, "stages": {}, "memory": memory.peak - memory.baseline}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 100), metavar="N")
    parser.add_argument("--methods", default="")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder = Path(arguments.one[0])
        method = arguments.one[1]
        result = run_floor(folder) if method == "floor" else run_method(folder, method, arguments.pattern)
        print(json.dumps(result))
        return
    from eggs_ptp.checkpoint.run_record import versions

    methods = arguments.methods.split(",") if arguments.methods else every_method()
    supported, unsupported = by_support(methods, arguments.pattern)
    rows = ["floor", *supported]
    runs: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name))
        for number in range(1, arguments.rounds + 1):
            for row in rows:
                command = [sys.executable, __file__, "--pattern", arguments.pattern, "--one", name, row]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{row}: {done.stderr.strip()}")
                runs[row].append(json.loads(done.stdout.strip().splitlines()[-1]))
                print(f"round {number} of {arguments.rounds}: {row} {runs[row][-1]['seconds']:.1f} s", file=sys.stderr)
            summary = summarise(runs)
            record = {"command": "python " + " ".join(sys.argv), "versions": versions(), "rounds": number}
            record |= {"pattern": arguments.pattern, "not_defined": unsupported, "rows": summary}
            if arguments.record:
                arguments.record.parent.mkdir(parents=True, exist_ok=True)
                arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{arguments.pattern}, medians of {arguments.rounds} round{'s' if arguments.rounds > 1 else ''}")
    print_table(summary)
    if unsupported:
        print(f"not defined for {arguments.pattern}: {', '.join(unsupported)}")


def every_method() -> list[str]:
    """Return all methods of the catalogue, and Wanda with each step that none of them has."""
    from eggs_ptp.method.catalogue import METHODS
    from eggs_ptp.method.step import SLOTS, names

    used = {step.name for method in METHODS.values() for step in method.bind().steps.values()}
    return [*METHODS, *(f"wanda+{step}" for slot in SLOTS for step in names(slot) if step not in used)]


def by_support(methods: list[str], pattern: str) -> tuple[list[str], list[str]]:
    """Return the methods that support a pattern, and those that do not."""
    from eggs_ptp.core.pattern import parse_pattern
    from eggs_ptp.errors import PatternError
    from eggs_ptp.method.catalogue import find_method

    parsed = parse_pattern(pattern)
    supported = []
    unsupported = []
    for name in methods:
        try:
            find_method(name).bind().check_pattern(parsed, "--pattern")
        except PatternError:
            unsupported.append(name)
        else:
            supported.append(name)
    return supported, unsupported


def summarise(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Return medians over the rounds, by row."""
    floor_seconds = [run["seconds"] for run in runs["floor"]]
    summary = {}
    for row, rounds in runs.items():
        ratios = [run["seconds"] / floor for run, floor in zip(rounds, floor_seconds, strict=True)]
        stages = sorted({stage for run in rounds for stage in run["stages"]})
        summary[row] = {
            "seconds": statistics.median(run["seconds"] for run in rounds),
            "ratio_to_floor": statistics.median(ratios),
            "memory_mib": statistics.median(run["memory"] for run in rounds) / 2**20,
            "stages": {stage: statistics.median(run["stages"].get(stage, 0.0) for run in rounds) for stage in stages},
            "all_seconds": [run["seconds"] for run in rounds],
        }
    return summary


def print_table(summary: dict[str, dict]) -> None:
    width = max(map(len, summary))
    print(f"{'method':{width}} {'seconds':>8} {'x floor':>8} {'MiB':>6}  stages (seconds)")
    for row, medians in summary.items():
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in medians["stages"].items() if seconds >= 0.005)
        numbers = f"{medians['seconds']:8.2f} {medians['ratio_to_floor']:8.2f} {medians['memory_mib']:6.0f}"
        print(f"{row:{width}} {numbers}  {stages}")


if __name__ == "__main__":
    main()
