"""Ridge regression where some weights stay zero: the small change that mends a layer's sums."""

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from keras_pruning.inference import one_blas_thread

__all__ = ["ridge_step"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.intp]

_CLOSE = 1e-8  # share of what a refit gains that rounding may cost


def ridge_step(gram: FloatArray, cross: FloatArray, keep: BoolArray, damping: float) -> FloatArray:
    """Returns the change D of the weights, zero where they are pruned, that fits X to errors E.

    It minimises, for each unit u over the weights S that it keeps,

        |E_u - X_S D_u|^2 + lambda |D_u|^2,

    where lambda is `damping` times the mean diagonal of `X^T X`. Units that keep the same weights
    share a Cholesky factor: one in all where units are pruned, mostly one a unit where weights
    are. It is of the weights that are kept or, where they are fewer, of those that are pruned, P:
    with B the inverse of `X^T X + lambda`, the change is that of the layer with all its weights,
    less what brings the pruned ones back to zero (Hassibi & Stork 1993),

        D_u = B X^T E_u - B_P (B_PP)^-1 (B X^T E_u)_P.

    Args:
        gram: `X^T X`, shape `(features, features)`.
        cross: `X^T E`, shape `(features, units)`.
        keep: Which weights are left, shape `(features, units)`.
        damping: A positive number.

    Returns:
        Array of shape `(features, units)`.
    """
    scale = gram.diagonal().mean()
    if scale == 0:  # no input ever speaks
        return np.zeros_like(cross)
    keep = keep & (gram.diagonal() > 0)[:, np.newaxis]  # what never speaks changes nothing
    matrix = gram / scale + damping * np.eye(len(gram))
    cross = cross / scale
    systems = _systems(keep)
    is_regular = damping > np.finfo(float).eps * len(gram)
    inverse = np.linalg.inv(matrix) if is_regular and _inverse_pays(systems) else None
    # float32 takes half the time. By the exact solution the sum above would be smaller by at most
    # `lost`; where that is too much, it is solved again.
    step = _solve(matrix, inverse, cross, systems, np.float32)
    lost = np.square(np.where(keep, cross - matrix @ step, 0)).sum(axis=0) / damping
    again = ~(lost <= _CLOSE * (step * cross).sum(axis=0))  # also what is not a number
    step[:, again] = _solve(matrix, None, cross[:, again], _systems(keep[:, again]), np.float64)
    return step


def _systems(keep: BoolArray) -> list[tuple[BoolArray, IntArray]]:
    """Returns each pattern of kept weights, and the units that have it."""
    units: dict[bytes, list[int]] = {}
    for unit, pattern in enumerate(np.packbits(keep, axis=0).T):
        units.setdefault(pattern.tobytes(), []).append(unit)
    return [(keep[:, some[0]], np.array(some)) for some in units.values() if keep[:, some[0]].any()]


def _inverse_pays(systems: list[tuple[BoolArray, IntArray]]) -> bool:
    """Whether the inverse takes fewer multiplications than the smaller systems save."""
    shares = np.array([keeps.mean() for keeps, _ in systems])
    return float((shares**3 - np.minimum(shares, 1 - shares) ** 3).sum() / 3) > 1


def _solve(
    matrix: FloatArray,
    inverse: FloatArray | None,
    cross: FloatArray,
    systems: list[tuple[BoolArray, IntArray]],
    dtype: type[np.floating],
) -> FloatArray:
    """Returns the change of `ridge_step`, solved in a type that may be too short for it."""
    step = np.zeros_like(cross)
    if inverse is not None:
        whole = (inverse @ cross).astype(dtype)
        inverse = inverse.astype(dtype)
    matrix, cross = matrix.astype(dtype), cross.astype(dtype)
    with one_blas_thread():  # the systems are small: two threads take a third longer
        for keeps, units in systems:
            kept, pruned = np.flatnonzero(keeps), np.flatnonzero(~keeps)
            if inverse is None or kept.size <= pruned.size:
                at = np.ix_(kept, units)
                step[at] = _definite(matrix[kept][:, kept], cross[at])
            else:
                rows = inverse[pruned]
                change = whole[:, units]
                change -= rows.T @ _definite(rows[:, pruned], change[pruned])
                step[np.ix_(kept, units)] = change[kept]
    return step


def _definite(matrix: FloatArray, goal: FloatArray) -> FloatArray:
    """Returns the solution for a positive definite matrix."""
    if not len(goal):
        return goal
    posv = lapack.sposv if matrix.dtype == np.float32 else lapack.dposv
    _, solution, failed = posv(matrix.T, goal, lower=1)  # symmetric, and .T spares it a reordering
    if failed:  # rounding leaves inputs that depend on each other
        solution = np.linalg.lstsq(matrix, goal)[0]
    return solution
