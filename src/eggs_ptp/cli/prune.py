"""`eggs prune`: prune a model and write it."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.torchrun_command import shell_command
from eggs_ptp.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from eggs_ptp.checkpoint.run_record import RunRecord
    from eggs_ptp.cli.terminal import Progress
    from eggs_ptp.engine.planning.plan import Plan
    from eggs_ptp.recipe.recipe import Recipe

_TRIALS = "Trials"
_FOLDED_CHANNELS = (
    "Its channels are permuted: a LoRA adapter of the base model",
    "needs eggs adapt, a merge with it eggs export --permutation base.",
)

_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)]
_Try = Annotated[
    str | None,
    typer.Option(
        "--try",
        metavar="KEY=VALUE,VALUE,...",
        help="Prune with each value of a recipe key, such as steps.select.B=0,1,2,5, and keep the result with the "
        "lowest perplexity.",
        rich_help_panel=_TRIALS,
        show_default=False,
    ),
]
_TryText = Annotated[
    str | None,
    typer.Option(
        "--try-text",
        help="Text that --try evaluates on; use another than the calibration text.",
        rich_help_panel=_TRIALS,
        show_default=False,
    ),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it is not empty.")]
_BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="OWNER/NAME",
        help="Hub name of the dense model, for the model card of the result.",
        show_default="MODEL, or what the card of a local folder names",
    ),
]
_Journal = Annotated[
    bool, typer.Option(help="Keep finished blocks if the run is interrupted; the same command resumes after them.")
]


@flags.with_flags
def prune(
    context: typer.Context,
    model: flags.Model,
    output: _Output,
    *,
    recipe: flags.RecipeFlags,
    try_: _Try = None,
    try_text: _TryText = None,
    run: flags.RunFlags,
    base_model: _BaseModel = None,
    overwrite: _Overwrite = False,
    journal: _Journal = True,
    json: flags.Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face folder that transformers loads."""
    from eggs_ptp.checkpoint.staging import StagingFolder
    from eggs_ptp.engine.distributed.torchrun import process_group

    with process_group(run.device) as group:
        arguments = {**run.arguments(), "device": group.device(run.device)}
        _check_arguments(try_, group.world_size, output, recipe.file)
        candidates = {override: recipe.recipe(override) for override in _trial_overrides(try_, run)}
        chosen = next(iter(candidates.values())) if candidates else recipe.recipe()
        quiet = json or not group.is_main_process
        perplexities = {}
        if candidates:
            StagingFolder(output, overwrite=overwrite)  # raises here, before the trials
            where = {name: arguments[name] for name in ("device", "dtype")}
            perplexities = _try_candidates(candidates, model, try_text, where, quiet=json)
            chosen = candidates[next(iter(perplexities))]
        arguments |= {"base_model": base_model, "overwrite": overwrite, "journal": journal, "group": group}
        if not quiet:
            arguments["on_plan"] = partial(_print_plan, model)
        record = _prune(context, model, output, chosen, arguments, quiet=quiet)
    if group.is_main_process:
        _print_record(record, output, perplexities, json=json)


def _check_arguments(trials: str | None, world_size: int, output: Path, recipe: Path | None) -> None:
    from eggs_ptp.checkpoint.staging import check_survives

    check_survives(output, *filter(None, [recipe]))
    if trials and world_size > 1:
        raise RecipeError(
            f"--try: got {world_size} processes, but trials run in one; choose the value first, then start several "
            "processes without --try"
        )


def _trial_overrides(trials: str | None, run: flags.RunFlags) -> list[str]:
    """Return one override of the recipe per value of `--try`.

    Raises:
        RecipeError: It is not KEY=VALUE,VALUE,..., or the model is not simply at its name.
    """
    if trials is None:
        return []
    key, _, values = trials.partition("=")
    if not key.strip() or not all(value.strip() for value in values.split(",")):
        raise RecipeError(f"--try: expected KEY=VALUE,VALUE,..., such as steps.select.B=0,1,2,5; got {trials!r}")
    if run.revision or run.trust_remote_code:
        raise RecipeError("--try: not possible with --revision or --trust-remote-code; prune a local folder")
    return [f"{key.strip()}={value.strip()}" for value in values.split(",")]


def _print_plan(model: str, plan: "Plan") -> None:
    from eggs_ptp.cli.plan import summary
    from eggs_ptp.cli.terminal import print_line

    print_line("\n".join(summary(model, plan)), stderr=True)


def _show_plan(progress: "Progress", print_plan: "Callable[[Plan], None]", plan: "Plan") -> None:
    progress.expect(plan.seconds)
    print_plan(plan)


def _try_candidates(
    candidates: "dict[str, Recipe]", model: str, text: str | None, where: dict[str, Any], *, quiet: bool
) -> dict[str, float]:
    """Prune with each recipe and return the perplexities, the lowest first."""
    from eggs_ptp.cli.terminal import print_line
    from eggs_ptp.comparison.ranking import rank_recipes

    def print_progress(done: int, total: int, description: str) -> None:
        if not quiet:
            print_line(f"try: {done}/{total} {description}", stderr=True)

    perplexities = rank_recipes(candidates, model, text=text, progress=print_progress, **where)
    if not quiet:
        best, *others = (f"{override}: perplexity {value:.2f}" for override, value in perplexities.items())
        print_line(f"Chosen: {best}; {', '.join(others) or 'no other value'}", stderr=True)
    return perplexities


