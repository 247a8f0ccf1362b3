"""Seconds and memory of pruning a Llama-shaped checkpoint of 1.2 billion parameters, by its number of layers.

Hidden 2048, 32 heads (8 of keys and values), MLP 8192, vocabulary 128256, tied; bfloat16 on disk; 16 windows of 512
random tokens. 16 layers are 1.24 billion parameters, 8 are 0.75 and 32 are 2.21.

Every row is a process of its own. `blocks x2` is two forward passes of every block over all windows, blocks read from
the same file, and nothing else: what statistics and propagation cannot do without. Memory is the peak of anonymous
memory (mapped files are the system's to drop) over what the process had after its imports. With --limit a method runs
with that many MiB more than its imports, enforced by the system. With --peer PYTHON, the interpreter of an environment
that has llm-compressor, its Wanda and SparseGPT run on the same checkpoint and windows, in the same type; seconds are
those of its `oneshot` alone, without loading and saving; ours include both.

    python benchmarks/large.py [--layers 8 16 32] [--methods eggs] [--dtype bfloat16] [--limit 2048] [--peer PYTHON]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WINDOWS, SEQLEN, VOCABULARY = 16, 512, 128256
MIB = 1 << 20
BLOCKS = "blocks x2"


def make_checkpoint(folder: Path, layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from eggs_ptp.demo.builtin import model_folder

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for file in model_folder().glob("tokenizer*"):  # the peer wants one, and needs none
        shutil.copy(file, folder / "model")


def make_windows(folder: Path, windows: int) -> None:
    import numpy as np

    drawn = np.random.default_rng(0).integers(0, VOCABULARY, (windows, SEQLEN))
    np.save(folder / f"windows-{windows}.npy", drawn)


def run_method(folder: Path, method: str, dtype: str, limit: int, windows: int) -> dict[str, Any]:
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from eggs_ptp import api
    from eggs_ptp.engine.usage import anonymous_memory
    from eggs_ptp.recipe.recipe import Recipe

    recipe = Recipe(method=method, pattern="2:4", calibration={"text": str(folder / f"windows-{windows}.npy")})
    memory = anonymous_memory() + limit * MIB if limit else None
    cpu = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        record = api.prune(str(folder / "model"), f"{out}/pruned", recipe, dtype=dtype, memory=memory)
    return {
        "seconds": record.seconds,
        "cpu_seconds": time.process_time() - cpu,
        "memory": record.peak_memory_bytes - record.baseline_memory_bytes,
        "stages": record.stages,
    }


def run_blocks(folder: Path, dtype: str, windows: int) -> dict[str, Any]:
    """Two passes over every block through the engine's own reading and batching."""
    import numpy as np
    import torch

    from eggs_ptp.engine.budget import BATCH_TOKENS
    from eggs_ptp.engine.capture import capture
    from eggs_ptp.engine.place import find_dtype
    from eggs_ptp.engine.resident import resident
    from eggs_ptp.engine.shards import Shards
    from eggs_ptp.engine.usage import MemoryWatch
    from eggs_ptp.models.load import load_skeleton

    start, spent = time.perf_counter(), time.process_time()
    with MemoryWatch() as memory, torch.inference_mode():
        skeleton = load_skeleton(folder / "model")
        shards, cpu, batch = Shards(folder / "model", ties=skeleton.ties), torch.device("cpu"), BATCH_TOKENS // SEQLEN
        tokens, kind = torch.from_numpy(np.load(folder / f"windows-{windows}.npy")), find_dtype(dtype)
        hidden, kwargs = capture(skeleton, shards, tokens, kind, cpu, batch)
        for index, block in enumerate(skeleton.blocks):
            with resident(block, skeleton.block_name(index), shards, kind, cpu):
                for keep in (False, True):
                    for part in hidden.split(batch):
                        output = block(part, **kwargs[index])
                        if keep:
                            part.copy_(output)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - spent
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "memory": memory.peak - memory.baseline, "stages": {}}


def run_peer(folder: Path, row: str, dtype: str, windows: int, python: str) -> dict[str, Any]:
    script = Path(__file__).parent / "accuracy" / "peer.py"
    method = row.partition(" ")[2]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        where = [str(folder / "model"), str(folder / f"windows-{windows}.npy"), "2:4", f"{out}/pruned"]
        found = run([python, str(script), "llmcompressor", method, *where, "--dtype", dtype])
    return {"stages": {}, **found}


def run(command: list[str]) -> dict[str, Any]:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"{command[-1]}: {ran.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--methods", nargs="+", default=["eggs"])
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--limit", type=int, default=0, metavar="MIB")
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--workspace", type=Path, help="where checkpoints are kept from one call to the next")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "ROW"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command `eggs` does; for all rows, the peer's too
    if given.one:
        folder, row = Path(given.one[0]), given.one[1]
        what = (given.dtype, given.windows) if row == BLOCKS else (row, given.dtype, given.limit, given.windows)
        found = (run_blocks if row == BLOCKS else run_method)(folder, *what)
        print(json.dumps(found))
        return
    from eggs_ptp.checkpoint.record import versions

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for layers in given.layers:
            folder = (given.workspace or Path(scratch)) / f"layers-{layers}"
            if not (folder / "model").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make_checkpoint(folder, layers)
            make_windows(folder, given.windows)
            peers = ["llm-compressor wanda", "llm-compressor sparsegpt"] if given.peer else []
            for row in [BLOCKS, *given.methods, *peers]:
                if row in peers:
                    found = run_peer(folder, row, given.dtype, given.windows, given.peer)
                else:
                    how = ["--dtype", given.dtype, "--limit", str(given.limit), "--windows", str(given.windows)]
                    how += ["--one", str(folder), row]
                    found = run([sys.executable, __file__, *how])
                rows.append({"layers": layers, "row": row, **found})
                floor = next(r["seconds"] for r in rows if r["layers"] == layers)
                rows[-1]["ratio_to_blocks"] = found["seconds"] / floor
                print(line(rows[-1]), flush=True)
                write(given.record, rows, versions())


def line(row: dict[str, Any]) -> str:
    stages = ", ".join(f"{stage} {spent:.0f}" for stage, spent in row["stages"].items() if spent >= 0.5)
    numbers = f"{row['seconds']:8.1f} s {row['ratio_to_blocks']:6.2f}x {row['memory'] / MIB:6.0f} MiB"
    return f"{row['layers']:3} layers  {row['row']:24} {numbers}  {stages}"


def write(record: Path | None, rows: list[dict[str, Any]], versions: dict[str, str]) -> None:
    if record:
        record.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "command": "python " + " ".join(sys.argv),
            "versions": versions,
            "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            "rows": rows,
        }
        record.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
