"""The tables that `eggs diagnose` prints."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from eggs_ptp.cli.merged_rows import merge_rows, without_common_prefix
from eggs_ptp.cli.terminal import print_line, print_table

if TYPE_CHECKING:
    from eggs_ptp.research.diagnosis.results import Diagnosis, MatrixDiagnosis

Notes = Sequence[tuple[str, str]]  # names of columns, and what they mean

MATRIX_NOTES: Notes = (
    ("dead", "inputs without any connection: this matrix ignores what they carry"),
    ("min, p1, median", "connections of an input, d_j = sum_i (W_ij != 0), dead ones included; p1: 1st percentile"),
    (
        "Gini",
        "sum_k (2k - n - 1) d_(k) / (n sum d): 0 where all inputs have equally many; it does not know which matter",
    ),
    (
        "Lemma 1",
        "min(B, out // M) connections that Lemma 1 guarantees every input; a kept weight of 0 is no connection",
    ),
    ("expands to", "any set of up to this many inputs has more outputs than members, by its degrees; Lemma 1: B - 1"),
    ("output error", "|X (W - W')^T|^2 / |X W^T|^2 on calibration tokens, as recorded; the best predictor of quality"),
)
AGAINST_NOTES: Notes = (
    ("|W|, energy", "sum |W| m / sum |W|, sum W^2 m / sum W^2 of the dense weights W; activations are not included"),
    ("energy of dead", "sum of W^2 over dead inputs / sum W^2"),
)
SPECTRUM_NOTES: Notes = (
    (
        "sigma2",
        "2nd singular value of D_out^-1/2 m D_in^-1/2; hardly changes at 50 %, does not show dead inputs; 1: the graph "
        "is disconnected",
    ),
    ("/random", "sigma2 over that of random masks (of the N:M pattern where it is known): near 1 is as good as random"),
    ("Ramanujan", "(sqrt(d_out - 1) + sqrt(d_in - 1)) / sqrt(d_out d_in); at 50 % nearly every mask is below it"),
    ("Cheeger", "(1 - sigma2) / 2 <= conductance: share of its connections that leave any set of up to half of them"),
    ("Tanner out, in", "minimal share of live outputs that any 1 % of the live inputs reach, and of inputs by outputs"),
)
CALIBRATION_NOTES: Notes = (
    ("error, of the mask", "|X (W - W')^T|^2 / |X W^T|^2 on the given text, X of the pruned model; with W' = W m"),
    (
        "dead in, dead out",
        "share of the inputs' energy on dead inputs, and of the output energy that came from them only",
    ),
    ("Wanda, RIA", "sum S m / sum S of these scores: what the mask retains, no matter which method has chosen it"),
    ("top", "largest singular value of W' diag(n) / that of W diag(n), n_j^2 the mean of x_j^2; with --spectra"),
)
BOUND_NOTES: Notes = (
    (
        "lower bound",
        "proven for these tokens: every mask of the pattern, in this column order, has at least this error; it may not "
        "be reached",
    ),
    ("best found", "by search; the optimum is between the two"),
    ("kept, solved", "kept weights as in the dense model, or solved for after pruning"),
)
REACHABILITY_NOTES: Notes = (
    ("through", "share of pairs of residual channels connected by a path of non-zero weights; near 1 at 50 %"),
    ("all blocks", "through every sublayer from the first block on; with residual: any sublayer may be skipped"),
)
FLOW_NOTES: Notes = (
    ("top", "largest singular value of the block's Jacobian J, dense and pruned, at up to 64 tokens of one window"),
    ("J, J - I", "root mean square of all singular values, by 8 random directions: with the residual, and without"),
    (
        "gradient",
        "norm of the loss gradient before the block over that after it; whether it predicts quality is not proven",
    ),
)


Cell = Callable[[Sequence["MatrixDiagnosis"]], str]  # text about one matrix, or about the worst of several
Columns = Mapping[str, Cell]


def _worst(
    choose: Callable[[Iterable[float]], float], value: Callable[["MatrixDiagnosis"], float | None], form: str
) -> Cell:
    """Return the cell of a quantity: of several matrices the chosen one; a dash where none has it.

    Args:
        choose: `min`, `max` or `sum`.
        value: The quantity of a matrix; None where it was not measured.
        form: How it is formatted.
    """

    def cell(matrices: Sequence["MatrixDiagnosis"]) -> str:
        values = [number for matrix in matrices if (number := value(matrix)) is not None]
        return format(choose(values), form) if values else "-"

    return cell


def _key(group: str, key: str) -> Callable[["MatrixDiagnosis"], float | None]:
    """Return a function that reads one number of a group of a matrix's numbers; None where it was not measured."""
    return lambda matrix: (getattr(matrix, group) or {}).get(key)


def _guaranteed(matrices: Sequence["MatrixDiagnosis"]) -> str:
    recorded = [matrix for matrix in matrices if matrix.floor is not None]
    violated = [matrix for matrix in recorded if not matrix.floor_held]
    if not recorded:
        return "-"
    least = min(matrix.floor or 0 for matrix in violated or recorded)
    return f"{least} {'VIOLATED' if violated else 'ok'}"


