"""The transformers quantizer of packed checkpoints: `from_pretrained` and `save_pretrained` work on them."""

from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eggs_ptp.core.pack import check
from eggs_ptp.errors import CheckpointError, PatternError
from eggs_ptp.sparse.contents import FORMAT, METHOD, Contents
from eggs_ptp.sparse.convert import contents_of, replace, unpack
from eggs_ptp.sparse.linear import NMLinear

_WHERE = "config.json"


@register_quantization_config(METHOD)
class EggsConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The block `quantization_config` of a packed checkpoint; see docs/format.md.

    Raises:
        CheckpointError: a version that this package cannot read, or a block that is not understood.
    """

    def __init__(self, **block: Any) -> None:
        self._take(Contents.read({"quant_method": METHOD, "format": FORMAT, **block}, _WHERE))

    @property
    def contents(self) -> Contents:
        """What the block says."""
        return Contents.read(self.__dict__, _WHERE)

    def _take(self, contents: Contents) -> None:
        self.__dict__.update(contents.to_dict())  # transformers writes an object's attributes into config.json


@register_quantizer(METHOD)
class EggsQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts `NMLinear` in the place of the packed matrices before the tensors are read, and checks them afterwards."""

    def __init__(self, quantization_config: EggsConfig, **settings: Any) -> None:
        if not settings.get("pre_quantized", True):
            raise CheckpointError(
                "quantization_config is eggs, but the folder is dense; load it without one, then eggs_ptp.pack(model)"
            )
        super().__init__(quantization_config, **settings)

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        contents = self.quantization_config.contents
        rooms = {name: _room(model, name, contents) for name in contents.matrices}
        if checkpoint_files is not None and all(file.endswith(".safetensors") for file in checkpoint_files):
            _check_headers(rooms, checkpoint_files)
        for name, room in rooms.items():
            replace(model, _own_name(model, name), room)
        self.quantization_config._take(contents_of(model))

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, module in model.named_modules():
            if not isinstance(module, NMLinear):
                continue
            absent = [part for part in ("values", "bits", "order") if getattr(getattr(module, part), "is_meta", False)]
            if not absent:
                check(module.packed, name)
            elif len(absent) < 2 + (module.order is not None):  # all of them: they were offloaded
                raise CheckpointError(f"{name}.{absent[0]} is named in {_WHERE}, but not in the checkpoint")
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> nn.Module:
        kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype  # as a config.json has it
        dense: Any = unpack(model).to(kind or model.dtype)
        dense.config.quantization_config = self.quantization_config  # the caller takes it away
        return cast(nn.Module, dense)

    def is_serializable(self, *_: object, **__: object) -> bool:
        """`save_pretrained` writes the packed tensors as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed matrices pass no gradients."""
        return False

    @property
    def is_compileable(self) -> bool:
        """The product is one operator to torch.compile."""
        return True


def _room(model: Any, name: str, contents: Contents) -> NMLinear:
    """An empty packed layer for a matrix of the checkpoint."""
    own = _own_name(model, name)
    linear = model.get_submodule(own) if own else None
    if not isinstance(linear, nn.Linear):
        raise CheckpointError(f"{_WHERE}: {name} is packed, but this {type(model).__name__} has no such linear")
    try:
        return NMLinear.empty(linear, contents.matrices[name], ordered=name in contents.ordered)
    except PatternError as error:
        raise CheckpointError(f"{_WHERE}: {name}: {error}") from error


def _own_name(model: Any, name: str) -> str:
    """The matrix's name in this model, which may be the one inside of, or around, the one that was saved."""
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    return next((own for own in (name, name.removeprefix(prefix), prefix + name) if own in modules), "")


def _check_headers(rooms: dict[str, NMLinear], files: list[str]) -> None:
    """Refuse files that are cut short, or whose packed tensors are missing or do not fit, before transformers reads."""
    shapes: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {name: (file, tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error
    for name, room in rooms.items():
        for part in ("values", "bits", "order"):
            buffer, tensor = getattr(room, part), f"{name}.{part}"
            if buffer is None:
                continue
            if tensor not in shapes:
                raise CheckpointError(f"{files[0]}: {tensor} is named in {_WHERE}, but not in the checkpoint")
            file, shape = shapes[tensor]
            if shape != list(buffer.shape):
                raise CheckpointError(f"{file}: {tensor} has shape {shape}, {_WHERE} asks for {list(buffer.shape)}")
