from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layer
from oracles import least_squares as oracle
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.core.mask import keep_top, satisfies
from eggs_ptp.core.pattern import AnyPattern, Pattern, Unstructured
from eggs_ptp.errors import MethodError, NumericsError, PatternError
from eggs_ptp.method.step import Step
from eggs_ptp.update.alps import alps
from eggs_ptp.update.pcg import pcg
from eggs_ptp.update.sparsegpt import sparsegpt

PATTERNS: list[AnyPattern] = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(4, 8), Unstructured(0.5)]


def losses(weight: Tensor, updated: Tensor, gram: Tensor, damping: float = 0.01) -> Tensor:
    return oracle.losses(weight, updated, oracle.damped(gram, damping))


def fits(mask: Tensor, pattern: AnyPattern) -> bool:
    if isinstance(pattern, Pattern):
        return satisfies(mask, pattern)
    return bool(((~mask).sum(1) == round(round(mask.shape[1] * pattern.sparsity, 9))).all())


def admm(weight: Tensor, gram: Tensor, kept: int, group: int, rounds: int) -> tuple[Tensor, Tensor]:
    """ADMM of one row (in,), float64, with the inverse computed again for each rho."""
    hessian = oracle.damped(gram, 0.01)
    scale = hessian.diagonal().sqrt()
    unit, w, eye = hessian / torch.outer(scale, scale), weight.double() * scale, torch.eye(len(gram)).double()
    d, v, rho = w.clone(), torch.zeros_like(w), 0.1

    def project(x: Tensor) -> Tensor:
        chosen = torch.zeros(len(x), dtype=torch.bool)
        for low in range(0, len(x), group):
            sets = combinations(range(low, low + group), kept)
            chosen[list(max(sets, key=lambda columns: float(x[list(columns)].abs().sum())))] = True
        return chosen

    previous = project(w)
    for iteration in range(1, rounds + 1):
        x = (w @ unit - v + rho * d) @ torch.linalg.inv(unit + rho * eye)
        support = project(x + v / rho)
        d = (x + v / rho) * support
        v = v + rho * (x - d)
        if iteration % 3 == 0:
            moved = int((support != previous).sum())
            if not moved:
                break
            share = moved / (len(w) * kept / group)
            rho *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
            previous = support
    return support, hessian


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (3, 4), (4, 8), (2, 6)])
def test_it_is_admm_as_in_the_paper_then_the_dense_solution_on_the_support(kept, group):
    weight, gram = layer(10, 4 * group)
    updated, mask = alps(weight, None, Pattern(kept, group), gram, iterations=200)
    start = keep_top(weight.abs() * gram.diagonal().add(0.01 * gram.diagonal().mean()).sqrt(), Pattern(kept, group))
    for i, row in enumerate(weight):
        support, hessian = admm(row, gram, kept, group, 300)
        solutions = [
            oracle.on_support(row[None], candidate_mask[None], hessian) for candidate_mask in (start[i], support)
        ]
        best = min(float(oracle.losses(row[None], solution, hessian)) for solution in solutions)
        assert float(losses(row[None], updated[i : i + 1], gram)) == pytest.approx(best, rel=1e-3)
        assert any(torch.equal(mask[i], candidate_mask) for candidate_mask in (start[i], support))


def test_it_comes_close_to_the_best_of_all_masks():
    weight, gram = layer(12, 12)
    masks = oracle.group_masks(2, 4, 3)
    hessian = oracle.damped(gram, 0.01)
    best = sum(oracle.best_loss(row, hessian, masks, solve=True) for row in weight)
    updated, mask = alps(weight, None, Pattern(2, 4), gram, iterations=100)
    magnitude = keep_top(weight.abs() * hessian.diagonal().float().sqrt(), Pattern(2, 4))
    simple = float(losses(weight, oracle.on_support(weight, magnitude, hessian), gram).sum())
    alps_loss = float(losses(weight, updated, gram).sum())
    assert best * 0.999 <= alps_loss
    assert alps_loss - best < 0.5 * (simple - best)
    assert_close(updated, oracle.on_support(weight, mask, hessian).float(), rtol=1e-2, atol=1e-2)


@given(
    pattern=st.sampled_from(PATTERNS),
    groups=st.integers(1, 5),
    out=st.integers(1, 8),
    tokens=st.integers(1, 100),
    dead=st.sets(st.integers(1, 39)),
    given_mask=st.booleans(),
    rounds=st.sampled_from([0, 1, 4, 300]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_it_never_loses_more_than_exact_least_squares_on_its_start(
    pattern, groups, out, tokens, dead, given_mask, rounds, seed
):
    weight, gram = layer(out, 8 * groups, tokens=tokens, seed=seed)
    zero_channels = [j for j in dead if j < len(gram)]
    gram[zero_channels], gram[:, zero_channels] = 0.0, 0.0
    score = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed))
    if not given_mask:
        score = weight.abs() * oracle.damped(gram, 0.01).diagonal().float().sqrt()
    start = keep_top(score, pattern)
    updated, mask = alps(weight, start if given_mask else None, pattern, gram, rounds=rounds)
    plain, _ = pcg(weight, start, gram)
    scale = losses(weight, torch.zeros_like(weight), gram)
    assert (losses(weight, updated, gram) <= losses(weight, plain, gram) + 1e-5 * scale).all()
    assert fits(mask, pattern)
    assert (updated[~mask] == 0).all()
    assert torch.equal(updated[:, zero_channels], (weight * mask)[:, zero_channels])


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_it_loses_less_than_sparsegpt(pattern):
    weight, gram = layer(24, 64, tokens=1000)
    updated, _ = alps(weight, None, pattern, gram)
    sparsegpt_weight, mask = sparsegpt(weight, None, pattern, gram)
    exact, _ = pcg(weight, mask, gram)
    alps_loss, sparsegpt_loss, solved_loss = (
        losses(weight, candidate, gram).sum() for candidate in (updated, sparsegpt_weight, exact)
    )
    assert alps_loss < solved_loss < sparsegpt_loss


