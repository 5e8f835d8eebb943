"""Masks put on a model: single weights or whole units set to zero.

The zeros are the mask: a pruned model is the same plain Keras model with zeros in its
kernels. Nothing is wrapped, so nothing needs stripping, and the saved file loads
without this library.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.models import batch_norms_after, copy_model, kernel_layers, without_lora
from keras_pruning.pruning.masks import (
    mask_of_each_unit,
    masks_by_magnitude,
    masks_by_score,
    num_pruned,
)
from keras_pruning.pruning.scores import (
    Read,
    Score,
    check_score,
    kernel_arrays,
    pattern_sparsity,
    scores_in_pattern,
    unit_scores,
    weight_scores,
)
from keras_pruning.pruning.selection import (
    Chosen,
    Layers,
    Scope,
    UnitGroups,
    by_name,
    choose,
    default_names,
)

__all__ = [
    "apply_unit_masks",
    "apply_weight_masks",
    "prunable_layers",
    "prune_units",
    "prune_weights",
    "unit_masks",
    "warn_of_emptied",
    "weight_masks",
    "weights_under_unit_masks",
    "weights_under_weight_masks",
]

BoolArray = npt.NDArray[np.bool_]
WeightMasks = Mapping[int, Sequence[BoolArray]]  # place in kernel_layers to a mask a kernel
UnitMasks = Mapping[int, BoolArray]  # place in kernel_layers to a mask of (units,)
Masked = tuple[keras.Variable, BoolArray]  # a variable and a mask that fits its shape


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

    Of each kernel (or of all together) `round(sparsity * n)` weights become zero, the
    smallest |w| first (Han et al. 2015, "Learning both Weights and Connections for
    Efficient Neural Networks"). Weights that are zero already count among them and go
    first. Biases stay. The model passed in is not changed.

    Kernels are those of Keras's Dense, EinsumDense, Embedding, convolutional and
    recurrent layers, and the trainable matrices of layers of your own. Two are spared
    unless `layers` names them: the output layer, and depthwise kernels, which are few
    weights that carry much ("sep/depthwise_kernel" of a separable convolution "sep").
    `summary` shows what is spared. A warning names a kernel of which nothing is left.
    LoRA weights are merged into the kernel that is pruned.

    Args:
        model: A built Keras model.
        sparsity: Share of the weights to prune, a float in [0, 1]; left out when
            `layers` is a dict.
        scope: "layer": each kernel loses the same share, ranked by itself; "global": all
            are ranked together; "unit": each unit of a kernel loses the same share (Sun et
            al. 2023, "A Simple and Effective Pruning Approach for Large Language Models").
        score: "magnitude", "random" (the control), a function from a kernel to scores
            of its shape, or a dict of layer name to an array of scores a kernel, as
            `taylor_scores` returns it; the lowest go first.
        pattern: `(n, m)`: of every m consecutive weights along the input axis n stay,
            as in `n_of_m_mask`; (2, 4) is what NVIDIA's sparse tensor cores take. Then
            `sparsity` may be left out, for all that the pattern prunes, or be lower.
        layers: Names of the layers to prune (as `summary` gives them) or the layers
            themselves, or a dict of either to sparsity. A layer without kernels stands
            for those inside it.
        seed: Seed of `score="random"`.

    Returns:
        A plain Keras model with the same architecture, names and compile state.

    Raises:
        TypeError: If an argument is of the wrong type, or a kernel not of a floating
            type.
        ValueError: If the model is not built or cannot be copied, a layer is unknown or
            its name fits two, it cannot be told which layer is the output, the sparsity
            outside [0, 1] or above what the pattern prunes, a kernel or score holds
            NaN, the pattern does not divide a kernel, or an option is unknown.

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((8,)), dense(10), dense(3)])
        >>> pruned = prune_weights(model, 0.75)
        >>> [int((layer.get_weights()[0] == 0).sum()) for layer in pruned.layers]  # of 80 and 30
        [60, 0]
    """
    layers, model = by_name(model, layers), without_lora(model)
    chosen = _chosen_for_weights(model, sparsity, scope, score, pattern, layers)
    masks = _weight_masks(chosen, scope, score, pattern, seed, keras.ops.convert_to_numpy)
    below_one = [one for one in chosen if one.share < 1]
    emptied = [x.entry.name for x in below_one if not all(m.any() for m in masks[x.place])]
    warn_of_emptied(emptied, stacklevel=2)
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

    A unit is a column of a Dense kernel, a filter of a convolution, a hidden unit of a recurrent
    layer (its columns in all gates), or what an EinsumDense makes along the first of its new
    axes: in attention a head, which goes from query, key and value together. Of each layer
    `round(sparsity * units)` go, the smallest norms first, but a sparsity below 1
    leaves one. By default only units that `shrink` can remove afterwards: not those of the
    output layer, of a residual stream that a LayerNormalization reads, or whatever else
    `summary` shows as spared. With a unit go its bias and the scale, offset and moving mean of a
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
        layers: Names of the layers to prune or the layers themselves, or a dict of either
            to sparsity: any layers with units but the output layer.
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

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((8,)), dense(10), dense(3)])
        >>> hidden = prune_units(model, 0.6).layers[0]
        >>> int((hidden.get_weights()[0] == 0).all(axis=0).sum())
        6
    """
    layers, model = by_name(model, layers), without_lora(model)
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

    For weights every layer with kernels but the output layer and depthwise kernels; for
    `method="units"` the layers with units that can be removed.
    A layer in another one is called "outer/inner", two of one name "dense#1", "dense#2".

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built, the method unknown, or it cannot be told
            which layer is the output.

    Examples:
        >>> dense = keras.layers.Dense
        >>> layers = [keras.Input((8,)), dense(10, name="hidden"), dense(3, name="out")]
        >>> model = keras.Sequential(layers)
        >>> prunable_layers(model)
        ['hidden']
    """
    if method not in ("weights", "units"):
        raise ValueError(f"method must be one of ['weights', 'units']. Received: method={method!r}")
    return default_names(model, units=method == "units")


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
) -> dict[int, list[BoolArray]]:
    """Returns the masks that `prune_weights` applies, by the place in `kernel_layers(model)`."""
    chosen = _chosen_for_weights(model, sparsity, scope, score, pattern, layers)
    return _weight_masks(chosen, scope, score, pattern, seed, read)


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
) -> dict[int, BoolArray]:
    """Returns the masks that `prune_units` applies, by the place in `kernel_layers(model)`."""
    _check_scope(scope, "layer", "global")
    check_score(score)
    chosen = choose(model, sparsity, layers, scope, units=True)
    groups = [one.units for one in chosen if one.units is not None]  # of all of them or none
    if layers is None and not groups:
        warnings.warn(
            f"Model '{model.name}' ({type(model).__name__}) shows no graph, so it is not known "
            "which units could be removed: all Dense and convolutional layers but its heads are "
            "pruned. Name others by `layers=`.",
            stacklevel=3,
        )
    rng = np.random.default_rng(seed)
    scores = [unit_scores(one.entry, score, order, rng, read) for one in chosen]
    if layers is None and groups:
        allowed = [known.can_go for known in groups]
    else:  # all units of layers that were named
        allowed = [np.ones(s.size, bool) for s in scores]
    ranked = [_by_layer_mean(s) for s in scores] if scope == "global" else scores
    limits, total = _unit_counts(allowed, [one.share for one in chosen], scope)
    if coupled and groups and _spans_layers(groups):
        kept = _coupled_unit_masks(ranked, groups, allowed, limits, total, score == "magnitude")
    elif scope == "global":
        kept = _global_unit_masks(ranked, allowed, total, best_stays=chosen[0].share < 1)
    else:
        kept = [
            masks_by_score([np.where(may_go, s, np.inf)], count)[0]
            for s, may_go, count in zip(ranked, allowed, limits, strict=True)
        ]
    return {one.place: mask for one, mask in zip(chosen, kept, strict=True)}


