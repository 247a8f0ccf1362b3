"""`eggs diagnose` without spectra beside a plain read of the same files.

    python benchmarks/diagnose_speed.py --layers 4 --rounds 5

The checkpoint is made for it: random bfloat16 weights masked to 2:4, shaped as Llama-3.2-1B's blocks, no embeddings to
speak of. A plain read is `read` of every byte into one buffer of 16 MiB. Both are timed in turns, with the files in the
page cache ("warm") and after the kernel was asked to drop them ("cold", posix_fadvise). The record has medians, of the
clock and of this process's processor time, which other work on the machine disturbs less. `--spectra-size` also times
the spectral figures of one random 2:4 matrix of that many rows and columns.
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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, given.layers)
        found = measure(folder, given.rounds)
        found["bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found |= {"shape": SHAPE, "layers": given.layers, "rounds": given.rounds}
    if given.spectra_size:
        found["spectra"] = {"size": given.spectra_size, **spectra_seconds(given.spectra_size)}
    found |= {"commit": commit(), "torch": torch.__version__, "machine": platform.machine()}
    found |= {"threads": os.environ.get("OMP_NUM_THREADS", "default"), "load": [round(x, 1) for x in os.getloadavg()]}
    given.record.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def write(folder: Path, layers: int) -> None:
    """A model folder whose block linears are random and 2:4."""
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


def measure(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    from eggs_ptp.checkpoint.diagnosis import diagnose_folder

    diagnose_folder(folder)  # imports, and the page cache
    times: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for _ in range(rounds):
        for state in ("warm", "cold"):
            for what, work in (("read", read), ("diagnose", diagnose_folder)):
                if state == "cold":
                    drop(folder)
                times.setdefault(state, {}).setdefault(what, []).append(timed(lambda work=work: work(folder)))
            if state == "cold":
                read(folder)
    found: dict[str, dict[str, float]] = {}
    for state, by_work in times.items():
        found[state] = {}
        for place, clock in enumerate(("seconds", "cpu_seconds")):
            medians = {what: statistics.median(each[place] for each in pairs) for what, pairs in by_work.items()}
            found[state] |= {f"{what}_{clock}": round(value, 3) for what, value in medians.items()}
            found[state][f"ratio_{clock}"] = round(medians["diagnose"] / medians["read"], 2)
    return found


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def read(folder: Path) -> None:
    buffer = bytearray(BUFFER)
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(folder: Path) -> None:
    """Ask the kernel to forget the files."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def spectra_seconds(size: int) -> dict[str, float]:
    from eggs_ptp.core.mask import keep_top
    from eggs_ptp.core.pattern import Pattern
    from eggs_ptp.graph.spectrum import spectrum

    score = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    mask = keep_top(score, Pattern(2, 4))
    seconds, cpu = timed(lambda: spectrum(mask, 4))
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}


if __name__ == "__main__":
    main()
