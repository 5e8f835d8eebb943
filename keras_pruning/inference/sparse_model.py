"""Pruned weights really skipped: inference of a Dense chain on the CPU, in memory and on disk."""

import functools
import importlib.util
import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import activations

from keras_pruning.inference.dense_chain import DenseStep, read_dense_chain
from keras_pruning.inference.sparse_chain import SparseChain
from keras_pruning.models import kernel_layers, loss_head

__all__ = ["SparseModel"]

FloatArray = npt.NDArray[np.float32]

_FORMAT = "keras_pruning.SparseModel 1"


class SparseModel:
    """Inference of a chain of Dense layers that skips pruned weights.

    The outputs are the Keras model's up to rounding. Weights are copied: training the
    Keras model later does not change this one. Skipped weights do not meet their inputs,
    so an infinite or missing input spreads to fewer outputs than in Keras.

    Args:
        model: A built Keras model: Dense layers one after the other, with what
            `read_dense_chain` understands around them (Rescaling and Flatten in front,
            activations, BatchNormalization, Dropout).
        n_threads: Threads among which the examples are shared; by default one a
            processor core.

    Raises:
        TypeError: If `model` is not a Keras model, or `n_threads` not a whole number.
        ValueError: If the model is not built, is more than a chain of Dense layers, or
            has weights that are not finite; if `n_threads` is below 1.

    Example:
    >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> SparseModel(network).predict(np.zeros((5, 3))).shape
    (5, 2)
    """

    def __init__(self, model: keras.Model, *, n_threads: int | None = None) -> None:
        self._chain = _chain(_read_steps(model), n_threads)
        self._input_shape = tuple(model.input_shape[1:])
        self._head = loss_head(model)

    def predict(self, x: Any) -> FloatArray:
        """Returns the outputs.

        Args:
            x: Inputs, numbers of shape `(examples, ...)` as the Keras model takes them.

        Returns:
            float32, shape `(examples, units)`.

        Raises:
            TypeError: If x does not hold real numbers.
            ValueError: If the examples have another shape than the model's input.
        """
        return self._chain.forward(self._check_inputs(x))

    __call__ = predict

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """Returns the loss and metrics that the Keras model was compiled with.

        Args:
            x: Inputs, as in `predict`.
            y: Targets, of the same length, as the Keras model's loss takes them.

        Returns:
            Name to value: `{"loss": ..., "accuracy": ...}`.

        Raises:
            ValueError: If there is no loss: the Keras model was not compiled, computes its
                loss in a way of its own, or this model was loaded from a file.
        """
        if self._head is None:
            raise ValueError(
                "This SparseModel has no loss and metrics to evaluate: its Keras model was not "
                "compiled or evaluates in its own way, or it was loaded from a file, which "
                "holds none. Make it from a compiled model, or use predict."
            )
        outputs = self.predict(x)
        if len(outputs) != len(y) or not len(y):
            raise ValueError(
                "x and y must hold the same number of examples, at least one. "
                f"Received lengths: {len(outputs)} and {len(y)}"
            )
        self._head.reset_metrics()
        values = self._head.test_on_batch(outputs, y, return_dict=True)
        return {name: float(value) for name, value in values.items()}

    @property
    def compiled(self) -> bool:
        """Whether there are a loss and metrics to `evaluate`."""
        return self._head is not None

    @property
    def n_threads(self) -> int:
        """Threads among which the examples are shared."""
        return self._chain.n_threads

    @property
    def steps(self) -> list[DenseStep]:
        """The Dense layers as arrays, without the units that pruning cut off."""
        return list(self._chain.steps)

    @functools.cached_property
    def size_bytes(self) -> int:
        """Size of the file that `save` writes, in bytes."""
        return len(self._serialise())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights that are left, the biases and the activations to one file.

        The file is a zip archive of NumPy arrays, as `np.load` reads it. Loss, metrics and
        optimizer are not saved. The file appears at `path` only once it is complete.

        Raises:
            ValueError: If the last activation is not one of Keras's own: a file cannot
                hold its code.
        """
        path = Path(path)
        data = self._serialise()
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, n_threads: int | None = None) -> "SparseModel":
        """Returns the model that `save` wrote; it predicts, but has no loss to evaluate.

        Args:
            path: The file.
            n_threads: As in `SparseModel`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or was not written by `save`.
        """
        data = Path(path).read_bytes()
        try:
            input_shape, steps = _deserialise(data)
        except Exception as error:  # damage shows as almost any: of zipfile, zlib, NumPy, JSON
            raise ValueError(
                f"'{path}' is damaged, or no file that SparseModel.save wrote. "
                f"Save the model anew. ({type(error).__name__}: {error})"
            ) from error
        model = cls.__new__(cls)
        model._chain = _chain(steps, n_threads)
        model._input_shape = input_shape
        model._head = None
        return model

    def _serialise(self) -> bytes:
        return _serialise(self._input_shape, self._chain.steps)

    def _check_inputs(self, x: Any) -> npt.NDArray[Any]:
        x = np.asarray(x)
        if x.dtype.kind not in "buif":
            raise TypeError(f"x must hold real numbers. Received: dtype {x.dtype}")
        if x.shape[1:] != self._input_shape:
            raise ValueError(
                f"x must have the shape (examples, {', '.join(map(str, self._input_shape))}) "
                f"that the model takes. Received: {x.shape}"
            )
        return x.reshape(len(x), math.prod(self._input_shape))


def _chain(steps: list[DenseStep], n_threads: int | None) -> SparseChain:
    if importlib.util.find_spec("numba") is None:
        warnings.warn(
            "numba is not installed, so SciPy skips the zeros, which takes longer: "
            'pip install "keras-pruning[sparse]"',
            stacklevel=3,
        )
    return SparseChain(steps, n_threads)


def _serialise(input_shape: tuple[int, ...], steps: list[DenseStep]) -> bytes:
    """Returns the file's bytes: a header, and of each step its bias, gaps and weights.

    A gap is the distance from one weight left to the next, counted row by row; small
    numbers that deflate packs close to the entropy of the mask. Numbers are cut in
    planes, all first bytes, then all second bytes: what varies little stands together.
    """
    header = {
        "format": _FORMAT,
        "input_shape": input_shape,
        "steps": [[*step.kernel.shape, _activation_name(step)] for step in steps],
    }
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for i, step in enumerate(steps):
        places = np.flatnonzero(step.kernel)
        arrays[f"bias{i}"] = step.bias
        arrays[f"gaps{i}"] = _planes(np.diff(places, prepend=-1).astype(np.uint32))
        arrays[f"values{i}"] = _planes(step.kernel.ravel()[places])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _deserialise(data: bytes) -> tuple[tuple[int, ...], list[DenseStep]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        if header["format"] != _FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {_FORMAT!r}")
        steps = [
            DenseStep(
                _read_kernel((inputs, units), arrays[f"gaps{i}"], arrays[f"values{i}"]),
                arrays[f"bias{i}"],
                activations.get(name),
            )
            for i, (inputs, units, name) in enumerate(header["steps"])
        ]
    return tuple(header["input_shape"]), steps


def _read_kernel(
    shape: tuple[int, int], gaps: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]
) -> FloatArray:
    kernel = np.zeros(shape, np.float32)
    places = np.cumsum(_from_planes(gaps, np.uint32), dtype=np.int64) - 1
    kernel.reshape(-1)[places] = _from_planes(values, np.float32)
    return kernel


def _planes(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Returns the bytes of 4-byte numbers, `(4, numbers)`, the least significant first."""
    little = numbers.astype(numbers.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, 4).T)


