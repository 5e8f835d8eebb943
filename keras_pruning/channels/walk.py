"""The walk through a model: the channels of every tensor, call after call.

A layer that has no rule is looked into: called with symbolic tensors it shows which layers and
operations it is made of, and those are followed instead.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from keras_pruning.channels.graph import (
    HEAD_SIZES,
    Call,
    ChannelGraph,
    IntArray,
    NoRule,
    OwnWeight,
    Shape,
    Signal,
)
from keras_pruning.channels.table import is_composite, is_proved, rule_of
from keras_pruning.models import (
    CannotTrace,
    Inside,
    all_layers,
    batch_norms_after,
    can_be_made_anew,
    first_line,
    functional_graph,
    inputs_structure,
    inside,
    inside_model,
    is_of_keras,
    kernel_layers,
    nodes_in_order,
    own_weights,
    sublayers,
    with_sizes,
    with_tensors,
)

__all__ = ["channel_readers", "prunable_groups", "trace_channels"]


def trace_channels(
    model: keras.Model,
    what_if: Collection[keras.Layer] | None = None,
    closed: Mapping[Any, str] | None = None,
    bound: Mapping[Any, str] | None = None,
) -> ChannelGraph:
    """Follows the channels of a built model.

    Args:
        model: A built model.
        what_if: See `ChannelGraph`.
        closed: Layers that are not to be looked into, and why.
        bound: Layers that are not to be rebuilt of what they call, and why: heads stay there.

    Raises:
        CannotTrace: If the model shows no graph and cannot be looked into.
    """
    graph = ChannelGraph(what_if, closed, bound)
    found: Any = functional_graph(model)
    if found is None:
        found = inside_model(model)
        args, kwargs = found.arguments
    else:
        args, kwargs = (inputs_structure(found),), {}
    stuck = _stuck_layer(model)
    if stuck is not None and not _says_head_size(model):
        graph.bound = f"Keras cannot make '{stuck.name}' anew, to rebuild the model around it"
    inputs = [_fresh(graph, t.shape, "it is the model's input") for t in found.inputs]
    outputs = _follow(graph, found, inputs, model)
    for signal in outputs:
        graph.block(signal.ids, "it is the model's output")
    node = SimpleNamespace(
        arguments=SimpleNamespace(args=args, kwargs=kwargs), input_tensors=found.inputs
    )
    graph.opened[model] = (node, inputs, outputs)
    return graph


def _stuck_layer(model: keras.Model) -> keras.Layer | None:
    """Returns a layer that a model of a class of its own cannot be rebuilt with, layer by layer."""
    models = [part for part in all_layers(model) if functional_graph(part) is not None]
    of_own_class = [part for part in models if not is_of_keras(part)]
    parts = (x for holder in of_own_class for x in sublayers(holder) if x not in models)
    return next((part for part in parts if not can_be_made_anew(part)), None)


def prunable_groups(
    model: keras.Model,
) -> tuple[dict[keras.Layer, IntArray], dict[int, str]] | None:
    """Returns which units `shrink` could remove once `prune_units` had set them to zero.

    No large kernel is read: every weight behind a unit counts as not zero.

    Returns:
        For each layer that makes units the group of each of its units, which can only go
        together, shape `(units,)`; and group to reason for the groups that can never go.
        Layers that are not followed, as those inside a layer that cannot be looked into, are
        not in the first: their units can never go. `None` for a model that cannot be followed.
    """
    layers = [entry.layer for entry in kernel_layers(model) if entry.has_units]
    norms = {norm for layer in layers for norm in batch_norms_after(model, layer)}
    try:
        graph = trace_channels(model, what_if=norms)
    except CannotTrace:
        return None
    groups = graph.groups()
    return {layer: groups[ids] for layer, ids in graph.units.items()}, graph.reasons(groups)


def channel_readers(
    model: keras.Model,
) -> tuple[dict[keras.Layer, IntArray], dict[keras.Layer, tuple[IntArray, int]]] | None:
    """Returns which channels layers make and which they sum over, both by ids.

    Returns:
        For each layer that makes units the id of each, shape `(units,)`, one for all units that
        can only go together; and for each layer that sums over channels those of its inputs,
        shape `(channels,)`, and the axis of its kernel that they index. `None` for a model that
        cannot be followed.
    """
    try:
        graph = trace_channels(model, what_if=())
    except CannotTrace:
        return None
    groups = graph.groups()
    made = {layer: groups[ids] for layer, ids in graph.units.items()}
    axes = {
        layer: [
            axis
            for (name, axis), ids in graph.cuts.get(layer, {}).items()
            if ids is fold.ids and name.endswith("kernel") and not name.startswith("depthwise")
        ]
        for layer, fold in graph.folds.items()
    }
    read = {
        layer: (groups[fold.ids], axes[layer][0] if axes[layer] else -1)
        for layer, fold in graph.folds.items()
    }
    return made, read


def _fresh(graph: ChannelGraph, shape: Shape, reason: str) -> Signal:
    size = shape[-1] if len(shape) > 1 else None
    if size is None:
        return Signal.unknown(tuple(shape), f"{reason}, of unknown size")
    ids = graph.new(size)
    graph.block(ids, reason)
    return Signal(tuple(shape), len(shape) - 1, ids, np.full(size, np.nan))


def _follow(
    graph: ChannelGraph, found: Any, inputs: list[Signal], holder: keras.Layer | None = None
) -> list[Signal]:
    """Returns the output signals of a graph of calls.

    Args:
        graph: Where to note them.
        found: A functional graph, or the inside of a layer.
        inputs: The signals it receives.
        holder: The layer whose inside it is.
    """
    signals = {id(t): signal for t, signal in zip(found.inputs, inputs, strict=True)}
    if isinstance(found, Inside):
        signals |= {id(t): _of_weight(graph, holder, variable) for t, variable in found.weights}
        signals |= {id(source[0]): _of_constants(graph, *source) for source in found.sources}
    for node in found.nodes if isinstance(found, Inside) else nodes_in_order(found):
        if node.input_tensors:
            received = [signals[id(t)] for t in node.input_tensors]
            sent = _apply(graph, node, received)
            signals |= {id(t): s for t, s in zip(node.output_tensors, sent, strict=True)}
    return [signals[id(t)] for t in found.outputs]


def _of_weight(graph: ChannelGraph, holder: Any, variable: keras.Variable) -> Signal:
    """The channels of a weight that a layer of one's own holds: those of its last axis."""
    shape, names = tuple(variable.shape), [v.name for v in own_weights(holder)]
    if not shape or shape[-1] == 1 or names.count(variable.name) != 1:
        return Signal.unknown(shape, "it is a weight")
    ids = graph.cut(holder, variable.name, len(shape) - 1, graph.new(shape[-1]))
    weight = OwnWeight(holder, variable)
    rows = keras.ops.convert_to_numpy(variable).reshape(-1, shape[-1]).astype(float)
    values = np.where((rows == rows[:1]).all(axis=0), rows[0], np.nan)
    return Signal(shape, len(shape) - 1, ids, values, weight=weight)


