"""The one door to transformers: configs, tokenizers, whole models, and models without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from eggs_ptp.errors import ModelError
from eggs_ptp.models.family import Family
from eggs_ptp.models.fold import Heads
from eggs_ptp.models.folder import read_config
from eggs_ptp.models.table import family_for


@dataclass(frozen=True)
class Skeleton:
    """A model whose parameters are on the meta device: structure to be filled block by block."""

    model: nn.Module
    inner: nn.Module  # the model without its head
    family: Family
    heads: Heads
    folder: Path
    ties: Mapping[str, str]  # tensors that may be stored under another's name
    hidden_size: int
    context: int  # the longest window the model was made for
    vocab_size: int

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return cast(nn.ModuleList, self.model.get_submodule(self.family.blocks))

    def block_name(self, index: int) -> str:
        """Module name of a decoder block, such as `model.layers.3`."""
        return f"{self.family.blocks}.{index}"


def load_skeleton(folder: Path, *, trust_remote_code: bool = False) -> Skeleton:
    """Build the model of a folder without allocating its weights.

    Raises:
        ModelError: unsupported architecture, or a config that transformers refuses.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    family = family_for(str(read_config(folder)["model_type"]), str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds here; each means this config cannot be built
        raise ModelError(f"{folder}: transformers cannot build this model ({_first_line(error)})") from error
    model.eval().requires_grad_(False)
    inner = getattr(model, model.base_model_prefix)
    return Skeleton(
        model=model,
        inner=inner,
        family=family,
        heads=Heads.of(config),
        folder=folder,
        ties=_ties(model) if config.tie_word_embeddings else {},
        hidden_size=int(config.hidden_size),
        context=int(config.max_position_embeddings),
        vocab_size=int(config.vocab_size),
    )


def load_heads(folder: Path) -> Heads:
    """Read what a folder's config says of its attention.

    Raises:
        ModelError: a config that transformers refuses.
    """
    from transformers import AutoConfig

    read_config(folder, packed=True)
    try:
        return Heads.of(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # as above
        raise ModelError(f"{folder}: transformers cannot read this config ({_first_line(error)})") from error


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> Any:
    """Load a whole model for evaluation or generation, in evaluation mode.

    Raises:
        ModelError: transformers cannot load the folder, or would make up weights that it lacks.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    read_config(folder, packed=True)
    logging.disable_progress_bar()  # progress is ours to show
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # as above: whatever it is, the folder cannot be loaded
        raise ModelError(f"{folder}: transformers cannot load this model ({_first_line(error)})") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{folder}: the checkpoint lacks {len(missing)} tensors that config.json asks for, such as {missing[0]}"
        )
    return model.eval().to(device)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        ModelError: none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{folder}: no tokenizer that transformers can load ({_first_line(error)})") from error


def _ties(model: Any) -> dict[str, str]:
    """Head and embeddings stand for each other: a checkpoint stores whichever its writer met first."""
    pair = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [next(name for name, module in model.named_modules() if module is part) + ".weight" for part in pair]
    return dict(zip(names, reversed(names), strict=True))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {' '.join(lines[:2]) if lines[0].endswith(':') else lines[0]}"
