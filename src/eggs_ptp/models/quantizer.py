"""The quantizer of packed checkpoints for transformers: makes `from_pretrained` and `save_pretrained` work on them."""

import functools
from pathlib import Path
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

from eggs_ptp.core.layout import check_packed
from eggs_ptp.errors import CheckpointError, PatternError
from eggs_ptp.models.discover import is_linear
from eggs_ptp.models.experts import take_apart
from eggs_ptp.models.moe import LAYOUTS
from eggs_ptp.sparse.convert import packed_config_of, replace, unpack
from eggs_ptp.sparse.linear import NMLinear, is_transposed
from eggs_ptp.sparse.packed_config import FORMATS, METHOD, PackedConfig, is_packed_block
from eggs_ptp.sparse.parameter_count import count_packed_parameters, packed_parameters

_WHERE = "config.json"
_RECORD_FILES = ("eggs.json", "eggs/orders.safetensors")  # kept when a packed model is saved again


@register_quantization_config(METHOD)
class EggsConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The block `quantization_config` in the config.json of a packed checkpoint; see docs/format.md.

    Args:
        **block: The block's keys.

    Raises:
        CheckpointError: The format's version is unknown, or the block cannot be understood.
    """

    quant_method = METHOD  # of the class, so that it is not written; see `sparse/packed_config.py`

    def __init__(self, **block: Any) -> None:
        self.set_packed_config(PackedConfig.read({METHOD: "", "format": FORMATS[-1], **block}, _WHERE))

    @property
    def packed_config(self) -> PackedConfig:
        """The block, parsed."""
        return PackedConfig.read(self.__dict__, _WHERE)

    def set_packed_config(self, packed_config: PackedConfig) -> None:
        """Replace the block."""
        self.__dict__.update(packed_config.to_dict())  # transformers writes the object's attributes into config.json


def _patch_transformers() -> None:
    """Make transformers recognise the blocks of packed checkpoints, which have no key `quant_method`."""
    original_supports = AutoHfQuantizer.supports_quant_method
    original_from_dict = AutoQuantizationConfig.from_dict

    def supports_quant_method(block: Any) -> bool:
        return is_packed_block(block) or bool(original_supports(block))

    def from_dict(_: type, block: Any) -> Any:
        return EggsConfig.from_dict(block) if is_packed_block(block) else original_from_dict(block)

    AutoHfQuantizer.supports_quant_method = staticmethod(supports_quant_method)
    AutoQuantizationConfig.from_dict = classmethod(from_dict)


_patch_transformers()


@register_quantizer(METHOD)
class EggsQuantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces the linears of packed matrices by `NMLinear` before tensors are loaded, and checks them afterwards."""

    def __init__(self, quantization_config: EggsConfig, **settings: Any) -> None:
        if not settings.get("pre_quantized", True):
            raise CheckpointError(
                "quantization_config is eggs, but the folder is dense; load it without one, then call "
                "eggs_ptp.pack(model)"
            )
        super().__init__(quantization_config, **settings)
        self.record_files: dict[str, bytes] = {}

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        _refuse_tensor_parallelism(model)
        self.record_files = _read_record_files(checkpoint_files or [])
        _patch_model_class()
        count_packed_parameters(model)
        packed_config = self.quantization_config.packed_config
        _separate_experts(model, packed_config)
        layers = {name: _empty_layer(model, name, packed_config) for name in packed_config.matrices}
        stored_names: frozenset[str] = frozenset()
        if checkpoint_files is not None and all(file.endswith(".safetensors") for file in checkpoint_files):
            stored_names = _check_headers(layers, checkpoint_files)
        for name, layer in layers.items():
            module_name = _module_name(model, name)
            replace(model, module_name, layer)
            parent = model.get_submodule(module_name.rpartition(".")[0])
            _skip_initialisation(parent, name.rpartition(".")[0], stored_names)
        self.quantization_config.set_packed_config(_with_stored_names(model, packed_config_of(model)))

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, module in model.named_modules():
            if not isinstance(module, NMLinear):
                continue
            tensors = module.packed.tensors()
            missing = [field for field, tensor in tensors.items() if tensor.is_meta]
            if not missing:
                check_packed(module.packed, name)
            elif len(missing) < len(tensors):  # if all are on the meta device, they have been offloaded
                raise CheckpointError(f"{name}.{missing[0]} is named in {_WHERE}, but not in the checkpoint")
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> nn.Module:
        torch_dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype  # text from a config.json
        dense: Any = unpack(model).to(torch_dtype or model.dtype)
        dense.config.quantization_config = self.quantization_config  # the caller deletes it
        return cast(nn.Module, dense)

    def is_serializable(self, *_: object, **__: object) -> bool:
        """Return True: `save_pretrained` writes the packed tensors as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters can be trained, as packed matrices pass the gradient of their inputs, not their own."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: the product is one operator for torch.compile."""
        return True


def _refuse_tensor_parallelism(model: Any) -> None:
    """Refuse `tp_plan`: the tensors of a packed matrix cannot be cut as those of a dense one.

    Raises:
        CheckpointError: The model is being loaded with tensor parallelism.
    """
    distributed = getattr(model.config, "distributed_config", None)
    size = getattr(model, "_tp_size", None) or getattr(distributed, "tp_size", None)
    plan = getattr(distributed, "tp_plan", None)
    if plan is not None or (size or 1) > 1:
        raise CheckpointError(
            f"{_WHERE}: expected a packed model on one device, got a tensor-parallel plan (tp_plan); load it without "
            "one, or export the folder as dense: eggs export --format dense"
        )


