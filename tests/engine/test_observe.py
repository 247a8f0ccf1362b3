"""Statistics of a block's activations, against hooks of the test's own."""

import pytest
import torch

from eggs_ptp.engine.capture import capture
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.observe import Want, observe
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.models.load import load_skeleton

CPU = torch.device("cpu")
WANTS = {
    "attention_in": Want("self_attn.q_proj", 32, frozenset({"input_norm"})),
    "mlp": Want("mlp.down_proj", 64, frozenset({"input_norm", "gram"})),
}


def _run(tiny, wants, batch):
    skeleton = load_skeleton(tiny("llama"))
    shards = Shards(skeleton.folder, ties=skeleton.ties)
    tokens = torch.randint(0, 258, (6, 100), generator=torch.Generator().manual_seed(1))
    hidden, kwargs = capture(skeleton, shards, tokens, torch.float32, CPU, batch=3)
    block = skeleton.blocks[0]
    with resident(block, "model.layers.0", shards, torch.float32, CPU):
        calls: dict[str, list[torch.Tensor]] = {path: [] for path in ("self_attn.q_proj", "mlp.down_proj")}
        handles = [
            block.get_submodule(path).register_forward_pre_hook(lambda _m, args, path=path: calls[path].append(args[0]))
            for path in calls
        ]
        with torch.no_grad():
            block(hidden, **kwargs[0])
        for handle in handles:
            handle.remove()
        return observe(block, hidden, kwargs[0], wants, Cut.whole(len(hidden), batch)), calls


def test_statistics_equal_those_of_the_whole_activation(tiny):
    seen, calls = _run(tiny, WANTS, batch=2)
    for reads, path in (("attention_in", "self_attn.q_proj"), ("mlp", "mlp.down_proj")):
        x = calls[path][0].flatten(0, 1).double()
        expected = x.square().mean(0).sqrt().float()
        torch.testing.assert_close(seen[reads].moments.read("input_norm", reads), expected, rtol=1e-5, atol=0)
    gram = calls["mlp.down_proj"][0].flatten(0, 1).double()
    gram = (gram.T @ gram / 600).float()
    torch.testing.assert_close(seen["mlp"].moments.read("gram", "mlp"), gram, rtol=1e-4, atol=1e-4)


def test_only_what_was_asked_for_is_collected(tiny):
    seen, _ = _run(tiny, WANTS, batch=6)
    assert set(seen["attention_in"].moments.sums) == {"square"}
    assert set(seen["mlp"].moments.sums) == {"square", "gram"}


def test_the_sample_is_evenly_spaced_and_independent_of_the_batches(tiny):
    one, calls = _run(tiny, WANTS, batch=6)
    two, _ = _run(tiny, WANTS, batch=1)
    whole = calls["self_attn.q_proj"][0].flatten(0, 1)
    torch.testing.assert_close(one["attention_in"].sample, whole[::2])
    torch.testing.assert_close(two["attention_in"].sample, whole[::2])


def test_the_output_error_is_that_of_the_sample_in_either_type(tiny):
    seen, _ = _run(tiny, WANTS, batch=6)
    observation = seen["mlp"]
    weight = torch.randn(700, observation.moments.width, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    pruned = weight * (weight > 0)
    x = observation.sample.double()
    expected = (x @ (weight - pruned).double().T).square().sum() / (x @ weight.double().T).square().sum()
    assert observation.output_error(weight, pruned, torch.float32) == pytest.approx(float(expected), rel=1e-5)
    assert observation.output_error(weight, pruned, torch.bfloat16) == pytest.approx(float(expected), rel=1e-2)
    assert observation.output_error(torch.zeros_like(weight), pruned * 0, torch.float32) == 0.0


def test_the_block_stops_when_all_is_seen(tiny):
    wants = {"attention_in": WANTS["attention_in"]}
    skeleton = load_skeleton(tiny("llama"))
    shards = Shards(skeleton.folder, ties=skeleton.ties)
    hidden, kwargs = capture(skeleton, shards, torch.zeros(2, 8, dtype=torch.long), torch.float32, CPU, batch=2)
    block = skeleton.blocks[0]
    with resident(block, "model.layers.0", shards, torch.float32, CPU):
        reached: list[bool] = []
        block.mlp.register_forward_pre_hook(lambda _m, _a: reached.append(True))
        seen = observe(block, hidden, kwargs[0], wants, Cut.whole(2, 1))
        assert seen["attention_in"].moments.tokens == 16
        assert not reached
        block(hidden, **kwargs[0])  # and the hooks are gone
        assert reached
