"""The sections about layers: where the output error is, and what the masks connect."""

from collections.abc import Mapping

from eggs_ptp.report import plots
from eggs_ptp.report.connectivity import MOST_WEIGHTS
from eggs_ptp.report.group import Group
from eggs_ptp.report.record import Kind, Record
from eggs_ptp.report.run import Run, place
from eggs_ptp.report.section import Section, Table
from eggs_ptp.report.words import plain

_WORST = 8
_BOUNDS = {
    "least, weights kept (proven)": "least_unchanged",
    "best found": "best_unchanged",
    "least, weights solved for (proven)": "least_updated",
    "best found, solved": "best_updated",
}


def layers(group: Group) -> Section:
    """Relative output error of every matrix, by block and linear."""
    section = Section(f"{group.key}-layers", "Which layers suffered")
    found = {run.label: errors for run in group.runs if (errors := _errors(run))}
    if not found:
        section.remarks.append("No output error was recorded: these methods need no calibration, so none was there.")
        return section
    section.remarks.append(
        "Relative output error, ‖X (W − W′)ᵀ‖² / ‖X Wᵀ‖², of each matrix on calibration tokens, as recorded when it "
        "was pruned: 0 is as good as dense."
    )
    if len(found) > 1:
        section.remarks.append(
            "X is what reaches the matrix in its own run, and a method that corrects drift moves W′ away from W on "
            "purpose, so errors of different runs compare only roughly; quality decides."
        )
    most = max(max(errors.values()) for errors in found.values())
    linears = list(dict.fromkeys(place(str(matrix["name"]))[1] for run in group.runs for matrix in run.matrices))
    if len(found) > 1:
        means = {label: _by_block(errors) for label, errors in found.items()}
        places = [position for position, run in enumerate(group.runs) if run.label in found]
        title = "Mean output error by block"
        section.pictures.append(plots.lines(f"{group.key}-error", title, "relative output error", means, places))
        section.tables.append(_by_linear(found, linears))
    for index, (label, errors) in enumerate(found.items()):
        name = f"{group.key}-heat-{index}"
        section.pictures.append(plots.heat(name, f"Output error: {label}", errors, most, linears))
    worst = sorted(((error, *where, label) for label, errors in found.items() for where, error in errors.items()))
    cells = [[f"block {block}, {linear}", label, plain(error)] for error, block, linear, label in worst[::-1][:_WORST]]
    section.tables.append(Table("The highest output errors", ["matrix", "run", ">output error"], cells))
    gains = [
        [run.label, *bounds] for run in group.runs for record in run.all_records if (bounds := left_to_gain(record))
    ]
    if gains:
        caption = (
            "How much is left to gain: the mean output error on the text of eggs diagnose, and what masks of the same "
            "pattern and column order could have come to, proven for all of them or found for one"
        )
        section.tables.append(Table(caption, ["run", ">error", *(f">{head}" for head in _BOUNDS)], gains))
    section.folded += [_matrices(run) for run in group.runs]
    return section


def connections(group: Group) -> Section:
    """Degrees of inputs, the pattern of chosen matrices, and what `eggs diagnose` found."""
    section = Section(f"{group.key}-connections", "What is connected")
    found = group.connectivity
    shares = {label: each.shares for label, each in found.items() if each.shares}
    if shares:
        section.pictures.append(plots.ridges(f"{group.key}-degrees", "Degrees of inputs", shares))
        rows = [
            [run.label, f"{each.read} of {len(run.matrices)}", plain(each.inputs), plain(each.dead)]
            for run in group.runs
            if (each := found.get(run.label)) is not None
        ]
        heads = ["run", ">matrices read", ">inputs", ">dead inputs"]
        section.tables.append(Table("Inputs without any connection are dead to their matrix", heads, rows))
        if any(each.read < len(run.matrices) for run in group.runs if (each := found.get(run.label)) is not None):
            section.remarks.append(
                f"Degrees are those of evenly spaced blocks, with up to {MOST_WEIGHTS / 1e6:.0f} million weights; "
                "--all-blocks reads the others too."
            )
    for index, name in enumerate(group.chosen):
        corners = {label: each.corners[name] for label, each in found.items() if name in each.corners}
        if corners:
            section.pictures.append(plots.corners(f"{group.key}-pattern-{index}", f"Pattern of {name}", corners))
    missing = [run.label for run in group.runs if run.label not in found]
    if missing:
        section.remarks.append(f"Weights are not in the folder of {', '.join(missing)}, so no mask could be looked at.")
    rows = [[run.label, *cells] for run in group.runs for record in run.all_records if (cells := diagnosed(record))]
    if rows:
        heads = ["run", ">dead inputs", ">least degree", ">highest Gini", ">floors held", ">|W| kept", ">W² kept"]
        section.tables.append(Table("The whole model, by eggs diagnose", [*heads, ">highest σ₂"], rows))
    return section


def diagnosed(record: Record) -> list[str] | None:
    """The cells that a record of `eggs diagnose` gives; None of others."""
    if record.kind is not Kind.diagnosis:
        return None
    whole = record.data["whole"]
    kept = whole.get("retained") or {}
    floors = whole.get("floors", 0)
    held = f"{floors - len(whole.get('floors_broken', []))} of {floors}" if floors else "–"
    extremes = [plain((whole.get(key) or {}).get("value")) for key in ("least_input_degree", "highest_gini")]
    sigma = plain((whole.get("highest_sigma2") or {}).get("value"))
    return [
        plain(whole["dead_inputs"]),
        *extremes,
        held,
        plain(kept.get("magnitude")),
        plain(kept.get("energy")),
        sigma,
    ]


def left_to_gain(record: Record) -> list[str] | None:
    """The mean error and its bounds in a record of `eggs diagnose --bounds`; None of others."""
    bounds = (record.data["whole"].get("mean_bounds") or {}) if record.kind is Kind.diagnosis else {}
    if not bounds:
        return None
    return [
        plain(record.data["whole"]["mean_calibrated"]["output_error"]),
        *(plain(bounds[k]) for k in _BOUNDS.values()),
    ]


def _errors(run: Run) -> dict[tuple[int, str], float]:
    return {
        place(str(matrix["name"])): float(matrix["output_error"])
        for matrix in run.matrices
        if matrix.get("output_error") is not None
    }


def _by_block(errors: Mapping[tuple[int, str], float]) -> dict[int, float]:
    blocks: dict[int, list[float]] = {}
    for (block, _), error in errors.items():
        blocks.setdefault(block, []).append(error)
    return {block: sum(found) / len(found) for block, found in sorted(blocks.items())}


def _by_linear(found: Mapping[str, Mapping[tuple[int, str], float]], linears: list[str]) -> Table:
    rows = []
    for linear in linears:
        cells = [linear]
        for errors in found.values():
            each = [error for (_, name), error in errors.items() if name == linear]
            cells.append(plain(sum(each) / len(each) if each else None))
        rows.append(cells)
    return Table("Mean output error by linear", ["linear", *(f">{label}" for label in found)], rows)


def _matrices(run: Run) -> Table:
    heads = ["matrix", "pattern", "method", ">kept", ">output error", ">B"]
    rows = [
        [
            str(matrix["name"]),
            str(matrix["pattern"]),
            str(matrix.get("method", "–")),
            f"{matrix['density']:.2%}",
            plain(matrix.get("output_error")),
            str(matrix.get("B", "–")),
        ]
        for matrix in run.matrices
    ]
    return Table(f"All {len(rows)} matrices of {run.label}", heads, rows)
