import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence

from eggs_ptp.errors import NumericsError
from eggs_ptp.research.graph import weighted as module
from eggs_ptp.research.graph.weighted import weighted_singular_values


@pytest.mark.parametrize(("rows", "columns"), [(40, 60), (60, 40), (5, 30), (3, 2)])
def test_singular_values_are_those_of_a_dense_svd(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    norm = torch.rand(columns, generator=generator)
    exact = torch.linalg.svdvals(weight.double() @ torch.diag(norm.double()))[:8]
    assert weighted_singular_values(weight, norm) == pytest.approx(exact.tolist(), rel=1e-5)


def test_singular_values_of_zero_matrices_are_zero():
    assert weighted_singular_values(torch.zeros(20, 20), torch.ones(20)) == [0.0] * 8
    assert weighted_singular_values(torch.ones(20, 20), torch.zeros(20), count=2) == [0.0, 0.0]


def test_a_solver_that_does_not_converge_is_reported(monkeypatch):
    def never(*_args, **_kwargs):
        raise ArpackNoConvergence("no", [], [])

    monkeypatch.setattr(module, "svds", never)
    with pytest.raises(NumericsError, match="20 x 30"):
        weighted_singular_values(torch.ones(20, 30), torch.ones(30))
