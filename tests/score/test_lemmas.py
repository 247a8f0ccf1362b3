"""The lemmas of Symmetric Pruning, arXiv:2501.18980: pruning a weight costs its score, with the paper's X and Y.

Everything is in the paper's layout, W of shape (b, c) = (inputs, outputs); our scores are transposed.
"""

import math

import pytest
import torch
from oracles.symwanda import Matrix, column_of, cost_of_each_weight, norm
from torch import Tensor
from torch.testing import assert_close

from eggs_ptp.score._sample import draw
from eggs_ptp.score.diagonal import diagonal
from eggs_ptp.score.lp import lp
from eggs_ptp.score.owanda import owanda
from eggs_ptp.score.ri import ri
from eggs_ptp.score.ria import ria
from eggs_ptp.score.stochria import stochria
from eggs_ptp.score.symmetric import symmetric
from eggs_ptp.score.symwanda import symwanda
from eggs_ptp.score.wanda import wanda

B, C = 6, 4
SEEDED = torch.Generator().manual_seed(0)


def random(*shape: int) -> Matrix:
    return torch.randn(*shape, generator=SEEDED).tolist()


W = random(B, C)
ROWS, COLUMNS = [W[j] for j in range(B)], [column_of(W, k) for k in range(C)]  # W_j: and W_:k
WEIGHT = torch.tensor(W).T  # in our layout, (out, in)


def zeros(rows: int, columns: int) -> Matrix:
    return [[0.0] * columns for _ in range(rows)]


def column_norms(x: Matrix) -> list[float]:
    return [norm(column_of(x, j), 2) for j in range(len(x[0]))]


def row_norms(y: Matrix) -> list[float]:
    return [norm(row, 2) for row in y]


def matrix_of_columns(columns: list[list[float]]) -> Matrix:
    return [list(row) for row in zip(*columns, strict=True)]


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def assert_score_is_cost(x, y, score: Tensor, squared: bool = False) -> None:
    """Check that our score of each weight is its cost by X and Y (matrices, or functions that make them per weight)."""
    costs = torch.tensor(cost_of_each_weight(x, W, y, squared), dtype=torch.float64)
    if squared:
        costs = costs.sqrt()
    assert_close(score.T.double(), costs, rtol=1e-5, atol=1e-7)


def test_lemma_3_1_any_x_and_y():
    x, y = random(7, B), random(C, 5)
    assert_score_is_cost(x, y, symwanda(WEIGHT, tensor(column_norms(x)), tensor(row_norms(y))))


def test_appendix_b_any_x_and_y_squared():
    x, y = random(7, B), random(C, 5)
    assert_score_is_cost(
        x, y, symwanda(WEIGHT, tensor(column_norms(x)), tensor(row_norms(y)), form="squared"), squared=True
    )


def test_corollary_3_2_no_y():
    x = random(7, B)
    assert_score_is_cost(x, zeros(C, 5), wanda(WEIGHT, tensor(column_norms(x))))


def test_corollary_3_3_no_x():
    y = random(C, 5)
    assert_score_is_cost(zeros(7, B), y, owanda(WEIGHT, tensor(row_norms(y))))


def test_corollary_3_4_x_and_y_are_w_transposed():
    transposed = matrix_of_columns(W)  # (c, b): a = c and d = b
    assert_score_is_cost(transposed, transposed, symmetric(WEIGHT))
    assert_score_is_cost(transposed, transposed, symmetric(WEIGHT, form="squared"), squared=True)


def test_theorem_3_5_columns_of_one_number():
    """X_:j = t_j (1; ...; 1) in R^b and Y_k: = s_k (1, ..., 1) in R^c."""
    t = [1 / (math.sqrt(B) * norm(row, 1)) for row in ROWS]
    s = [1 / (math.sqrt(C) * norm(column, 1)) for column in COLUMNS]
    x = matrix_of_columns([[t[j]] * B for j in range(B)])
    y = [[s[k]] * C for k in range(C)]
    assert_score_is_cost(x, y, ri(WEIGHT))


