"""Model folders: found locally or downloaded from the hub, and refused early if they cannot be pruned."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eggs_ptp.core.json_file import read_json
from eggs_ptp.errors import ModelError
from eggs_ptp.models.path_validation import check_symlinks, check_tokenizer
from eggs_ptp.sparse.packed_config import is_packed_block

_PICKLED_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*")


def find_folder(model: str, revision: str | None = None) -> Path:
    """Return the local folder of a model, downloaded from the hub if need be.

    Args:
        model: A folder, or the name of a model on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        ModelError: It is neither a folder nor a hub name that can be reached.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise ModelError(f"{model}: expected a model folder with config.json and safetensors, got a file")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"{model}: no such folder, and not a hub name such as Qwen/Qwen3-0.6B")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(_HUB_PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{model}: no such folder, and it cannot be downloaded from the hub ({type(error).__name__}: {reason}); "
            "pass a local folder, check the name, or check the network and HF_HUB_OFFLINE"
        ) from error


def commit_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache; None for any other folder."""
    path = folder.resolve()
    return path.name if path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name) else None


def read_config(folder: Path, *, packed: bool = False) -> dict[str, Any]:
    """Return `config.json` as plain data, if the folder holds a model that can be pruned.

    Args:
        folder: The folder.
        packed: Whether a packed model is accepted, too.

    Raises:
        ModelError: The folder holds an adapter, no config or a broken one, no weights, only pickled ones, or quantised
            ones; or one of its files is a link that leads out of it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder")
    for name in ("quantize_config.json", "quant_config.json"):
        if (folder / name).exists():
            raise ModelError(f"{folder}: already quantised ({name}); prune the original model and quantise the result")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(
            f"{folder}: this is an adapter (adapter_config.json), not a model; merge it into its model first "
            "(peft: merge_and_unload, then save_pretrained) and prune the merged folder"
        )
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: expected a Hugging Face model folder, but it has no config.json")
    check_symlinks(folder)
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path}: expected an object with the key model_type")
    check_tokenizer(folder)
    if not any(folder.glob("*.safetensors")):
        pickled = [name for name in _PICKLED_NAMES if (folder / name).exists()]
        pickled = pickled or sorted(file.name for file in folder.glob("*.bin"))
        if pickled:
            raise ModelError(
                f"{folder}: only pickled weights ({pickled[0]}), which can run code when loaded; convert them to "
                "safetensors in a trusted place (load with transformers, then save_pretrained) and prune that folder"
            )
        raise ModelError(f"{folder}: config.json is there, but no *.safetensors weights")
    if quantisation_config := config.get("quantization_config"):
        _refuse_quantised(folder, quantisation_config, packed)
    return config


def stored_names(folder: Path) -> set[str]:
    """Return the names of all tensors of a folder, from its index or the header of its only file.

    The result is empty if these cannot be read; the error is raised when the tensors are opened.
    """
    index = folder / "model.safetensors.index.json"
    try:
        if index.exists():
            return set(read_json(index)["weight_map"])
        with safe_open(str(folder / "model.safetensors"), framework="pt") as tensors:
            return set(tensors.keys())
    except (ModelError, OSError, SafetensorError, KeyError, TypeError):
        return set()


def _refuse_quantised(folder: Path, quantisation_config: object, packed: bool) -> None:
    """Refuse weights that another program has quantised, and packed ones unless these are accepted."""
    if not is_packed_block(quantisation_config):
        method = "unknown"
        if isinstance(quantisation_config, dict):
            method = quantisation_config.get("quant_method", "unknown")
        raise ModelError(
            f"{folder}: already quantised ({method}); prune the original half- or single-precision model "
            "and quantise the result"
        )
    if not packed:
        raise ModelError(f"{folder}: a packed folder; make it dense first: eggs export {folder} --format dense -o DIR")
