"""Prune a bit, train a bit: the iterative loop, and rewinding to earlier weights."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import pandas as pd
from tqdm import tqdm

from keras_pruning.models import batch_norms_after, copy_model, kernel_layers
from keras_pruning.pruning import (
    check_count,
    check_sparsity,
    prune_units,
    prune_weights,
    pruned_share,
)
from keras_pruning.recovery.finetune import keep_zeros, pruned_in, put_zeros

__all__ = ["prune_iteratively", "rewind"]


def rewind(pruned: keras.Model, original: keras.Model) -> keras.Model:
    """Returns a copy of `original` in which what is pruned in `pruned` is zero.

    The "winning ticket" of Frankle & Carbin 2019, "The Lottery Ticket Hypothesis", where
    `original` is the model as it was initialized; late rewinding (Frankle et al. 2019,
    "Stabilizing the Lottery Ticket Hypothesis") where it is a checkpoint of an early
    step. A pruned unit stays gone, with its bias and what normalises it.

    Args:
        pruned: A built Keras model with zeros in its kernels.
        original: A model of the same architecture. The result is compiled as it is, with
            its optimizer's state.

    Returns:
        A plain Keras model.

    Raises:
        TypeError: If an argument is not a Keras model.
        ValueError: If the architectures differ or a model is not built.

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((8,)), dense(10), dense(3)])
        >>> ticket = rewind(prune_weights(model, 0.75), model)
        >>> [int((layer.get_weights()[0] == 0).sum()) for layer in ticket.layers]  # of 80 and 30
        [60, 0]
    """
    _check_same_architecture(pruned, original)
    ticket = copy_model(original)
    position = {id(variable): i for i, variable in enumerate(pruned.weights)}
    for variable, where in _pruned_entries(pruned):
        put_zeros(ticket.weights[position[id(variable)]], where)
    return ticket


def prune_iteratively(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sparsities: Sequence[float] = (0.5, 0.75, 0.9, 0.95),
    *,
    epochs: int = 1,
    batch_size: int = 128,
    validation_data: Any = None,
    prune: Callable[..., keras.Model] = prune_weights,
    rewind_to: keras.Model | None = None,
    monitor: str | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    progress: bool = True,
) -> pd.DataFrame:
    """Returns a table of models, each pruned a bit more than the last and trained on.

    Iterative pruning (Han et al. 2015, "Learning both Weights and Connections for
    Efficient Neural Networks"): prune the model of the last sparsity to the next, train
    with the zeros kept, keep the weights of the best epoch. With `rewind_to` the
    survivors are set back before each training, as the lottery ticket is found.

    Args:
        model: A built and compiled Keras model, trained. It is not changed.
        x: Training inputs, what `fit` takes.
        y: Training targets, what `fit` takes.
        sparsities: Shares to prune, floats in [0, 1], each above the last.
        epochs: Epochs of training at each sparsity.
        batch_size: Examples a step; not used if `x` comes in batches.
        validation_data: Data by which the best epoch is chosen and the table measured,
            as `fit` takes it; by default the training data, in which case a fair test
            needs others.
        prune: `prune_weights`, `prune_units`, or a function `(model, sparsity) -> pruned
            model`, as by `functools.partial(prune_weights, scope="global")`.
        rewind_to: Compiled model of the weights to go back to, as for `rewind`.
        monitor: What tells the best epoch, a name in the logs of `fit`. By default
            "val_loss", or "loss" without validation data.
        callbacks: Keras callbacks for each training.
        progress: Whether to show a progress bar on standard output.

    Returns:
        DataFrame, a row a sparsity: `sparsity` (asked), `sparsity_measured` (zeros among
        the weights, or with `prune_units` the units, of the layers that `prune` prunes),
        `epoch` (the best, from 1), the loss and metrics, `model`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the model is not compiled or not built, or the sparsities do not
            ascend within [0, 1].

    Examples:
        >>> import numpy as np
        >>> dense = keras.layers.Dense
        >>> layers = [keras.Input((8,)), dense(10, name="hidden"), dense(3, name="out")]
        >>> model = keras.Sequential(layers)
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((16, 8)), np.ones((16, 3))
        >>> table = prune_iteratively(model, x, y, sparsities=(0.5, 0.75), progress=False)
        >>> table[["sparsity", "sparsity_measured"]]
           sparsity  sparsity_measured
        0      0.50               0.50
        1      0.75               0.75
    """
    shares = _check_ascending(sparsities)
    check_count("epochs", epochs)
    kernel_layers(model)
    for needed in (model, rewind_to):
        if needed is not None and not needed.compiled:
            raise ValueError(f"Model '{needed.name}' is not compiled. Call model.compile(...).")
    size = {} if _comes_in_batches(x) else {"batch_size": batch_size}
    measured_on = _as_data(validation_data) if validation_data is not None else {"x": x, "y": y}
    rows = []
    bar = tqdm(shares, "Prune and train", disable=not progress, file=sys.stdout, unit="sparsity")
    for share in bar:
        model = prune(model, share)
        if rewind_to is not None:
            model = rewind(model, rewind_to)
        # Patience for all epochs: it only remembers the best.
        best = keras.callbacks.EarlyStopping(
            monitor or ("loss" if validation_data is None else "val_loss"),
            patience=epochs,
            restore_best_weights=True,
        )
        with keep_zeros(model):
            model.fit(
                x,
                y,
                epochs=epochs,
                validation_data=validation_data,
                callbacks=[*callbacks, best],
                verbose=0,
                **size,
            )
        metrics = model.evaluate(**measured_on, **size, verbose=0, return_dict=True)
        rows.append(
            {"sparsity": share, "sparsity_measured": _sparsity(model, prune)}
            | {"epoch": best.best_epoch + 1, **metrics, "model": model}
        )
        bar.set_postfix({"sparsity": share} | metrics)
    return pd.DataFrame(rows)


def _pruned_entries(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    """Returns (variable, where it is pruned) of kernels and of what belongs to their units."""
    found: list[tuple[keras.Variable, Any]] = []
    for entry in kernel_layers(model):
        norms = batch_norms_after(model, entry.layer) if entry.has_units else []
        vectors = entry.unit_vectors if entry.has_units else []
        vectors += [v for norm in norms for v in (norm.gamma, norm.beta, norm.moving_mean)]
        vectors = [v for v in vectors if v is not None]
        found += zip((*entry.kernels, *vectors), pruned_in(entry, vectors), strict=True)
    return found


def _sparsity(model: keras.Model, prune: Callable[..., keras.Model]) -> float:
    of_units = getattr(prune, "func", prune) is prune_units
    layers = getattr(prune, "keywords", {}).get("layers")
    return pruned_share(model, "units" if of_units else "weights", layers)


def _comes_in_batches(x: Any) -> bool:
    return not all(hasattr(array, "shape") for array in keras.tree.flatten(x))


def _as_data(data: Any) -> dict[str, Any]:
    names = ("x", "y", "sample_weight")
    return dict(zip(names, data, strict=False)) if isinstance(data, (tuple, list)) else {"x": data}


def _check_ascending(sparsities: Sequence[float]) -> list[float]:
    shares = [check_sparsity(share) for share in sparsities]
    if not shares or any(b <= a for a, b in zip(shares, shares[1:], strict=False)):
        raise ValueError(
            "sparsities must ascend, since what is pruned is not revived. "
            f"Received: sparsities={list(sparsities)}"
        )
    return shares


def _check_same_architecture(pruned: keras.Model, original: keras.Model) -> None:
    for model in (pruned, original):
        kernel_layers(model)  # a built Keras model
    ours, theirs = ([(v.name, tuple(v.shape)) for v in m.weights] for m in (pruned, original))
    if ours != theirs:
        pairs = zip(ours, theirs, strict=False)
        first = next(((a, b) for a, b in pairs if a != b), (len(ours), len(theirs)))
        raise ValueError(
            "The pruned and the original model must have the same architecture, their weights "
            f"the same names and shapes in the same order. '{pruned.name}' has {first[0]} where "
            f"'{original.name}' has {first[1]}."
        )
