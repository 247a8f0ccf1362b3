"""Tokens that do not count in the statistics."""

import pytest
import torch

from eggs_ptp.engine.capture import capture
from eggs_ptp.engine.counted import Counted
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.observe import Want, observe
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.models.load import load_skeleton

CPU = torch.device("cpu")


def test_all_tokens_count_unless_asked():
    assert Counted().tokens(torch.ones(2, 3, 4)) is None


def test_the_first_tokens_and_massive_ones_do_not_count():
    hidden = torch.ones(2, 5, 8)
    hidden[1, 3, 2] = -51.0
    expected = torch.ones(2, 5, dtype=torch.bool)
    expected[:, :2] = False
    assert torch.equal(Counted(skip_first=2).tokens(hidden), expected)
    assert torch.equal(Counted(skip_first=2, massive=51.0).tokens(hidden), expected)
    expected[1, 3] = False
    assert torch.equal(Counted(skip_first=2, massive=50.0).tokens(hidden), expected)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_statistics_are_those_of_the_tokens_that_count(tiny, batch, ragged):
    skeleton = load_skeleton(tiny("llama"))
    shards = Shards(skeleton.folder, ties=skeleton.ties)
    tokens = torch.randint(0, 258, (6, 20), generator=torch.Generator().manual_seed(1))
    hidden, kwargs = capture(skeleton, shards, tokens, torch.float32, CPU, batch=3)
    block = skeleton.blocks[0]
    counted = torch.ones(6, 20, dtype=torch.bool)
    counted[:, 0] = False
    if ragged:
        counted[4, 7:11] = False
    wanted = frozenset({"input_norm", "gram", "input_var_within", "tokens"})
    with resident(block, "model.layers.0", shards, torch.float32, CPU):
        read: list[torch.Tensor] = []
        handle = block.mlp.gate_proj.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
        with torch.no_grad():
            block(hidden, **kwargs[0])
        handle.remove()
        want = Want("mlp.gate_proj", 32, wanted)
        seen = observe(block, hidden, kwargs[0], {"here": want}, Cut.whole(len(hidden), batch), counted=counted)["here"]
    x = read[0][counted].double()
    moments = seen.moments
    assert moments.tokens == len(x) == int(counted.sum())
    torch.testing.assert_close(moments.read("input_norm", ""), x.square().mean(0).sqrt().float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(moments.read("gram", ""), (x.T @ x / len(x)).float(), rtol=1e-4, atol=1e-5)
    within = sum(
        (window[here].double() - window[here].double().mean(0)).square().sum(0)
        for window, here in zip(read[0], counted, strict=True)
    )
    torch.testing.assert_close(moments.read("input_var_within", ""), (within / len(x)).float(), rtol=1e-4, atol=1e-6)
