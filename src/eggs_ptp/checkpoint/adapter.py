"""Permutes a LoRA adapter folder of peft, made for a model, to fit a folder pruned from it with folded permutations."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eggs_ptp.checkpoint.recorded_fold import read_fold
from eggs_ptp.checkpoint.staging import CARD, ORDERS, StagingFolder, check_apart
from eggs_ptp.checkpoint.unpacked import open_reader
from eggs_ptp.checkpoint.verify import read_manifest
from eggs_ptp.core.finite import is_finite
from eggs_ptp.core.json_file import read_json
from eggs_ptp.engine.tensors.reader import CheckpointReader, save_tensors
from eggs_ptp.errors import CheckpointError, MethodError, ModelError
from eggs_ptp.models.family import Family
from eggs_ptp.models.fold import Fold
from eggs_ptp.models.load import load_family
from eggs_ptp.models.lora import PARTS, LoraName, fold_lora, is_embedding_part, split_name
from eggs_ptp.models.path_validation import check_symlinks

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RECORD = "eggs_adapter.json"
# Options of peft that change which matrix a tensor belongs to, or give it a structure that a permutation breaks.
_UNSUPPORTED = ("layer_replication", "target_parameters", "use_qalora", "use_bdlora", "megatron_config")


@dataclass(frozen=True)
class AdaptedAdapter:
    """What was written.

    Attributes:
        output: The folder written.
        adapter: The adapter that was read.
        folder: The pruned folder that the result is for.
        made_for: The model that the adapter names as its base.
        pruned_from: The model that the folder was pruned from.
        tensors: Number of the adapter's tensors.
        permuted: How many of them were permuted; 0 if no permutation is folded into the folder.
        folded: Whether permutations are folded into the folder's weights.
    """

    output: str
    adapter: str
    folder: str
    made_for: str
    pruned_from: str
    tensors: int
    permuted: int
    folded: bool


class _Model(NamedTuple):
    """The pruned folder: its tensors, family and permutations."""

    folder: Path
    reader: CheckpointReader
    family: Family
    fold: Fold | None


def adapt(adapter: Path, folder: Path, output: Path, *, overwrite: bool = False) -> AdaptedAdapter:
    """Permute a LoRA adapter made for a model, so that it fits a folder pruned from that model.

    On the folder the result does what the adapter does on the same pruned weights in the model's own channel order.
    Where no permutation is folded into the folder, the tensors stay as they are.

    Args:
        adapter: A folder that peft has saved, with `adapter_config.json` and `adapter_model.safetensors`.
        folder: The pruned folder, dense or packed.
        output: The folder to write.
        overwrite: Replace an adapter folder at `output`.

    Returns:
        What was written.

    Raises:
        CheckpointError: It is no LoRA adapter, or not one of the model that the folder was pruned from; or the output
            cannot be written.
        ModelError: The folder is not a model, or a file cannot be read.
    """
    check_apart(output, folder)
    check_apart(output, adapter)
    config = _read_config(adapter)
    made_for = str(config.get("base_model_name_or_path") or "")
    record = read_manifest(folder)
    _check_base(adapter, made_for, folder)
    model = _Model(folder, open_reader(folder), load_family(folder)[0], read_fold(folder))
    stored = CheckpointReader.of_file(adapter / WEIGHTS)
    tensors = {}
    permuted = 0
    for name, parts, tensor in _read_tensors(adapter, stored):
        changed = _fold_tensor(adapter, model, name, parts, tensor, stored)
        permuted += changed is not tensor
        tensors[name] = changed
    config["base_model_name_or_path"] = str(folder)
    config["revision"] = None
    result = AdaptedAdapter(
        output=str(output),
        adapter=str(adapter),
        folder=str(folder),
        made_for=made_for,
        pruned_from=str(record["source"]["model"]),
        tensors=len(tensors),
        permuted=permuted,
        folded=model.fold is not None,
    )
    with StagingFolder(output, overwrite=overwrite, config=CONFIG) as staging:
        staging.copy_files(adapter)
        save_tensors(tensors, staging.folder / WEIGHTS)
        (staging.folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (staging.folder / RECORD).write_text(json.dumps(_record(result), indent=1) + "\n", encoding="utf-8")
        (staging.folder / CARD).write_text(_card(result), encoding="utf-8")
        staging.publish()
    return result


def _read_config(adapter: Path) -> dict[str, Any]:
    """Return `adapter_config.json` of a LoRA adapter that can be permuted."""
    if not adapter.is_dir():
        raise CheckpointError(f"{adapter}: expected an adapter folder of peft, got no such folder; check the path")
    check_symlinks(adapter)
    if not (adapter / CONFIG).is_file():
        raise CheckpointError(f"{adapter}: expected an adapter folder of peft, got one without {CONFIG}")
    config = read_json(adapter / CONFIG)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise CheckpointError(
            f"{adapter / CONFIG}: expected an adapter of type LORA, got {kind!r}; apply it to the base model's "
            "channels: eggs export DIR --permutation base"
        )
    for key in _UNSUPPORTED:
        if config.get(key):
            raise CheckpointError(
                f"{adapter / CONFIG}: expected plain LoRA matrices, got {key}, whose tensors are not permuted here; "
                "apply it to the base model's channels: eggs export DIR --permutation base"
            )
    if (adapter / RECORD).exists():
        raise CheckpointError(
            f"{adapter}: expected an adapter made for a base model, got one that eggs adapt has permuted already "
            f"({RECORD}); pass the original adapter"
        )
    if not (adapter / WEIGHTS).is_file():
        if pickled := sorted(file.name for file in adapter.glob("*.bin")):
            raise CheckpointError(
                f"{adapter}: expected {WEIGHTS}, got only pickled weights ({pickled[0]}), which can run code when "
                "loaded; load it with peft in a trusted place and save_pretrained again"
            )
        raise CheckpointError(f"{adapter}: expected {WEIGHTS}, got no weights; save the adapter with save_pretrained")
    return dict(config)


def _check_base(adapter: Path, made_for: str, folder: Path) -> None:
    """Refuse an adapter that names the pruned folder itself, or another one with folded permutations, as its base."""
    base = Path(made_for).expanduser()
    if not made_for or not base.is_dir():
        return
    if base.resolve() == folder.resolve():
        raise CheckpointError(
            f"{adapter}: expected an adapter made for the base model, got one made for {folder} itself; use it as it is"
        )
    if read_fold(base) is not None:
        raise CheckpointError(
            f"{adapter}: expected an adapter in the base model's channels, got one made for {base}, which has folded "
            "permutations of its own; pass an adapter of the base model"
        )


def _read_tensors(adapter: Path, stored: CheckpointReader) -> Iterator[tuple[str, LoraName, Tensor]]:
    """Yield the adapter's tensors with their names taken apart."""
    if not stored.names:
        raise CheckpointError(f"{adapter / WEIGHTS}: expected LoRA matrices, got no tensors; save the adapter again")
    for name in stored.names:
        if (parts := split_name(name)) is None:
            raise CheckpointError(
                f"{adapter / WEIGHTS}: expected tensors of a LoRA ({', '.join([*PARTS][:2])}, ...), got {name}, which "
                "is not permuted here; apply it to the base model's channels: eggs export DIR --permutation base"
            )
        tensor = stored.read(name)
        if tensor.is_floating_point() and not is_finite(tensor):
            raise CheckpointError(f"{adapter / WEIGHTS}: {name} holds NaN or infinity; train or save the adapter again")
        yield name, parts, tensor


