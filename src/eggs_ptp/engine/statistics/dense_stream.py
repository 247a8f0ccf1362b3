"""The dense model's hidden states beside the pruned model's, and its activations at the pruned matrices."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.engine.blocks.run_block import run_block
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.tensors.activation_store import ActivationStore
from eggs_ptp.errors import CalibrationError
from eggs_ptp.models.family import Family


@dataclass(frozen=True)
class DenseTarget:
    """The dense model's activation for every token, (windows, seqlen, channels).

    Args:
        values: What the linears read; with `residual_producers`, the residual stream after the linear has been added
            to it, which the pruned linear should restore.
        residual_producers: Paths of all linears of the block that write to the residual stream, or ().
    """

    values: Tensor
    residual_producers: tuple[str, ...] = ()


class ResidualStream:
    """Follows the residual stream inside a block while it runs.

    Attributes:
        value: The block's input plus all that has been added to it so far.
    """

    value: Tensor

    @contextmanager
    def of(
        self, block: nn.Module, producers: Iterable[str], on_add: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Follow the stream of `block` while the context lasts.

        Args:
            block: The block.
            producers: Paths of the linears that write to the stream.
            on_add: Called with a producer's path after its output has been added.
        """

        def begin(_module: nn.Module, args: Any) -> None:
            self.value = args[0]

        def add(path: str, output: Tensor) -> None:
            self.value = self.value + output.reshape(self.value.shape)  # some blocks flatten the windows
            if on_add:
                on_add(path)

        handles = [block.register_forward_pre_hook(begin)]
        for path in producers:
            linear = block.get_submodule(path)
            handles.append(linear.register_forward_hook(lambda _m, _args, output, path=path: add(path, output)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class DenseStream:
    """The dense model's hidden states at the input of a block, (windows, seqlen, channels)."""

    def __init__(self, hidden: Tensor, store: ActivationStore | None = None) -> None:
        self._store = store or ActivationStore()
        self.hidden = self._store.copy(hidden)

    def advance(
        self,
        block: nn.Module,
        kwargs: Mapping[str, Any],
        family: Family,
        activations: Iterable[str],
        shard: WindowShard,
    ) -> dict[str, DenseTarget]:
        """Run a dense block and replace the hidden states by its outputs.

        Args:
            block: The block with its dense weights.
            kwargs: Its arguments beside the hidden states.
            family: Which linears read and write what.
            activations: Names of the input activations whose dense counterpart is needed.
            shard: This process's windows.

        Returns:
            Targets by activation name: the same activation in the dense model, or, for a linear that is the only
            consumer of its input and writes to the residual stream, the stream after it.

        Raises:
            CalibrationError: A linear is not called, or not with all tokens.
            ModelError: See `run_block`.
        """
        producers = family.residual_producers
        consumers = {
            name: [linear.path for linear in family.linears if linear.input_activation == name] for name in activations
        }
        recorded: dict[str, Tensor] = {}
        shape = self.hidden.shape[:2]
        device = next(block.parameters()).device
        sole_producers = {path: name for name, (path, *rest) in consumers.items() if path in producers and not rest}
        residual = ResidualStream()
        windows = slice(0)

        def record(name: str, value: Tensor) -> None:
            if name not in recorded:
                recorded[name] = self._store.empty((*shape, value.shape[-1]), value.dtype, value.device)
            slot = recorded[name][windows]
            if value.numel() != slot.numel():
                path = consumers[name][0]
                raise CalibrationError(
                    f"{path}: the block calls this linear with other tokens than those it is given itself, which "
                    f"cannot be compared with the dense model's; exclude it with --exclude '*.{path}', or use a "
                    "method that compares nothing, such as --method eggs"
                )
            slot.copy_(value.reshape(slot.shape))  # some blocks flatten the windows

        def record_residual(path: str) -> None:
            if path in sole_producers:
                bias = cast(nn.Linear, block.get_submodule(path)).bias  # is added whatever the weight is
                record(sole_producers[path], residual.value if bias is None else residual.value - bias)

        with residual.of(block, producers, record_residual), torch.inference_mode():
            handles = [
                block.get_submodule(path).register_forward_pre_hook(lambda _m, args, name=name: record(name, args[0]))
                for name, (path, *_) in consumers.items()
                if path not in sole_producers
            ]
            try:
                for windows in shard.batches:
                    batch = self.hidden[windows]
                    batch.copy_(run_block(block, batch.to(device), kwargs))
            finally:
                for handle in handles:
                    handle.remove()
        if never_called := [path for name, (path, *_) in consumers.items() if name not in recorded]:
            raise CalibrationError(
                f"{never_called[0]}: the block runs without calling this linear, so no calibration token reaches it; "
                f"exclude it with --exclude '*.{never_called[0]}'"
            )
        residual_names = set(sole_producers.values())
        return {
            name: DenseTarget(values, producers if name in residual_names else ()) for name, values in recorded.items()
        }
