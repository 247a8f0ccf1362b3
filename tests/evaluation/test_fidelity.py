import copy
import math

import pytest
import torch
from tiny import byte_tokenizer

from eggs_ptp.errors import ModelError, NumericsError
from eggs_ptp.evaluation.fidelity import Follower, follow
from eggs_ptp.evaluation.perplexity import window_losses
from eggs_ptp.evaluation.window import cut
from eggs_ptp.models.fold import Fold, Heads
from eggs_ptp.models.load import load_model
from eggs_ptp.models.table import family_for


@pytest.fixture(scope="module")
def dense(tiny):
    return load_model(tiny())


@pytest.fixture(scope="module")
def changed(dense):
    model = copy.deepcopy(dense)
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[:, ::2] = 0
    return model


@pytest.fixture(scope="module")
def windows():
    texts = ["the first text", "another one, somewhat longer than the first", "x y", "a fourth one"]
    return cut(byte_tokenizer(), texts, protocol="documents", context=128)


def states(model, ids):
    """What each block puts out, in float64, and the logits."""
    found = []
    hooks = [block.register_forward_hook(lambda *all: found.append(all[2])) for block in model.model.layers]
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double()
    for hook in hooks:
        hook.remove()
    return [(one[0] if isinstance(one, tuple) else one)[0].double() for one in found], logits


def oracle(model, dense, windows):
    """KL, agreement and hidden errors, a position at a time."""
    kl, same, moved, total = 0.0, 0, [0.0, 0.0], 0
    for ids in windows.sequences:
        (ours, q), (theirs, p) = states(model, ids), states(dense, ids)
        for t in range(len(ids) - 1):
            log_p, log_q = p[t] - p[t].logsumexp(0), q[t] - q[t].logsumexp(0)
            kl += float(sum(math.exp(a) * (a - b) for a, b in zip(log_p.tolist(), log_q.tolist(), strict=True)))
            same += int(p[t].argmax() == q[t].argmax())
            for block in range(2):
                moved[block] += float((ours[block][t] - theirs[block][t]).norm() / theirs[block][t].norm())
            total += 1
    return kl / total, same / total, [one / total for one in moved]


def test_every_mean_equals_the_oracles(dense, changed, windows):
    got = follow(Follower(changed), Follower(dense), windows)
    kl, agreement, hidden = oracle(changed, dense, windows)
    assert got.fidelity.kl.value == pytest.approx(kl, rel=1e-4)
    assert got.fidelity.agreement.value == agreement
    assert [one.value for one in got.fidelity.hidden] == pytest.approx(hidden, abs=1e-6)
    assert hidden[0] == 0 < 0.01 < hidden[1]
    assert 0 < agreement < 1
    assert got.fidelity.kl.standard_error > 0


def test_losses_are_those_of_each_model_alone(dense, changed, windows):
    got = follow(Follower(changed), Follower(dense), windows, batch_tokens=40)
    torch.testing.assert_close(got.losses, window_losses(changed, windows), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.reference_losses, window_losses(dense, windows), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(got.losses, got.reference_losses)


def test_kl_is_from_the_reference_to_the_model(dense, changed, windows):
    one = follow(Follower(changed), Follower(dense), windows).fidelity.kl.value
    other = follow(Follower(dense), Follower(changed), windows).fidelity.kl.value
    assert one == pytest.approx(oracle(changed, dense, windows)[0], rel=1e-4)
    assert abs(one - other) > 1e-4


def test_a_model_follows_itself(dense, windows):
    found = follow(Follower(dense), Follower(dense), windows).fidelity
    assert (found.kl.value, found.agreement.value, found.agreement.standard_error) == (0, 1, 0)
    assert [one.value for one in found.hidden] == [0, 0]


def test_a_folded_order_of_the_residual_stream_is_undone(dense, windows):
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    fold = Fold(family_for("llama", ""), Heads.of(dense.config), {"residual": order})
    folded = copy.deepcopy(dense)
    folded.load_state_dict({name: fold.apply(name, tensor) for name, tensor in dense.state_dict().items()})
    found = follow(Follower(folded, order), Follower(dense), windows).fidelity
    assert max(one.value for one in found.hidden) < 1e-4
    assert found.kl.value < 1e-6
    both = follow(Follower(folded, order), Follower(folded, order), windows).fidelity
    assert max(one.value for one in both.hidden) == 0
    wrong = follow(Follower(folded), Follower(dense), windows).fidelity
    assert min(one.value for one in wrong.hidden) > 0.5


def test_a_stride_counts_each_position_once(dense, changed):
    whole = cut(byte_tokenizer(), ["abcdefgh" * 12], protocol="packed", context=128, seqlen=32, stride=8)
    got = follow(Follower(changed), Follower(dense), whole).fidelity
    parts = [follow(Follower(changed), Follower(dense), whole, batch_tokens=size).fidelity for size in (1, 64)]
    assert all(part.kl.value == pytest.approx(got.kl.value, rel=1e-5) for part in parts)


def test_progress_ends_with_all_windows(dense, windows):
    seen = []
    follow(Follower(dense), Follower(dense), windows, batch_tokens=50, progress=lambda *now: seen.append(now))
    assert seen[-1] == (4, 4)
    assert len(seen) > 1


def test_models_that_are_not_alike_are_refused(dense, tiny, windows):
    deep = load_model(tiny(num_hidden_layers=3))
    with pytest.raises(ModelError, match="the number of blocks of the model is 3 and of the one it is set against 2"):
        follow(Follower(deep), Follower(dense), windows)


def test_a_broken_reference_is_named(dense, windows):
    broken = copy.deepcopy(dense)
    with torch.no_grad():
        broken.lm_head.weight[0] = math.nan
    with pytest.raises(NumericsError, match="evaluation of the reference: the loss of 4 of 4 windows"):
        follow(Follower(dense), Follower(broken), windows)
