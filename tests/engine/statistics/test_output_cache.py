"""Finished modules of a block replaced by their last linear: the same numbers, without running the rest."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from eggs_ptp.engine.blocks.inputs import capture_block_inputs
from eggs_ptp.engine.blocks.weights import loaded_weights
from eggs_ptp.engine.distributed.window_shard import WindowShard
from eggs_ptp.engine.statistics.dense_stream import DenseStream
from eggs_ptp.engine.statistics.hooks import collect_statistics
from eggs_ptp.engine.statistics.output_cache import ModuleOutputCache
from eggs_ptp.engine.statistics.requests import StatisticRequest
from eggs_ptp.engine.tensors.reader import CheckpointReader
from eggs_ptp.models.load import load_skeleton

PRODUCERS = ("self_attn.o_proj", "mlp.down_proj")
LATE = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


@contextmanager
def _block(tiny):
    skeleton = load_skeleton(tiny("llama"))
    reader = CheckpointReader(skeleton.folder, ties=skeleton.ties)
    tokens = torch.randint(0, 258, (5, 24), generator=torch.Generator().manual_seed(1))
    hidden, kwargs = capture_block_inputs(skeleton, reader, tokens, torch.float32, torch.device("cpu"), batch=2)
    with loaded_weights(skeleton.blocks[0], "model.layers.0", reader, torch.float32, torch.device("cpu")):
        yield skeleton, skeleton.blocks[0], hidden, kwargs[0]


def _change(block, *paths):
    for path in paths:
        linear = block.get_submodule(path)
        linear.weight = nn.Parameter(linear.weight.detach() * 0.5, requires_grad=False)


def _run(output_cache, block, hidden, kwargs, batch=2):
    outputs = []
    with output_cache.on(block), torch.inference_mode():
        for first in range(0, len(hidden), batch):
            output_cache.windows = slice(first, first + batch)
            outputs.append(block(hidden[output_cache.windows], **kwargs))
    return torch.cat([output[0] if isinstance(output, tuple) else output for output in outputs])


def _calls(module):
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_a_finished_module_is_its_producer_alone_and_gives_the_same(tiny):
    with _block(tiny) as (_, block, hidden, kwargs):
        output_cache = ModuleOutputCache(PRODUCERS, hidden.shape)
        output_cache.mark_pending(["self_attn.o_proj", *LATE])
        _run(output_cache, block, hidden, kwargs)  # caches the input of o_proj
        _change(block, "self_attn.o_proj")
        output_cache.mark_pending(LATE)
        queries, residual_producers = _calls(block.self_attn.q_proj), _calls(block.self_attn.o_proj)
        short = _run(output_cache, block, hidden, kwargs)
        assert len(queries) == 1  # the first batch, to see what attention returns
        assert len(residual_producers) == 3
        _change(block, *LATE)
        short_again = _run(output_cache, block, hidden, kwargs)
        assert len(queries) == 1
        with torch.inference_mode():
            whole = block(hidden, **kwargs)
        torch.testing.assert_close(short_again, whole[0] if isinstance(whole, tuple) else whole)
        assert not torch.equal(short, short_again)


@pytest.mark.parametrize("pending", [["self_attn.q_proj", *LATE], ["self_attn.o_proj", "self_attn.v_proj"]])
def test_a_module_that_still_changes_runs_fully(tiny, pending):
    with _block(tiny) as (_, block, hidden, kwargs):
        output_cache = ModuleOutputCache(PRODUCERS, hidden.shape)
        output_cache.mark_pending(pending)
        first = _run(output_cache, block, hidden, kwargs)
        _change(block, pending[0])
        second = _run(output_cache, block, hidden, kwargs)
        with torch.inference_mode():
            whole = block(hidden, **kwargs)
        torch.testing.assert_close(second, whole[0] if isinstance(whole, tuple) else whole)
        assert not torch.equal(first, second)


def test_a_module_of_another_form_runs_fully(tiny, monkeypatch):
    with _block(tiny) as (_, block, hidden, kwargs):
        plain = type(block.self_attn).forward
        monkeypatch.setattr(type(block.self_attn), "forward", lambda self, *a, **k: (2 * plain(self, *a, **k)[0], None))
        output_cache = ModuleOutputCache(PRODUCERS, hidden.shape)
        output_cache.mark_pending(LATE)
        _run(output_cache, block, hidden, kwargs)
        queries = _calls(block.self_attn.q_proj)
        second = _run(output_cache, block, hidden, kwargs)
        with torch.inference_mode():
            whole = block(hidden, **kwargs)
        torch.testing.assert_close(second, whole[0] if isinstance(whole, tuple) else whole)
        assert len(queries) == 3 + 1


def test_an_incomplete_cache_is_not_used(tiny):
    with _block(tiny) as (_, block, hidden, kwargs):
        output_cache = ModuleOutputCache(PRODUCERS, hidden.shape)
        output_cache.mark_pending(LATE)
        _run(output_cache, block, hidden[:2], kwargs)
        queries = _calls(block.self_attn.q_proj)
        _run(output_cache, block, hidden, kwargs)
        assert len(queries) == 3


def test_statistics_after_a_replaced_module_are_the_same(tiny):
    """Also the comparison with the dense model, for which the residual stream is followed."""
    with _block(tiny) as (skeleton, block, hidden, kwargs):
        targets = DenseStream(hidden).advance(
            block, kwargs, skeleton.family, skeleton.family.spaces, WindowShard.single(len(hidden), 2)
        )
        _change(block, "self_attn.o_proj")
        name = next(linear.input_activation for linear in skeleton.family.linears if linear.path == "mlp.down_proj")
        request = StatisticRequest("mlp.down_proj", 64, frozenset({"gram", "cross"}), target=targets[name])
        output_cache = ModuleOutputCache(PRODUCERS, hidden.shape)
        output_cache.mark_pending(LATE)
        _run(output_cache, block, hidden, kwargs)
        queries = _calls(block.self_attn.q_proj)
        shard = WindowShard.single(len(hidden), 2)
        short = collect_statistics(block, hidden, kwargs, {"here": request}, shard, output_cache=output_cache)[
            "here"
        ].moments
        assert len(queries) == 1
        whole = collect_statistics(block, hidden, kwargs, {"here": request}, shard)["here"].moments
        for statistic in ("gram", "cross"):
            torch.testing.assert_close(short.read(statistic, ""), whole.read(statistic, ""))
