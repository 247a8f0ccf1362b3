"""`eggs diagnose`: connectivity of a pruned model, and what it lost against the dense one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags

if TYPE_CHECKING:
    from eggs_ptp.research.diagnosis.calibration_metrics import CalibrationText

_TEXT = "With calibration text"

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A pruned folder, dense or packed.", show_default=False)]
_Against = Annotated[
    str | None,
    typer.Option(help="The dense model it was made from: shows which shares of |W| and W^2 the mask keeps."),
]
_Spectra = Annotated[
    bool,
    typer.Option(
        "--spectra",
        help="Second singular value of the normalised mask, with that of random masks and the Ramanujan, Cheeger and "
        "Tanner bounds: seconds per matrix. At 50 % it hardly differs between masks and does not show dead inputs.",
    ),
]
_Reachability = Annotated[
    bool,
    typer.Option(
        "--reachability",
        help="Share of the pairs of residual channels that are connected by a path through stacked blocks: seconds per "
        "block and more.",
    ),
]
_Reach = Annotated[
    bool,
    typer.Option(
        "--reach",
        help="Old name of --reachability.",
        hidden=True,
        callback=flags.renamed("--reach", "--reachability"),
    ),
]
_Calibration = Annotated[
    str | None,
    typer.Option(
        help="Text (as for eggs prune) to run through both models, with --against: output errors, energy of dead "
        "inputs, retained scores; with --spectra also activation-weighted singular values.",
        rich_help_panel=_TEXT,
        show_default=False,
    ),
]
_Bounds = Annotated[
    bool,
    typer.Option(
        "--bounds",
        help="Proven lower bounds of the output error of any mask of the pattern, with the best masks that a search "
        "has found. Minutes for a wide matrix.",
        rich_help_panel=_TEXT,
    ),
]
_Flow = Annotated[
    bool,
    typer.Option(
        "--flow",
        help="Singular values of each block's Jacobian and gradient norms, dense and pruned, over 4 windows of 64 "
        "tokens.",
        rich_help_panel=_TEXT,
    ),
]
_NSamples = Annotated[int, typer.Option("--nsamples", min=1, help="Number of windows.", rich_help_panel=_TEXT)]
_SeqLen = Annotated[
    int | None,
    typer.Option(
        "--seqlen",
        min=2,
        help="Tokens of each window. Default: 2048, or the model's context if shorter.",
        rich_help_panel=_TEXT,
    ),
]
_Full = Annotated[bool, typer.Option("--full", help="A row for every matrix, not one for all blocks.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed that draws the windows.", rich_help_panel=_TEXT)]


@flags.with_flags
def diagnose(
    folder: _Folder,
    *,
    against: _Against = None,
    spectra: _Spectra = False,
    reachability: _Reachability = False,
    reach: _Reach = False,
    calibration: _Calibration = None,
    bounds: _Bounds = False,
    flow: _Flow = False,
    nsamples: _NSamples = 32,
    seqlen: _SeqLen = None,
    seed: _Seed = 0,
    run: flags.DeviceFlags,
    full: _Full = False,
    json: flags.Json = False,
) -> None:
    """Count dead inputs and connections, check the degrees of Lemma 1, and compare with the dense model."""
    from eggs_ptp.cli import diagnosis_tables
    from eggs_ptp.cli.terminal import LINE_SECONDS, Progress, print_json, print_line
    from eggs_ptp.demo.builtin import DEMO, model_folder
    from eggs_ptp.models.folder import find_folder
    from eggs_ptp.research.diagnosis.diagnosis import DiagnosisOptions, diagnose_folder

    source = None
    if against is not None:
        source = model_folder() if against == DEMO else find_folder(against)
    text = _read_text(source, calibration, nsamples, seqlen, seed, run) if source and calibration else None
    options = DiagnosisOptions(spectra, reachability or reach, bounds, flow, text)
    if calibration and source is None:  # before anything is read
        from eggs_ptp.errors import CheckpointError

        raise CheckpointError(f"--calibration {calibration} compares with the dense model; pass it as --against")
    with Progress("diagnose", quiet=json, interval=LINE_SECONDS) as progress:
        diagnosis = diagnose_folder(folder, source, options=options, progress=progress.count)
    if json:
        print_json(diagnosis.to_dict())
    else:
        diagnosis_tables.print_diagnosis(diagnosis, full=full)
        print_line(progress.memory_text())


def _read_text(
    source: Path, calibration: str, nsamples: int, seqlen: int | None, seed: int, run: flags.DeviceFlags
) -> "CalibrationText":
    """Return the token windows to run through both models."""
    from eggs_ptp.calibration.windows import calibration_windows, check_source
    from eggs_ptp.demo.builtin import DEMO, builtin_documents
    from eggs_ptp.engine.planning.device import find_device, find_dtype
    from eggs_ptp.models.load import load_skeleton, load_tokenizer
    from eggs_ptp.recipe.recipe import CalibrationSpec
    from eggs_ptp.research.diagnosis.calibration_metrics import CalibrationText

    if calibration != DEMO:
        check_source(calibration)
    skeleton = load_skeleton(source)
    windows = calibration_windows(
        CalibrationSpec(text=calibration, nsamples=nsamples, seqlen=seqlen),
        None if calibration.lower().endswith(".npy") else load_tokenizer(source),
        seqlen=min(2048, skeleton.context),
        seed=seed,
        vocab_size=skeleton.vocab_size,
        builtin=builtin_documents("calibration") if calibration == DEMO else None,
    )
    return CalibrationText(windows, find_device(run.device), find_dtype(run.dtype.value))
