"""`eggs prune`: the main job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.checkpoint.record import RunRecord


def prune(
    model: flags.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)],
    method: flags.Method = None,
    pattern: flags.Pattern = None,
    calibration: flags.Calibration = None,
    nsamples: flags.NSamples = None,
    seqlen: flags.SeqLen = None,
    seed: flags.Seed = None,
    orders: flags.OrdersFlag = None,
    include: flags.Include = None,
    exclude: flags.Exclude = None,
    recipe: flags.RecipeFile = None,
    set_: flags.Set = None,
    mask: flags.Mask = None,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is not empty.")] = False,
    revision: flags.Revision = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    json: flags.Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face folder that loads everywhere."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.draft import Draft
    from eggs_ptp.cli.plan import summary
    from eggs_ptp.cli.terminal import Progress, line, print_json

    asked = flags.recipe_of(
        recipe,
        set_,
        method=method,
        pattern=pattern,
        calibration=calibration,
        nsamples=nsamples,
        seqlen=seqlen,
        seed=seed,
        orders=orders.value if orders else None,
        include=include,
        exclude=exclude,
        mask=str(mask) if mask else None,
    )
    where: dict[str, Any] = {
        "device": device,
        "dtype": dtype.value,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
    }
    Draft(output, overwrite=overwrite)  # refused before anything is said about what will be done
    if not json:
        line("\n".join(summary(model, api.plan(model, asked, **where))), stderr=True)
    with Progress("prune", quiet=json) as progress:
        record = api.prune(model, output, asked, overwrite=overwrite, listener=progress.listen, **where)
    if json:
        print_json({**record.to_dict(), "output": str(output)})
    else:
        _report(record, output)


def _report(record: "RunRecord", output: Path) -> None:
    from eggs_ptp.cli.terminal import bytes_text, line, seconds_text, table

    heads = ["matrices", ">count", "pattern", ">kept", "method", ">mean error", ">worst", "B of each block"]
    rows = _rows(record.matrices)
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    table(heads, rows)
    stages = ", ".join(f"{name} {seconds_text(spent)}" for name, spent in record.stages.items() if spent >= 0.005)
    line(f"{seconds_text(record.seconds)} ({stages}), peak memory {bytes_text(record.peak_memory_bytes)}")
    line(f"Written to {output}; every matrix is recorded in {output / 'eggs.json'}")
    against = f" --against {record.source['model']}" if record.source.get("model") else ""
    line(f"Prove it: eggs verify {output}{against}")


def _rows(matrices: list[dict[str, Any]]) -> list[list[str]]:
    """One row for the matrices that differ in their block alone; error is the share of the output's energy lost."""
    from eggs_ptp.cli.rows import fold

    cells = [(m["name"], (m["pattern"], f"{m['density']:.1%}", m["method"])) for m in matrices]
    records = {matrix["name"]: matrix for matrix in matrices}
    rows = []
    for folded in fold(cells):
        members = [records[name] for name in folded.names]
        errors = [member["output_error"] for member in members if member["output_error"] is not None]
        mean, worst = (f"{sum(errors) / len(errors):.4f}", f"{max(errors):.4f}") if errors else ("-", "-")
        blocks = " ".join(str(member["B"]) for member in members if "B" in member)
        rows.append([folded.label, str(len(members)), *folded.cells, mean, worst, blocks])
    return rows
