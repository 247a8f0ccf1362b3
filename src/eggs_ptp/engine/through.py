"""A block of a model called by itself: what it is given, and what it gives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eggs_ptp.errors import EggsError, ModelError
from eggs_ptp.models.load import first_line


class Signal(Exception):  # noqa: N818 - not an error
    """Ends a forward of which the rest need not run."""


class Given(dict[str, Any]):
    """The keyword arguments that a block is called with.

    `whose` begins what is said of a block without a family that cannot be called so; what fails in others is our fault.
    """

    whose: str = ""

    @classmethod
    def each(cls, given: Mapping[str, Any], change: Callable[[Any], Any]) -> "Given":
        """The same with every value changed."""
        found = cls((key, change(value)) for key, value in given.items())
        found.whose = getattr(given, "whose", "")
        return found


def through(block: nn.Module, hidden: Tensor, given: Mapping[str, Any]) -> Tensor:
    """What a block makes of hidden states (windows, tokens, hidden).

    Raises:
        ModelError: no family knows the block, and it cannot be called so, or gives something else.
    """
    whose = getattr(given, "whose", "")
    try:
        found = hidden_of(block(hidden, **given))
    except (EggsError, Signal, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a stranger's forward may raise
        if not whose or "allocate memory" in str(error):  # torch has no kind of its own for that
            raise
        raise ModelError(f"{whose} cannot be run one by one ({first_line(error)})") from error
    if whose and (not isinstance(found, Tensor) or found.shape != hidden.shape):
        came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"{whose} were expected to give hidden states {list(hidden.shape)}, but gave {came}")
    return found


def hidden_of(output: Any) -> Tensor:
    """The hidden states that a block gives: by themselves, or as the first of several."""
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found
