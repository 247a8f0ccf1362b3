"""The permutations that are folded into the weights of a pruned folder."""

from pathlib import Path

from eggs_ptp.checkpoint.staging import MANIFEST, ORDERS
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.errors import CheckpointError, MethodError
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.load import load_family


def read_fold(folder: Path) -> Fold | None:
    """Return the permutations that were folded into a folder's weights.

    Args:
        folder: The folder, dense or packed.

    Returns:
        The permutations; None for a folder without `eggs.json`, or whose weights are in the source's channel order.

    Raises:
        CheckpointError: Permutations were folded, but they are missing or invalid.
        ModelError: The folder is not a model.
    """
    if not (folder / MANIFEST).exists() or read_manifest(folder).get("orders") != "fold":
        return None
    if not (folder / ORDERS).exists():
        raise CheckpointError(f"{folder}: its permutations were folded into the weights, but {ORDERS} is missing")
    stored = CheckpointReader.of_file(folder / ORDERS)
    try:
        return Fold(*load_family(folder), {name: stored.read(name) for name in stored.names})
    except MethodError as error:
        raise CheckpointError(f"{folder}: {ORDERS}: {error}") from error
