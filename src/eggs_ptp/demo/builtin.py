"""The built-in model: its name, its folder inside the package, and its texts."""

from importlib.resources import files
from pathlib import Path

from eggs_ptp.demo.corpus import Split, documents

DEMO = "demo"


def model_folder() -> Path:
    """Return the folder of the built-in model."""
    return Path(str(files("eggs_ptp.demo") / "model"))


def builtin_documents(split: Split) -> list[str]:
    """Return the documents of one split of the built-in model's text, the documentation of the running Python.

    Raises:
        CalibrationError: This Python was installed without its documentation.
    """
    return documents(split)
