"""What quantised values cost and save: dense, int8, 2:4, and 2:4 with values of int8 and int4.

    python benchmarks/quantised.py --model demo --model FOLDER CALIBRATION TEXT [WINDOWS] [--seeds 0 1 2]

Models and texts are named as for benchmarks/accuracy.py. For every model and seed `eggs+` prunes to the pattern, once
as it is and once with `+gptq` for each kind of values, and `eggs export` packs the folders: the first as it is and also
rounded to the nearest int8 and int4, the others on their grids, which has to change nothing. Each is verified, judged
as it is packed, and diagnosed: a value that rounds to zero is a connection lost. `int8` without a pattern is the dense
model with the block linears on the same grid.

Then all forms of the first seed generate greedily in turn, one token after the other, with one prompt; and one matrix
of 4096 x 4096, larger than the caches, is multiplied by one input in each form. The dense int8 form runs torch's own
product, `torch._weight_int8pack_mm`. All samples are in the record.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accuracy import HERE, Model, commit, draw, find_model, perplexity, recipe_of, surroundings

KINDS = ("int8", "int4")
METHOD = "eggs+"
SHAPE = (4096, 4096)
COPIES = 4  # operands in turn, so that none is still in the cache


def main() -> None:
    from eggs_ptp import EggsError
    from eggs_ptp.bench.hardware import hardware
    from eggs_ptp.checkpoint.record import versions

    given = parse()
    record: dict[str, Any] = {
        "command": " ".join(["python benchmarks/quantised.py", *sys.argv[1:]]),
        "versions": {**versions(), "commit": commit(), **surroundings()},
        "hardware": hardware(),
        "protocol": {"pattern": given.pattern, "method": METHOD, "nsamples": given.nsamples, "seeds": given.seeds},
        "models": {},
        "rows": [],
        "generate": {},
        "products": [],
    }
    try:
        with tempfile.TemporaryDirectory() as name:
            for number, asked in enumerate(given.model):
                scratch = Path(name) / str(number)
                scratch.mkdir()
                measure(find_model(asked, given.seqlen, scratch), given, record, scratch)
        for kind in ("float32", "bfloat16"):
            record["products"].append(products(kind, given))
            print({"product": kind, **record["products"][-1]["milliseconds"]}, flush=True)
    except EggsError as error:
        sys.exit(f"error: {error}")
    given.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


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


def measure(model: Model, given: argparse.Namespace, record: dict[str, Any], scratch: Path) -> None:
    import torch

    found = perplexity(model.folder, model)
    record["models"][model.name] = {**model.facts, "dense": found.value, "dense_nll": found.nll}
    torch.manual_seed(0)
    rounded, size, dense = dense_int8(model.folder, scratch / "int8", given.pattern)
    base = {"model": model.name, "pattern": None, "rounding": None, "seed": None, "dense_bytes": dense}
    add(record, {**base, "values": None, "bytes": dense}, found)
    add(record, {**base, "values": "int8", "rounding": "nearest", "bytes": size}, perplexity(rounded, model))
    kept: dict[str, Path] = {}
    for seed in given.seeds:
        for values, rounding, folder in packed_folders(model, given, seed, scratch):
            add(
                record,
                {**base, "seed": seed, **row_of(folder, model, given.pattern, values, rounding)},
                perplexity(folder, model),
            )
            if seed == given.seeds[0] and rounding != "nearest":
                kept[f"{given.pattern} {values or ''}".strip()] = folder
            else:
                shutil.rmtree(folder)
    record["generate"][model.name] = generated(model.folder, kept, given)


def add(record: dict[str, Any], row: dict[str, Any], found: Any) -> None:
    nll = record["models"][row["model"]]["dense_nll"]
    row |= {"perplexity": found.value, "excess": found.nll - nll}
    record["rows"].append(row)
    print(
        {key: row[key] for key in ("model", "pattern", "values", "rounding", "seed", "perplexity", "bytes")}, flush=True
    )


def packed_folders(
    model: Model, given: argparse.Namespace, seed: int, scratch: Path
) -> Iterator[tuple[str | None, str | None, Path]]:
    """Values, rounding and folder of every packed form."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.packed import export

    windows, _ = draw(model, given.nsamples, seed, scratch)
    shared = api.Shared()
    for gptq in (None, *KINDS):
        text = METHOD if gptq is None else f"{METHOD}+gptq steps.update.values={gptq}"
        pruned = scratch / f"pruned-{gptq}"
        recipe = recipe_of(text, pattern=given.pattern, seed=seed, calibration=str(windows))
        api.prune(str(model.folder), pruned, recipe, overwrite=True, shared=shared)
        for values in (None, *KINDS) if gptq is None else (gptq,):
            folder = scratch / f"packed-{seed}-{values}-{'gptq' if gptq else 'nearest'}"
            done = export(pruned, folder, "packed", values=values)
            if gptq is not None and done.rounded:
                sys.exit(f"{folder}: {done.rounded} matrices left the grid that gptq had put them on")
            yield values, None if values is None else "gptq" if gptq else "nearest", folder


