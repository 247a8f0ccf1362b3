"""Scores as in their papers: float64 loops over plain lists, one weight at a time."""

import math

Matrix = list[list[float]]


def input_norm(tokens: Matrix) -> list[float]:
    """sqrt(sum over tokens of x_j^2 / tokens); Wanda, arXiv:2306.11695, up to the common divisor."""
    norms = []
    for j in range(len(tokens[0])):
        total = 0.0
        for token in tokens:
            total += token[j] * token[j]
        norms.append(math.sqrt(total / len(tokens)))
    return norms


def magnitude(weight: Matrix) -> Matrix:
    return [[abs(w) for w in row] for row in weight]


def wanda(weight: Matrix, norms: list[float]) -> Matrix:
    """|W_ij| ||X_j||_2; arXiv:2306.11695, eq. 1."""
    return [[abs(row[j]) * norms[j] for j in range(len(row))] for row in weight]


def ria(weight: Matrix, norms: list[float], alpha: float) -> Matrix:
    """(|W_ij| / sum |W_*j| + |W_ij| / sum |W_i*|) ||X_j||_2^alpha; RIA, ICLR 2024. 0/0 is taken as 0."""
    result = []
    for i in range(len(weight)):
        line = []
        for j in range(len(weight[0])):
            column = 0.0
            for k in range(len(weight)):
                column += abs(weight[k][j])
            row = 0.0
            for w in weight[i]:
                row += abs(w)
            relative = 0.0
            if column > 0:
                relative += abs(weight[i][j]) / column
            if row > 0:
                relative += abs(weight[i][j]) / row
            activation = 1.0 if alpha == 0 else norms[j] ** alpha
            line.append(relative * activation)
        result.append(line)
    return result


def ri(weight: Matrix) -> Matrix:
    """RIA without activations."""
    return ria(weight, [1.0] * len(weight[0]), 0.0)
