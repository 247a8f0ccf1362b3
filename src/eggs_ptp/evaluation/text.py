"""Evaluation texts by name or file, and how the field joins their documents."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eggs_ptp.calibration.documents import read_documents
from eggs_ptp.calibration.hub import C4, hub_documents
from eggs_ptp.calibration.tokens import Tokenizer
from eggs_ptp.errors import CalibrationError
from eggs_ptp.evaluation.window import Protocol

WIKITEXT2: Final = "Salesforce/wikitext:wikitext-2-raw-v1"
NAMED: Final = ("wikitext2", "c4")
_ROWS = re.compile(r"wiki\.(train|valid|test)\.(raw|tokens)")
_C4_DOCUMENTS, _C4_WINDOWS = 1100, 256


@dataclass(frozen=True)
class Text:
    """Documents, and what a packed measurement joins them with and takes of them at most."""

    source: str
    documents: Sequence[str]
    joiner: str = "\n\n"
    windows: int | None = None  # where the field's protocol stops
    protocol: Protocol = "packed"  # unless asked otherwise


def find_text(name: str | None, *, field: str = "text", tokenizer: Tokenizer | None = None) -> Text:
    """The text `wikitext2` (also None) or `c4` of the hub, or a file's.

    `wikitext2` is WikiText-2's raw test split, its rows joined with a blank line; a local copy named wiki.test.raw or
    the like is read as the same rows. `c4` is the first 1100 documents of the first validation file joined with a
    blank, of which 256 windows count.

    Raises:
        CalibrationError: no such file, or a data set that cannot be reached.

    Source: `lib/data.py` and `lib/eval.py` of SparseGPT and Wanda (arXiv:2306.11695).
    """
    name = name or "wikitext2"
    if name == "wikitext2":
        rows = hub_documents(WIKITEXT2, whole=True, split="test", flag="--text")
        return Text(f"{WIKITEXT2}, test", list(rows))
    if name == "c4":
        stream = hub_documents(C4, whole=False, split="validation", flag="--text")
        return Text(f"{C4}, validation, first {_C4_DOCUMENTS} documents", stream[:_C4_DOCUMENTS], " ", _C4_WINDOWS)
    path = Path(name)
    if not path.exists() and not path.suffix:
        raise CalibrationError(f"there is no file {name}; texts that have a name are {', '.join(NAMED)} (from the hub)")
    documents = read_documents(path, field=field, tokenizer=tokenizer)
    if _ROWS.fullmatch(path.name):
        rows = [f"{line}\n" if line.strip() else "" for line in documents[0].removesuffix("\n").split("\n")]
        return Text(f"{name}, {len(rows)} rows", rows)
    return Text(name, documents, protocol="documents" if name.endswith(".jsonl") else "packed")
