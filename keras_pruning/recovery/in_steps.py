"""Pruning in steps without labels: prune a little, refit what is left, rank anew, prune on."""

import sys
from collections.abc import Mapping
from typing import Any, Literal

import keras
from tqdm import tqdm

from keras_pruning.models import as_arrays
from keras_pruning.pruning import (
    Score,
    activation_scores,
    by_name,
    check_count,
    check_method,
    check_sparsity,
    prune_units,
    prune_weights,
)
from keras_pruning.recovery.reconstruction import refit_in_place

__all__ = ["prune_in_steps"]


def prune_in_steps(
    model: keras.Model,
    x: Any,
    sparsity: float,
    *,
    method: Literal["weights", "units"] = "weights",
    steps: int = 8,
    score: Literal["magnitude", "activation"] | None = None,
    damping: float = 0.1,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Any,
) -> keras.Model:
    """Returns the model pruned in steps and refitted after each, as `reconstruct` does.

    Each step leaves the same share of what the step before has left, so that the last one
    reaches the sparsity. What has been refitted is ranked anew: a weight that has grown to
    carry what others did stays. On the networks of the tutorial that keeps more accuracy than
    pruning at once, the more the higher the sparsity; with few weights it need not
    (`benchmarks/reconstruct.py`). No labels are needed.

    Args:
        model: A built Keras model. It is not changed.
        x: Inputs, as `reconstruct` takes them.
        sparsity: Share of the weights or units to prune in the end, a float in [0, 1).
        method: "weights", as `prune_weights`, or "units", as `prune_units`.
        steps: How many.
        score: "magnitude", or "activation" for `activation_scores` on x. By default
            magnitude for weights and activation for units, which is better at high sparsities.
        damping: As in `reconstruct`; stronger, since many fits to the same inputs would learn
            them by heart.
        batch_size: As in `reconstruct`.
        progress: Whether to print a bar.
        options: Other arguments of `prune_weights` or `prune_units`, as `layers`, a list.

    Returns:
        A new model, compiled as `model` is.

    Raises:
        TypeError: As `reconstruct`; also if `layers` is a dict.
        ValueError: As `reconstruct`; also if the sparsity is 1, or an argument is unknown.

    Examples:
        >>> import numpy as np
        >>> dense = keras.layers.Dense
        >>> layers = [keras.Input((8,)), dense(10, name="hidden"), dense(3, name="out")]
        >>> model = keras.Sequential(layers)
        >>> x = np.random.default_rng(0).normal(size=(50, 8)).astype("float32")
        >>> pruned = prune_in_steps(model, x, 0.75, steps=2, progress=False)
        >>> [int((layer.get_weights()[0] == 0).sum()) for layer in pruned.layers]  # of 80 and 30
        [60, 0]
    """
    check_method(method)
    check_count("steps", steps)
    if check_sparsity(sparsity) == 1:
        raise ValueError("sparsity must be below 1: of nothing, nothing can be refitted.")
    if score not in (None, "magnitude", "activation"):
        raise ValueError(f"score must be 'magnitude' or 'activation'. Received: score={score!r}")
    if isinstance(options.get("layers"), Mapping):
        raise TypeError("layers must be a list here: all of them reach the one sparsity.")
    if "layers" in options:  # each step has layers of its own, of the same names
        options["layers"] = by_name(model, options["layers"])
    by_activation = score == "activation" or (score is None and method == "units")
    prune = prune_weights if method == "weights" else prune_units
    x, _ = as_arrays(x)
    pruned = model
    for step in tqdm(
        range(1, steps + 1), "Prune and refit", disable=not progress, file=sys.stdout, unit="step"
    ):
        share = sparsity if step == steps else 1 - (1 - sparsity) ** (step / steps)
        ranking: Score = (
            activation_scores(pruned, x, method=method, batch_size=batch_size)
            if by_activation
            else "magnitude"
        )
        pruned = prune(pruned, share, score=ranking, **options)
        refit_in_place(pruned, model, x, damping=damping, batch_size=batch_size, progress=False)
    return pruned
