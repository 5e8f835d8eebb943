"""Pruned units really removed: a smaller, plain Keras model with the same outputs.

Zeros in a kernel cost as much as other numbers. A unit that is zero can be cut out, with
the weights that read it, and then the model is smaller on disk and faster anywhere.
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any, Literal, overload

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd

from keras_pruning.channels.graph import BoolArray, ChannelGraph
from keras_pruning.channels.rebuilding import (
    CannotUnroll,
    alike,
    fill_resized,
    is_touched,
    new_shapes,
    resized,
    unrolled,
)
from keras_pruning.channels.walk import trace_channels
from keras_pruning.models import (
    CannotTrace,
    all_layers,
    compile_like,
    copy_for_inference,
    copy_state,
    first_line,
    functional_graph,
    has_stated_axes,
    kernel_layers,
    model_config,
    model_from_config,
    nodes_in_order,
    outputs_of,
    own_weights,
    python_random_as_before,
    random_inputs,
    stated_axes,
)

__all__ = ["shrink"]


@overload
def shrink(model: keras.Model, *, report: Literal[False] = False) -> keras.Model: ...
@overload
def shrink(model: keras.Model, *, report: Literal[True]) -> tuple[keras.Model, pd.DataFrame]: ...
def shrink(
    model: keras.Model, *, report: bool = False
) -> keras.Model | tuple[keras.Model, pd.DataFrame]:
    """Returns a smaller model without the units that say nothing, and with the same outputs.

    A unit is removed, with everything that belongs to it in the layers behind it, if
    what it sends on is the same number for every input, as zero is where `prune_units`
    has been, and the layers that read it can take that number into their bias; or if
    all weights that read it are zero. Units whose outputs are added, multiplied or
    otherwise combined are removed together or not at all. A layer with other units
    keeps at least one. The outputs are those of `model` up to rounding, at inference:
    training goes on from there, but BatchNormalization no longer sees what is gone.

    Followed are Keras's layers and operations: dense and convolutional layers, heads of
    attention, hidden units of LSTM, GRU and SimpleRNN, EinsumDense, pooling, merging, reshaping,
    normalization and activations, also in shared layers and nested models. What a normalization
    over the units reads stays, and what an unknown layer does.

    Layers and models of one's own are looked into: their `call` is run once with symbolic
    tensors, and what it calls is followed. Such a layer is made anew by its own configuration,
    with other numbers, if there are some with which it sends the same; so is a model of a class
    of its own, as those of Keras Hub. Otherwise the Keras layers and operations that it calls
    take its place, which a warning says; what the class adds, as a `train_step`, stays behind.
    A layer whose `call` looks at numbers keeps its units, and one that needs to know the length of
    its input its heads: give the model around it inputs of a known length.

    The author of a layer can say what its units are, by a method `prunable_axes`. It returns, for
    weights that the layer holds itself, which axis counts what: "units", the channels it makes
    (each sends 0 if all its weights are 0); "inputs", the channels over which it sums; or
    "channels", those that it treats each apart (it sends 0 for a 0). Channels are on the last axis
    of what comes in and goes out. The sizes in its configuration are found by trial.

    Args:
        model: A built Keras model; it is not changed.
        report: Whether to return a table as well.

    Returns:
        A model of the same kind but for the above, with the same layer names and compile
        state; its optimizer starts afresh. With `report=True` also a DataFrame with a row
        for each layer with units: `layer`, `before`, `after` (units), and `reason`: which
        layer or operation keeps units that are zero, and why.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built, has NaN in its weights, a layer of zeros
            alone, is one that Keras cannot save and load, or a subclass that cannot be
            called with symbolic tensors.

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((8,)), dense(10, name="hidden"), dense(3)])
        >>> _ = model.get_layer("hidden").kernel.assign(np.eye(8, 10))
        >>> shrink(model).get_layer("hidden").units
        8

        A layer whose author says what its units are:

        >>> class Maxout(keras.layers.Layer):
        ...     def __init__(self, width, **options):
        ...         super().__init__(**options)
        ...         self.width = width
        ...     def build(self, shape):
        ...         self.a = self.add_weight((shape[-1], self.width), name="a")
        ...         self.b = self.add_weight((shape[-1], self.width), name="b")
        ...     def call(self, x):
        ...         return keras.ops.maximum(x @ self.a, x @ self.b)
        ...     def get_config(self):
        ...         return super().get_config() | {"width": self.width}
        ...     def prunable_axes(self):
        ...         return {"units": {"a": 1, "b": 1}, "inputs": {"a": 0, "b": 0}}
        >>> model = keras.Sequential([keras.Input((8,)), Maxout(10, name="hidden"), dense(3)])
        >>> _ = model.get_layer("hidden").a.assign(np.eye(8, 10))
        >>> _ = model.get_layer("hidden").b.assign(np.eye(8, 10))
        >>> shrink(model).get_layer("hidden").width
        8
    """
    with python_random_as_before():
        shrunken, table = _shrunken(model)
        compile_like(shrunken, model)
    return (shrunken, table) if report else shrunken


def _shrunken(model: keras.Model) -> tuple[keras.Model, pd.DataFrame]:
    closed: dict[keras.Layer, str] = {}
    bound: dict[keras.Layer, str] = {}
    nothing_goes = ""  # why, if so
    while True:
        graph = _traced(model, closed, bound)
        groups = graph.groups()
        reasons = graph.reasons(groups)
        _keep_one_each(graph, groups, reasons)
        if nothing_goes:
            reasons |= dict.fromkeys(groups.tolist(), nothing_goes)
        stays = np.isin(np.arange(groups.max(initial=-1) + 1), list(reasons))
        removed = ~stays[groups]
        try:
            shrunken = _cut(model, graph, removed)
        except _NotSoSmall as found:
            model = _opened_up(model, found.layers, closed, bound, graph.asks_for_batch)
            continue
        looked_into = [x for x in graph.opened if functional_graph(x) is None]
        is_sure = graph.is_sure and not closed or not removed.any()
        difference = "" if is_sure else _difference(model, shrunken, graph.asks_for_batch)
        if not difference:
            return shrunken, _report(model, graph, groups, reasons)
        if looked_into:
            closed |= dict.fromkeys(looked_into, difference)
        else:
            nothing_goes = f"the model without them {difference}"


class _NotSoSmall(Exception):
    """Layers whose own configuration cannot say their new sizes."""

    def __init__(self, layers: list[keras.Layer]) -> None:
        super().__init__()
        self.layers = layers


def _traced(
    model: keras.Model, closed: Mapping[keras.Layer, str], bound: Mapping[keras.Layer, str]
) -> ChannelGraph:
    kernel_layers(model)  # checks that it is a built model
    for layer in all_layers(model):
        _check_weights(layer)
    try:
        return trace_channels(model, closed=closed, bound=bound)
    except CannotTrace as why:
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}) shows no graph to follow its units "
            f"through, and calling it with symbolic tensors fails: {why}. Write its call() with "
            "Keras layers and keras.ops alone, or make it functional."
        ) from why


def _cut(model: keras.Model, graph: ChannelGraph, removed: BoolArray) -> keras.Model:
    """Returns the model without the removed channels."""
    if not removed.any() and functional_graph(model) is not None:
        return copy_for_inference(model)
    config = model_config(model)
    own = None if _tells_layers(config) else resized(model, model, config, graph, removed)
    if own is not None:
        shrunken = model_from_config(model, config | {"config": own})
        fill_resized(model, shrunken, graph, removed)
        return shrunken
    if functional_graph(model) is None:
        raise _NotSoSmall([model])
    config = _config(model)
    cut = _Cut(graph, removed)
    cut.edit(config, model)
    if cut.too_large:
        raise _NotSoSmall(cut.too_large)
    shrunken = model_from_config(model, config)
    cut.fill(model, shrunken)
    return shrunken


def _opened_up(
    model: keras.Model,
    layers: list[keras.Layer],
    closed: dict[keras.Layer, str],
    bound: dict[keras.Layer, str],
    asks_for_batch: bool,
) -> keras.Model:
    """Returns the model with what these layers are made of in their place.

    If that fails, a layer is bound to its own configuration, or the second time closed.
    """
    stated = [layer for layer in layers if has_stated_axes(layer)]
    if stated:
        why_not = "fits what its prunable_axes() says with none of the numbers it is made of"
        closed |= dict.fromkeys(stated, why_not)
        return model
    try:
        opened = unrolled(model, layers)
        difference = _difference(model, opened, asks_for_batch)
        failed = dict.fromkeys(layers, difference) if difference else {}
    except CannotUnroll as why:
        failed = {why.layer: f"cannot be rebuilt of what it calls: {why}"}
    if failed and layers == [model]:
        raise ValueError(
            f"Model '{model.name}' ({type(model).__name__}), made functional, {failed[model]}."
        )
    if failed:
        for layer, why_not in failed.items():
            (closed if layer in bound else bound)[layer] = why_not
        return model
    names = [f"{layer.name} ({type(layer).__name__})" for layer in layers]
    warnings.warn(
        f"The configuration of {names} cannot say the new sizes, so the shrunken model has the "
        "Keras layers and operations that they call in their place.",
        stacklevel=3,
    )
    return opened


def _difference(model: keras.Model, other: keras.Model, asks_for_batch: bool) -> str:
    """Returns what is wrong with a model that should answer an example as another does.

    One that asks for the size of the batch is given several.
    """
    for n_examples in (None, 1, 7) if asks_for_batch else (None,):
        if found := _difference_on(n_examples, model, other):
            return found
    return ""


def _difference_on(n_examples: int | None, model: keras.Model, other: keras.Model) -> str:
    text = "its answers are not finite"
    for gentle in (False, True):
        example = random_inputs(other, gentle=gentle)
        if n_examples is not None:
            example = keras.tree.map_structure(
                lambda x: np.resize(x, (n_examples, *x.shape[1:])),
                example,
            )
        try:
            answers = outputs_of(model, example)
        except Exception as error:  # of the user's own code, of the backend: of any kind
            text = first_line(error)
            continue
        if not all(np.isfinite(y).all() for y in answers):
            continue
        try:
            same = alike(outputs_of(other, example), answers, model)
        except Exception:  # as above
            same = False
        return "" if same else "answers otherwise when it is made anew"
    return f"cannot be compared on an example: {text}"


def _check_weights(layer: keras.Layer) -> None:
    for variable in own_weights(layer):
        values = keras.ops.convert_to_numpy(variable)
        if values.dtype.kind not in "iub" and np.isnan(values.astype(np.float32, copy=False)).any():
            raise ValueError(
                f"The {variable.name} of layer '{layer.name}' holds NaN, so nothing behind it is "
                "the same. Train the model again or load it anew."
            )


def _keep_one_each(graph: ChannelGraph, groups: npt.NDArray[Any], reasons: dict[int, str]) -> None:
    """Keeps the first unit of a layer that would lose all; adds it to the reasons."""
    for layer, ids in graph.units.items():
        if any(group in reasons for group in groups[ids].tolist()):
            continue
        stated = (stated_axes(layer) or {}).get("units", {})
        kernels = [v for v in layer.weights if v.name.endswith("kernel") or v.name in stated]
        if not any(np.any(keras.ops.convert_to_numpy(kernel)) for kernel in kernels):
            raise ValueError(
                f"Layer '{layer.name}' has no unit left: all its {len(ids)} units are zero, and a "
                "layer without units cannot be built. Prune it to a sparsity below 1, or leave "
                "it out of `layers=`."
            )
        reasons[int(groups[ids[0]])] = f"'{layer.name}' keeps one unit"
    for layer, cuts in graph.cuts.items():
        for ids in cuts.values():
            if ids.size and not any(group in reasons for group in groups[ids].tolist()):
                reasons[int(groups[ids[0]])] = f"'{layer.name}' keeps one channel"


def _config(model: keras.Layer) -> dict[str, Any]:
    """The configuration of a functional model, layer by layer, whatever its class tells."""
    config = model_config(model)
    function = functional_graph(model)
    if _tells_layers(config) or function is None:
        return config
    plain = model_config(keras.Model(function.input, function.output, name=model.name))
    plain["config"]["trainable"] = model.trainable
    return plain


class _Cut:
    """The channels that go, taken out of configurations and of weights."""

    def __init__(self, graph: ChannelGraph, removed: BoolArray) -> None:
        self._graph, self._removed = graph, removed
        self._resized: set[keras.Layer] = set()  # by their own configurations
        self.too_large: list[keras.Layer] = []  # whose configurations cannot say the new sizes
        self._known: dict[str, dict[str, Any] | None] = {}  # of blocks that are made alike

    def edit(self, config: dict[str, Any], model: keras.Layer) -> None:
        """Puts the new sizes into the configuration of a model, nested ones included."""
        graph, removed = self._graph, self._removed
        config.pop("build_config", None)  # it holds the old shapes
        entries = config["config"]["layers"]
        layers = {operation.name: operation for operation in _operations(model)}
        for place, entry in enumerate(entries):
            entry.pop("build_config", None)
            name = entry.get("name") or entry["config"].get("name")
            # A Sequential names its layers in their own configurations alone, if at all.
            layer = layers.get(name) if name else _layers(model)[place]
            if layer in graph.opened and is_touched(layer, graph, removed):
                self._edit_opened(entry, layer, model)
            for key, ids in graph.sizes.get(layer, {}).items():
                _set_size(entry["config"], key, int(np.count_nonzero(~removed[ids])))
            if _needs_bias(layer, graph, removed) and "use_bias" in entry["config"]:
                entry["config"]["use_bias"] = True
        if "build_input_shape" in config["config"]:
            config["config"]["build_input_shape"] = entries[0]["config"]["batch_shape"]

    def _edit_opened(self, entry: dict[str, Any], layer: keras.Layer, model: keras.Layer) -> None:
        if functional_graph(layer) is not None and _tells_layers(entry):
            self.edit(entry, layer)
            return
        config = entry["config"]
        shapes = new_shapes(layer, self._graph, self._removed)
        key = repr((type(layer), config | {"name": ""}, shapes))
        if key not in self._known:
            self._known[key] = resized(model, layer, entry, self._graph, self._removed)
        fitting = self._known[key]
        if fitting is not None:
            named = {"name": config["name"]} if "name" in config else {}
            entry["config"] = copy.deepcopy(fitting) | named
            self._resized.add(layer)
        elif functional_graph(layer) is not None:
            entry |= _config(layer)
            self.edit(entry, layer)
        else:
            self.too_large.append(layer)

    def fill(self, model: keras.Layer, shrunken: keras.Layer) -> None:
        """Copies what is left of the weights."""
        graph, removed = self._graph, self._removed
        targets = _layers(shrunken)
        by_name = {target.name: target for target in targets}
        for layer, target in zip(_layers(model), targets, strict=True):
            # A custom layer may have lost its name, never its place.
            target = by_name.get(layer.name, target)
            if layer in self._resized:
                fill_resized(layer, target, graph, removed)
            elif layer in graph.opened and is_touched(layer, graph, removed):
                self.fill(layer, target)
            elif layer in graph.cuts and not {layer} & (graph.refused.keys() | graph.opened.keys()):
                _fill_layer(layer, target, graph, removed)
            else:
                copy_state(layer, target)


def _tells_layers(config: dict[str, Any]) -> bool:
    """Whether the configuration of a model holds those of its layers."""
    layers = config["config"].get("layers")  # a class may call its widths so
    return isinstance(layers, list) and all(isinstance(x, dict) for x in layers)


def _layers(model: keras.Layer) -> list[keras.Layer]:
    """The layers of a model, a Sequential's InputLayer among them."""
    function = functional_graph(model)
    return function.layers if function is not None else []


