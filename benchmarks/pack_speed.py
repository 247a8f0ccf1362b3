"""Packing and unpacking a pruned folder, compared with copying it, on a Llama-shaped random checkpoint.

The checkpoint has 1.2 billion bf16 parameters (hidden 2048, 16 layers, intermediate 8192, vocabulary 32000), pruned to
2:4 by magnitude. Rounds are interleaved (copy, pack, unpack, copy, ...), and the table has medians; every step reads
one folder and writes another, and its output is flushed to the disk before the clock stops.

    python benchmarks/pack_speed.py [--folder SCRATCH] [--rounds 3] [--record FILE.json]
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def make_checkpoint(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from eggs_ptp import Recipe, api

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=32,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "dense")
    api.prune(str(folder / "dense"), folder / "pruned", Recipe(method="magnitude", pattern="2:4"))
    shutil.rmtree(folder / "dense")


def timed(run: Callable[[Path], object], output: Path) -> float:
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    run(output)
    os.sync()
    return time.perf_counter() - start


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="store checkpoints here, for further calls")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 100), metavar="N")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        measure(folder, arguments.rounds, arguments.record)


def measure(folder: Path, rounds: int, record: Path | None) -> None:
    from eggs_ptp.bench.hardware import hardware
    from eggs_ptp.checkpoint.packed import export
    from eggs_ptp.checkpoint.run_record import versions

    if not (folder / "pruned").exists():
        make_checkpoint(folder)
    steps: dict[str, Callable[[Path], object]] = {
        "copy": lambda output: shutil.copytree(folder / "pruned", output),
        "pack": lambda output: export(folder / "pruned", output, "packed"),
        "unpack": lambda output: export(folder / "pack", output, "dense"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(1, rounds + 1):
        for name, step in steps.items():
            seconds[name].append(timed(step, folder / name))
            print(f"round {number}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr)
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    sizes = {"dense": size(folder / "pruned"), "packed": size(folder / "pack"), "unpacked": size(folder / "unpack")}
    for name, median in medians.items():
        print(f"{name:7} {median:7.1f} s   {median / medians['copy']:5.2f} x copy")
    print(f"dense {sizes['dense'] / 1e6:.0f} MB, packed {sizes['packed'] / 1e6:.0f} MB")
    if record:
        environment = {"command": "python " + " ".join(sys.argv), "versions": versions(), "hardware": hardware()}
        record.write_text(
            json.dumps({**environment, "bytes": sizes, "seconds": seconds}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
