"""A pruned block tuned as a whole, with what the dense model makes of the same windows."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eggs_ptp.core.noted import Fact
from eggs_ptp.core.seed import generator_for
from eggs_ptp.engine.head import head_of
from eggs_ptp.engine.through import Given, through
from eggs_ptp.errors import NumericsError
from eggs_ptp.method.step import Bound

if TYPE_CHECKING:
    from eggs_ptp.engine.run import Run


def tune_block(
    run: "Run",
    index: int,
    step: Bound,
    masks: Mapping[str, Tensor],
    inputs: Tensor,
    target: Tensor,
    kwargs: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Fact]]:
    """Run the tune step on a pruned block in memory, on rank 0, and put what it found in place on all.

    `masks` are those of its pruned matrices by module path, `inputs` what reaches the block, `target` what the dense
    model's block gives, both of this rank's windows; rank 0 gets all. Returns the changed tensors by their names in the
    checkpoint, in their stored types, and facts.

    Raises:
        NumericsError: the loss is not finite; names the block.
    """
    block, name = run.skeleton.blocks[index], run.skeleton.block_name(index)
    given = Given.each(kwargs, trainable)

    def call(windows: Tensor) -> Tensor:
        return through(block, windows.to(run.device), given)

    windows = [run.ranks.collected(here) for here in (inputs, target)]

    def tune() -> tuple[dict[str, Tensor], dict[str, Fact]]:
        data = {
            "block": block,
            "masks": masks,
            "inputs": windows[0],
            "target": windows[1],
            "call": call,
            "generator": generator_for(run.seed, name, run.device),
        }
        last = index + 1 == len(run.skeleton.blocks)
        with ExitStack() as stack:
            data["logits"] = stack.enter_context(head_of(run)) if last and "logits" in step.data else None
            try:
                tensors, facts = step(data.__getitem__)
            except NumericsError as error:
                raise NumericsError(f"{name}: {error}") from error
        return tensors, facts

    found, facts = run.ranks.led(tune)
    stored = {}
    for tensor, value in found.items():
        path, _, parameter = tensor.rpartition(".")
        stored[f"{name}.{tensor}"] = value.to(run.shards.dtype(f"{name}.{tensor}"))
        replaced = nn.Parameter(stored[f"{name}.{tensor}"].to(run.dtype), requires_grad=False)
        setattr(block.get_submodule(path), parameter, replaced)
    return stored, facts


def trainable(value: Any) -> Any:
    """The same, with tensors that may be part of a backward pass: those made in inference mode may not."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone()
    if isinstance(value, tuple):
        return tuple(trainable(part) for part in value)
    return value
