"""Statistics of a block's activations, against separate forward hooks."""

import pytest
import torch

from eggs_ptp.engine.blocks.inputs import capture_block_inputs
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.statistics.hooks import collect_statistics
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton

CPU = torch.device("cpu")
REQUESTS = {
    "attention_in": StatisticRequest("self_attn.q_proj", 32, frozenset({"input_norm"})),
    "mlp": StatisticRequest("mlp.down_proj", 64, frozenset({"input_norm", "gram"})),
}


def _run(tiny, requests, batch):
    skeleton = load_skeleton(tiny("llama"))
    reader = CheckpointReader(skeleton.folder, ties=skeleton.ties)
    tokens = torch.randint(0, 258, (6, 100), generator=torch.Generator().manual_seed(1))
    hidden, kwargs = capture_block_inputs(skeleton, reader, tokens, torch.float32, CPU, batch=3)
    block = skeleton.blocks[0]
    with loaded_weights(block, "model.layers.0", reader, torch.float32, CPU):
        calls: dict[str, list[torch.Tensor]] = {path: [] for path in ("self_attn.q_proj", "mlp.down_proj")}
        handles = [
            block.get_submodule(path).register_forward_pre_hook(lambda _m, args, path=path: calls[path].append(args[0]))
            for path in calls
        ]
        with torch.no_grad():
            block(hidden, **kwargs[0])
        for handle in handles:
            handle.remove()
        return collect_statistics(block, hidden, kwargs[0], requests, WindowShard.single(len(hidden), batch)), calls


def test_statistics_equal_those_of_the_whole_activation(tiny):
    statistics, calls = _run(tiny, REQUESTS, batch=2)
    for input_activation, path in (("attention_in", "self_attn.q_proj"), ("mlp", "mlp.down_proj")):
        x = calls[path][0].flatten(0, 1).double()
        expected = x.square().mean(0).sqrt().float()
        torch.testing.assert_close(
            statistics[input_activation].moments.read("input_norm", input_activation), expected, rtol=1e-5, atol=0
        )
    gram = calls["mlp.down_proj"][0].flatten(0, 1).double()
    gram = (gram.T @ gram / 600).float()
    torch.testing.assert_close(statistics["mlp"].moments.read("gram", "mlp"), gram, rtol=1e-4, atol=1e-4)


def test_only_requested_sums_are_collected(tiny):
    statistics, _ = _run(tiny, REQUESTS, batch=6)
    assert set(statistics["attention_in"].moments.sums) == {"square"}
    assert set(statistics["mlp"].moments.sums) == {"square", "gram"}


def test_the_sample_is_evenly_spaced_and_independent_of_the_batches(tiny):
    one, calls = _run(tiny, REQUESTS, batch=6)
    two, _ = _run(tiny, REQUESTS, batch=1)
    whole = calls["self_attn.q_proj"][0].flatten(0, 1)
    torch.testing.assert_close(one["attention_in"].sample, whole[::2])
    torch.testing.assert_close(two["attention_in"].sample, whole[::2])


def test_the_output_error_is_that_of_the_sample_in_either_type(tiny):
    statistics, _ = _run(tiny, REQUESTS, batch=6)
    activation = statistics["mlp"]
    weight = torch.randn(700, activation.moments.width, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    pruned = weight * (weight > 0)
    x = activation.sample.double()
    expected = (x @ (weight - pruned).double().T).square().sum() / (x @ weight.double().T).square().sum()
    assert activation.output_error(weight, pruned, torch.float32) == pytest.approx(float(expected), rel=1e-5)
    assert activation.output_error(weight, pruned, torch.bfloat16) == pytest.approx(float(expected), rel=1e-2)
    assert activation.output_error(torch.zeros_like(weight), pruned * 0, torch.float32) == 0.0


def test_the_block_stops_once_everything_is_collected(tiny):
    requests = {"attention_in": REQUESTS["attention_in"]}
    skeleton = load_skeleton(tiny("llama"))
    reader = CheckpointReader(skeleton.folder, ties=skeleton.ties)
    hidden, kwargs = capture_block_inputs(
        skeleton, reader, torch.zeros(2, 8, dtype=torch.long), torch.float32, CPU, batch=2
    )
    block = skeleton.blocks[0]
    with loaded_weights(block, "model.layers.0", reader, torch.float32, CPU):
        reached: list[bool] = []
        block.mlp.register_forward_pre_hook(lambda _m, _a: reached.append(True))
        statistics = collect_statistics(block, hidden, kwargs[0], requests, WindowShard.single(2, 1))
        assert statistics["attention_in"].moments.tokens == 16
        assert not reached
        block(hidden, **kwargs[0])  # and the hooks are gone
        assert reached
