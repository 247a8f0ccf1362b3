import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reconstruction as oracle
from pydantic import ConfigDict, ValidationError, validate_call
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from eggs_ptp.core.mask import keep_top
from eggs_ptp.core.pattern import Pattern
from eggs_ptp.core.seed import generator_for
from eggs_ptp.errors import CalibrationError, MethodError, NumericsError
from eggs_ptp.tune import adam as module
from eggs_ptp.tune.adam import Tuned, adam

WIDTH = 8
HEAD = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(7))


class Block(nn.Module):
    """A norm, two linears of which the second has a bias, and a residual."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.3, generator=generator)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.up(self.norm(x))))


def in_float64(weights: Any, x: Tensor) -> Tensor:
    """The same block, written down again."""
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["norm.weight"]
    inner = normed @ weights["up.weight"].T
    return x + (inner * torch.sigmoid(inner)) @ weights["down.weight"].T + weights["down.bias"]


def problem(windows: int = 12, *, seed: int = 0) -> tuple[Block, dict[str, Tensor], Tensor, Tensor]:
    """A block pruned to 2:4 by magnitude, its masks, what reaches it, and what it gave before (on other inputs)."""
    block = Block(seed)
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(windows, 6, WIDTH, generator=generator)
    target = block(dense)
    masks = {}
    for path in ("up", "down"):
        weight = block.get_submodule(path).weight
        masks[path] = keep_top(weight.abs(), Pattern(2, 4))
        weight.copy_(torch.where(masks[path], weight, 0.0))
    return block, masks, dense + 0.1 * torch.randn(dense.shape, generator=generator), target


def run(windows: int = 12, *, seed: int = 0, **options: Any) -> tuple[Block, dict[str, Tensor], Tuned]:
    block, masks, inputs, target = problem(windows, seed=seed)
    return block, masks, adam(block, masks, inputs, target, block, None, generator_for(seed, "block"), **options)


def held_out(windows: int, holdout: float, seed: int = 0) -> Tensor:
    return torch.randperm(windows, generator=generator_for(seed, "block"))[: max(1, round(holdout * windows))]


def tuned_block(block: nn.Module, tuned: Tuned) -> nn.Module:
    other = copy.deepcopy(block)
    other.load_state_dict({**block.state_dict(), **tuned.tensors})
    return other


@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize("head", [None, HEAD])
def test_it_takes_the_steps_of_the_oracle(gains, head):
    block, masks, inputs, target = problem(1)
    same = [part.expand(8, -1, -1) for part in (inputs, target)]  # one window over and over: no order to speak of
    options = {"epochs": 4, "batch": 2, "holdout": 0.25, "divergence": 0.7, "gains": gains}
    logits = None if head is None else (lambda hidden: hidden @ head.T)
    tuned = adam(block, masks, *same, block, logits, generator_for(0, "block"), **options)
    assert tuned.facts["best_step"] == tuned.facts["steps"] == 12
    trained = {"up.weight", "down.weight", "down.bias"} | ({"norm.weight"} if gains else set())
    assert tuned.tensors.keys() == trained
    start = block.state_dict()
    given = {f"{path}.weight": mask for path, mask in masks.items()}
    fixed = {name: weight.double() for name, weight in start.items() if name not in trained}
    expected = oracle.descend(
        lambda weights, x: in_float64({**fixed, **weights}, x),
        {name: start[name] for name in trained},
        given,
        inputs[0],
        target[0],
        12,
        0.02,
        head,
        0.7,
    )
    for name in trained:
        assert not torch.equal(tuned.tensors[name], start[name])
        assert_close(tuned.tensors[name], expected[name].float(), rtol=1e-4, atol=1e-5)
    before = oracle.loss(
        in_float64({k: v.double() for k, v in start.items()}, inputs[0].double()), target[0], head, 0.7
    )
    after = oracle.loss(in_float64({**fixed, **expected}, inputs[0].double()), target[0], head, 0.7)
    assert tuned.facts["loss_before"] == pytest.approx(float(before), rel=1e-5)
    assert tuned.facts["loss_after"] == pytest.approx(float(after), rel=1e-4)


@given(
    windows=st.integers(2, 14),
    epochs=st.floats(0.01, 4),
    learning_rate=st.sampled_from([1e-9, 1e-3, 0.02, 0.3, 30.0]),
    batch=st.integers(1, 20),
    holdout=st.floats(0.01, 0.99),
    checks=st.integers(1, 30),
    gains=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_held_out_loss_never_rises_and_what_is_pruned_stays_zero(windows, seed, holdout, **options):
    block, masks, inputs, target = problem(windows, seed=seed)
    before = copy.deepcopy(block.state_dict())
    tuned = adam(block, masks, inputs, target, block, None, generator_for(seed, "block"), holdout=holdout, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert tuned.facts["loss_after"] <= tuned.facts["loss_before"]
    assert tuned.facts["rolled_back"] == (not tuned.tensors) == (tuned.facts["best_step"] == 0)
    for path, mask in masks.items() if tuned.tensors else ():
        pruned = tuned.tensors[f"{path}.weight"][~mask]
        assert (pruned == 0).all()
        assert not pruned.signbit().any()
    held = held_out(windows, min(holdout, 1 - 1 / windows), seed)[: windows - 1]
    for model, fact in ((block, "loss_before"), (tuned_block(block, tuned), "loss_after")):
        losses = [float(oracle.loss(model(inputs[i]), target[i])) for i in held]
        assert tuned.facts[fact] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_what_other_weights_could_give_is_found():
    block, masks, inputs, _ = problem(40)
    shaken = copy.deepcopy(block)
    for path, mask in masks.items():
        weight = shaken.get_submodule(path).weight
        weight += 0.1 * mask * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    tuned = adam(block, masks, inputs, shaken(inputs), block, None, generator_for(0, "block"), epochs=60)
    assert tuned.facts["loss_after"] < 1e-3 * tuned.facts["loss_before"]


def test_where_nothing_can_be_won_nothing_is_changed():
    block, masks, inputs, _ = problem()
    tuned = adam(block, masks, inputs, block(inputs), block, None, generator_for(0, "block"))
    assert tuned.tensors == {}
    assert tuned.facts["loss_before"] == tuned.facts["loss_after"] == 0.0
    assert tuned.facts["rolled_back"] == 1


def test_a_rate_that_ruins_the_block_is_rolled_back():
    _, _, tuned = run(learning_rate=50.0)
    assert tuned.tensors == {}
    assert tuned.facts["loss_before"] == tuned.facts["loss_after"] > 0


def test_it_is_decided_by_the_generator_alone():
    def without_time(tuned: Tuned) -> dict[str, Any]:
        return {name: fact for name, fact in tuned.facts.items() if name != "seconds"}

    block, masks, inputs, target = problem()
    one, two, other = (
        adam(block, masks, inputs, target, block, None, generator_for(seed, "block"), batch=2) for seed in (0, 0, 1)
    )
    assert without_time(one) == without_time(two) != without_time(other)
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert not torch.equal(one.tensors["up.weight"], other.tensors["up.weight"])


def test_a_block_in_half_precision_is_run_in_it_and_trained_in_float32():
    block, masks, inputs, target = problem()
    block.bfloat16()
    before = copy.deepcopy(block.state_dict())
    ran = []

    def call(x: Tensor) -> Tensor:
        ran.append((x.dtype, block.up.weight.dtype))
        return block(x)

    tuned = adam(block, masks, inputs.bfloat16(), target.bfloat16(), call, None, generator_for(0, "block"))
    assert set(ran) == {(torch.bfloat16, torch.bfloat16)}
    assert {tensor.dtype for tensor in tuned.tensors.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tuned.tensors.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    model = tuned_block(block, tuned)  # rounded to the block's type: what was measured
    held = held_out(12, 0.125)
    losses = [float(oracle.loss(model(inputs[i].bfloat16()), target[i].bfloat16())) for i in held]
    assert tuned.facts["loss_after"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_small_batches_give_the_gradient_of_large_ones(monkeypatch):
    _, _, whole = run(epochs=2)
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    _, _, parts = run(epochs=2)
    for name, tensor in whole.tensors.items():
        assert_close(parts.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_every_window_but_the_held_out_ones_is_trained_on_equally_often():
    block, masks, inputs, target = problem(11)
    seen: list[Tensor] = []

    def call(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.extend(x)
        return block(x)

    tuned = adam(block, masks, inputs, target, call, None, generator_for(0, "block"), epochs=3, batch=4, holdout=0.2)
    counts = [sum(torch.equal(window, x) for x in seen) for window in inputs]
    held = set(held_out(11, 0.2).tolist())
    assert len(held) == 2
    assert counts == [0 if i in held else 3 for i in range(11)]
    assert tuned.facts["steps"] == 7  # 27 windows, four at a time


def test_tokens_weigh_the_same_whatever_their_size():
    generator = torch.Generator().manual_seed(0)
    block = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    nn.init.normal_(block.weight, generator=generator)
    masks = {"0": keep_top(block.weight.abs(), Pattern(2, 4))}
    model = nn.Sequential(block)
    # Channels that move together: otherwise the dense weights are the best there are.
    inputs = torch.randn(6, 5, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator)
    target = inputs @ block.weight.T
    block.weight.copy_(torch.where(masks["0"], block.weight, 0.0))
    massive = torch.ones(6, 5, 1)
    massive[:, 0] = 2.0**12
    plain, scaled = (
        adam(model, masks, inputs * size, target * size, model, None, generator_for(0, "block"))
        for size in (1.0, massive)
    )
    assert torch.equal(plain.tensors["0.weight"], scaled.tensors["0.weight"])
    assert plain.facts["loss_after"] == scaled.facts["loss_after"] < plain.facts["loss_before"]


def test_logits_few_at_a_time_are_the_same_and_bring_predictions_nearer(monkeypatch):
    block, masks, inputs, target = problem()

    def logits(hidden: Tensor) -> Tensor:
        assert hidden.dim() == 2
        return 3 * hidden @ HEAD.T

    def divergence(tuned: Tuned) -> float:
        found, wanted = (logits(x.flatten(0, 1)).log_softmax(-1) for x in (tuned_block(block, tuned)(inputs), target))
        return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    alone, led = (
        adam(block, masks, inputs, target, block, logits, generator_for(0, "block"), epochs=30, divergence=weight)
        for weight in (0.0, 1.0)
    )
    without = adam(block, masks, inputs, target, block, None, generator_for(0, "block"), epochs=30)
    assert all(torch.equal(alone.tensors[name], without.tensors[name]) for name in without.tensors)
    assert divergence(led) < 0.95 * divergence(alone)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 5)
    parts = adam(block, masks, inputs, target, block, logits, generator_for(0, "block"), epochs=30)
    for name, tensor in led.tensors.items():
        assert_close(parts.tensors[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("logits", [None, lambda hidden: hidden @ HEAD.T])
def test_tensors_of_inference_mode_serve(logits):
    block, masks, inputs, target = problem()
    expected = adam(block, masks, inputs, target, block, logits, generator_for(0, "block"))
    with torch.inference_mode():
        tuned = adam(block, masks, inputs.clone(), target.clone(), block, logits, generator_for(0, "block"))
    assert all(torch.equal(tuned.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_a_decoder_block_comes_nearer_to_the_dense_one():
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**settings, vocab_size=64, num_hidden_layers=1)).eval().requires_grad_(False)
    layer = model.model.layers[0]
    tokens = torch.randint(64, (16, 12))
    inputs = model.model.embed_tokens(tokens)
    places = model.model.rotary_emb(inputs, torch.arange(12).unsqueeze(0))
    linears = {path: part for path, part in layer.named_modules() if isinstance(part, nn.Linear)}
    for linear in linears.values():
        nn.init.normal_(linear.weight, std=0.3)

    def call(x: Tensor) -> Tensor:
        output = layer(x, position_embeddings=places)
        return output[0] if isinstance(output, tuple) else output

    target = call(inputs)
    masks = {path: keep_top(linear.weight.abs(), Pattern(2, 4)) for path, linear in linears.items()}
    for path, linear in linears.items():
        linear.weight.copy_(torch.where(masks[path], linear.weight, 0.0))
    tuned = adam(layer, masks, inputs, target, call, None, generator_for(0, "layer"), epochs=20)
    assert tuned.tensors.keys() == {f"{path}.weight" for path in masks}
    assert tuned.facts["loss_after"] < 0.8 * tuned.facts["loss_before"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: {**masks, "gate": masks["up"]}, "gate.*no such linear"),
        (lambda masks: {"up": masks["up"][:3]}, r"up.*\[3, 8\].*\[16, 8\]"),
    ],
)
def test_masks_must_fit_the_block(change: Callable[[Any], Any], message: str):
    block, masks, inputs, target = problem()
    with pytest.raises(MethodError, match=message):
        adam(block, change(masks), inputs, target, block, None, generator_for(0, "block"))


def test_one_window_cannot_be_parted():
    with pytest.raises(CalibrationError, match="at least 2"):
        run(1)


@pytest.mark.parametrize("poisoned", ["inputs", "target"])
def test_a_loss_that_is_no_number_is_refused_and_changes_nothing(poisoned):
    block, masks, inputs, target = problem()
    before = copy.deepcopy(block.state_dict())
    trained = next(i for i in range(12) if i not in held_out(12, 0.125).tolist())
    {"inputs": inputs, "target": target}[poisoned][trained, 2, 1] = float("nan")
    with pytest.raises(NumericsError, match="NaN or infinite after"):
        adam(block, masks, inputs, target, block, None, generator_for(0, "block"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("learning_rate", 0), ("learning_rate", float("inf")), ("batch", 0), ("holdout", 0.0),
     ("holdout", 1.0), ("checks", 0), ("divergence", -1.0)],
)  # fmt: skip
def test_options_have_bounds(option, value):
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(adam)
    block, masks, inputs, target = problem()
    with pytest.raises(ValidationError, match=option):
        checked(block, masks, inputs, target, block, None, generator_for(0, "block"), **{option: value})
