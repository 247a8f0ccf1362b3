"""The built-in model by name: its folder inside the package, and its texts."""

from importlib.resources import files
from pathlib import Path

from eggs_ptp.demo.corpus import Split, documents

DEMO = "demo"


def model_folder() -> Path:
    """Folder of the built-in model."""
    return Path(str(files("eggs_ptp.demo") / "model"))


def builtin_documents(split: Split) -> list[str]:
    """Text for the built-in model, from the running Python's own documentation.

    Raises:
        CalibrationError: this Python came without its documentation.
    """
    return documents(split)
