"""Masks put on a model: single weights or whole units set to zero.

The zeros are the mask: a pruned model is the same plain Keras model with zeros in its
kernels. Nothing is wrapped, so nothing needs stripping, and the saved file loads
without this library.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd

from keras_pruning.channel_walk import trace_channels
from keras_pruning.graph import (
    KernelLayer,
    batch_norms_after,
    copy_model,
    kernel_layers,
    linear_chain,
)
from keras_pruning.masks import (
    check_floats,
    check_sparsity,
    masks_by_magnitude,
    masks_by_score,
    n_of_m_mask_by_score,
    num_pruned,
    unit_norms,
)

__all__ = [
    "Read",
    "apply_unit_masks",
    "apply_weight_masks",
    "prunable_layers",
    "prune_units",
    "prune_weights",
    "summary",
    "unit_masks",
    "weight_masks",
    "weights_under_unit_masks",
    "weights_under_weight_masks",
]

Scope = Literal["layer", "global"]
Score = (
    Literal["magnitude", "random"]
    | Callable[[npt.NDArray[Any]], npt.ArrayLike]
    | Mapping[str, Any]  # layer name to scores
)
Layers = Iterable[str] | Mapping[str, float] | None
BoolArray = npt.NDArray[np.bool_]
WeightMasks = Mapping[str, Sequence[BoolArray]]  # layer name to a mask a kernel
UnitMasks = Mapping[str, BoolArray]  # layer name to a mask of (units,)
Masked = tuple[keras.Variable, npt.NDArray[Any]]  # a variable and its values under a mask
Read = Callable[[keras.Variable], npt.NDArray[Any]]  # returns a variable's values


def prune_weights(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    scope: Scope = "layer",
    score: Score = "magnitude",
    pattern: tuple[int, int] | None = None,
    layers: Layers = None,
    seed: int | None = None,
) -> keras.Model:
    """Returns a copy of the model with its least important weights set to zero.

    Of each layer's kernel (or of all together) `round(sparsity * n)` weights become
    zero, the smallest |w| first (Han et al. 2015, "Learning both Weights and
    Connections for Efficient Neural Networks"). Weights that are zero already count
    among them and go first. Biases stay. The model passed in is not changed.

    Args:
        model: A built Keras model.
        sparsity: Share of the weights to prune, a float in [0, 1]; left out when
            `layers` is a dict.
        scope: "layer": each layer loses the same share; "global": all layers are
            ranked together.
        score: "magnitude", "random" (the control), a function from a kernel to scores
            of its shape, or a dict of layer name to an array of scores a kernel, as
            `taylor_scores` returns it; the lowest go first.
        pattern: `(n, m)`: of every m consecutive weights along the input axis n stay,
            as in `n_of_m_mask`; (2, 4) is what NVIDIA's sparse tensor cores take. Then
            `sparsity` may be left out, for all that the pattern prunes, or be lower.
        layers: Names of the layers to prune (as `prunable_layers` gives them), or a
            dict of name to sparsity. By default all but the output layer.
        seed: Seed of `score="random"`.

    Returns:
        A plain Keras model with the same architecture, names and compile state.

    Raises:
        TypeError: If an argument is of the wrong type, or a kernel not of a floating
            type.
        ValueError: If the model is not built, a layer is unknown, the sparsity
            outside [0, 1] or above what the pattern prunes, a kernel or score holds
            NaN, the pattern does not divide a kernel, or an option is unknown.

    Example:
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((8,)), dense(10), dense(3)])
    >>> pruned = prune_weights(model, 0.75)
    >>> summary(pruned)["sparsity"].tolist()
    [0.75, 0.0]
    """
    masks = weight_masks(
        model, sparsity, scope=scope, score=score, pattern=pattern, layers=layers, seed=seed
    )
    pruned = copy_model(model)
    apply_weight_masks(pruned, masks)
    return pruned


def prune_units(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    scope: Scope = "layer",
    score: Score = "magnitude",
    order: float = 2,
    layers: Layers = None,
    coupled: bool = True,
    seed: int | None = None,
) -> keras.Model:
    """Returns a copy of the model with its least important units set to zero.

    A unit is a column of a Dense kernel or a filter of a convolution. Of each layer
    `round(sparsity * units)` go, the smallest norms first, but a sparsity below 1
    leaves one. With a unit go its bias and the scale, offset and moving mean of a
    BatchNormalization behind it, so that it sends on the activation of zero. (Li et
    al. 2016, "Pruning Filters for Efficient ConvNets".) The model passed in is not
    changed.

    Args:
        model: A built Keras model.
        sparsity: Share of the units to prune, a float in [0, 1]; left out when
            `layers` is a dict.
        scope: "layer": each layer loses the same share; "global": all layers are
            ranked together, the scores divided by their layer's mean, so that layers
            with small norms are not wiped out.
        score: "magnitude" (the norm), "random" (the control), a function from a
            kernel `(..., units)` to scores `(units,)`, or a dict of layer name to an
            array of scores `(units,)`, as `taylor_scores` returns it; the lowest go
            first.
        order: Order p of the norm; a positive number or `inf`.
        layers: Names of the layers to prune, or a dict of name to sparsity. By
            default all Dense and convolutional layers but the output layer.
        coupled: Whether units whose outputs are added or otherwise combined, as in the
            branches of a residual network, are ranked by their joint norm (the root
            mean square of theirs; of other scores the mean) and pruned together, so
            that `shrink` can remove them. Each layer loses as many as without; where
            partners do not allow it, the last ones are chosen by their own norms. A
            model without such branches is pruned the same either way.
        seed: Seed of `score="random"`.

    Returns:
        A plain Keras model with the same architecture, names and compile state.

    Raises:
        TypeError: As `prune_weights`.
        ValueError: As `prune_weights`; also if the output layer is named, or a layer
            without units.

    Example:
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((8,)), dense(10), dense(3)])
    >>> summary(prune_units(model, 0.6))["zero_units"].tolist()
    [6, 0]
    """
    masks = unit_masks(
        model,
        sparsity,
        scope=scope,
        score=score,
        order=order,
        layers=layers,
        coupled=coupled,
        seed=seed,
    )
    pruned = copy_model(model)
    apply_unit_masks(pruned, masks)
    return pruned


def prunable_layers(
    model: keras.Model, method: Literal["weights", "units"] = "weights"
) -> list[str]:
    """Returns the names of the layers that are pruned by default, in model order.

    Every layer with kernels but the output layer: Dense, EinsumDense, convolutions,
    Embedding and recurrent layers, for `method="units"` Dense and convolutions. A
    layer in a nested model is called "outer/inner".

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built or the method unknown.
    """
    _check_choice("method", method, ("weights", "units"))
    return [k.name for k in _candidates(model, method == "units") if not k.is_output]


def summary(model: keras.Model) -> pd.DataFrame:
    """Returns a table of the model's kernels, a row a layer.

    Args:
        model: A built Keras model.

    Returns:
        DataFrame with the columns `layer`, `type`, `shape` (of the kernel, or of
        each), `weights`, `zeros`, `sparsity` (zeros / weights), `units`,
        `zero_units`, `unit_sparsity` (missing where a layer has no units), `output`
        (whether it is spared as the output layer).
    """
    return pd.DataFrame([_summary_row(k) for k in kernel_layers(model)]).astype(
        {"units": "Int64", "zero_units": "Int64"}
    )


def weight_masks(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    scope: Scope = "layer",
    score: Score = "magnitude",
    pattern: tuple[int, int] | None = None,
    layers: Layers = None,
    seed: int | None = None,
    read: Read = keras.ops.convert_to_numpy,
) -> dict[str, list[BoolArray]]:
    """Returns the masks that `prune_weights` applies: layer name to a mask a kernel."""
    _check_choice("scope", scope, ("layer", "global"))
    _check_score(score)
    if pattern is not None and sparsity is None and not isinstance(layers, Mapping):
        sparsity = _pattern_sparsity(pattern)
    chosen = _choose(model, sparsity, layers, scope, units=False)
    groups = [list(chosen)] if scope == "global" else [[name] for name in chosen]
    rng = np.random.default_rng(seed)
    masks: dict[str, list[BoolArray]] = {}
    for names in groups:
        kernels = [k for name in names for k in _kernel_arrays(chosen[name][0], read)]
        count = num_pruned(sum(k.size for k in kernels), chosen[names[0]][1])
        if score == "magnitude" and pattern is None:
            flat = iter(masks_by_magnitude(kernels, count))
        else:
            scores = [
                s for name in names for s in _weight_scores(chosen[name][0], score, rng, read)
            ]
            if pattern is not None:
                entries = [chosen[name][0] for name in names]
                scores = _scores_in_pattern(entries, scores, pattern, count)
            flat = iter(masks_by_score(scores, count))
        masks |= {name: [next(flat) for _ in chosen[name][0].kernels] for name in names}
    return masks


def unit_masks(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    scope: Scope = "layer",
    score: Score = "magnitude",
    order: float = 2,
    layers: Layers = None,
    coupled: bool = True,
    seed: int | None = None,
    read: Read = keras.ops.convert_to_numpy,
) -> dict[str, BoolArray]:
    """Returns the masks that `prune_units` applies: layer name to a mask of `(units,)`."""
    _check_choice("scope", scope, ("layer", "global"))
    _check_score(score)
    chosen = _choose(model, sparsity, layers, scope, units=True)
    rng = np.random.default_rng(seed)
    scores = {name: _unit_scores(k, score, order, rng, read) for name, (k, _) in chosen.items()}
    groups = _coupled_groups(model, {name: k for name, (k, _) in chosen.items()}) if coupled else {}
    if groups:
        shares = {name: share for name, (_, share) in chosen.items()}
        return _coupled_unit_masks(scores, groups, shares, scope, score == "magnitude")
    if scope == "global":
        share = next(iter(chosen.values()))[1]
        return _global_unit_masks(scores, share)
    return {
        name: masks_by_score(
            [scores[name]], num_pruned(scores[name].size, share, at_least_one_left=True)
        )[0]
        for name, (_, share) in chosen.items()
    }


def apply_weight_masks(model: keras.Model, masks: WeightMasks) -> None:
    """Sets the masked weights of `model` to zero, in place."""
    for variable, values in _masked_by_weight(model, masks):
        variable.assign(values)


def apply_unit_masks(model: keras.Model, masks: UnitMasks) -> None:
    """Sets the masked units of `model`, and what belongs to them, to zero, in place."""
    for variable, values in _masked_by_unit(model, masks):
        variable.assign(values)


def weights_under_weight_masks(
    model: keras.Model, masks: WeightMasks, read: Read = keras.ops.convert_to_numpy
) -> list[npt.NDArray[Any]]:
    """Returns what `model.get_weights()` would be after `apply_weight_masks`."""
    return _weights_with(model, _masked_by_weight(model, masks, read), read)


def weights_under_unit_masks(
    model: keras.Model, masks: UnitMasks, read: Read = keras.ops.convert_to_numpy
) -> list[npt.NDArray[Any]]:
    """Returns what `model.get_weights()` would be after `apply_unit_masks`."""
    return _weights_with(model, _masked_by_unit(model, masks, read), read)


def _masked_by_weight(
    model: keras.Model, masks: WeightMasks, read: Read = keras.ops.convert_to_numpy
) -> Iterator[Masked]:
    for entry in kernel_layers(model):
        for variable, mask in zip(entry.kernels, masks.get(entry.name, ()), strict=False):
            yield variable, _zero_unless(mask, read(variable))


def _masked_by_unit(
    model: keras.Model, masks: UnitMasks, read: Read = keras.ops.convert_to_numpy
) -> Iterator[Masked]:
    for entry in kernel_layers(model):
        if entry.name not in masks:
            continue
        mask = masks[entry.name]
        # (units,) -> (units, 1) where the units are the last axis but one
        of_kernel = mask.reshape(-1, *[1] * (-1 - entry.unit_axis))
        yield entry.unit_kernel, _zero_unless(of_kernel, read(entry.unit_kernel))
        # Without a scale the moving mean of a normalization would still speak for the unit.
        vectors = [entry.bias]
        for norm in batch_norms_after(model, entry.layer):
            vectors += [norm.gamma, norm.beta, norm.moving_mean]
        yield from ((v, _zero_unless(mask, read(v))) for v in vectors if v is not None)


def _zero_unless(mask: BoolArray, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    bits = values.view(f"u{values.itemsize}")  # times 0 or 1: ten times faster than np.where
    return (bits * mask).view(values.dtype)


def _weights_with(
    model: keras.Model, changed: Iterable[Masked], read: Read
) -> list[npt.NDArray[Any]]:
    values = {id(variable): array for variable, array in changed}
    return [values[id(v)] if id(v) in values else read(v) for v in model.weights]


def _candidates(model: keras.Model, units: bool) -> list[KernelLayer]:
    return [k for k in kernel_layers(model) if k.has_units or not units]


def _choose(
    model: keras.Model, sparsity: float | None, layers: Layers, scope: Scope, *, units: bool
) -> dict[str, tuple[KernelLayer, float]]:
    """Returns name to (layer, sparsity) of the layers to prune, in model order."""
    entries = {k.name: k for k in _candidates(model, units)}
    wanted = _wanted_sparsities(entries, sparsity, layers)
    if not wanted:
        raise ValueError(
            f"Model '{model.name}' has no layer to prune: its layers with "
            f"{'units' if units else 'kernels'} are {list(entries)}, and the output layer is "
            "spared unless `layers=` names it (for weights only)."
        )
    if scope == "global" and isinstance(layers, Mapping):
        raise ValueError(
            "scope='global' ranks all layers together, so it takes one sparsity, not a dict. "
            "Pass sparsity=... and layers=[names]."
        )
    unknown = [name for name in wanted if name not in entries]
    if unknown:
        raise ValueError(
            f"Model '{model.name}' has no prunable layer {unknown}. "
            f"Its layers with {'units' if units else 'kernels'} are: {list(entries)}"
        )
    outputs = [name for name in wanted if entries[name].is_output]
    if units and outputs:
        raise ValueError(
            f"Layer {outputs[0]!r} is the model's output: its units are its answers and cannot "
            "be pruned. Leave it out of `layers=`, or prune its weights with prune_weights."
        )
    return {name: (entries[name], wanted[name]) for name in entries if name in wanted}


def _wanted_sparsities(
    entries: Mapping[str, KernelLayer], sparsity: float | None, layers: Layers
) -> dict[str, float]:
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names or a dict. Received: layers={layers!r}")
    if isinstance(layers, Mapping):
        if sparsity is not None:
            raise ValueError("Give the sparsities either in `layers=` or as `sparsity`, not both.")
        return {name: check_sparsity(share) for name, share in layers.items()}
    if sparsity is None:
        raise ValueError("Give a sparsity in [0, 1], or a dict of layer name to sparsity.")
    share = check_sparsity(sparsity)
    if layers is None:
        return {name: share for name, entry in entries.items() if not entry.is_output}
    return dict.fromkeys(layers, share)


def _kernel_arrays(entry: KernelLayer, read: Read) -> list[npt.NDArray[Any]]:
    return [_kernel_array(entry, variable, read) for variable in entry.kernels]


def _kernel_array(entry: KernelLayer, variable: keras.Variable, read: Read) -> npt.NDArray[Any]:
    return check_floats(read(variable), f"The {variable.name} of layer '{entry.name}'")


def _weight_scores(
    entry: KernelLayer, score: Score, rng: np.random.Generator, read: Read
) -> list[npt.NDArray[Any]]:
    kernels = _kernel_arrays(entry, read)
    if isinstance(score, Mapping):
        given = _given_scores(score, entry)
        arrays = given if isinstance(given, (list, tuple)) else [given]
        scores = _checked_scores(entry, arrays, [kernel.shape for kernel in kernels])
    elif callable(score):
        scores = [_called_score(score, kernel, kernel.shape) for kernel in kernels]
    elif score == "random":
        scores = [rng.random(kernel.shape, np.float32) for kernel in kernels]
    else:
        scores = [np.abs(kernel) for kernel in kernels]
    for array, kernel in zip(scores, kernels, strict=True):
        array[kernel == 0] = -math.inf  # already pruned
    return scores


def _scores_in_pattern(
    entries: Sequence[KernelLayer],
    scores: Sequence[npt.NDArray[Any]],
    pattern: tuple[int, int],
    count: int,
) -> list[npt.NDArray[Any]]:
    """Returns the scores, infinite where the pattern keeps the weight."""
    _pattern_sparsity(pattern)
    kernels = [(entry, variable) for entry in entries for variable in entry.kernels]
    ranked = []
    for (entry, variable), array in zip(kernels, scores, strict=True):
        axis = _input_axis(entry, variable)
        try:
            kept = n_of_m_mask_by_score(array, *pattern, axis=axis)
        except ValueError as error:
            raise ValueError(
                f"The pattern does not fit the {variable.name} of layer '{entry.name}': {error}. "
                "Leave the layer out by `layers=[names]`."
            ) from error
        ranked.append(np.where(kept, np.inf, array).astype(array.dtype))
    prunable = sum(int(np.count_nonzero(array < np.inf)) for array in ranked)
    if count > prunable:
        raise ValueError(
            f"The pattern {pattern} prunes {prunable} weights of {[e.name for e in entries]} "
            f"at most, a sparsity of {_pattern_sparsity(pattern):.3g}; {count} were asked for. "
            "Leave out `sparsity`, or lower it."
        )
    return ranked


def _input_axis(entry: KernelLayer, variable: keras.Variable) -> int:
    """The axis of a kernel over which its layer sums."""
    sums = entry.has_units or isinstance(entry.layer, keras.layers.RNN)
    if not sums or variable.name == "depthwise_kernel":
        raise ValueError(
            f"The {variable.name} of layer '{entry.name}' ({type(entry.layer).__name__}) has no "
            "axis for an n:m pattern, which Dense, convolutional and recurrent kernels have. "
            "Leave the layer out by `layers=[names]`."
        )
    return -1 if entry.unit_axis == -2 else -2  # a transposed convolution has them swapped


def _pattern_sparsity(pattern: tuple[int, int]) -> float:
    if not isinstance(pattern, (tuple, list)) or len(pattern) != 2:
        raise ValueError(f"pattern must be a pair (n, m), as (2, 4). Received: {pattern!r}")
    n, m = pattern
    whole = all(isinstance(k, int) and not isinstance(k, bool) for k in pattern)
    if not whole or not 0 < n < m:
        raise ValueError(
            "pattern (n, m) keeps n of every m weights, whole numbers with 0 < n < m. "
            f"Received: pattern={pattern!r}"
        )
    return (m - n) / m


def _unit_scores(
    entry: KernelLayer, score: Score, order: float, rng: np.random.Generator, read: Read
) -> npt.NDArray[Any]:
    kernel = np.moveaxis(_kernel_array(entry, entry.unit_kernel, read), entry.unit_axis, -1)
    norms = unit_norms(kernel, order=order)
    if score == "magnitude":
        return norms
    if isinstance(score, Mapping):
        (scores,) = _checked_scores(entry, [_given_scores(score, entry)], [norms.shape])
    elif callable(score):
        scores = _called_score(score, kernel, norms.shape)
    else:
        scores = rng.random(norms.shape)
    scores[norms == 0] = -math.inf  # already pruned
    return scores


def _called_score(
    score: Callable[[npt.NDArray[Any]], npt.ArrayLike],
    kernel: npt.NDArray[Any],
    shape: tuple[int, ...],
) -> npt.NDArray[Any]:
    scores = np.array(score(kernel))  # a copy: the function may return the kernel itself
    if scores.shape != shape:
        raise ValueError(
            f"score must return scores of shape {shape} for a kernel of shape {kernel.shape}. "
            f"Received: scores of shape {scores.shape}"
        )
    return check_floats(scores, "The array that score returned")


def _given_scores(score: Mapping[str, Any], entry: KernelLayer) -> Any:
    if entry.name not in score:
        raise ValueError(
            f"score has no scores for layer '{entry.name}'. It has them for: {list(score)}"
        )
    return score[entry.name]


def _checked_scores(
    entry: KernelLayer, arrays: Sequence[npt.ArrayLike], shapes: Sequence[tuple[int, ...]]
) -> list[npt.NDArray[Any]]:
    scores = [np.array(array) for array in arrays]  # copies: the pruned get the lowest score
    if [array.shape for array in scores] != list(shapes):
        raise ValueError(
            f"score must hold scores of shapes {list(shapes)} for layer '{entry.name}'. "
            f"Received: {[array.shape for array in scores]}"
        )
    return [check_floats(array, f"score of layer '{entry.name}'") for array in scores]


def _global_unit_masks(
    scores: Mapping[str, npt.NDArray[Any]], share: float
) -> dict[str, BoolArray]:
    count = num_pruned(sum(s.size for s in scores.values()), share)
    if share < 1:  # the best unit of each layer stays
        count = min(count, sum(s.size - 1 for s in scores.values()))
    ranked = [_by_layer_mean(s) for s in scores.values()]
    for s in ranked:
        s[s.size - 1 - np.argmax(s[::-1])] = math.inf  # the last of equals: ties go by position
    return dict(zip(scores, masks_by_score(ranked, count), strict=True))


def _coupled_groups(
    model: keras.Model, entries: Mapping[str, KernelLayer]
) -> dict[str, npt.NDArray[np.int64]]:
    """Returns name to the group of each unit, `{}` if no group spans several of the layers."""
    graph = None if _is_plain_chain(model) else trace_channels(model)
    if graph is None:
        return {}
    numbers = graph.groups()
    found: dict[str, npt.NDArray[np.int64]] = {}
    free = len(numbers)  # numbers for units that are not followed
    for name, entry in entries.items():
        count = entry.unit_kernel.shape[entry.unit_axis]
        ids = graph.units.get(entry.layer)
        found[name] = np.arange(free, free + count) if ids is None else numbers[ids]
        free += count
    distinct = [np.unique(groups) for groups in found.values()]
    spans = sum(d.size for d in distinct) > np.unique(np.concatenate(distinct)).size
    return found if spans else {}


def _is_plain_chain(model: keras.Model) -> bool:
    chain = linear_chain(model)
    return chain is not None and not any(isinstance(layer, keras.Model) for layer in chain)


def _coupled_unit_masks(
    scores: Mapping[str, npt.NDArray[Any]],
    groups: Mapping[str, npt.NDArray[np.int64]],
    shares: Mapping[str, float],
    scope: Scope,
    squared: bool,
) -> dict[str, BoolArray]:
    """Prunes whole groups of units while their layers' counts allow it, then single units."""
    layers = np.repeat(np.arange(len(scores)), [s.size for s in scores.values()])
    ranked = [_by_layer_mean(s) if scope == "global" else s for s in scores.values()]
    own = np.concatenate([s.astype(np.float64) for s in ranked])
    group = np.unique(np.concatenate(list(groups.values())), return_inverse=True)[1]
    limits = [num_pruned(s.size, shares[n], at_least_one_left=True) for n, s in scores.items()]
    total = sum(limits)
    if scope == "global":
        share = next(iter(shares.values()))
        total = num_pruned(own.size, share)
        limits = [s.size - (share < 1) for s in scores.values()]
    kept = np.ones(own.size, bool)
    left = np.array([*limits, min(total, sum(limits))])
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    together = np.array([_joint_score(own[m], squared) for m in members])
    for units in [members[i] for i in np.argsort(together, kind="stable")]:
        _prune_if_allowed(units, layers, kept, left)
    for unit in np.argsort(own, kind="stable"):
        _prune_if_allowed(np.array([unit]), layers, kept, left)
    return dict(zip(scores, np.split(kept, np.flatnonzero(np.diff(layers)) + 1), strict=True))


