"""Llama-shaped families: every linear of a block is listed, with the input activation that it has when it runs."""

import re

import pytest
import torch
from tiny import FAMILIES
from torch import nn
from transformers import AutoModelForCausalLM

from eggs_ptp.errors import ModelError
from eggs_ptp.models.registry import family_for


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_names_every_linear_of_a_block_in_running_order(tiny, model_type):
    family = family_for(model_type, "here")
    model = AutoModelForCausalLM.from_pretrained(tiny(model_type)).eval()
    ran: list[str] = []
    inputs: dict[str, torch.Tensor] = {}
    for path, module in model.get_submodule(family.blocks)[1].named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _m, args, path=path: (ran.append(path), inputs.update({path: args[0]}))[0]
            )
    with torch.no_grad():
        model(torch.arange(12)[None])
    assert ran == [linear.path for linear in family.linears]
    for first in family.linears:
        for second in family.linears:
            a = inputs[first.path]
            b = inputs[second.path]
            same_input = a.shape == b.shape and torch.equal(a, b)
            assert same_input == (first.input_activation == second.input_activation)


def test_a_model_type_without_a_family_is_refused_and_those_with_one_are_named():
    message = "models/x: model type 'bloom' has no family here; those that have one: llama, mistral, qwen2, qwen3"
    with pytest.raises(ModelError, match=re.escape(message)):
        family_for("bloom", "models/x")
