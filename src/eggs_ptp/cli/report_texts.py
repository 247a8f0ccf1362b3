"""Texts that `eggs report` generates with the models of a report that has none."""

from pathlib import Path
from typing import TYPE_CHECKING

from eggs_ptp.errors import EggsError

if TYPE_CHECKING:
    from eggs_ptp.report.model_group import ModelGroup
    from eggs_ptp.report.section import Text

_MOST_PARAMETERS = 500_000_000  # of a model that generates: seconds on a processor, 2 GB in float32
_MOST_RUNS = 4
_TOKENS = 60
_PROMPT = "The most important thing about"
_MESSAGE = "What is the most important thing about a good explanation?"  # to models with a chat template


def write_texts(group: "ModelGroup") -> "list[Text]":
    """Let the dense model, where it is on this machine, and the first runs continue one prompt.

    Packed models, those of more than 500 million parameters, and those that cannot be loaded are left out.

    Args:
        group: The runs of one dense model.
    """
    from eggs_ptp import api
    from eggs_ptp.evaluation.generate import has_chat_template, prompt_ids, sample
    from eggs_ptp.report.model_group import DENSE
    from eggs_ptp.report.section import Text

    texts = []
    for label, name in [(DENSE, group.model), *((run.label, str(run.folder)) for run in group.runs[:_MOST_RUNS])]:
        is_local = name == "demo" or Path(name).expanduser().is_dir()
        try:
            if not is_local or _parameters(api.find(name)) > _MOST_PARAMETERS:
                continue
            model, tokenizer = api.load(name)
            is_chat = has_chat_template(tokenizer)
            prompt = _MESSAGE if is_chat else _PROMPT
            ids = prompt_ids(tokenizer, prompt, chat=is_chat)
            written = sample(model, tokenizer, ids, tokens=_TOKENS, temperature=0.8, seed=0)
        except EggsError:  # the report shows what there is; eggs generate says what is wrong
            continue
        texts.append(Text(label, prompt, written.text))
        del model
    return texts


def _parameters(folder: Path) -> int:
    """Return how many parameters the model has by its config, without reading weights; they need not all be there."""
    from eggs_ptp.models.load import load_skeleton

    return sum(parameter.numel() for parameter in load_skeleton(folder).root.parameters())
