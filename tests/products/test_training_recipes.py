"""The recipes of docs/serving.md for trainers of other libraries, run as they stand there."""

import re
from pathlib import Path

import pytest
import torch

import eggs_ptp

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of the trainers

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
TEXTS = ["def add(a, b):\n    return a + b\n", "for line in lines:\n    print(line)\n"] * 4


def recipe():
    """Return the callback and the lines that train with it, for the Trainer and for trl."""
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "TrainerCallback" in block)
    definitions, _, lines = block.partition("\n\n\nTrainer(")
    trainer, trl = f"Trainer({lines}".strip().splitlines()
    return definitions.partition("\n\n\n"), trainer, trl.removeprefix("# trl: ")


@pytest.fixture
def pruned(tiny, tmp_path):
    """Model and tokenizer of a pruned folder, and a function that checks what training has done to its zeros."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    eggs_ptp.prune(str(tiny()), tmp_path / "out", method="magnitude")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    matrices = [f"{name}.weight" for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj")]

    def check():
        after = dict(model.named_parameters())
        for name in matrices:
            assert torch.equal(after[name] == 0, weights[name] == 0)
            assert not torch.equal(after[name], weights[name])

    return model, AutoTokenizer.from_pretrained(tmp_path / "out"), check


def names_of(**more):
    (imports, _, callback), *_ = recipe()
    names = {"eggs_ptp": eggs_ptp, **more}
    exec(f"{imports}\n{callback}", names)  # noqa: S102
    return names


def settings(folder):
    return {
        "output_dir": str(folder / "run"),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
    }


def test_the_recipe_for_the_trainer(pruned, tmp_path):
    from transformers import TrainingArguments

    model, tokenizer, check = pruned
    rows = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(TEXTS[0]).input_ids,)] * 8
    exec(recipe()[1], names_of(model=model, args=TrainingArguments(**settings(tmp_path)), rows=rows))  # noqa: S102
    check()


@pytest.mark.parametrize("trainer", ["SFT", "DPO"])
def test_the_recipe_for_trl(pruned, tmp_path, trainer):
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    model, tokenizer, check = pruned
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if trainer == "SFT":
        rows = [{"text": text} for text in TEXTS]
    else:
        rows = [{"prompt": text[:6], "chosen": text[6:], "rejected": text[::-1]} for text in TEXTS]
    line = recipe()[2].replace("SFT", trainer).replace("Config(...)", "Config(**settings)")
    line = line.replace("callbacks=", "processing_class=tokenizer, callbacks=")
    more = {"bf16": False, "gradient_checkpointing": False}
    names = names_of(
        model=model,
        rows=datasets.Dataset.from_list(rows),
        tokenizer=tokenizer,
        settings={**settings(tmp_path), **more},
        **{name: getattr(trl, name) for name in (f"{trainer}Config", f"{trainer}Trainer")},
    )
    exec(line, names)  # noqa: S102
    check()
