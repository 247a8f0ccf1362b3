"""Size of the page and time of `eggs report` for a made-up run of 32 blocks: `python benchmarks/report_speed.py`."""

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
    """Random 2:4 weights in bfloat16 and their eggs.json; the number of weights."""
    small, inside = HIDDEN // 4, HIDDEN * 5 // 2
    rows_of = (HIDDEN, small, small, HIDDEN)
    shapes = {f"self_attn.{name}_proj": (rows, HIDDEN) for name, rows in zip("qkvo", rows_of, strict=True)}
    shapes |= {"mlp.gate_proj": (inside, HIDDEN), "mlp.up_proj": (inside, HIDDEN), "mlp.down_proj": (HIDDEN, inside)}
    generator = torch.Generator().manual_seed(0)
    tensors, matrices = {}, []
    for block in range(BLOCKS):
        for linear, (rows, columns) in shapes.items():
            kept = torch.rand(rows, columns // 4, 4, generator=generator).argsort(-1) < 2
            weight = torch.randn(rows, columns // 4, 4, generator=generator) * kept
            name = f"model.layers.{block}.{linear}"
            tensors[f"{name}.weight"] = weight.view(rows, columns).bfloat16()
            known = {"pattern": "2:4", "method": "made up", "density": 0.5, "permuted": False, "in_order": True}
            error = 0.1 * float(torch.rand((), generator=generator))
            matrices.append(
                {"name": name, "shape": [rows, columns], **known, "updated": True, "output_error": error, "B": 1}
            )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    source = {"model": "made up", "revision": None, "model_type": "llama"}
    (folder / "eggs.json").write_text(json.dumps({"format": 2, "source": source, "matrices": matrices}))
    return sum(tensor.numel() for tensor in tensors.values())


def timed(words: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of processors that a process takes."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, page = Path(scratch) / "run", Path(scratch) / "report.html"
        folder.mkdir()
        weights = make_run(folder)
        verbs = {
            "in all": [*EGGS, "report", str(folder), "-o", str(page)],
            "to start Python and import torch": [sys.executable, "-c", "import torch"],
        }
        found = {what: [timed(words) for _ in range(ROUNDS)] for what, words in verbs.items()}
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
        print(f"{BLOCKS} blocks, {weights / 1e6:.0f} million weights: {page.stat().st_size / 1e6:.2f} MB")
        for what, times in found.items():
            clock, used = (sorted(each) for each in zip(*times, strict=True))
            middle = ROUNDS // 2
            print(
                f"seconds {what}, median of {ROUNDS}: {clock[middle]:.1f}, least {clock[0]:.1f}; CPU {used[middle]:.1f}"
            )


if __name__ == "__main__":
    main()