def _to_random(matrix: "MatrixDiagnosis") -> float | None:
    spectrum = matrix.spectrum or {}
    random_sigma2 = spectrum.get("pattern_edge") or spectrum.get("random_edge")
    return (spectrum["sigma2"] or 0.0) / random_sigma2 if random_sigma2 else None


def _top(matrix: "MatrixDiagnosis") -> float | None:
    values = matrix.weighted
    return values["pruned"][0] / values["dense"][0] if values and values["dense"][0] else None


MATRIX_COLUMNS: Columns = {
    "dead": _worst(sum, lambda matrix: matrix.dead_inputs, "d"),
    "min": _worst(min, _key("input_degrees", "min"), ".0f"),
    "p1": _worst(min, _key("input_degrees", "p1"), ".0f"),
    "median": _worst(min, _key("input_degrees", "p50"), ".0f"),
    "Gini": _worst(max, _key("input_degrees", "gini"), ".2f"),
    "Lemma 1": _guaranteed,
    "expands to": _worst(min, lambda matrix: matrix.expands_to, "d"),
    "output error": _worst(max, lambda matrix: matrix.output_error, ".4f"),
}
AGAINST_COLUMNS: Columns = {
    "|W|": _worst(min, _key("retained", "magnitude"), ".4f"),
    "energy": _worst(min, _key("retained", "energy"), ".4f"),
    "energy of dead": _worst(max, _key("retained", "dead_energy"), ".4f"),
}
SPECTRUM_COLUMNS: Columns = {
    "sigma2": _worst(max, _key("spectrum", "sigma2"), ".4f"),
    "/random": _worst(max, _to_random, ".2f"),
    "Ramanujan": _worst(min, _key("spectrum", "ramanujan"), ".4f"),
    "Cheeger": _worst(min, _key("spectrum", "cheeger"), ".3f"),
    "Tanner out": _worst(min, _key("spectrum", "tanner_outputs"), ".3f"),
    "Tanner in": _worst(min, _key("spectrum", "tanner_inputs"), ".3f"),
}
CALIBRATION_COLUMNS: Columns = {
    "error": _worst(max, _key("calibrated", "output_error"), ".4f"),
    "of the mask": _worst(max, _key("calibrated", "mask_error"), ".4f"),
    "dead in": _worst(max, _key("calibrated", "dead_activation"), ".4f"),
    "dead out": _worst(max, _key("calibrated", "dead_output"), ".4f"),
    "Wanda": _worst(min, _key("calibrated", "retained_wanda"), ".3f"),
    "RIA": _worst(min, _key("calibrated", "retained_ria"), ".3f"),
    "top": _worst(min, _top, ".3f"),
}
BOUND_COLUMNS: Columns = {
    "of the mask": _worst(max, _key("calibrated", "mask_error"), ".4f"),
    "lower bound, kept": _worst(max, _key("bounds", "least_unchanged"), ".4f"),
    "best found, kept": _worst(max, _key("bounds", "best_unchanged"), ".4f"),
    "error": _worst(max, _key("calibrated", "output_error"), ".4f"),
    "lower bound, solved": _worst(max, _key("bounds", "least_updated"), ".4f"),
    "best found, solved": _worst(max, _key("bounds", "best_updated"), ".4f"),
}


def print_diagnosis(diagnosis: "Diagnosis", *, full: bool) -> None:
    """Print a table for each analysis that was made, the meaning of its columns, and a summary of the model.

    Args:
        diagnosis: The diagnosis.
        full: Whether every matrix has a row of its own; otherwise those that differ in their block only share one.
    """
    _print_matrices(diagnosis, MATRIX_COLUMNS, MATRIX_NOTES, full=full)
    if diagnosis.against is not None:
        _print_matrices(diagnosis, AGAINST_COLUMNS, AGAINST_NOTES, full=full)
    if any(matrix.spectrum for matrix in diagnosis.matrices):
        _print_matrices(diagnosis, SPECTRUM_COLUMNS, SPECTRUM_NOTES, full=full)
    if diagnosis.calibration is not None:
        _print_matrices(diagnosis, CALIBRATION_COLUMNS, CALIBRATION_NOTES, full=full)
    if any(matrix.bounds for matrix in diagnosis.matrices):
        _print_matrices(diagnosis, BOUND_COLUMNS, BOUND_NOTES, full=full)
    if diagnosis.reachability:
        _print_reachability(diagnosis)
    if diagnosis.gradient_flow:
        _print_flow(diagnosis)
    if not full and len(diagnosis.matrices) > 1:
        print_line("Each row of matrices: the worst of its blocks; --full has a row for every matrix.")
    for text in _summary(diagnosis):
        print_line(text)


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Notes) -> None:
    print_table(columns, rows)
    for name, note in notes:
        print_line(f"{name}: {note}")


