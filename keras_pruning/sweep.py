"""A grid of prunings, measured: methods x sparsities x repeats in one tidy table."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from keras_pruning.dense_chain import read_dense_chain
from keras_pruning.graph import copy_model, kernel_layers, loss_head
from keras_pruning.masks import check_sparsity
from keras_pruning.prune import (
    Scope,
    Score,
    prunable_layers,
    unit_masks,
    weight_masks,
    weights_under_unit_masks,
    weights_under_weight_masks,
)
from keras_pruning.sparse_chain import sparse_forward

__all__ = [
    "METHODS",
    "SPARSITIES",
    "Weights",
    "check_data",
    "evaluator",
    "measured_sparsity",
    "sparsity_sweep",
]

SPARSITIES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
METHODS = ("weights", "units", "random_weights", "random_units")

_WITHOUT_CHANCE = {"weights", "units"}

PruneFunction = Callable[..., keras.Model]  # (model, sparsity, *, seed) -> pruned model
Weights = list[npt.NDArray[Any]]  # as model.get_weights() returns them
Metrics = Callable[[Weights], dict[str, Any]]
Pruner = Callable[[float, int], Weights]  # (sparsity, seed) -> the pruned model's weights


def sparsity_sweep(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    methods: Iterable[str] | Mapping[str, PruneFunction] = METHODS[:3],
    sparsities: Sequence[float] = SPARSITIES,
    repeats: int = 1,
    scope: Scope = "layer",
    layers: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 1000,
    progress: bool = True,
) -> pd.DataFrame:
    """Returns what is left of a model at each sparsity, measured on (x, y).

    A chain of Dense layers is evaluated without what pruning cut off, by
    `sparse_forward`, so that a point costs less the more is gone. Of any other model one
    copy is made for the whole sweep, whose `evaluate` is traced once.

    Args:
        model: A built and compiled Keras model.
        x: Test inputs, shape `(examples, ...)`; what `model.evaluate` takes as arrays.
        y: Test targets, of the same length.
        methods: Among "weights", "units" (by magnitude and by norm), "random_weights",
            "random_units" (the controls); or a dict of name to a function
            `(model, sparsity, *, seed) -> pruned model`.
        sparsities: Shares to prune, floats in [0, 1].
        repeats: How often random methods and given functions are repeated, with the
            seeds `seed`, `seed + 1`, ...; the others give the same each time and are
            measured once.
        scope: "layer" or "global", as in `prune_weights`.
        layers: Names of the layers to prune; by default all but the output layer.
        seed: Seed of the first repeat.
        batch_size: Examples evaluated together.
        progress: Whether to show a progress bar on standard output.

    Returns:
        DataFrame, a row a point: `method`, `sparsity` (asked), `sparsity_measured`
        (zeros among the weights, or units, of the layers pruned), the loss and metrics
        of the compiled model (`loss`, `accuracy`, ...), `parameters`, `nonzero`
        (parameters that are not zero), `seed` (missing where chance has no part),
        `repeat`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the model is not compiled or not built, x and y differ in
            length, or a method, sparsity or layer is unknown or out of range.
    """
    check_data(model, x, y)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be a whole number from 1. Received: repeats={repeats!r}")
    if isinstance(layers, Mapping):
        raise TypeError("layers must be a list of names here: the sweep gives the sparsities.")
    pruners = _pruners(model, methods, scope, layers)
    asked = [check_sparsity(sparsity) for sparsity in sparsities]
    points = [
        (method, sparsity, repeat)
        for method in pruners
        for sparsity in asked
        for repeat in range(1 if method in _WITHOUT_CHANCE else repeats)
    ]
    evaluate = evaluator(model, x, y, batch_size)
    dense: dict[str, float] = {}
    rows = []
    for method, sparsity, repeat in tqdm(
        points, "Sweep", disable=not progress, file=sys.stdout, unit="point"
    ):
        weights = pruners[method](sparsity, seed + repeat)
        if sparsity == 0 and method in METHODS:  # the same network for each of them
            dense = measured = dense or evaluate(weights)
        else:
            measured = evaluate(weights)
        rows.append(
            {"method": method, "sparsity": sparsity}
            | {
                "sparsity_measured": measured_sparsity(model, weights, method, layers),
                "parameters": model.count_params(),
                "nonzero": sum(int(np.count_nonzero(array)) for array in weights),
            }
            | measured
            | {"seed": None if method in _WITHOUT_CHANCE else seed + repeat, "repeat": repeat}
        )
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def _pruners(
    model: keras.Model,
    methods: Iterable[str] | Mapping[str, PruneFunction],
    scope: Scope,
    layers: Sequence[str] | None,
) -> dict[str, Pruner]:
    """Returns method name to a function that gives the weights of the pruned model."""
    if isinstance(methods, Mapping):
        return {name: partial(_prune_by_function, model, f) for name, f in methods.items()}
    if isinstance(methods, str):
        raise TypeError(f"methods must be a list of names. Received: methods={methods!r}")
    names = list(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"Unknown method {unknown}. Known: {list(METHODS)}, or pass functions.")
    return {name: partial(_prune_by_name, model, name, scope, layers) for name in names}


def _prune_by_name(
    model: keras.Model,
    name: str,
    scope: Scope,
    layers: Sequence[str] | None,
    sparsity: float,
    seed: int,
) -> Weights:
    score: Score = "random" if name.startswith("random") else "magnitude"
    options: dict[str, Any] = {"scope": scope, "score": score, "layers": layers, "seed": seed}
    if name.endswith("units"):
        return weights_under_unit_masks(model, unit_masks(model, sparsity, **options))
    return weights_under_weight_masks(model, weight_masks(model, sparsity, **options))


def _prune_by_function(
    model: keras.Model, function: PruneFunction, sparsity: float, seed: int
) -> Weights:
    return function(model, sparsity, seed=seed).get_weights()


def evaluator(
    model: keras.Model, x: Any, y: Any, batch_size: int
) -> Callable[[Weights], dict[str, float]]:
    """Returns a function that measures the model with the weights it is given."""
    head = loss_head(model) if read_dense_chain(model) is not None else None
    metrics_of = _by_chain(model, head, x, y) if head else _by_copy(model, x, y, batch_size)

    def evaluate(weights: Weights) -> dict[str, float]:
        return {name: float(value) for name, value in metrics_of(weights).items()}

    return evaluate


def _by_chain(model: keras.Model, head: keras.Model, x: Any, y: Any) -> Metrics:
    inputs = np.asarray(x)

    def metrics_of(weights: Weights) -> dict[str, Any]:
        steps = read_dense_chain(model, weights) or []
        head.reset_metrics()
        return head.test_on_batch(sparse_forward(steps, inputs), y, return_dict=True)

    return metrics_of


def _by_copy(model: keras.Model, x: Any, y: Any, batch_size: int) -> Metrics:
    scratch = copy_model(model)

    def metrics_of(weights: Weights) -> dict[str, Any]:
        scratch.set_weights(weights)
        return scratch.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)

    return metrics_of


def measured_sparsity(
    model: keras.Model, weights: Weights, method: str, layers: Sequence[str] | None
) -> float:
    """Returns the share of zeros among the weights, or units, of the layers that are pruned."""
    values = dict(zip(map(id, model.weights), weights, strict=True))
    of_units = method in METHODS and method.endswith("units")
    names = prunable_layers(model, "units" if of_units else "weights") if layers is None else layers
    chosen = [entry for entry in kernel_layers(model) if entry.name in names]
    if of_units:
        kept = [entry.alive_units(values[id(entry.unit_kernel)]) for entry in chosen]
    else:
        kept = [values[id(variable)] for entry in chosen for variable in entry.kernels]
    total = sum(array.size for array in kept)
    return (total - sum(int(np.count_nonzero(array)) for array in kept)) / total


def check_data(model: keras.Model, x: Any, y: Any) -> None:
    """Raises an error unless the model can be measured on (x, y)."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected a Keras model. Received: {type(model).__name__}")
    if not model.compiled:
        raise ValueError(
            f"Model '{model.name}' is not compiled, so it has no loss and metrics to measure. "
            "Call model.compile(...) first."
        )
    lengths = {len(array) for array in keras.tree.flatten((x, y))}
    if len(lengths) > 1 or lengths == {0}:
        raise ValueError(
            "x and y must hold the same number of examples, at least one. "
            f"Received lengths: {[len(array) for array in keras.tree.flatten((x, y))]}"
        )
