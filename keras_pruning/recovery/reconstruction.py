"""The accuracy back without labels: what is left of each layer is refitted to what it sent before.

Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", and
layer by layer He, Zhang & Sun 2017, "Channel Pruning for Accelerating Very Deep Neural Networks",
Dong et al. 2017, "Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon".
"""

import math
import numbers
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, overload

import keras
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pandas as pd
from keras import layers as kl
from tqdm import tqdm

from keras_pruning.models import (
    LinearMap,
    all_layers,
    as_floats,
    calls_in_order,
    calls_of,
    copy_model,
    count_examples,
    in_batches,
    kernel_layers,
    linear_maps,
    outputs_of,
    sample,
    without_lora,
)
from keras_pruning.pruning import check_count
from keras_pruning.recovery.least_squares import ridge_step

__all__ = ["reconstruct", "refit_in_place"]

Array = npt.NDArray[Any]

_ROWS = 40_000  # that a layer is fitted to, at the most: a convolution has one a place
_MOST_FEATURES = 8192  # their products take 0.5 GiB
_MOST_BYTES = 2**26  # of what the original's layers hear, kept rather than computed anew for each
_NOT_FINITE = "left: in it are numbers that are not finite, or too large"
_NOT_CALLED = "left: the model does not call it, or in a function that is compiled"
_UNKNOWN = "left: of a kind that is not known"
_COLUMNS = ("layer", "done", "error_before", "error_after")


@overload
def reconstruct(
    pruned: keras.Model,
    original: keras.Model,
    x: Any,
    *,
    damping: float = ...,
    batch_size: int | None = ...,
    report: Literal[False] = False,
    progress: bool = ...,
) -> keras.Model: ...
@overload
def reconstruct(
    pruned: keras.Model,
    original: keras.Model,
    x: Any,
    *,
    damping: float = ...,
    batch_size: int | None = ...,
    report: Literal[True],
    progress: bool = ...,
) -> tuple[keras.Model, pd.DataFrame]: ...
def reconstruct(
    pruned: keras.Model,
    original: keras.Model,
    x: Any,
    *,
    damping: float = 0.01,
    batch_size: int | None = None,
    report: bool = False,
    progress: bool = True,
) -> keras.Model | tuple[keras.Model, pd.DataFrame]:
    """Returns the pruned model with the weights that are left refitted to the original's answers.

    Layer after layer, in the order in which the model calls them, the weights and biases that
    are not zero are chosen such that the layer's sums, before its activation, come as near as
    possible to those in the original, by least squares over the inputs `x`. A layer is fitted to
    what the refitted layers before it send, so that errors do not add up. No labels are
    needed, and some thousand inputs, of the training data, are enough. Zeros stay zero.

    Refitted are Dense, EinsumDense and all convolutions, wherever they stand in the model, frozen
    or not; the moving statistics of a BatchNormalization follow the change of what it hears.
    Other layers stay as they are, and those whose weights have a constraint; the report names
    them. A warning tells if the outputs are further from the original's than before.

    Args:
        pruned: A built Keras model. It is not changed.
        original: The model as it was before pruning, of the same layers.
        x: Inputs, shape `(examples, ...)`, or a list or dict of such arrays; or a finite
            `tf.data.Dataset`, `PyDataset` or `DataLoader`, read once into memory.
        damping: How strongly the weights are held where they are, where the inputs tell
            little: a positive number, relative to the mean square of a layer's inputs. One input
            that is much larger than the others makes it strong for those: scale it.
        batch_size: Inputs at a time; fewer take less memory. By default 16 to 1024, the larger
            they are the fewer.
        report: Whether to return a table as well.
        progress: Whether to print a bar.

    Returns:
        A new model, compiled as `pruned` is. With `report=True` also a DataFrame, a row a
        layer: `layer`; `done`, what was done with it; `error_before` and `error_after`, the
        distance of the sums of the units that are left from those in the original, as a share
        of their norm.

    Raises:
        TypeError: If one is no Keras model, or `x` holds no arrays.
        ValueError: If the models differ in their layers, none of them can be refitted, `x` is
            empty or not finite or does not fit the model, or `damping` is not positive.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
        >>> original = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> kernel, bias = original.get_weights()
        >>> pruned = keras.models.clone_model(original)
        >>> pruned.set_weights([kernel * (np.abs(kernel) > 0.3), bias])
        >>> mended = reconstruct(pruned, original, x, progress=False)
        >>> int(np.count_nonzero(mended.get_weights()[0])) == int((np.abs(kernel) > 0.3).sum())
        True
    """
    result = copy_model(pruned)
    table = refit_in_place(
        result, original, x, damping=damping, batch_size=batch_size, progress=progress
    )
    return (result, table) if report else result


