"""What quantised values cost and save: dense, int8, 2:4, and 2:4 with int8 and int4 values.

    python benchmarks/quantised.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS] [--seeds 0 1 2]

Models and texts are passed as to benchmarks/accuracy.py. For every model and seed `eggs+` prunes to the pattern, once
without quantisation and once with `+gptq` for each type of values, and `eggs export` packs the folders: the first
unquantised and also rounded to the nearest int8 and int4, the others on their quantisation grids, which must not change
them. Each packed folder is verified, evaluated and diagnosed, because a value that rounds to zero is a lost connection.
`int8` without a pattern is the dense model with the block linears on the same grid.

Then all forms of the first seed, interleaved, generate greedily from one prompt, and a matrix of 4096 x 4096, larger
than the caches, is multiplied with one input in each form. The dense int8 form uses torch's `_weight_int8pack_mm`. The
record has all samples.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from accuracy import HERE, Model, commit, draw_windows, find_model, machine_metadata, perplexity, recipe_of

KINDS = ("int8", "int4")
METHOD = "eggs+"
SHAPE = (4096, 4096)
COPIES = 4  # of each matrix, used in turn, so that none is still in the cache


def main() -> None:
    from eggs_ptp import EggsError
    from eggs_ptp.bench.hardware import hardware
    from eggs_ptp.checkpoint.run_record import versions

    arguments = parse()
    record: dict[str, Any] = {
        "command": " ".join(["python benchmarks/quantised.py", *sys.argv[1:]]),
        "versions": {**versions(), "commit": commit(), **machine_metadata()},
        "hardware": hardware(),
        "protocol": {
            "pattern": arguments.pattern,
            "method": METHOD,
            "nsamples": arguments.nsamples,
            "seeds": arguments.seeds,
        },
        "models": {},
        "rows": [],
        "generate": {},
        "products": [],
    }
    try:
        with tempfile.TemporaryDirectory() as name:
            for number, words in enumerate(arguments.model):
                scratch = Path(name) / str(number)
                scratch.mkdir()
                measure(find_model(words, arguments.seqlen, scratch), arguments, record, scratch)
        for dtype in ("float32", "bfloat16"):
            record["products"].append(measure_products(dtype, arguments))
            print({"product": dtype, **record["products"][-1]["milliseconds"]}, flush=True)
    except EggsError as error:
        sys.exit(f"error: {error}")
    arguments.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", nargs="+", required=True, metavar="MODEL")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=48, help="to generate")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", type=Path, default=HERE.parent / "docs" / "results" / "quantised.json")
    return parser.parse_args()


def measure(model: Model, arguments: argparse.Namespace, record: dict[str, Any], scratch: Path) -> None:
    import torch

    dense = perplexity(model.folder, model)
    record["models"][model.name] = {**model.metadata, "dense": dense.value, "dense_nll": dense.nll}
    torch.manual_seed(0)
    int8_folder, int8_bytes, dense_bytes = dense_int8(model.folder, scratch / "int8", arguments.pattern)
    base = {"model": model.name, "pattern": None, "rounding": None, "seed": None, "dense_bytes": dense_bytes}
    add_row(record, {**base, "values": None, "bytes": dense_bytes}, dense)
    int8_row = {**base, "values": "int8", "rounding": "nearest", "bytes": int8_bytes}
    add_row(record, int8_row, perplexity(int8_folder, model))
    folders_to_time: dict[str, Path] = {}
    for seed in arguments.seeds:
        for values, rounding, folder in packed_folders(model, arguments, seed, scratch):
            row = {**base, "seed": seed, **row_of(folder, model, arguments.pattern, values, rounding)}
            add_row(record, row, perplexity(folder, model))
            if seed == arguments.seeds[0] and rounding != "nearest":
                folders_to_time[f"{arguments.pattern} {values or ''}".strip()] = folder
            else:
                shutil.rmtree(folder)
    record["generate"][model.name] = measure_generate(model.folder, folders_to_time, arguments)


def add_row(record: dict[str, Any], row: dict[str, Any], evaluation: Any) -> None:
    dense_nll = record["models"][row["model"]]["dense_nll"]
    row |= {"perplexity": evaluation.value, "excess": evaluation.nll - dense_nll}
    record["rows"].append(row)
    shown = ("model", "pattern", "values", "rounding", "seed", "perplexity", "bytes")
    print({key: row[key] for key in shown}, flush=True)


def packed_folders(
    model: Model, arguments: argparse.Namespace, seed: int, scratch: Path
) -> Iterator[tuple[str | None, str | None, Path]]:
    """Prune and pack; yield type of values, rounding and folder of every packed form."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.packed import export
    from eggs_ptp.engine.preparation import SharedInputs

    windows, _ = draw_windows(model, arguments.nsamples, seed, scratch)
    shared = SharedInputs()
    for gptq in (None, *KINDS):
        text = METHOD if gptq is None else f"{METHOD}+gptq steps.update.values={gptq}"
        pruned = scratch / f"pruned-{gptq}"
        recipe = recipe_of(text, pattern=arguments.pattern, seed=seed, calibration=str(windows))
        api.prune(str(model.folder), pruned, recipe, overwrite=True, shared=shared)
        for values in (None, *KINDS) if gptq is None else (gptq,):
            folder = scratch / f"packed-{seed}-{values}-{'gptq' if gptq else 'nearest'}"
            exported = export(pruned, folder, "packed", values=values)
            if gptq is not None and exported.rounded:
                sys.exit(f"{folder}: {exported.rounded} matrices are not on the grid that gptq put them on")
            yield values, None if values is None else "gptq" if gptq else "nearest", folder


