"""Estimate of the time of a run: forward passes, sums of statistics, and the steps that solve for weights."""

import functools
import os
import time
from typing import Any, Final, NamedTuple

import torch

from eggs_ptp.core.stats import STATISTICS
from eggs_ptp.engine.planning.plan import MatrixPlan, Plan, matrices_by_activation, permutation_stride

# Operations over rows * columns^2 of a matrix, measured with SmolLM2-135M; a step that is not here counts as `_OTHER`.
_UPDATE_COSTS: Final = {
    "sparsegpt": 8.0,
    "gptq": 8.0,
    "group_descent": 12.0,
    "reselect": 40.0,
    "connect": 50.0,
    "pcg": 40.0,
    "alps": 200.0,
}
_OTHER: Final = 20.0
_FACTORS: Final = 8.0  # operations over columns^3 for the factors of a Gram matrix
_PASS_OVERHEAD: Final = 1.3  # of a forward pass over its matrix products: attention, norms, copies
_TUNE_PASSES: Final = 3.0  # a forward and a backward pass over one forward pass
_RANGE: Final = (0.6, 2.5)  # of the time over the estimate, on an idle machine
_BUSY_LOAD: Final = 0.5  # of the processors


class TimeEstimate(NamedTuple):
    """How long a run takes.

    Attributes:
        processor_seconds: Seconds of all processors together; of the GPU where it computes.
        seconds: Seconds on an idle machine.
    """

    processor_seconds: float
    seconds: float


class BusyMachine(NamedTuple):
    """A machine on which other programs run.

    Attributes:
        load: Processes that want to run, over the last minute.
        processors: Number of processors.
        slowdown: How many times as long a run takes beside them.
    """

    load: float
    processors: int
    slowdown: float


def estimate_time(plan: Plan, device: torch.device) -> TimeEstimate:
    """Estimate the time of a run at the speed of a matrix product measured now.

    The speed is measured in processor time, which other programs hardly change, and shared among torch's threads.

    Args:
        plan: The plan of the run.
        device: Where it is computed.
    """
    if not plan.needs_calibration:
        return TimeEstimate(0.0, 0.0)
    operations = _pass_operations(plan)
    for block in range(plan.blocks):
        for consumers in matrices_by_activation(plan.of_block(block)).values():
            operations += _statistics_operations(plan, consumers) + _step_operations(consumers)
    seconds = operations / _operations_per_second(device)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return TimeEstimate(seconds, seconds / threads)


def time_range(seconds: float, slowdown: float = 1.0) -> tuple[float, float]:
    """Return the shortest and the longest time that an estimate allows for."""
    low, high = _RANGE
    return low * seconds * slowdown, high * seconds * slowdown


def busy_machine() -> BusyMachine | None:
    """Return the load of the machine where it slows a run down; None where it is idle."""
    processors = os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load < _BUSY_LOAD * processors:
        return None
    return BusyMachine(load, processors, max(1.0, (load + torch.get_num_threads()) / processors))


def _pass_operations(plan: Plan) -> float:
    weights = sum(matrix.rows * matrix.columns for matrix in plan.matrices)
    passes = 2.0  # statistics, and the inputs of the next block
    passes += plan.permutes_model_first / permutation_stride(plan.nsamples, plan.seqlen)
    passes += plan.needs_dense
    passes += 0.5 * plan.compares  # statistics are collected again for each group
    token_weights = float(plan.nsamples) * plan.seqlen * weights
    return 2 * (passes * _PASS_OVERHEAD + _tuning_passes(plan)) * token_weights


def _tuning_passes(plan: Plan) -> float:
    """Passes over all windows that tune steps make, as far as they say in how many epochs."""
    options: list[Any] = [matrix.tune.options for matrix in plan.matrices if matrix.tune]
    return _TUNE_PASSES * float(max((each.get("epochs", 1) for each in options), default=0))


def _statistics_operations(plan: Plan, consumers: list[MatrixPlan]) -> float:
    """Products of the activation with itself and with the dense model's."""
    columns, outputs = consumers[0].columns, sum(matrix.rows for matrix in consumers)
    names = {name for matrix in consumers if matrix.resolved for name in matrix.resolved.method.statistics}
    elements = sum(STATISTICS[name].matrix_elements(columns, outputs) for name in names)
    return 2.0 * plan.nsamples * plan.seqlen * elements


def _step_operations(consumers: list[MatrixPlan]) -> float:
    """Factors of the Gram matrix, and the updates that use it."""
    solved = [matrix for matrix in consumers if matrix.resolved and "gram" in matrix.resolved.method.statistics]
    if not solved:
        return 0.0
    columns = float(consumers[0].columns)
    rows = sum(matrix.rows * _update_cost(matrix) for matrix in solved)
    return columns**2 * (_FACTORS * columns + rows)


def _update_cost(matrix: MatrixPlan) -> float:
    step = matrix.resolved.method.steps.get("update") if matrix.resolved else None
    if step is None:
        return 0.0
    costs = [cost for name, cost in _UPDATE_COSTS.items() if name in step.name]
    return sum(costs) if costs else _OTHER


@functools.cache  # one measurement per process
def _operations_per_second(device: torch.device) -> float:
    """Multiplications and additions per processor second of a product of 1024 x 1024 matrices, best of three."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    matrix = torch.ones(1024, 1024, device=device)
    best = float("inf")
    for _ in range(3):
        start = clock()
        (matrix @ matrix).sum().item()
        best = min(best, clock() - start)
    return 2 * 1024**3 / max(best, 1e-6)
