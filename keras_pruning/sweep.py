"""A grid of prunings, measured: methods x sparsities x repeats in one tidy table."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from keras_pruning.dense_chain import read_dense_chain
from keras_pruning.graph import copy_model, kernel_layers, loss_head
from keras_pruning.masks import check_sparsity
from keras_pruning.prune import (
    Scope,
    Score,
    apply_unit_masks,
    apply_weight_masks,
    unit_masks,
    weight_masks,
)
from keras_pruning.sparse import sparse_forward

__all__ = ["METHODS", "SPARSITIES", "check_data", "evaluator", "sparsity_sweep"]

SPARSITIES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
METHODS = ("weights", "units", "random_weights", "random_units")

_WITHOUT_CHANCE = {"weights", "units"}

PruneFunction = Callable[..., keras.Model]  # (model, sparsity, *, seed) -> pruned model
InPlacePruner = Callable[[keras.Model, float, int], None]


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

    One copy of the model is made and compiled for the whole sweep. A chain of Dense
    layers is evaluated without what pruning cut off, by `sparse_forward`, so that a
    point costs less the more is gone; any other model by its own `evaluate`, traced once.

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
    original = model.get_weights()
    scratch = copy_model(model)
    evaluate = evaluator(scratch, x, y, batch_size)
    dense: dict[str, float] = {}
    rows = []
    for method, sparsity, repeat in tqdm(
        points, "Sweep", disable=not progress, file=sys.stdout, unit="point"
    ):
        scratch.set_weights(original)
        pruners[method](scratch, sparsity, seed + repeat)
        if sparsity == 0 and method in METHODS:  # the same network for each of them
            dense = measured = dense or evaluate()
        else:
            measured = evaluate()
        rows.append(
            {"method": method, "sparsity": sparsity}
            | _sizes(scratch, method, layers)
            | {name: float(value) for name, value in measured.items()}
            | {"seed": None if method in _WITHOUT_CHANCE else seed + repeat, "repeat": repeat}
        )
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def _pruners(
    model: keras.Model,
    methods: Iterable[str] | Mapping[str, PruneFunction],
    scope: Scope,
    layers: Sequence[str] | None,
) -> dict[str, InPlacePruner]:
    """Returns method name to a function that prunes the scratch model in place."""
    if isinstance(methods, Mapping):
        return {name: partial(_prune_by_function, model, f) for name, f in methods.items()}
    if isinstance(methods, str):
        raise TypeError(f"methods must be a list of names. Received: methods={methods!r}")
    names = list(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"Unknown method {unknown}. Known: {list(METHODS)}, or pass functions.")
    return {name: partial(_prune_by_name, name, scope, layers) for name in names}


def _prune_by_name(
    name: str,
    scope: Scope,
    layers: Sequence[str] | None,
    scratch: keras.Model,
    sparsity: float,
    seed: int,
) -> None:
    score: Score = "random" if name.startswith("random") else "magnitude"
    if name.endswith("units"):
        masks = unit_masks(scratch, sparsity, scope=scope, score=score, layers=layers, seed=seed)
        apply_unit_masks(scratch, masks)
    else:
        apply_weight_masks(
            scratch,
            weight_masks(scratch, sparsity, scope=scope, score=score, layers=layers, seed=seed),
        )


def _prune_by_function(
    model: keras.Model, function: PruneFunction, scratch: keras.Model, sparsity: float, seed: int
) -> None:
    scratch.set_weights(function(model, sparsity, seed=seed).get_weights())


def evaluator(
    scratch: keras.Model, x: Any, y: Any, batch_size: int
) -> Callable[[], dict[str, float]]:
    """Returns a function that measures the scratch model's present weights."""
    is_chain = read_dense_chain(scratch) is not None
    head = loss_head(scratch) if is_chain else None

    def evaluate() -> dict[str, float]:
        steps = read_dense_chain(scratch) if head else None
        if head is None or steps is None:
            return scratch.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)
        head.reset_metrics()
        return head.test_on_batch(sparse_forward(steps, np.asarray(x)), y, return_dict=True)

    return evaluate


def _sizes(
    scratch: keras.Model, method: str, layers: Sequence[str] | None
) -> dict[str, float | int]:
    of_units = method in METHODS and method.endswith("units")
    chosen = [
        entry
        for entry in kernel_layers(scratch)
        if (entry.name in layers if layers is not None else not entry.is_output)
        and (entry.has_units or not of_units)
    ]
    if of_units:
        kept = [entry.alive_units() for entry in chosen]
    else:
        kept = [keras.ops.convert_to_numpy(v) for entry in chosen for v in entry.kernels]
    total = sum(array.size for array in kept)
    zeros = total - sum(int(np.count_nonzero(array)) for array in kept)
    return {
        "sparsity_measured": zeros / total,
        "parameters": scratch.count_params(),
        "nonzero": sum(int(np.count_nonzero(w)) for w in scratch.get_weights()),
    }


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
