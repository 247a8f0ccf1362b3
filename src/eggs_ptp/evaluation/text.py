"""Evaluation texts: local files, and WikiText-2 and C4 as pruning papers use them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eggs_ptp.calibration.documents import read_text_file
from eggs_ptp.calibration.hub import C4, hub_documents
from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.window import Protocol

WIKITEXT2: Final = "Salesforce/wikitext:wikitext-2-raw-v1"
TEXT_NAMES: Final = ("wikitext2", "c4")
_WIKITEXT_FILE = re.compile(r"wiki\.(train|valid|test)\.(raw|tokens)(\.gz)?", re.IGNORECASE)
_C4_DOCUMENTS = 1100
_C4_WINDOWS = 256


@dataclass(frozen=True)
class EvaluationText:
    """Documents, and how perplexity is measured on them by default.

    Attributes:
        source: Describes the text, for records.
        documents: The documents.
        joiner: Joins the documents for the protocol "packed".
        windows: Most windows to score; None for all.
        protocol: The default protocol.
    """

    source: str
    documents: Sequence[str]
    joiner: str = "\n\n"
    windows: int | None = None
    protocol: Protocol = "packed"


def load_text(name: str | None, *, field: str = "text", tokenizer: Tokenizer | None = None) -> EvaluationText:
    """Load a text by name from the hub, or from a file.

    `wikitext2` is the raw test split of WikiText-2, its rows joined by blank lines; a local copy called wiki.test.raw
    or similar is read as the same rows. `c4` is the first 1100 documents of the first validation file, joined by
    spaces, of which 256 windows are scored. Any other file of rows (JSON lines, a JSON list, Parquet) is evaluated
    document by document by default, whatever its name.

    Args:
        name: "wikitext2" (also None), "c4", or the path of a file.
        field: Key of the text in the rows of a file.
        tokenizer: Renders chats in a file, with its chat template.

    Raises:
        CalibrationError: The file does not exist, or the data set cannot be reached.

    Source: `lib/data.py` and `lib/eval.py` of SparseGPT and Wanda (arXiv:2306.11695).
    """
    name = name or "wikitext2"
    if name == "wikitext2":
        rows = hub_documents(WIKITEXT2, download=True, split="test", flag="--text")
        return EvaluationText(f"{WIKITEXT2}, test", list(rows))
    if name == "c4":
        documents = hub_documents(C4, download=False, split="validation", flag="--text")
        source = f"{C4}, validation, first {_C4_DOCUMENTS} documents"
        return EvaluationText(source, documents[:_C4_DOCUMENTS], " ", _C4_WINDOWS)
    path = Path(name)
    if not path.exists() and not path.suffix:
        raise CalibrationError(
            f"there is no file {name}; give a file, or one of the texts from the hub: {', '.join(TEXT_NAMES)}"
        )
    documents, has_rows = read_text_file(path, field=field, tokenizer=tokenizer)
    if not has_rows and is_wikitext_file(name):
        lines = documents[0].removesuffix("\n").split("\n")
        rows = [f"{line}\n" if line.strip() else "" for line in lines]
        return EvaluationText(f"{name}, {len(rows)} rows", rows)
    return EvaluationText(name, documents, protocol="documents" if has_rows else "packed")


def is_wikitext_file(name: str, split: str | None = None) -> bool:
    """Return whether a file is called as those of WikiText-2 are, compressed or not.

    Args:
        name: The file.
        split: "train", "valid" or "test"; None for any.
    """
    match = _WIKITEXT_FILE.fullmatch(Path(name).name)
    return match is not None and split in (None, match[1].lower())


find_text = load_text
"""Former name of `load_text`."""
