"""Path validation: a model's folder may come from anyone, so no file outside of it is read through it."""

from pathlib import Path

from eggs_ptp.core.json_file import read_json
from eggs_ptp.errors import ModelError

TEMPLATES = "additional_chat_templates"
_SUBFOLDERS = ("eggs", TEMPLATES)  # subfolders that files are read from


def check_symlinks(folder: Path) -> None:
    """Refuse links that lead out of a folder, as their targets would be read and copied into the output; and pipes.

    A snapshot in the hub's cache consists of links to the blobs of the same model, `../../blobs`; these are allowed.

    Raises:
        ModelError: A link leads out of the folder, or something is neither a file nor a folder; names it.
    """
    for directory in (folder, *(folder / name for name in _SUBFOLDERS)):
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            # Nothing is read from other linked folders.
            is_ignored = path.is_symlink() and path.is_dir() and path.name not in _SUBFOLDERS
            if (directory.is_symlink() or path.is_symlink()) and not is_ignored:
                check_inside(path, folder)
            if path.exists() and not path.is_file() and not path.is_dir():
                raise ModelError(f"{path}: neither a file nor a folder; reading it would never end")


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a file that is neither in the folder nor among the blobs of the hub's cache that the folder is in.

    Args:
        path: The file.
        folder: The folder.

    Raises:
        ModelError: The file is elsewhere.
    """
    try:
        real_folder = folder.resolve()
        target = path.resolve()
        is_loop = target.is_symlink()  # Python 3.13 returns a link in a loop as it is; older versions raise
    except (OSError, RuntimeError):
        is_loop = True
    if is_loop:
        raise ModelError(f"{path}: a link that leads nowhere")
    allowed = [real_folder]
    if real_folder.parent.name == "snapshots":
        allowed.append(real_folder.parent.parent / "blobs")
    if not any(target.is_relative_to(directory) for directory in allowed):
        raise ModelError(
            f"{path}: a link to {target}, out of the model's folder; copy the file there if it belongs to the model"
        )


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer_config.json that names files outside the folder, as `"vocab_file": "../secret"` does.

    Raises:
        ModelError: It names such a file, or is not a JSON object.
    """
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected an object, got {type(config).__name__}")
    for key, value in config.items():
        for name in value if isinstance(value, list) else [value]:
            if key.endswith(("_file", "_files")) and isinstance(name, str) and not is_plain(name):
                raise ModelError(f"{path}: {key} is {name!r}; a tokenizer's files must be in the folder itself")


def is_plain(name: str) -> bool:
    """Return whether a name can only be that of a file in the folder itself."""
    return Path(name).name == name and name not in ("", ".", "..") and name.isprintable() and "\\" not in name