def _prune(
    context: typer.Context, model: str, output: Path, recipe: "Recipe", arguments: dict[str, Any], *, quiet: bool
) -> "RunRecord":
    """Prune; if the run is interrupted, print the command that resumes it."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import Progress

    try:
        with Progress("prune", quiet=quiet) as progress:
            if print_plan := arguments.get("on_plan"):
                arguments = {**arguments, "on_plan": partial(_show_plan, progress, print_plan)}
            return api.prune(model, output, recipe, listener=progress.listen, **arguments)
    except BaseException as error:
        for note in getattr(error, "__notes__", ()):
            print(f"eggs: {note}: {shlex.join(shell_command(context.obj))}", file=sys.stderr)  # noqa: T201
        raise


def _print_record(record: "RunRecord", output: Path, perplexities: dict[str, float], *, json: bool) -> None:
    from eggs_ptp.cli.merged_rows import without_constant_columns
    from eggs_ptp.cli.terminal import format_bytes, format_duration, print_json, print_line, print_table

    if json:
        trials = {"tried": perplexities} if perplexities else {}
        print_json({**record.to_dict(), "output": str(output), **trials})
        return
    table = matrix_table(record.matrices)
    columns, rows, constants = without_constant_columns(table.columns, table.rows, ("pattern", ">kept", "method"))
    print_table(columns, rows)
    if constants:
        shared = ", ".join(f"{name.removeprefix('>')} {text}" for name, text in constants.items())
        print_line(f"Every matrix: {shared}.")
    for note in table.notes:
        print_line(note)
    by_time = sorted(record.stages.items(), key=lambda item: item[1], reverse=True)
    stages = ", ".join(
        f"{stage} {format_duration(seconds)}" for stage, seconds in by_time if seconds >= 0.02 * record.seconds
    )
    print_line(f"{format_duration(record.seconds)} ({stages}), peak memory {format_bytes(record.peak_memory_bytes)}")
    print_line(f"Written to {output}; the record of every matrix is in {output / 'eggs.json'}")
    for line in closing_lines(record, output):
        print_line(line)


def closing_lines(record: "RunRecord", output: Path) -> list[str]:
    """Return a warning about thin calibration, what folded permutations change, and the next steps.

    Args:
        record: The record of the run.
        output: The folder that it has written.
    """
    from eggs_ptp.evaluation.verdict import thin_calibration

    model = record.source.get("model")
    against = f" --against {shlex.quote(model)}" if model else ""
    folder = shlex.quote(str(output))
    warning = thin_calibration(calibration_tokens(record.calibration) or 0)
    return [
        *filter(None, [warning]),
        *(_FOLDED_CHANNELS if record.permutations == "fold" else ()),
        "Next, see how good it is, then check the file:",
        f"  eggs evaluate {folder}{against}",
        f"  eggs verify {folder}{against}",
    ]


def calibration_tokens(calibration: dict[str, Any] | None) -> int | None:
    """Return the calibration tokens of a record, 0 where a method needed none; None if it does not say."""
    if calibration is None:
        return 0
    windows, seqlen = calibration.get("nsamples"), calibration.get("seqlen")
    return int(windows) * int(seqlen) if windows and seqlen else None


class MatrixTable(NamedTuple):
    """A table of pruned matrices: its columns, rows, and lines that say what the columns mean."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def matrix_table(matrices: list[dict[str, Any]]) -> MatrixTable:
    """Return a table of matrices with a row for all that differ in their block only.

    Args:
        matrices: The records of the matrices, as in eggs.json.
    """
    from eggs_ptp.cli.merged_rows import merge_rows, value_range, without_common_prefix

    merged = merge_rows((matrix["name"], (matrix["pattern"], matrix["method"])) for matrix in matrices)
    by_name = {matrix["name"]: matrix for matrix in matrices}
    prefix, labels = without_common_prefix([row.label for row in merged])
    cells = []
    for label, row in zip(labels, merged, strict=True):
        members = [by_name[name] for name in row.names]
        kept = value_range(f"{density:.1%}" for density in sorted(matrix["density"] for matrix in members))
        errors = sorted(matrix["output_error"] for matrix in members if matrix["output_error"] is not None)
        error = value_range(f"{value:.3f}" for value in errors) or "-"
        counts = value_range(str(count) for count in sorted(matrix["B"] for matrix in members if "B" in matrix))
        cells.append([label, str(len(members)), *row.cells[:1], kept, *row.cells[1:], error, counts])
    head = f"matrices of {prefix}" if prefix else "matrices"
    columns = [head, ">count", "pattern", ">kept", "method", ">output error", ">B"]
    notes = []
    if any(row[-2] != "-" for row in cells):
        notes.append(
            "Output error: what a matrix alone loses on its own calibration inputs. It shows where the loss is, not "
            "how good the model is: no comparison of methods."
        )
    if any(row[-1] for row in cells):
        notes.append("B: EGGS diagonal blocks in each group of columns.")
        return MatrixTable(columns, cells, notes)
    return MatrixTable(columns[:-1], [row[:-1] for row in cells], notes)
