"""Sums of several processes added up in a fixed order, so that the result does not depend on their number."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eggs_ptp.core.stats import Moments

_BUCKET = 8 * 1024**2  # bytes sent at once, so that one rank adds while others send

# A bucket: tensors of one type that are sent together, each with the pieces of the following chunks.
Bucket = list[tuple[Tensor, list[Tensor]]]


def ordered_all_reduce(sums: Iterable[tuple[Moments, Sequence[Moments]]], rank: int, world_size: int) -> None:
    """Add up the reduction chunks of all ranks, in place; see `ProcessGroup.all_reduce_moments`.

    Each rank adds its chunks to the sum of the ranks before it, bucket by bucket; the last rank has the total and
    broadcasts it. As many bytes are sent as by a ring all-reduce, but additions happen in the order of the chunks.
    """
    buckets = list(_buckets(sums))
    with torch.inference_mode():
        for bucket in buckets:
            total = _flatten(bucket)
            if rank:
                previous = torch.empty_like(total)
                dist.recv(previous, rank - 1)
                total += previous
            parts = total.split([tensor.numel() for tensor, _ in bucket])
            for (_, following), part in zip(bucket, parts, strict=True):
                for chunk in following:
                    part += chunk.reshape(-1)
            if rank + 1 < world_size:
                dist.send(total, rank + 1)
            _unflatten(total, bucket)
        for bucket in buckets:
            total = _flatten(bucket)
            dist.broadcast(total, world_size - 1)
            _unflatten(total, bucket)


def _buckets(sums: Iterable[tuple[Moments, Sequence[Moments]]]) -> Iterator[Bucket]:
    bucket: Bucket = []
    for total, chunks in sums:
        for tensor, *following in zip(total.pieces(), *(chunk.pieces() for chunk in chunks), strict=True):
            if bucket and (bucket[0][0].dtype != tensor.dtype or sum(held.nbytes for held, _ in bucket) >= _BUCKET):
                yield bucket
                bucket = []
            bucket.append((tensor, following))
    if bucket:
        yield bucket


def _flatten(bucket: Sequence[tuple[Tensor, Any]]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor, _ in bucket])


def _unflatten(total: Tensor, bucket: Sequence[tuple[Tensor, Any]]) -> None:
    parts = total.split([tensor.numel() for tensor, _ in bucket])
    for (tensor, _), part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
