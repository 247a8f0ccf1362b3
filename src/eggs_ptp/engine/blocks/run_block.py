"""The forward pass of one decoder block on its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.errors import EggsError, ModelError
from eggs_ptp.models.load import first_line


class StopForward(Exception):  # noqa: N818 - not an error
    """Ends a forward pass whose remaining modules need not run."""


class BlockKwargs(dict[str, Any]):
    """The keyword arguments of a block.

    Attributes:
        unknown_model: For a model without a family, how its error messages begin: its blocks may not run on their own.
            Empty for known families, whose failures are bugs of this package.
    """

    unknown_model: str = ""

    @classmethod
    def map(cls, kwargs: Mapping[str, Any], change: Callable[[Any], Any]) -> "BlockKwargs":
        """Return a copy with every value changed."""
        changed = cls((key, change(value)) for key, value in kwargs.items())
        changed.unknown_model = getattr(kwargs, "unknown_model", "")
        return changed


def run_block(block: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Run a block on hidden states (windows, tokens, channels) and return its output hidden states.

    Raises:
        ModelError: The model has no family, and its block cannot be called on its own, or returns something else.
    """
    unknown_model = getattr(kwargs, "unknown_model", "")
    try:
        output = hidden_of(block(hidden, **kwargs))
    except (EggsError, StopForward, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the forward of an unknown model may raise anything
        if not unknown_model or "allocate memory" in str(error):  # torch has no exception type for that on the CPU
            raise
        raise ModelError(f"{unknown_model} cannot be run one by one ({first_line(error)})") from error
    if unknown_model and (not isinstance(output, Tensor) or output.shape != hidden.shape):
        returned = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"{unknown_model} were expected to return hidden states of shape {list(hidden.shape)}, got {returned}"
        )
    return output


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states among the outputs of a block: the output itself, or the first of several."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden


def trainable(value: Any) -> Any:
    """Return a copy whose tensors may take part in a backward pass: tensors made in inference mode may not."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone()
    if isinstance(value, tuple):
        return tuple(trainable(item) for item in value)
    return value
