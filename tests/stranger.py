"""Models of a type without a family, whose blocks do what strangers' blocks may: `kind` says what."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

KINDS = ("plain", "list", "mask", "experts")  # those that can be pruned


class StrangerConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config; `hidden_size` is 32 whatever it says."""

    model_type = "stranger"

    def __init__(self, kind: str = "plain", hidden_size: Any = 32, **settings: Any) -> None:
        self.kind, self.hidden_size, self.vocab_size, self.num_hidden_layers = kind, hidden_size, 258, 2
        self.max_position_embeddings = 128
        super().__init__(**{"tie_word_embeddings": False, **settings})


class Experts(nn.Module):
    """Three of them, of which each token goes to one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, 1)
        sent, found = (self.gate(tokens).sum(-1) * 10).long() % 3, torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            if bool((sent == number).any()):
                found[sent == number] = expert(tokens[sent == number])
        return found.view(hidden.shape)


class Block(nn.Module):
    """A residual MLP."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Linear(32, 64), nn.Linear(64, 32)
        self.mlp = Experts() if kind == "experts" else nn.Identity()

    def forward(self, hidden: Tensor, mask: Any = None, extra: Tensor | None = None) -> Any:
        size = mask if isinstance(mask, Tensor) else mask[0]
        if self.kind in ("mask", "masks") and len(size) != len(hidden):
            raise ValueError(f"a mask of {len(hidden)} was expected\nbut came one of {len(size)}")
        inside = self.one(hidden[:, ::2] if self.kind == "few" else hidden).relu()
        added = self.mlp(self.two(inside))
        found = hidden + (added.repeat_interleave(2, 1) if self.kind == "few" else added)
        found = found if extra is None else found + extra
        return {"list": [found, None], "mapping": {"hidden": found}, "narrow": found[..., :16]}.get(self.kind, found)


class StrangerTrunk(PreTrainedModel):  # type: ignore[misc]
    """The model without its head."""

    config_class = StrangerConfig
    base_model_prefix = "model"

    def __init__(self, config: StrangerConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(258, 32)
        self.layers = nn.ModuleList(Block(config.kind) for _ in range(2))
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Any:
        hidden: Any = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        kind, extra = self.config.kind, hidden * 2
        hidden = hidden[None] if kind == "deep" else hidden
        mask = torch.ones(len(hidden), 1)
        for block in self.layers:
            hidden = block(hidden, (mask,) if kind == "masks" else mask, extra if kind == "tokens" else None)
            hidden = hidden[0] if isinstance(hidden, list | tuple) else hidden
            hidden = hidden * 0.5 if kind == "between" else hidden
        return hidden


class StrangerForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The whole model; of kind "headed" it says that its trunk is elsewhere."""

    config_class = StrangerConfig
    base_model_prefix = "model"

    def __init__(self, config: StrangerConfig) -> None:
        super().__init__(config)
        self.model, self.lm_head = StrangerTrunk(config), nn.Linear(32, 258, bias=False)
        self.base_model_prefix = "trunk" if config.kind == "headed" else "model"
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Any:
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids, inputs_embeds)))


AutoConfig.register("stranger", StrangerConfig)
AutoModelForCausalLM.register(StrangerConfig, StrangerForCausalLM)
