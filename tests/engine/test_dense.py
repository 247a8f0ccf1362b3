"""What the dense model has beside the pruned one, against both models run whole."""

import copy
import itertools

import pytest
import torch
from tiny import FAMILIES, OTHERS

from eggs_ptp.engine.capture import capture
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.dense import DenseStream, Residual
from eggs_ptp.engine.observe import Want, observe
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.shards import Shards
from eggs_ptp.models.load import load_skeleton

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 258, (6, 20), generator=torch.Generator().manual_seed(1))
NORMED = ("gemma2", "gemma3", "olmo2", "opt-350m")  # behind attention and MLP
GRAMS = frozenset({"gram", "cross"})


def _first_block(tiny, family="llama"):
    skeleton = load_skeleton(tiny(family))
    shards = Shards(skeleton.folder, ties=skeleton.ties)
    hidden, kwargs = capture(skeleton, shards, TOKENS, torch.float32, CPU, batch=3)
    with resident(skeleton.blocks[0], skeleton.block_name(0), shards, torch.float32, CPU):
        block = copy.deepcopy(skeleton.blocks[0])
    return skeleton.family, block, hidden, kwargs[0]


def _inputs(block, hidden, kwargs, path):
    seen = []
    handle = block.get_submodule(path).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        output = block(hidden, **kwargs)
    handle.remove()
    return seen[0].flatten(0, -2).double(), output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_the_writers_of_a_family_add_up_to_its_block(tiny, name):
    family, block, hidden, kwargs = _first_block(tiny, name)
    assert len(family.writers) == (0 if name in NORMED else 2)
    if name in NORMED:
        return  # what is added to their stream are norms of what is written
    residual = Residual()
    with residual.of(block, family.writers), torch.no_grad():
        output = block(hidden, **kwargs)
    torch.testing.assert_close(residual.now, output[0] if isinstance(output, tuple) else output)


def _drifted(block):
    pruned = copy.deepcopy(block)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return pruned


@pytest.mark.parametrize(("name", "batch"), [*itertools.product(FAMILIES, (1, 4, 6)), *((one, 4) for one in OTHERS)])
def test_cross_compares_with_what_the_dense_model_puts_out(tiny, name, batch):
    family, dense, hidden, kwargs = _first_block(tiny, name)
    pruned = _drifted(dense)
    reached = hidden + 0.1 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
    stream = DenseStream(hidden)
    targets = stream.advance(dense, kwargs, family, family.spaces, Cut.whole(len(TOKENS), batch))
    for linear in {linear.reads: linear for linear in family.linears}.values():
        x, _ = _inputs(pruned, reached, kwargs, linear.path)
        asked, whole = _inputs(dense, hidden, kwargs, linear.path)
        module = dense.get_submodule(linear.path)
        weight = module.weight.T if linear.transposed else module.weight
        want = Want(linear.path, weight.shape[1], GRAMS, target=targets[linear.reads])
        seen = observe(pruned, reached, kwargs, {"here": want}, Cut.whole(len(reached), batch))["here"]
        found = seen.moments.read("cross", "here")
        y = asked @ weight.double().T
        if linear.path in family.writers:
            streams = ((dense, hidden), (pruned, reached))
            before = [_before(*at, kwargs, family.writers, linear.path) for at in streams]
            expected = (y + before[0] - before[1]).T @ x
            assert not seen.of_inputs
        else:
            expected = weight.double() @ (asked.T @ x)
            found = weight @ found
            assert seen.of_inputs
        torch.testing.assert_close(found, (expected / len(x)).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stream.hidden, whole)


def _before(block, hidden, kwargs, writers, path):
    """The residual stream to which the linear at `path` is about to add: from what the first of two adds."""
    added = []
    handle = block.get_submodule(writers[0]).register_forward_hook(lambda _m, _a, output: added.append(output))
    with torch.no_grad():
        block(hidden, **kwargs)
    handle.remove()
    stream = hidden if path == writers[0] else hidden + added[0]
    return stream.flatten(0, 1).double()
