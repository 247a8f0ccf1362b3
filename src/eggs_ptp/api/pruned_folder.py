"""The Python API: verify, and the masks of a pruned folder."""

from pathlib import Path

from eggs_ptp.api.inputs import find
from eggs_ptp.checkpoint.unpacked import open_reader
from eggs_ptp.checkpoint.verify import Verification, read_manifest, verify_folder
from eggs_ptp.engine.tensors.masks import write_masks
from eggs_ptp.errors import CheckpointError
from eggs_ptp.models.folder import find_folder


def verify(folder: str | Path, against: str | None = None, *, pattern: str | None = None) -> Verification:
    """Reopen a pruned folder and check it.

    Args:
        folder: The pruned folder.
        against: The model it was made from, for a comparison tensor by tensor.
        pattern: The pattern that its matrices should satisfy, where no record says so.

    Raises:
        CheckpointError: Nothing says what the folder should be.
        ModelError: One of the two is no model folder.
    """
    return verify_folder(Path(folder), find(against) if against else None, pattern)


def export_masks(folder: str | Path, output: str | Path) -> int:
    """Write the keep masks of a pruned folder's matrices (nonzero weights), one bit per weight; return their number.

    Masks are in the column order of the folder itself, which differs from the source's where permutations were folded.

    Raises:
        CheckpointError: The folder has no record, or the file cannot be written.
        ModelError: It is no model folder.
    """
    path = find_folder(str(folder))
    reader = open_reader(path)
    masks = {}
    for matrix in read_manifest(path)["matrices"]:
        mask = reader.read(f"{matrix['name']}.weight") != 0
        if mask.ndim != 2:
            raise CheckpointError(
                f"{path}: {matrix['name']} is recorded as a matrix, but has shape {tuple(mask.shape)}"
            )
        masks[matrix["name"]] = mask.T if matrix.get("transposed") else mask
    write_masks(masks, Path(output))
    return len(masks)