def _print_matrices(diagnosis: "Diagnosis", columns: Columns, notes: Notes, *, full: bool) -> None:
    """Print a table with a row for every matrix, or for all that differ in their block only."""
    by_name = {matrix.name: matrix for matrix in diagnosis.matrices}
    groups = [(name, [matrix]) for name, matrix in by_name.items()]
    if not full:
        groups = [(row.label, [by_name[name] for name in row.names]) for row in merge_rows((n, ()) for n in by_name)]
    prefix, labels = without_common_prefix([label for label, _ in groups])
    rows = [
        [label, *(cell(members) for cell in columns.values())]
        for label, (_, members) in zip(labels, groups, strict=True)
    ]
    head = f"matrices of {prefix}" if prefix else "matrices"
    _print([head, *(f">{name}" for name in columns)], rows, notes)


def _print_reachability(diagnosis: "Diagnosis") -> None:
    spaces = list(dict.fromkeys(space for block in diagnosis.reachability for space in block.inside))
    columns = ["block", *(f">through {space}" for space in spaces), ">all blocks", ">with residual"]
    rows = []
    for block in diagnosis.reachability:
        shares = [*(block.inside.get(space) for space in spaces), block.chained, block.with_residual]
        rows.append([f"{block.block}", *map(_percent, shares)])
    _print(columns, rows, REACHABILITY_NOTES)


def _print_flow(diagnosis: "Diagnosis") -> None:
    quantities = ("top", "J", "J - I", "gradient")
    columns = ["block", *(f">{quantity} {model}" for quantity in quantities for model in ("dense", "pruned"))]
    rows = []
    for index, (dense, pruned) in enumerate(diagnosis.gradient_flow):
        pairs = [
            (dense.jacobian.singular_values[0], pruned.jacobian.singular_values[0]),
            (dense.jacobian.rms, pruned.jacobian.rms),
            (dense.jacobian.rms_written, pruned.jacobian.rms_written),
            (dense.gradient_ratio, pruned.gradient_ratio),
        ]
        rows.append([f"{index}", *(f"{value:.3f}" for pair in pairs for value in pair)])
    _print(columns, rows, FLOW_NOTES)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _summary(diagnosis: "Diagnosis") -> list[str]:
    """Return the last lines: the model as a whole."""
    summary = diagnosis.summary
    least = summary["least_input_degree"]
    gini = summary["highest_gini"]
    lines = [
        f"{diagnosis.folder}: {summary['matrices']} matrices, {summary['density']:.4f} of {summary['weights']} weights "
        "non-zero",
        f"dead: {summary['dead_inputs']} of {summary['inputs']} inputs, {summary['dead_outputs']} outputs",
        f"fewest connections of an input: {least['value']:.0f} in {least['matrix']}; "
        f"highest Gini: {gini['value']:.3f} in {gini['matrix']}",
    ]
    if summary["floors"]:
        violated = summary["floors_broken"]
        names = f"; violated in {', '.join(violated)}" if violated else ""
        lines.append(
            f"degree guaranteed by Lemma 1: holds in {summary['floors'] - len(violated)} of {summary['floors']} "
            f"matrices{names}"
        )
    else:
        lines.append("degree guaranteed by Lemma 1: no B is recorded")
    if (worst := summary["highest_output_error"]) is not None:
        mean = summary["mean_output_error"]
        lines.append(f"output error: mean {mean:.4f}, highest {worst['value']:.4f} in {worst['matrix']}")
    if (retained := summary["retained"]) is not None:
        lines.append(f"retained: {retained['magnitude']:.4f} of |W|, {retained['energy']:.4f} of its energy")
    if (sigma2 := summary["highest_sigma2"]) is not None:
        lines.append(f"highest sigma2: {sigma2['value']:.4f} in {sigma2['matrix']}")
    return [*lines, *_calibrated_summary(diagnosis)]


def _calibrated_summary(diagnosis: "Diagnosis") -> list[str]:
    """Return the lines of what was measured on calibration text."""
    summary = diagnosis.summary
    lines = []
    mean = summary["mean_calibrated"]
    if mean is not None and diagnosis.calibration is not None:
        windows = f"{diagnosis.calibration['nsamples']} windows of {diagnosis.calibration['seqlen']} tokens"
        lines.append(f"on {windows}: mean error {mean['output_error']:.4f}, of the masks only {mean['mask_error']:.4f}")
    bounds = summary["mean_bounds"]
    if mean is not None and bounds is not None:
        unchanged = f"at least {bounds['least_unchanged']:.4f}, {bounds['best_unchanged']:.4f} was found"
        updated = f"at least {bounds['least_updated']:.4f}, {bounds['best_updated']:.4f} was found"
        lines.append(f"mean error of the best masks: kept weights unchanged, {unchanged}; solved for, {updated}")
    if (ratio := summary["gradient_ratio"]) is not None:
        lines.append(
            "gradient norm before the first block / after the last: "
            f"dense {ratio['dense']:.3g}, pruned {ratio['pruned']:.3g}"
        )
    return lines
