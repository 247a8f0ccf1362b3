"""`eggs plan`: what `eggs prune` would do, without doing it."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.engine.planning.plan import Plan

_PERMUTATIONS = {
    "fold": "folded into the weights, so that every N:M matrix satisfies its pattern in its stored column order",
    "gather": "stored in eggs/orders.safetensors, for a packed model to gather at run time",
    "mask": "used to choose the masks only",
}
_CALIBRATION_SOURCES = {"": "C4 (hub)", "demo": "the built-in text"}


@flags.with_flags
def plan(
    model: flags.Model,
    *,
    recipe: flags.RecipeFlags,
    run: flags.RunFlags,
    json: flags.Json = False,
) -> None:
    """Show what prune would do to every matrix, with memory and time, without reading weights."""
    from eggs_ptp import api
    from eggs_ptp.cli.merged_rows import merge_rows, without_common_prefix, without_constant_columns
    from eggs_ptp.cli.terminal import print_json, print_line, print_table

    pruning_plan = api.plan(model, recipe.recipe(), **run.arguments())
    data = pruning_plan.to_dict()
    if json:
        print_json(data)
        return
    rows = []
    for matrix in data["matrices"]:
        shape = " x ".join(str(length) for length in matrix["shape"])
        if matrix["skipped"]:
            treatment = ["", "", f"not pruned: {matrix['skipped']}"]
        else:
            statistics = ", ".join(matrix["statistics"]) or "none"
            treatment = [matrix["pattern"], matrix["method"], statistics]
        rows.append((matrix["name"], [shape, matrix["input_activation"], *treatment]))
    merged = merge_rows(rows)
    prefix, labels = without_common_prefix([row.label for row in merged])
    head = f"matrices of {prefix}" if prefix else "matrices"
    columns, cells, constants = without_constant_columns(
        [head, ">count", ">shape", "input activation", "pattern", "method", "statistics"],
        [[label, str(len(row.names)), *row.cells] for label, row in zip(labels, merged, strict=True)],
        ("pattern", "method", "statistics"),
    )
    print_table(columns, cells)
    if constants:
        print_line(f"every matrix: {'; '.join(f'{name} {value}' for name, value in constants.items() if value)}")
    print_line("\n".join(summary(model, pruning_plan)))
    if warning := unreachable_text(pruning_plan):
        print_line(warning)


def unreachable_text(pruning_plan: "Plan") -> str:
    """Return a warning if the calibration text is a data set that cannot be reached from here, or an empty text."""
    from eggs_ptp.calibration.hub import C4, hub_problem, is_hub_name

    name = pruning_plan.to_dict()["calibration"] or C4
    if not pruning_plan.needs_calibration or name == "demo" or Path(name).exists() or not is_hub_name(name):
        return ""
    if not (problem := hub_problem(name)):
        return ""
    return f"the calibration text {name} cannot be read from the hub ({problem}): prune needs --calibration FILE"


def summary(model: str, pruning_plan: "Plan") -> list[str]:
    """Return a few lines that say what a run will do and what it costs.

    Args:
        model: The model as the user has named it.
        pruning_plan: The plan of the run.
    """
    from eggs_ptp.cli.terminal import format_bytes
    from eggs_ptp.evaluation.verdict import thin_calibration

    data = pruning_plan.to_dict()
    counts = Counter(
        "left dense" if matrix["skipped"] else f"to {matrix['pattern']} by {matrix['method']}"
        for matrix in data["matrices"]
    )
    treatments = ", ".join(f"{count} {treatment}" for treatment, count in counts.items())
    lines = [
        f"{model} ({data['model_type']}, {data['blocks']} blocks, {len(data['matrices'])} matrices) on "
        f"{data['device']} in {data['dtype']}: {treatments}; embeddings, norms and lm_head are not pruned",
    ]
    if data["discovered"]:
        lines.append(
            f"model type {data['model_type']} is not in the table of families: its linears were found in the module "
            "tree, no two of them share statistics, and no permutation can be folded"
        )
    if data["nsamples"]:
        source = _CALIBRATION_SOURCES.get(data["calibration"], data["calibration"])
        begin = ", each with the begin token first" if data["begin_tokens"] else ""
        lines.append(f"calibration: {data['nsamples']} windows of {data['seqlen']} tokens from {source}{begin}")
        if warning := thin_calibration(data["nsamples"] * data["seqlen"]):
            lines.append(warning)
    else:
        lines.append("calibration: none needed")
    if data["permutation"]:
        lines.append(f"channel permutations: {_PERMUTATIONS[data['permutation']]}")
    if unpermuted := pruning_plan.unpermuted:
        lines.append(
            f"not permuted: the inputs of {len(unpermuted)} matrices such as {unpermuted[0].name}, whose heads cannot "
            "be divided into groups of their pattern (a folded permutation stays inside heads; --permutation gather "
            "does not)"
        )
    memory = format_bytes(data["memory_bytes"])
    lines += [f"estimate: {memory} of memory in addition to the libraries", *time_lines(pruning_plan)]
    budget = pruning_plan.budget
    if budget.allowance is not None:
        lines.append(
            f"to stay within --memory: batches of {budget.batch_tokens} tokens, {format_bytes(budget.allowance)} of "
            "activations in memory, the others in files next to the output"
        )
    return lines


def time_lines(pruning_plan: "Plan") -> list[str]:
    """Return how long a run takes, and where other programs are running, how long beside them.

    Args:
        pruning_plan: The plan of the run.
    """
    from eggs_ptp.cli.terminal import format_duration
    from eggs_ptp.engine.planning.time_estimate import busy_machine, time_range

    if not pruning_plan.seconds:
        return ["estimate: as long as reading and writing the weights takes"]
    low, high = (format_duration(seconds) for seconds in time_range(pruning_plan.seconds))
    processor_time = format_duration(pruning_plan.processor_seconds)
    lines = [f"estimate: {low} to {high} on an idle machine ({processor_time} of processor time)"]
    if (busy := busy_machine()) is not None and busy.slowdown > 1:
        low, high = (format_duration(seconds) for seconds in time_range(pruning_plan.seconds, busy.slowdown))
        load = f"load {busy.load:.1f} on {busy.processors} processors"
        lines.append(f"the machine is busy ({load}): {low} to {high} if it stays so")
    return lines