def _fold_tensor(
    adapter: Path, model: _Model, name: str, parts: LoraName, tensor: Tensor, stored: CheckpointReader
) -> Tensor:
    """Check that a tensor belongs to a matrix of the model and has its widths, and permute it."""
    target = _target(adapter, model, parts)
    embedding = is_embedding_part(parts.part) or f"{name.rpartition('.lora_')[0]}.lora_embedding_A" in stored
    if parts.part is None:
        _check_replacement(adapter, model, name, target, tensor)
    else:
        _check_width(adapter, model, name, target, parts.part, tensor, embedding=embedding)
    if model.fold is None:
        return tensor
    try:
        if parts.part is None:
            return model.fold.apply(target, tensor)
        module = target.removesuffix(".weight")
        return fold_lora(model.fold, module, parts.part, tensor, embedding=embedding)
    except (MethodError, ModelError) as error:
        raise CheckpointError(f"{adapter / WEIGHTS}: {name}: {error}") from error


def _target(adapter: Path, model: _Model, parts: LoraName) -> str:
    """Return the tensor of the model that an adapter's tensor changes, by its name in the checkpoint.

    Checkpoints without a head lack the first component of names, and adapters of a model without a head do too.
    """
    module, tensor = parts.module, parts.tensor or "weight"
    head = model.family.blocks.partition(".")[0]
    for candidate in (module, module.partition(".")[2], f"{head}.{module}"):
        name = f"{candidate}.{tensor}"
        if name in model.reader or name in model.family.outside:
            return name
    raise CheckpointError(
        f"{adapter / WEIGHTS}: expected an adapter of the model that {model.folder} was pruned from, got one that "
        f"targets {module}, which that folder does not have as a matrix of its own; pass an adapter of that model"
    )


