"""What a run begins with: the loop made ready, and the windows that it is calibrated on."""

from collections.abc import Sequence
from pathlib import Path

import torch

from eggs_ptp.calibration.windows import Windows, calibration_windows, is_given
from eggs_ptp.engine.counted import Counted
from eggs_ptp.engine.event import Listener, ignore
from eggs_ptp.engine.masks import MaskFile
from eggs_ptp.engine.place import find_dtype
from eggs_ptp.engine.plan import Plan
from eggs_ptp.engine.ranks import Ranks
from eggs_ptp.engine.run import Run
from eggs_ptp.engine.shards import Shards
from eggs_ptp.engine.shelf import Shelf
from eggs_ptp.models.load import Skeleton, load_tokenizer
from eggs_ptp.recipe.recipe import Recipe


def run_of(
    decided: Plan,
    skeleton: Skeleton,
    shards: Shards,
    asked: Recipe,
    *,
    listener: Listener,
    ranks: Ranks,
    output: Path,
) -> Run:
    """The loop over blocks as it was decided; activations that memory has no room for go to the disk of `output`.

    Batches are the same on all ranks, whatever memory each has left: their size shows in the last bits.
    """
    decided = decided.in_batches(ranks.of_leader(lambda: decided.budget.batch_tokens))
    disk = next(parent for parent in output.resolve().parents if parent.exists())
    return Run(
        decided,
        skeleton,
        shards,
        seed=asked.seed,
        share_order=asked.share == "readers",
        device=torch.device(decided.device),
        dtype=find_dtype(decided.dtype),
        listener=listener if ranks.leads else ignore,
        refresh=(asked.calibration.statistics or ("group" if decided.compares else "block")) == "group",
        dense_stream=asked.calibration.propagate == "dense",
        masks=MaskFile(Path(asked.mask)) if asked.mask else None,
        folded={} if decided.folds else None,
        counted=Counted(asked.calibration.skip_first, asked.calibration.massive),
        shelf=Shelf(decided.budget.allowance, disk),
        ranks=ranks,
    )


def draw_windows(
    skeleton: Skeleton, recipe: Recipe, decided: Plan, builtin: Sequence[str] | None, trust_remote_code: bool
) -> Windows:
    """The calibration windows of a run; `builtin` are the documents of a text that is no file.

    Raises:
        CalibrationError: no text, or too short a text.
        ModelError: no tokenizer.
    """
    ready = is_given(recipe.calibration.text)
    tokenizer = None if ready else load_tokenizer(skeleton.folder, trust_remote_code=trust_remote_code)
    return calibration_windows(
        recipe.calibration,
        tokenizer,
        seqlen=decided.seqlen,
        seed=recipe.seed if recipe.calibration.seed is None else recipe.calibration.seed,
        vocab_size=skeleton.vocab_size,
        builtin=builtin,
    )