def apply_weight_masks(model: keras.Model, masks: WeightMasks) -> None:
    """Sets the masked weights of `model` to zero, in place."""
    for variable, mask in _under_weight_masks(model, masks):
        _zero_in_place(variable, mask)


def apply_unit_masks(model: keras.Model, masks: UnitMasks) -> None:
    """Sets the masked units of `model`, and what belongs to them, to zero, in place."""
    for variable, mask in _under_unit_masks(model, masks):
        _zero_in_place(variable, mask)


def weights_under_weight_masks(
    model: keras.Model, masks: WeightMasks, read: Read = keras.ops.convert_to_numpy
) -> list[npt.NDArray[Any]]:
    """Returns what `model.get_weights()` would be after `apply_weight_masks`."""
    return _weights_with(model, _under_weight_masks(model, masks), read)


def weights_under_unit_masks(
    model: keras.Model, masks: UnitMasks, read: Read = keras.ops.convert_to_numpy
) -> list[npt.NDArray[Any]]:
    """Returns what `model.get_weights()` would be after `apply_unit_masks`."""
    return _weights_with(model, _under_unit_masks(model, masks), read)


def warn_of_emptied(names: Sequence[str], stacklevel: int) -> None:
    """Warns that of a kernel of these layers nothing is left, if there are any."""
    if names:
        warnings.warn(
            f"Nothing is left of a kernel of the layers {list(names)}: what they send no longer "
            "depends on their input. Lower the sparsity, or leave them out by `layers=[names]`.",
            stacklevel=stacklevel + 1,
        )


