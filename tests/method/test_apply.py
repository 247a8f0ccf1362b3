"""One matrix, or the readers of one activation, through a method's steps."""

import re
import sys

import pytest
import torch

from eggs_ptp.core.mask import density, satisfies
from eggs_ptp.core.pattern import Pattern, Unstructured
from eggs_ptp.core.slabs import ALONE
from eggs_ptp.errors import MethodError, NumericsError
from eggs_ptp.method.apply import Job, OneOrder, common_permute, prune_readers
from eggs_ptp.method.catalogue import METHODS
from eggs_ptp.method.method import Method
from eggs_ptp.method.step import Step
from eggs_ptp.permute.deal import deal
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


def prune(given, *, seed=0, share_order=True):
    return prune_readers(given, statistic, seed=seed, share_order=share_order)


def row(**steps):
    return Method("mine", "Mine", "none", steps)


def ria_of(weight):
    return ria(weight, STATISTICS["input_norm"])


def test_readers_share_the_order_of_their_stacked_scores():
    pruned = prune(jobs())
    expected = deal(torch.cat([ria_of(weight) for weight in WEIGHTS.values()]), TWO_OF_FOUR, assign=True)
    for result in pruned.values():
        assert torch.equal(result.order, expected)


def test_readers_have_orders_of_their_own_on_request():
    pruned = prune(jobs(), share_order=False)
    for name, weight in WEIGHTS.items():
        assert torch.equal(pruned[name].order, deal(ria_of(weight), TWO_OF_FOUR, assign=True))
    assert not torch.equal(pruned["q"].order, pruned["k"].order)


def test_only_the_same_permutation_for_the_same_pattern_is_shared():
    plain = METHODS["ria_cp"].replace(permute=Step("deal"))
    given = [
        *jobs(q=WEIGHTS["q"]),
        *jobs(pattern=Pattern(4, 8), k=WEIGHTS["k"]),
        *jobs(plain, v=WEIGHTS["v"]),
        *jobs("ria", u=WEIGHTS["v"]),
    ]
    pruned = prune(given)
    assert torch.equal(pruned["q"].order, deal(ria_of(WEIGHTS["q"]), TWO_OF_FOUR, assign=True))
    assert torch.equal(pruned["k"].order, deal(ria_of(WEIGHTS["k"]), Pattern(4, 8), assign=True))
    assert torch.equal(pruned["v"].order, deal(ria_of(WEIGHTS["v"]), TWO_OF_FOUR))
    assert pruned["u"].order is None


MIXED = [
    *jobs(q=WEIGHTS["q"]),
    *jobs("wanda", k=WEIGHTS["k"]),
    *jobs("ria", Unstructured(0.5), v=WEIGHTS["v"]),
    *jobs("sparsegpt", s=WEIGHTS["v"]),
]


def test_one_order_that_is_given_is_taken_by_every_nm_matrix():
    given = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(7))
    pruned = prune_readers(MIXED, statistic, seed=0, one_order=OneOrder(given=given))
    for name in ("q", "k", "s"):
        assert torch.equal(pruned[name].order, given)
        assert satisfies(pruned[name].mask[:, given], TWO_OF_FOUR)
    assert pruned["v"].order is None
    assert torch.equal(pruned["v"].mask, prune(jobs("ria", Unstructured(0.5), v=WEIGHTS["v"]))["v"].mask)


def test_one_order_may_be_searched_for_in_the_scores_of_those_that_permute():
    def search(score, permute):
        assert torch.equal(score, ria_of(WEIGHTS["q"]))
        return permute(score).flip(0)

    pruned = prune_readers(MIXED, statistic, seed=0, one_order=OneOrder(search=search))
    expected = deal(ria_of(WEIGHTS["q"]), TWO_OF_FOUR, assign=True).flip(0)
    assert all(torch.equal(pruned[name].order, expected) for name in ("q", "k", "s"))
    assert all(
        result.order is None for result in prune_readers(MIXED, statistic, seed=0, one_order=OneOrder()).values()
    )
    nobody = prune_readers(jobs("wanda"), statistic, seed=0, one_order=OneOrder(search=search))
    assert all(result.order is None for result in nobody.values())


