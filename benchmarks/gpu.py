"""Packed matrices on a GPU compared with cuBLAS: a few tokens under CUDA graphs, long prompts, and whole models.

Everything is measured in one run, on one GPU; without a GPU the script ends with a message. A product is timed over
copies of its matrix that together exceed the GPU's cache four times, one after the other in a CUDA graph (long prompts:
outside of one). Candidates are interleaved in random order. A ratio is the quotient of two medians, marked "?" if the
middle half of either's samples spreads over more than a tenth of its median. Every product is compared with the dense
one before it is timed. `--thresholds` times, for every batch, each algorithm of the Triton backend.

    python benchmarks/gpu.py [--shapes 4096x4096,...] [--batches 1,2,4,8,16] [--prefill 4096] [--patterns 2:4,4:8]
        [--models llama-3-8b] [--thresholds] [--rounds 30] [--record docs/results/gpu.json]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as dense_linear

from eggs_ptp.bench.benchmark_run import parse_batches, parse_patterns, parse_shapes
from eggs_ptp.bench.hardware import hardware, load_averages
from eggs_ptp.bench.timing import Timing, time_interleaved
from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pack import pack
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.sparse import torch_core, triton
from eggs_ptp.sparse.backends import registered_backends
from eggs_ptp.sparse.convert import pack as pack_model
from eggs_ptp.sparse.linear import NMLinear
from eggs_ptp.sparse.reference import REFERENCE

LLAMA_3_8B = "4096x4096,14336x4096,4096x14336"
LLAMA_2_13B = "5120x5120,13824x5120,5120x13824"
PAPER = "LLaMA2-13B, prefill on an A100: 1.64x, as arXiv 2508.09471 reports it; another GPU, not measured here"
MODELS = {
    "llama-3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    }
}
SAMPLE = 3e-3  # least seconds of a sample, so that synchronising with the GPU does not count
Run = Callable[[int], object]


def synchronised_time() -> float:
    """Return the time once the GPU has finished all work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def pruned(rows: int, columns: int, pattern: Pattern, device: torch.device) -> Tensor:
    """Return a random N:M weight."""
    weight = torch.randn(rows, columns, device=device) / columns**0.5
    return torch.where(keep_top(weight.abs(), pattern), weight, 0.0).to(torch.bfloat16)


def repeated(products: list[Callable[[], Tensor]], *, graphs: bool) -> tuple[Callable[[], object], int]:
    """Return a function that computes all products as often as a sample needs, and the number of products."""
    with torch.inference_mode():
        for product in products:
            product()
        start = synchronised_time()
        for product in products:
            product()
        rounds = max(1, round(SAMPLE / (synchronised_time() - start)))

        def run() -> None:
            with torch.inference_mode():
                for _ in range(rounds):
                    for product in products:
                        product()

        if not graphs:
            return run, rounds * len(products)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    return graph.replay, rounds * len(products)


def timed(candidates: dict[str, list[Callable[[], Tensor]]], rounds: int, *, graphs: bool) -> dict[str, Timing]:
    """Return the seconds of one product of each candidate."""
    runs = {name: repeated(products, graphs=graphs) for name, products in candidates.items()}
    calls: dict[str, Run] = {name: (lambda _, run=run: run()) for name, (run, _) in runs.items()}
    timings = time_interleaved(calls, rounds=rounds, clock=synchronised_time)
    return {name: Timing([seconds / runs[name][1] for seconds in timing.seconds]) for name, timing in timings.items()}


def candidates_of(x: Tensor, weight: Tensor, pattern: Pattern, *, thresholds: bool) -> dict[str, Callable[[], Tensor]]:
    """Return the functions that compute a product, by candidate."""
    packed = pack(weight, pattern)
    product = (x.device, x.dtype, pattern, *weight.shape, x.shape[0])
    usable = [backend.name for backend in registered_backends() if backend.unsupported_reason(*product) is None]
    usable = [name for name in usable if name != REFERENCE.name]
    layers = {f"{pattern} {name}": NMLinear(packed, backend=name) for name in usable or [REFERENCE.name]}
    calls: dict[str, Callable[[], Tensor]] = {name: (lambda layer=layer: layer(x)) for name, layer in layers.items()}
    if thresholds:
        state = triton.prepare(packed)
        for name, algorithm in (
            ("direct", triton.multiply_directly),
            ("tiles", triton.multiply_by_tiles),
            ("unpacked", triton.multiply_unpacked),
        ):
            if x.shape[0] <= {"direct": 16, "tiles": 256}.get(name, 1 << 30):
                calls[f"{pattern} triton, {name}"] = lambda algorithm=algorithm: algorithm(x, state)
    return calls


