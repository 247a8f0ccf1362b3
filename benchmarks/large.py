"""Seconds and memory of pruning a Llama-shaped checkpoint of 1.2 billion parameters, by its number of layers.

Hidden 2048, 32 heads (8 of keys and values), MLP 8192, vocabulary 128256, tied; bfloat16 on disk; 16 windows of 512
random tokens. 16 layers are 1.24 billion parameters, 8 are 0.75 and 32 are 2.21.

Every row runs in its own process. `blocks x2` is two forward passes of every block over all windows, with blocks read
from the same file, and nothing else: the least that collecting statistics and propagating take. Memory is the peak of
anonymous memory (the system can drop mapped files) minus that of the process after its imports. With --limit a method
runs with that many MiB in addition to its imports, enforced by the system. With --peer PYTHON, an interpreter with
llm-compressor, its Wanda and SparseGPT run on the same checkpoint and windows, in the same type; their seconds are
those of `oneshot` alone, without loading and saving, which those of this project's methods include.

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
    for file in model_folder().glob("tokenizer*"):  # required by the peer, although it does not use it
        shutil.copy(file, folder / "model")


def make_windows(folder: Path, windows: int) -> None:
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (windows, SEQLEN))
    np.save(folder / f"windows-{windows}.npy", tokens)


def run_method(folder: Path, method: str, dtype: str, limit: int, windows: int) -> dict[str, Any]:
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from eggs_ptp import api
    from eggs_ptp.engine.resources import anonymous_memory
    from eggs_ptp.recipe.recipe import Recipe

    recipe = Recipe(method=method, pattern="2:4", calibration={"text": str(folder / f"windows-{windows}.npy")})
    memory = anonymous_memory() + limit * MIB if limit else None
    cpu_start = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        record = api.prune(str(folder / "model"), f"{out}/pruned", recipe, dtype=dtype, memory=memory)
    return {
        "seconds": record.seconds,
        "cpu_seconds": time.process_time() - cpu_start,
        "memory": record.peak_memory_bytes - record.baseline_memory_bytes,
        "stages": record.stages,
    }


def run_blocks(folder: Path, dtype: str, windows: int) -> dict[str, Any]:
    """Run every block twice, with the reading and batching of the engine."""
    import numpy as np
    import torch

    from eggs_ptp.engine.blocks.inputs import capture_block_inputs
    from eggs_ptp.engine.blocks.weights import loaded_weights
    from eggs_ptp.engine.planning.device import find_dtype
    from eggs_ptp.engine.planning.plan import BATCH_TOKENS
    from eggs_ptp.engine.resources import MemoryMonitor
    from eggs_ptp.engine.tensors.reader import CheckpointReader
    from eggs_ptp.models.load import load_skeleton

    start = time.perf_counter()
    cpu_start = time.process_time()
    with MemoryMonitor() as memory, torch.inference_mode():
        skeleton = load_skeleton(folder / "model")
        reader = CheckpointReader(folder / "model", ties=skeleton.ties)
        cpu = torch.device("cpu")
        batch = BATCH_TOKENS // SEQLEN
        tokens = torch.from_numpy(np.load(folder / f"windows-{windows}.npy"))
        torch_dtype = find_dtype(dtype)
        hidden, kwargs = capture_block_inputs(skeleton, reader, tokens, torch_dtype, cpu, batch)
        for index, block in enumerate(skeleton.blocks):
            with loaded_weights(block, skeleton.block_name(index), reader, torch_dtype, cpu):
                for advance in (False, True):
                    for windows_of_batch in hidden.split(batch):
                        output = block(windows_of_batch, **kwargs[index])
                        if advance:
                            windows_of_batch.copy_(output)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "memory": memory.peak - memory.baseline,
        "stages": {},
    }


def run_peer(folder: Path, row: str, dtype: str, windows: int, python: str) -> dict[str, Any]:
    script = Path(__file__).parent / "accuracy" / "peer.py"
    method = row.partition(" ")[2]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        paths = [str(folder / "model"), str(folder / f"windows-{windows}.npy"), "2:4", f"{out}/pruned"]
        costs = run([python, str(script), "llmcompressor", method, *paths, "--dtype", dtype])
    return {"stages": {}, **costs}


def run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[-1]}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--methods", nargs="+", default=["eggs"])
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--limit", type=int, default=0, metavar="MIB")
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--workspace", type=Path, help="store checkpoints here, for further calls")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "ROW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `eggs` does; for all rows, the peer's included
    if arguments.one:
        folder = Path(arguments.one[0])
        row = arguments.one[1]
        if row == BLOCKS:
            costs = run_blocks(folder, arguments.dtype, arguments.windows)
        else:
            costs = run_method(folder, row, arguments.dtype, arguments.limit, arguments.windows)
        print(json.dumps(costs))
        return
    from eggs_ptp.checkpoint.run_record import versions

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for layers in arguments.layers:
            folder = (arguments.workspace or Path(scratch)) / f"layers-{layers}"
            if not (folder / "model").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make_checkpoint(folder, layers)
            make_windows(folder, arguments.windows)
            peers = ["llm-compressor wanda", "llm-compressor sparsegpt"] if arguments.peer else []
            for row in [BLOCKS, *arguments.methods, *peers]:
                if row in peers:
                    costs = run_peer(folder, row, arguments.dtype, arguments.windows, arguments.peer)
                else:
                    flags = [
                        "--dtype",
                        arguments.dtype,
                        "--limit",
                        str(arguments.limit),
                        "--windows",
                        str(arguments.windows),
                    ]
                    costs = run([sys.executable, __file__, *flags, "--one", str(folder), row])
                rows.append({"layers": layers, "row": row, **costs})
                seconds_of_blocks = next(r["seconds"] for r in rows if r["layers"] == layers)
                rows[-1]["ratio_to_blocks"] = costs["seconds"] / seconds_of_blocks
                print(line(rows[-1]), flush=True)
                write(arguments.record, rows, versions())


def line(row: dict[str, Any]) -> str:
    stages = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in row["stages"].items() if seconds >= 0.5)
    numbers = f"{row['seconds']:8.1f} s {row['ratio_to_blocks']:6.2f}x {row['memory'] / MIB:6.0f} MiB"
    return f"{row['layers']:3} layers  {row['row']:24} {numbers}  {stages}"


def write(record: Path | None, rows: list[dict[str, Any]], versions: dict[str, str]) -> None:
    if record:
        record.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "command": "python " + " ".join(sys.argv),
            "versions": versions,
            "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
            "rows": rows,
        }
        record.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
