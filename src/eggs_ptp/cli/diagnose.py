"""`eggs diagnose`: where connections ran out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.checkpoint.diagnosis import Diagnosis, MatrixDiagnosis

_NOTES = (
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
_NOTES_AGAINST = (
    ("|W|, energy", "sum |W| m / sum |W|, sum W^2 m / sum W^2 of the dense weights W; activations are not in it"),
    ("energy of dead", "sum of W^2 over dead inputs / sum W^2"),
)
_NOTES_SPECTRA = (
    (
        "sigma2",
        "2nd singular value of D_out^-1/2 m D_in^-1/2; hardly moves at 50 %, does not see dead inputs; 1: pieces",
    ),
    ("/edge", "sigma2 over that of random masks (of the N:M pattern where it is known): near 1 is as good as random"),
    ("Ramanujan", "(sqrt(d_out - 1) + sqrt(d_in - 1)) / sqrt(d_out d_in); nearly every mask at 50 % stays below it"),
    ("Cheeger", "(1 - sigma2) / 2 <= conductance: share of its connections that leave any set of up to half of them"),
    ("Tanner", "least share of live outputs that any 1 % of the live inputs reach, and the other way round"),
)


def diagnose(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A pruned folder, dense or packed.", show_default=False)
    ],
    against: Annotated[
        str | None, typer.Option(help="The model it was made from: shares of its |W| and W^2 that were kept.")
    ] = None,
    spectra: Annotated[
        bool,
        typer.Option(
            "--spectra",
            help="Second singular value of the normalised mask, with the random edge and the Ramanujan, Cheeger and "
            "Tanner bounds: seconds a matrix. At 50 % it hardly tells masks apart and does not see dead inputs.",
        ),
    ] = False,
    json: flags.Json = False,
) -> None:
    """Count dead inputs and connections, check Lemma 1's floor, and say what of the dense model was retained."""
    from eggs_ptp.checkpoint.diagnosis import diagnose_folder
    from eggs_ptp.cli.terminal import Progress, line, print_json, table
    from eggs_ptp.demo.builtin import DEMO, model_folder
    from eggs_ptp.models.folder import find_folder

    source = None if against is None else model_folder() if against == DEMO else find_folder(against)
    with Progress("diagnose", quiet=json) as progress:
        found = diagnose_folder(folder, source, spectra=spectra, progress=progress.count if progress.is_bar else None)
    if json:
        print_json(found.to_dict())
        return
    columns = ["matrix", ">dead", ">least", ">p1", ">median", ">Gini", ">floor", ">expands to", ">output error"]
    notes = list(_NOTES)
    if against is not None:
        columns, notes = [*columns, ">|W|", ">energy", ">energy of dead"], [*notes, *_NOTES_AGAINST]
    if spectra:
        columns = [*columns, ">sigma2", ">/edge", ">Ramanujan", ">Cheeger", ">Tanner"]
        notes = [*notes, *_NOTES_SPECTRA]
    table(columns, (_row(one, spectra) for one in found.matrices))
    for name, meaning in notes:
        line(f"{name}: {meaning}")
    for text in _whole(found):
        line(text)


def _row(one: "MatrixDiagnosis", spectra: bool) -> list[str]:
    degrees = one.input_degrees
    floor = "-" if one.floor is None else f"{one.floor} {'ok' if one.floor_held else 'BROKEN'}"
    error = "-" if one.output_error is None else f"{one.output_error:.4f}"
    cells = [one.name, f"{one.dead_inputs}", *(f"{degrees[key]:.0f}" for key in ("min", "p1", "p50"))]
    cells += [f"{degrees['gini']:.3f}", floor, f"{one.expands_to}", error]
    if (kept := one.retained) is not None:
        cells += [f"{kept[key]:.4f}" for key in ("magnitude", "energy", "dead_energy")]
    if spectra and one.spectrum is None:
        cells += ["-"] * 5
    elif (seen := one.spectrum) is not None:
        value = {key: number or 0.0 for key, number in seen.items()}
        edge = value["pattern_edge"] or value["random_edge"]
        cells += [f"{value['sigma2']:.4f}", f"{value['sigma2'] / edge:.2f}" if edge else "-"]
        cells += [f"{value['ramanujan']:.4f}", f"{value['cheeger']:.3f}"]
        cells += [f"{value['tanner_outputs']:.3f} {value['tanner_inputs']:.3f}"]
    return cells


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
    return lines
