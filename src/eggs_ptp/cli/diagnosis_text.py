"""A diagnosis as tables for people."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from eggs_ptp.cli.terminal import line, table

if TYPE_CHECKING:
    from eggs_ptp.checkpoint.diagnosis import Diagnosis, MatrixDiagnosis

Notes = Sequence[tuple[str, str]]

_NOTES: Notes = (
    ("dead", "inputs without any connection: what they carry is lost to this matrix, whatever else is fine"),
    ("least, p1, median", "connections of an input, d_j = sum_i (W_ij != 0), dead ones included; p1: 1st percentile"),
    (
        "Gini",
        "sum_k (2k - n - 1) d_(k) / (n sum d): 0 where all inputs have equally many; says nothing of which matter",
    ),
    ("floor", "min(B, out // M) connections that Lemma 1 promises every input; a kept weight of 0 is no connection"),
    ("expands to", "any set of up to so many inputs has more outputs than members, by its degrees; Lemma 1: B - 1"),
    ("output error", "|X (W - W')^T|^2 / |X W^T|^2 on calibration tokens, as recorded; the closest to quality"),
)
_NOTES_AGAINST: Notes = (
    ("|W|, energy", "sum |W| m / sum |W|, sum W^2 m / sum W^2 of the dense weights W; activations are not in it"),
    ("energy of dead", "sum of W^2 over dead inputs / sum W^2"),
)
_NOTES_SPECTRA: Notes = (
    (
        "sigma2",
        "2nd singular value of D_out^-1/2 m D_in^-1/2; hardly moves at 50 %, does not see dead inputs; 1: pieces",
    ),
    ("/edge", "sigma2 over that of random masks (of the N:M pattern where it is known): near 1 is as good as random"),
    ("Ramanujan", "(sqrt(d_out - 1) + sqrt(d_in - 1)) / sqrt(d_out d_in); nearly every mask at 50 % stays below it"),
    ("Cheeger", "(1 - sigma2) / 2 <= conductance: share of its connections that leave any set of up to half of them"),
    ("Tanner", "least share of live outputs that any 1 % of the live inputs reach, and the other way round"),
)
_NOTES_CALIBRATED: Notes = (
    ("error, by the mask", "|X (W - W')^T|^2 / |X W^T|^2 on the text given, X of the pruned model; with W' = W m"),
    ("dead carry, give", "share of the inputs' energy on dead inputs, and of the output's that came from them alone"),
    ("Wanda, RIA", "sum S m / sum S of these scores: what the mask retains, whatever method chose it"),
    ("top", "largest singular value of W' diag(n) / that of W diag(n), n_j^2 the mean of x_j^2; with --spectra"),
)
_NOTES_BOUNDS: Notes = (
    ("least", "proven for these tokens: no mask of the pattern, in this column order, loses less; need not be reached"),
    ("best found", "by search; the optimum lies between the two"),
    ("W kept, W solved", "kept weights as in the dense model, or solved for after pruning"),
)
_NOTES_REACH: Notes = (
    ("reach", "share of pairs of residual channels that a path through non-zero weights joins; near 1 at 50 %"),
    ("chained", "through every part from the first block on; with residual: any part may be skipped"),
)
_NOTES_FLOW: Notes = (
    ("top", "largest singular value of the block's Jacobian J, dense and pruned, at at most 64 tokens of one window"),
    ("J, J - I", "root mean square of all singular values, by 8 random directions: with the residual, and without"),
    ("gradient", "norm of the loss gradient before the block over that behind it; what it says of quality is unproven"),
)


def show(found: "Diagnosis") -> None:
    """Print the tables that there is something for, what their columns mean, and the model as a whole."""
    _show_matrices(found)
    if any(one.spectrum for one in found.matrices):
        _show_spectra(found)
    if found.calibration is not None:
        _show_calibrated(found)
    if any(one.bounds for one in found.matrices):
        _show_bounds(found)
    if found.reach:
        _show_reach(found)
    if found.flow:
        _show_flow(found)
    for text in _whole(found):
        line(text)


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Notes) -> None:
    table(columns, rows)
    for name, meaning in notes:
        line(f"{name}: {meaning}")


def _show_matrices(found: "Diagnosis") -> None:
    columns = ["matrix", ">dead", ">least", ">p1", ">median", ">Gini", ">floor", ">expands to", ">output error"]
    notes = _NOTES
    if found.against is not None:
        columns, notes = [*columns, ">|W|", ">energy", ">energy of dead"], [*notes, *_NOTES_AGAINST]
    _print(columns, map(_row, found.matrices), notes)


def _row(one: "MatrixDiagnosis") -> list[str]:
    degrees = one.input_degrees
    floor = "-" if one.floor is None else f"{one.floor} {'ok' if one.floor_held else 'BROKEN'}"
    error = "-" if one.output_error is None else f"{one.output_error:.4f}"
    cells = [one.name, f"{one.dead_inputs}", *(f"{degrees[key]:.0f}" for key in ("min", "p1", "p50"))]
    cells += [f"{degrees['gini']:.3f}", floor, f"{one.expands_to}", error]
    if (kept := one.retained) is not None:
        cells += [f"{kept[key]:.4f}" for key in ("magnitude", "energy", "dead_energy")]
    return cells


def _show_spectra(found: "Diagnosis") -> None:
    rows = []
    for one in found.matrices:
        if (seen := one.spectrum) is None:
            rows.append([one.name, *["-"] * 5])
            continue
        value = {key: number or 0.0 for key, number in seen.items()}
        edge = value["pattern_edge"] or value["random_edge"]
        cells = [f"{value['sigma2']:.4f}", f"{value['sigma2'] / edge:.2f}" if edge else "-"]
        cells += [f"{value['ramanujan']:.4f}", f"{value['cheeger']:.3f}"]
        rows.append([one.name, *cells, f"{value['tanner_outputs']:.3f} {value['tanner_inputs']:.3f}"])
    _print(["matrix", ">sigma2", ">/edge", ">Ramanujan", ">Cheeger", ">Tanner"], rows, _NOTES_SPECTRA)


def _show_calibrated(found: "Diagnosis") -> None:
    columns = ["matrix", ">error", ">by the mask", ">dead carry", ">give", ">Wanda", ">RIA", ">top"]
    keys = ("output_error", "mask_error", "dead_activation", "dead_output", "retained_wanda", "retained_ria")
    rows = []
    for one in found.matrices:
        numbers, top = one.calibrated or {}, one.weighted
        ratio = f"{top['pruned'][0] / top['dense'][0]:.3f}" if top and top["dense"][0] else "-"
        rows.append([one.name, *(f"{numbers[key]:.4f}" for key in keys), ratio])
    _print(columns, rows, _NOTES_CALIBRATED)


def _show_bounds(found: "Diagnosis") -> None:
    columns = ["matrix", ">by the mask", ">least", ">best found, W kept", ">error", ">least", ">best found, W solved"]
    rows = []
    for one in found.matrices:
        if one.bounds and one.calibrated:
            keys = ("least_unchanged", "best_unchanged", "least_updated", "best_updated")
            kept, best_kept, solved, best_solved = (f"{one.bounds[key]:.4f}" for key in keys)
            mask, error = (f"{one.calibrated[key]:.4f}" for key in ("mask_error", "output_error"))
            rows.append([one.name, mask, kept, best_kept, error, solved, best_solved])
    _print(columns, rows, _NOTES_BOUNDS)


def _show_reach(found: "Diagnosis") -> None:
    spaces = list(dict.fromkeys(space for one in found.reach for space in one.inside))
    columns = ["block", *(f">reach by {space}" for space in spaces), ">chained", ">with residual"]
    rows = [
        [f"{one.block}", *map(_percent, (*(one.inside.get(space) for space in spaces), one.chained, one.with_residual))]
        for one in found.reach
    ]
    _print(columns, rows, _NOTES_REACH)


def _show_flow(found: "Diagnosis") -> None:
    columns = [
        "block",
        *(f">{name} {side}" for name in ("top", "J", "J - I", "gradient") for side in ("dense", "pruned")),
    ]
    rows = []
    for index, pair in enumerate(found.flow):
        tops, all_of, written = zip(
            *((e.gain.singular_values[0], e.gain.rms, e.gain.rms_written) for e in pair), strict=True
        )
        ratios = [each.gradient_ratio for each in pair]
        rows.append([f"{index}", *(f"{value:.3f}" for both in (tops, all_of, written, ratios) for value in both)])
    _print(columns, rows, _NOTES_FLOW)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _whole(found: "Diagnosis") -> list[str]:
    """The last lines: the model as a whole."""
    whole = found.whole
    least, gini = whole["least_input_degree"], whole["highest_gini"]
    lines = [
        f"{found.folder}: {whole['matrices']} matrices, {whole['density']:.4f} of {whole['weights']} weights non-zero",
        f"dead: {whole['dead_inputs']} of {whole['inputs']} inputs, {whole['dead_outputs']} outputs",
        f"least connections of an input: {least['value']:.0f} in {least['matrix']}; "
        f"highest Gini: {gini['value']:.3f} in {gini['matrix']}",
    ]
    broken = whole["floors_broken"]
    names = f"; broken: {', '.join(broken)}" if broken else ""
    held = f"{whole['floors'] - len(broken)} of {whole['floors']} held{names}"
    lines.append(f"Lemma 1's floor: {held if whole['floors'] else 'no B is recorded'}")
    if (worst := whole["highest_output_error"]) is not None:
        mean = f"mean {whole['mean_output_error']:.4f}, highest {worst['value']:.4f} in {worst['matrix']}"
        lines.append(f"output error: {mean}")
    if (kept := whole["retained"]) is not None:
        lines.append(f"retained: {kept['magnitude']:.4f} of |W|, {kept['energy']:.4f} of its energy")
    if (sigma := whole["highest_sigma2"]) is not None:
        lines.append(f"highest sigma2: {sigma['value']:.4f} in {sigma['matrix']}")
    return [*lines, *_whole_text(found)]


def _whole_text(found: "Diagnosis") -> list[str]:
    """What was measured on text, as a whole."""
    whole, lines = found.whole, []
    if (mean := whole["mean_calibrated"]) is not None and found.calibration is not None:
        size = f"{found.calibration['nsamples']} windows of {found.calibration['seqlen']} tokens"
        lines.append(f"on {size}: mean error {mean['output_error']:.4f}, by the masks alone {mean['mask_error']:.4f}")
    if mean is not None and (bounds := whole["mean_bounds"]) is not None:
        pairs = [(bounds[f"least_{which}"], bounds[f"best_{which}"]) for which in ("unchanged", "updated")]
        kept, solved = (f"no masks lose less than {least:.4f}, {best:.4f} was found" for least, best in pairs)
        lines.append(f"bounds, means: kept weights as they are, {kept}; solved for, {solved}")
    if (ratio := whole["gradient_ratio"]) is not None:
        lines.append(
            "gradient, before the first block / behind the last: "
            f"dense {ratio['dense']:.3g}, pruned {ratio['pruned']:.3g}"
        )
    return lines
