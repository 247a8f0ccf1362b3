"""The tables that `eggs diagnose` prints."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

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
        "guaranteed",
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
    ("Tanner", "minimal share of live outputs that any 1 % of the live inputs reach, and the same from the outputs"),
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
    ("W kept, W solved", "kept weights as in the dense model, or solved for after pruning"),
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


def print_diagnosis(diagnosis: "Diagnosis") -> None:
    """Print a table for each analysis that was made, the meaning of its columns, and a summary of the model."""
    _print_matrices(diagnosis)
    if any(matrix.spectrum for matrix in diagnosis.matrices):
        _print_spectra(diagnosis)
    if diagnosis.calibration is not None:
        _print_calibrated(diagnosis)
    if any(matrix.bounds for matrix in diagnosis.matrices):
        _print_bounds(diagnosis)
    if diagnosis.reachability:
        _print_reachability(diagnosis)
    if diagnosis.gradient_flow:
        _print_flow(diagnosis)
    for text in _summary(diagnosis):
        print_line(text)


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Notes) -> None:
    print_table(columns, rows)
    for name, note in notes:
        print_line(f"{name}: {note}")


def _print_matrices(diagnosis: "Diagnosis") -> None:
    columns = ["matrix", ">dead", ">min", ">p1", ">median", ">Gini", ">guaranteed", ">expands to", ">output error"]
    notes = [*MATRIX_NOTES]
    if diagnosis.against is not None:
        columns += [">|W|", ">energy", ">energy of dead"]
        notes += AGAINST_NOTES
    _print(columns, map(_matrix_row, diagnosis.matrices), notes)


def _matrix_row(matrix: "MatrixDiagnosis") -> list[str]:
    degrees = matrix.input_degrees
    guaranteed = "-"
    if matrix.floor is not None:
        guaranteed = f"{matrix.floor} {'ok' if matrix.floor_held else 'VIOLATED'}"
    row = [
        matrix.name,
        f"{matrix.dead_inputs}",
        f"{degrees['min']:.0f}",
        f"{degrees['p1']:.0f}",
        f"{degrees['p50']:.0f}",
        f"{degrees['gini']:.3f}",
        guaranteed,
        f"{matrix.expands_to}",
        "-" if matrix.output_error is None else f"{matrix.output_error:.4f}",
    ]
    if matrix.retained is not None:
        row += [f"{matrix.retained[key]:.4f}" for key in ("magnitude", "energy", "dead_energy")]
    return row


def _print_spectra(diagnosis: "Diagnosis") -> None:
    rows = []
    for matrix in diagnosis.matrices:
        if matrix.spectrum is None:
            rows.append([matrix.name, *["-"] * 5])
            continue
        values = {key: value or 0.0 for key, value in matrix.spectrum.items()}
        random_sigma2 = values["pattern_edge"] or values["random_edge"]
        rows.append(
            [
                matrix.name,
                f"{values['sigma2']:.4f}",
                f"{values['sigma2'] / random_sigma2:.2f}" if random_sigma2 else "-",
                f"{values['ramanujan']:.4f}",
                f"{values['cheeger']:.3f}",
                f"{values['tanner_outputs']:.3f} {values['tanner_inputs']:.3f}",
            ]
        )
    _print(["matrix", ">sigma2", ">/random", ">Ramanujan", ">Cheeger", ">Tanner"], rows, SPECTRUM_NOTES)


def _print_calibrated(diagnosis: "Diagnosis") -> None:
    columns = ["matrix", ">error", ">of the mask", ">dead in", ">dead out", ">Wanda", ">RIA", ">top"]
    keys = ("output_error", "mask_error", "dead_activation", "dead_output", "retained_wanda", "retained_ria")
    rows = []
    for matrix in diagnosis.matrices:
        metrics = matrix.calibrated or {}
        singular_values = matrix.weighted
        top = "-"
        if singular_values and singular_values["dense"][0]:
            top = f"{singular_values['pruned'][0] / singular_values['dense'][0]:.3f}"
        rows.append([matrix.name, *(f"{metrics[key]:.4f}" for key in keys), top])
    _print(columns, rows, CALIBRATION_NOTES)


def _print_bounds(diagnosis: "Diagnosis") -> None:
    columns = [
        "matrix",
        ">of the mask",
        ">lower bound",
        ">best found, W kept",
        ">error",
        ">lower bound",
        ">best found, W solved",
    ]
    rows = []
    for matrix in diagnosis.matrices:
        if matrix.bounds and matrix.calibrated:
            errors = [
                matrix.calibrated["mask_error"],
                matrix.bounds["least_unchanged"],
                matrix.bounds["best_unchanged"],
                matrix.calibrated["output_error"],
                matrix.bounds["least_updated"],
                matrix.bounds["best_updated"],
            ]
            rows.append([matrix.name, *(f"{error:.4f}" for error in errors)])
    _print(columns, rows, BOUND_NOTES)


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
