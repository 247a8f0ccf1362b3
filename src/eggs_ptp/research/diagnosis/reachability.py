"""Which channels of the residual stream are connected to which by paths of nonzero weights, block by block."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eggs_ptp.core.connections import connections
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.family import Family, Linear
from eggs_ptp.models.heads import Heads
from eggs_ptp.research.graph.reachability import compose_reachability, share, with_residual


class ResidualReachability(NamedTuple):
    """Shares of all pairs (channel in, channel out) of the residual stream that are connected by a path.

    Attributes:
        block: Number of the block.
        inside: Within the block, by the inner channel space that paths pass through (such as `heads`, `mlp`), in the
            order in which they run.
        chained: From the input of the first block through all sublayers up to here, skipping none.
        with_residual: The same if residual connections may skip any sublayer.
    """

    block: int
    inside: dict[str, float]
    chained: float | None
    with_residual: float | None


def residual_reachability_of(
    reader: CheckpointReader, family: Family, heads: Heads, blocks: list[str], on_progress: Callable[[], None]
) -> list[ResidualReachability]:
    """Follow the connections of all blocks, reading one matrix at a time.

    A path leads from channel j of the stream to an inner channel k if a matrix that produces k has a nonzero weight
    W_kj, and on to channel i of the stream if the matrix that consumes k has a nonzero W_ik. Norms and activation
    functions do not mix channels; values go to the heads that use them; queries and keys choose between tokens and
    carry nothing.

    Args:
        reader: The pruned model.
        family: Its architecture.
        heads: Its attention heads.
        blocks: Names of all blocks, in the order in which they run.
        on_progress: Called after each block.

    Returns:
        One entry per block. `chained` and `with_residual` are None as long as no block had such paths.
    """
    per_block: list[ResidualReachability] = []
    total: Tensor | None = None
    total_with_residual: Tensor | None = None
    for index, block in enumerate(blocks):
        inside = {}
        for space, reached in _sublayer_reachability(reader, family, heads, block):
            inside[space] = share(reached)
            skippable = with_residual(reached)
            total = reached if total is None else compose_reachability(total, reached)
            if total_with_residual is None:
                total_with_residual = skippable
            else:
                total_with_residual = compose_reachability(total_with_residual, skippable)
        chained = None if total is None else share(total)
        skipping = None if total_with_residual is None else share(total_with_residual)
        per_block.append(ResidualReachability(index, inside, chained, skipping))
        on_progress()
    return per_block


def _sublayer_reachability(
    reader: CheckpointReader, family: Family, heads: Heads, block: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield inner channel spaces of a block, and which channels of the stream paths through them connect."""
    linears = [linear for linear in family.linears if f"{block}.{linear.path}.weight" in reader]

    def mask(linear: Linear) -> Tensor:
        name = f"{block}.{linear.path}.weight"
        kept = connections(reader.read(name), f"{reader.folder}: {name}")
        return kept.T if linear.transposed else kept

    for consumer in linears:
        space = family.spaces[consumer.input_activation]
        producers = [linear for linear in linears if linear.output_space == space]
        writes_to_stream = consumer.output_space is not None and family.scope[consumer.output_space] == "model"
        if not writes_to_stream or family.scope[space] == "model" or not producers:
            continue
        into = torch.stack([_channel_rows(mask(linear), linear, heads) for linear in producers]).any(0)
        if family.scope[space] == "head":
            by_value_head = into.view(heads.value, heads.width, -1)
            into = by_value_head.repeat_interleave(heads.query // heads.value, 0).flatten(0, 1)
        yield space, compose_reachability(into, mask(consumer))


def _channel_rows(mask: Tensor, linear: Linear, heads: Heads) -> Tensor:
    """Reduce the mask of a matrix to one row per channel that it produces, (channels, in)."""
    if linear.rows == "pair":
        first, second = mask.chunk(2)
        return first | second
    if linear.rows == "qkv":
        return mask[-heads.value * heads.width :]
    if linear.rows == "qkv_by_head":
        return mask.view(heads.value, -1, mask.shape[1])[:, -heads.width :].flatten(0, 1)
    return mask
