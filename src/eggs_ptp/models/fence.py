"""The fence of a model's folder, which may come from anyone: no file that is read through it lies elsewhere."""

from pathlib import Path

from eggs_ptp.errors import ModelError
from eggs_ptp.models.json_file import read_json

TEMPLATES = "additional_chat_templates"
_DEEPER = ("eggs", TEMPLATES)  # folders in the folder that files are read from


def check_links(folder: Path) -> None:
    """Refuse links that lead out of the folder: what they show would be read, and copied into the output; and pipes.

    A snapshot of the hub's cache consists of links to the blobs beside it, `../../blobs`; these are followed.

    Raises:
        ModelError: a link that leads elsewhere, or what is neither file nor folder; names it.
    """
    for place in (folder, *(folder / name for name in _DEEPER)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            deep = path.is_symlink() and path.is_dir() and path.name not in _DEEPER
            if (place.is_symlink() or path.is_symlink()) and not deep:
                check_inside(path, folder)
            if path.exists() and not path.is_file() and not path.is_dir():
                raise ModelError(f"{path}: neither a file nor a folder; who reads it would wait for ever")


def check_inside(path: Path, folder: Path) -> None:
    """Refuse one file that does not lie in the folder, nor among the blobs of the hub's cache that the folder is in.

    Raises:
        ModelError: it lies elsewhere.
    """
    try:
        own, real = folder.resolve(), path.resolve()
        ring = real.is_symlink()  # which Python 3.13 gives back as it is, where older ones raise
    except (OSError, RuntimeError):
        ring = True
    if ring:
        raise ModelError(f"{path}: a link that leads nowhere")
    allowed = [own, *([own.parent.parent / "blobs"] if own.parent.name == "snapshots" else [])]
    if not any(real.is_relative_to(place) for place in allowed):
        raise ModelError(
            f"{path}: a link to {real}, out of the model's folder; copy the file there if it belongs to the model"
        )


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer_config.json that names files elsewhere, as `"vocab_file": "../secret"` does.

    Raises:
        ModelError: it does, or is no object of JSON.
    """
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected an object, got {type(found).__name__}")
    for key, value in found.items():
        for name in value if isinstance(value, list) else [value]:
            if key.endswith(("_file", "_files")) and isinstance(name, str) and not is_plain(name):
                raise ModelError(f"{path}: {key} is {name!r}; a tokenizer's files must lie in the folder itself")


def is_plain(name: str) -> bool:
    """Whether it is the name of a file in the folder itself, and of no other."""
    return Path(name).name == name and name not in ("", ".", "..") and name.isprintable() and "\\" not in name