def refit_in_place(
    model: keras.Model,
    original: keras.Model,
    x: Any,
    *,
    damping: float = 0.01,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Does what `reconstruct` does with the model itself, and returns its report."""
    if not isinstance(damping, numbers.Real) or not 0 < damping < math.inf:
        raise ValueError(f"damping must be a positive number. Received: damping={damping!r}")
    if batch_size is not None:
        check_count("batch_size", batch_size)
    batches = in_batches(x, batch_size)
    kernel_layers(original)  # raises unless it is a built Keras model
    original = without_lora(original)
    twins = _twins(model, original)
    entries = kernel_layers(model)
    names = {id(entry.layer): entry.name for entry in entries}
    products = {id(entry.layer) for entry in entries if linear_maps(entry.layer)}
    mended = [
        part
        for part in all_layers(model)
        if id(part) in products or isinstance(part, kl.BatchNormalization)
    ]
    goal = outputs_of(original, batches[0])
    outputs = outputs_of(model, batches[0])
    if [y.shape for y in outputs] != [y.shape for y in goal]:
        raise _other_model(model, original)
    before = _distance(outputs, goal)
    calls = calls_in_order(model, mended, batches[0])
    heard = _heard_in(original, {twins[id(layer)]: count for layer, count in calls}, batches)
    rows = []
    for layer, count in tqdm(
        calls, "Reconstruct", disable=not progress, file=sys.stdout, unit="layer"
    ):
        twin = twins[id(layer)]
        place = _Place(model, original, layer, twin, count, batches, heard.get(twin, []))
        if isinstance(layer, kl.BatchNormalization):
            rows.append((layer.name, _adjust_statistics(place), None, None))
        else:
            rows.append((names[id(layer)], *_refit(place, damping)))
    after = _distance(outputs_of(model, batches[0]), goal)
    called = {id(layer) for layer, _ in calls}
    for part in mended:
        if isinstance(part, kl.BatchNormalization) and id(part) not in called:
            rows.append((part.name, _NOT_CALLED, None, None))
    for entry in entries:
        if id(entry.layer) not in called and entry.name == names[id(entry.layer)]:
            is_known = linear_maps(entry.layer)
            rows.append((entry.name, _NOT_CALLED if is_known else _UNKNOWN, None, None))
    if not any(done == "refitted" for _, done, *_ in rows):
        raise ValueError(
            f"Model '{model.name}' has no layer that can be refitted: Dense, EinsumDense and "
            f"convolutions are. Its layers: {dict((name, done) for name, done, *_ in rows)}"
        )
    if after > 1.01 * before:
        warnings.warn(
            f"What model '{model.name}' answers is further from the original now than it was "
            f"before refitting: {after:.3g} instead of {before:.3g}, the distance of its outputs "
            "for the first inputs. Perhaps a kernel is read by more than its own layer. Compare "
            "both on data of your own.",
            stacklevel=3,
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _twins(model: keras.Model, original: keras.Model) -> dict[int, keras.Layer]:
    """Returns the layer of the original in the place of each layer, by its id."""
    ours, theirs = all_layers(model), all_layers(original)

    def built(layers: list[keras.Layer]) -> list[Any]:
        return [(type(x).__name__, [tuple(w.shape) for w in x.weights]) for x in layers]

    if built(ours) != built(theirs):
        raise _other_model(model, original)
    return {id(layer): twin for layer, twin in zip(ours, theirs, strict=True)}


def _other_model(model: keras.Model, original: keras.Model) -> ValueError:
    return ValueError(
        f"Model '{original.name}' has other layers, or layers of other sizes, than the pruned "
        f"model '{model.name}'. Give the model that was pruned, before shrink."
    )


def _heard_in(
    original: keras.Model, counts: dict[keras.Layer, int], batches: list[Any]
) -> dict[keras.Layer, list[list[Array]]]:
    """Returns what each layer hears for each batch, unless that takes much memory."""
    few = _few(original, batches[0])
    of_few = sum(x.nbytes for calls in calls_of(original, counts, few).values() for x, _ in calls)
    if of_few / count_examples(few) * sum(map(count_examples, batches)) > _MOST_BYTES:
        return {}
    heard: dict[keras.Layer, list[list[Array]]] = {layer: [] for layer in counts}
    for batch in batches:
        for layer, calls in calls_of(original, counts, batch).items():
            heard[layer].append([x for x, _ in calls])
    return heard


def _few(original: keras.Model, batch: Any) -> Any:
    """Returns the first input of a batch; all of them if the model takes no fewer."""
    inputs = getattr(original, "inputs", None) or [None]
    takes_one = all(x is not None and x.shape[0] is None for x in inputs)
    return keras.tree.map_structure(lambda x: x[:1], batch) if takes_one else batch


@np.errstate(over="ignore", invalid="ignore")  # what is not finite compares as false
def _distance(outputs: list[Array], goal: list[Array]) -> float:
    pairs = zip(outputs, goal, strict=True)
    return math.sqrt(sum(float(np.square(a - b, dtype=float).sum()) for a, b in pairs))


@dataclass(frozen=True)
class _Place:
    """A layer in the model to mend, and its twin in the original."""

    model: keras.Model
    original: keras.Model
    layer: keras.Layer
    twin: keras.Layer
    count: int  # of its calls
    batches: list[Any]
    heard: list[list[Array]]  # by the twin, for each batch; nothing if that would take much memory

    def inputs(self) -> Iterator[tuple[Array, Array]]:
        """Yields what the layer and its twin hear, batch after batch and call after call."""
        for number, batch in enumerate(self.batches):
            ours = self._heard(self.model, self.layer, batch)
            theirs = (
                self.heard[number] if self.heard else self._heard(self.original, self.twin, batch)
            )
            if [x.shape for x in ours] != [x.shape for x in theirs]:
                raise _other_model(self.model, self.original)
            yield from zip(ours, theirs, strict=True)

    def _heard(self, model: keras.Model, layer: keras.Layer, batch: Any) -> list[Array]:
        return [x for x, _ in calls_of(model, {layer: self.count}, batch)[layer]]

    def example(self) -> tuple[Array, Array]:
        """Returns the first input and output of the twin, for few examples."""
        few = _few(self.original, self.batches[0])
        x, y = calls_of(self.original, {self.twin: 1}, few)[self.twin][0]
        return x, as_floats(y)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is looked for
def _refit(place: _Place, damping: float) -> tuple[str, float | None, float | None]:
    """Refits a layer's kernels and bias; returns what was done, and its error before and after."""
    ours, theirs = linear_maps(place.layer), linear_maps(place.twin)
    weights = [v for part in ours for v in (part.kernel, part.bias) if v is not None]
    if max(part.matrix.shape[1] for part in ours) > _MOST_FEATURES:
        return f"left: more than {_MOST_FEATURES:,} inputs a unit", None, None
    if any(variable.constraint is not None for variable in weights):
        return "left: its weights have a constraint", None, None
    if not _is_understood(place, theirs):
        return "left: it computes more than its kernel says", None, None
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in weights]
    for number in range(1, len(ours) + 1):
        errors = _refit_product(place, ours[:number], theirs[:number], damping)
        if math.isnan(errors[0]):
            return _NOT_FINITE, None, None
    if place.count > 1:  # it may hear what it sends, which has changed
        errors = errors[0], _error(place, ours, theirs)
        if not errors[1] <= errors[0]:
            for variable, values in zip(weights, before, strict=True):
                variable.assign(values)
            return "left: called again on what it sends, it would be further off", None, None
    return "refitted", *errors


