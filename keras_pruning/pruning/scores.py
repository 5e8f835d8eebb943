"""How important each weight or unit of a layer is: the lowest scores are pruned first."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.models import KernelLayer
from keras_pruning.pruning.masks import check_floats, n_of_m_mask_by_score, unit_norms

__all__ = [
    "Read",
    "Score",
    "check_method",
    "check_score",
    "kernel_arrays",
    "pattern_sparsity",
    "scores_in_pattern",
    "unit_scores",
    "weight_scores",
]

Score = (
    Literal["magnitude", "random"]
    | Callable[[npt.NDArray[Any]], npt.ArrayLike]
    | Mapping[str, Any]  # layer name to scores
)
Read = Callable[[keras.Variable], npt.NDArray[Any]]  # returns a variable's values


def check_method(method: str) -> None:
    """Raises a ValueError unless it is one of the two ways to prune."""
    if method not in ("weights", "units"):
        raise ValueError(f"method must be 'weights' or 'units'. Received: method={method!r}")


def check_score(score: Score) -> None:
    """Raises an error unless `score` is a known name, a function or a dict."""
    if callable(score) or isinstance(score, Mapping) or score in ("magnitude", "random"):
        return
    raise ValueError(
        f"score must be one of ['magnitude', 'random'], a function or a dict. "
        f"Received: score={score!r}"
    )


def kernel_arrays(entry: KernelLayer, read: Read) -> list[npt.NDArray[Any]]:
    """Returns the values of a layer's kernels.

    Raises:
        TypeError: If one is not of a floating type.
        ValueError: If one holds NaN.
    """
    return [_kernel_array(entry, variable, read) for variable in entry.kernels]


def weight_scores(
    entry: KernelLayer, score: Score, rng: np.random.Generator, read: Read
) -> list[npt.NDArray[Any]]:
    """Returns an array of scores for each kernel, -inf where a weight is pruned already."""
    kernels = kernel_arrays(entry, read)
    if isinstance(score, Mapping):
        given = _given_scores(score, entry)
        arrays = given if isinstance(given, (list, tuple)) else [given]
        scores = _checked_scores(entry, arrays, [kernel.shape for kernel in kernels])
    elif callable(score):
        scores = [_called_score(score, kernel, kernel.shape) for kernel in kernels]
    elif score == "random":
        scores = [rng.random(kernel.shape, np.float32) for kernel in kernels]
    else:
        scores = [np.abs(kernel) for kernel in kernels]
    for array, kernel in zip(scores, kernels, strict=True):
        array[kernel == 0] = -math.inf  # already pruned
    return scores


def scores_in_pattern(
    rows: Sequence[tuple[KernelLayer, keras.Variable]],
    scores: Sequence[npt.NDArray[Any]],
    pattern: tuple[int, int],
    count: int,
) -> list[npt.NDArray[Any]]:
    """Returns the scores of kernels, infinite where the pattern keeps the weight.

    Raises:
        ValueError: If the pattern fits no such kernel or prunes fewer than `count` weights.
    """
    pattern_sparsity(pattern)
    ranked = []
    for (entry, variable), array in zip(rows, scores, strict=True):
        axis = _input_axis(entry, variable)
        try:
            kept = n_of_m_mask_by_score(array, *pattern, axis=axis)
        except ValueError as error:
            raise ValueError(
                f"The pattern does not fit the {variable.name} of layer '{entry.name}': {error}. "
                "Leave the layer out by `layers=[names]`."
            ) from error
        ranked.append(np.where(kept, np.inf, array).astype(array.dtype))
    prunable = sum(int(np.count_nonzero(array < np.inf)) for array in ranked)
    if count > prunable:
        names = list(dict.fromkeys(entry.name for entry, _ in rows))
        raise ValueError(
            f"The pattern {pattern} prunes {prunable} weights of {names} at most, a sparsity of "
            f"{pattern_sparsity(pattern):.3g}; {count} were asked for. Leave out `sparsity`, or "
            "lower it."
        )
    return ranked


def _input_axis(entry: KernelLayer, variable: keras.Variable) -> int:
    """The axis of a kernel over which its layer sums."""
    sums = entry.has_units or isinstance(entry.layer, keras.layers.RNN)
    sums = sums and not isinstance(entry.layer, keras.layers.EinsumDense)  # over any axes
    if not sums:
        raise ValueError(
            f"The {variable.name} of layer '{entry.name}' ({type(entry.layer).__name__}) has no "
            "axis for an n:m pattern, which Dense, convolutional and recurrent kernels have. "
            "Leave the layer out by `layers=[names]`."
        )
    return -1 if entry.unit_axis == -2 else -2  # a transposed convolution has them swapped


def pattern_sparsity(pattern: tuple[int, int]) -> float:
    """Returns the share of weights that a pattern (n, m) prunes, or raises an error."""
    if not isinstance(pattern, (tuple, list)) or len(pattern) != 2:
        raise ValueError(f"pattern must be a pair (n, m), as (2, 4). Received: {pattern!r}")
    n, m = pattern
    whole = all(isinstance(k, int) and not isinstance(k, bool) for k in pattern)
    if not whole or not 0 < n < m:
        raise ValueError(
            "pattern (n, m) keeps n of every m weights, whole numbers with 0 < n < m. "
            f"Received: pattern={pattern!r}"
        )
    return (m - n) / m


def unit_scores(
    entry: KernelLayer, score: Score, order: float, rng: np.random.Generator, read: Read
) -> npt.NDArray[Any]:
    """Returns a score for each unit, shape `(units,)`, lowest where it is pruned already."""
    kernel = entry.unit_columns(lambda variable: _kernel_array(entry, variable, read))
    norms = unit_norms(kernel, order=order)
    if score == "magnitude":
        return norms
    if isinstance(score, Mapping):
        (scores,) = _checked_scores(entry, [_given_scores(score, entry)], [norms.shape])
    elif callable(score):
        scores = _called_score(score, kernel, norms.shape)
    else:
        scores = rng.random(norms.shape)
    scores[norms == 0] = -math.inf  # already pruned
    return scores


def _called_score(
    score: Callable[[npt.NDArray[Any]], npt.ArrayLike],
    kernel: npt.NDArray[Any],
    shape: tuple[int, ...],
) -> npt.NDArray[Any]:
    scores = np.array(score(kernel))  # a copy: the function may return the kernel itself
    if scores.shape != shape:
        raise ValueError(
            f"score must return scores of shape {shape} for a kernel of shape {kernel.shape}. "
            f"Received: scores of shape {scores.shape}"
        )
    return check_floats(scores, "The array that score returned")


def _given_scores(score: Mapping[str, Any], entry: KernelLayer) -> Any:
    if entry.name in score:
        return score[entry.name]
    raise ValueError(
        f"score has no scores for layer '{entry.name}'. Leave it out: layers=[names], of those "
        f"that have scores: {list(score)}"
    )


def _checked_scores(
    entry: KernelLayer, arrays: Sequence[npt.ArrayLike], shapes: Sequence[tuple[int, ...]]
) -> list[npt.NDArray[Any]]:
    scores = [np.array(array) for array in arrays]  # copies: the pruned get the lowest score
    if [array.shape for array in scores] != list(shapes):
        raise ValueError(
            f"score must hold scores of shapes {list(shapes)} for layer '{entry.name}'. "
            f"Received: {[array.shape for array in scores]}"
        )
    return [check_floats(array, f"score of layer '{entry.name}'") for array in scores]


def _kernel_array(entry: KernelLayer, variable: keras.Variable, read: Read) -> npt.NDArray[Any]:
    return check_floats(read(variable), f"The {variable.name} of layer '{entry.name}'")