def test_theorem_3_5_diagonal_matrices():
    x, y = zeros(B, B), zeros(C, C)
    for j in range(B):
        x[j][j] = 1 / norm(ROWS[j], 1)
    for k in range(C):
        y[k][k] = 1 / norm(COLUMNS[k], 1)
    assert_score_is_cost(x, y, ri(WEIGHT))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_lemma_3_6_one_entry_each_made_for_one_weight(alpha):
    """The paper's A has its entry in row j, but the objective uses column j; here it is in column j.

    Y_k: holds ||C_:j||^alpha, so X and Y serve the weight (j, k) alone: no one pair gives RIA for all.
    """
    activations = column_norms(random(7, B))
    p, s = 2, 1  # any valid index

    def x(j: int, k: int) -> Matrix:
        entries = zeros(7, B)
        entries[p][j] = activations[j] ** alpha / norm(ROWS[j], 1)
        return entries

    def y(j: int, k: int) -> Matrix:
        entries = zeros(C, 5)
        entries[k][s] = activations[j] ** alpha / norm(COLUMNS[k], 1)
        return entries

    assert_score_is_cost(x, y, ria(WEIGHT, tensor(activations), alpha=alpha))


def test_lemma_3_7_any_a_and_b_times_diagonal_matrices():
    a, b = random(7, B), random(C, 5)
    x = [[a[i][j] / norm(ROWS[j], 1) for j in range(B)] for i in range(7)]
    y = [[b[k][i] / norm(COLUMNS[k], 1) for i in range(5)] for k in range(C)]
    assert_score_is_cost(x, y, diagonal(WEIGHT, tensor(column_norms(a)), tensor(row_norms(b))))


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 4, 0, math.inf])
def test_lemma_3_8_along_the_weights(p):
    """X_:j = W_j:^T / (||W_j:||_p ||W_j:||_2), Y_k: = W_:k^T / (||W_:k||_p ||W_:k||_2)."""
    x = matrix_of_columns([[w / (norm(row, p) * norm(row, 2)) for w in row] for row in ROWS])  # (c, b)
    y = [[w / (norm(column, p) * norm(column, 2)) for w in column] for column in COLUMNS]  # (c, b)
    assert_score_is_cost(x, y, lp(WEIGHT, torch.ones(B), p=p, alpha=0.0))


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 4, 0, math.inf])
def test_lemma_3_9_along_any_unit_vectors(p):
    u, v = (torch.nn.functional.normalize(torch.randn(length, generator=SEEDED), dim=0) for length in (7, 5))
    x = matrix_of_columns([[float(e) / norm(row, p) for e in u] for row in ROWS])
    y = [[float(e) / norm(column, p) for e in v] for column in COLUMNS]
    assert_score_is_cost(x, y, lp(WEIGHT, torch.ones(B), p=p, alpha=0.0))


@pytest.mark.parametrize("along", ["ones", "weights"])
@pytest.mark.parametrize("mode", ["each", "shared"])
def test_lemma_3_10_on_what_was_sampled(mode, along):
    """X_:j is 1 on S_j, or the weights there, scaled to length 1 / ||W_j:S_j||_1; Y_k: likewise. S_j is in 1 .. c."""
    tau = 2  # half of the shorter side
    score = stochria(WEIGHT, torch.ones(B), torch.Generator().manual_seed(3), alpha=0.0, beta=0.5, draw=mode)
    generator = torch.Generator().manual_seed(3)
    # `stochria` samples for outputs first: of the b inputs for each k, then of the c outputs for each j.
    in_column, in_row = (
        draw((1 if mode == "shared" else count, width), tau, generator).expand(count, width).tolist()
        for count, width in ((C, B), (B, C))
    )

    def vector(line: list[float], drawn: list[bool]) -> list[float]:
        sampled = [w if chosen else 0.0 for w, chosen in zip(line, drawn, strict=True)]
        direction = sampled if along == "weights" else [float(chosen) for chosen in drawn]
        return [e / (norm(direction, 2) * norm(sampled, 1)) for e in direction]

    x = matrix_of_columns([vector(row, drawn) for row, drawn in zip(ROWS, in_row, strict=True)])
    y = [vector(column, drawn) for column, drawn in zip(COLUMNS, in_column, strict=True)]
    assert_score_is_cost(x, y, score)
    if along == "ones":  # the paper's 1 / (||W_j:S_j||_1 sqrt(tau)) on S_j
        total = sum(abs(w) for w, chosen in zip(ROWS[0], in_row[0], strict=True) if chosen)
        assert sorted(set(column_of(x, 0))) == pytest.approx([0.0, 1 / (total * math.sqrt(tau))])
