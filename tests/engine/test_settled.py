"""Shortcuts through settled parts of a block: the same numbers, without running what stands."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from eggs_ptp.engine.capture import capture
from eggs_ptp.engine.cut import Cut
from eggs_ptp.engine.dense import DenseStream
from eggs_ptp.engine.observe import Want, observe
from eggs_ptp.engine.resident import resident
from eggs_ptp.engine.settled import Settled
from eggs_ptp.engine.shards import Shards
from eggs_ptp.models.load import load_skeleton

WRITERS = ("self_attn.o_proj", "mlp.down_proj")
LATE = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


@contextmanager
def _block(tiny):
    skeleton = load_skeleton(tiny("llama"))
    shards = Shards(skeleton.folder, ties=skeleton.ties)
    tokens = torch.randint(0, 258, (5, 24), generator=torch.Generator().manual_seed(1))
    hidden, kwargs = capture(skeleton, shards, tokens, torch.float32, torch.device("cpu"), batch=2)
    with resident(skeleton.blocks[0], "model.layers.0", shards, torch.float32, torch.device("cpu")):
        yield skeleton, skeleton.blocks[0], hidden, kwargs[0]


def _change(block, *paths):
    for path in paths:
        linear = block.get_submodule(path)
        linear.weight = nn.Parameter(linear.weight.detach() * 0.5, requires_grad=False)


def _run(settled, block, hidden, kwargs, batch=2):
    outputs = []
    with settled.on(block), torch.inference_mode():
        for first in range(0, len(hidden), batch):
            settled.windows = slice(first, first + batch)
            outputs.append(block(hidden[settled.windows], **kwargs))
    return torch.cat([output[0] if isinstance(output, tuple) else output for output in outputs])


def _calls(module):
    counted: list[int] = []
    module.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted


def test_a_settled_part_is_its_writer_alone_and_gives_the_same(tiny):
    with _block(tiny) as (_, block, hidden, kwargs):
        settled = Settled(WRITERS, hidden.shape)
        settled.settle(["self_attn.o_proj", *LATE])
        _run(settled, block, hidden, kwargs)  # what reaches o_proj is kept
        _change(block, "self_attn.o_proj")
        settled.settle(LATE)
        queries, writers = _calls(block.self_attn.q_proj), _calls(block.self_attn.o_proj)
        short = _run(settled, block, hidden, kwargs)
        assert len(queries) == 1  # the first batch, to see what attention returns
        assert len(writers) == 3
        _change(block, *LATE)
        short_again = _run(settled, block, hidden, kwargs)
        assert len(queries) == 1
        with torch.inference_mode():
            whole = block(hidden, **kwargs)
        torch.testing.assert_close(short_again, whole[0] if isinstance(whole, tuple) else whole)
        assert not torch.equal(short, short_again)


@pytest.mark.parametrize("changing", [["self_attn.q_proj", *LATE], ["self_attn.o_proj", "self_attn.v_proj"]])
def test_a_part_that_changes_runs_whole(tiny, changing):
    with _block(tiny) as (_, block, hidden, kwargs):
        settled = Settled(WRITERS, hidden.shape)
        settled.settle(changing)
        first = _run(settled, block, hidden, kwargs)
        _change(block, changing[0])
        second = _run(settled, block, hidden, kwargs)
        with torch.inference_mode():
            whole = block(hidden, **kwargs)
        torch.testing.assert_close(second, whole[0] if isinstance(whole, tuple) else whole)
        assert not torch.equal(first, second)


def test_a_part_of_another_form_runs_whole(tiny, monkeypatch):
    with _block(tiny) as (_, block, hidden, kwargs):
        plain = type(block.self_attn).forward
        monkeypatch.setattr(type(block.self_attn), "forward", lambda self, *a, **k: (2 * plain(self, *a, **k)[0], None))
        settled = Settled(WRITERS, hidden.shape)
        settled.settle(LATE)
        _run(settled, block, hidden, kwargs)
        queries = _calls(block.self_attn.q_proj)
        second = _run(settled, block, hidden, kwargs)
        with torch.inference_mode():
            whole = block(hidden, **kwargs)
        torch.testing.assert_close(second, whole[0] if isinstance(whole, tuple) else whole)
        assert len(queries) == 3 + 1


def test_a_run_that_stopped_short_is_not_taken_for_whole(tiny):
    with _block(tiny) as (_, block, hidden, kwargs):
        settled = Settled(WRITERS, hidden.shape)
        settled.settle(LATE)
        _run(settled, block, hidden[:2], kwargs)
        queries = _calls(block.self_attn.q_proj)
        _run(settled, block, hidden, kwargs)
        assert len(queries) == 3


def test_what_is_observed_behind_a_shortcut_is_the_same(tiny):
    """Also what the dense model has there, for which the residual stream is followed."""
    with _block(tiny) as (skeleton, block, hidden, kwargs):
        targets = DenseStream(hidden).advance(
            block, kwargs, skeleton.family, skeleton.family.spaces, Cut.whole(len(hidden), 2)
        )
        _change(block, "self_attn.o_proj")
        name = next(linear.reads for linear in skeleton.family.linears if linear.path == "mlp.down_proj")
        want = Want("mlp.down_proj", 64, frozenset({"gram", "cross"}), target=targets[name])
        settled = Settled(WRITERS, hidden.shape)
        settled.settle(LATE)
        _run(settled, block, hidden, kwargs)
        queries = _calls(block.self_attn.q_proj)
        cut = Cut.whole(len(hidden), 2)
        short = observe(block, hidden, kwargs, {"here": want}, cut, settled=settled)["here"].moments
        assert len(queries) == 1
        whole = observe(block, hidden, kwargs, {"here": want}, cut)["here"].moments
        for statistic in ("gram", "cross"):
            torch.testing.assert_close(short.read(statistic, ""), whole.read(statistic, ""))
