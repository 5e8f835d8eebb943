"""What pruning brought: accuracy, parameters, multiply-adds, bytes and latency of models."""

import gc
import gzip
import importlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_pruning.inference import SparseModel, count_cores
from keras_pruning.measuring.archives import inference_file
from keras_pruning.measuring.operations import MultiplyAdds, count_multiply_adds, packs_weights
from keras_pruning.models import (
    as_arrays,
    compile_for_inference,
    copy_for_inference,
    count_examples,
    kernel_layers,
)
from keras_pruning.pruning import check_count, count_nonzero

__all__ = ["Latency", "Measurement", "compare", "measure"]

AnyModel = Any  # a keras.Model, without types of its own, or a SparseModel
Predict = Callable[[Any], Any]

_CALLS_A_TURN = 5  # timed calls of one model before it is the next one's turn


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call on a batch: the median and the quartiles of the timed calls.

    Examples:
        >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> [latency] = measure(network, np.zeros((5, 3)), batch_sizes=[4], repeats=3).latencies
        >>> latency.batch_size, latency.lower_ms <= latency.median_ms <= latency.upper_ms
        (4, True)
    """

    batch_size: int
    median_ms: float
    lower_ms: float
    upper_ms: float


@dataclass(frozen=True)
class Measurement:
    """What `measure` found of one model.

    Attributes:
        accuracy: The metric "accuracy", or the only one whose name ends so; `None` if there
            is none or no targets were given.
        loss: The loss that the model was compiled with, or `None`.
        metrics: All that `evaluate` returned, the loss too; empty without targets.
        parameters: Numbers in the model's weights, moving statistics too. Of a SparseModel:
            in the kernels and biases of the layers it computes.
        nonzero: Those that are not zero; `None` if they are packed several to a byte.
        multiply_adds: Products of a weight with an input for one example, or `None` where
            `count_multiply_adds` cannot tell.
        multiply_adds_nonzero: Those whose weight is not zero. Only a SparseModel skips the
            others.
        file_bytes: Size of the `.keras` file without compile and optimizer state; of a
            SparseModel, of its own file. `None` if a SparseModel cannot be saved.
        file_gzip_bytes: Size of that file after gzip. `save_compressed` writes about a fifth
            less of a pruned model.
        latencies: One `Latency` a batch size.
        n_threads: Threads that the computation may use.

    Examples:
        >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> network.compile("sgd", "mse", metrics=["mae"])
        >>> found = measure(network, np.zeros((5, 3)), np.ones((5, 2)), repeats=1)
        >>> found.loss, found.metrics["mae"], found.multiply_adds
        (1.0, 1.0, 6)
    """

    accuracy: float | None
    loss: float | None
    metrics: Mapping[str, float]
    parameters: int
    nonzero: int | None
    multiply_adds: int | None
    multiply_adds_nonzero: int | None
    file_bytes: int | None
    file_gzip_bytes: int | None
    latencies: tuple[Latency, ...]
    n_threads: int


def measure(
    model: AnyModel,
    x: Any,
    y: Any = None,
    *,
    batch_sizes: Sequence[int] = (1, 256),
    repeats: int = 50,
) -> Measurement:
    """Returns accuracy, parameters, multiply-adds, bytes and latency of one model.

    Args:
        model: As in `compare`.
        x: As in `compare`.
        y: As in `compare`.
        batch_sizes: As in `compare`.
        repeats: As in `compare`.

    Raises:
        TypeError: As `compare`.
        ValueError: As `compare`.

    Examples:
        >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> found = measure(network, np.zeros((5, 3)), repeats=1)
        >>> found.parameters, found.nonzero, found.multiply_adds
        (8, 6, 6)
    """
    return _measure_all({"model": model}, x, y, batch_sizes, repeats)[0]


def compare(
    models: Mapping[str, AnyModel],
    x: Any,
    y: Any = None,
    *,
    batch_sizes: Sequence[int] = (1, 256),
    repeats: int = 50,
) -> pd.DataFrame:
    """Returns a table of models measured on the same data, their latencies in turns.

    Timed is what answers arrays with arrays: `predict_on_batch` of a Keras model, which
    runs its compiled function without the set-up of `predict` (at a batch of one that
    can take ten times as long as the network), and `predict` of a SparseModel. Each batch size
    is warmed up first. Then the models take turns, in the order given: one call untimed,
    up to five timed, so that other work on the machine meets all of them alike. Threads
    are not set here: Keras's backend takes those it was started with, a SparseModel its
    own.

    The Keras models are measured as copies and do not change, nor do their optimizers.

    Args:
        models: Name to model: built Keras models, and SparseModels.
        x: Inputs, an array of shape `(examples, ...)`, or a list or dict of them as the
            models take them; or a finite `tf.data.Dataset`, `PyDataset` or `DataLoader`,
            read once into memory, which may hold the targets too.
        y: Targets of the same length, to be evaluated with the loss and metrics that each
            model was compiled with; without it, or with a model that has none, accuracy
            and loss are missing.
        batch_sizes: Examples of a call that is timed, from the start of x; fewer are
            repeated.
        repeats: Timed calls of each model and batch size, at least 1.

    Returns:
        DataFrame, a row a model: `model` (its name), the fields of `Measurement` with
        other metrics by their names, and for a batch size of 256 `batch_256_ms` (the
        median), `batch_256_ms_lower` and `batch_256_ms_upper` (the quartiles).

    Raises:
        TypeError: If `models` is not a dict, one of them no Keras model or SparseModel, or
            x or y hold plain numbers instead of arrays.
        ValueError: If there are no models, one is not built or cannot be copied, x does
            not suit a model, x and y differ in length, or `repeats` or a batch size is
            not a whole number from 1.

    Examples:
        >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> models = {"dense": network, "sparse": SparseModel(network)}
        >>> compare(models, np.zeros((5, 3)), repeats=1)[["model", "multiply_adds"]]
            model  multiply_adds
        0   dense              6
        1  sparse              6
    """
    if not isinstance(models, Mapping):
        raise TypeError(
            f"models must be a dict of name to model. Received: {type(models).__name__}"
        )
    if not models:
        raise ValueError("models is empty. Give at least one name and model.")
    found = _measure_all(models, x, y, batch_sizes, repeats)
    return pd.DataFrame([_row(name, one) for name, one in zip(models, found, strict=True)])


def _measure_all(
    models: Mapping[str, AnyModel], x: Any, y: Any, batch_sizes: Sequence[int], repeats: int
) -> list[Measurement]:
    for name, model in models.items():
        _check_model(name, model)
    x, y = as_arrays(x, y)
    length = count_examples(x, y)
    for batch_size in batch_sizes:
        check_count("batch_sizes", batch_size)
    check_count("repeats", repeats)
    gc.collect()  # models hold themselves in circles: copies of a last call may still be there
    with _retracing_unreported():
        predicts, found = zip(*(_made_ready(*one, x, y) for one in models.items()), strict=True)
        batches = [_batch(x, size, length) for size in batch_sizes]
        milliseconds = [_interleaved_ms(predicts, batch, repeats) for batch in batches]
    return [
        replace(one, latencies=tuple(map(_latency, batch_sizes, times)))
        for one, *times in zip(found, *milliseconds, strict=True)
    ]


@contextmanager
def _retracing_unreported() -> Iterator[None]:
    """Drops TensorFlow's advice on functions traced again: each model and batch size has to be."""

    def is_other(record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _made_ready(name: str, model: AnyModel, x: Any, y: Any) -> tuple[Predict, Measurement]:
    """Returns a function that runs the model, and what is known of it before it is timed."""
    if isinstance(model, SparseModel):
        return model.predict, _of_sparse_model(model, x, y)
    copy = copy_for_inference(model)
    one = _batch(x, 1, 1)
    try:
        operations = count_multiply_adds(copy, one)
    except Exception as error:  # each backend and layer has errors of its own
        shapes = keras.tree.map_structure(np.shape, x)
        raise ValueError(
            f"Model '{name}' cannot be called on x, of shape {shapes}. Give inputs of the "
            f"shape that the model takes. Keras says: {error}"
        ) from error
    file = inference_file(copy)
    compile_for_inference(copy, model)
    unpacked = {id(k): entry.values(k) for entry in kernel_layers(copy) for k in entry.kernels}
    weights = [
        unpacked[id(v)] if id(v) in unpacked else keras.ops.convert_to_numpy(v)
        for v in copy.weights
    ]
    metrics = {} if y is None or not copy.compiled else _evaluate(copy, x, y)
    sizes = sum(array.size for array in weights), sum(map(count_nonzero, weights))
    found = _untimed(metrics, sizes, operations, file, _backend_threads())
    return copy.predict_on_batch, replace(found, nonzero=None) if packs_weights(copy) else found


def _of_sparse_model(model: SparseModel, x: Any, y: Any) -> Measurement:
    model.predict(_batch(x, 1, 1))  # raises unless x suits it
    metrics = {} if y is None or not model.compiled else model.evaluate(x, y)
    parameters, nonzero, products, products_nonzero = model.counts
    operations = None
    if products is not None and products_nonzero is not None:
        operations = MultiplyAdds(products, products_nonzero)
    sizes = parameters, nonzero
    return _untimed(metrics, sizes, operations, _sparse_file(model), model.n_threads)


def _untimed(
    metrics: Mapping[str, float],
    sizes: tuple[int, int],
    operations: MultiplyAdds | None,
    file: bytes | None,
    n_threads: int,
) -> Measurement:
    multiply_adds, multiply_adds_nonzero = operations or (None, None)
    return Measurement(
        accuracy=_accuracy(metrics),
        loss=metrics.get("loss"),
        metrics=metrics,
        parameters=sizes[0],
        nonzero=sizes[1],
        multiply_adds=multiply_adds,
        multiply_adds_nonzero=multiply_adds_nonzero,
        file_bytes=None if file is None else len(file),
        # Without the time in its header, gzip gives the same for the same bytes.
        file_gzip_bytes=None if file is None else len(gzip.compress(file, mtime=0)),
        latencies=(),
        n_threads=n_threads,
    )


def _sparse_file(model: SparseModel) -> bytes | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        try:
            model.save(path)
        except ValueError:  # an activation of the user's own
            return None
        return path.read_bytes()


def _evaluate(model: keras.Model, x: Any, y: Any) -> dict[str, float]:
    values = model.evaluate(x, y, batch_size=256, verbose=0, return_dict=True)
    return {name: float(value) for name, value in values.items()}


def _backend_threads() -> int:
    """Returns how many threads Keras's backend computes with; 0 in TensorFlow: all cores."""
    backend = keras.backend.backend()
    if backend == "torch":
        return importlib.import_module("torch").get_num_threads()
    if backend == "tensorflow":
        threading = importlib.import_module("tensorflow").config.threading
        return threading.get_intra_op_parallelism_threads() or count_cores()
    return count_cores()


def _batch(x: Any, size: int, length: int) -> Any:
    """Returns the first `size` examples, begun anew where there are fewer."""
    return keras.tree.map_structure(lambda array: array[np.arange(size) % length], x)


def _interleaved_ms(predicts: Sequence[Predict], x: Any, repeats: int) -> list[list[float]]:
    """Returns the milliseconds of `repeats` calls a function, taken in turns."""
    milliseconds: list[list[float]] = [[] for _ in predicts]
    for predict in predicts:
        predict(x)  # traced and compiled
    while len(milliseconds[-1]) < repeats:
        calls = min(_CALLS_A_TURN, repeats - len(milliseconds[-1]))
        for predict, own in zip(predicts, milliseconds, strict=True):
            predict(x)  # its weights in the caches again, the other's threads at rest
            own += [_elapsed_ms(predict, x) for _ in range(calls)]
    return milliseconds


def _elapsed_ms(predict: Predict, x: Any) -> float:
    start = time.perf_counter()
    predict(x)
    return 1000 * (time.perf_counter() - start)


def _latency(batch_size: int, milliseconds: list[float]) -> Latency:
    lower, median, upper = map(float, np.percentile(milliseconds, (25, 50, 75)))
    return Latency(batch_size, median, lower, upper)


def _accuracy(metrics: Mapping[str, float]) -> float | None:
    alike = [value for name, value in metrics.items() if name.endswith("accuracy")]
    return metrics.get("accuracy", alike[0] if len(alike) == 1 else None)


def _row(name: str, found: Measurement) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name}
    for field, value in vars(found).items():
        if field == "metrics":
            row |= {key: v for key, v in value.items() if key not in ("accuracy", "loss")}
        elif field != "latencies":
            row[field] = value
    for latency in found.latencies:
        column = f"batch_{latency.batch_size}_ms"
        row[column] = latency.median_ms
        row[f"{column}_lower"], row[f"{column}_upper"] = latency.lower_ms, latency.upper_ms
    return row


def _check_model(name: str, model: object) -> None:
    if isinstance(model, SparseModel):
        return
    try:
        kernel_layers(model)  # raises unless it is a built Keras model
    except TypeError as error:
        raise TypeError(f"'{name}' must be a Keras model or a SparseModel. {error}") from error