def row_of(folder: Path, model: Model, pattern: str, values: str | None, rounding: str | None) -> dict[str, Any]:
    """Return bytes and connections of a packed folder, after verifying it."""
    from eggs_ptp import verify
    from eggs_ptp.checkpoint.unpacked import UnpackedReader
    from eggs_ptp.engine.tensors.reader import CheckpointReader
    from eggs_ptp.research.diagnosis.diagnosis import diagnose_folder

    if failures := verify(folder, str(model.folder)).failures:
        sys.exit(f"{folder}: {failures[0].name}: {failures[0].detail}")
    unpacked, stored = UnpackedReader(folder), CheckpointReader(folder)
    tensors = [tensor for name in unpacked.packed_config.matrices for tensor in unpacked.packed_config.tensors(name)]
    matrices = diagnose_folder(folder).matrices
    with_floor = [matrix for matrix in matrices if matrix.floor is not None]
    return {
        "pattern": pattern,
        "values": values,
        "rounding": rounding,
        "bytes": sum(map(stored.bytes, tensors)),
        "connections": sum(matrix.connections for matrix in matrices) / sum(m.inputs * m.outputs for m in matrices),
        "smallest_degree": min(int(matrix.input_degrees["min"]) for matrix in matrices),
        "dead_inputs": sum(matrix.dead_inputs for matrix in matrices),
        "floors": len(with_floor),
        "floors_held": sum(bool(matrix.floor_held) for matrix in with_floor),
    }


def dense_int8(folder: Path, output: Path, pattern: str) -> tuple[Path, int, int]:
    """Write the dense model with its block linears rounded to int8; return it, its bytes, and those of the original."""
    from safetensors.torch import save_file

    from eggs_ptp import api
    from eggs_ptp.core.quantisation import GRIDS, compute_scales, dequantise, quantise
    from eggs_ptp.engine.tensors.reader import CheckpointReader

    planned = api.plan(str(folder), pattern=pattern, method="magnitude")
    names = {f"{matrix.name}.weight" for matrix in planned.matrices if matrix.resolved}
    reader = CheckpointReader(folder)
    grid = GRIDS["int8"]
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {}
    int8_bytes = 0
    dense_bytes = 0
    for name in reader.names:
        tensor = reader.read(name)
        if name in names:
            scales = compute_scales(tensor, tensor.shape[1])
            int8_bytes += tensor.numel() + scales.nbytes
            dense_bytes += tensor.nbytes
            integers = quantise(tensor, scales, grid, tensor.shape[1])
            tensor = dequantise(integers, scales, grid, tensor.shape[1])
        tensors[name] = tensor
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    return output, int8_bytes, dense_bytes


