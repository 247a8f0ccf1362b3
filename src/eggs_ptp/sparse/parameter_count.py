"""Number of parameters of models with packed layers, whose tensors are buffers."""

import functools
from typing import Any

from torch import nn

from eggs_ptp.sparse.linear import NMLinear

_METHOD = "num_parameters"  # of transformers' models


def packed_parameters(model: nn.Module) -> int:
    """Count the weights and biases of a model's packed layers as those of dense ones, zeros included."""
    layers = [module for module in model.modules() if isinstance(module, NMLinear)]
    return sum(layer.out_features * (layer.in_features + (layer.bias is not None)) for layer in layers)


def count_packed_parameters(model: nn.Module) -> None:
    """Make `num_parameters` of a transformers model count packed layers, none of which is trainable.

    The method of its class is wrapped, once. Models without packed layers are counted as before, and so is a model
    without such a method left alone.
    """
    owner: Any = next((cls for cls in type(model).__mro__ if _METHOD in cls.__dict__), None)
    if owner is None or hasattr(owner.num_parameters, "counts_packed"):
        return
    original = owner.num_parameters

    @functools.wraps(original)
    def num_parameters(self: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        counted = int(original(self, only_trainable, exclude_embeddings))
        return counted if only_trainable else counted + packed_parameters(self)

    num_parameters.counts_packed = True  # type: ignore[attr-defined]
    owner.num_parameters = num_parameters
