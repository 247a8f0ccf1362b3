"""Progress events of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One step of progress.

    Args:
        kind: "stage": the stage of that name begins; "matrix": a matrix is pruned, `record` is its record; "block":
            `block` blocks are finished; "remark": `stage` is a sentence for the user.
        block: Index of the block, or number of finished blocks.
        blocks: Number of all blocks.
        stage: Name of the stage, or the remark.
        record: Record of the matrix.
    """

    kind: str
    block: int
    blocks: int
    stage: str = ""
    record: dict[str, Any] | None = None


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore an event."""