def _of_constants(graph: ChannelGraph, sent: Any, layer: keras.Layer, given: Any) -> Signal:
    """What a layer sends for constants, as an embedding of positions does."""
    args, kwargs = given
    arguments = SimpleNamespace(args=args, kwargs=kwargs)
    node = SimpleNamespace(
        operation=layer, arguments=arguments, input_tensors=[], output_tensors=[sent]
    )
    return _apply(graph, node, [])[0]


def _apply(graph: ChannelGraph, node: Any, inputs: list[Signal]) -> list[Signal]:
    """Returns the signals that a call sends on; without a rule, what it receives stays."""
    operation = node.operation
    try:
        if operation in graph.refused:
            raise NoRule(graph.refused[operation])
        if operation in graph.closed:
            raise NoRule(graph.closed[operation])
        call = _call(graph, node, inputs)
        function = functional_graph(operation)
        graph.is_sure &= is_proved(operation)
        if function is not None:
            sent = _nested(graph, function, inputs, call)
        else:
            try:
                sent = _by_rule(graph, node, call)
            except NoRule as why:
                graph.is_sure = False
                return _looked_into(graph, node, inputs, why)
        if function is not None or is_composite(operation):
            graph.opened.setdefault(operation, (node, inputs, sent))
        return sent
    except NoRule as why:
        kind = type(operation).__name__
        reason = graph.refused.get(operation) or f"'{operation.name}' ({kind}) {why}"
        for signal in inputs:
            graph.block(signal.ids, reason)
        graph.refuse(operation, reason)
        lost = next((signal.lost for signal in inputs if signal.lost), reason)
        return [_fresh(graph, tuple(t.shape), lost) for t in node.output_tensors]