def _is_understood(place: _Place, maps: list[LinearMap]) -> bool:
    """Whether the products give what the layer gives for the first example."""
    x, y = (array[:1] for array in place.example())
    sums = maps[-1].product(_rows(maps, x, np.arange(maps[0].count(x))))
    if sums.size != y.size:
        return False
    order = maps[-1].answers(np.arange(y.size).reshape(y.shape))  # where each sum stands in y
    answers = np.zeros_like(y)
    answers.flat[order] = sums.reshape(order.shape)
    activation = getattr(place.twin, "activation", None)
    if activation is not None:  # of the whole: it may have weights, or go along any axis
        answers = as_floats(activation(keras.ops.convert_to_tensor(answers)))
    close = np.isclose(answers, y, rtol=1e-2, atol=1e-2 * np.abs(y).max(initial=0))
    return bool(close.all() or not np.isfinite(y).all())


def _refit_product(
    place: _Place, ours: list[LinearMap], theirs: list[LinearMap], damping: float
) -> tuple[float, float]:
    """Refits the last of a layer's products; not where numbers are not finite, nor the errors."""
    part = ours[-1]
    features, weights = part.matrix.shape[1], _with_bias(part)
    keep = weights != 0
    alive = keep.any(axis=1).reshape(-1)  # of all groups in a row
    gram = np.zeros((len(weights), weights.shape[1], weights.shape[1]))
    cross = np.zeros(weights.shape)
    squares = np.zeros(2)  # of the errors, and of the original's sums
    for rows, error, goal in _sums(place, ours, theirs):
        if part.bias is not None:
            rows = np.concatenate([rows, np.ones_like(rows[..., :1])], axis=-1)
        for group in range(len(weights)):
            gram[group] += rows[:, group].T @ rows[:, group]
            cross[group] += rows[:, group].T @ error[:, group]
        squares += _squares(error, alive), _squares(goal, alive)
    if not all(np.isfinite(sums).all() for sums in (gram, cross, squares)):
        return math.nan, math.nan
    step = np.stack([ridge_step(*one, damping) for one in zip(gram, cross, keep, strict=True)])
    changed = _in_range(weights + step, weights, part.kernel.dtype)
    part.kernel.assign(part.to_kernel(changed[:, :features]))
    if part.bias is not None:
        part.bias.assign(changed[:, features:].reshape(part.bias.shape))
    step = changed - weights
    gain = 2 * (step * cross).sum() - (step * (gram @ step)).sum()
    norm = math.sqrt(squares[1]) or 1.0
    return math.sqrt(squares[0]) / norm, math.sqrt(max(squares[0] - gain, 0.0)) / norm


