"""The adapter to transformers: loads configs, tokenizers, whole models, and models without weights.

Only this module, and `quantizer.py` where transformers calls back, import transformers.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from eggs_ptp.errors import EggsError, ModelError
from eggs_ptp.models.discover import discover
from eggs_ptp.models.experts import take_apart
from eggs_ptp.models.family import Family
from eggs_ptp.models.folder import read_config, stored_names
from eggs_ptp.models.heads import Heads
from eggs_ptp.models.moe import LAYOUTS
from eggs_ptp.models.registry import family_of

_DEFAULT_CONTEXT = 2048  # tokens, where a config does not say for which context the model was made


@dataclass(frozen=True)
class Skeleton:
    """A model whose parameters are on the meta device, to be loaded block by block.

    Attributes:
        model: The model.
        inner: The model without its head.
        root: The module that names in the checkpoint are relative to: `model`, or `inner`.
        family: Its family.
        heads: Its attention heads.
        folder: Its folder.
        ties: Tensors that may be stored under the name of another one, and that name.
        hidden_size: Channels of the residual stream.
        context: The longest window, in tokens, that the model was made for.
        vocab_size: Number of token ids.
    """

    model: nn.Module
    inner: nn.Module
    root: nn.Module
    family: Family
    heads: Heads
    folder: Path
    ties: Mapping[str, str]
    hidden_size: int
    context: int
    vocab_size: int

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks."""
        return cast(nn.ModuleList, self.root.get_submodule(self.family.blocks))

    def block_name(self, index: int) -> str:
        """Return the name of a decoder block in the checkpoint, such as `model.layers.3`."""
        return f"{self.family.blocks}.{index}"

    def of_block(self, index: int) -> Family:
        """Return the family with only those linears that a block has."""
        paths = (path for path, _ in self.blocks[index].named_modules())
        return replace(self.family, linears=self.family.of_block(paths))


def load_skeleton(folder: Path, *, trust_remote_code: bool = False, quantised: bool = False) -> Skeleton:
    """Build the model of a folder without allocating its weights.

    Args:
        folder: The folder.
        trust_remote_code: Whether the checkpoint's own code may run.
        quantised: See `read_config`.

    Raises:
        ModelError: It is not a decoder-only language model, or transformers refuses its config.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = _config(folder, trust_remote_code, quantised=quantised)
    names = stored_names(folder)
    block_count = getattr(config, "num_hidden_layers", None) or 0
    if names and block_count > len(names):
        raise ModelError(
            f"{folder}: config.json describes {block_count} blocks, but the checkpoint has {len(names)} tensors"
        )
    try:
        with init_empty_weights(include_buffers=False):
            # In float32, so that buffers computed from the config, such as rotary frequencies, are not rounded.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many types here; each means that the model cannot be built
        raise ModelError(f"{folder}: transformers cannot build this model ({first_line(error)})") from error
    model.eval().requires_grad_(False)
    inner = getattr(model, model.base_model_prefix, None)
    if inner is None:
        raise ModelError(
            f"{folder}: its {type(model).__name__} has no {model.base_model_prefix!r} that would be the model without "
            "its head, so this model type cannot be pruned here"
        )
    family = family_in(model, str(folder))
    if layout := LAYOUTS.get(config.model_type):
        for block in cast(nn.ModuleList, model.get_submodule(family.blocks)):
            take_apart(block, layout)
    headless = _headless(family, model.base_model_prefix, names)
    ties = dict(family.stored)
    if getattr(config, "tie_word_embeddings", False):
        ties.update(_embedding_ties(model, without_prefix=headless is not None))
    return Skeleton(
        model=model,
        inner=inner,
        root=inner if headless else model,
        family=headless or family,
        heads=_heads(config, family),
        folder=folder,
        ties=ties,
        hidden_size=_integer(config, "hidden_size", folder),
        context=_context(config),
        vocab_size=_integer(config, "vocab_size", folder),
    )


def family_in(model: Any, folder: str) -> Family:
    """Return the family of a model, or one found in its module tree.

    Args:
        model: A model of transformers.
        folder: Its folder, for error messages.

    Raises:
        ModelError: Its type has no family, and its blocks cannot be found.
    """
    return family_of(model.config) or discover(model, model.config.model_type, folder)


def load_family(folder: Path, *, quantised: bool = False) -> tuple[Family, Heads]:
    """Return the family and the attention heads of the model in a folder, which may be packed.

    Args:
        folder: The folder.
        quantised: See `read_config`.

    Raises:
        ModelError: See `load_skeleton`.
    """
    config = _config(folder, packed=True, quantised=quantised)
    if (family := family_of(config)) is None:
        skeleton = load_skeleton(folder, quantised=quantised)
        return skeleton.family, skeleton.heads
    headless = _headless(family, family.blocks.partition(".")[0], stored_names(folder))
    return headless or family, _heads(config, family)


def load_heads(folder: Path) -> Heads:
    """Return the attention heads of the model in a folder.

    Raises:
        ModelError: See `load_skeleton`.
    """
    return load_family(folder)[1]


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> Any:
    """Load a whole model for evaluation or generation, in evaluation mode.

    Args:
        folder: The folder, dense or packed.
        dtype: Data type of its weights; "auto" is the checkpoint's.
        device: Where to put it.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        ModelError: transformers cannot load the folder, or weights are missing, which it would initialise randomly.
        EggsError: A packed folder is damaged.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    read_config(folder, packed=True)
    logging.disable_progress_bar()  # `eggs` shows its own
    try:
        model, loading_info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, local_files_only=True, output_loading_info=True
        )
    except EggsError as error:  # from the quantizer of a packed folder, which may know no more than a file's name
        raise error if str(folder) in str(error) else type(error)(f"{folder}: {error}") from error
    except Exception as error:  # see above
        raise ModelError(f"{folder}: transformers cannot load this model ({first_line(error)})") from error
    if missing := sorted(loading_info["missing_keys"]):
        raise ModelError(
            f"{folder}: the checkpoint lacks {len(missing)} tensors that config.json requires, such as {missing[0]}"
        )
    return model.eval().to(device)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a folder.

    Args:
        folder: The folder.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        ModelError: There is none that transformers can load.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # see above
        raise ModelError(f"{folder}: no tokenizer that transformers can load ({first_line(error)})") from error
    # Where there is none, transformers 5.4.0 returns one that has special tokens only.
    if tokenizer.vocab_size <= len(tokenizer.all_special_ids):
        raise ModelError(f"{folder}: no tokenizer that transformers can load (it has no tokens but special ones)")
    return tokenizer