def _operations(model: keras.Layer) -> list[Any]:
    """The layers of a model, and the operations between them."""
    function = functional_graph(model)
    between = [node.operation for node in nodes_in_order(function)] if function is not None else []
    return [*between, *_layers(model)]


def _set_size(config: dict[str, Any], key: Any, size: int) -> None:
    if isinstance(key, str):
        config[key] = size
        return
    name, index = key
    shape = list(config[name])
    if index is not None and shape[index] not in (-1, None):
        shape[index] = size
    config[name] = tuple(shape)


def _needs_bias(layer: keras.Layer | None, graph: ChannelGraph, removed: BoolArray) -> bool:
    """Whether removed inputs add a constant to a layer that has no bias to hold it."""
    return layer in graph.folds and bool(graph.folds[layer].addition(removed).any())


def _fill_layer(
    layer: keras.Layer, target: keras.Layer, graph: ChannelGraph, removed: BoolArray
) -> None:
    values = {v.name: np.array(keras.ops.convert_to_numpy(v)) for v in layer.weights}
    if _needs_bias(layer, graph, removed):
        addition = graph.folds[layer].addition(removed)
        if "bias" in values:
            values["bias"] += addition.reshape(values["bias"].shape).astype(values["bias"].dtype)
        else:
            values["bias"] = addition.astype(next(iter(values.values())).dtype)
            graph.cut(layer, "bias", 0, graph.units[layer])
    for (name, axis), ids in graph.cuts[layer].items():
        values[name] = np.compress(~removed[ids], values[name], axis=axis)
    frozen = {v.name for v in layer.weights if not v.trainable}
    for variable in target.weights:
        variable.assign(values[variable.name])
        if variable.trainable and variable.name in frozen:
            variable.trainable = False


