"""`eggs bench`: speed of packed linears against dense ones on this machine."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.bench.benchmark_run import BenchmarkRun
    from eggs_ptp.bench.checkpoint import GenerationMeasurement
    from eggs_ptp.bench.product import ProductMeasurement
    from eggs_ptp.cli.terminal import Progress

_PRODUCTS = "Matrix products"
_GENERATION = "Text generation"

Folder = Annotated[str | None, typer.Argument(metavar="DIR", help="A packed or a pruned folder.", show_default=False)]
Shapes = Annotated[
    str | None,
    typer.Option(
        help="Rows x columns, separated by commas, such as 4096x4096. Default: the shapes of the folder.",
        rich_help_panel=_PRODUCTS,
        show_default=False,
    ),
]
Patterns = Annotated[
    str, typer.Option(help="Patterns of the matrices of --shapes, separated by commas.", rich_help_panel=_PRODUCTS)
]
Batches = Annotated[str, typer.Option(help="Batch sizes, separated by commas.", rich_help_panel=_PRODUCTS)]
Prefill = Annotated[
    int,
    typer.Option(min=0, help="One more batch size, that of a long prompt; 0: none.", rich_help_panel=_PRODUCTS),
]
Rounds = Annotated[int, typer.Option(min=5, help="Maximal samples of each product.", rich_help_panel=_PRODUCTS)]
Tokens = Annotated[int, typer.Option(min=1, help="New tokens of each text.", rich_help_panel=_GENERATION)]
Prompt = Annotated[int, typer.Option(min=1, help="Tokens of the prompt.", rich_help_panel=_GENERATION)]
Texts = Annotated[int, typer.Option(min=5, help="Maximal samples of each format.", rich_help_panel=_GENERATION)]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: torch's own choice.")]
Seconds = Annotated[float, typer.Option(min=0.0, help="Time after which a measurement with 5 samples ends.")]
Kind = Annotated[
    DType, typer.Option(help="Data type of the weights. auto: that of the folder; for --shapes float32 and bfloat16.")
]
Record = Annotated[Path | None, typer.Option(help="File to write: all measurements (.json).", show_default=False)]
Plot = Annotated[Path | None, typer.Option(help="File to write: a plot of the products (.svg).", show_default=False)]


def bench(
    context: typer.Context,
    folder: Folder = None,
    shapes: Shapes = None,
    patterns: Patterns = "2:4",
    batches: Batches = "1,2,4,8,16",
    prefill: Prefill = 512,
    rounds: Rounds = 60,
    tokens: Tokens = 32,
    prompt: Prompt = 8,
    texts: Texts = 7,
    threads: Threads = None,
    seconds: Seconds = 10.0,
    dtype: Kind = DType.auto,
    record: Record = None,
    plot: Plot = None,
    json: flags.Json = False,
) -> None:
    """Measure packed against the fastest dense linears on this CPU: matrix products, and a model's text generation."""
    if (folder is None) == (shapes is None):
        raise typer.BadParameter("expected one thing to measure: a packed folder, or --shapes such as 4096x4096")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"--plot {plot}: there is no such folder")
    from eggs_ptp.bench.benchmark_run import DEFAULT_DTYPES, BenchmarkRun, parse_batches, parse_patterns, parse_shapes
    from eggs_ptp.cli.terminal import Progress, print_json, print_line
    from eggs_ptp.engine.planning.device import find_dtype
    from eggs_ptp.models.folder import find_folder

    batch_sizes = sorted({*parse_batches(batches), *([prefill] if prefill else [])})
    torch_dtype = None if dtype is DType.auto else find_dtype(dtype.value)
    with Progress("bench", quiet=json) as progress:
        benchmark_run = BenchmarkRun(
            shlex.join(context.obj),
            batch_sizes,
            rounds,
            seconds,
            threads,
            lambda unfinished: _notify(unfinished, record, progress),
        )
        if shapes is not None:
            dtypes = (torch_dtype,) if torch_dtype else DEFAULT_DTYPES
            benchmark_run.measure_shapes(parse_shapes(shapes), parse_patterns(patterns), dtypes)
        elif folder is not None:
            benchmark_run.measure_folder(
                find_folder(folder), torch_dtype or "auto", prompt=prompt, tokens=tokens, texts=texts
            )
    if plot is not None:
        from eggs_ptp.bench.plot import plot as draw
        from eggs_ptp.core.atomic_write import write_text_atomically

        write_text_atomically(plot, draw(benchmark_run.products, benchmark_run.machine))
    if json:
        print_json(benchmark_run.to_dict())
    else:
        _print(benchmark_run)
        print_line(progress.memory_text())


