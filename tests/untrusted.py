"""A model type without a family, whose blocks do what blocks of unknown models may do: `kind` chooses what."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

KINDS = ("plain", "list", "mask", "experts")  # those that can be pruned


class UntrustedConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config; the model is 32 wide whatever `hidden_size` says."""

    model_type = "untrusted"

    def __init__(self, kind: str = "plain", hidden_size: Any = 32, **settings: Any) -> None:
        self.kind = kind
        self.hidden_size = hidden_size
        self.vocab_size = 258
        self.num_hidden_layers = 2
        self.max_position_embeddings = 128
        super().__init__(**{"tie_word_embeddings": False, **settings})


class Experts(nn.Module):
    """Three experts; each token goes to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, 1)
        choice = (self.gate(tokens).sum(-1) * 10).long() % 3
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            if bool((choice == number).any()):
                output[choice == number] = expert(tokens[choice == number])
        return output.view(hidden.shape)


class Block(nn.Module):
    """A residual MLP."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one = nn.Linear(32, 64)
        self.two = nn.Linear(64, 32)
        self.mlp = Experts() if kind == "experts" else nn.Identity()

    def forward(self, hidden: Tensor, mask: Any = None, extra: Tensor | None = None) -> Any:
        mask_tensor = mask if isinstance(mask, Tensor) else mask[0]
        if self.kind in ("mask", "masks") and len(mask_tensor) != len(hidden):
            raise ValueError(f"a mask of {len(hidden)} was expected\nbut got one of {len(mask_tensor)}")
        intermediate = self.one(hidden[:, ::2] if self.kind == "few" else hidden).relu()
        update = self.mlp(self.two(intermediate))
        output = hidden + (update.repeat_interleave(2, 1) if self.kind == "few" else update)
        output = output if extra is None else output + extra
        return {"list": [output, None], "mapping": {"hidden": output}, "narrow": output[..., :16]}.get(
            self.kind, output
        )


class UntrustedTrunk(PreTrainedModel):  # type: ignore[misc]
    """The model without its head."""

    config_class = UntrustedConfig
    base_model_prefix = "model"

    def __init__(self, config: UntrustedConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(258, 32)
        self.layers = nn.ModuleList(Block(config.kind) for _ in range(2))
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Any:
        hidden: Any = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        kind = self.config.kind
        extra = hidden * 2
        hidden = hidden[None] if kind == "deep" else hidden
        mask = torch.ones(len(hidden), 1)
        for block in self.layers:
            hidden = block(hidden, (mask,) if kind == "masks" else mask, extra if kind == "tokens" else None)
            hidden = hidden[0] if isinstance(hidden, list | tuple) else hidden
            hidden = hidden * 0.5 if kind == "between" else hidden
        return hidden


class UntrustedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The whole model; of kind "headed", `base_model_prefix` names a module that it does not have."""

    config_class = UntrustedConfig
    base_model_prefix = "model"

    def __init__(self, config: UntrustedConfig) -> None:
        super().__init__(config)
        self.model = UntrustedTrunk(config)
        self.lm_head = nn.Linear(32, 258, bias=False)
        self.base_model_prefix = "trunk" if config.kind == "headed" else "model"
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Any:
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids, inputs_embeds)))


AutoConfig.register("untrusted", UntrustedConfig)
AutoModelForCausalLM.register(UntrustedConfig, UntrustedForCausalLM)