def _by_rule(graph: ChannelGraph, node: Any, call: Call) -> list[Signal]:
    """Returns the signals that a call sends on by the rule of its kind."""
    if isinstance(call.operation, kl.TimeDistributed):
        return _time_distributed(graph, node, call)
    rule = rule_of(call.operation, {*call.options})
    try:
        sent = rule(graph, call)
    except NoRule:
        raise
    except Exception as error:  # arguments that a rule does not know of
        raise NoRule(f"is called in a way that is not known ({first_line(error)})") from error
    return sent if isinstance(sent, list) else [sent]


def _call(graph: ChannelGraph, node: Any, inputs: list[Signal]) -> Call:
    """The call of a node, with signals in the place of its tensors; masks are left out.

    Which steps of a sequence count has nothing to do with its channels; those of the mask stay.
    """
    signals = iter(inputs)

    def signal_of(value: Any) -> Any:
        if isinstance(value, keras.KerasTensor):
            return next(signals)
        if keras.ops.is_tensor(value) or isinstance(value, (keras.Variable, np.ndarray)):
            one = int(np.prod(value.shape)) == 1
            number = float(keras.ops.convert_to_numpy(value).reshape(-1)[0]) if one else 0.0
            return number if one else Signal.unknown(tuple(value.shape), "it is a constant")
        return value

    filled = (node.arguments.args, node.arguments.kwargs)
    args, kwargs = keras.tree.map_structure(signal_of, filled)
    for mask in keras.tree.flatten(kwargs.get("mask")):
        if isinstance(mask, Signal):
            graph.block(mask.ids, f"'{node.operation.name}' takes it as a mask")
    options = {k: v for k, v in kwargs.items() if k != "mask" and v is not None and v is not False}
    return Call(node.operation, tuple(args), options, [tuple(t.shape) for t in node.output_tensors])


def _nested(graph: ChannelGraph, function: Any, inputs: list[Signal], call: Call) -> list[Signal]:
    """Goes through a model that is used as a layer."""
    if call.options:
        raise NoRule(f"is called with {sorted(call.options)}")
    if len(inputs) != len(call.inputs):
        raise NoRule("is called with a mask")
    given, taken = call.args[0], inputs_structure(function)
    by_name = isinstance(given, dict) and isinstance(taken, dict) and {*given} == {*taken}
    ranks = [len(s.shape) for s in inputs]
    if isinstance(taken, dict) and not by_name or ranks != [len(t.shape) for t in function.inputs]:
        raise NoRule("takes its inputs by other names or in another shape")
    for tensor, signal in zip(function.inputs, inputs, strict=True):
        input_layer = tensor._keras_history[0]
        graph.resize(input_layer, ("batch_shape", signal.axis), signal.ids)
    pairs = zip(function.inputs, inputs, strict=True)
    if any(None in t.shape[1:] and None not in s.shape[1:] for t, s in pairs):
        with contextlib.suppress(CannotTrace):  # what it sends is known better where it is called
            structure = keras.tree.pack_sequence_as(taken, _symbols_of(function, inputs))
            return _follow(graph, inside(call.operation, (structure,), {}), inputs)
    return _follow(graph, function, inputs)


