"""The one door to transformers: configs, tokenizers, whole models, and models without weights."""

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
from eggs_ptp.models.table import family_of

_CONTEXT = 2048  # where a config does not say how long a window the model was made for


@dataclass(frozen=True)
class Skeleton:
    """A model whose parameters are on the meta device: structure to be filled block by block."""

    model: nn.Module
    inner: nn.Module  # the model without its head
    root: nn.Module  # one of the two: what the checkpoint's names start from
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
        return cast(nn.ModuleList, self.root.get_submodule(self.family.blocks))

    def block_name(self, index: int) -> str:
        """The name of a decoder block in the checkpoint, such as `model.layers.3`."""
        return f"{self.family.blocks}.{index}"

    def of_block(self, index: int) -> Family:
        """The family with those linears that a block has."""
        paths = (path for path, _ in self.blocks[index].named_modules())
        return replace(self.family, linears=self.family.of_block(paths))


def load_skeleton(folder: Path, *, trust_remote_code: bool = False) -> Skeleton:
    """Build the model of a folder without allocating its weights.

    Raises:
        ModelError: no decoder-only language model, or a config that transformers refuses.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = _config(folder, trust_remote_code)
    names = stored_names(folder)
    if names and (asked := getattr(config, "num_hidden_layers", None) or 0) > len(names):
        raise ModelError(f"{folder}: config.json asks for {asked} blocks, but the checkpoint has {len(names)} tensors")
    try:
        with init_empty_weights(include_buffers=False):
            # In float32, so that what is computed from the config, as rotations are, is not rounded.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds here; each means this config cannot be built
        raise ModelError(f"{folder}: transformers cannot build this model ({first_line(error)})") from error
    model.eval().requires_grad_(False)
    inner = getattr(model, model.base_model_prefix, None)
    if inner is None:
        raise ModelError(
            f"{folder}: its {type(model).__name__} has no {model.base_model_prefix!r} to be the model without its "
            "head, so this model type cannot be pruned here"
        )
    family = family_in(model, str(folder))
    if layout := LAYOUTS.get(config.model_type):
        for block in cast(nn.ModuleList, model.get_submodule(family.blocks)):
            take_apart(block, layout)
    bare = _bare(family, model.base_model_prefix, names)
    return Skeleton(
        model=model,
        inner=inner,
        root=inner if bare else model,
        family=bare or family,
        heads=_heads(config, family),
        folder=folder,
        ties={**family.stored, **(_ties(model, bare) if getattr(config, "tie_word_embeddings", False) else {})},
        hidden_size=_number(config, "hidden_size", folder),
        context=_context(config),
        vocab_size=_number(config, "vocab_size", folder),
    )


def family_in(model: Any, where: str) -> Family:
    """The family of a model of transformers, or what can be found in its module tree; `where` names it in errors.

    Raises:
        ModelError: neither.
    """
    return family_of(model.config) or discover(model, model.config.model_type, where)


def load_family(folder: Path) -> tuple[Family, Heads]:
    """What is known of the model in a folder, which may be packed, and of its attention.

    Raises:
        ModelError: as `load_skeleton`.
    """
    read_config(folder, packed=True)
    config = _config(folder, packed=True)
    if (family := family_of(config)) is None:
        skeleton = load_skeleton(folder)
        return skeleton.family, skeleton.heads
    return _bare(family, family.blocks.partition(".")[0], stored_names(folder)) or family, _heads(config, family)


def load_heads(folder: Path) -> Heads:
    """Read what a folder's config says of its attention.

    Raises:
        ModelError: a config that transformers refuses.
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

    Raises:
        ModelError: transformers cannot load the folder, or would make up weights that it lacks.
        EggsError: a packed folder that is damaged.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    read_config(folder, packed=True)
    logging.disable_progress_bar()  # progress is ours to show
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, local_files_only=True, output_loading_info=True
        )
    except EggsError as error:  # of a packed folder, whose quantizer may know no more than a file's name
        raise error if str(folder) in str(error) else type(error)(f"{folder}: {error}") from error
    except Exception as error:  # as above: whatever it is, the folder cannot be loaded
        raise ModelError(f"{folder}: transformers cannot load this model ({first_line(error)})") from error
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
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{folder}: no tokenizer that transformers can load ({first_line(error)})") from error
    # transformers 5.4.0 makes one up where there is none: it has special tokens and no other.
    if found.vocab_size <= len(found.all_special_ids):
        raise ModelError(f"{folder}: no tokenizer that transformers can load (it has no tokens but special ones)")
    return found


def _config(folder: Path, trust_remote_code: bool = False, *, packed: bool = False) -> Any:
    """The config of a folder, unless it is one of a model that is no decoder-only language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type = str(read_config(folder, packed=packed)["model_type"])
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises many kinds here; each means that it cannot use this config
        raise ModelError(f"{folder}: transformers cannot build this model ({first_line(error)})") from error
    kind = None
    if config.is_encoder_decoder:
        kind = "an encoder-decoder model"
    elif senses := sorted(
        name.partition("_")[0] for name in config.sub_configs if name.startswith(("vision", "audio", "speech"))
    ):
        kind = f"{'an' if senses[0] == 'audio' else 'a'} {senses[0]}-language model"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True):
        kind = "an encoder"
    elif config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        kind = "a vision-language model"
    if kind:
        raise ModelError(f"{folder}: {model_type} is {kind}; eggs prunes decoder-only language models")
    return config


def _context(config: Any) -> int:
    """The longest window that a model was made for, by the name that its config has for it."""
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    return next((int(length) for length in found if isinstance(length, int | float) and length > 0), _CONTEXT)


def _number(config: Any, name: str, folder: Path) -> int:
    found = getattr(config, name, None)
    if not isinstance(found, int):
        raise ModelError(
            f"{folder}: expected a whole number as {name} of model type {config.model_type!r}, but its config gives "
            f"{found!r}, so it cannot be pruned here"
        )
    return found


def _heads(config: Any, family: Family) -> Heads:
    """The heads of a model; of one without a family nothing is known, and nothing is asked."""
    return Heads.of(config, grouped=family.grouped) if family.known else Heads(1, 1, 0)


def _bare(family: Family, prefix: str, names: Collection[str]) -> Family | None:
    """The family as a checkpoint has it that was saved without its head; None where the names have the prefix."""
    own = family.blocks.removeprefix(f"{prefix}.")
    if any(name.startswith(f"{family.blocks}.") for name in names):
        return None
    if not any(name.startswith(f"{own}.") for name in names):
        return None  # of neither kind: whoever reads a tensor says which is missing
    return replace(
        family,
        blocks=own,
        outside={name.removeprefix(f"{prefix}."): spaces for name, spaces in family.outside.items()},
    )


def _ties(model: Any, bare: Family | None) -> dict[str, str]:
    """Head and embeddings stand for each other: a checkpoint stores whichever its writer met first."""
    pair = (model.get_input_embeddings(), model.get_output_embeddings())
    if None in pair:
        return {}
    names = [next(name for name, module in model.named_modules() if module is part) + ".weight" for part in pair]
    if bare:
        names = [name.removeprefix(f"{model.base_model_prefix}.") for name in names]
    return dict(zip(names, reversed(names), strict=True))


def first_line(error: Exception) -> str:
    """The kind of an error that is not ours, and what it says first."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    own = "; --trust-remote-code lets it run" if "trust_remote_code" in str(error) else ""
    return f"{type(error).__name__}: {' '.join(lines[:2]) if lines[0].endswith(':') else lines[0]}{own}"
