"""The transformers quantizer of packed checkpoints: `from_pretrained` and `save_pretrained` work on them."""

from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers.auto import (
    AutoHfQuantizer,
    AutoQuantizationConfig,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from eggs_ptp.core.layout import check
from eggs_ptp.errors import CheckpointError, PatternError
from eggs_ptp.models.discover import is_linear
from eggs_ptp.models.experts import take_apart
from eggs_ptp.models.moe import LAYOUTS
from eggs_ptp.sparse.contents import FORMATS, METHOD, Contents, is_ours
from eggs_ptp.sparse.convert import contents_of, replace, unpack
from eggs_ptp.sparse.linear import NMLinear, is_transposed

_WHERE = "config.json"


@register_quantization_config(METHOD)
class EggsConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The block `quantization_config` of a packed checkpoint; see docs/format.md.

    Raises:
        CheckpointError: a version that this package cannot read, or a block that is not understood.
    """

    quant_method = METHOD  # of the class: it is not written, see `contents.py`

    def __init__(self, **block: Any) -> None:
        self._take(Contents.read({METHOD: "", "format": FORMATS[-1], **block}, _WHERE))

    @property
    def contents(self) -> Contents:
        """What the block says."""
        return Contents.read(self.__dict__, _WHERE)

    def _take(self, contents: Contents) -> None:
        self.__dict__.update(contents.to_dict())  # transformers writes an object's attributes into config.json


def _admit() -> None:
    """Have transformers take blocks of ours, which name no method, for what they are."""
    supports, read = AutoHfQuantizer.supports_quant_method, AutoQuantizationConfig.from_dict

    def supports_quant_method(block: Any) -> bool:
        return is_ours(block) or bool(supports(block))

    def from_dict(_: type, block: Any) -> Any:
        return EggsConfig.from_dict(block) if is_ours(block) else read(block)

    AutoHfQuantizer.supports_quant_method = staticmethod(supports_quant_method)
    AutoQuantizationConfig.from_dict = classmethod(from_dict)


_admit()


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
        _take_apart(model, contents)
        rooms = {name: _room(model, name, contents) for name in contents.matrices}
        stored: frozenset[str] = frozenset()
        if checkpoint_files is not None and all(file.endswith(".safetensors") for file in checkpoint_files):
            stored = _check_headers(rooms, checkpoint_files)
        for name, room in rooms.items():
            own = _own_name(model, name)
            replace(model, own, room)
            _settle(model.get_submodule(own.rpartition(".")[0]), name.rpartition(".")[0], stored)
        self.quantization_config._take(_stored(model, contents_of(model)))

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, module in model.named_modules():
            if not isinstance(module, NMLinear):
                continue
            tensors = module.packed.tensors()
            absent = [part for part, tensor in tensors.items() if tensor.is_meta]
            if not absent:
                check(module.packed, name)
            elif len(absent) < len(tensors):  # all of them: they were offloaded
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


def _settle(parent: nn.Module, name: str, stored: frozenset[str]) -> None:
    """Keep transformers from starting weights that are packed, as GPT-2's and Mamba's classes reach into their linears.

    A parent that has tensors of its own is left alone unless all of them are `stored` under its `name`.
    """
    own = [*parent.named_parameters(recurse=False), *parent.named_buffers(recurse=False)]
    if all(f"{name}.{tensor}" in stored for tensor, _ in own):
        parent.__dict__["_is_hf_initialized"] = True


def _take_apart(model: Any, contents: Contents) -> None:
    """Give experts that are packed modules of their own; those of other blocks stay fused."""
    if layout := LAYOUTS.get(model.config.model_type):
        blocks = {name.partition(f".{layout.layer}.experts.") for name in contents.matrices}
        for block in {block for block, experts, _ in blocks if experts}:
            take_apart(model.get_submodule(_own_name(model, block) or block), layout, rename=False)


def _stored(model: Any, contents: Contents) -> Contents:
    """The same under the names that transformers writes, which for experts are those of the checkpoint."""
    layout = LAYOUTS.get(model.config.model_type)

    def name(own: str) -> str:
        return own.replace(".mlp.experts.", f".{layout.layer}.experts.") if layout else own

    matrices = {name(own): pattern for own, pattern in contents.matrices.items()}
    values = {name(own): kind for own, kind in contents.values.items()}
    return Contents(matrices, frozenset(map(name, contents.ordered)), values, frozenset(map(name, contents.transposed)))


def _room(model: Any, name: str, contents: Contents) -> NMLinear:
    """An empty packed layer for a matrix of the checkpoint."""
    own = _own_name(model, name)
    linear = model.get_submodule(own) if own else None
    if linear is None or not is_linear(linear):
        raise CheckpointError(f"{_WHERE}: {name} is packed, but this {type(model).__name__} has no such linear")
    if is_transposed(linear) != (name in contents.transposed):
        raise CheckpointError(
            f"{_WHERE}: {name} is {'one' if is_transposed(linear) else 'none'} of those stored as (in, out) in this "
            f"{type(model).__name__}, but quantization_config.transposed says otherwise; export the folder again"
        )
    try:
        return NMLinear.empty(
            linear, contents.matrices[name], ordered=name in contents.ordered, values=contents.values.get(name)
        )
    except PatternError as error:
        raise CheckpointError(f"{_WHERE}: {name}: {error}") from error


def _own_name(model: Any, name: str) -> str:
    """The matrix's name in this model, which may be the one inside of, or around, the one that was saved."""
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    layout = LAYOUTS.get(model.config.model_type)
    name = name.replace(f".{layout.layer}.", ".mlp.") if layout else name  # transformers renames on loading
    return next((own for own in (name, name.removeprefix(prefix), prefix + name) if own in modules), "")


def _check_headers(rooms: dict[str, NMLinear], files: list[str]) -> frozenset[str]:
    """Refuse files that are cut short, or whose packed tensors are missing or do not fit, before transformers reads.

    Returns the names of all tensors.
    """
    shapes: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {name: (file, tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error
    for name, room in rooms.items():
        for part, buffer in room.packed.tensors().items():
            tensor = f"{name}.{part}"
            if tensor not in shapes:
                raise CheckpointError(f"{files[0]}: {tensor} is named in {_WHERE}, but not in the checkpoint")
            file, shape = shapes[tensor]
            if shape != list(buffer.shape):
                raise CheckpointError(f"{file}: {tensor} has shape {shape}, {_WHERE} asks for {list(buffer.shape)}")
    return frozenset(shapes)
