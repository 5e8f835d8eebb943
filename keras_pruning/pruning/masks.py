"""Which weights stay: arrays in, boolean masks out (`True` = keep).

Nothing here knows Keras. Every selection goes by rank, not by threshold, so that the
number of pruned entries is exact under ties. Floats are ranked by their bits, read as
unsigned integers, in one way for all types: `np.partition` finds the entry of a rank in a
copy of them. Many equal entries make it slow, and in a kernel pruned before those are
the zeros: they rank first, so that counting them is enough.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_dtypes  # gives NumPy bfloat16; Keras itself depends on it
import numpy as np
import numpy.typing as npt

__all__ = [
    "check_count",
    "check_floats",
    "check_sparsity",
    "count_nonzero",
    "mask_of_each_unit",
    "masks_by_magnitude",
    "masks_by_score",
    "n_of_m_mask",
    "n_of_m_mask_by_score",
    "num_pruned",
    "unit_mask",
    "unit_norms",
    "weight_mask",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[Any]  # float16, bfloat16 (no NumPy scalar type), float32, float64

_FLOAT_DTYPES = tuple(map(np.dtype, ("float16", ml_dtypes.bfloat16, "float32", "float64")))
_BLOCK = 2**17  # entries looked at together: their keys stay in the second-level cache


def weight_mask(kernel: npt.ArrayLike, sparsity: float) -> BoolArray:
    """Returns the mask that prunes the weights of smallest magnitude.

    Exactly `round(sparsity * kernel.size)` entries are `False`; among equal
    magnitudes the first in C order go first, so that a mask for a higher sparsity
    is a subset of the mask for a lower one. Magnitude pruning: Han et al. 2015,
    "Learning both Weights and Connections for Efficient Neural Networks".

    Args:
        kernel: Array of any shape; float16, bfloat16, float32 or float64, no NaN.
        sparsity: Share of weights to prune, a float in [0, 1].

    Returns:
        Boolean array of the kernel's shape, `True` = keep.

    Raises:
        TypeError: If `kernel` is not of a floating type or `sparsity` not a number.
        ValueError: If `sparsity` is outside [0, 1] or `kernel` holds NaN.

    Examples:
        >>> weight_mask([[0.1, -3.0], [2.0, -0.5]], sparsity=0.5)
        array([[False,  True],
               [ True, False]])
    """
    kernel = check_floats(kernel, "kernel")
    (mask,) = masks_by_magnitude([kernel], num_pruned(kernel.size, sparsity))
    return mask


def unit_mask(
    kernel: npt.ArrayLike, sparsity: float, *, order: float = 2, axis: int = -1
) -> BoolArray:
    """Returns the mask that prunes the units of smallest norm.

    A unit is one slice along `axis`: a Dense column, a convolution's filter.
    `round(sparsity * units)` entries are `False`, but a sparsity below 1 leaves at
    least one unit; ties as in `weight_mask`. Pruning filters by norm: Li et al. 2016,
    "Pruning Filters for Efficient ConvNets" (with `order=1`).

    Args:
        kernel: Array of shape `(..., units)`, of a floating type, no NaN.
        sparsity: Share of units to prune, a float in [0, 1].
        order: Order p of the norm `(sum |w|^p)^(1/p)`; a positive number or `inf`.
        axis: The axis that counts the units (the last but one for a transposed
            convolution).

    Returns:
        Boolean array of shape `(units,)`, `True` = keep.

    Raises:
        TypeError: If `kernel` is not of a floating type or `sparsity` not a number.
        ValueError: If `sparsity` is outside [0, 1], `kernel` holds NaN or has no
            axis, or `order` is not positive.

    Examples:
        >>> unit_mask([[0.1, 3.0, 1.0], [0.2, 4.0, 1.0]], sparsity=0.3)
        array([False,  True,  True])
    """
    norms = unit_norms(kernel, order=order, axis=axis)
    (mask,) = masks_by_score([norms], num_pruned(norms.size, sparsity, at_least_one_left=True))
    return mask


def n_of_m_mask(kernel: npt.ArrayLike, n: int, m: int, *, axis: int = -2) -> BoolArray:
    """Returns the mask that keeps the `n` largest magnitudes of every `m` in a row.

    The groups are m consecutive entries along the input axis, over which a layer sums:
    of a Dense kernel `(in_features, units)` and of a convolution's `(*window,
    in_channels, filters)` the last but one. NVIDIA's sparse tensor cores take 2:4 along
    that axis (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks"), and so do
    the kernels that tfmot's `sparsity_m_by_n` makes (`weights_rearrange` in its
    pruning_utils.py); its m counts the zeros, here n counts what stays.

    Args:
        kernel: Array of two axes or more, of a floating type, no NaN.
        n: How many entries of a group stay, in [1, m - 1].
        m: Size of a group; divides the size of the axis.
        axis: The input axis.

    Returns:
        Boolean array of the kernel's shape, `True` = keep. Among equal magnitudes the
        first of the group go first.

    Raises:
        TypeError: If `kernel` is not of a floating type.
        ValueError: If `n` or `m` is out of range, `m` does not divide the axis, or
            `kernel` holds NaN or has fewer than two axes.

    Examples:
        >>> n_of_m_mask([[0.1], [-3.0], [2.0], [0.5]], 2, 4).ravel()
        array([False,  True,  True, False])
    """
    kernel = check_floats(kernel, "kernel")
    return _n_of_m_by_key(_magnitude_keys(np.ascontiguousarray(kernel)), n, m, axis)


def n_of_m_mask_by_score(scores: FloatArray, n: int, m: int, *, axis: int = -2) -> BoolArray:
    """Returns the mask that keeps the `n` highest scores of every `m`, as `n_of_m_mask`."""
    return _n_of_m_by_key(_ordered_keys(np.ascontiguousarray(scores)), n, m, axis)


def unit_norms(
    kernel: npt.ArrayLike, *, order: float = 2, axis: int = -1
) -> npt.NDArray[np.float64]:
    """Returns the norm of each unit, `(sum |w|^p)^(1/p)` with p = `order`.

    Args:
        kernel: Array of shape `(..., units)`, of a floating type, no NaN.
        order: A positive number or `inf`.
        axis: The axis that counts the units.

    Returns:
        float64 array of shape `(units,)`.

    Raises:
        TypeError: If `kernel` is not of a floating type.
        ValueError: If `kernel` holds NaN or has no axis, or `order` is not positive.

    Examples:
        >>> unit_norms([[3.0, 0.0], [4.0, 1.0]])
        array([5., 1.])
    """
    kernel = check_floats(kernel, "kernel")
    if kernel.ndim == 0:
        raise ValueError("A kernel without axes has no units. Expected shape (..., units).")
    if isinstance(order, bool) or not isinstance(order, numbers.Real) or not order > 0:
        raise ValueError(f"order must be a positive number or inf. Received: order={order!r}")
    columns = np.moveaxis(kernel, axis, -1)
    columns = columns.reshape(math.prod(columns.shape[:-1]), columns.shape[-1])  # (inputs, units)
    norms = np.zeros(columns.shape[1])
    rows = max(1, _BLOCK // max(1, columns.shape[1]))
    for start in range(0, len(columns), rows):  # in blocks: float64 is wider than the kernel
        block = np.abs(columns[start : start + rows].astype(np.float64))
        if order == math.inf:
            norms = np.maximum(norms, block.max(axis=0))
        else:
            norms += (block**order).sum(axis=0)
    return norms if order == math.inf else norms ** (1 / order)


def masks_by_magnitude(kernels: Sequence[FloatArray], count: int) -> list[BoolArray]:
    """Returns one mask a kernel; together they drop the `count` smallest magnitudes.

    The kernels are ranked as if they stood in one row; ties go by position in it.

    Args:
        kernels: Arrays of floating types, of any shapes, without NaN.
        count: How many entries to drop, in [0, total size].

    Returns:
        Boolean arrays of the kernels' shapes, `True` = keep.
    """
    return _masks_by_key(kernels, count, _magnitude_keys)


def masks_by_score(scores: Sequence[FloatArray], count: int) -> list[BoolArray]:
    """Returns one mask an array; together they drop the `count` lowest scores.

    As `masks_by_magnitude`, but by signed value: -1 goes before 0.5.
    """
    return _masks_by_key(scores, count, _ordered_keys)


def mask_of_each_unit(
    values: FloatArray, sparsity: float, *, axis: int, by_magnitude: bool
) -> BoolArray:
    """Returns the mask that drops the same share of each unit, a slice along `axis`.

    Args:
        values: A kernel, ranked by magnitude, or scores of its shape; without NaN.
        sparsity: Share of the entries of a unit to drop.
        axis: The axis that counts the units.
        by_magnitude: Whether the smallest magnitudes go, or the lowest values.

    Returns:
        Boolean array of the shape of `values`, `True` = keep.
    """
    keys_of = _magnitude_keys if by_magnitude else _ordered_keys
    units_first = np.moveaxis(keys_of(np.ascontiguousarray(values)), axis, 0)
    units = units_first.reshape(len(units_first), -1)
    mask = _without_lowest(units, num_pruned(units.shape[1], sparsity))
    return np.ascontiguousarray(np.moveaxis(mask.reshape(units_first.shape), 0, axis))


def num_pruned(size: int, sparsity: float, *, at_least_one_left: bool = False) -> int:
    """Returns how many of `size` entries a sparsity prunes, `round(sparsity * size)`.

    Python's `round`: halves go to the even number. With `at_least_one_left`, one
    entry survives any sparsity below 1.

    >>> num_pruned(100, 0.29), num_pruned(10, 0.99, at_least_one_left=True)
    (29, 9)
    """
    count = round(check_sparsity(sparsity) * size)
    return min(count, max(size - 1, 0)) if at_least_one_left and sparsity < 1 else count


def check_sparsity(sparsity: float) -> float:
    """Returns `sparsity` as a float in [0, 1], or raises an error that says what it must be."""
    if isinstance(sparsity, (bool, np.bool_)) or not isinstance(sparsity, numbers.Real):
        raise TypeError(
            "sparsity must be a number in [0, 1], the share of weights or units to prune. "
            f"Received: sparsity={sparsity!r} of type {type(sparsity).__name__}"
        )
    if not 0 <= sparsity <= 1:  # NaN fails both comparisons
        hint = " For a percentage, divide by 100." if 1 < sparsity <= 100 else ""
        raise ValueError(
            "sparsity must lie in [0, 1], the share of weights or units to prune. "
            f"Received: sparsity={sparsity!r}.{hint}"
        )
    return float(sparsity)


def check_count(name: str, number: object) -> None:
    """Raises a ValueError unless the argument `name` is a whole number from 1."""
    if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < 1:
        raise ValueError(f"{name} must be a whole number from 1. Received: {name}={number!r}")


def check_floats(array: npt.ArrayLike, name: str) -> FloatArray:
    """Returns `array` as a floating array without NaN, or raises an error that calls it `name`."""
    array = np.asarray(array)
    if array.dtype not in _FLOAT_DTYPES:
        raise TypeError(
            f"{name} must be of a floating type (float16, bfloat16, float32 or float64). "
            f"Received: dtype={array.dtype}. Prune before quantizing."
        )
    if np.isnan(array).any():
        raise ValueError(f"{name} holds NaN, which has no rank. Train it again or load it anew.")
    return array


def count_nonzero(array: npt.NDArray[Any]) -> int:
    """Returns how many numbers are not zero; floats take NumPy four times as long as booleans."""
    return int(np.count_nonzero(array != 0))


def _masks_by_key(
    arrays: Sequence[FloatArray], count: int, keys_of: Callable[[FloatArray], npt.NDArray[Any]]
) -> list[BoolArray]:
    size = sum(array.size for array in arrays)
    if count == size:
        return [np.zeros(array.shape, bool) for array in arrays]
    dtype = _common_dtype(arrays)

    def blocks() -> Iterator[npt.NDArray[Any]]:
        for array in arrays:
            flat = array.reshape(-1)
            for start in range(0, flat.size, _BLOCK):
                yield keys_of(flat[start : start + _BLOCK].astype(dtype, copy=False))

    threshold = _key_of_rank(count, blocks(), np.empty(size, f"u{dtype.itemsize}"))
    kept = np.concatenate([keys >= threshold for keys in blocks()])
    ties_to_drop = count - (size - np.count_nonzero(kept))
    start = 0
    for keys in blocks():
        if not ties_to_drop:
            break
        ties = np.flatnonzero(keys == threshold)[:ties_to_drop]
        kept[start + ties] = False
        ties_to_drop -= ties.size
        start += keys.size
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [
        part.reshape(array.shape) for part, array in zip(np.split(kept, ends), arrays, strict=True)
    ]


def _n_of_m_by_key(keys: npt.NDArray[Any], n: int, m: int, axis: int) -> BoolArray:
    whole = all(isinstance(k, numbers.Integral) and not isinstance(k, bool) for k in (n, m))
    if not whole or not 0 < n < m:
        raise ValueError(
            "A pattern n:m keeps n of every m weights, whole numbers with 0 < n < m. "
            f"Received: n={n!r}, m={m!r}"
        )
    if keys.ndim < 2:
        raise ValueError(
            f"A kernel needs an input axis and an output axis. Received: shape {keys.shape}"
        )
    if keys.shape[axis] % m:
        raise ValueError(
            f"m={m} must divide the input axis of the kernel, which has {keys.shape[axis]} "
            f"entries in shape {keys.shape}. Received: pattern {n}:{m}"
        )
    columns = np.moveaxis(keys, axis, -1)
    mask = _without_lowest(columns.reshape(-1, m), m - n)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(columns.shape), -1, axis))


def _without_lowest(rows: npt.NDArray[Any], count: int) -> BoolArray:
    """Returns the mask that drops the lowest keys of each row, the first of equal ones first."""
    mask = np.ones(rows.shape, bool)
    np.put_along_axis(mask, np.argsort(rows, axis=1, kind="stable")[:, :count], False, axis=1)
    return mask


def _common_dtype(arrays: Sequence[FloatArray]) -> np.dtype[Any]:
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) == 1:
        return dtypes.pop()
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def _key_of_rank(rank: int, blocks: Iterable[npt.NDArray[Any]], room: npt.NDArray[Any]) -> Any:
    """Returns the key of that rank (from 0); `room` has the size of all blocks together."""
    size = 0
    for keys in blocks:
        nonzero = keys != 0
        if not nonzero.all():
            keys = keys.compress(nonzero)  # a boolean index takes twice the time
        room[size : size + keys.size] = keys
        size += keys.size
    zeros = room.size - size
    if rank < zeros:
        return 0
    room[:size].partition(rank - zeros)
    return room[rank - zeros]


def _magnitude_keys(block: FloatArray) -> npt.NDArray[Any]:
    """Returns unsigned integers in the order of |w|: IEEE 754 bits without the sign bit."""
    bits = block.view(f"u{block.itemsize}")
    return bits & ~_sign_bit(bits)


def _ordered_keys(block: FloatArray) -> npt.NDArray[Any]:
    """Returns unsigned integers in the order of the signed values, -0.0 equal to 0.0."""
    bits = (block + block.dtype.type(0)).view(f"u{block.itemsize}")  # -0.0 + 0.0 is 0.0
    all_ones_if_negative = (bits.view(f"i{block.itemsize}") >> (8 * block.itemsize - 1)).view(
        bits.dtype
    )
    return bits ^ (all_ones_if_negative | _sign_bit(bits))


def _sign_bit(bits: npt.NDArray[Any]) -> Any:
    return bits.dtype.type(1 << (8 * bits.itemsize - 1))
