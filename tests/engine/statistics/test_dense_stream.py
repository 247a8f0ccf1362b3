"""The dense model's activations beside the pruned model, against both models run whole."""

import copy
import itertools

import pytest
import torch
from tiny import FAMILIES, OTHERS

from eggs_ptp.engine.blocks.inputs import capture_block_inputs
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.statistics.dense_stream import DenseStream, ResidualStream
from eggs_ptp.engine.statistics.hooks import collect_statistics
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 258, (6, 20), generator=torch.Generator().manual_seed(1))
NORMED = ("gemma2", "gemma3", "olmo2", "opt-350m")  # normalise the outputs of attention and MLP
GRAMS = frozenset({"gram", "cross"})


def _first_block(tiny, family="llama"):
    skeleton = load_skeleton(tiny(family))
    reader = CheckpointReader(skeleton.folder, ties=skeleton.ties)
    hidden, kwargs = capture_block_inputs(skeleton, reader, TOKENS, torch.float32, CPU, batch=3)
    with loaded_weights(skeleton.blocks[0], skeleton.block_name(0), reader, torch.float32, CPU):
        block = copy.deepcopy(skeleton.blocks[0])
    return skeleton.family, block, hidden, kwargs[0]


def _inputs(block, hidden, kwargs, path):
    inputs = []
    handle = block.get_submodule(path).register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    with torch.no_grad():
        output = block(hidden, **kwargs)
    handle.remove()
    return inputs[0].flatten(0, -2).double(), output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_the_residual_producers_of_a_family_add_up_to_its_block(tiny, name):
    family, block, hidden, kwargs = _first_block(tiny, name)
    assert len(family.residual_producers) == (0 if name in NORMED else 2)
    if name in NORMED:
        return  # the linears' outputs are normalised before they are added to the stream
    residual = ResidualStream()
    with residual.of(block, family.residual_producers), torch.no_grad():
        output = block(hidden, **kwargs)
    torch.testing.assert_close(residual.value, output[0] if isinstance(output, tuple) else output)


def _drifted(block):
    pruned = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return pruned


@pytest.mark.parametrize(("name", "batch"), [*itertools.product(FAMILIES, (1, 4, 6)), *((one, 4) for one in OTHERS)])
def test_cross_compares_with_the_outputs_of_the_dense_model(tiny, name, batch):
    family, dense, hidden, kwargs = _first_block(tiny, name)
    pruned = _drifted(dense)
    reached = hidden + 0.1 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    stream = DenseStream(hidden)
    targets = stream.advance(dense, kwargs, family, family.spaces, WindowShard.single(len(TOKENS), batch))
    for linear in {linear.input_activation: linear for linear in family.linears}.values():
        x, _ = _inputs(pruned, reached, kwargs, linear.path)
        dense_x, whole = _inputs(dense, hidden, kwargs, linear.path)
        module = dense.get_submodule(linear.path)
        weight = module.weight.T if linear.transposed else module.weight
        request = StatisticRequest(linear.path, weight.shape[1], GRAMS, target=targets[linear.input_activation])
        statistics = collect_statistics(
            pruned, reached, kwargs, {"here": request}, WindowShard.single(len(reached), batch)
        )["here"]
        cross = statistics.moments.read("cross", "here")
        y = dense_x @ weight.double().T
        if linear.path in family.residual_producers:
            streams = ((dense, hidden), (pruned, reached))
            before = [_before(*at, kwargs, family.residual_producers, linear.path) for at in streams]
            expected = (y + before[0] - before[1]).T @ x
            assert not statistics.compares_inputs
        else:
            expected = weight.double() @ (dense_x.T @ x)
            cross = weight @ cross
            assert statistics.compares_inputs
        torch.testing.assert_close(cross, (expected / len(x)).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stream.hidden, whole)


def _before(block, hidden, kwargs, residual_producers, path):
    """The residual stream to which the linear at `path` is about to add: from what the first of two adds."""
    added = []
    handle = block.get_submodule(residual_producers[0]).register_forward_hook(
        lambda _m, _a, output: added.append(output)
    )
    with torch.no_grad():
        block(hidden, **kwargs)
    handle.remove()
    stream = hidden if path == residual_producers[0] else hidden + added[0]
    return stream.flatten(0, 1).double()
