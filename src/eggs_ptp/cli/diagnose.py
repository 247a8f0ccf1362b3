"""`eggs diagnose`: where connections ran out, and what was lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eggs_ptp.cli import flags
from eggs_ptp.cli.flags import DType

if TYPE_CHECKING:
    from eggs_ptp.checkpoint.calibrated import Text

_TEXT = "With text"


_Against = Annotated[
    str | None, typer.Option(help="The model it was made from: shares of its |W| and W^2 that were kept.")
]
_Spectra = Annotated[
    bool,
    typer.Option(
        "--spectra",
        help="Second singular value of the normalised mask, with the random edge and the Ramanujan, Cheeger and "
        "Tanner bounds: seconds a matrix. At 50 % it hardly tells masks apart and does not see dead inputs.",
    ),
]
_Reach = Annotated[
    bool,
    typer.Option(
        "--reach", help="Share of the channels that paths through stacked blocks join: seconds a block and more."
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
        help="How little any mask of the pattern could lose: proven lower bounds beside the best found. Minutes "
        "for a wide matrix.",
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
_NSamples = Annotated[int, typer.Option("--nsamples", min=1, help="Windows.", rich_help_panel=_TEXT)]
_SeqLen = Annotated[
    int | None,
    typer.Option(
        "--seqlen",
        min=2,
        help="Tokens in a window. Default: 2048, or the model's context if shorter.",
        rich_help_panel=_TEXT,
    ),
]
_Seed = Annotated[int, typer.Option(min=0, help="Of the windows.", rich_help_panel=_TEXT)]


def diagnose(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A pruned folder, dense or packed.", show_default=False)
    ],
    against: _Against = None,
    spectra: _Spectra = False,
    reach: _Reach = False,
    calibration: _Calibration = None,
    bounds: _Bounds = False,
    flow: _Flow = False,
    nsamples: _NSamples = 32,
    seqlen: _SeqLen = None,
    seed: _Seed = 0,
    device: flags.Device = "auto",
    dtype: flags.DTypeFlag = DType.auto,
    json: flags.Json = False,
) -> None:
    """Count dead inputs and connections, check Lemma 1's floor, and say what of the dense model was retained."""
    from eggs_ptp.checkpoint.diagnosis import Ask, diagnose_folder
    from eggs_ptp.cli import diagnosis_text
    from eggs_ptp.cli.terminal import Progress, print_json
    from eggs_ptp.demo.builtin import DEMO, model_folder
    from eggs_ptp.models.folder import find_folder

    source = None if against is None else model_folder() if against == DEMO else find_folder(against)
    text = _text(source, calibration, nsamples, seqlen, seed, device, dtype) if source and calibration else None
    ask = Ask(spectra, reach, bounds, flow, text)
    if calibration and source is None:  # said before anything is read
        from eggs_ptp.errors import CheckpointError

        raise CheckpointError(f"--calibration {calibration} compares with the dense model; pass it as --against")
    with Progress("diagnose", quiet=json) as progress:
        found = diagnose_folder(folder, source, ask=ask, progress=progress.count if progress.is_bar else None)
    if json:
        print_json(found.to_dict())
    else:
        diagnosis_text.show(found)


def _text(
    source: Path, calibration: str, nsamples: int, seqlen: int | None, seed: int, device: str, dtype: DType
) -> "Text":
    """The tokens to run through both models."""
    from eggs_ptp.calibration.windows import calibration_windows, check_source
    from eggs_ptp.checkpoint.calibrated import Text
    from eggs_ptp.demo.builtin import DEMO, builtin_documents
    from eggs_ptp.engine.place import find_device, find_dtype
    from eggs_ptp.models.load import load_skeleton, load_tokenizer
    from eggs_ptp.recipe.recipe import CalibrationSpec

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
    return Text(windows, find_device(device), find_dtype(dtype.value))