def _chosen_for_weights(
    model: keras.Model,
    sparsity: float | None,
    scope: Scope,
    score: Score,
    pattern: tuple[int, int] | None,
    layers: Layers,
) -> list[Chosen]:
    _check_scope(scope, "layer", "global", "unit")
    check_score(score)
    if pattern is not None and scope == "unit":
        raise ValueError("pattern= says what each unit loses: leave out scope='unit'.")
    if pattern is not None and sparsity is None and not isinstance(layers, Mapping):
        sparsity = pattern_sparsity(pattern)
    return choose(model, sparsity, layers, scope, units=False)


def _weight_masks(
    chosen: Sequence[Chosen],
    scope: Scope,
    score: Score,
    pattern: tuple[int, int] | None,
    seed: int | None,
    read: Read,
) -> dict[int, list[BoolArray]]:
    rng = np.random.default_rng(seed)
    by_magnitude = score == "magnitude" and pattern is None
    masks: dict[int, list[BoolArray]] = {one.place: [] for one in chosen}
    # Layer by layer, so that no more than one layer's kernels are held as arrays.
    for group in [list(chosen)] if scope == "global" else [[one] for one in chosen]:
        rows = [(one, kernel) for one in group for kernel in one.entry.kernels]
        arrays = [
            array  # the kernel itself, or its scores
            for one in group
            for array in (
                kernel_arrays(one.entry, read)
                if by_magnitude
                else weight_scores(one.entry, score, rng, read)
            )
        ]
        if scope == "unit":
            for (one, kernel), values in zip(rows, arrays, strict=True):
                axis = one.entry.unit_axis if kernel is one.entry.unit_kernel else -1
                mask = mask_of_each_unit(values, one.share, axis=axis, by_magnitude=by_magnitude)
                masks[one.place].append(mask)
            continue
        everything = list(range(len(rows)))
        for together in [everything] if scope == "global" else [[i] for i in everything]:
            ranked = [arrays[i] for i in together]
            count = num_pruned(sum(a.size for a in ranked), group[0].share)
            if pattern is not None:
                kernels = [(rows[i][0].entry, rows[i][1]) for i in together]
                ranked = scores_in_pattern(kernels, ranked, pattern, count)
            select = masks_by_magnitude if by_magnitude else masks_by_score
            for i, mask in zip(together, select(ranked, count), strict=True):
                masks[rows[i][0].place].append(mask)
    return masks


def _unit_counts(
    allowed: Sequence[BoolArray], shares: Sequence[float], scope: Scope
) -> tuple[list[int], int]:
    """Returns how many units each layer may lose, and how many go in all."""
    sizes = [int(may_go.sum()) for may_go in allowed]
    # A layer of which some units stay in any case may lose all others.
    whole = [bool(may_go.all()) for may_go in allowed]
    if scope == "layer":
        limits = [
            num_pruned(size, share, at_least_one_left=all_may_go)
            for size, share, all_may_go in zip(sizes, shares, whole, strict=True)
        ]
        return limits, sum(limits)
    limits = [
        size - (shares[0] < 1 and all_may_go) for size, all_may_go in zip(sizes, whole, strict=True)
    ]
    return limits, min(num_pruned(sum(sizes), shares[0]), sum(limits))


