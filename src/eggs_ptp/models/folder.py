"""Model folders: found locally or downloaded from the hub, and refused early if they cannot be pruned."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eggs_ptp.core.json_file import read_json
from eggs_ptp.errors import ModelError
from eggs_ptp.models.path_validation import check_symlinks, check_tokenizer
from eggs_ptp.sparse.packed_config import is_packed_block

COMPRESSED_TENSORS = "compressed-tensors"  # the method that llm-compressor writes into a config
_PICKLED_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_NOTICES = ("licen", "notice", "policy", "copying", "copyright")  # parts of the names of licences and their company
_HUB_PATTERNS = (
    *("*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py", "README.md"),
    *("*" + "".join(f"[{letter.upper()}{letter}]" for letter in notice) + "*" for notice in _NOTICES),
)
_CARD_KEYS = ("license", "license_name", "license_link", "language", "datasets", "base_model")
_PRUNE_ORIGINAL = "GGUF weights are for llama.cpp; prune the original Hugging Face folder and convert the result"


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
        if local.suffix.lower() == ".gguf":
            raise ModelError(
                f"{model}: expected a folder with config.json and safetensors, got a file; {_PRUNE_ORIGINAL}"
            )
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


def read_config(folder: Path, *, packed: bool = False, quantised: bool = False) -> dict[str, Any]:
    """Return `config.json` as plain data, if the folder holds a model that can be pruned.

    Args:
        folder: The folder.
        packed: Whether a packed model is accepted, too.
        quantised: Whether one in a format of compressed-tensors is accepted, too.

    Raises:
        ModelError: The folder holds an adapter, no config or a broken one, a config that names a weights file, no
            weights, only pickled, GGUF or quantised ones, or only a variant; or one of its files is a link that leads
            out of it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder")
    for name in ("quantize_config.json", "quant_config.json"):
        if (folder / name).exists():
            raise ModelError(f"{folder}: already quantised ({name}); prune the original model and quantise the result")
    path = folder / "config.json"
    _refuse_adapter(folder)
    if not path.is_file():
        if any(folder.glob("*.[gG][gG][uU][fF]")):
            raise ModelError(f"{folder}: expected config.json and safetensors, got only GGUF files; {_PRUNE_ORIGINAL}")
        raise ModelError(f"{folder}: expected a Hugging Face model folder, but it has no config.json")
    check_symlinks(folder)
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path}: expected an object with the key model_type")
    check_tokenizer(folder)
    if (named := config.get("transformers_weights")) is not None:
        raise ModelError(
            f"{path}: transformers_weights names the weights {named!r}, expected {SINGLE_FILE} or {INDEX}; load the "
            "model with transformers, save_pretrained to another folder without that key, and prune that folder"
        )
    if not (folder / SINGLE_FILE).exists() and not (folder / INDEX).exists():
        _refuse_other_weights(folder)
    if quantisation_config := config.get("quantization_config"):
        _refuse_quantised(folder, quantisation_config, packed, quantised)
    return config


def weights_index(folder: Path) -> Path | None:
    """Return the index of a folder's weights; None if they are a single file.

    The choice is that of `from_pretrained`: where there are both, as after two uploads, the single file is the model.

    Args:
        folder: The model's folder.
    """
    index = folder / INDEX
    return index if index.exists() and not (folder / SINGLE_FILE).is_file() else None


def is_notice(name: str) -> bool:
    """Whether a file is a licence, or what has to accompany one: notices, policies of use, copyrights.

    Args:
        name: The file's name, in any spelling: `LICENSE`, `license.md`, `USE_POLICY.md`, `Third-Party-Notices`.
    """
    path = Path(name.lower())
    is_text = path.suffix in ("", ".md", ".txt", ".rst", ".pdf", ".html")
    is_text = is_text or path.name.startswith(("licen", "notice", "copying"))
    return is_text and any(notice in path.name for notice in _NOTICES)


def card_metadata(folder: Path) -> dict[str, Any]:
    """Return what a folder's model card says that is also true of a model pruned from it.

    Args:
        folder: The model's folder.

    Returns:
        Licence, languages, data sets and base model; empty without a card, or with one that cannot be read.
    """
    import yaml
    from huggingface_hub.repocard import metadata_load

    path = folder / "README.md"
    try:
        metadata = metadata_load(path) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(metadata, dict):
        return {}
    carried = {key: metadata[key] for key in _CARD_KEYS if metadata.get(key) not in (None, "", [])}
    if "language" in carried:  # YAML reads the code of Norwegian, no, as false
        languages = carried["language"] if isinstance(carried["language"], list) else [carried["language"]]
        carried["language"] = ["no" if language is False else language for language in languages]
    return carried


def _refuse_adapter(folder: Path) -> None:
    """Refuse an adapter, alone or beside full weights, where transformers would apply it on loading."""
    if not (folder / "adapter_config.json").exists():
        return
    merge = "merge it into its model first (peft: merge_and_unload, then save_pretrained) and prune the merged folder"
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder}: this is an adapter (adapter_config.json), not a model; {merge}")
    raise ModelError(
        f"{folder}: expected a model alone, got adapter_config.json beside it, an adapter that transformers applies "
        f"when it loads this folder; {merge}, or move the adapter's files elsewhere to prune the model without it"
    )


def _refuse_other_weights(folder: Path) -> None:
    """Say which weights a folder has that has neither a single safetensors file nor an index."""
    if files := sorted(file.name for file in folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: expected {SINGLE_FILE} or {INDEX}, got {', '.join(files[:3])}; load it with transformers "
            "(variant=...), save_pretrained to another folder, and prune that one"
        )
    if any(folder.glob("*.[gG][gG][uU][fF]")):
        raise ModelError(f"{folder}: expected safetensors weights, got only GGUF files; {_PRUNE_ORIGINAL}")
    pickled = [name for name in _PICKLED_NAMES if (folder / name).exists()]
    pickled = pickled or sorted(file.name for file in folder.glob("*.bin"))
    if pickled:
        raise ModelError(
            f"{folder}: only pickled weights ({pickled[0]}), which can run code when loaded; convert them to "
            "safetensors in a trusted place (load with transformers, then save_pretrained) and prune that folder"
        )
    raise ModelError(f"{folder}: config.json is there, but no *.safetensors weights")


def stored_names(folder: Path) -> set[str]:
    """Return the names of all tensors of a folder, from its index or the header of its only file.

    The result is empty if these cannot be read; the error is raised when the tensors are opened.
    """
    try:
        if index := weights_index(folder):
            return set(read_json(index)["weight_map"])
        with safe_open(str(folder / SINGLE_FILE), framework="pt") as tensors:
            return set(tensors.keys())
    except (ModelError, OSError, SafetensorError, KeyError, TypeError):
        return set()


def _refuse_quantised(folder: Path, quantisation_config: object, packed: bool, quantised: bool) -> None:
    """Refuse weights that another program has quantised, and packed ones unless these are accepted."""
    if not is_packed_block(quantisation_config):
        method = "unknown"
        if isinstance(quantisation_config, dict):
            method = quantisation_config.get("quant_method", "unknown")
        if quantised and method == COMPRESSED_TENSORS:
            return
        raise ModelError(
            f"{folder}: already quantised ({method}); prune the original half- or single-precision model "
            "and quantise the result"
        )
    if not packed:
        raise ModelError(f"{folder}: a packed folder; make it dense first: eggs export {folder} --format dense -o DIR")
