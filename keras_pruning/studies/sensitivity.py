"""Which layer can be pruned how far: each layer pruned alone, the rest left dense."""

import re
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Literal

import keras
import pandas as pd
from tqdm import tqdm

from keras_pruning.models import check_data, without_lora
from keras_pruning.pruning import Score, check_method, check_sparsity, layer_names, prunable_layers
from keras_pruning.studies.sweep import (
    SPARSITIES,
    Weights,
    evaluator,
    measured_sparsity,
    pruned_weights,
)

__all__ = ["sensitivity_sweep", "suggest_sparsities"]

# Words in the names of Keras's metrics and losses, and short names of theirs.
_LESS_IS_BETTER = re.compile(
    "loss|error|entropy|divergence|deviance|hinge|poisson|perplexity|log_?cosh|huber|false_|"
    r"(^|_)(r?mse|mae|mape|msle|bce)(_|$)"
)
_MORE_IS_BETTER = re.compile(
    r"acc|auc|precision|recall|sensitivity|specificity|score|similarity|true_|(^|_)(iou|io_u|f1|r2)"
)


def sensitivity_sweep(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    method: Literal["weights", "units"] = "weights",
    sparsities: Sequence[float] = SPARSITIES,
    score: Score = "magnitude",
    layers: Iterable[str | keras.Layer] | None = None,
    seed: int = 0,
    batch_size: int = 1000,
    progress: bool = True,
) -> pd.DataFrame:
    """Returns what pruning one layer alone does to the model, for each layer and sparsity.

    The sensitivity analysis of Han et al. 2015, figure 6. Nothing is trained, and the
    dense model is measured once.

    Args:
        model: A built and compiled Keras model.
        x: Inputs to measure on, as in `sparsity_sweep`. Validation data, if the table is to
            choose sparsities.
        y: Targets, as in `sparsity_sweep`.
        method: "weights" or "units", as `prune_weights` and `prune_units`.
        sparsities: Shares to prune, floats in [0, 1]. 0, the dense model, is always there.
        score: As in `prune_weights` and `prune_units`.
        layers: Names of the layers, or the layers; by default `prunable_layers(model, method)`.
        seed: Seed of `score="random"`.
        batch_size: Examples evaluated together.
        progress: Whether to show a progress bar on standard output.

    Returns:
        DataFrame, a row a point: `layer`, `sparsity` (asked), `sparsity_measured` (zeros
        among the layer's weights, or units), the loss and metrics of the compiled model
        (`loss`, `accuracy`, ...).

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the model is not compiled or not built, x and y differ in length,
            or a method, sparsity, score or layer is unknown or out of range.

    Examples:
        >>> import numpy as np
        >>> dense = keras.layers.Dense
        >>> layers = [keras.Input((8,)), dense(10, name="hidden"), dense(3, name="out")]
        >>> model = keras.Sequential(layers)
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((16, 8)), np.ones((16, 3))
        >>> table = sensitivity_sweep(model, x, y, sparsities=[0.5], progress=False)
        >>> table[["layer", "sparsity", "sparsity_measured"]]
            layer  sparsity  sparsity_measured
        0  hidden       0.0                0.0
        1  hidden       0.5                0.5
    """
    x, y = check_data(model, x, y)
    check_method(method)
    names = prunable_layers(model, method) if layers is None else list(layer_names(model, layers))
    model = without_lora(model)  # what it computes with is what is pruned
    shares = sorted({0.0, *(check_sparsity(share) for share in sparsities)})

    def pruned(names: list[str], share: float) -> Weights:
        return pruned_weights(model, method, share, score=score, layers=names, seed=seed)

    pruned(names, shares[-1])  # an unknown layer is named before anything is measured
    evaluate = evaluator(model, x, y, batch_size)
    dense = evaluate(model.get_weights())
    rows = []
    points = [(name, share) for name in names for share in shares]
    for name, share in tqdm(
        points, "Sensitivity", disable=not progress, file=sys.stdout, unit="point"
    ):
        weights = pruned([name], share)
        rows.append(
            {"layer": name, "sparsity": share}
            | {"sparsity_measured": measured_sparsity(model, weights, method, [name])}
            | (evaluate(weights) if share else dense)
        )
    return pd.DataFrame(rows)


def suggest_sparsities(
    table: pd.DataFrame,
    max_drop: float = 0.01,
    *,
    metric: str | None = None,
    less_is_better: bool | None = None,
) -> dict[str, float]:
    """Returns for each layer the highest sparsity that costs no more than `max_drop`.

    The highest measured one such that it, and every lower one measured, is at most
    `max_drop` worse than the dense model. That holds for each layer pruned alone; all
    together lose more, so measure the result, and train it on.

    Args:
        table: What `sensitivity_sweep` returns.
        max_drop: How much worse the metric may become, from 0, in its own unit.
        metric: A column of the table; by default "accuracy" where there is one, else "loss".
        less_is_better: Whether less of it is better. By default its name tells: it is so of
            losses and errors ("mse", "mean_absolute_error"), not of accuracies and scores.

    Returns:
        Layer name to sparsity, what `layers=` takes. 0 where any pruning costs more.

    Raises:
        TypeError: If `table` is not a DataFrame or `max_drop` not a number.
        ValueError: If a column or the rows of sparsity 0 are missing, `max_drop` is
            negative, or the metric's name does not tell whether less of it is better.

    Examples:
        >>> table = pd.DataFrame({"layer": ["a"] * 3 + ["b"] * 3, "sparsity": [0, 0.5, 0.9] * 2,
        ...                       "accuracy": [0.98, 0.98, 0.6, 0.98, 0.9, 0.97]})
        >>> suggest_sparsities(table)
        {'a': 0.5, 'b': 0.0}

        Of a regression, with the loss:

        >>> table = pd.DataFrame({"layer": ["a"] * 3, "sparsity": [0, 0.5, 0.9],
        ...                       "loss": [2.0, 2.25, 7.5]})
        >>> suggest_sparsities(table, max_drop=0.5)
        {'a': 0.5}
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame. Received: {type(table).__name__}")
    if metric is None:
        metric = "accuracy" if "accuracy" in table else "loss"
    missing = [name for name in ("layer", "sparsity", metric) if name not in table]
    if missing:
        raise ValueError(f"table has no column {missing}. Its columns are: {list(table)}")
    if isinstance(max_drop, bool) or not isinstance(max_drop, Real):
        raise TypeError(f"max_drop must be a number. Received: max_drop={max_drop!r}")
    if not max_drop >= 0:
        raise ValueError(f"max_drop must not be negative. Received: max_drop={max_drop!r}")
    sign = -1 if _is_less_better(metric, less_is_better) else 1
    suggested = {}
    for name, rows in table.groupby("layer", sort=False):
        rows = rows.sort_values("sparsity")
        if rows["sparsity"].iloc[0] != 0:
            raise ValueError(f"Layer {name!r} has no row of sparsity 0 in the table.")
        goodness = sign * rows[metric]
        # 0.98 - 0.97 is a little more than 0.01 in floats
        within = goodness >= goodness.iloc[0] - max_drop - 1e-9
        suggested[str(name)] = float(rows["sparsity"][within.cummin()].max())
    return suggested


def _is_less_better(metric: str, told: bool | None) -> bool:
    if told is not None:
        return told
    name = metric.lower()
    less, more = (bool(words.search(name)) for words in (_LESS_IS_BETTER, _MORE_IS_BETTER))
    if less == more:
        raise ValueError(
            f"The name of the metric '{metric}' does not tell whether less of it is better. Say "
            "it: less_is_better=True or less_is_better=False."
        )
    return less
