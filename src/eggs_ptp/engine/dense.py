"""The dense model beside the pruned one: its hidden states, and what it has where a pruned matrix stands."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.shelf import Shelf
from eggs_ptp.engine.through import through
from eggs_ptp.errors import CalibrationError
from eggs_ptp.models.family import Family


@dataclass(frozen=True)
class Target:
    """What the dense model has for every token, (windows, seqlen, width).

    Without `writers` it is what the linears read. With them it is the residual stream behind a linear that writes to
    it: what the pruned model's stream lacks there is asked of the linear. `writers` are all those of the block.
    """

    values: Tensor
    writers: tuple[str, ...] = ()


class Residual:
    """The residual stream inside a block while it runs: what came in, and what has been written to it so far."""

    now: Tensor

    @contextmanager
    def of(
        self, block: nn.Module, writers: Iterable[str], wrote: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Follow the stream; `wrote` is told the path of each of `writers` after its output has been added."""

        def begin(_module: nn.Module, args: Any) -> None:
            self.now = args[0]

        def add(path: str, output: Tensor) -> None:
            self.now = self.now + output.reshape(self.now.shape)  # some blocks flatten windows into one
            if wrote:
                wrote(path)

        handles = [block.register_forward_pre_hook(begin)]
        for path in writers:
            linear = block.get_submodule(path)
            handles.append(linear.register_forward_hook(lambda _m, _args, output, path=path: add(path, output)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class DenseStream:
    """The dense model's hidden states at the input of a block, (windows, seqlen, hidden)."""

    def __init__(self, hidden: Tensor, shelf: Shelf | None = None) -> None:
        self._shelf = shelf or Shelf()
        self.hidden = self._shelf.copy(hidden)

    def advance(
        self, block: nn.Module, kwargs: Mapping[str, Any], family: Family, asked: Iterable[str], cut: Cut
    ) -> dict[str, Target]:
        """Run a dense block: the hidden states become its outputs. Returns targets of the activations `asked` for.

        The readers of an activation get what they read in the dense model; but one that reads alone and writes to the
        residual stream gets the stream behind it.

        Raises:
            CalibrationError: a linear that is not called, or not with all tokens.
            ModelError: as `through`.
        """
        writers = family.writers
        paths = {reads: [linear.path for linear in family.linears if linear.reads == reads] for reads in asked}
        kept: dict[str, Tensor] = {}
        shape, device = self.hidden.shape[:2], next(block.parameters()).device
        alone = {path: reads for reads, (path, *others) in paths.items() if path in writers and not others}
        residual, windows = Residual(), slice(0)

        def keep(reads: str, value: Tensor) -> None:
            if reads not in kept:
                kept[reads] = self._shelf.empty((*shape, value.shape[-1]), value.dtype, value.device)
            here = kept[reads][windows]
            if value.numel() != here.numel():
                raise CalibrationError(
                    f"{paths[reads][0]}: the block calls this linear with other tokens than it is given itself, which "
                    f"cannot be compared with the dense model's; leave it out with --exclude '*.{paths[reads][0]}', or "
                    "take a method that compares nothing, such as --method eggs"
                )
            here.copy_(value.reshape(here.shape))  # some blocks flatten windows into one

        def wrote(path: str) -> None:
            if path in alone:
                bias = cast(nn.Linear, block.get_submodule(path)).bias  # is added whatever the weight is
                keep(alone[path], residual.now if bias is None else residual.now - bias)

        with residual.of(block, writers, wrote), torch.inference_mode():
            handles = [
                block.get_submodule(path).register_forward_pre_hook(lambda _m, args, reads=reads: keep(reads, args[0]))
                for reads, (path, *_) in paths.items()
                if path not in alone
            ]
            try:
                for windows in (windows for leaf in cut for windows in leaf):
                    part = self.hidden[windows]
                    part.copy_(through(block, part.to(device), kwargs))
            finally:
                for handle in handles:
                    handle.remove()
        if never := [path for reads, (path, *_) in paths.items() if reads not in kept]:
            raise CalibrationError(
                f"{never[0]}: the block runs without calling this linear, so no calibration token reaches it; leave it "
                f"out with --exclude '*.{never[0]}'"
            )
        streams = set(alone.values())
        return {reads: Target(values, writers if reads in streams else ()) for reads, values in kept.items()}