def _shape(model: _Model, target: str) -> tuple[int, ...]:
    """Return the shape of a tensor of the model; a tied head has that of the embedding."""
    outside = model.family.outside
    tied = (name for name, spaces in outside.items() if spaces == outside.get(target))
    candidates = (target, model.family.stored.get(target, target), *tied)
    return model.reader.shape(next(name for name in candidates if name in model.reader))


def _check_width(
    adapter: Path, model: _Model, name: str, target: str, part: str, tensor: Tensor, *, embedding: bool
) -> None:
    """Refuse a part of a LoRA that has not the matrix's inputs or outputs."""
    shape = _shape(model, target)
    path = target.removesuffix(".weight")
    transposed = any(linear.transposed and path.endswith(f".{linear.path}") for linear in model.family.linears)
    side, axis = PARTS[part]
    if len(shape) != 2:
        raise CheckpointError(
            f"{adapter / WEIGHTS}: expected LoRA matrices of linears and embeddings, got {name} for a tensor of shape "
            f"{shape}; pass an adapter of the model that {model.folder} was pruned from"
        )
    outputs, inputs = shape[::-1] if transposed or embedding else shape
    expected = outputs if side == "outputs" else inputs
    if tensor.shape[axis : axis + 1] != torch.Size([expected]) or tensor.dim() > 2:
        raise CheckpointError(
            f"{adapter / WEIGHTS}: expected {name} with {expected} {side}, as {target} of {model.folder} has, got "
            f"shape {tuple(tensor.shape)}; pass an adapter of the model that the folder was pruned from"
        )


def _check_replacement(adapter: Path, model: _Model, name: str, target: str, tensor: Tensor) -> None:
    """Refuse a tensor that replaces one of the model and has another shape; the number of tokens may differ."""
    shape = _shape(model, target)
    tokens = 1 if target in model.family.outside and len(shape) == 2 else 0
    if tuple(tensor.shape[tokens:]) != shape[tokens:] or tensor.dim() != len(shape):
        raise CheckpointError(
            f"{adapter / WEIGHTS}: expected {name} of shape {shape}, as {target} of {model.folder} has, got "
            f"{tuple(tensor.shape)}; pass an adapter of the model that the folder was pruned from"
        )


def _record(result: AdaptedAdapter) -> Mapping[str, Any]:
    return {"format": 1, **{key: value for key, value in asdict(result).items() if key != "output"}}


def _card(result: AdaptedAdapter) -> str:
    """Render the adapter's `README.md`."""
    base = result.made_for or result.pruned_from
    how = f"permuted by `{ORDERS}` of the folder" if result.folded else "unchanged, as no permutation is folded into it"
    return (
        f"---\nlibrary_name: peft\ntags:\n- lora\n- eggs-ptp\n---\n\n# {Path(result.adapter).name} for "
        f"{Path(result.folder).name}\n\nA LoRA adapter made for `{base}`, {how}, for `{result.folder}`, a model pruned "
        f"from `{result.pruned_from}`. It fits no other folder.\n"
    )