def _read_record_files(checkpoint_files: list[str]) -> dict[str, bytes]:
    """Return the contents of the record files beside a checkpoint, by their names in the folder."""
    if not checkpoint_files:
        return {}
    folder = Path(checkpoint_files[0]).parent
    return {name: (folder / name).read_bytes() for name in _RECORD_FILES if (folder / name).is_file()}


@functools.cache
def _patch_model_class() -> None:
    """Make `save_pretrained` keep the record of a packed folder, for which transformers has no hook.

    Other models are not affected.
    """
    from transformers.modeling_utils import PreTrainedModel

    original_save = PreTrainedModel.save_pretrained

    @functools.wraps(original_save)
    def save_pretrained(
        self: Any, save_directory: Any, is_main_process: bool = True, *settings: Any, **named: Any
    ) -> Any:
        result = original_save(self, save_directory, is_main_process, *settings, **named)
        quantizer = getattr(self, "hf_quantizer", None)
        if is_main_process and isinstance(quantizer, EggsQuantizer) and packed_parameters(self):
            for name, content in quantizer.record_files.items():
                path = Path(save_directory) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return result

    PreTrainedModel.save_pretrained = save_pretrained


def _skip_initialisation(parent: nn.Module, name: str, stored_names: frozenset[str]) -> None:
    """Keep transformers from initialising a module whose linears are packed.

    Classes such as GPT-2's and Mamba's initialise the weights of their linears, which packed ones do not have. A module
    that has tensors too is left alone unless all of them are in the checkpoint, under its `name` there.
    """
    tensors = [*parent.named_parameters(recurse=False), *parent.named_buffers(recurse=False)]
    if all(f"{name}.{tensor_name}" in stored_names for tensor_name, _ in tensors):
        parent.__dict__["_is_hf_initialized"] = True


def _separate_experts(model: Any, packed_config: PackedConfig) -> None:
    """Replace fused experts by separate ones in the blocks whose experts are packed."""
    if layout := LAYOUTS.get(model.config.model_type):
        split_names = {name.partition(f".{layout.layer}.experts.") for name in packed_config.matrices}
        for block in {block for block, separator, _ in split_names if separator}:
            take_apart(model.get_submodule(_module_name(model, block) or block), layout, rename=False)


def _with_stored_names(model: Any, packed_config: PackedConfig) -> PackedConfig:
    """Return a config with the names that transformers writes, which for experts are those of the checkpoint."""
    layout = LAYOUTS.get(model.config.model_type)

    def stored_name(name: str) -> str:
        return name.replace(".mlp.experts.", f".{layout.layer}.experts.") if layout else name

    return PackedConfig(
        {stored_name(name): pattern for name, pattern in packed_config.matrices.items()},
        frozenset(map(stored_name, packed_config.ordered)),
        {stored_name(name): value_type for name, value_type in packed_config.values.items()},
        frozenset(map(stored_name, packed_config.transposed)),
    )


def _empty_layer(model: Any, name: str, packed_config: PackedConfig) -> NMLinear:
    """Return an empty packed layer for a matrix of the checkpoint."""
    module_name = _module_name(model, name)
    linear = model.get_submodule(module_name) if module_name else None
    if linear is None or not is_linear(linear):
        raise CheckpointError(f"{_WHERE}: {name} is packed, but this {type(model).__name__} has no such linear")
    if is_transposed(linear) != (name in packed_config.transposed):
        raise CheckpointError(
            f"{_WHERE}: {name} is {'one' if is_transposed(linear) else 'none'} of those stored as (in, out) in this "
            f"{type(model).__name__}, but quantization_config.transposed says otherwise; export the folder again"
        )
    try:
        return NMLinear.empty(
            linear,
            packed_config.matrices[name],
            ordered=name in packed_config.ordered,
            values=packed_config.values.get(name),
        )
    except PatternError as error:
        raise CheckpointError(f"{_WHERE}: {name}: {error}") from error


def _module_name(model: Any, name: str) -> str:
    """Return a matrix's name in this model; empty if there is none.

    The model may be the one that was saved, without its head or with one.
    """
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    layout = LAYOUTS.get(model.config.model_type)
    name = name.replace(f".{layout.layer}.", ".mlp.") if layout else name  # transformers renames on loading
    return next(
        (candidate for candidate in (name, name.removeprefix(prefix), prefix + name) if candidate in modules), ""
    )


def _check_headers(layers: dict[str, NMLinear], files: list[str]) -> frozenset[str]:
    """Refuse truncated files, and packed tensors that are missing or of another shape, before transformers loads them.

    Returns:
        The names of all tensors of the files.
    """
    shapes: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {name: (file, tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error})") from error
    for name, layer in layers.items():
        for field, buffer in layer.packed.tensors().items():
            tensor_name = f"{name}.{field}"
            if tensor_name not in shapes:
                raise CheckpointError(f"{files[0]}: {tensor_name} is named in {_WHERE}, but not in the checkpoint")
            file, shape = shapes[tensor_name]
            if shape != list(buffer.shape):
                raise CheckpointError(
                    f"{file}: expected shape {list(buffer.shape)} of {tensor_name} as in {_WHERE}, got {shape}"
                )
    return frozenset(shapes)
