"""LoRA adapters of peft on packed matrices; imported by an import hook right after peft's own layers.

peft puts a layer of its own around each linear and knows none of this package's. Its configs have a table for layers of
other packages, which is filled here for every LoRA adapter.
"""

import functools
from typing import Any

from peft.tuners import tuners_utils
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.model import LoraModel

from eggs_ptp.errors import BackendError
from eggs_ptp.sparse.linear import NMLinear

_ALL_LINEAR = "all-linear"
_ADVICE = "take plain LoRA, or the dense form of the folder: eggs export --format dense"


class PackedLoraLinear(Linear):  # type: ignore[misc]
    """A packed linear with LoRA adapters: y = NMLinear(x) + scaling * B A x.

    The packed weight is neither read nor changed, so that adapters which start from it or are merged into it are
    refused. Adapters are those of a dense linear: trained on one form of a model, they load on the other.

    Args:
        base_layer: The packed layer, or a tuner layer of peft around it.
        adapter_name: Name of the first adapter.
        *settings: Passed to peft's layer.
        **named: Passed to peft's layer.

    Raises:
        BackendError: The adapter needs the weight of the base layer.
    """

    def update_layer(self, adapter_name: str, *settings: Any, **named: Any) -> None:
        """Add an adapter, of the type and on the device of the packed layer."""
        try:
            super().update_layer(adapter_name, *settings, **named)
        except AttributeError as error:
            if "weight" not in str(error):
                raise
            raise BackendError(
                f"adapter {adapter_name} on a packed matrix: expected one that needs no weight of its layer, got "
                f"one that reads its weight, such as DoRA, PiSSA or OLoRA; {_ADVICE}"
            ) from error
        layer = self.get_base_layer()
        weight = layer.values if layer.scales is None else layer.scales
        for parts in (self.lora_A, self.lora_B):
            if adapter_name in parts and not any(part.is_meta for part in parts[adapter_name].parameters()):
                parts[adapter_name].to(device=weight.device, dtype=weight.dtype)

    def merge(self, *_: Any, **__: Any) -> None:
        """Refuse to merge: the sum is dense.

        Raises:
            BackendError: Always.
        """
        raise BackendError(
            "adapter on a packed matrix: expected it to stay apart, got merge, whose sum is dense; merge it into the "
            "dense form of the folder: eggs export --format dense"
        )


def _register() -> None:
    """Have peft put `PackedLoraLinear` around packed layers, and count these as linears where it takes all."""
    original_create = LoraModel._create_new_module
    original_replace = LoraModel._replace_module
    original_include = tuners_utils._maybe_include_all_linear_layers

    @functools.wraps(original_create)
    def create_new_module(lora_config: Any, *settings: Any, **named: Any) -> Any:
        lora_config._register_custom_module({NMLinear: PackedLoraLinear})
        return original_create(lora_config, *settings, **named)

    @functools.wraps(original_replace)
    def replace_module(self: Any, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        if isinstance(new_module, PackedLoraLinear):  # on its device already, which peft would look up in a parameter
            setattr(parent, child_name, new_module)
        else:
            original_replace(self, parent, child_name, new_module, child)

    @functools.wraps(original_include)
    def include_all_linear_layers(peft_config: Any, model: Any) -> Any:
        chosen = getattr(peft_config, "target_modules", None)
        peft_config = original_include(peft_config, model)
        if isinstance(chosen, str) and chosen.lower() == _ALL_LINEAR:
            modules = dict(model.named_modules())
            inside = {name for name in modules if name.endswith(".base_layer")}  # counted as peft's layer around it
            packed = {name for name, module in modules.items() if isinstance(module, NMLinear)} - inside
            peft_config.target_modules = set(peft_config.target_modules) | packed
        return peft_config

    LoraModel._create_new_module = staticmethod(create_new_module)
    LoraModel._replace_module = replace_module
    tuners_utils._maybe_include_all_linear_layers = include_all_linear_layers


_register()