def _symbols_of(function: Any, inputs: list[Signal]) -> list[Any]:
    pairs = zip(function.inputs, inputs, strict=True)
    return [keras.KerasTensor(signal.shape, t.dtype) for t, signal in pairs]


def _says_head_size(layer: keras.Layer) -> bool:
    """Whether its configuration has an entry for the size of a head, apart from their number."""
    try:
        return not HEAD_SIZES.isdisjoint(layer.get_config())
    except Exception:  # of the user's own code: of any kind
        return False


def _time_distributed(graph: ChannelGraph, node: Any, call: Call) -> list[Signal]:
    """A layer at every step: as without the axis of the steps."""
    x, tensor = call.input, node.input_tensors[0]
    if x.axis == 1:
        raise NoRule("goes along its channels")
    layer, (out,) = node.operation.layer, node.output_tensors
    step = keras.KerasTensor((tensor.shape[0], *tensor.shape[2:]), tensor.dtype)
    sent = keras.KerasTensor((out.shape[0], *out.shape[2:]), out.dtype)
    arguments = SimpleNamespace(args=(step,), kwargs={})
    inner = SimpleNamespace(
        operation=layer, arguments=arguments, input_tensors=[step], output_tensors=[sent]
    )
    (signal,) = _apply(graph, inner, [x.reshaped(tuple(step.shape), x.axis - 1)])
    if layer in graph.refused:
        raise NoRule(f"holds what cannot be followed: {graph.refused[layer]}")
    return [signal.reshaped(call.output_shape, signal.axis + 1)]


def _looked_into(graph: ChannelGraph, node: Any, inputs: list[Signal], why: NoRule) -> list[Signal]:
    """Goes through the calls that a layer without a rule makes.

    If its call needs to know all sizes, those calls cannot take its place: then the layer is
    bound to its own configuration, which hardly ever says how many heads an attention has
    without saying how large they are.
    """
    layer, arguments = node.operation, node.arguments
    if not isinstance(layer, keras.Layer) or arguments.kwargs.get("training"):
        raise why
    if arguments.kwargs.get("mask") is not None:
        raise NoRule(f"{why}, and is called with a mask")
    signals = {id(t): signal for t, signal in zip(node.input_tensors, inputs, strict=True)}
    given: list[Signal] = []

    def looked_at(shape_of: Callable[[Any], Shape]) -> Inside:
        given.clear()

        def symbol(tensor: Any) -> Any:
            given.append(replace(signals[id(tensor)], shape=shape_of(tensor.shape)))
            return keras.KerasTensor(shape_of(tensor.shape), tensor.dtype)

        return inside(layer, *with_tensors((arguments.args, kwargs), symbol))

    kwargs = {k: v for k, v in arguments.kwargs.items() if k not in ("mask", "training")}
    try:
        found, is_bound = looked_at(tuple), False
    except CannotTrace:
        try:
            found, is_bound = looked_at(with_sizes), True
        except CannotTrace as error:
            more = "" if is_of_keras(layer) else f", and cannot be looked into: {error}"
            raise NoRule(f"{why}{more}") from error
    if len(found.outputs) != len(node.output_tensors):
        raise why
    before = graph.bound
    if is_bound and not before and not _says_head_size(layer):
        graph.bound = f"'{layer.name}' ({type(layer).__name__}) cannot say how large a head is"
    graph.bound = graph.bound_layers.get(layer, graph.bound)
    graph.asks_for_batch |= found.asks_for_batch
    inner = _follow(graph, found, given, layer)
    graph.bound = before
    sent = [
        replace(signal, shape=tuple(tensor.shape))
        for tensor, signal in zip(node.output_tensors, inner, strict=True)
    ]
    graph.opened.setdefault(layer, (node, inputs, sent))
    return sent
