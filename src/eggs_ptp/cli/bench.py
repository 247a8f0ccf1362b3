"""`eggs bench`: packed against dense on this machine."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.bench.checkpoint import Generated
    from eggs_ptp.bench.session import Session
    from eggs_ptp.bench.shape import Measured
    from eggs_ptp.cli.terminal import Progress

_PRODUCTS = "Products"
_TEXT = "Text of a checkpoint"

Folder = Annotated[
    str | None, typer.Argument(metavar="DIR", help="A packed folder, or a pruned one.", show_default=False)
]
Shapes = Annotated[
    str | None,
    typer.Option(
        help="Rows x columns with commas between them, such as 4096x4096. Default: those of the folder.",
        rich_help_panel=_PRODUCTS,
        show_default=False,
    ),
]
Patterns = Annotated[
    str, typer.Option(help="Of the matrices of --shapes, with commas between them.", rich_help_panel=_PRODUCTS)
]
Batches = Annotated[
    str, typer.Option(help="Inputs multiplied at once, with commas between them.", rich_help_panel=_PRODUCTS)
]
Prefill = Annotated[
    int, typer.Option(min=0, help="One more batch, the size of a long prompt; 0: none.", rich_help_panel=_PRODUCTS)
]
Rounds = Annotated[int, typer.Option(min=5, help="Samples of each product at most.", rich_help_panel=_PRODUCTS)]
Tokens = Annotated[int, typer.Option(min=1, help="New tokens of a text.", rich_help_panel=_TEXT)]
Prompt = Annotated[int, typer.Option(min=1, help="Tokens of its prompt.", rich_help_panel=_TEXT)]
Texts = Annotated[int, typer.Option(min=5, help="Samples of each form at most.", rich_help_panel=_TEXT)]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: as many as it takes.")]
Seconds = Annotated[float, typer.Option(min=0.0, help="After these a measurement ends, if it has 5 samples.")]
Kind = Annotated[
    DType, typer.Option(help="Type of the weights. auto: that of the folder; of --shapes float32 and bfloat16.")
]
Record = Annotated[
    Path | None, typer.Option(help="File to write: everything that was measured (.json).", show_default=False)
]
Plot = Annotated[Path | None, typer.Option(help="File to write: a picture of the products (.svg).", show_default=False)]


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
    """Measure packed against the fastest dense there is, on this processor: products, and a checkpoint's text."""
    if (folder is None) == (shapes is None):
        raise typer.BadParameter("say what to measure: a packed folder, or --shapes such as 4096x4096")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"--plot {plot}: there is no such folder")
    from eggs_ptp.bench.session import BOTH, Session, parse_batches, parse_patterns, parse_shapes
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.engine.place import find_dtype
    from eggs_ptp.models.folder import find_folder

    sizes = sorted({*parse_batches(batches), *([prefill] if prefill else [])})
    kind = None if dtype is DType.auto else find_dtype(dtype.value)
    with Progress("bench", quiet=json) as progress:
        session = Session(
            shlex.join(context.obj), sizes, rounds, seconds, threads, lambda now: _tell(now, record, progress)
        )
        if shapes is not None:
            session.measure_shapes(parse_shapes(shapes), parse_patterns(patterns), (kind,) if kind else BOTH)
        elif folder is not None:
            session.measure_folder(find_folder(folder), kind or "auto", prompt=prompt, tokens=tokens, texts=texts)
    if plot is not None:
        from eggs_ptp.bench.plot import plot as picture
        from eggs_ptp.core.whole_file import write_whole

        write_whole(plot, picture(session.products, session.machine))
    print_json(session.to_dict()) if json else _print(session)


def _tell(session: "Session", record: Path | None, progress: "Progress") -> None:
    from eggs_ptp.comparison.record import write_record

    if record is not None:  # after each result, so that whatever stops the run leaves what was measured
        write_record(record, session.to_dict())
    if session.products:
        progress.count(len(session.products), session.expected)


def _print(session: "Session") -> None:
    from eggs_ptp.bench.contest import TRUSTED
    from eggs_ptp.cli.terminal import line

    line(session.machine)
    if session.generated is not None:
        _print_generated(session.generated)
    _print_products(session.products)
    line(f"Medians of interleaved samples. ?: not to be trusted, the middle half spreads over more than {TRUSTED:.0%}.")
    for remark in session.remarks():
        line(f"- {remark}")


def _print_generated(found: "Generated") -> None:
    from eggs_ptp.bench.checkpoint import PACKED, STOCK
    from eggs_ptp.cli.terminal import line, table

    held = {PACKED: f"{found.packed_bytes / 1e6:.1f} MB", STOCK: f"{found.dense_bytes / 1e6:.1f} MB"}
    rows = []
    for form, timing in found.timings.items():
        ratio = "" if form == PACKED else _ratio(*found.timings[PACKED].over(timing))
        speed = f"{found.tokens_per_second(form):.1f}"
        rows.append((form, speed, f"{timing.spread:.1%}", ratio, held.get(form, "")))
    table(("linears", ">tokens/s", ">spread", ">packed over it", ">memory"), rows)
    kind = str(found.dtype).removeprefix("torch.")
    line(
        f"generate: {found.tokens} new tokens after a prompt of {found.prompt}, greedy, batch 1, {kind}; the first "
        f"{found.same_tokens} are the same packed and dense"
    )
    line(f"Packed linears take {found.packed_bytes / found.dense_bytes:.1%} of the memory of dense ones")


def _print_products(products: "list[Measured]") -> None:
    from eggs_ptp.cli.terminal import table

    rows = []
    for each in products:
        for name, backend in each.backends.items():
            pattern, short = name.split()
            stock, packed, best = each.timings[f"dense {short} stock"], each.timings[name], each.best_dense(short)
            prepacked = each.timings.get(f"dense {short} prepacked")
            times = [f"{timing.median * 1e6:.0f}" if timing else "-" for timing in (stock, prepacked, packed)]
            spread = max(packed.spread, each.timings[best].spread)
            ratio = _ratio(*packed.over(each.timings[best]))
            shape = f"{each.rows}x{each.columns}"
            rows.append((shape, short, str(each.batch), pattern, *times, ratio, f"{spread:.1%}", backend))
    heads = ("shape", "type", ">batch", "pattern", ">stock us", ">prepacked us", ">packed us", ">over best dense")
    table((*heads, ">spread", "backend"), rows)


def _ratio(value: float, trusted: bool) -> str:
    return f"{value:.2f}x{' ' if trusted else '?'}"