def test_rounds_and_rho_matter_and_a_given_mask_is_only_a_start():
    weight, gram = layer(16, 32)
    start = keep_top(torch.rand(16, 32, generator=torch.Generator().manual_seed(1)), Pattern(2, 4))
    none, same = alps(weight, start, Pattern(2, 4), gram, rounds=0)
    assert torch.equal(same, start)
    assert_close(losses(weight, none, gram), losses(weight, pcg(weight, start, gram)[0], gram), rtol=1e-4, atol=0)
    full, moved = alps(weight, start, Pattern(2, 4), gram)
    assert not torch.equal(moved, start)
    assert losses(weight, full, gram).sum() < 0.7 * losses(weight, none, gram).sum()
    assert not torch.equal(full, alps(weight, start, Pattern(2, 4), gram, rho=3.0)[0])


def test_rows_do_not_depend_on_one_another():
    weight, gram = layer(12, 32)
    together, mask = alps(weight, None, Pattern(2, 4), gram)
    again, mask_again = alps(weight, None, Pattern(2, 4), gram)
    assert torch.equal(together, again)
    assert torch.equal(mask, mask_again)
    for i in range(12):
        alone, kept = alps(weight[i : i + 1], None, Pattern(2, 4), gram)
        assert torch.equal(kept[0], mask[i])
        assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)


def test_half_precision_weights_are_solved_in_float32_and_only_read():
    weight, gram = layer(4, 16)
    rounded = weight.bfloat16()
    copies = rounded.clone(), gram.clone()
    updated, _ = alps(rounded, None, Pattern(2, 4), gram)
    assert updated.dtype == torch.float32
    assert torch.equal(updated, alps(rounded.float(), None, Pattern(2, 4), gram)[0])
    assert torch.equal(rounded, copies[0])
    assert torch.equal(gram, copies[1])


def test_a_matrix_too_wide_is_refused_or_pruned_by_sparsegpt():
    weight, gram = layer(6, 32)
    with pytest.raises(MethodError, match=r"32 input features.*steps\.update\.widest = 31"):
        alps(weight, None, Pattern(2, 4), gram, widest=31)
    alps(weight, None, Pattern(2, 4), gram, widest=32)
    instead, mask = alps(weight, None, Pattern(2, 4), gram, widest=31, wider="sparsegpt")
    assert torch.equal(mask, sparsegpt(weight, None, Pattern(2, 4), gram)[1])
    assert torch.equal(instead, pcg(weight, mask, gram)[0])
    start = keep_top(weight.abs(), Pattern(2, 4))
    instead, mask = alps(weight, start, Pattern(2, 4), gram, widest=31, wider="sparsegpt")
    assert torch.equal(mask, start)
    assert torch.equal(instead, pcg(weight, start, gram)[0])


def test_impossible_arguments_are_refused():
    weight, gram = layer(2, 10)
    with pytest.raises(PatternError, match="groups of 4"):
        alps(weight, None, Pattern(2, 4), gram)
    with pytest.raises(NumericsError, match="calibration"):
        alps(weight, None, Pattern(1, 2), torch.full((10, 10), torch.nan))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 2), Unstructured(0.25)])
def test_a_matrix_whose_inputs_never_fired_keeps_its_largest_weights(pattern):
    weight, gram = layer(5, 8)
    solved, mask = alps(weight, None, pattern, torch.zeros_like(gram))
    assert torch.equal(mask, keep_top(weight.abs(), pattern))
    assert torch.equal(solved * mask, weight * mask)


@pytest.mark.parametrize(("option", "value"), [("damping", 0.0), ("rho", 0.0), ("rounds", -1), ("wider", "magnitude")])
def test_options_have_bounds(option, value):
    with pytest.raises(MethodError, match=rf"steps\.update\.{option}"):
        Step("alps", {option: value}).bind("update")


def test_the_scale_of_the_inputs_changes_nothing():
    weight, gram = layer(4, 16)
    plain, tiny = (alps(weight, None, Pattern(2, 4), gram * scale) for scale in (1.0, 2.0**-40))
    assert torch.equal(plain[0], tiny[0])
    assert torch.equal(plain[1], tiny[1])


def test_a_failed_eigendecomposition_is_a_numerics_error(monkeypatch):
    def fails(_: Tensor) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    weight, gram = layer(2, 8)
    with pytest.raises(NumericsError, match=r"did not converge.*steps\.update\.damping"):
        alps(weight, None, Pattern(2, 4), gram)
