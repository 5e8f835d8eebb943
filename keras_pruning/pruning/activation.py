"""How much each weight or unit carries on given inputs: its magnitude times what it hears."""

import math
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.channels import channel_readers
from keras_pruning.models import (
    all_layers,
    calls_in_order,
    calls_of,
    in_batches,
    kernel_layers,
    linear_maps,
    sample,
    without_lora,
)
from keras_pruning.pruning.masks import check_count
from keras_pruning.pruning.scores import check_method
from keras_pruning.pruning.selection import unit_groups

__all__ = ["activation_scores"]

Array = npt.NDArray[Any]
_ROWS = 20_000  # that the activations of a layer are averaged over, at the most


def activation_scores(
    model: keras.Model,
    x: Any,
    *,
    method: Literal["weights", "units"] = "weights",
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Returns how much each weight or unit carries on the inputs x; no labels are needed.

    Of a weight `|w| rms(x_i)`, with x_i the input that it multiplies (Sun et al. 2023, "A
    Simple and Effective Pruning Approach for Large Language Models", Wanda). Of a unit the
    root mean square of what it sends on, times the norm of the weights that read it, summed
    in squares over all layers that do. On the tutorial's networks, for weights, magnitude keeps
    more; units it ranks better than their norm does. The result is what `score=` takes:

        prune_units(model, 0.9, score=activation_scores(model, x, method="units"))

    Args:
        model: A built Keras model; for units one that shows its graph. It is not changed.
        x: Inputs, shape `(examples, ...)`, or a list or dict of such arrays; or a finite data
            set, read once into memory. Some thousand are enough.
        method: "weights" for `prune_weights`, "units" for `prune_units`.
        batch_size: Inputs at a time, as in `reconstruct`.

    Returns:
        Layer name to a list of arrays, one a kernel, each of the kernel's shape; for "units"
        layer name to an array of shape `(units,)`. Of layers whose inputs can be seen, and of
        units that `prune_units` prunes by default: of others it is not known what reads them.

    Raises:
        TypeError: If `model` is no Keras model, or `x` holds no arrays.
        ValueError: If the model is not built, or shows no graph and units are asked for; if
            `x` is empty, or the method is unknown.

    Examples:
        >>> hidden = keras.layers.Dense(2, use_bias=False, name="hidden")
        >>> model = keras.Sequential([keras.Input((2,)), hidden, keras.layers.Dense(1)])
        >>> hidden.set_weights([np.array([[1.0, -2.0], [3.0, 0.5]])])
        >>> x = np.array([[2.0, 0.0], [2.0, 2.0]])  # root mean squares: 2 and 1.41
        >>> activation_scores(model, x)["hidden"][0].round(2).tolist()
        [[2.0, 4.0], [4.24, 0.71]]
    """
    check_method(method)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    batches = in_batches(x, batch_size)
    model = without_lora(model)
    entries = kernel_layers(model)
    known = [layer for layer in all_layers(model) if linear_maps(layer)]
    heard = {
        layer: _mean_squares(model, layer, count, batches)
        for layer, count in calls_in_order(model, known, batches[0])
    }
    if method == "units":
        return _unit_scores(model, entries, heard)
    return {
        entry.name: [_weight_scores(entry.layer, kernel, heard) for kernel in entry.kernels]
        for entry in entries
        if entry.layer in heard
    }


def _mean_squares(
    model: keras.Model, layer: keras.Layer, count: int, batches: list[Any]
) -> list[Array]:
    """Returns of each of the layer's products the mean squares of what it multiplies.

    Of shape `(groups, features)` each.
    """
    maps = linear_maps(layer)
    totals = [np.zeros(part.matrix.shape[:2]) for part in maps]
    rng = np.random.default_rng(0)
    number = 0
    for batch in batches:
        for x, _ in calls_of(model, {layer: count}, batch)[layer]:
            most = math.ceil(_ROWS / len(batches) / count)
            rows = maps[0].rows(x, sample(maps[0].count(x), most, rng))
            number += len(rows)
            for part, total in zip(maps, totals, strict=True):
                total += np.square(rows, dtype=np.float64).sum(axis=0)
                rows = part.product(rows).reshape(len(rows), 1, -1)
    return [total / number for total in totals]


def _weight_scores(
    layer: keras.Layer, kernel: keras.Variable, heard: dict[keras.Layer, list[Array]]
) -> Array:
    products = zip(linear_maps(layer), heard[layer], strict=True)
    part, squares = next(pair for pair in products if pair[0].kernel is kernel)
    return part.to_kernel(np.abs(part.matrix) * np.sqrt(squares)[..., None])


def _unit_scores(
    model: keras.Model, entries: list[Any], heard: dict[keras.Layer, list[Array]]
) -> dict[str, Array]:
    readers = channel_readers(model)
    if readers is None:
        raise ValueError(
            f"Model '{model.name}' shows no graph, so that nobody knows which layers read a unit. "
            'Take score="magnitude", or build it with keras.Input and keras.Model.'
        )
    units, inputs = readers
    all_ids = [*units.values(), *(ids for ids, _ in inputs.values())]
    squares = np.zeros(1 + max((int(ids.max(initial=0)) for ids in all_ids), default=0))
    for layer, (ids, axis) in inputs.items():
        if layer in heard:
            part, of_features = linear_maps(layer)[-1], heard[layer][-1]
            read = part.to_kernel(np.square(part.matrix) * of_features[..., None])
            channels = np.moveaxis(read, axis, 0).reshape(len(ids), -1)
            np.add.at(squares, ids, channels.sum(axis=1, dtype=np.float64))
        else:
            squares[ids] = np.nan
    can_go = unit_groups(model, entries) or {}  # of others, something unseen may read the units
    return {
        entry.name: np.sqrt(squares[units[entry.layer]])
        for entry in entries
        if entry.layer in units and entry.has_units and can_go[entry.name].can_go.any()
        if not np.isnan(squares[units[entry.layer]]).any()
    }
