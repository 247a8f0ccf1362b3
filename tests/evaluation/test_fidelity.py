"""Fidelity against a float64 oracle, one position at a time."""

import copy
import math

import pytest
import torch
from tiny import byte_tokenizer

from eggs_ptp.errors import ModelError, NumericsError
from eggs_ptp.evaluation.fidelity import ComparedModel, measure_fidelity
from eggs_ptp.evaluation.perplexity import window_losses
from eggs_ptp.evaluation.window import make_windows
from eggs_ptp.models.fold import Fold, Heads
from eggs_ptp.models.load import load_model
from eggs_ptp.models.registry import family_for


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
    return make_windows(byte_tokenizer(), texts, protocol="documents", context=128)


def hidden_and_logits(model, ids):
    """Return the output of each block, and the logits, in float64."""
    outputs = []
    hooks = [
        block.register_forward_hook(lambda module, args, output: outputs.append(output)) for block in model.model.layers
    ]
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double()
    for hook in hooks:
        hook.remove()
    return [(output[0] if isinstance(output, tuple) else output)[0].double() for output in outputs], logits


def oracle(model, reference, windows):
    """Compute KL, agreement and hidden errors, one position at a time."""
    kl = 0.0
    agreeing = 0
    hidden_errors = [0.0, 0.0]
    positions = 0
    for ids in windows.sequences:
        hidden, q = hidden_and_logits(model, ids)
        reference_hidden, p = hidden_and_logits(reference, ids)
        for t in range(len(ids) - 1):
            log_p = (p[t] - p[t].logsumexp(0)).tolist()
            log_q = (q[t] - q[t].logsumexp(0)).tolist()
            kl += float(sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True)))
            agreeing += int(p[t].argmax() == q[t].argmax())
            for block in range(2):
                error = hidden[block][t] - reference_hidden[block][t]
                hidden_errors[block] += float(error.norm() / reference_hidden[block][t].norm())
            positions += 1
    return kl / positions, agreeing / positions, [error / positions for error in hidden_errors]


def test_every_mean_equals_that_of_the_oracle(dense, changed, windows):
    got = measure_fidelity(ComparedModel(changed), ComparedModel(dense), windows)
    kl, agreement, hidden = oracle(changed, dense, windows)
    assert got.fidelity.kl.value == pytest.approx(kl, rel=1e-4)
    assert got.fidelity.agreement.value == agreement
    assert [error.value for error in got.fidelity.hidden] == pytest.approx(hidden, abs=1e-6)
    assert hidden[0] == 0 < 0.01 < hidden[1]
    assert 0 < agreement < 1
    assert got.fidelity.kl.standard_error > 0


def test_losses_are_those_of_each_model_alone(dense, changed, windows):
    got = measure_fidelity(ComparedModel(changed), ComparedModel(dense), windows, batch_tokens=40)
    torch.testing.assert_close(got.losses, window_losses(changed, windows), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.reference_losses, window_losses(dense, windows), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(got.losses, got.reference_losses)


def test_kl_is_from_the_reference_to_the_model(dense, changed, windows):
    forward = measure_fidelity(ComparedModel(changed), ComparedModel(dense), windows).fidelity.kl.value
    backward = measure_fidelity(ComparedModel(dense), ComparedModel(changed), windows).fidelity.kl.value
    assert forward == pytest.approx(oracle(changed, dense, windows)[0], rel=1e-4)
    assert abs(forward - backward) > 1e-4


def test_a_model_equals_itself(dense, windows):
    fidelity = measure_fidelity(ComparedModel(dense), ComparedModel(dense), windows).fidelity
    assert (fidelity.kl.value, fidelity.agreement.value, fidelity.agreement.standard_error) == (0, 1, 0)
    assert [error.value for error in fidelity.hidden] == [0, 0]


def test_a_permutation_folded_into_the_residual_stream_is_undone(dense, windows):
    permutation = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    fold = Fold(family_for("llama", ""), Heads.of(dense.config), {"residual": permutation})
    folded = copy.deepcopy(dense)
    folded.load_state_dict({name: fold.apply(name, tensor) for name, tensor in dense.state_dict().items()})
    fidelity = measure_fidelity(ComparedModel(folded, permutation), ComparedModel(dense), windows).fidelity
    assert max(error.value for error in fidelity.hidden) < 1e-4
    assert fidelity.kl.value < 1e-6
    both = measure_fidelity(ComparedModel(folded, permutation), ComparedModel(folded, permutation), windows).fidelity
    assert max(error.value for error in both.hidden) == 0
    wrong = measure_fidelity(ComparedModel(folded), ComparedModel(dense), windows).fidelity
    assert min(error.value for error in wrong.hidden) > 0.5


def test_a_stride_counts_each_position_once(dense, changed):
    text = ["abcdefgh" * 12]
    windows = make_windows(byte_tokenizer(), text, protocol="packed", context=128, seqlen=32, stride=8)
    compared = (ComparedModel(changed), ComparedModel(dense), windows)
    expected = measure_fidelity(*compared).fidelity.kl.value
    for batch_tokens in (1, 64):
        kl = measure_fidelity(*compared, batch_tokens=batch_tokens).fidelity.kl.value
        assert kl == pytest.approx(expected, rel=1e-5)


def test_progress_ends_with_all_windows(dense, windows):
    calls = []
    measure_fidelity(
        ComparedModel(dense),
        ComparedModel(dense),
        windows,
        batch_tokens=50,
        progress=lambda *counts: calls.append(counts),
    )
    assert calls[-1] == (4, 4)
    assert len(calls) > 1


def test_models_of_different_shapes_are_refused(dense, tiny, windows):
    deep = load_model(tiny(num_hidden_layers=3))
    with pytest.raises(ModelError, match="the number of blocks of the model is 3 and that of the reference 2"):
        measure_fidelity(ComparedModel(deep), ComparedModel(dense), windows)


def test_a_broken_reference_is_named(dense, windows):
    broken = copy.deepcopy(dense)
    with torch.no_grad():
        broken.lm_head.weight[0] = math.nan
    with pytest.raises(NumericsError, match="evaluation of the reference: the loss of 4 of 4 windows"):
        measure_fidelity(ComparedModel(dense), ComparedModel(broken), windows)