def _config(folder: Path, trust_remote_code: bool = False, *, packed: bool = False, quantised: bool = False) -> Any:
    """Return the config of a folder; raise `ModelError` unless it is that of a decoder-only language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type = str(read_config(folder, packed=packed, quantised=quantised)["model_type"])
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises many types here; each means that it cannot use this config
        raise ModelError(f"{folder}: transformers cannot build this model ({first_line(error)})") from error
    kind = None
    if config.is_encoder_decoder:
        kind = "an encoder-decoder model"
    elif modalities := sorted(
        name.partition("_")[0] for name in config.sub_configs if name.startswith(("vision", "audio", "speech"))
    ):
        kind = f"{'an' if modalities[0] == 'audio' else 'a'} {modalities[0]}-language model"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        kind = "an encoder"
    elif config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        kind = "a vision-language model"
    if kind:
        raise ModelError(f"{folder}: {model_type} is {kind}; eggs prunes decoder-only language models")
    return config


def _context(config: Any) -> int:
    """Return the longest window that a model was made for; configs have several names for it."""
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    valid = (int(length) for length in lengths if isinstance(length, int | float) and length > 0)
    return next(valid, _DEFAULT_CONTEXT)


def _integer(config: Any, name: str, folder: Path) -> int:
    """Return an attribute of a config that every model type needs."""
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise ModelError(
            f"{folder}: expected an integer as {name} of model type {config.model_type!r}, got {value!r} in its "
            "config, so it cannot be pruned here"
        )
    return value


def _heads(config: Any, family: Family) -> Heads:
    """Return the attention heads of a model; without a family, they are not known."""
    return Heads.of(config, grouped=family.grouped) if family.known else Heads(1, 1, 0)


def _headless(family: Family, prefix: str, names: Collection[str]) -> Family | None:
    """Return the family of a checkpoint that was saved without its head; None if the checkpoint has the whole model.

    Args:
        family: The family of the whole model.
        prefix: What names of the whole model begin with, and names of the model without its head lack.
        names: Names of the checkpoint's tensors.
    """
    blocks = family.blocks.removeprefix(f"{prefix}.")
    if any(name.startswith(f"{family.blocks}.") for name in names):
        return None
    if not any(name.startswith(f"{blocks}.") for name in names):
        return None  # neither; reading a tensor will say what is missing
    return replace(
        family,
        blocks=blocks,
        outside={name.removeprefix(f"{prefix}."): spaces for name, spaces in family.outside.items()},
    )


def _embedding_ties(model: Any, *, without_prefix: bool) -> dict[str, str]:
    """Return the names of tied embeddings and head, each with the other's: a checkpoint stores only one of the two."""
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    if None in tied:
        return {}
    names = [next(name for name, module in model.named_modules() if module is tensor) + ".weight" for tensor in tied]
    if without_prefix:
        names = [name.removeprefix(f"{model.base_model_prefix}.") for name in names]
    return dict(zip(names, reversed(names), strict=True))


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error that another library has raised."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    hint = "; --trust-remote-code lets it run" if "trust_remote_code" in str(error) else ""
    return f"{type(error).__name__}: {text}{hint}"
