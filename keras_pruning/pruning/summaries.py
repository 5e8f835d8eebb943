"""A table of a model's kernels: what is zero in them, and what pruning spares."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd

from keras_pruning.models import (
    KernelLayer,
    kernel_layers,
    vectors_left_alone,
    without_lora,
)
from keras_pruning.pruning.masks import count_nonzero
from keras_pruning.pruning.scores import Read
from keras_pruning.pruning.selection import Layers, UnitGroups, choose, unit_groups

__all__ = ["pruned_share", "summary"]

_COLUMNS = (
    "layer", "type", "shape", "weights", "zeros", "sparsity", "unit", "units", "zero_units",
    "unit_sparsity", "output", "spared",
)  # fmt: skip


def summary(model: keras.Model) -> pd.DataFrame:
    """Returns a table of the model's kernels, a row a layer.

    Args:
        model: A built Keras model.

    Returns:
        DataFrame with the columns `layer`, `type`, `shape` (of the kernel, or of each),
        `weights`, `zeros`, `sparsity` (zeros / weights), `unit` (what a unit of it is: a
        column, a filter, a head), `units`, `zero_units`, `unit_sparsity` (missing where a
        layer has no units), `output` (whether it is spared as the output layer; missing
        where that cannot be told) and `spared`: what pruning leaves out unless `layers=`
        names it, and why. LoRA weights are counted as merged into their kernel, int4
        weights one by one. Weights of layers of your own that are no matrices, such as a
        class token, are never pruned; they come last, by their paths.

    Examples:
        >>> dense = keras.layers.Dense
        >>> layers = [keras.Input((8,)), dense(10, name="hidden"), dense(3, name="out")]
        >>> model = keras.Sequential(layers)
        >>> summary(model)[["layer", "weights", "zeros", "units", "output"]]
            layer  weights  zeros  units  output
        0  hidden       80      0     10   False
        1     out       30      0      3    True
    """
    model = without_lora(model)
    entries = kernel_layers(model)
    groups = unit_groups(model, entries)
    rows = [_row(entry, groups) for entry in entries]
    rows += [_left_alone(layer, variable) for layer, variable in vectors_left_alone(model)]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"units": "Int64", "zero_units": "Int64"})


def _left_alone(layer: keras.Layer, variable: keras.Variable) -> dict[str, Any]:
    values = keras.ops.convert_to_numpy(variable)
    zeros = values.size - count_nonzero(values)
    return {
        "layer": variable.path,
        "type": type(layer).__name__,
        "shape": values.shape,
        "weights": values.size,
        "zeros": zeros,
        "sparsity": zeros / values.size if values.size else math.nan,
        "unit": "",
        "spared": "no matrix",
    }


def pruned_share(
    model: keras.Model,
    method: Literal["weights", "units"],
    layers: Layers = None,
    read: Read = keras.ops.convert_to_numpy,
) -> float:
    """Returns the share of zeros among the weights, or units, of the layers that are pruned.

    Args:
        model: A built Keras model.
        method: "weights" or "units".
        layers: As in `prune_weights`: by default those that are pruned by default.
        read: Returns a variable's values, if they are to be others than the model's.
    """
    named = list(layers) if isinstance(layers, Mapping) else layers
    chosen = choose(model, 0.0, named, "layer", units=method == "units")
    flags = []
    if method == "units":
        for one in chosen:
            alive = one.entry.alive_units(read)
            if layers is None and one.units is not None:
                alive = alive[one.units.can_go]
            flags.append(alive)
    else:
        flags = [read(kernel) for one in chosen for kernel in one.entry.kernels]
    total = sum(array.size for array in flags)
    return (total - sum(map(count_nonzero, flags))) / total


def _row(entry: KernelLayer, groups: dict[str, UnitGroups] | None) -> dict[str, Any]:
    arrays = [entry.values(kernel) for kernel in entry.kernels]
    weights = sum(a.size for a in arrays)
    zeros = weights - sum(map(count_nonzero, arrays))
    shapes = [a.shape for a in arrays]
    units: int | None = None
    zero_units: int | None = None
    if entry.has_units:
        alive = entry.alive_units(entry.values)
        units, zero_units = alive.size, alive.size - int(np.count_nonzero(alive))
    is_output = entry.output_if_known
    return {
        "layer": entry.name,
        "type": type(entry.layer).__name__,
        "shape": shapes[0] if len(shapes) == 1 else shapes,
        "weights": weights,
        "zeros": zeros,
        "sparsity": zeros / weights,
        "unit": entry.unit_kind,
        "units": units,
        "zero_units": zero_units,
        "unit_sparsity": zero_units / units if units and zero_units is not None else math.nan,
        "output": is_output,
        "spared": _spared(entry, is_output, groups),
    }


def _spared(
    entry: KernelLayer, is_output: bool | None, groups: dict[str, UnitGroups] | None
) -> str:
    if is_output:
        return "output"
    if entry.is_depthwise:
        return "depthwise"
    known = (groups or {}).get(entry.name)
    if known is None or known.can_go.all():
        return ""
    return f"{'some ' if known.can_go.any() else ''}units: {known.reason}"
