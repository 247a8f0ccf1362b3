"""Page size and time of `eggs report` for a synthetic run of 32 blocks: `python benchmarks/report_speed.py`."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

BLOCKS, HIDDEN, ROUNDS = 32, 1024, 5
EGGS = [sys.executable, "-m", "eggs_ptp"]


def make_run(folder: Path) -> int:
    """Write random 2:4 weights in bfloat16 and their eggs.json; return the number of weights."""
    key_value = HIDDEN // 4
    intermediate = HIDDEN * 5 // 2
    attention_rows = (HIDDEN, key_value, key_value, HIDDEN)
    shapes = {f"self_attn.{name}_proj": (rows, HIDDEN) for name, rows in zip("qkvo", attention_rows, strict=True)}
    shapes |= {"mlp.gate_proj": (intermediate, HIDDEN), "mlp.up_proj": (intermediate, HIDDEN)}
    shapes["mlp.down_proj"] = (HIDDEN, intermediate)
    generator = torch.Generator().manual_seed(0)
    tensors, matrices = {}, []
    for block in range(BLOCKS):
        for linear, (rows, columns) in shapes.items():
            mask = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1) < 2
            weight = torch.randn(rows, columns // 4, 4, generator=generator) * mask
            name = f"model.layers.{block}.{linear}"
            tensors[f"{name}.weight"] = weight.view(rows, columns).bfloat16()
            matrices.append(
                {
                    "name": name,
                    "shape": [rows, columns],
                    "pattern": "2:4",
                    "method": "synthetic",
                    "density": 0.5,
                    "permuted": False,
                    "in_order": True,
                    "updated": True,
                    "output_error": 0.1 * float(torch.rand((), generator=generator)),
                    "B": 1,
                }
            )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    source = {"model": "synthetic", "revision": None, "model_type": "llama"}
    (folder / "eggs.json").write_text(json.dumps({"format": 2, "source": source, "matrices": matrices}))
    return sum(tensor.numel() for tensor in tensors.values())


def timed(command: list[str]) -> tuple[float, float]:
    """Run a process; return wall-clock seconds and processor seconds."""
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu_seconds


def main() -> None:
    """Print the measurements."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        page = Path(scratch) / "report.html"
        folder.mkdir()
        weights = make_run(folder)
        commands = {
            "in total": [*EGGS, "report", str(folder), "-o", str(page)],
            "to start Python and import torch": [sys.executable, "-c", "import torch"],
        }
        times = {name: [timed(command) for _ in range(ROUNDS)] for name, command in commands.items()}
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
        print(f"{BLOCKS} blocks, {weights / 1e6:.0f} million weights: {page.stat().st_size / 1e6:.2f} MB")
        for name, pairs in times.items():
            seconds, cpu_seconds = (sorted(samples) for samples in zip(*pairs, strict=True))
            print(
                f"seconds {name}, median of {ROUNDS}: {seconds[ROUNDS // 2]:.1f}, least {seconds[0]:.1f}; "
                f"CPU {cpu_seconds[ROUNDS // 2]:.1f}"
            )


if __name__ == "__main__":
    main()
