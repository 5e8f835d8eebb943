"""The walk through a model: the channels of every tensor, call after call."""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from keras_pruning.channels.graph import Call, ChannelGraph, IntArray, NoRule, Shape, Signal
from keras_pruning.channels.rules import rule_of
from keras_pruning.models import batch_norms_after, functional_graph, kernel_layers, nodes_in_order

__all__ = ["channel_readers", "prunable_groups", "trace_channels"]


def trace_channels(
    model: keras.Model, what_if: Collection[keras.Layer] | None = None
) -> ChannelGraph | None:
    """Follows the channels of a built model; `None` for a model that shows no graph."""
    function = functional_graph(model)
    if function is None:
        return None
    graph = ChannelGraph(what_if)
    inputs = [_fresh(graph, t.shape, "it is the model's input") for t in function.inputs]
    for signal in _trace(graph, function, inputs):
        graph.block(signal.ids, "it is the model's output")
    return graph


def prunable_groups(
    model: keras.Model,
) -> tuple[dict[keras.Layer, IntArray], dict[int, str]] | None:
    """Returns which units `shrink` could remove once `prune_units` had set them to zero.

    No large kernel is read: every weight behind a unit counts as not zero.

    Returns:
        For each layer that makes units the group of each of its units, which can only go
        together, shape `(units,)`; and group to reason for the groups that can never go.
        Layers that are not followed, as those inside a custom layer, are not in the first:
        their units can never go. `None` for a model that shows no graph.
    """
    layers = [entry.layer for entry in kernel_layers(model) if entry.has_units]
    norms = {norm for layer in layers for norm in batch_norms_after(model, layer)}
    graph = trace_channels(model, what_if=norms)
    if graph is None:
        return None
    groups = graph.groups()
    return {layer: groups[ids] for layer, ids in graph.units.items()}, graph.reasons(groups)


def channel_readers(
    model: keras.Model,
) -> tuple[dict[keras.Layer, IntArray], dict[keras.Layer, IntArray]] | None:
    """Returns which channels layers make and which they sum over, both by ids.

    Returns:
        For each layer that makes units the id of each, shape `(units,)`, one for all units that
        can only go together; and for each layer that sums over channels those of its inputs,
        shape `(channels,)`. `None` for a model that shows no graph.
    """
    graph = trace_channels(model, what_if=())
    if graph is None:
        return None
    groups = graph.groups()
    made = {layer: groups[ids] for layer, ids in graph.units.items()}
    return made, {layer: groups[fold.ids] for layer, fold in graph.folds.items()}


def _fresh(graph: ChannelGraph, shape: Shape, reason: str) -> Signal:
    size = shape[-1] if len(shape) > 1 else None
    if size is None:
        return Signal.unknown(shape, f"{reason}, of unknown size")
    ids = graph.new(size)
    graph.block(ids, reason)
    return Signal(shape, len(shape) - 1, ids, np.full(size, np.nan))


def _trace(graph: ChannelGraph, function: Any, inputs: list[Signal]) -> list[Signal]:
    """Returns the output signals of a functional graph."""
    signals = {id(t): signal for t, signal in zip(function.inputs, inputs, strict=True)}
    for node in nodes_in_order(function):
        if node.input_tensors:
            received = [signals[id(t)] for t in node.input_tensors]
            sent = _apply(graph, node, received)
            signals |= {id(t): s for t, s in zip(node.output_tensors, sent, strict=True)}
    return [signals[id(t)] for t in function.outputs]


def _apply(graph: ChannelGraph, node: Any, inputs: list[Signal]) -> list[Signal]:
    """Returns the signals that a call sends on; without a rule, what it receives stays."""
    operation = node.operation
    try:
        if operation in graph.refused:
            raise NoRule(graph.refused[operation])
        arguments = _arguments(node, inputs)
        function = functional_graph(operation)
        if function is not None:
            return _nested(graph, function, inputs, arguments)
        call = Call(operation, inputs, arguments, tuple(node.output_tensors[0].shape))
        return [rule_of(operation)(graph, call)]
    except NoRule as why:
        kind = type(operation).__name__
        reason = graph.refused.get(operation) or f"'{operation.name}' ({kind}) {why}"
        for signal in inputs:
            graph.block(signal.ids, reason)
        graph.refuse(operation, reason)
        lost = next((signal.lost for signal in inputs if signal.lost), reason)
        return [Signal.unknown(tuple(t.shape), lost) for t in node.output_tensors]


def _arguments(node: Any, inputs: list[Signal]) -> list[Signal | float]:
    """The arguments of a call, if they are tensors and numbers and nothing else."""
    options = [k for k, v in node.arguments.kwargs.items() if v is not None and v is not False]
    if options:
        raise NoRule(f"is called with {sorted(options)}")
    signals = iter(inputs)
    given: list[Signal | float] = []
    for value in keras.tree.flatten(node.arguments.args):
        if isinstance(value, keras.KerasTensor):
            given.append(next(signals))
        elif isinstance(value, (int, float)) and not isinstance(node.operation, keras.Layer):
            given.append(float(value))
        else:
            raise NoRule("is called with more than tensors")
    return given


def _nested(
    graph: ChannelGraph, function: Any, inputs: list[Signal], arguments: list[Signal | float]
) -> list[Signal]:
    """Goes through a model that is used as a layer."""
    by_name = isinstance(getattr(function, "_inputs_struct", None), dict)
    ranks = [len(s.shape) for s in inputs]
    if by_name or len(arguments) != len(inputs) or ranks != [len(t.shape) for t in function.inputs]:
        raise NoRule("takes its inputs by name or in another shape")
    for tensor, signal in zip(function.inputs, inputs, strict=True):
        input_layer = tensor._keras_history[0]
        graph.resize(input_layer, ("batch_shape", signal.axis), signal.ids)
    return _trace(graph, function, inputs)