def _joint_score(scores: npt.NDArray[np.float64], squared: bool) -> float:
    known = scores[scores > -math.inf]  # what is pruned already counts as 0
    if not known.size:
        return -math.inf
    return math.sqrt((known**2).sum() / scores.size) if squared else known.sum() / scores.size


def _prune_if_allowed(
    units: npt.NDArray[np.int64],
    layers: npt.NDArray[np.int64],
    kept: BoolArray,
    left: npt.NDArray[np.int64],
) -> None:
    """Prunes units if their layers, and the last entry for all, have as many left to prune."""
    needed = np.bincount(layers[units], minlength=left.size)
    needed[-1] = units.size
    if kept[units].all() and (needed <= left).all():
        kept[units] = False
        left -= needed


def _by_layer_mean(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    finite = np.abs(scores[np.isfinite(scores)])
    mean = finite.mean() if finite.size else 0.0
    return np.array(scores / mean if mean > 0 else scores, np.float64)


def _summary_row(entry: KernelLayer) -> dict[str, Any]:
    arrays = [keras.ops.convert_to_numpy(v) for v in entry.kernels]
    weights = sum(a.size for a in arrays)
    zeros = weights - sum(np.count_nonzero(a) for a in arrays)
    shapes = [a.shape for a in arrays]
    units: int | None = None
    zero_units: int | None = None
    if entry.has_units:
        alive = entry.alive_units()
        units, zero_units = alive.size, alive.size - int(np.count_nonzero(alive))
    return {
        "layer": entry.name,
        "type": type(entry.layer).__name__,
        "shape": shapes[0] if len(shapes) == 1 else shapes,
        "weights": weights,
        "zeros": zeros,
        "sparsity": zeros / weights,
        "units": units,
        "zero_units": zero_units,
        "unit_sparsity": zero_units / units if units and zero_units is not None else math.nan,
        "output": entry.is_output,
    }


def _check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}. Received: {name}={value!r}")


def _check_score(score: Score) -> None:
    if not callable(score) and not isinstance(score, Mapping):
        _check_choice("score", score, ("magnitude", "random"))
