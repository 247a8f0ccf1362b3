"""`eggs demo`: prune the built-in model by every method and compare the results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.engine.preparation import SharedInputs

PATTERN = "2:4"
PROMPT = "If the file does not exist, "
_OUTPUT = Path("out/demo-eggs")


class Variant(NamedTuple):
    """A method of the table, with changes of its recipe."""

    label: str
    method: str
    overrides: tuple[str, ...] = ()


KEPT = Variant("eggs+", "eggs+")
VARIANTS = (
    Variant("magnitude", "magnitude"),
    Variant("wanda", "wanda"),
    Variant("ria", "ria"),
    Variant("ria + permutation", "ria_cp"),
    Variant("eggs (B automatic)", "eggs"),
    Variant("sparsegpt", "sparsegpt"),
    KEPT,
    # Fixed numbers of diagonal blocks, whose cost the automatic choice of B could hide.
    *(Variant(f"eggs, B = {B}", "eggs", (f"steps.select.B={B}",)) for B in (0, 1, 2, 5)),
)

_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the model pruned by eggs+.")]


def demo(output: _Output = _OUTPUT, json: flags.Json = False) -> None:
    """Prune the built-in model to 2:4 by each method, and show perplexity and sample texts before and after."""
    import tempfile

    from eggs_ptp import api
    from eggs_ptp.cli.terminal import print_json
    from eggs_ptp.engine.preparation import SharedInputs

    shared = SharedInputs()
    with tempfile.TemporaryDirectory() as scratch:
        # The kept model comes first, so that an output that cannot be written is refused at once.
        measured = {KEPT: _measure(KEPT, output, shared, overwrite=_is_demo_output(output), quiet=json)}
        dense = api.evaluate("demo", begin="never")
        for variant in VARIANTS:
            if variant != KEPT:
                measured[variant] = _measure(variant, Path(scratch) / "model", shared, overwrite=True, quiet=json)
    result = {
        "pattern": PATTERN,
        "dense": dense.to_dict(),
        "rows": [{**measured[variant], "ratio": measured[variant]["perplexity"] / dense.value} for variant in VARIANTS],
        "prompt": PROMPT,
        "samples": {"dense": sample("demo"), KEPT.label: sample(str(output))},
    }
    if json:
        print_json({**result, "output": str(output)})
    else:
        _print(result, output)


def _measure(variant: Variant, folder: Path, shared: "SharedInputs", *, overwrite: bool, quiet: bool) -> dict[str, Any]:
    """Prune by one method, and return perplexity, time and memory."""
    from eggs_ptp import api
    from eggs_ptp.cli.terminal import Progress

    recipe = flags.make_recipe(None, variant.overrides, method=variant.method, pattern=PATTERN)
    with Progress(variant.label, quiet=quiet) as progress:
        record = api.prune("demo", folder, recipe, overwrite=overwrite, listener=progress.listen, shared=shared)
    return {
        "label": variant.label,
        "method": variant.method,
        "overrides": list(variant.overrides),
        "perplexity": api.evaluate(str(folder), begin="never").value,  # the built-in model doesn't need begin tokens
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "B": [matrix["B"] for matrix in record.matrices if "B" in matrix],
    }


def _is_demo_output(folder: Path) -> bool:
    """Return whether the folder holds the result of an earlier demo, which may be replaced without asking."""
    from eggs_ptp.checkpoint.verify import source_model

    return source_model(folder) == "demo"


def sample(model: str) -> str:
    """Return the prompt, continued by a model."""
    from eggs_ptp import api
    from eggs_ptp.evaluation.generate import sample_text

    return sample_text(*api.load(model), PROMPT, tokens=60, temperature=0.7, seed=0)


def _print(result: dict[str, Any], output: Path) -> None:
    from eggs_ptp.cli.terminal import format_bytes, format_duration, print_line, print_table

    dense = result["dense"]
    rows = [("dense", f"{dense['value']:.2f}", "1.00", "", "", "")]
    rows += [
        (
            row["label"],
            f"{row['perplexity']:.2f}",
            f"{row['ratio']:.2f}",
            format_duration(row["seconds"]),
            format_bytes(row["peak_memory_bytes"]),
            _range_text(row["B"]),
        )
        for row in result["rows"]
    ]
    columns = (f"{result['pattern']} by", ">perplexity", ">x dense", ">time", ">peak memory", "B of the matrices")
    print_table(columns, rows)
    print_line(
        f"Perplexity of {dense['windows']} windows of {dense['seqlen']} tokens ({dense['protocol']}): held-out English "
        "text from the documentation of this Python"
    )
    for name, text in result["samples"].items():
        print_line(f"\nSample of {name}:", style="bold")
        print_line(text)
    print_line(f"\nThe model pruned by {KEPT.label} is in {output}: transformers loads it.")
    print_line(f"Verify it: eggs verify {output} --against demo")
    print_line(
        "The most accurate method takes minutes: eggs prune demo --method eggs-max -o out/max; eggs evaluate out/max"
    )


def _range_text(counts: list[int]) -> str:
    if not counts:
        return ""
    low = min(counts)
    high = max(counts)
    return str(low) if low == high else f"{low} to {high}, mean {sum(counts) / len(counts):.1f}"