def _from_planes(planes: npt.NDArray[np.uint8], kind: type[np.generic]) -> npt.NDArray[Any]:
    little = np.ascontiguousarray(planes.T).view(np.dtype(kind).newbyteorder("<"))
    return little.reshape(-1).astype(kind)


def _activation_name(step: DenseStep) -> str:
    name = activations.serialize(step.activation)
    if not isinstance(name, str) or activations.get(name) is not step.activation:
        raise ValueError(
            f"The activation {step.activation!r} cannot be saved: a file holds names of Keras's "
            "own activations, no code. Leave it out of the model and apply it to the outputs."
        )
    return name


def _read_steps(model: keras.Model) -> list[DenseStep]:
    kernel_layers(model)  # raises unless this is a built Keras model
    for layer in model.layers:
        weights = map(keras.ops.convert_to_numpy, layer.weights)
        if not all(np.isfinite(array).all() for array in weights):
            raise ValueError(
                f"Layer '{layer.name}' has weights that are NaN or infinite. Train it anew, "
                "with a lower learning rate for example, before it is made sparse."
            )
    steps = read_dense_chain(model)
    if steps is None:
        raise ValueError(
            "SparseModel takes Dense layers one after the other, in float32, without "
            "regularisation; in front of them Rescaling and Flatten, behind them elementwise "
            f"activations, BatchNormalization and Dropout. Model '{model.name}' has more than "
            "that. Use its own predict, or make a SparseModel of its dense part."
        )
    return steps
