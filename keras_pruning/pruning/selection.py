"""Which layers are pruned, and how much: by default, or as the caller names them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.channels import prunable_groups
from keras_pruning.models import KernelLayer, all_layers, kernel_layers
from keras_pruning.pruning.masks import check_sparsity

__all__ = [
    "Chosen",
    "Layers",
    "Scope",
    "UnitGroups",
    "by_name",
    "choose",
    "default_names",
    "layer_names",
    "unit_groups",
]

Scope = Literal["layer", "global", "unit"]
LayerOrName = Any  # the name of a layer, or the layer itself: Keras has no types
Layers = LayerOrName | Iterable[LayerOrName] | Mapping[LayerOrName, float] | None
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class UnitGroups:
    """What is known of the units of a layer: which go together, and which can go at all."""

    groups: npt.NDArray[np.int64]  # (units,): units of one number can only go together
    can_go: BoolArray  # (units,)
    reason: str  # why those that cannot go stay


@dataclass(frozen=True)
class Chosen:
    """A layer to prune: its place in `kernel_layers(model)`, and the share to prune."""

    place: int
    entry: KernelLayer
    share: float
    units: UnitGroups | None  # where units are pruned, of a model that shows a graph


def choose(
    model: keras.Model, sparsity: float | None, layers: Layers, scope: Scope, *, units: bool
) -> list[Chosen]:
    """Returns the layers to prune, in model order.

    By default all but heads and depthwise kernels; for units those of which a unit could be
    removed, or all but heads in a model that shows no graph.

    Args:
        model: A built Keras model.
        sparsity: Share to prune, or `None` if `layers` is a dict.
        layers: Names or layers, a dict of either to shares, or `None` for the default.
        scope: "layer", "global" or "unit".
        units: Whether units are pruned, not weights.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a layer is unknown or cannot be pruned, a sparsity out of range, or
            the default not known.
    """
    entries = kernel_layers(model)
    candidates = {e.name: place for place, e in enumerate(entries) if e.has_units or not units}
    known = unit_groups(model, entries) if units else None
    if scope == "global" and isinstance(layers, Mapping):
        raise ValueError(
            "scope='global' ranks all layers together, so it takes one sparsity, not a dict. "
            "Pass sparsity=... and layers=[names]."
        )
    if isinstance(layers, Mapping):
        if sparsity is not None:
            raise ValueError("Give the sparsities either in `layers=` or as `sparsity`, not both.")
        shares = {key: check_sparsity(share) for key, share in layers.items()}
    elif sparsity is None:
        raise ValueError("Give a sparsity in [0, 1], or a dict of layer name to sparsity.")
    else:
        share = check_sparsity(sparsity)
        if layers is not None:
            shares = dict.fromkeys(_listed(layers), share)
        elif units:
            shares = dict.fromkeys(_default_for_units(entries, known), share)
        else:
            shares = dict.fromkeys(_default_for_weights(entries), share)
    wanted = {
        name: share
        for key, share in shares.items()
        for name in _names(model, entries, candidates, key, units)
    }
    if not wanted:
        raise ValueError(_nothing_to_prune(model, list(candidates), units))
    if units and layers is not None:
        _check_no_head(entries, candidates, wanted)
    return [
        Chosen(place, entries[place], wanted[name], known[name] if known is not None else None)
        for name, place in candidates.items()
        if name in wanted
    ]


def by_name(model: keras.Model, layers: Layers) -> Layers:
    """Returns the same choice with layers that were given replaced by their names."""
    if layers is None or isinstance(layers, str):
        return layers
    if isinstance(layers, Mapping):
        return {n: share for key, share in layers.items() for n in _named(model, [key])}
    return _named(model, _listed(layers))


def _named(model: keras.Model, keys: list[LayerOrName]) -> list[str]:
    entries = kernel_layers(model)
    return [
        name
        for key in keys
        for name in (_given(model, entries, key) if isinstance(key, keras.Layer) else [key])
    ]


def layer_names(model: keras.Model, layers: Layers) -> tuple[str, ...]:
    """Returns the names of the layers with kernels that are named or given, in model order.

    Raises:
        TypeError: As `choose`.
        ValueError: As `choose`.
    """
    return tuple(one.entry.name for one in choose(model, 0.0, layers, "layer", units=False))


def default_names(model: keras.Model, *, units: bool) -> list[str]:
    """Returns the names of the layers that are pruned unless the caller names others."""
    entries = kernel_layers(model)
    if units:
        return _default_for_units(entries, unit_groups(model, entries))
    return _default_for_weights(entries)


def unit_groups(model: keras.Model, entries: list[KernelLayer]) -> dict[str, UnitGroups] | None:
    """Returns what is known of the units of each layer, by its name.

    Args:
        model: A built Keras model.
        entries: Its layers with kernels.

    Returns:
        `None` for a model that shows no graph.
    """
    found = prunable_groups(model)
    if found is None:
        return None
    by_layer, reasons = found
    known = {}
    free = max((int(groups.max(initial=0)) for groups in by_layer.values()), default=0) + 1
    for entry in (e for e in entries if e.has_units):
        if entry.layer not in by_layer:
            count = entry.n_units
            alone = np.arange(free, free + count)
            free += count
            reason = "it is inside a layer that shows no graph"
            known[entry.name] = UnitGroups(alone, np.zeros(count, bool), reason)
            continue
        groups = by_layer[entry.layer]
        why = dict.fromkeys(reasons[g] for g in groups.tolist() if g in reasons)
        can_go = np.array([g not in reasons for g in groups.tolist()], bool)
        known[entry.name] = UnitGroups(groups, can_go, "; ".join(why))
    return known


def _default_for_weights(entries: list[KernelLayer]) -> list[str]:
    return [e.name for e in entries if not (e.is_depthwise or e.is_output)]


def _default_for_units(
    entries: list[KernelLayer], known: Mapping[str, UnitGroups] | None
) -> list[str]:
    if known is None:
        return [e.name for e in entries if e.has_units and not e.is_output]
    return [name for name, of_layer in known.items() if of_layer.can_go.any()]


def _listed(layers: Any) -> list[LayerOrName]:
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names or a dict. Received: layers={layers!r}")
    return [layers] if isinstance(layers, keras.Layer) else list(layers)


def _names(
    model: keras.Model,
    entries: list[KernelLayer],
    candidates: Mapping[str, int],
    key: LayerOrName,
    units: bool,
) -> list[str]:
    """The names of the entries that a name or layer stands for."""
    kind = "units" if units else "kernels"
    if isinstance(key, keras.Layer):
        return _given(model, [entries[place] for place in candidates.values()], key)
    if key in candidates:
        return [key]
    alike = [name for name in candidates if name.rsplit("#", 1)[0] == key]
    if alike:
        raise ValueError(
            f"{key!r} fits {len(alike)} layers of model '{model.name}'. Say which: {alike}"
        )
    raise ValueError(
        f"Model '{model.name}' has no prunable layer {key!r}. "
        f"Its layers with {kind} are: {list(candidates)}"
    )


def _given(model: keras.Model, entries: list[KernelLayer], layer: keras.Layer) -> list[str]:
    """A given layer's own name, or of a layer without kernels the names of those inside it."""
    own = [e.name for e in entries if e.layer is layer]
    inside = set(map(id, all_layers(layer)))
    found = own[-1:]  # of a separable convolution the pointwise kernel
    found = found or [e.name for e in entries if id(e.layer) in inside and not e.is_depthwise]
    if not found:
        raise ValueError(
            f"Layer '{layer.name}' is not one of model '{model.name}', or has nothing to prune. "
            f"What can be pruned: {[e.name for e in entries]}"
        )
    return found


def _check_no_head(
    entries: list[KernelLayer], candidates: Mapping[str, int], wanted: Mapping[str, float]
) -> None:
    for name in wanted:
        if entries[candidates[name]].output_if_known:  # if it cannot be told, the caller knows
            raise ValueError(
                f"Layer {name!r} is the model's output: its units are its answers and cannot be "
                "pruned. Leave it out of `layers=`, or prune its weights with prune_weights."
            )


def _nothing_to_prune(model: keras.Model, names: list[str], units: bool) -> str:
    if not units:
        return (
            f"Model '{model.name}' has no layer to prune: its layers with kernels are {names}, and "
            "the output layer and depthwise kernels are spared unless `layers=` names them."
        )
    return (
        f"Model '{model.name}' has no layer to prune: its layers with units are {names}, and "
        "those of which no unit could be removed are spared unless `layers=` names them. "
        "summary(model) says why."
    )
