"""The sections on matrices: their output errors, and the connectivity of their masks."""

from collections.abc import Mapping

from eggs_ptp.report import plots
from eggs_ptp.report.connectivity import MAX_WEIGHTS
from eggs_ptp.report.model_group import ModelGroup
from eggs_ptp.report.number_format import NO_VALUE, format_number
from eggs_ptp.report.record_files import Kind, Record
from eggs_ptp.report.run_folder import Run, block_and_linear
from eggs_ptp.report.section import Section, Table

MatrixErrors = Mapping[tuple[int, str], float]  # output error by block and linear

_WORST_COUNT = 8
_BOUNDS = {
    "lower bound, weights kept": "least_unchanged",
    "best found, weights kept": "best_unchanged",
    "lower bound, weights solved": "least_updated",
    "best found, weights solved": "best_updated",
}


def output_error_section(group: ModelGroup) -> Section:
    """Show the relative output error of every matrix, by block and linear."""
    section = Section(f"{group.key}-layers", "Output error by layer")
    errors_of_runs = {run.label: errors for run in group.runs if (errors := _matrix_errors(run))}
    if not errors_of_runs:
        section.remarks.append("No output error is recorded: these methods use no calibration text.")
        return section
    section.remarks.append(
        "Relative output error, ‖X (W − W′)ᵀ‖² / ‖X Wᵀ‖², of each matrix on calibration tokens, as recorded when it "
        "was pruned. It shows where the loss is. It is not the quality of the model: a method with the higher output "
        "error can give the better model."
    )
    linears = list(
        dict.fromkeys(block_and_linear(str(matrix["name"]))[1] for run in group.runs for matrix in run.matrices)
    )
    if len(errors_of_runs) > 1:
        section.remarks.append(
            "X is the input of the matrix in its own run, and a method that corrects drift changes W′ on purpose, so "
            "errors of different runs are only roughly comparable; compare runs by their quality."
        )
        means = {label: _mean_by_block(errors) for label, errors in errors_of_runs.items()}
        run_indices = [index for index, run in enumerate(group.runs) if run.label in errors_of_runs]
        title = "Mean output error by block"
        section.pictures.append(plots.lines(f"{group.key}-error", title, "relative output error", means, run_indices))
        section.tables.append(_mean_by_linear(errors_of_runs, linears))
    highest = max(max(errors.values()) for errors in errors_of_runs.values())
    for index, (label, errors) in enumerate(errors_of_runs.items()):
        name = f"{group.key}-heat-{index}"
        section.pictures.append(plots.heat_map(name, f"Output error: {label}", errors, highest, linears))
    section.tables.append(_highest_errors(errors_of_runs))
    bounds = [[run.label, *cells] for run in group.runs for record in run.all_records if (cells := read_bounds(record))]
    if bounds:
        caption = (
            "How much could be gained: the mean output error on the text of eggs diagnose, with a proven lower bound "
            "for all masks of the same pattern and column order, and the error of the best masks found"
        )
        section.tables.append(Table(caption, ["run", ">error", *(f">{head}" for head in _BOUNDS)], bounds))
    section.collapsed += [_all_matrices(run) for run in group.runs]
    return section


def connectivity_section(group: ModelGroup) -> Section:
    """Show degrees of inputs, corners of masks, and the results of `eggs diagnose`."""
    section = Section(f"{group.key}-connections", "Connectivity")
    _add_degrees(section, group)
    for index, name in enumerate(group.corner_names):
        corners = {
            label: connectivity.corners[name]
            for label, connectivity in group.connectivity.items()
            if name in connectivity.corners
        }
        if corners:
            section.pictures.append(plots.mask_corners(f"{group.key}-pattern-{index}", f"Pattern of {name}", corners))
    missing = [run.label for run in group.runs if run.label not in group.connectivity]
    if missing:
        section.remarks.append(f"There are no weights in the folder of {', '.join(missing)}, so no mask is shown.")
    rows = [
        [run.label, *cells] for run in group.runs for record in run.all_records if (cells := read_diagnosis(record))
    ]
    if rows:
        heads = [
            "run",
            ">dead inputs",
            ">min degree",
            ">highest Gini",
            ">Lemma 1 holds",
            ">|W| kept",
            ">W² kept",
            ">highest σ₂",
        ]
        section.tables.append(Table("The whole model, by eggs diagnose", heads, rows))
    return section


