"""A method's steps applied to one matrix, or to the consumers of one activation."""

import re
import sys

import pytest
import torch

from eggs_ptp.core.mask import density, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.row_tiles import LOCAL_ROW_TILES
from eggs_ptp.errors import MethodError, NumericsError
from eggs_ptp.method.apply import Job, SharedPermutation, common_permute, prune_consumers
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.method.method import Method
from eggs_ptp.method.step import Step
from eggs_ptp.permute.allocate import allocate
from eggs_ptp.score.ria import ria

TWO_OF_FOUR = Pattern(2, 4)
PATTERNS = [TWO_OF_FOUR, Pattern(4, 8), Pattern(1, 4), Pattern(3, 4)]
NM_METHODS = [m for m, row in METHODS.items() if all(s.patterns in (None, Pattern) for s in row.bind().steps.values())]
COLUMNS = 32


def _random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {"q": _random(24, COLUMNS, seed=1), "k": _random(12, COLUMNS, seed=2), "v": _random(16, COLUMNS, seed=3)}
GRAM = _random(COLUMNS, COLUMNS, seed=4)
STATISTICS = {
    "input_norm": _random(COLUMNS, seed=5).exp(),
    "input_mean": _random(COLUMNS, seed=7),
    "input_var": _random(COLUMNS, seed=8).exp(),
    "input_var_within": _random(COLUMNS, seed=9).exp(),
    "gram": GRAM @ GRAM.T,
    "tokens": torch.tensor(4096.0),
}
CROSSES = {name: weight @ GRAM @ GRAM.T * 1.1 for name, weight in WEIGHTS.items()}
OUTPUT_NORMS = {name: _random(len(weight), seed=6).exp() for name, weight in WEIGHTS.items()}


def jobs(method="ria_cp", pattern=TWO_OF_FOUR, **weights):
    bound = (METHODS[method] if isinstance(method, str) else method).bind()
    return [Job(name, weight, pattern, bound) for name, weight in (weights or WEIGHTS).items()]


def statistic(matrix, name):
    if name == "cross":
        return CROSSES[matrix]
    return OUTPUT_NORMS[matrix] if name == "output_norm" else STATISTICS[name]


def prune(given_jobs, *, seed=0, share_permutation=True):
    return prune_consumers(given_jobs, statistic, seed=seed, share_permutation=share_permutation)


def row(**steps):
    return Method("mine", "Mine", "none", steps)


def ria_of(weight):
    return ria(weight, STATISTICS["input_norm"])


def test_consumers_share_the_permutation_of_their_stacked_scores():
    pruned = prune(jobs())
    expected = allocate(torch.cat([ria_of(weight) for weight in WEIGHTS.values()]), TWO_OF_FOUR, assign=True)
    for result in pruned.values():
        assert torch.equal(result.permutation, expected)


def test_consumers_have_a_permutation_each_on_request():
    pruned = prune(jobs(), share_permutation=False)
    for name, weight in WEIGHTS.items():
        assert torch.equal(pruned[name].permutation, allocate(ria_of(weight), TWO_OF_FOUR, assign=True))
    assert not torch.equal(pruned["q"].permutation, pruned["k"].permutation)


def test_only_the_same_permutation_for_the_same_pattern_is_shared():
    plain = METHODS["ria_cp"].replace(permute=Step("allocate"))
    mixed_jobs = [
        *jobs(q=WEIGHTS["q"]),
        *jobs(pattern=Pattern(4, 8), k=WEIGHTS["k"]),
        *jobs(plain, v=WEIGHTS["v"]),
        *jobs("ria", u=WEIGHTS["v"]),
    ]
    pruned = prune(mixed_jobs)
    assert torch.equal(pruned["q"].permutation, allocate(ria_of(WEIGHTS["q"]), TWO_OF_FOUR, assign=True))
    assert torch.equal(pruned["k"].permutation, allocate(ria_of(WEIGHTS["k"]), Pattern(4, 8), assign=True))
    assert torch.equal(pruned["v"].permutation, allocate(ria_of(WEIGHTS["v"]), TWO_OF_FOUR))
    assert pruned["u"].permutation is None


MIXED = [
    *jobs(q=WEIGHTS["q"]),
    *jobs("wanda", k=WEIGHTS["k"]),
    *jobs("ria", Unstructured(0.5), v=WEIGHTS["v"]),
    *jobs("sparsegpt", s=WEIGHTS["v"]),
]


def test_a_given_permutation_is_applied_to_every_nm_matrix():
    permutation = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(7))
    pruned = prune_consumers(MIXED, statistic, seed=0, shared_permutation=SharedPermutation(given=permutation))
    for name in ("q", "k", "s"):
        assert torch.equal(pruned[name].permutation, permutation)
        assert satisfies(pruned[name].mask[:, permutation], TWO_OF_FOUR)
    assert pruned["v"].permutation is None
    assert torch.equal(pruned["v"].mask, prune(jobs("ria", Unstructured(0.5), v=WEIGHTS["v"]))["v"].mask)


