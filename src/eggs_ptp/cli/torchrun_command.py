"""Whether torchrun has started this process, and the shell command that starts it again."""

import os
from collections.abc import Sequence


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) outside of torchrun."""
    rank = os.environ.get("RANK", "0")
    world_size = os.environ.get("WORLD_SIZE", "1")
    return (int(rank), int(world_size)) if rank.isdigit() and world_size.isdigit() else (0, 1)


def shell_command(arguments: Sequence[str]) -> list[str]:
    """Return the shell command that runs the same verb again, with torchrun where several processes run.

    Args:
        arguments: `eggs` and its arguments. Of torchrun's options only `--nproc-per-node` can be restored.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return list(arguments)
    local_world_size = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return ["torchrun", "--nproc-per-node", local_world_size, "-m", "eggs_ptp", *arguments[1:]]
