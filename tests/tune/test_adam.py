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
from eggs_ptp.tune.adam import TuneResult, adam

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
    """The same block, written out in float64."""
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["norm.weight"]
    inner = normed @ weights["up.weight"].T
    return x + (inner * torch.sigmoid(inner)) @ weights["down.weight"].T + weights["down.bias"]


def problem(windows: int = 12, *, seed: int = 0) -> tuple[Block, dict[str, Tensor], Tensor, Tensor]:
    """A block pruned to 2:4 by magnitude, its masks, its inputs, and the dense block's output on other inputs."""
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


def run(windows: int = 12, *, seed: int = 0, **options: Any) -> tuple[Block, dict[str, Tensor], TuneResult]:
    block, masks, inputs, target = problem(windows, seed=seed)
    return block, masks, adam(block, masks, inputs, target, block, None, generator_for(seed, "block"), **options)


def held_out(windows: int, holdout: float, seed: int = 0) -> Tensor:
    return torch.randperm(windows, generator=generator_for(seed, "block"))[: max(1, round(holdout * windows))]


def tuned_block(block: nn.Module, tuned: TuneResult) -> nn.Module:
    other = copy.deepcopy(block)
    other.load_state_dict({**block.state_dict(), **tuned.tensors})
    return other


@pytest.mark.parametrize("gains", [False, True])
@pytest.mark.parametrize("head", [None, HEAD])
def test_it_takes_the_steps_of_the_oracle(gains, head):
    block, masks, inputs, target = problem(1)
    # The same window repeated: its order does not matter.
    repeated = [tensor.expand(8, -1, -1) for tensor in (inputs, target)]
    options = {"epochs": 4, "batch": 2, "holdout": 0.25, "divergence": 0.7, "gains": gains}
    logits = None if head is None else (lambda hidden: hidden @ head.T)
    tuned = adam(block, masks, *repeated, block, logits, generator_for(0, "block"), **options)
    assert tuned.diagnostics["best_step"] == tuned.diagnostics["steps"] == 12
    trained = {"up.weight", "down.weight", "down.bias"} | ({"norm.weight"} if gains else set())
    assert tuned.tensors.keys() == trained
    start = block.state_dict()
    masks_by_tensor = {f"{path}.weight": mask for path, mask in masks.items()}
    fixed = {name: weight.double() for name, weight in start.items() if name not in trained}
    expected = oracle.masked_adam(
        lambda weights, x: in_float64({**fixed, **weights}, x),
        {name: start[name] for name in trained},
        masks_by_tensor,
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
    assert tuned.diagnostics["loss_before"] == pytest.approx(float(before), rel=1e-5)
    assert tuned.diagnostics["loss_after"] == pytest.approx(float(after), rel=1e-4)


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
    assert tuned.diagnostics["loss_after"] <= tuned.diagnostics["loss_before"]
    assert tuned.diagnostics["rolled_back"] == (not tuned.tensors) == (tuned.diagnostics["best_step"] == 0)
    for path, mask in masks.items() if tuned.tensors else ():
        pruned = tuned.tensors[f"{path}.weight"][~mask]
        assert (pruned == 0).all()
        assert not pruned.signbit().any()
    held_out_windows = held_out(windows, min(holdout, 1 - 1 / windows), seed)[: windows - 1]
    for model, key in ((block, "loss_before"), (tuned_block(block, tuned), "loss_after")):
        losses = [float(oracle.loss(model(inputs[i]), target[i])) for i in held_out_windows]
        assert tuned.diagnostics[key] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_target_that_other_weights_reach_is_recovered():
    block, masks, inputs, _ = problem(40)
    perturbed = copy.deepcopy(block)
    for path, mask in masks.items():
        weight = perturbed.get_submodule(path).weight
        weight += 0.1 * mask * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    tuned = adam(block, masks, inputs, perturbed(inputs), block, None, generator_for(0, "block"), epochs=60)
    assert tuned.diagnostics["loss_after"] < 1e-3 * tuned.diagnostics["loss_before"]


def test_where_nothing_can_improve_nothing_is_changed():
    block, masks, inputs, _ = problem()
    tuned = adam(block, masks, inputs, block(inputs), block, None, generator_for(0, "block"))
    assert tuned.tensors == {}
    assert tuned.diagnostics["loss_before"] == tuned.diagnostics["loss_after"] == 0.0
    assert tuned.diagnostics["rolled_back"] == 1


def test_a_rate_that_ruins_the_block_is_rolled_back():
    _, _, tuned = run(learning_rate=50.0)
    assert tuned.tensors == {}
    assert tuned.diagnostics["loss_before"] == tuned.diagnostics["loss_after"] > 0


def test_it_depends_on_the_generator_alone():
    def without_time(tuned: TuneResult) -> dict[str, Any]:
        return {name: value for name, value in tuned.diagnostics.items() if name != "seconds"}

    block, masks, inputs, target = problem()
    first, second, different = (
        adam(block, masks, inputs, target, block, None, generator_for(seed, "block"), batch=2) for seed in (0, 0, 1)
    )
    assert without_time(first) == without_time(second) != without_time(different)
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert not torch.equal(first.tensors["up.weight"], different.tensors["up.weight"])


def test_a_block_in_half_precision_is_run_in_it_and_trained_in_float32():
    block, masks, inputs, target = problem()
    block.bfloat16()
    before = copy.deepcopy(block.state_dict())
    dtypes_run = []

    def call(x: Tensor) -> Tensor:
        dtypes_run.append((x.dtype, block.up.weight.dtype))
        return block(x)

    tuned = adam(block, masks, inputs.bfloat16(), target.bfloat16(), call, None, generator_for(0, "block"))
    assert set(dtypes_run) == {(torch.bfloat16, torch.bfloat16)}
    assert {tensor.dtype for tensor in tuned.tensors.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tuned.tensors.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    model = tuned_block(block, tuned)  # rounded to the block's type: what was measured
    held_out_windows = held_out(12, 0.125)
    losses = [float(oracle.loss(model(inputs[i].bfloat16()), target[i].bfloat16())) for i in held_out_windows]
    assert tuned.diagnostics["loss_after"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_small_batches_give_the_gradient_of_large_ones(monkeypatch):
    _, _, expected = run(epochs=2)
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 1)
    _, _, in_parts = run(epochs=2)
    for name, tensor in expected.tensors.items():
        assert_close(in_parts.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_every_window_but_the_held_out_ones_is_trained_on_equally_often():
    block, masks, inputs, target = problem(11)
    trained_windows: list[Tensor] = []

    def call(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            trained_windows.extend(x)
        return block(x)

    tuned = adam(block, masks, inputs, target, call, None, generator_for(0, "block"), epochs=3, batch=4, holdout=0.2)
    counts = [sum(torch.equal(window, x) for x in trained_windows) for window in inputs]
    held_out_windows = set(held_out(11, 0.2).tolist())
    assert len(held_out_windows) == 2
    assert counts == [0 if i in held_out_windows else 3 for i in range(11)]
    assert tuned.diagnostics["steps"] == 7  # 27 windows, four at a time


def test_tokens_of_every_norm_have_the_same_weight():
    generator = torch.Generator().manual_seed(0)
    block = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
    nn.init.normal_(block.weight, generator=generator)
    masks = {"0": keep_top(block.weight.abs(), Pattern(2, 4))}
    model = nn.Sequential(block)
    # Correlated channels: otherwise the dense weights are optimal.
    inputs = torch.randn(6, 5, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator)
    target = inputs @ block.weight.T
    block.weight.copy_(torch.where(masks["0"], block.weight, 0.0))
    token_scale = torch.ones(6, 5, 1)
    token_scale[:, 0] = 2.0**12
    plain, scaled = (
        adam(model, masks, inputs * size, target * size, model, None, generator_for(0, "block"))
        for size in (1.0, token_scale)
    )
    assert torch.equal(plain.tensors["0.weight"], scaled.tensors["0.weight"])
    assert plain.diagnostics["loss_after"] == scaled.diagnostics["loss_after"] < plain.diagnostics["loss_before"]


def test_divergence_brings_predictions_closer_and_logits_may_be_computed_in_parts(monkeypatch):
    block, masks, inputs, target = problem()

    def logits(hidden: Tensor) -> Tensor:
        assert hidden.dim() == 2
        return 3 * hidden @ HEAD.T

    def divergence(tuned: TuneResult) -> float:
        log_q, log_p = (logits(x.flatten(0, 1)).log_softmax(-1) for x in (tuned_block(block, tuned)(inputs), target))
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())

    without_divergence, with_divergence = (
        adam(block, masks, inputs, target, block, logits, generator_for(0, "block"), epochs=30, divergence=weight)
        for weight in (0.0, 1.0)
    )
    without = adam(block, masks, inputs, target, block, None, generator_for(0, "block"), epochs=30)
    assert all(torch.equal(without_divergence.tensors[name], without.tensors[name]) for name in without.tensors)
    assert divergence(with_divergence) < 0.95 * divergence(without_divergence)
    monkeypatch.setattr(module, "_TOKENS_PER_LOGITS", 5)
    in_parts = adam(block, masks, inputs, target, block, logits, generator_for(0, "block"), epochs=30)
    for name, tensor in with_divergence.tensors.items():
        assert_close(in_parts.tensors[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("logits", [None, lambda hidden: hidden @ HEAD.T])
def test_tensors_made_in_inference_mode_are_accepted(logits):
    block, masks, inputs, target = problem()
    expected = adam(block, masks, inputs, target, block, logits, generator_for(0, "block"))
    with torch.inference_mode():
        tuned = adam(block, masks, inputs.clone(), target.clone(), block, logits, generator_for(0, "block"))
    assert all(torch.equal(tuned.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_a_decoder_block_comes_closer_to_the_dense_one():
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**settings, vocab_size=64, num_hidden_layers=1)).eval().requires_grad_(False)
    layer = model.model.layers[0]
    tokens = torch.randint(64, (16, 12))
    inputs = model.model.embed_tokens(tokens)
    position_embeddings = model.model.rotary_emb(inputs, torch.arange(12).unsqueeze(0))
    linears = {path: linear for path, linear in layer.named_modules() if isinstance(linear, nn.Linear)}
    for linear in linears.values():
        nn.init.normal_(linear.weight, std=0.3)

    def call(x: Tensor) -> Tensor:
        output = layer(x, position_embeddings=position_embeddings)
        return output[0] if isinstance(output, tuple) else output

    target = call(inputs)
    masks = {path: keep_top(linear.weight.abs(), Pattern(2, 4)) for path, linear in linears.items()}
    for path, linear in linears.items():
        linear.weight.copy_(torch.where(masks[path], linear.weight, 0.0))
    tuned = adam(layer, masks, inputs, target, call, None, generator_for(0, "layer"), epochs=20)
    assert tuned.tensors.keys() == {f"{path}.weight" for path in masks}
    assert tuned.diagnostics["loss_after"] < 0.8 * tuned.diagnostics["loss_before"]


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


def test_one_window_is_refused():
    with pytest.raises(CalibrationError, match="at least 2"):
        run(1)


@pytest.mark.parametrize("with_nan", ["inputs", "target"])
def test_a_nan_loss_is_refused_and_changes_nothing(with_nan):
    block, masks, inputs, target = problem()
    before = copy.deepcopy(block.state_dict())
    trained = next(i for i in range(12) if i not in held_out(12, 0.125).tolist())
    {"inputs": inputs, "target": target}[with_nan][trained, 2, 1] = float("nan")
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
