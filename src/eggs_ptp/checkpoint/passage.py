"""Passage: from which channels of the residual stream paths lead to which, block by block."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eggs_ptp.engine.shards import Shards
from eggs_ptp.graph.connections import connections
from eggs_ptp.graph.reach import beside, share, through
from eggs_ptp.models.family import Family, Linear
from eggs_ptp.models.heads import Heads


class Reach(NamedTuple):
    """Shares of all pairs (channel in, channel out) of the residual stream that paths join."""

    block: int
    inside: dict[str, float]  # by what the path passes in the block, such as `heads` and `mlp`, in the order they run
    chained: float | None  # from before the first block, through every one of these, none skipped
    with_residual: float | None  # the same where residual connections may skip any


def reach_of(shards: Shards, family: Family, heads: Heads, blocks: list[str], told: Callable[[], None]) -> list[Reach]:
    """Follow the connections of all blocks, by their names in order; one matrix is read at a time.

    A path goes from a channel j of the stream to a channel k inside the block if one of the matrices that write k has
    a weight W_kj that is not zero, and on to channel i of the stream if W_ik of the matrix that reads k is not. Norms
    and activation functions leave channels where they are, values go to the heads that read them, queries and keys
    decide between tokens and carry nothing. `chained` and `with_residual` are None once a block has no such passage.
    """
    found: list[Reach] = []
    chained: Tensor | None = None
    joined: Tensor | None = None
    for index, block in enumerate(blocks):
        inside = {}
        for space, passage in _passages(shards, family, heads, block):
            inside[space] = share(passage)
            chained = passage if chained is None else through(chained, passage)
            joined = beside(passage) if joined is None else through(joined, beside(passage))
        ends = [None if each is None else share(each) for each in (chained, joined)]
        found.append(Reach(index, inside, *ends))
        told()
    return found


def _passages(shards: Shards, family: Family, heads: Heads, block: str) -> Iterator[tuple[str, Tensor]]:
    linears = [linear for linear in family.linears if f"{block}.{linear.path}.weight" in shards]

    def mask(linear: Linear) -> Tensor:
        name = f"{block}.{linear.path}.weight"
        kept = connections(shards.read(name), f"{shards.folder}: {name}")
        return kept.T if linear.transposed else kept

    for reader in linears:
        space = family.spaces[reader.reads]
        writers = [linear for linear in linears if linear.writes == space]
        if reader.writes is None or family.reach[reader.writes] != "model" or family.reach[space] == "model":
            continue
        if writers:
            into = torch.stack([_channels(mask(linear), linear, heads) for linear in writers]).any(0)
            if family.reach[space] == "head":
                shared = into.view(heads.value, heads.width, -1)
                into = shared.repeat_interleave(heads.query // heads.value, 0).flatten(0, 1)
            yield space, through(into, mask(reader))


def _channels(mask: Tensor, linear: Linear, heads: Heads) -> Tensor:
    """The connections of the channels that a matrix writes, (channels, in), out of all its rows."""
    if linear.rows == "pair":
        first, second = mask.chunk(2)
        return first | second
    if linear.rows == "qkv":
        return mask[-heads.value * heads.width :]
    if linear.rows == "qkv_by_head":
        return mask.view(heads.value, -1, mask.shape[1])[:, -heads.width :].flatten(0, 1)
    return mask
