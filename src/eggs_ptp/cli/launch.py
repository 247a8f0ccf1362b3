"""Launch: whether torchrun has started this process among others, and the command that does so again."""

import os
from collections.abc import Sequence


def processes() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    rank, count = (os.environ.get(name, given) for name, given in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return (int(rank), int(count)) if rank.isdigit() and count.isdigit() else (0, 1)


def command(words: Sequence[str]) -> list[str]:
    """The words of the shell's command, given those of `eggs`; of torchrun's options only the one that all need."""
    if processes()[1] == 1:
        return list(words)
    each = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return ["torchrun", "--nproc-per-node", each, "-m", "eggs_ptp", *words[1:]]
