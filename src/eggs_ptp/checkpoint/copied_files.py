"""Which files of a model's folder belong to a model that is pruned from it."""

from pathlib import Path, PurePosixPath

from eggs_ptp.core.json_file import read_json
from eggs_ptp.errors import ModelError
from eggs_ptp.models.folder import is_notice
from eggs_ptp.models.path_validation import check_inside

_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
_MODULES = "modules.json"
_OF_MODULES = (_MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")


def files_to_copy(source: Path) -> list[Path]:
    """Return the config, generation config, tokenizer and licence files of a folder, in order.

    Indices of weights and files of adapters are left out, as they would change what loads. `modules.json` of
    sentence-transformers comes with the folders that it names, or is left out where one of these has weights of its
    own, which read channels of the model that may be permuted.

    Args:
        source: The model's folder.

    Raises:
        ModelError: A file in a folder that `modules.json` names is a link that leads out of the model's folder.
    """
    files = [file for file in source.iterdir() if file.is_file() and _belongs(file.name)]
    modules = _module_files(source)
    if modules is None:
        files = [file for file in files if file.name not in _OF_MODULES]
    return sorted([*files, *(modules or [])])


def _belongs(name: str) -> bool:
    """Whether a file is copied by its name alone."""
    changes_what_loads = name == "eggs.json" or name.startswith("adapter_") or _is_index(name)
    return not changes_what_loads and (name.endswith(_SUFFIXES) or is_notice(name))


def _is_index(name: str) -> bool:
    """Whether a file is an index of weights, also of a variant (`model.safetensors.index.fp16.json`)."""
    parts = name.split(".")
    return parts[-1] == "json" and "index" in parts[1:-1]


def _module_files(source: Path) -> list[Path] | None:
    """Return the files in the folders of `modules.json`; None if they cannot accompany the model."""
    if not (source / _MODULES).is_file():
        return []
    try:
        modules = read_json(source / _MODULES)
    except ModelError:
        return None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        return None
    files: list[Path] = []
    for name in (module.get("path", "") for module in modules):
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return None
        folder = source / name
        if folder == source:
            continue
        if not folder.is_dir():
            return None
        files += [file for file in folder.rglob("*") if file.is_file()]
    if any(file.suffix not in (".json", ".txt", ".md") for file in files):
        return None
    for file in files:
        check_inside(file, source)
    return files