def row_of(folder: Path, model: Model, pattern: str, values: str | None, rounding: str | None) -> dict[str, Any]:
    """Bytes and connections of a packed folder, which has to stand `verify`."""
    from eggs_ptp import verify
    from eggs_ptp.checkpoint.diagnosis import diagnose_folder
    from eggs_ptp.checkpoint.unpacked import Unpacked
    from eggs_ptp.engine.shards import Shards

    if failures := verify(folder, str(model.folder)).failures:
        sys.exit(f"{folder}: {failures[0].name}: {failures[0].detail}")
    unpacked, stored = Unpacked(folder), Shards(folder)
    tensors = [tensor for name in unpacked.contents.matrices for tensor in unpacked.contents.tensors(name)]
    matrices = diagnose_folder(folder).matrices
    promised = [matrix for matrix in matrices if matrix.floor is not None]
    return {
        "pattern": pattern,
        "values": values,
        "rounding": rounding,
        "bytes": sum(map(stored.bytes, tensors)),
        "connections": sum(matrix.connections for matrix in matrices) / sum(m.inputs * m.outputs for m in matrices),
        "smallest_degree": min(int(matrix.input_degrees["min"]) for matrix in matrices),
        "dead_inputs": sum(matrix.dead_inputs for matrix in matrices),
        "floors": len(promised),
        "floors_held": sum(bool(matrix.floor_held) for matrix in promised),
    }


def dense_int8(folder: Path, output: Path, pattern: str) -> tuple[Path, int, int]:
    """The dense model with its block linears on the grid of int8, its bytes, and those of its own weights."""
    from safetensors.torch import save_file

    from eggs_ptp import api
    from eggs_ptp.core.grid import GRIDS, quantise, restore, scales_of
    from eggs_ptp.engine.shards import Shards

    planned = api.plan(str(folder), pattern=pattern, method="magnitude")
    names = {f"{matrix.name}.weight" for matrix in planned.matrices if matrix.resolved}
    shards, grid = Shards(folder), GRIDS["int8"]
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors, size, dense = {}, 0, 0
    for name in shards.names:
        tensor = shards.read(name)
        if name in names:
            scales = scales_of(tensor, tensor.shape[1])
            size, dense = size + tensor.numel() + scales.nbytes, dense + tensor.nbytes
            tensor = restore(quantise(tensor, scales, grid, tensor.shape[1]), scales, grid, tensor.shape[1])
        tensors[name] = tensor
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    return output, size, dense


def generated(folder: Path, packed: dict[str, Path], given: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of every form, interleaved."""
    import torch

    from eggs_ptp.bench.contest import contest
    from eggs_ptp.bench.hardware import load
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
        how = {"do_sample": False, "max_new_tokens": given.tokens, "min_new_tokens": given.tokens, "pad_token_id": 0}
        return lambda _turn: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)

    before = load()
    with torch.inference_mode():
        timings = contest({name: run(model) for name, model in models.items()}, rounds=given.rounds)
    return {
        "dtype": str(first.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tokens": given.tokens,
        "load": [before, load()],
        "tokens_per_second": {name: round(given.tokens / timing.median, 1) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 4) for name, timing in timings.items()},
        "microseconds": {name: timing.microseconds for name, timing in timings.items()},
    }


def dense_product(linear: Any) -> Any:
    """A dense linear with weights of int8, multiplied by torch."""
    import torch

    from eggs_ptp.core.grid import GRIDS, quantise, scales_of

    class Int8(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = linear.weight.detach()
            scales, grid = scales_of(weight, weight.shape[1]), GRIDS["int8"]
            self.weight, self.bias = quantise(weight, scales, grid, weight.shape[1]), linear.bias
            self.scales = (scales[:, 0] / grid.top).to(weight.dtype)

        def forward(self, x: Any) -> Any:
            y = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scales)
            return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    return Int8()


def products(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """One input times one matrix larger than the caches, in every form."""
    import torch

    from eggs_ptp.bench.contest import contest
    from eggs_ptp.bench.hardware import load
    from eggs_ptp.core.mask import keep_top
    from eggs_ptp.core.pack import pack, quantise
    from eggs_ptp.core.pattern import parse_pattern
    from eggs_ptp.sparse.linear import NMLinear

    dtype, pattern = getattr(torch, kind), parse_pattern(given.pattern)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    sparse = torch.where(keep_top(weight.abs(), pattern), weight, 0.0).to(dtype)
    dense = torch.nn.Linear(*reversed(SHAPE), bias=False, dtype=dtype)
    dense.weight.data = weight.to(dtype)
    packed = pack(sparse, pattern)
    made: dict[str, Callable[[], Any]] = {
        "dense": lambda: copied(dense),
        "int8": lambda: dense_product(dense),
        given.pattern: lambda: copied(NMLinear(packed)),
        **{f"{given.pattern} {each}": lambda each=each: NMLinear(quantise(packed, each)) for each in KINDS},  # type: ignore[misc]
    }
    modules = {name: [make() for _ in range(COPIES)] for name, make in made.items()}
    x = torch.randn(1, SHAPE[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    before = load()
    with torch.inference_mode():
        timings = contest(
            {name: lambda turn, each=each: each[turn % COPIES](x) for name, each in modules.items()},  # type: ignore[misc]
            rounds=2 * given.rounds,
        )
    return {
        "dtype": kind,
        "shape": SHAPE,
        "threads": torch.get_num_threads(),
        "load": [before, load()],
        "milliseconds": {name: round(1e3 * timing.median, 4) for name, timing in timings.items()},
        "spread": {name: round(timing.spread, 4) for name, timing in timings.items()},
        "microseconds": {name: timing.microseconds for name, timing in timings.items()},
    }


def copied(module: Any) -> Any:
    from copy import deepcopy

    return deepcopy(module)


if __name__ == "__main__":
    main()
