"""What the engine tells whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """`stage`: work of that name begins; `matrix`: `record` is finished; `block`: that many blocks are finished.

    `remark`: `stage` is a sentence that the user should read.
    """

    kind: str
    block: int
    blocks: int
    stage: str = ""
    record: dict[str, Any] | None = None


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""
