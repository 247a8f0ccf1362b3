"""`eggs prune`: the main job."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType
from eggs_ptp.cli.launch import command
from eggs_ptp.errors import RecipeError

if TYPE_CHECKING:
    from eggs_ptp.checkpoint.record import RunRecord
    from eggs_ptp.recipe.recipe import Recipe


_Journal = Annotated[
    bool, typer.Option(help="Keep finished blocks if interrupted; the same command goes on from there.")
]


def prune(
    context: typer.Context,
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
    try_: flags.Try = None,
    try_text: flags.TryText = None,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    memory: flags.Memory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is not empty.")] = False,
    journal: _Journal = True,
    revision: flags.Revision = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    json: flags.Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face folder that loads everywhere."""
    from eggs_ptp.engine.team import joined

    recipe_of = partial(
        flags.recipe_of,
        recipe,
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
    how: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with joined(device) as ranks:
        how["memory"] = flags.memory_of(memory)
        _check(try_, ranks.count, output, recipe)
        tried = flags.values_of(try_, revision, trust_remote_code) if try_ else []
        recipes, found = {value: recipe_of([*(set_ or ()), value]) for value in tried}, dict[str, float]()
        asked = recipes[tried[0]] if tried else recipe_of(set_)
        where, quiet = {"device": ranks.device(device), "dtype": dtype.value}, json or not ranks.leads
        _announce(model, asked, output, overwrite, quiet=quiet, **where, **how)
        if try_:
            found = _choose(recipes, model, try_text, where, quiet=json)
            asked = recipes[next(iter(found))]
        how |= {"overwrite": overwrite, "journal": journal, "ranks": ranks}
        record = _prune(context, quiet, model, output, asked, **where, **how)
    if ranks.leads:
        _report(record, output, found, json=json)


def _check(values: str | None, processes: int, output: Path, recipe: Path | None) -> None:
    from eggs_ptp.checkpoint.draft import check_survives

    check_survives(output, *filter(None, [recipe]))
    if values and processes > 1:
        raise RecipeError("--try is for one process; choose with it first, then start several without it")


def _announce(model: str, asked: "Recipe", output: Path, overwrite: bool, *, quiet: bool, **how: Any) -> None:
    """Say what will be done, if it can be."""
    from eggs_ptp import api
    from eggs_ptp.checkpoint.draft import Draft
    from eggs_ptp.cli.plan import summary
    from eggs_ptp.cli.terminal import line

    Draft(output, overwrite=overwrite)  # refused before anything is said
    if not quiet:
        line("\n".join(summary(model, api.plan(model, asked, **how))), stderr=True)


def _prune(context: typer.Context, quiet: bool, *what: Any, **how: Any) -> "RunRecord":
    """Prune, and say how to go on with what an interruption leaves."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import Progress

    try:
        with Progress("prune", quiet=quiet) as progress:
            return api.prune(*what, listener=progress.listen, **how)
    except BaseException as error:
        for note in getattr(error, "__notes__", ()):
            print(f"eggs: {note}: {shlex.join(command(context.obj))}", file=sys.stderr)  # noqa: T201
        raise


def _choose(
    recipes: "dict[str, Recipe]", model: str, text: str | None, where: dict[str, Any], *, quiet: bool
) -> dict[str, float]:
    from eggs_ptp.cli.terminal import line
    from eggs_ptp.comparison.choose import choose

    def tell(done: int, total: int, what: str) -> None:
        if not quiet:
            line(f"try: {done}/{total} {what}", stderr=True)

    found = choose(recipes, model, text=text, progress=tell, **where)
    if not quiet:
        best, *others = (f"{label}: perplexity {value:.2f}" for label, value in found.items())
        line(f"Kept {best}; {', '.join(others) or 'nothing else tried'}", stderr=True)
    return found


def _report(record: "RunRecord", output: Path, tried: dict[str, float], *, json: bool) -> None:
    from eggs_ptp.cli.terminal import bytes_text, line, print_json, seconds_text, table

    if json:
        print_json({**record.to_dict(), "output": str(output), **({"tried": tried} if tried else {})})
        return
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
