"""Tokens that are excluded from statistics."""

import pytest
import torch

from eggs_ptp.engine.blocks.inputs import capture_block_inputs
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.statistics.hooks import collect_statistics
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.engine.statistics.token_filter import TokenFilter
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton

CPU = torch.device("cpu")


def test_all_tokens_are_counted_by_default():
    assert TokenFilter().mask(torch.ones(2, 3, 4)) is None


def test_first_tokens_and_massive_activations_are_excluded():
    hidden = torch.ones(2, 5, 8)
    hidden[1, 3, 2] = -51.0
    expected = torch.ones(2, 5, dtype=torch.bool)
    expected[:, :2] = False
    assert torch.equal(TokenFilter(skip_first=2).mask(hidden), expected)
    assert torch.equal(TokenFilter(skip_first=2, massive=51.0).mask(hidden), expected)
    expected[1, 3] = False
    assert torch.equal(TokenFilter(skip_first=2, massive=50.0).mask(hidden), expected)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_statistics_are_those_of_the_counted_tokens(tiny, batch, ragged):
    skeleton = load_skeleton(tiny("llama"))
    reader = CheckpointReader(skeleton.folder, ties=skeleton.ties)
    tokens = torch.randint(0, 258, (6, 20), generator=torch.Generator().manual_seed(1))
    hidden, kwargs = capture_block_inputs(skeleton, reader, tokens, torch.float32, CPU, batch=3)
    block = skeleton.blocks[0]
    token_mask = torch.ones(6, 20, dtype=torch.bool)
    token_mask[:, 0] = False
    if ragged:
        token_mask[4, 7:11] = False
    statistics = frozenset({"input_norm", "gram", "input_var_within", "tokens"})
    with loaded_weights(block, "model.layers.0", reader, torch.float32, CPU):
        inputs: list[torch.Tensor] = []
        handle = block.mlp.gate_proj.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        with torch.no_grad():
            block(hidden, **kwargs[0])
        handle.remove()
        request = StatisticRequest("mlp.gate_proj", 32, statistics)
        collected = collect_statistics(
            block, hidden, kwargs[0], {"mlp_in": request}, WindowShard.single(len(hidden), batch), token_mask=token_mask
        )["mlp_in"]
    x = inputs[0][token_mask].double()
    moments = collected.moments
    assert moments.tokens == len(x) == int(token_mask.sum())
    torch.testing.assert_close(moments.read("input_norm", ""), x.square().mean(0).sqrt().float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(moments.read("gram", ""), (x.T @ x / len(x)).float(), rtol=1e-4, atol=1e-5)
    within = sum(
        (window[counted].double() - window[counted].double().mean(0)).square().sum(0)
        for window, counted in zip(inputs[0], token_mask, strict=True)
    )
    torch.testing.assert_close(moments.read("input_var_within", ""), (within / len(x)).float(), rtol=1e-4, atol=1e-6)
