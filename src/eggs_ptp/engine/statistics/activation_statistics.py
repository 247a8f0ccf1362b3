"""Statistics of one activation, summed over the calibration tokens of all processes."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from eggs_ptp.core.stats import Moments
from eggs_ptp.engine.distributed.process_group import ProcessGroup
from eggs_ptp.engine.statistics.requests import StatisticRequest

_SAMPLED_TOKENS = 256
_ROWS_AT_ONCE = 512  # rows of a matrix whose output error is computed at once: their differences fit into a cache


class ActivationStatistics:
    """Sums over one activation, and a sample of evenly spaced tokens for the output error of the pruned matrices.

    Args:
        request: The activation and the requested statistics.
        tokens: Calibration tokens of all processes, from which the sample is spaced.
        device: Where the sums are kept.

    Attributes:
        moments: The sums.
        compares_inputs: Whether the dense model's activation is the linears' input, not their output.
        saw_all_tokens: Whether it belongs to an expert that ran on all tokens of its layer, as its router sends it
            too few.
    """

    def __init__(self, request: StatisticRequest, tokens: int, device: torch.device) -> None:
        # Without a target, inputs are compared with themselves: a router may send other tokens than in the dense model.
        dense_width = request.target.values.shape[-1] if request.target else request.width
        self._new_moments = functools.partial(
            Moments, request.width, request.statistics, device, dense_width=dense_width
        )
        self.moments = self._new_moments()
        self.compares_inputs = not (request.target and request.target.residual_producers)
        self.saw_all_tokens = False
        self._device = device
        self._stride = max(1, tokens // _SAMPLED_TOKENS)
        self._sampled: list[Tensor] = []
        self._chunk: Moments | None = None
        self._pending: list[Moments] = []  # chunks still to be added to `moments`, after those of other ranks

    def add(self, activation: Tensor, dense: Tensor | None = None, token_mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            activation: (windows, seqlen, channels), or (tokens, channels).
            dense: The dense model's activation for the same tokens, (..., dense channels).
            token_mask: The tokens that count, bool (windows, seqlen), for a three-dimensional activation.
        """
        if token_mask is None or activation.dim() != 3:
            self._add(activation, dense)
        elif bool((token_mask == token_mask[:1]).all()):
            self._add(activation[:, token_mask[0]], None if dense is None else dense[:, token_mask[0]])
        else:
            for window, counted in enumerate(token_mask):
                self._add(activation[window][counted], None if dense is None else dense[window][counted])

    def _add(self, activation: Tensor, dense: Tensor | None) -> None:
        if self._chunk is None:
            with torch.inference_mode(False):
                self._chunk = self._new_moments()
        tokens = activation.reshape(-1, activation.shape[-1])
        first = -self._chunk.tokens % self._stride  # counted from the start of the chunk, whatever the batch size
        self._sampled.append(tokens[first :: self._stride].to(torch.float32, copy=True))  # a view would keep the batch
        self._chunk.add(activation, dense)

    def end_chunk(self, *, is_main_process: bool) -> None:
        """End a reduction chunk: add it to `moments` where it is the next in order, or keep it until it is."""
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            return
        if is_main_process:
            self.moments.merge(chunk)
        elif self.moments.tokens:
            self._pending.append(chunk)
        else:
            self.moments = chunk

    @property
    def sample(self) -> Tensor:
        """About 256 tokens, (tokens, channels) in float32."""
        if len(self._sampled) != 1:
            empty = torch.empty(0, self.moments.width, device=self._device)
            self._sampled = [torch.cat([empty, *self._sampled])]
        return self._sampled[0]

    def output_error(self, dense: Tensor, pruned: Tensor, dtype: torch.dtype) -> float:
        """Relative output error ||X (W - W')^T||^2 / ||X W^T||^2 over the sampled tokens; 0 where both vanish.

        Args:
            dense: W (out, in).
            pruned: W' (out, in).
            dtype: In which outputs are computed, that of the block's own products.
        """
        sample = self.sample.to(dtype)

        def energy(weight: Tensor) -> float:
            return float((sample @ weight.to(dtype).T).float().square().sum(dtype=torch.float64))

        error_energy = output_energy = 0.0
        for dense_rows, pruned_rows in zip(dense.split(_ROWS_AT_ONCE), pruned.split(_ROWS_AT_ONCE), strict=True):
            error_energy += energy(dense_rows - pruned_rows.float())
            output_energy += energy(dense_rows)
        return error_energy / output_energy if output_energy > 0 else 0.0


def all_reduce_statistics(statistics: Mapping[str, ActivationStatistics], group: ProcessGroup) -> None:
    """Combine the statistics of all processes, in place: sums are added up, samples concatenated."""
    activations = list(statistics.values())
    tokens = torch.tensor([sum(m.tokens for m in (each.moments, *each._pending)) for each in activations])
    group.all_reduce_moments((each.moments, each._pending) for each in activations)
    samples = group.all_gather([each.sample for each in activations])
    for each, count, sample in zip(activations, group.all_reduce(tokens).tolist(), samples, strict=True):
        each.moments.tokens = count
        each._sampled = [sample]
        each._pending = []