def measure(
    rows: int, columns: int, batch: int, patterns: list[Pattern], rounds: int, device: torch.device, *, thresholds: bool
) -> dict[str, Any]:
    """Measure one shape with one batch: microseconds of all candidates, and their speedups over cuBLAS."""
    size = 2 * rows * columns
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else size
    copies = max(2, -(-4 * cache // size))
    x = torch.randn(batch, columns, device=device).to(torch.bfloat16)
    candidates: dict[str, list[Callable[[], Tensor]]] = {"dense": []}
    for _ in range(copies):
        dense = torch.randn(rows, columns, device=device).to(torch.bfloat16)
        candidates["dense"].append(lambda weight=dense: dense_linear(x, weight))
        for pattern in patterns:
            weight = pruned(rows, columns, pattern, device)
            for name, call in candidates_of(x, weight, pattern, thresholds=thresholds).items():
                torch.testing.assert_close(call().float(), dense_linear(x, weight).float(), atol=0.05, rtol=0.05)
                candidates.setdefault(name, []).append(call)
    before = load_averages()
    timings = timed(candidates, rounds, graphs=device.type == "cuda" and batch <= triton.MAX_TILED_BATCH)
    ratios = {name: timing.speedup_over(timings["dense"]) for name, timing in timings.items() if name != "dense"}
    return {
        "shape": [rows, columns],
        "batch": batch,
        "dtype": "bfloat16",
        "copies": copies,
        "cuda_graph": device.type == "cuda" and batch <= triton.MAX_TILED_BATCH,
        "load_before": before,
        "load_after": load_averages(),
        "microseconds": {
            name: [round(seconds * 1e6, 3) for seconds in timing.seconds] for name, timing in timings.items()
        },
        "times_faster_than_dense": {name: [round(value, 3), trusted] for name, (value, trusted) in ratios.items()},
    }


def measure_generate(
    config: dict[str, int], pattern: Pattern, rounds: int, device: torch.device, *, prompt: int = 128, tokens: int = 128
) -> dict[str, Any]:
    """Measure greedy `generate` of a random model, dense with zeros and packed, eager and compiled."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with device:
        settings = AutoConfig.for_model("llama", tie_word_embeddings=False, **config)
        model: Any = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.weight.data = torch.where(keep_top(module.weight.abs().float(), pattern), module.weight, 0.0)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    dense_bytes = sum(module.weight.nbytes for name, module in linears.items() if name != "lm_head")
    ids = torch.randint(config["vocab_size"], (1, prompt), device=device)

    def generate(*, compiled: bool) -> Tensor:
        cache: dict[str, Any] = {"cache_implementation": "static"} if compiled else {}
        with torch.inference_mode():
            tokens_and_prompt: Tensor = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                **cache,
            )
        return tokens_and_prompt[0, prompt:]

    seconds: dict[str, list[float]] = {}
    generated: dict[str, Tensor] = {}
    packed_bytes = 0
    for form in ("dense", "packed"):
        if form == "packed":
            pack_model(model, pattern)
            packed_bytes = sum(module.packed.nbytes for module in model.modules() if isinstance(module, NMLinear))
        for compiled in (False, True) if device.type == "cuda" else (False,):
            name = f"{form}, {'compiled, static cache' if compiled else 'eager'}"
            generated[name] = generate(compiled=compiled)
            generate(compiled=compiled)
            for _ in range(rounds):
                start = synchronised_time()
                generate(compiled=compiled)
                seconds.setdefault(name, []).append(synchronised_time() - start)
    reference = generated["dense, eager"]
    same = {name: int((ids == reference).long().cumprod(0).sum()) for name, ids in generated.items()}
    return {
        "pattern": str(pattern),
        "prompt_tokens": prompt,
        "new_tokens": tokens,
        "seconds": {name: [round(sample, 5) for sample in samples] for name, samples in seconds.items()},
        "tokens_per_second": {name: round(tokens / Timing(samples).median, 2) for name, samples in seconds.items()},
        "same_tokens_as_dense_eager": same,
        "linears_bytes": {"dense": dense_bytes, "packed": packed_bytes},
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine."""
    from importlib.metadata import version

    properties = torch.cuda.get_device_properties(device)
    return {
        **hardware(),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "processors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cusparselt": torch.backends.cusparselt.version(),
        "triton": version("triton"),
    }


def report(product: dict[str, Any]) -> None:
    """Print the measurements of a shape."""
    rows, columns = product["shape"]
    print(f"\n{rows} x {columns}, batch {product['batch']}{', CUDA graph' if product['cuda_graph'] else ''}")
    for name, samples in product["microseconds"].items():
        value, trusted = product["times_faster_than_dense"].get(name, (1.0, True))
        print(f"  {name:24} {Timing(samples).median:10.2f} us {value:7.2f}x{'' if trusted else ' ?'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=f"{LLAMA_3_8B},{LLAMA_2_13B}", type=parse_shapes)
    parser.add_argument("--batches", default="1,2,4,8,16", type=parse_batches)
    parser.add_argument("--prefill", default="4096", type=parse_batches, help="tokens of a long prompt")
    parser.add_argument("--patterns", default="2:4,4:8", type=parse_patterns)
    parser.add_argument("--models", default="llama-3-8b", help="names from this file, or nothing")
    parser.add_argument("--thresholds", action="store_true")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("nothing to measure: torch finds no GPU")
    os.environ.setdefault(torch_core.ALLOW_CUSPARSELT, "1")  # to measure cuSPARSELt too: memory is not short here
    device = torch.device("cuda", torch.cuda.current_device())
    record = {
        "command": " ".join(sys.argv),
        "hardware": machine(device),
        "paper": PAPER,
        "products": (products := []),
        "models": (models := {}),
    }
    print(json.dumps(record["hardware"], indent=1))

    def write() -> None:  # after each measurement, so that an interrupted run keeps the finished ones
        if options.record:
            options.record.write_text(json.dumps(record, indent=1) + "\n")

    for rows, columns in options.shapes:
        for batch in [*options.batches, *options.prefill]:
            product = measure(
                rows, columns, batch, options.patterns, options.rounds, device, thresholds=options.thresholds
            )
            products.append(product)
            report(product)
            write()
            torch.cuda.empty_cache()
    print(f"\n{PAPER}")
    for name in filter(None, options.models.split(",")):
        models[name] = measure_generate(MODELS[name], options.patterns[0], min(options.rounds, 7), device)
        print(f"\n{name}: {json.dumps(models[name]['tokens_per_second'], indent=1)}")
        write()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
