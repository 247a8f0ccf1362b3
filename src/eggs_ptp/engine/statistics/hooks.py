"""Forward hooks that collect the statistics of activations while a block runs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.engine.blocks.run_block import StopForward, run_block
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.statistics.activation_statistics import ActivationStatistics
from eggs_ptp.engine.statistics.dense_stream import ResidualStream
from eggs_ptp.engine.statistics.expert_routing import starved_experts_on_all_tokens
from eggs_ptp.engine.statistics.output_cache import ModuleOutputCache
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.models.experts import Expert


class _AllCollected(StopForward):
    """Every requested activation has been collected: the rest of the block need not run."""


def collect_statistics(
    block: nn.Module,
    hidden: Tensor,
    kwargs: Mapping[str, Any],
    requests: Mapping[str, StatisticRequest],
    shard: WindowShard,
    *,
    advance: bool = False,
    output_cache: ModuleOutputCache | None = None,
    token_mask: Tensor | None = None,
) -> dict[str, ActivationStatistics]:
    """Run a block over this process's windows and collect the requested statistics.

    Args:
        block: The block, its weights in memory.
        hidden: What reaches the block, (windows, seqlen, channels).
        kwargs: Its other arguments.
        requests: By activation name.
        shard: This process's windows, in chunks and batches.
        advance: Run the whole block and replace `hidden` by its outputs.
        output_cache: Modules whose outputs are known already.
        token_mask: Which tokens count, bool (windows, seqlen); None for all.

    Returns:
        Statistics of this process's windows by activation name; see `all_reduce_statistics`.
    """
    tokens = shard.windows * hidden.shape[1]
    device = next(block.parameters()).device  # the hidden states may be elsewhere
    statistics = {name: ActivationStatistics(request, tokens, device) for name, request in requests.items()}
    hooks = _ActivationHooks(requests, statistics, token_mask, stop=not advance)
    output_cache = output_cache or ModuleOutputCache((), hidden.shape)
    hooked_paths = {request.path for request in requests.values()}
    all_tokens = starved_experts_on_all_tokens(block, hidden, kwargs, shard, hooked_paths)
    with all_tokens as starved, output_cache.on(block), hooks.on(block), torch.inference_mode():
        for chunk in shard:
            for windows in chunk:
                batch = hidden[windows]
                hooks.windows = windows
                hooks.batch_shape = batch.shape[:2]
                output_cache.windows = windows
                with suppress(_AllCollected):
                    output = run_block(block, batch.to(device), kwargs)
                    if advance:
                        batch.copy_(output)
            for activation in statistics.values():
                activation.end_chunk(is_main_process=shard.group.is_main_process)
    for name, request in requests.items():
        statistics[name].saw_all_tokens = request.path.startswith(starved)
    return statistics


class _ActivationHooks:
    """Forward hooks on the linears of a block, which hand activations to their statistics.

    Attributes:
        windows: The windows that are running.
        batch_shape: Their number, and tokens in each.
    """

    def __init__(
        self,
        requests: Mapping[str, StatisticRequest],
        statistics: Mapping[str, ActivationStatistics],
        token_mask: Tensor | None,
        *,
        stop: bool,
    ) -> None:
        self._requests = requests
        self._statistics = statistics
        self._token_mask = token_mask
        self._stop = stop
        self._pending: set[str] = set()
        self._residual = ResidualStream()
        self.windows = slice(0)
        self.batch_shape = torch.Size()

    @contextmanager
    def on(self, block: nn.Module) -> Iterator[None]:
        """Hook the linears of this block while the context lasts."""
        self._block = block
        with ExitStack() as stack:
            stack.callback(block.register_forward_pre_hook(self._start).remove)
            targets = (request.target for request in self._requests.values() if request.target)
            if producers := {path for target in targets for path in target.residual_producers}:
                stack.enter_context(self._residual.of(block, producers))
            for name, request in self._requests.items():
                linear = block.get_submodule(request.path)
                if request.side == "input":
                    handle = linear.register_forward_pre_hook(lambda _m, args, name=name: self._collect(name, args[0]))
                else:
                    handle = linear.register_forward_hook(lambda _m, _args, out, name=name: self._collect(name, out))
                stack.callback(handle.remove)
            yield

    def _start(self, _module: nn.Module, _args: Any) -> None:
        self._pending.update(self._requests)

    def _collect(self, name: str, activation: Tensor) -> None:
        if activation.dim() == 2 and len(activation) == self.batch_shape.numel():  # some blocks flatten the windows
            activation = activation.view(*self.batch_shape, -1)
        target = self._requests[name].target
        dense = activation
        if target is not None:
            dense = target.values[self.windows].to(activation.device)
            dense = dense - self._residual.value if target.residual_producers else dense
        token_mask = None if self._token_mask is None else self._token_mask[self.windows]
        expert = self._block.get_submodule(self._requests[name].path.rpartition(".")[0])
        if token_mask is not None and activation.dim() == 2 and isinstance(expert, Expert):
            activation = dense = activation[token_mask.flatten()[expert.tokens]]
        self._statistics[name].add(activation, dense, token_mask)
        self._pending.discard(name)
        if self._stop and not self._pending:
            raise _AllCollected
