"""keep_zeros: pruned weights are exactly zero after every step of training."""

import pytest
import torch
from torch import nn

import eggs_ptp
from eggs_ptp.core.mask import count_violations
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.errors import PatternError
from eggs_ptp.sparse.keep_zeros import keep_zeros

TWO_OF_FOUR = Pattern(2, 4)


def pruned_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.view(-1, 4)[:, [0, 3]] = 0
        model[0].weight[0, 0] = -0.0
    return model


def optimizer_of(kind, model):
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)


def train(model, optimizer, steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = (torch.randn(8, width, generator=generator) for width in (16, 5))
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_pruned_weights_stay_zero_and_kept_ones_are_trained(kind):
    model = pruned_model()
    optimizer = optimizer_of(kind, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keep_zeros(model, optimizer)
    for step in range(3):
        train(model, optimizer, 1)
        for layer in (model[0], model[2]):
            assert not count_violations(layer.weight != 0, TWO_OF_FOUR), step
    for layer, name in ((model[0], "0.weight"), (model[2], "2.weight")):
        kept = before[name] != 0
        assert (layer.weight[kept] != before[name][kept]).any()
        assert (layer.weight[~kept].view(torch.int32) == 0).all()  # +0.0, bit for bit
    assert not torch.equal(model[0].bias, before["0.bias"])
    # Gradients and momentum of the pruned weights are not masked: without the hook these weights would have moved.
    state = optimizer.state[model[0].weight]
    moments = state["exp_avg" if kind == "adamw" else "momentum_buffer"]
    assert moments[before["0.weight"] == 0].any()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_without_it_pruned_weights_change(kind):
    model = pruned_model()
    train(model, optimizer_of(kind, model))
    assert count_violations(model[0].weight != 0, TWO_OF_FOUR)


def test_kept_weights_change_as_without_it():
    """One step of plain SGD: the hook changes nothing but the pruned weights."""
    held = pruned_model()
    free = pruned_model()
    for model in (held, free):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if model is held:
            keep_zeros(model, optimizer)
        train(model, optimizer, 1)
    mask = pruned_model()[0].weight != 0
    assert torch.equal(held[0].weight, free[0].weight * mask)
    assert not torch.equal(held[0].weight, free[0].weight)


def test_nan_in_a_pruned_weight_is_zero_again():
    model = pruned_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer)
    model[0].weight.grad = torch.full_like(model[0].weight, float("nan"))
    optimizer.step()
    assert (model[0].weight.view(-1, 4)[:, [0, 3]] == 0).all()


def test_remove_lets_weights_change_again():
    model = pruned_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer).remove()
    train(model, optimizer)
    assert count_violations(model[0].weight != 0, TWO_OF_FOUR)


def test_a_new_adapter_of_zeros_stays_free():
    model = pruned_model()
    model.append(nn.Linear(5, 5))
    nn.init.zeros_(model[3].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keep_zeros(model, optimizer)
    train(model, optimizer)
    assert model[3].weight.all()
    assert not count_violations(model[2].weight != 0, TWO_OF_FOUR)


def test_models_and_optimizers_without_pruned_weights_are_refused():
    dense = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(PatternError, match=r"no linear of this Sequential has pruned weights.*load a pruned folder"):
        keep_zeros(dense, torch.optim.SGD(dense.parameters(), lr=0.1))
    with pytest.raises(PatternError, match="this SGD has none of the 2 pruned weights"):
        keep_zeros(pruned_model(), torch.optim.SGD(dense.parameters(), lr=0.1))
    packed = eggs_ptp.pack(pruned_model(), "2:4")
    with pytest.raises(PatternError, match="packed ones: eggs export"):
        keep_zeros(packed, torch.optim.SGD(dense.parameters(), lr=0.1))


def test_a_pruned_folder_trains_and_packs_again(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    eggs_ptp.prune(str(tiny()), tmp_path / "out", method="magnitude")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    eggs_ptp.keep_zeros(model, optimizer)
    ids = torch.arange(24).view(2, 12)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert "NMLinear" in str(eggs_ptp.pack(model.eval(), "2:4").model.layers[0].mlp.up_proj.__class__)


def accidental_zeros(model):
    """Put zeros that no pruning made into a linear and an embedding, the head being tied to the latter."""
    with torch.no_grad():
        model.get_input_embeddings().weight[3, ::5] = 0
        model.model.layers[0].mlp.down_proj.weight[1, 2] = 0
    return model


@pytest.mark.parametrize("record", [True, False])
def test_only_pruned_matrices_are_held(tiny, tmp_path, record):
    from transformers import AutoModelForCausalLM

    eggs_ptp.prune(str(tiny(tie_word_embeddings=True)), tmp_path / "out", method="magnitude")
    if not record:
        (tmp_path / "out" / "eggs.json").unlink()
    model = accidental_zeros(AutoModelForCausalLM.from_pretrained(tmp_path / "out")).train()
    embedding = model.get_input_embeddings().weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    eggs_ptp.keep_zeros(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (embedding[3, ::5] != 0).all()
    assert not count_violations(model.model.layers[1].mlp.up_proj.weight != 0, TWO_OF_FOUR)


def test_an_unstructured_or_gathered_model_is_held_by_its_record(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    for name, settings in (
        ("half", {"pattern": "0.5"}),
        ("gather", {"method": "magnitude+allocate", "permutation": "gather"}),
    ):
        eggs_ptp.prune(str(tiny()), tmp_path / name, **{"method": "magnitude", **settings})
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        wrapped = nn.Sequential(nn.Sequential(model))
        weight = model.model.layers[0].self_attn.q_proj.weight
        zeros = weight == 0
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        eggs_ptp.keep_zeros(wrapped, optimizer)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert torch.equal(weight == 0, zeros)


@pytest.mark.parametrize("when", ["before", "after"])
def test_it_works_before_and_after_accelerate_prepares(when):
    accelerate = pytest.importorskip("accelerate")
    model = pruned_model()
    optimizer = optimizer_of("adamw", model)
    accelerator = accelerate.Accelerator(cpu=True)
    if when == "before":
        keep_zeros(model, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    if when == "after":
        handle = keep_zeros(model, optimizer)
    train(model, optimizer)
    assert not count_violations(model[0].weight != 0, TWO_OF_FOUR)
    assert not count_violations(model[2].weight != 0, TWO_OF_FOUR)
    if when == "after":
        handle.remove()
        train(model, optimizer)
        assert count_violations(model[0].weight != 0, TWO_OF_FOUR)


def test_it_works_in_a_callback_of_the_trainer(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class KeepZeros(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            eggs_ptp.keep_zeros(model, optimizer)

    eggs_ptp.prune(str(tiny()), tmp_path / "out", method="magnitude")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    rows = [{"input_ids": list(range(i, i + 12)), "labels": list(range(i, i + 12))} for i in range(8)]
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=3, learning_rate=1e-2, report_to=[], save_strategy="no", use_cpu=True
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=[KeepZeros()]).train()
    after = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(after == 0, before == 0)
    assert not torch.equal(after, before)