def _notify(benchmark_run: "BenchmarkRun", record: Path | None, progress: "Progress") -> None:
    """Write the record after each result, so that an interruption leaves what was measured, and show progress."""
    from eggs_ptp.core.records import write_record

    if record is not None:
        write_record(record, benchmark_run.to_dict())
    generates = benchmark_run.folder is not None
    done = len(benchmark_run.products) + (benchmark_run.generated is not None)
    progress.count(done, benchmark_run.expected + generates)


def _print(benchmark_run: "BenchmarkRun") -> None:
    from eggs_ptp.bench.timing import TRUSTED
    from eggs_ptp.cli.terminal import print_line

    print_line(benchmark_run.machine)
    if benchmark_run.generated is not None:
        _print_generation(benchmark_run.generated)
    _print_products(benchmark_run.products)
    print_line(
        f"Medians of interleaved samples. ?: not reliable, the interquartile range is more than {TRUSTED:.0%} of the "
        "median."
    )
    for remark in benchmark_run.remarks():
        print_line(f"- {remark}")


def _print_generation(generated: "GenerationMeasurement") -> None:
    from eggs_ptp.bench.checkpoint import PACKED, STOCK
    from eggs_ptp.cli.terminal import format_bytes, print_line, print_table

    memory = {PACKED: format_bytes(generated.packed_bytes), STOCK: format_bytes(generated.dense_bytes)}
    packed_timing = generated.timings[PACKED]
    rows = []
    for form, timing in generated.timings.items():
        speedup = "" if form == PACKED else _speedup(*packed_timing.speedup_over(timing))
        rate = f"{generated.tokens_per_second(form):.1f}"
        rows.append((form, rate, f"{timing.spread:.1%}", speedup, memory.get(form, "")))
    print_table(("linears", ">tokens/s", ">spread", ">speedup of packed", ">size of linears"), rows)
    dtype = str(generated.dtype).removeprefix("torch.")
    print_line(
        f"generate: {generated.tokens} new tokens after a prompt of {generated.prompt}, greedy, batch 1, {dtype}; the "
        f"first {generated.same_tokens} are the same packed and dense"
    )
    print_line(f"Packed linears have {generated.packed_bytes / generated.dense_bytes:.1%} of the size of dense ones")


def _print_products(products: "list[ProductMeasurement]") -> None:
    from eggs_ptp.cli.merged_rows import without_constant_columns
    from eggs_ptp.cli.terminal import print_line, print_table

    rows = []
    for product in products:
        for name, backend in product.backends.items():
            pattern, dtype = name.split()
            stock = product.timings[f"dense {dtype} stock"]
            prepacked = product.timings.get(f"dense {dtype} prepacked")
            packed = product.timings[name]
            best_dense = product.timings[product.best_dense(dtype)]
            microseconds = [f"{timing.median * 1e6:.0f}" if timing else "-" for timing in (stock, prepacked, packed)]
            spread = max(packed.spread, best_dense.spread)
            rows.append(
                (
                    f"{product.rows}x{product.columns}",
                    dtype,
                    str(product.batch),
                    pattern,
                    *microseconds,
                    _speedup(*packed.speedup_over(best_dense)),
                    f"{spread:.1%}",
                    backend,
                )
            )
    columns = (
        "shape",
        "dtype",
        ">batch",
        "pattern",
        ">stock us",
        ">prepacked us",
        ">packed us",
        ">over best dense",
        ">spread",
        "backend",
    )
    shown, cells, constants = without_constant_columns(columns, rows, ("dtype", "pattern", "backend"))
    print_table(shown, cells)
    if constants:
        print_line(f"every product: {', '.join(f'{name} {value}' for name, value in constants.items())}")


def _speedup(value: float, trusted: bool) -> str:
    return f"{value:.2f}x{' ' if trusted else '?'}"