def _spans_layers(groups: Sequence[UnitGroups]) -> bool:
    """Whether a group holds units of several layers."""
    distinct = [np.unique(known.groups) for known in groups]
    return sum(d.size for d in distinct) > np.unique(np.concatenate(distinct)).size


def _global_unit_masks(
    scores: Sequence[npt.NDArray[Any]],
    allowed: Sequence[BoolArray],
    count: int,
    *,
    best_stays: bool,
) -> list[BoolArray]:
    ranked = [np.where(may_go, s, np.inf) for s, may_go in zip(scores, allowed, strict=True)]
    if best_stays:  # of each layer
        for s in ranked:
            s[s.size - 1 - np.argmax(s[::-1])] = math.inf  # the last of equals: ties by position
    return masks_by_score(ranked, count)


def _under_weight_masks(model: keras.Model, masks: WeightMasks) -> Iterator[Masked]:
    entries = kernel_layers(model)
    for place, of_kernels in masks.items():
        yield from zip(entries[place].kernels, of_kernels, strict=True)


def _under_unit_masks(model: keras.Model, masks: UnitMasks) -> Iterator[Masked]:
    entries = kernel_layers(model)
    for place, mask in masks.items():
        entry = entries[place]
        yield from ((v, entry.spread(mask, v)) for v, *_ in entry.unit_slices)
        # Without a scale the moving mean of a normalization would still speak for the unit.
        for norm in batch_norms_after(model, entry.layer):
            vectors = (norm.gamma, norm.beta, norm.moving_mean)
            yield from ((vector, mask) for vector in vectors if vector is not None)


def _zero_in_place(variable: keras.Variable, mask: BoolArray) -> None:
    values = keras.ops.convert_to_tensor(variable)
    variable.assign(keras.ops.where(mask, values, keras.ops.cast(0, values.dtype)))


def _weights_with(
    model: keras.Model, masks: Iterator[Masked], read: Read
) -> list[npt.NDArray[Any]]:
    of_variable = {id(variable): mask for variable, mask in masks}
    return [
        _zero_unless(of_variable[id(v)], read(v)) if id(v) in of_variable else read(v)
        for v in model.weights
    ]


def _zero_unless(mask: BoolArray, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    bits = values.view(f"u{values.itemsize}")  # times 0 or 1: ten times faster than np.where
    return (bits * mask).view(values.dtype)


def _coupled_unit_masks(
    scores: Sequence[npt.NDArray[Any]],
    groups: Sequence[UnitGroups],
    allowed: Sequence[BoolArray],
    limits: Sequence[int],
    total: int,
    squared: bool,
) -> list[BoolArray]:
    """Prunes whole groups of units while their layers' counts allow it, then single units."""
    sizes = [s.size for s in scores]
    layers = np.repeat(np.arange(len(scores)), sizes)
    own = np.concatenate([s.astype(np.float64) for s in scores])
    may_go = np.concatenate(list(allowed))
    group = np.unique(np.concatenate([known.groups for known in groups]), return_inverse=True)[1]
    kept = np.ones(own.size, bool)
    left = np.array([*limits, total])
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    members = [units for units in members if may_go[units].all()]
    together = np.array([_joint_score(own[units], squared) for units in members])
    for units in [members[i] for i in np.argsort(together, kind="stable")]:
        _prune_if_allowed(units, layers, kept, left)
    for unit in np.argsort(own, kind="stable"):
        if may_go[unit]:
            _prune_if_allowed(np.array([unit]), layers, kept, left)
    return np.split(kept, np.cumsum(sizes)[:-1])


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


def _check_scope(scope: object, *known: str) -> None:
    if scope not in known:
        raise ValueError(f"scope must be one of {list(known)}. Received: scope={scope!r}")
