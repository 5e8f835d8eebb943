"""Data as arrays, whether they came so or as a data set of batches."""

import sys
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.models.kernels import kernel_layers

__all__ = ["as_arrays", "check_data", "count_examples", "in_batches"]


def as_arrays(x: Any, y: Any = None) -> tuple[Any, Any]:
    """Returns inputs and targets as NumPy arrays, or lists and dicts of them.

    A `tf.data.Dataset`, a `keras.utils.PyDataset` or a `DataLoader` of PyTorch is read once
    and held in memory whole.

    Args:
        x: Inputs, or a data set of batches `(inputs, targets)`, or of inputs alone.
        y: Targets; of a data set `None`.

    Raises:
        TypeError: If there are plain numbers or other objects where arrays should be.
        ValueError: If y comes with a data set, or that is infinite, empty, not batched, or
            has sample weights.
    """
    if not _is_data_set(x):
        return _tree_of_arrays("x", x), None if y is None else _tree_of_arrays("y", y)
    if y is not None:
        raise ValueError("x is a data set, which holds its targets itself. Leave out y.")
    batches = [keras.utils.unpack_x_y_sample_weight(batch) for batch in _finite(x)]
    if not batches:
        raise ValueError("The data set is empty: it gives no batch.")
    if any(weights is not None for _, _, weights in batches):
        raise ValueError(
            "The data set has sample weights, which count nowhere here. Give batches of inputs "
            "and targets alone, for tf.data: dataset.map(lambda x, y, weights: (x, y))."
        )
    inputs, targets = ([batch[i] for batch in batches] for i in (0, 1))
    return _joined("x", inputs), None if targets[0] is None else _joined("y", targets)


def count_examples(x: Any, y: Any = None) -> int:
    """Returns the number of examples.

    Raises:
        ValueError: If not all arrays hold the same number, at least one.
    """
    arrays = keras.tree.flatten(x if y is None else (x, y))
    lengths = [len(array) if np.ndim(array) else 0 for array in arrays]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(
            "x and y must hold the same number of examples, at least one. "
            f"Received lengths: {lengths}"
        )
    return lengths[0]


def check_data(model: keras.Model, x: Any, y: Any) -> tuple[Any, Any]:
    """Returns inputs and targets as arrays, where the model can be measured on them.

    Raises:
        TypeError: If it is no Keras model, or x or y hold no arrays.
        ValueError: If the model is not built or not compiled, the targets are missing, x and y
            differ in length, or a data set cannot be read.
    """
    kernel_layers(model)  # raises unless it is a built Keras model
    if not model.compiled:
        raise ValueError(
            f"Model '{model.name}' is not compiled, so it has no loss and metrics to measure. "
            "Call model.compile(...) first."
        )
    x, y = as_arrays(x, y)
    if y is None:
        raise ValueError("There are no targets: give y, or a data set of (inputs, targets).")
    count_examples(x, y)
    return x, y


def in_batches(x: Any, size: int | None) -> list[Any]:
    """Returns inputs as arrays, or lists and dicts of them, in batches.

    Args:
        x: Inputs, as `as_arrays` takes them.
        size: Examples a batch; by default 16 to 1024, such that a batch has about four
            million numbers.

    Raises:
        TypeError: As `as_arrays`.
        ValueError: As `as_arrays` and `count_examples`; also if a number is not finite.
    """
    x, _ = as_arrays(x)
    count = count_examples(x)
    if not all(np.isfinite(a).all() for a in keras.tree.flatten(x) if a.dtype.kind == "f"):
        raise ValueError("x holds NaN or infinite numbers. Leave these examples out.")
    if size is None:
        numbers = sum(array.size for array in keras.tree.flatten(x)) // count
        size = min(1024, max(16, 2**22 // max(numbers, 1)))
    starts = range(0, count, size)
    return [keras.tree.map_structure(lambda a, s=s: a[s : s + size], x) for s in starts]


def _is_data_set(x: Any) -> bool:
    if isinstance(x, keras.utils.PyDataset):
        return True
    # Where nobody has imported TensorFlow or PyTorch, x is none of theirs.
    tensorflow, torch = sys.modules.get("tensorflow"), sys.modules.get("torch.utils.data")
    return (tensorflow is not None and isinstance(x, tensorflow.data.Dataset)) or (
        torch is not None and isinstance(x, torch.DataLoader)
    )


def _finite(data_set: Any) -> Iterable[Any]:
    """Returns the batches, unless the data set says that they never end."""
    if isinstance(data_set, keras.utils.PyDataset):
        number = data_set.num_batches
        endless = number is None
        batches: Iterable[Any] = map(data_set.__getitem__, range(number or 0))
    else:
        endless = hasattr(data_set, "cardinality") and int(data_set.cardinality()) == -1
        batches = data_set
    if endless:
        raise ValueError(
            "The data set never ends. Give a finite part of it, for tf.data: dataset.take(100)."
        )
    return batches


def _joined(name: str, parts: list[Any]) -> Any:
    parts = [_tree_of_arrays(name, part) for part in parts]
    if any(np.ndim(array) == 0 for array in keras.tree.flatten(parts)):
        raise ValueError(
            "The data set is not batched: it gives single examples. For tf.data: dataset.batch(256)"
        )
    return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def _tree_of_arrays(name: str, data: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: _array(name, leaf), data)


def _array(name: str, leaf: Any) -> npt.NDArray[Any]:
    if not hasattr(leaf, "shape"):
        raise TypeError(
            f"{name} takes arrays, and lists or dicts of arrays where the model has several "
            f"inputs or outputs. Received: {type(leaf).__name__} where an array should be. "
            f"Of a list of numbers or strings, pass np.asarray({name})."
        )
    array = leaf if isinstance(leaf, np.ndarray) else keras.ops.convert_to_numpy(leaf)
    return array if array.dtype.kind not in "OSU" else _texts(name, array)


def _texts(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """Returns the strings as Python's, the only ones that Keras takes from NumPy."""
    if not all(isinstance(one, (str, bytes)) for one in array.flat):
        raise TypeError(
            f"{name} is an array of Python objects, sequences of different length perhaps. "
            "Give numbers or strings in an array of one shape."
        )
    texts = [one.decode() if isinstance(one, bytes) else str(one) for one in array.flat]
    return np.array(texts, dtype=object).reshape(array.shape)
