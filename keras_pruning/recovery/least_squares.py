"""Ridge regression where some weights stay zero: the small change that mends a layer's sums."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from keras_pruning.inference import count_cores

__all__ = ["ridge_step"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


def ridge_step(gram: FloatArray, cross: FloatArray, keep: BoolArray, damping: float) -> FloatArray:
    """Returns the change D of the weights, zero where they are pruned, that fits X to errors E.

    It minimises, for each unit u over the weights S that it keeps,

        |E_u - X_S D_u|^2 + lambda |D_u|^2,

    where lambda is `damping` times the mean diagonal of `X^T X`, by one Cholesky factor for
    all units that keep the same weights: one in all where units are pruned, mostly one a
    unit where weights are.

    Args:
        gram: `X^T X`, shape `(features, features)`.
        cross: `X^T E`, shape `(features, units)`.
        keep: Which weights are left, shape `(features, units)`.
        damping: A positive number.

    Returns:
        Array of shape `(features, units)`.
    """
    step = np.zeros_like(cross)
    ridge = damping * gram.diagonal().mean()
    if ridge == 0:  # no input ever speaks
        return step

    def solve(system_of: tuple[IntArray, IntArray]) -> None:
        kept, units = system_of
        system = gram[kept][:, kept]
        system[np.diag_indices_from(system)] += ridge
        goal = cross[np.ix_(kept, units)]
        _, solution, failed = lapack.dposv(system.T, goal)  # symmetric, and .T spares it a copy
        if failed:  # a damping below rounding leaves inputs that depend on each other
            solution = np.linalg.lstsq(system, goal)[0]
        step[np.ix_(kept, units)] = solution

    # One core for each of many small systems; all cores on each in turn take ten times as long.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(count_cores()) as pool:
        for _ in pool.map(solve, _systems(keep)):
            pass
    return step


def _systems(keep: BoolArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Yields each set of weights that units keep, and those units."""
    patterns, of_unit = np.unique(np.packbits(keep, axis=0), axis=1, return_inverse=True)
    for pattern in range(patterns.shape[1]):
        units = np.flatnonzero(of_unit == pattern)
        kept = np.flatnonzero(keep[:, units[0]])
        if kept.size:
            yield kept, units