def measure_generate(folder: Path, packed: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure tokens per second of every form, interleaved."""
    import torch

    from eggs_ptp.bench.hardware import load_averages
    from eggs_ptp.bench.timing import time_interleaved
    from eggs_ptp.models.load import load_model
    from eggs_ptp.sparse.convert import replace
    from eggs_ptp.sparse.linear import NMLinear

    models = {"dense": load_model(folder), "int8": load_model(folder)}
    models |= {name: load_model(path) for name, path in packed.items()}
    first = next(model for name, model in models.items() if name not in ("dense", "int8"))
    for name, module in first.named_modules():
        if isinstance(module, NMLinear):
            replace(models["int8"], name, dense_product(models["int8"].get_submodule(name)))
    ids = torch.randint(first.config.vocab_size, (1, 8), generator=torch.Generator().manual_seed(0))

    def run(model: Any) -> Callable[[int], object]:
        settings = {"do_sample": False, "max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens}
        return lambda _round: model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings
        )

    before = load_averages()
    with torch.inference_mode():
        timings = time_interleaved({name: run(model) for name, model in models.items()}, rounds=arguments.rounds)
    return {
        "dtype": str(first.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tokens": arguments.tokens,
        "load": [before, load_averages()],
        "tokens_per_second": {name: round(arguments.tokens / timing.median, 1) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 4) for name, timing in timings.items()},
        "microseconds": {name: timing.microseconds for name, timing in timings.items()},
    }


def dense_product(linear: Any) -> Any:
    """Return a dense linear with int8 weights, multiplied by torch."""
    import torch

    from eggs_ptp.core.quantisation import GRIDS, compute_scales, quantise

    class Int8(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = linear.weight.detach()
            scales, grid = compute_scales(weight, weight.shape[1]), GRIDS["int8"]
            self.weight, self.bias = quantise(weight, scales, grid, weight.shape[1]), linear.bias
            self.scales = (scales[:, 0] / grid.max_level).to(weight.dtype)

        def forward(self, x: Any) -> Any:
            y = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scales)
            return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    return Int8()


def measure_products(dtype_name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one input times one matrix larger than the caches, in every form."""
    import torch

    from eggs_ptp.bench.hardware import load_averages
    from eggs_ptp.bench.timing import time_interleaved
    from eggs_ptp.core.mask import keep_top
    from eggs_ptp.core.pack import pack, quantise
    from eggs_ptp.core.pattern import parse_pattern
    from eggs_ptp.sparse.linear import NMLinear

    dtype = getattr(torch, dtype_name)
    pattern = parse_pattern(arguments.pattern)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    sparse = torch.where(keep_top(weight.abs(), pattern), weight, 0.0).to(dtype)
    dense = torch.nn.Linear(*reversed(SHAPE), bias=False, dtype=dtype)
    dense.weight.data = weight.to(dtype)
    packed = pack(sparse, pattern)
    forms: dict[str, Callable[[], Any]] = {
        "dense": lambda: deepcopy(dense),
        "int8": lambda: dense_product(dense),
        arguments.pattern: lambda: deepcopy(NMLinear(packed)),
        **{
            f"{arguments.pattern} {values}": lambda values=values: NMLinear(quantise(packed, values))
            for values in KINDS
        },  # type: ignore[misc]
    }
    modules = {name: [make() for _ in range(COPIES)] for name, make in forms.items()}
    x = torch.randn(1, SHAPE[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    before = load_averages()
    with torch.inference_mode():
        timings = time_interleaved(
            {name: lambda turn, copies=copies: copies[turn % COPIES](x) for name, copies in modules.items()},  # type: ignore[misc]
            rounds=2 * arguments.rounds,
        )
    return {
        "dtype": dtype_name,
        "shape": SHAPE,
        "threads": torch.get_num_threads(),
        "load": [before, load_averages()],
        "milliseconds": {name: round(1e3 * timing.median, 4) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 4) for name, timing in timings.items()},
        "microseconds": {name: timing.microseconds for name, timing in timings.items()},
    }


if __name__ == "__main__":
    main()
