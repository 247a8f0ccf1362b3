"""Prune one model by another tool's own code; `benchmarks/accuracy.py` runs this in that tool's interpreter.

    PYTHON peer.py TOOL METHOD MODEL WINDOWS.npy KEEP:GROUP OUTPUT --seed 0

TOOL is llmcompressor or modelopt. Its code runs in --dtype on the given token windows; the weights are saved in the
type that they came in, by transformers. The last line printed is JSON: seconds of the pruning alone, the peak of
anonymous memory over the imports (model included), settings, versions.
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
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    stored = AutoConfig.from_pretrained(given.model).dtype or torch.float32
    baseline = anonymous()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).eval()
    windows = torch.from_numpy(np.load(given.windows))
    keep, group = (int(part) for part in given.pattern.split(":"))
    prepare = {"llmcompressor": llmcompressor, "modelopt": modelopt}[given.tool]
    prune, settings = prepare(model, given, windows, keep, group)
    start, cpu = time.perf_counter(), time.process_time()
    with watched() as peak:
        model = prune()
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    spent["memory"] = peak[0] - baseline
    model.to(stored).save_pretrained(given.output)
    print(json.dumps({**spent, "settings": settings, "versions": versions(given.tool)}))


def anonymous() -> int:
    info = psutil.Process().memory_info()
    return int(info.rss) - int(info.shared)


@contextmanager
def watched() -> Iterator[list[int]]:
    peak, stop = [anonymous()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    stop.set()
    thread.join()


def llmcompressor(
    model: Any, given: argparse.Namespace, windows: torch.Tensor, keep: int, group: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    # Its N counts the pruned weights; "lm_head" as an exact name is not honoured, and tied embeddings would be pruned.
    settings = {
        "sparsity": 1 - keep / group,
        "mask_structure": f"{group - keep}:{group}",
        "ignore": ["re:.*lm_head"],
    }
    recipe = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[given.method](**settings)
    rows = windows.tolist()
    prune = functools.partial(
        oneshot,
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=recipe,
        processor=AutoTokenizer.from_pretrained(given.model),  # asked for even where the data are tokens
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    return prune, {"modifier": type(recipe).__name__, **settings}


def modelopt(
    model: Any, given: argparse.Namespace, windows: torch.Tensor, keep: int, group: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
    import modelopt.torch.sparsity as mts

    mode = {"sparsegpt": "sparsegpt", "magnitude": "sparse_magnitude"}[given.method]
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