def test_a_shared_permutation_is_found_from_the_scores_of_the_matrices_that_permute():
    def search(score, permute):
        assert torch.equal(score, ria_of(WEIGHTS["q"]))
        return permute(score).flip(0)

    pruned = prune_consumers(MIXED, statistic, seed=0, shared_permutation=SharedPermutation(search=search))
    expected = allocate(ria_of(WEIGHTS["q"]), TWO_OF_FOUR, assign=True).flip(0)
    assert all(torch.equal(pruned[name].permutation, expected) for name in ("q", "k", "s"))
    assert all(
        result.permutation is None
        for result in prune_consumers(MIXED, statistic, seed=0, shared_permutation=SharedPermutation()).values()
    )
    without_members = prune_consumers(
        jobs("wanda"), statistic, seed=0, shared_permutation=SharedPermutation(search=search)
    )
    assert all(result.permutation is None for result in without_members.values())


def test_the_permute_step_of_most_weights_is_the_common_one():
    plain = METHODS["ria_cp"].replace(permute=Step("allocate")).bind()
    pattern = Pattern(4, 8)
    assigned = METHODS["ria_cp"].bind()
    score = ria_of(WEIGHTS["q"])
    for searches, expected in (
        ([(plain, TWO_OF_FOUR, 5), (assigned, TWO_OF_FOUR, 5)], allocate(score, TWO_OF_FOUR)),
        ([(plain, TWO_OF_FOUR, 5), (assigned, TWO_OF_FOUR, 6)], allocate(score, TWO_OF_FOUR, assign=True)),
        ([(plain, TWO_OF_FOUR, 5), (plain, pattern, 3), (plain, pattern, 3)], allocate(score, pattern)),
    ):
        assert torch.equal(common_permute(searches, LOCAL_ROW_TILES)(score), expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", ["wanda", "ria_cp", "eggs", "eggs_paper"])
def test_results_are_in_the_original_columns_with_kept_weights_as_they_were(method, pattern):
    for name, result in prune(jobs(method, pattern)).items():
        permuted = result.mask if result.permutation is None else result.mask[:, result.permutation]
        assert satisfies(permuted, pattern)
        assert torch.equal(result.weight[result.mask], WEIGHTS[name][result.mask])
        dropped = result.weight[~result.mask]
        assert not dropped.any()
        assert not torch.signbit(dropped).any()


def test_a_kept_negative_zero_keeps_its_sign():
    weight = torch.tensor([[1.0, 2.0, -0.0, -0.0]])
    result = prune(jobs("magnitude", Pattern(3, 4), w=weight))["w"]
    assert torch.signbit(result.weight).tolist() == [[False, False, False, True]]


def test_the_input_is_left_alone():
    before = {name: weight.clone() for name, weight in WEIGHTS.items()}
    prune(jobs("eggs_paper"))
    assert all(torch.equal(weight, before[name]) for name, weight in WEIGHTS.items())


@pytest.mark.parametrize("share_permutation", [True, False], ids=["consumers", "matrix"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("diagonal", ["circulant", "best"])
def test_no_blocks_is_ria_with_the_same_permutation_mask_for_mask(pattern, diagonal, share_permutation):
    eggs = METHODS["eggs"].with_options({"select": {"B": 0, "diagonal": diagonal}})
    plain = prune(jobs("ria_cp", pattern), share_permutation=share_permutation)
    for name, result in prune(jobs(eggs, pattern), share_permutation=share_permutation).items():
        assert torch.equal(result.mask, plain[name].mask)
        assert torch.equal(result.permutation, plain[name].permutation)


def test_five_blocks_are_not():
    five_blocks = jobs("eggs_paper", q=WEIGHTS["q"])
    none = METHODS["eggs_paper"].with_options({"select": {"B": 0}})
    assert not torch.equal(prune(five_blocks)["q"].mask, prune(jobs(none, q=WEIGHTS["q"]))["q"].mask)


def test_diagnostics_and_seconds_are_reported():
    result = prune(jobs("eggs_paper", q=WEIGHTS["q"]))["q"]
    assert (result.diagnostics["B"], result.diagnostics["diagonal_rows"]) == (5, 20)
    assert 0 < result.diagnostics["score_lost"] < 1
    assert result.seconds.keys() == {"score", "permute", "select"}
    assert prune(jobs("wanda"))["q"].diagnostics == {}


@pytest.mark.parametrize("group", ["row", "layer"])
def test_unstructured_counts_are_exact(group):
    method = METHODS["wanda"].with_options({"select": {"group": group}})
    mask = prune(jobs(method, Unstructured(0.6), q=WEIGHTS["q"]))["q"].mask
    counts = (~mask).sum(1) if group == "row" else (~mask).sum()
    assert (counts == round(0.6 * (COLUMNS if group == "row" else mask.numel()))).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(bad):
    broken = WEIGHTS["k"].clone()
    broken[3, 7] = bad
    with pytest.raises(NumericsError, match=r"^layers\.3\.k: the weight holds NaN or infinity"):
        prune(jobs(**{"q": WEIGHTS["q"], "layers.3.k": broken}))


def test_a_score_that_is_not_finite_is_named():
    steep = METHODS["ria"].with_options({"score": {"alpha": 1e6}})
    with pytest.raises(NumericsError, match=r"^q: its ria scores hold NaN or infinity"):
        prune(jobs(steep))


@pytest.mark.parametrize("method", NM_METHODS)
def test_a_dead_channel_an_empty_row_and_equal_scores_are_no_error(method):
    weight = torch.ones(24, COLUMNS)
    weight[2], weight[:, 5] = 0.0, 0.0
    assert density(prune(jobs(method, q=weight))["q"].mask) == 0.5


def test_steps_after_the_permutation_get_permuted_data(write_module):
    module = write_module(
        "def look(score, weight, pattern, input_norm, gram, output_norm):\n"
        "    look.seen = (score, weight, input_norm, gram, output_norm)\n"
        "    return torch.tensor([True, True, False, False]).repeat(weight.shape[0], weight.shape[1] // 4)"
    )
    result = prune(jobs(METHODS["ria_cp"].replace(select=Step(f"{module}:look")), q=WEIGHTS["q"]))["q"]
    score, weight, norm, gram, output_norm = sys.modules[module].look.seen
    permutation = result.permutation
    assert torch.equal(weight, WEIGHTS["q"][:, permutation])
    assert torch.equal(score, ria_of(WEIGHTS["q"])[:, permutation])
    assert torch.equal(norm, STATISTICS["input_norm"][permutation])
    assert torch.equal(gram, STATISTICS["gram"][permutation][:, permutation])
    assert torch.equal(output_norm, OUTPUT_NORMS["q"])  # outputs are not permuted
    assert result.mask[:, permutation[:4]].tolist() == [[True, True, False, False]] * 24


def test_random_steps_depend_on_seed_and_name_alone(write_module):
    module = write_module("def noise(weight, generator):\n    return torch.rand(weight.shape, generator=generator)")
    method = row(score=Step(f"{module}:noise"), select=Step("top"))
    same = {"a": WEIGHTS["q"], "b": WEIGHTS["q"]}
    first = prune(jobs(method, **same))
    alone = prune(jobs(method, b=WEIGHTS["q"]))
    assert torch.equal(first["b"].mask, alone["b"].mask)
    assert not torch.equal(first["a"].mask, first["b"].mask)
    assert not torch.equal(prune(jobs(method, **same), seed=1)["a"].mask, first["a"].mask)


def test_refine_gets_the_mask_and_update_the_refined_one(write_module):
    module = write_module(
        "def other(mask):\n    return ~mask\n\n\ndef double(weight, mask):\n    return weight * 2, mask"
    )
    steps = {"score": Step("magnitude"), "select": Step("top")}
    selected = prune(jobs(row(**steps), q=WEIGHTS["q"]))["q"].mask
    refined = row(**steps, refine=Step(f"{module}:other"), update=Step(f"{module}:double"))
    result = prune(jobs(refined, q=WEIGHTS["q"]))["q"]
    assert torch.equal(result.mask, ~selected)
    assert torch.equal(result.weight, torch.where(~selected, WEIGHTS["q"] * 2, 0.0))


@pytest.mark.parametrize(
    ("slot", "source", "error", "message"),
    [
        (
            "select",
            "def f(score):\n    return score > 0",
            MethodError,
            "q: the mask of method 'mine' does not satisfy 2:4",
        ),
        (
            "permute",
            "def f(score):\n    return torch.zeros(score.shape[1], dtype=torch.int64)",
            MethodError,
            "q: expected a channel permutation",
        ),
        (
            "update",
            "def f(weight, mask):\n    return weight / 0, mask",
            NumericsError,
            "q: the updated weight holds NaN or infinity",
        ),
    ],
)
def test_a_step_that_returns_something_impossible_is_named(write_module, slot, source, error, message):
    steps = {"score": Step("magnitude"), "select": Step("top"), slot: Step(f"{write_module(source)}:f")}
    with pytest.raises(error, match=re.escape(message)):
        prune(jobs(row(**steps), q=WEIGHTS["q"]))


def test_a_refine_step_may_take_the_role(write_module):
    module = write_module("def f(mask, role):\n    return ~mask if role == 'mlp' else mask")
    bound = METHODS["wanda"].replace(refine=Step(f"{module}:f")).bind()
    role_jobs = [Job(role, WEIGHTS["q"], TWO_OF_FOUR, bound, role) for role in ("attention", "mlp")]
    pruned = prune(role_jobs)
    assert torch.equal(pruned["attention"].mask, ~pruned["mlp"].mask)


def test_an_update_step_may_choose_its_own_mask(write_module):
    module = write_module(
        "def first(weight, mask, pattern):\n"
        "    assert mask is None\n"
        "    keep = torch.arange(weight.shape[1]) % pattern.group < pattern.keep\n"
        "    return weight * 2, keep.expand(weight.shape)"
    )
    result = prune(jobs(row(update=Step(f"{module}:first")), q=WEIGHTS["q"]))["q"]
    assert torch.equal(result.weight[:, ::4], WEIGHTS["q"][:, ::4] * 2)
    assert not result.weight[:, 2::4].any()
    assert not result.weight[:, 3::4].any()