def _report(
    model: keras.Model, graph: ChannelGraph, groups: npt.NDArray[Any], reasons: dict[int, str]
) -> pd.DataFrame:
    rows = []
    for entry in kernel_layers(model):
        if not entry.has_units:
            continue
        alive = entry.alive_units()
        row = {"layer": entry.name, "before": alive.size, "after": alive.size}
        axis = entry.unit_axis % len(entry.unit_kernel.shape)
        own = graph.cuts.get(entry.layer, {}).get((entry.unit_kernel.name, axis))
        ids = graph.units.get(entry.layer, own)  # of a class of the user's own, its matrix
        if ids is not None and len(ids) == alive.size:
            its_groups = groups[ids].tolist()
            row["after"] = sum(group in reasons for group in its_groups)
            zero = [g for g, is_alive in zip(its_groups, alive, strict=True) if not is_alive]
            why = dict.fromkeys(reasons[group] for group in zero if group in reasons)
        else:
            why = {} if alive.all() else {_why_not_followed(graph, entry.layer): None}
        rows.append(row | {"reason": "; ".join(why)})
    return pd.DataFrame(rows, columns=["layer", "before", "after", "reason"])


def _why_not_followed(graph: ChannelGraph, layer: keras.Layer) -> str:
    """Returns the reason of the layer itself or of the one that holds it."""
    for refused, reason in graph.refused.items():
        if isinstance(refused, keras.Layer) and layer in all_layers(refused):
            return reason
    if layer in graph.cuts:
        return f"'{layer.name}' sums over none of its channels alone"
    return f"'{layer.name}' is not called in the model's graph"
