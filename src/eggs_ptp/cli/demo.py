"""`eggs demo`: the whole job on the built-in model, with every method beside the others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.engine.shared import Shared

PATTERN = "2:4"
PROMPT = "If the file does not exist, "


class Row(NamedTuple):
    """A method of the table and what is set in its recipe."""

    label: str
    method: str
    overrides: tuple[str, ...] = ()


KEPT = Row("eggs+", "eggs+")
ROWS = (
    Row("magnitude", "magnitude"),
    Row("wanda", "wanda"),
    Row("ria", "ria"),
    Row("ria + permutation", "ria_cp"),
    Row("eggs (B automatic)", "eggs"),
    Row("sparsegpt", "sparsegpt"),
    KEPT,
    # Fixed B beside the automatic one, which might else hide what the blocks cost.
    *(Row(f"eggs, B = {B}", "eggs", (f"steps.select.B={B}",)) for B in (0, 1, 2, 5)),
)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the model pruned by eggs+ stays.")] = Path(
        "out/demo-eggs"
    ),
    json: flags.Json = False,
) -> None:
    """Prune the built-in model to 2:4 by each method, and show its perplexity and its text before and after."""
    import tempfile

    from eggs_ptp import api
    from eggs_ptp.cli.terminal import print_json

    shared = api.Shared()
    with tempfile.TemporaryDirectory() as scratch:
        # The one that stays comes first: a folder that cannot be written is then refused at once.
        found = {KEPT: _measure(KEPT, output, shared, overwrite=_left_by_demo(output), quiet=json)}
        dense = api.evaluate("demo")
        for row in ROWS:
            if row != KEPT:
                found[row] = _measure(row, Path(scratch) / "model", shared, overwrite=True, quiet=json)
    rows = [{**found[row], "ratio": found[row]["perplexity"] / dense.value} for row in ROWS]
    samples = {"dense": _sample("demo"), KEPT.label: _sample(str(output))}
    result = {"pattern": PATTERN, "dense": dense.to_dict(), "rows": rows, "prompt": PROMPT, "samples": samples}
    print_json({**result, "output": str(output)}) if json else _report(result, output)


def _measure(row: Row, folder: Path, shared: "Shared", *, overwrite: bool, quiet: bool) -> dict[str, Any]:
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import Progress

    recipe = flags.recipe_of(None, list(row.overrides), method=row.method, pattern=PATTERN)
    with Progress(row.label, quiet=quiet) as progress:
        record = api.prune("demo", folder, recipe, overwrite=overwrite, listener=progress.listen, shared=shared)
    return {
        "label": row.label,
        "method": row.method,
        "overrides": list(row.overrides),
        "perplexity": api.evaluate(str(folder)).value,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "B": [matrix["B"] for matrix in record.matrices if "B" in matrix],
    }


def _left_by_demo(folder: Path) -> bool:
    """Whether the folder holds an earlier run's result, which may be replaced without asking."""
    from eggs_ptp.checkpoint.verify import made_from

    return made_from(folder) == "demo"


def _sample(model: str) -> str:
    from eggs_ptp import api
    from eggs_ptp.evaluation.generate import sample_text

    return sample_text(*api.load(model), PROMPT, tokens=60, temperature=0.7, seed=0)


def _report(result: dict[str, Any], output: Path) -> None:
    from eggs_ptp.cli.terminal import bytes_text, line, seconds_text, table

    dense = result["dense"]
    cells = [("dense", f"{dense['value']:.2f}", "1.00", "", "", "")]
    for row in result["rows"]:
        costs = (seconds_text(row["seconds"]), bytes_text(row["peak_memory_bytes"]))
        cells.append((row["label"], f"{row['perplexity']:.2f}", f"{row['ratio']:.2f}", *costs, _spread(row["B"])))
    heads = (f"{result['pattern']} by", ">perplexity", ">x dense", ">time", ">peak memory", "B of the matrices")
    table(heads, cells)
    line(
        f"Perplexity of {dense['windows']} windows of {dense['seqlen']} tokens ({dense['protocol']}), "
        "English from this Python's own documentation that the model has not seen"
    )
    for name, text in result["samples"].items():
        line(f"\n{name} writes:", style="bold")
        line(text)
    line(f"\nThe model pruned by {KEPT.label} stays in {output}: plain transformers loads it.")
    line(f"Prove what was done to it: eggs verify {output} --against demo")
    line("The most accurate preset takes minutes: eggs prune demo --method eggs-max -o out/max; eggs evaluate out/max")


def _spread(blocks: list[int]) -> str:
    if not blocks:
        return ""
    low, high = min(blocks), max(blocks)
    return str(low) if low == high else f"{low} to {high}, mean {sum(blocks) / len(blocks):.1f}"