def _sums(
    place: _Place, ours: list[LinearMap], theirs: list[LinearMap]
) -> Iterator[tuple[Array, Array, Array]]:
    """Yields the rows of the last of a layer's products, the error of its sums, and the goal."""
    part, twin = ours[-1], theirs[-1]
    rng = np.random.default_rng(0)
    for x, x_twin in place.inputs():
        if part.count(x) != twin.count(x_twin):  # of other strides, of no weight
            raise _other_model(place.model, place.original)
        wanted = sample(part.count(x), math.ceil(_ROWS / len(place.batches) / place.count), rng)
        rows = _rows(ours, x, wanted)
        goal = twin.product(_rows(theirs, x_twin, wanted))
        yield rows, goal - part.product(rows), goal


def _with_bias(part: LinearMap) -> Array:
    """Returns the kernel as `(groups, features, units)`; a bias is that of one feature more."""
    if part.bias is None:
        return part.matrix
    bias = as_floats(part.bias).reshape(len(part.matrix), 1, -1)
    return np.concatenate([part.matrix, bias], axis=1)


def _squares(sums: Array, alive: npt.NDArray[np.bool_]) -> float:
    """Returns the sum of squares over the units that are left."""
    return float(np.square(sums.reshape(len(sums), -1)[:, alive], dtype=float).sum())


def _error(place: _Place, ours: list[LinearMap], theirs: list[LinearMap]) -> float:
    """Returns the distance of the layer's sums from those in the original, measured anew."""
    alive = (_with_bias(ours[-1]) != 0).any(axis=1).reshape(-1)
    squares = np.zeros(2)
    for _, error, goal in _sums(place, ours, theirs):
        squares += _squares(error, alive), _squares(goal, alive)
    return math.sqrt(squares[0]) / (math.sqrt(squares[1]) or 1.0)


def _in_range(changed: Array, weights: Array, dtype: str) -> Array:
    """Returns the changed weights, but those as they were that their type makes zero or infinite.

    A zero would be a pruned weight; float16 has none between 6e-8 and 0.
    """
    with np.errstate(over="ignore"):
        held = changed.astype(ml_dtypes.finfo(dtype).dtype).astype(weights.dtype)
    return np.where((held == 0) | ~np.isfinite(held), weights, held)


def _rows(maps: list[LinearMap], x: Array, wanted: Array) -> Array:
    """Returns what the last of a layer's products multiplies."""
    rows = maps[0].rows(x, wanted)
    for part in maps[:-1]:
        rows = part.product(rows).reshape(len(rows), 1, -1)
    return rows


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is looked for
def _adjust_statistics(place: _Place) -> str:
    """Moves the statistics of a BatchNormalization as those of what it hears have moved.

    Not to the statistics of x themselves: those of the training are of more data.
    """
    layer = place.layer
    totals = np.zeros((2, 3, layer.moving_mean.shape[0]))  # in both models: count, sum, squares
    for heard in place.inputs():
        for total, x in zip(totals, heard, strict=True):
            x = np.moveaxis(x, layer.axis, -1).reshape(-1, total.shape[1]).astype(np.float64)
            total += [np.full(x.shape[1], len(x)), x.sum(axis=0), np.square(x).sum(axis=0)]
    count, total, squares = totals.transpose(1, 0, 2)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0)
    if not np.isfinite(squares).all():
        return _NOT_FINITE
    # Of a pruned unit, and of what does not vary but by rounding, the statistics are kept.
    alive = (variance > 1e-9 * squares / count).all(axis=0)
    ratio = np.divide(variance[0], variance[1], out=np.ones_like(mean[0]), where=alive)
    moved = np.where(alive, mean[0] - mean[1], 0)
    layer.moving_mean.assign(as_floats(layer.moving_mean) + moved)
    layer.moving_variance.assign(as_floats(layer.moving_variance) * ratio)
    return "statistics adjusted"
