"""Linear-assignment refinement of a dealt channel order."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.slabs import ALONE, Slabs

_AT_ONCE = 2**18  # numbers that stay in a cache while every candidate passes over them


def refine(
    score: Tensor,
    order: Tensor,
    pattern: Pattern,
    blocks: int,
    slabs: Slabs = ALONE,
    *,
    rows: int | None = None,
    widest: int | None = None,
) -> Tensor:
    """Reassign the channels of one place of every group at a time, so that the retained score never falls.

    Group g with the channel that group h has at this place retains sum_i b_ig + max(0, S_ih - u_ig), where u_ig is the
    N-th largest of the group's other M - 1 scores in row i and b_ig the sum of the N largest. As
    max(0, a - b) = max(a, b) - b, all but V[g, h] = sum_i max(S_ih, u_ig) is the same for every assignment. So V
    decides alone, nothing is sorted, and the assignment of V is exact.

    `score` (out, in), `order` (in,), `blocks` consecutive blocks of groups done separately; a new order. V takes time
    with out * groups^2: of more than `rows` rows only that many evenly spaced ones enter it, and more than `widest`
    groups in a block are done in several parts, each of every so-manieth group, so that all parts are alike in a dealt
    order. That the retained score never falls is checked on all rows.

    Source: RIA, ICLR 2024 (OpenReview Tr0lPx9woF), linear sum assignment, one pass.
    """
    channels = score.float().T.contiguous()  # (in, out)
    count = len(score)
    taken = torch.arange(rows, device=score.device) * count // rows if rows and rows < count else None
    refined = order.view(-1, pattern.group).clone()
    for block in refined.tensor_split(blocks):
        parts = -(-len(block) // widest) if widest else 1
        for first in range(min(parts, len(block))):
            block[first::parts] = _refine_part(channels, block[first::parts].clone(), pattern.keep, taken, slabs)
    return refined.reshape(-1)


def _refine_part(channels: Tensor, order: Tensor, keep: int, taken: Tensor | None, slabs: Slabs) -> Tensor:
    places = [channels[order[:, place]] for place in range(order.shape[1])]  # M of (groups, out)
    for place, candidate in enumerate(places):
        rival = _nth_largest(places[:place] + places[place + 1 :], keep)
        # Beyond every rival a score's height is the same for all groups: without it, channels that are kept everywhere
        # (or nowhere) tie exactly, and outliers do not drown the rest in rounding.
        bounded = candidate.clamp(rival.amin(0), rival.amax(0))
        sampled = (rival, bounded) if taken is None else (rival[:, taken], bounded[:, taken])
        chosen = _best_assignment(*sampled, slabs)
        # V is rounded: move nothing for a difference that is not there in the exact terms.
        if _gain(rival, bounded[chosen]) > _gain(rival, bounded):
            places[place] = candidate[chosen]
            order[:, place] = order[chosen, place]
    return order


def _best_assignment(rival: Tensor, candidate: Tensor, slabs: Slabs) -> Tensor:
    groups = len(rival)
    turned = torch.empty(groups, groups, dtype=torch.float64, device=rival.device)  # V^T

    def work(taken: slice) -> tuple[Tensor]:
        value, step = torch.zeros_like(turned[taken]), max(1, _AT_ONCE // groups)
        sums = torch.empty(value.shape, device=value.device)  # of some rows
        for start in range(0, rival.shape[1], step):
            u, s = (part[:, start : start + step].contiguous() for part in (rival, candidate[taken]))
            higher = torch.empty_like(u)
            for h in range(len(s)):
                torch.sum(torch.maximum(u, s[h], out=higher), 1, out=sums[h])
            value += sums
        return (value,)

    slabs.fill(candidate, work, turned)
    value = turned.T
    # A constant taken from a row or column changes no choice, and zeros to start from make the solver 3 to 4x faster.
    cost = value.amax(1, keepdim=True) - value
    cost -= cost.amin(0, keepdim=True)
    _, chosen = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(chosen).to(rival.device)


def _gain(rival: Tensor, candidate: Tensor) -> float:
    return float((candidate - rival).clamp_min_(0.0).sum(dtype=torch.float64))


def _nth_largest(values: list[Tensor], n: int) -> Tensor:
    """Elementwise n-th largest of equally shaped tensors."""
    largest = n <= len(values) + 1 - n  # count from the nearer end
    rank = n if largest else len(values) + 1 - n
    nearer, farther = (torch.maximum, torch.minimum) if largest else (torch.minimum, torch.maximum)
    chain: list[Tensor] = []  # the `rank` most extreme so far, outermost first
    for value in values:
        for i, held in enumerate(chain):
            chain[i], value = nearer(held, value), farther(held, value)
        if len(chain) < rank:
            chain.append(value)
    return chain[-1]