def read_diagnosis(record: Record) -> list[str] | None:
    """Return the table cells of a record of `eggs diagnose`; None for others."""
    if record.kind is not Kind.diagnosis:
        return None
    whole = record.data["whole"]
    retained = whole.get("retained") or {}
    guarantees = whole.get("floors", 0)
    holds = NO_VALUE
    if guarantees:
        holds = f"{guarantees - len(whole.get('floors_broken', []))} of {guarantees}"
    extremes = [
        format_number((whole.get(key) or {}).get("value"))
        for key in ("least_input_degree", "highest_gini", "highest_sigma2")
    ]
    return [
        format_number(whole["dead_inputs"]),
        extremes[0],
        extremes[1],
        holds,
        format_number(retained.get("magnitude")),
        format_number(retained.get("energy")),
        extremes[2],
    ]


def read_bounds(record: Record) -> list[str] | None:
    """Return the mean error and its bounds in a record of `eggs diagnose --bounds`; None for others."""
    if record.kind is not Kind.diagnosis:
        return None
    whole = record.data["whole"]
    bounds = whole.get("mean_bounds")
    if not bounds:
        return None
    error = whole["mean_calibrated"]["output_error"]
    return [format_number(error), *(format_number(bounds[key]) for key in _BOUNDS.values())]


def _add_degrees(section: Section, group: ModelGroup) -> None:
    shares = {label: connectivity.shares for label, connectivity in group.connectivity.items() if connectivity.shares}
    if not shares:
        return
    if len(shares) > 1 or any(connectivity.dead for connectivity in group.connectivity.values()):
        section.pictures.append(plots.ridges(f"{group.key}-degrees", "Degrees of inputs", shares))
    rows = []
    is_partial = False
    for run in group.runs:
        connectivity = group.connectivity.get(run.label)
        if connectivity is None:
            continue
        is_partial = is_partial or connectivity.matrices_read < len(run.matrices)
        rows.append(
            [
                run.label,
                f"{connectivity.matrices_read} of {len(run.matrices)}",
                format_number(connectivity.inputs),
                format_number(connectivity.dead),
            ]
        )
    heads = ["run", ">matrices read", ">inputs", ">dead inputs"]
    section.tables.append(Table("Inputs without any connection are dead to their matrix", heads, rows))
    if is_partial:
        section.remarks.append(
            f"Degrees are those of evenly spaced blocks with up to {MAX_WEIGHTS / 1e6:.0f} million weights; "
            "--all-blocks reads all blocks."
        )


def _matrix_errors(run: Run) -> dict[tuple[int, str], float]:
    return {
        block_and_linear(str(matrix["name"])): float(matrix["output_error"])
        for matrix in run.matrices
        if matrix.get("output_error") is not None
    }


def _mean_by_block(errors: MatrixErrors) -> dict[int, float]:
    by_block: dict[int, list[float]] = {}
    for (block, _), error in errors.items():
        by_block.setdefault(block, []).append(error)
    return {block: sum(values) / len(values) for block, values in sorted(by_block.items())}


def _mean_by_linear(errors_of_runs: Mapping[str, MatrixErrors], linears: list[str]) -> Table:
    rows = []
    for linear in linears:
        row = [linear]
        for errors in errors_of_runs.values():
            values = [error for (_, name), error in errors.items() if name == linear]
            row.append(format_number(sum(values) / len(values) if values else None))
        rows.append(row)
    return Table("Mean output error by linear", ["linear", *(f">{label}" for label in errors_of_runs)], rows)


def _highest_errors(errors_of_runs: Mapping[str, MatrixErrors]) -> Table:
    ranking = sorted(
        (error, block, linear, label)
        for label, errors in errors_of_runs.items()
        for (block, linear), error in errors.items()
    )
    worst = ranking[::-1][:_WORST_COUNT]
    rows = [[f"block {block}, {linear}", label, format_number(error)] for error, block, linear, label in worst]
    return Table("The highest output errors", ["matrix", "run", ">output error"], rows)


def _all_matrices(run: Run) -> Table:
    heads = ["matrix", "pattern", "method", ">kept", ">output error", ">B"]
    rows = [
        [
            str(matrix["name"]),
            str(matrix["pattern"]),
            str(matrix.get("method", NO_VALUE)),
            f"{matrix['density']:.2%}",
            format_number(matrix.get("output_error")),
            str(matrix.get("B", NO_VALUE)),
        ]
        for matrix in run.matrices
    ]
    return Table(f"All {len(rows)} matrices of {run.label}", heads, rows)
