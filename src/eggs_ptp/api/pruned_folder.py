"""The Python API: verify, masks, and what brings folded folders and things made for the base model together."""

from pathlib import Path

from eggs_ptp.api.inputs import find
from eggs_ptp.checkpoint.adapter import AdaptedAdapter
from eggs_ptp.checkpoint.adapter import adapt as adapt_folder
from eggs_ptp.checkpoint.base_channels import BaseExport
from eggs_ptp.checkpoint.base_channels import export_base as export_base_folder
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


def export_base(folder: str | Path, output: str | Path, *, overwrite: bool = False) -> BaseExport:
    """Write a pruned folder with folded permutations dense, in the channel order of the model it was pruned from.

    It computes the same, up to rounding. Adapters and merges made for that model fit it; its matrices are N:M only in
    the permutations that `eggs/orders.safetensors` has.

    Args:
        folder: The pruned folder, dense or packed.
        output: The folder to write.
        overwrite: Replace a model folder at `output`.

    Raises:
        CheckpointError: No permutation is folded into the folder, or the output cannot be written.
        ModelError: The folder is not a model.
    """
    return export_base_folder(find_folder(str(folder)), Path(output), overwrite=overwrite)


def adapt(adapter: str | Path, to: str | Path, output: str | Path, *, overwrite: bool = False) -> AdaptedAdapter:
    """Permute a LoRA adapter of peft, made for a model, so that it fits a folder pruned from that model.

    Args:
        adapter: The adapter's folder, or its name on the hub.
        to: The pruned folder, dense or packed.
        output: The folder to write.
        overwrite: Replace an adapter folder at `output`.

    Raises:
        CheckpointError: It is no LoRA adapter of the model that the folder was pruned from, or the output cannot be
            written.
        ModelError: The folder is not a model.
    """
    local = Path(adapter).expanduser()
    on_hub = not local.exists() and not local.is_absolute() and str(adapter).count("/") == 1
    return adapt_folder(
        find_folder(str(adapter)) if on_hub else local, find_folder(str(to)), Path(output), overwrite=overwrite
    )
