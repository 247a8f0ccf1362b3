"""A model's folder: found locally or on the hub, and refused early when it cannot be pruned."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eggs_ptp.errors import ModelError
from eggs_ptp.models.fence import check_links, check_tokenizer
from eggs_ptp.models.json_file import read_json
from eggs_ptp.sparse.contents import is_ours

_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")
_FETCHED = ("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*")


def find_folder(model: str, revision: str | None = None) -> Path:
    """Return the local folder of `model`: a path, or a hub name that is fetched (or already cached).

    Raises:
        ModelError: neither a folder nor a hub name that can be reached.
    """
    local = Path(model).expanduser()
    if local.is_dir():
        return local
    if local.exists():
        raise ModelError(f"{model}: expected a model folder with config.json and safetensors, found a file")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"{model}: no such folder, and not a hub name such as Qwen/Qwen3-0.6B")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(_FETCHED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{model}: no such folder, and the hub does not give it ({type(error).__name__}: {reason}); "
            "pass a local folder, check the name, or check the network and HF_HUB_OFFLINE"
        ) from error


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is a snapshot of; None for any other folder."""
    place = folder.resolve()
    return place.name if place.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", place.name) else None


def read_config(folder: Path, *, packed: bool = False) -> dict[str, Any]:
    """Read `config.json` as plain data and refuse folders that hold no dense safetensors model, or `packed` one.

    Raises:
        ModelError: adapter folder, no or broken config, pickled weights only, no weights, quantised weights.
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
    check_links(folder)
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path}: expected an object with the key model_type")
    check_tokenizer(folder)
    if not any(folder.glob("*.safetensors")):
        found = [name for name in _PICKLED if (folder / name).exists()] or sorted(
            file.name for file in folder.glob("*.bin")
        )
        if found:
            raise ModelError(
                f"{folder}: only pickled weights ({found[0]}), which can run code when loaded; convert them to "
                "safetensors in a trusted place (load with transformers, then save_pretrained) and prune that folder"
            )
        raise ModelError(f"{folder}: config.json is there, but no *.safetensors weights")
    if quantised := config.get("quantization_config"):
        _refuse_quantised(folder, quantised, packed)
    return config


def stored_names(folder: Path) -> set[str]:
    """The names of all tensors of a folder, from its index or the header of its one file; none where both are broken.

    Whoever opens the files says what is wrong with them.
    """
    index = folder / "model.safetensors.index.json"
    try:
        if index.exists():
            return set(read_json(index)["weight_map"])
        with safe_open(str(folder / "model.safetensors"), framework="pt") as tensors:
            return set(tensors.keys())
    except (ModelError, OSError, SafetensorError, KeyError, TypeError):
        return set()


def _refuse_quantised(folder: Path, quantised: object, packed: bool) -> None:
    if not is_ours(quantised):
        kind = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise ModelError(
            f"{folder}: already quantised ({kind}); prune the original half- or single-precision model "
            "and quantise the result"
        )
    if not packed:
        raise ModelError(f"{folder}: a packed folder; make it dense first: eggs export {folder} --format dense -o DIR")