def test_the_permute_step_that_most_weights_ask_for_is_common():
    plain, pattern = METHODS["ria_cp"].replace(permute=Step("deal")).bind(), Pattern(4, 8)
    assigned = METHODS["ria_cp"].bind()
    score = ria_of(WEIGHTS["q"])
    for asked, expected in (
        ([(plain, TWO_OF_FOUR, 5), (assigned, TWO_OF_FOUR, 5)], deal(score, TWO_OF_FOUR)),
        ([(plain, TWO_OF_FOUR, 5), (assigned, TWO_OF_FOUR, 6)], deal(score, TWO_OF_FOUR, assign=True)),
        ([(plain, TWO_OF_FOUR, 5), (plain, pattern, 3), (plain, pattern, 3)], deal(score, pattern)),
    ):
        assert torch.equal(common_permute(asked, ALONE)(score), expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", ["wanda", "ria_cp", "eggs", "eggs_paper"])
def test_results_are_in_the_original_columns_with_kept_weights_as_they_were(method, pattern):
    for name, result in prune(jobs(method, pattern)).items():
        inside = result.mask if result.order is None else result.mask[:, result.order]
        assert satisfies(inside, pattern)
        assert torch.equal(result.weight[result.mask], WEIGHTS[name][result.mask])
        dropped = result.weight[~result.mask]
        assert not dropped.any()
        assert not torch.signbit(dropped).any()


def test_a_kept_negative_zero_stays_what_it_was():
    weight = torch.tensor([[1.0, 2.0, -0.0, -0.0]])
    result = prune(jobs("magnitude", Pattern(3, 4), w=weight))["w"]
    assert torch.signbit(result.weight).tolist() == [[False, False, False, True]]


def test_the_input_is_left_alone():
    before = {name: weight.clone() for name, weight in WEIGHTS.items()}
    prune(jobs("eggs_paper"))
    assert all(torch.equal(weight, before[name]) for name, weight in WEIGHTS.items())


@pytest.mark.parametrize("share_order", [True, False], ids=["readers", "matrix"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("diagonal", ["circulant", "best"])
def test_no_blocks_is_ria_with_the_same_permutation_mask_for_mask(pattern, diagonal, share_order):
    eggs = METHODS["eggs"].with_options({"select": {"B": 0, "diagonal": diagonal}})
    plain = prune(jobs("ria_cp", pattern), share_order=share_order)
    for name, result in prune(jobs(eggs, pattern), share_order=share_order).items():
        assert torch.equal(result.mask, plain[name].mask)
        assert torch.equal(result.order, plain[name].order)


def test_five_blocks_are_not():
    given = jobs("eggs_paper", q=WEIGHTS["q"])
    none = METHODS["eggs_paper"].with_options({"select": {"B": 0}})
    assert not torch.equal(prune(given)["q"].mask, prune(jobs(none, q=WEIGHTS["q"]))["q"].mask)


def test_decisions_and_seconds_are_noted():
    result = prune(jobs("eggs_paper", q=WEIGHTS["q"]))["q"]
    assert (result.facts["B"], result.facts["diagonal_rows"]) == (5, 20)
    assert 0 < result.facts["score_lost"] < 1
    assert result.seconds.keys() == {"score", "permute", "select"}
    assert prune(jobs("wanda"))["q"].facts == {}


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


def test_steps_after_the_permutation_see_data_in_its_order(own):
    module = own(
        "def look(score, weight, pattern, input_norm, gram, output_norm):\n"
        "    look.seen = (score, weight, input_norm, gram, output_norm)\n"
        "    return torch.tensor([True, True, False, False]).repeat(weight.shape[0], weight.shape[1] // 4)"
    )
    result = prune(jobs(METHODS["ria_cp"].replace(select=Step(f"{module}:look")), q=WEIGHTS["q"]))["q"]
    score, weight, norm, gram, output_norm = sys.modules[module].look.seen
    order = result.order
    assert torch.equal(weight, WEIGHTS["q"][:, order])
    assert torch.equal(score, ria_of(WEIGHTS["q"])[:, order])
    assert torch.equal(norm, STATISTICS["input_norm"][order])
    assert torch.equal(gram, STATISTICS["gram"][order][:, order])
    assert torch.equal(output_norm, OUTPUT_NORMS["q"])  # outputs stay where they are
    assert result.mask[:, order[:4]].tolist() == [[True, True, False, False]] * 24


def test_random_steps_are_keyed_by_seed_and_name_alone(own):
    module = own("def noise(weight, generator):\n    return torch.rand(weight.shape, generator=generator)")
    method = row(score=Step(f"{module}:noise"), select=Step("top"))
    same = {"a": WEIGHTS["q"], "b": WEIGHTS["q"]}
    first = prune(jobs(method, **same))
    alone = prune(jobs(method, b=WEIGHTS["q"]))
    assert torch.equal(first["b"].mask, alone["b"].mask)
    assert not torch.equal(first["a"].mask, first["b"].mask)
    assert not torch.equal(prune(jobs(method, **same), seed=1)["a"].mask, first["a"].mask)


def test_refine_gets_the_mask_and_update_the_refined_one(own):
    module = own("def other(mask):\n    return ~mask\n\n\ndef double(weight, mask):\n    return weight * 2, mask")
    steps = {"score": Step("magnitude"), "select": Step("top")}
    selected = prune(jobs(row(**steps), q=WEIGHTS["q"]))["q"].mask
    refined = row(**steps, refine=Step(f"{module}:other"), update=Step(f"{module}:double"))
    result = prune(jobs(refined, q=WEIGHTS["q"]))["q"]
    assert torch.equal(result.mask, ~selected)
    assert torch.equal(result.weight, torch.where(~selected, WEIGHTS["q"] * 2, 0.0))


@pytest.mark.parametrize(
    ("slot", "source", "error", "message"),
    [
        ("select", "def f(score):\n    return score > 0", MethodError, "q: the mask of method 'mine' is not 2:4"),
        (
            "permute",
            "def f(score):\n    return torch.zeros(score.shape[1], dtype=torch.int64)",
            MethodError,
            "q: expected a channel order",
        ),
        (
            "update",
            "def f(weight, mask):\n    return weight / 0, mask",
            NumericsError,
            "q: the updated weight holds NaN or infinity",
        ),
    ],
)
def test_a_step_that_breaks_its_promise_is_named(own, slot, source, error, message):
    steps = {"score": Step("magnitude"), "select": Step("top"), slot: Step(f"{own(source)}:f")}
    with pytest.raises(error, match=re.escape(message)):
        prune(jobs(row(**steps), q=WEIGHTS["q"]))


def test_a_refine_step_may_ask_for_the_role(own):
    module = own("def f(mask, role):\n    return ~mask if role == 'mlp' else mask")
    bound = METHODS["wanda"].replace(refine=Step(f"{module}:f")).bind()
    given = [Job(role, WEIGHTS["q"], TWO_OF_FOUR, bound, role) for role in ("attention", "mlp")]
    pruned = prune(given)
    assert torch.equal(pruned["attention"].mask, ~pruned["mlp"].mask)


def test_an_update_step_may_find_its_own_mask(own):
    module = own(
        "def first(weight, mask, pattern):\n"
        "    assert mask is None\n"
        "    keep = torch.arange(weight.shape[1]) % pattern.group < pattern.keep\n"
        "    return weight * 2, keep.expand(weight.shape)"
    )
    result = prune(jobs(row(update=Step(f"{module}:first")), q=WEIGHTS["q"]))["q"]
    assert torch.equal(result.weight[:, ::4], WEIGHTS["q"][:, ::4] * 2)
    assert not result.weight[:, 2::4].any()
    assert not result.weight[:, 3::4].any()
