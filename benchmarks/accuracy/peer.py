"""Prune one model with another tool's own code; `benchmarks/accuracy.py` runs this in that tool's interpreter.

    PYTHON peer.py TOOL METHOD MODEL WINDOWS.npy KEEP:GROUP OUTPUT --seed 0

TOOL is llmcompressor or modelopt. Its code runs in --dtype on the token windows; the weights are saved by transformers
in their original type. The last line printed is JSON: seconds of the pruning alone, the peak of anonymous memory minus
that of the imports (model included), settings, versions.
"""

import argparse
import functools
import importlib.metadata
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("tool", "method", "model", "windows", "pattern", "output"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    stored_dtype = AutoConfig.from_pretrained(arguments.model).dtype or torch.float32
    baseline = anonymous_memory()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    windows = torch.from_numpy(np.load(arguments.windows))
    keep, group = (int(part) for part in arguments.pattern.split(":"))
    prepare = {"llmcompressor": llmcompressor, "modelopt": modelopt}[arguments.tool]
    prune, settings = prepare(model, arguments, windows, keep, group)
    start = time.perf_counter()
    cpu_start = time.process_time()
    with monitored_memory() as peak:
        model = prune()
    costs = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    costs["memory"] = peak[0] - baseline
    model.to(stored_dtype).save_pretrained(arguments.output)
    print(json.dumps({**costs, "settings": settings, "versions": versions(arguments.tool)}))


def anonymous_memory() -> int:
    info = psutil.Process().memory_info()
    return int(info.rss) - int(info.shared)


@contextmanager
def monitored_memory() -> Iterator[list[int]]:
    """Measure the peak of anonymous memory while the context lasts."""
    peak = [anonymous_memory()]
    stop = threading.Event()

    def monitor() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], anonymous_memory())

    thread = threading.Thread(target=monitor, daemon=True)
    thread.start()
    yield peak
    stop.set()
    thread.join()


def llmcompressor(
    model: Any, arguments: argparse.Namespace, windows: torch.Tensor, keep: int, group: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    # Its N counts pruned weights; it ignores "lm_head" as an exact name, and would prune tied embeddings.
    settings = {
        "sparsity": 1 - keep / group,
        "mask_structure": f"{group - keep}:{group}",
        "ignore": ["re:.*lm_head"],
    }
    recipe = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[arguments.method](**settings)
    rows = windows.tolist()
    prune = functools.partial(
        oneshot,
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=recipe,
        processor=AutoTokenizer.from_pretrained(arguments.model),  # required even for tokenised data
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    return prune, {"modifier": type(recipe).__name__, **settings}


def modelopt(
    model: Any, arguments: argparse.Namespace, windows: torch.Tensor, keep: int, group: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
    import modelopt.torch.sparsity as mts

    mode = {"sparsegpt": "sparsegpt", "magnitude": "sparse_magnitude"}[arguments.method]
    batches = [row[None] for row in windows]
    config = {"data_loader": batches, "collect_func": lambda batch: batch} if mode == "sparsegpt" else None
    settings = {"mode": mode, "pattern": f"{keep}:{group}"}
    return lambda: mts.export(mts.sparsify(model, mode, config=config)), settings


def versions(tool: str) -> dict[str, str]:
    distributions = {"llmcompressor": ("llmcompressor", "compressed-tensors"), "modelopt": ("nvidia-modelopt",)}[tool]
    names = (*distributions, "torch", "transformers", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


if __name__ == "__main__":
    main()
