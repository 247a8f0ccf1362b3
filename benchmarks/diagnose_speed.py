"""`eggs diagnose` without spectra, compared with a plain read of the same files.

    python benchmarks/diagnose_speed.py --layers 4 --rounds 5

The checkpoint is created for the purpose: random bfloat16 weights masked to 2:4, with the shapes of Llama-3.2-1B's
blocks and almost no embeddings. A plain read is `read` of every byte into one buffer of 16 MiB. Both are timed
alternately, with the files in the page cache ("warm") and after the kernel was asked to drop them ("cold",
posix_fadvise). The record has medians of the wall-clock time and of this process's processor time, which other work on
the machine disturbs less. `--spectra-size` also times the spectrum of one random 2:4 matrix of that many rows and
columns.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accuracy import HERE, commit

SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
BUFFER = 16 * 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spectra-size", type=int, default=4096, help="0: none")
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "diagnose-speed.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, arguments.layers)
        record: dict[str, Any] = measure(folder, arguments.rounds)
        record["bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    record |= {"shape": SHAPE, "layers": arguments.layers, "rounds": arguments.rounds}
    if arguments.spectra_size:
        record["spectra"] = {"size": arguments.spectra_size, **spectra_seconds(arguments.spectra_size)}
    record |= {"commit": commit(), "torch": torch.__version__, "machine": platform.machine()}
    record |= {"threads": os.environ.get("OMP_NUM_THREADS", "default"), "load": [round(x, 1) for x in os.getloadavg()]}
    arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write a model folder with random block linears masked to 2:4."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from eggs_ptp.core.mask import keep_top
    from eggs_ptp.core.pattern import Pattern

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_hidden_layers=layers, vocab_size=256, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.mul_(keep_top(parameter.float().abs(), Pattern(2, 4)))
    model.save_pretrained(folder)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Return medians by cache state: seconds and processor seconds of both, and their ratios."""
    from eggs_ptp.research.diagnosis.diagnosis import diagnose_folder

    diagnose_folder(folder)  # for its imports, and to fill the page cache
    functions = {"read": read_files, "diagnose": diagnose_folder}
    times: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for _ in range(rounds):
        for state in ("warm", "cold"):
            for name, function in functions.items():
                if state == "cold":
                    drop_from_cache(folder)
                seconds = timed(lambda function=function: function(folder))
                times.setdefault(state, {}).setdefault(name, []).append(seconds)
            if state == "cold":
                read_files(folder)
    medians: dict[str, Any] = {}
    for state, times_by_name in times.items():
        medians[state] = {}
        for index, clock in enumerate(("seconds", "cpu_seconds")):
            of_clock = {name: statistics.median(pair[index] for pair in pairs) for name, pairs in times_by_name.items()}
            medians[state] |= {f"{name}_{clock}": round(value, 3) for name, value in of_clock.items()}
            medians[state][f"ratio_{clock}"] = round(of_clock["diagnose"] / of_clock["read"], 2)
    return medians


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Return wall-clock seconds and processor seconds."""
    start = time.perf_counter()
    cpu_start = time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - cpu_start


def read_files(folder: Path) -> None:
    buffer = bytearray(BUFFER)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to drop the files from the page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def spectra_seconds(size: int) -> dict[str, float]:
    from eggs_ptp.core.mask import keep_top
    from eggs_ptp.core.pattern import Pattern
    from eggs_ptp.research.graph.spectrum import spectrum

    score = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    mask = keep_top(score, Pattern(2, 4))
    seconds, cpu_seconds = timed(lambda: spectrum(mask, 4))
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}


if __name__ == "__main__":
    main()
