"""Symmetric Pruning, arXiv:2501.18980, as in the paper: float64 loops over plain lists.

Scores are in the layout of this package, weight[output][input]. The objective is in the paper's layout: W is (inputs,
outputs), X (a, inputs) and Y (outputs, d).
"""

import math

from oracles.scores import Matrix


def column_of(matrix: Matrix, j: int) -> list[float]:
    return [row[j] for row in matrix]


def norm(values: list[float], p: float) -> float:
    if p == 0:
        return float(sum(1 for v in values if v != 0))
    if p == math.inf:
        return max(abs(v) for v in values)
    total = 0.0
    for v in values:
        total += abs(v) ** p
    return total ** (1 / p)


def inverse(value: float) -> float:
    """1/0 is 0."""
    return 1 / value if value else 0.0


def power(base: float, exponent: float) -> float:
    return 1.0 if exponent == 0 else base**exponent


def scored(weight: Matrix, factor) -> Matrix:
    """|W_ij| * factor(i, j)."""
    return [[abs(weight[i][j]) * factor(i, j) for j in range(len(weight[0]))] for i in range(len(weight))]


def owanda(weight: Matrix, y: list[float]) -> Matrix:
    return scored(weight, lambda i, j: y[i])


def symwanda(weight: Matrix, n: list[float], y: list[float], form: str) -> Matrix:
    if form == "squared":
        return scored(weight, lambda i, j: math.sqrt(n[j] ** 2 + y[i] ** 2))
    return scored(weight, lambda i, j: n[j] + y[i])


def symmetric(weight: Matrix, form: str) -> Matrix:
    columns = [norm(column_of(weight, j), 2) for j in range(len(weight[0]))]
    rows = [norm(row, 2) for row in weight]
    return symwanda(weight, columns, rows, form)


def diagonal(weight: Matrix, n: list[float], y: list[float], alpha: float, output_alpha: float) -> Matrix:
    def factor(i: int, j: int) -> float:
        by_column = power(n[j], alpha) * inverse(norm(column_of(weight, j), 1))
        return by_column + power(y[i], output_alpha) * inverse(norm(weight[i], 1))

    return scored(weight, factor)


def lp(weight: Matrix, n: list[float], p: float, alpha: float, reweight: str) -> Matrix:
    def factor(i: int, j: int) -> float:
        a = norm(column_of(weight, j), p)
        b = norm(weight[i], p)
        if a == 0 or b == 0:  # the weight is 0
            return 0.0
        strategy = {"s1": 1 / a + 1 / b, "s2": 1 / (a + b), "s3": a + b, "s4": 1 / (1 / a + 1 / b)}
        return strategy[reweight] * power(n[j], alpha)

    return scored(weight, factor)


def per_output(weight: Matrix, n: list[float], alpha: float) -> Matrix:
    return scored(weight, lambda i, j: inverse(norm(weight[i], 1)) * power(n[j], alpha))


def per_input(weight: Matrix, n: list[float], alpha: float) -> Matrix:
    return scored(weight, lambda i, j: inverse(norm(column_of(weight, j), 1)) * power(n[j], alpha))


def stochria(
    weight: Matrix, n: list[float], alpha: float, in_row: list[list[int]], in_column: list[list[int]], rescale: bool
) -> Matrix:
    """`in_row[i]` lists the columns sampled for row i, `in_column[j]` the rows sampled for column j, with repeats."""

    def factor(i: int, j: int) -> float:
        row = sum(abs(weight[i][column]) for column in in_row[i])
        column = sum(abs(weight[row][j]) for row in in_column[j])
        if rescale:
            row *= len(weight[0]) / len(in_row[i])
            column *= len(weight) / len(in_column[j])
        return (inverse(column) + inverse(row)) * power(n[j], alpha)

    return scored(weight, factor)


def product(a: Matrix, b: Matrix) -> Matrix:
    return [[math.fsum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def objective(x: Matrix, w: Matrix, pruned: Matrix, y: Matrix, squared: bool = False) -> float:
    """(Sym): ||X (pruned - W)||_F + ||(pruned - W) Y||_F; with `squared` the sum of their squares, as in appendix B."""
    change = [[p - q for p, q in zip(new, old, strict=True)] for new, old in zip(pruned, w, strict=True)]
    squares = [math.fsum(v * v for row in product(*pair) for v in row) for pair in ((x, change), (change, y))]
    return sum(squares) if squared else sum(math.sqrt(square) for square in squares)


def cost_of_each_weight(x, w: Matrix, y, squared: bool = False) -> Matrix:
    """The objective with one weight pruned, for each weight; `x` and `y` are matrices, or functions of (j, k)."""
    costs = []
    for j in range(len(w)):
        line = []
        for k in range(len(w[0])):
            pruned = [list(row) for row in w]
            pruned[j][k] = 0.0
            x_jk, y_jk = (matrix(j, k) if callable(matrix) else matrix for matrix in (x, y))
            line.append(objective(x_jk, w, pruned, y_jk, squared))
        costs.append(line)
    return costs
