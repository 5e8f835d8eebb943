"""Rules for what moves channels to another axis, or combines several tensors."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pruning.channels.graph import Call, ChannelGraph, FloatArray, IntArray, NoRule, Signal
from keras_pruning.channels.rules import OTHER_AXIS, through

__all__ = [
    "broadcast",
    "concatenate",
    "elementwise",
    "merge",
    "moved",
    "reduced",
    "split",
    "stack",
    "take",
]

_OPEN = 2  # stands for a size that is not known
# Entries of configurations that hold a shape, and whether the batch axis is in it.
_SHAPES = {"target_shape": False, "newshape": True, "shape": True}


def moved(graph: ChannelGraph, call: Call) -> Signal:
    """A layer or operation that moves entries about: shown the number of each one's channel.

    Where several channels come to one place of the new axis, they can only go together: those
    of a head, where the channels are spread over heads.
    """
    x, operation = call.input, call.operation
    if np.ndim(getattr(operation, "repeats", 0)):
        raise NoRule("repeats each of its entries another number of times")
    shape = [size or _OPEN for size in x.shape]
    along = [1] * len(shape)
    along[x.axis] = -1
    order = np.broadcast_to(np.arange(len(x.ids), dtype="int32").reshape(along), shape)
    try:
        sent = operation.call(keras.ops.convert_to_tensor(order), *call.args[1:])
        places: IntArray = keras.ops.convert_to_numpy(sent)
    except Exception as error:  # of the backend: its parameters fit no other sizes
        raise NoRule("moves its entries in a way that depends on an open size") from error
    if places.ndim != len(call.output_shape) or np.unique(places).size < len(x.ids):
        raise NoRule("takes some of its channels")
    axis, channels, values = _channels_of_places(graph, x, places)
    if call.output_shape[axis] != places.shape[axis]:
        raise NoRule("makes of its channels and an open size one axis")
    moved_signal = Signal(call.output_shape, axis, x.ids[channels], values)
    for entry, with_batch in _SHAPES.items():
        if isinstance(getattr(operation, entry, None), (tuple, list)):
            graph.resize(operation, (entry, axis if with_batch else axis - 1), moved_signal.ids)
    return moved_signal


def _channels_of_places(
    graph: ChannelGraph, x: Signal, places: IntArray
) -> tuple[int, IntArray, FloatArray]:
    """Returns the new axis, the channel at each of its places, and what each carries."""
    axes = range(places.ndim - 1, 0, -1)
    rows = {axis: np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1) for axis in axes}
    for axis, found in rows.items():
        if (found == found[:, :1]).all():
            return axis, found[:, 0], x.values[found[:, 0]]
    for axis, found in sorted(rows.items()):  # heads come before their entries
        together = [np.unique(row) for row in found]
        if sum(map(len, together)) == len(x.ids) and len(together) > 1:
            if graph.bound:
                graph.block(x.ids, graph.bound)
            first = np.array([row[0] for row in together])
            for row in together:
                graph.join(np.repeat(x.ids[row[:1]], len(row)), x.ids[row])
            same = [(x.values[row] == x.values[row[0]]).all() for row in together]
            return axis, first, np.where(same, x.values[first], np.nan)
    raise NoRule("spreads units over several axes")


def split(graph: ChannelGraph, call: Call) -> list[Signal]:
    """Equal parts: of channels, those that stand in the same place of each can only go together."""
    x, parts = call.input, call.operation.indices_or_sections
    if call.operation.axis % len(x.shape) != x.axis:
        return [x.reshaped(shape, x.axis) for shape in call.output_shapes]
    if not isinstance(parts, int):
        raise NoRule("takes some of its channels")
    places = np.arange(len(x.ids)).reshape(parts, -1)
    for place in places[1:]:
        graph.join(x.ids[places[0]], x.ids[place])
    return [
        x.reshaped(shape, x.axis, place)
        for shape, place in zip(call.output_shapes, places, strict=True)
    ]


def reduced(graph: ChannelGraph, call: Call, keeps_constants: bool = True) -> Signal:
    """A mean, maximum or sum over other axes than the channels'."""
    x, axis = call.input, call.operation.axis
    if getattr(call.operation, "initial", None) is not None:
        raise NoRule("starts from a number of its own")
    axes = [axis] if isinstance(axis, int) else range(len(x.shape)) if axis is None else axis
    axes = {a % len(x.shape) for a in axes}
    if x.axis in axes:
        raise NoRule("combines its channels with each other")
    known = x.values if keeps_constants else np.where(x.values == 0, 0.0, np.nan)
    gone = 0 if call.operation.keepdims else sum(a < x.axis for a in axes)
    return x.carrying(known).reshaped(call.output_shape, x.axis - gone)


def elementwise(graph: ChannelGraph, call: Call) -> Signal:
    """An operation on one tensor, element by element, such as `keras.ops.relu`."""
    x = call.input
    held = [v for name, v in vars(call.operation).items() if not name.startswith("_")]
    if len(call.arguments) != 1 or any(np.ndim(v) for v in held if not isinstance(v, str)):
        raise NoRule("is called with more than a tensor and numbers")
    return x.carrying(through(call.operation.call, x.values))


def merge(
    graph: ChannelGraph, call: Call, combine: Callable[[list[FloatArray]], FloatArray]
) -> Signal:
    """Combines tensors element by element: their channels are joined.

    An operand with one channel is spread over the channels of the others and stays.
    """
    operands = [_of_rank(x, len(call.output_shape)) for x in call.arguments]
    tensors = [x for x in operands if isinstance(x, Signal)]
    axis = next((s.axis for s in tensors if s.axis and _spans(s, s.axis, call)), None)
    if axis is None:
        raise NoRule("combines tensors whose units cannot be matched")
    rows, joined = [], []
    for operand in operands:
        if isinstance(operand, float):
            rows.append(np.array([operand]))
        elif _spans(operand, axis, call):
            joined.append(graph.on_axis(operand, axis, call.operation, OTHER_AXIS))
            rows.append(joined[-1].values)
        else:
            graph.block(operand.ids, f"'{call.operation.name}' spreads it over other units")
            # It is never pruned: what it would send then is not what it sends.
            known = operand.axis == axis and graph.what_if is None
            rows.append(operand.values if known else np.array([np.nan]))
    for other in joined[1:]:
        graph.join(joined[0].ids, other.ids)
    with np.errstate(all="ignore"):  # what is not finite counts as varying
        values = combine([np.broadcast_to(row, joined[0].ids.shape) for row in rows])
    return Signal(call.output_shape, axis, joined[0].ids, values).carrying(values)


def _of_rank(operand: Any, rank: int) -> Signal | float:
    """An operand with the axes of size 1 that it is spread along."""
    if isinstance(operand, (int, float)):
        return float(operand)
    if not isinstance(operand, Signal):
        raise NoRule("is called with more than tensors and numbers")
    more = rank - len(operand.shape)
    if more <= 0:
        return operand
    axis = operand.axis + more if len(operand.ids) else 0
    return Signal((1,) * more + operand.shape, axis, operand.ids, operand.values, operand.lost)


def _spans(signal: Signal, axis: int, call: Call) -> bool:
    """Whether a tensor has all channels of the output, not one that is spread over them."""
    return len(signal.shape) > axis and signal.shape[axis] == call.output_shape[axis] is not None


def broadcast(graph: ChannelGraph, call: Call) -> Signal:
    """Spread over other axes; its own may come further back."""
    operand = _of_rank(call.input, len(call.output_shape))
    if isinstance(operand, float) or not _spans(operand, operand.axis, call):
        raise NoRule("spreads one channel over others")
    graph.resize(call.operation, ("shape", operand.axis), operand.ids)
    return operand.reshaped(call.output_shape, operand.axis)


def concatenate(graph: ChannelGraph, call: Call) -> Signal:
    """Channels behind each other, or tensors of the same channels, which are joined."""
    axis = call.operation.axis % len(call.output_shape)
    axes = [s.axis for s in call.inputs if s.axis]
    if not axes or len(call.inputs) != len(call.arguments):
        raise NoRule("has no input that can be followed")
    along = axis if axis in axes else axes[0]
    parts = [graph.on_axis(s, along, call.operation, OTHER_AXIS) for s in call.inputs]
    if along == axis:
        ids = np.concatenate([part.ids for part in parts])
        return Signal(call.output_shape, axis, ids, np.concatenate([p.values for p in parts]))
    return _joined(graph, parts).reshaped(call.output_shape, along)


def _joined(graph: ChannelGraph, parts: list[Signal]) -> Signal:
    """The channels that tensors side by side share."""
    first, *others = parts
    for part in others:
        graph.join(first.ids, part.ids)
    same = np.all([part.values == first.values for part in parts], axis=0)
    return first.carrying(np.where(same, first.values, np.nan))


def stack(graph: ChannelGraph, call: Call) -> Signal:
    """Tensors of the same channels side by side, which are joined."""
    tensors, new = call.inputs, call.operation.axis % len(call.output_shape)
    axis = next((x.axis for x in tensors if x.axis), None)
    if axis is None or len(tensors) != len(call.arguments):
        raise NoRule("has no input that can be followed")
    parts = [graph.on_axis(x, axis, call.operation, OTHER_AXIS) for x in tensors]
    return _joined(graph, parts).reshaped(call.output_shape, axis + (new <= axis))


def take(graph: ChannelGraph, call: Call) -> Signal:
    """Entries taken along another axis, as rows of a table."""
    x, places = (*call.args, None)[:2]
    axis = call.operation.axis
    if not isinstance(x, Signal) or not x.axis or axis is None or axis % len(x.shape) == x.axis:
        raise NoRule("takes some of its channels")
    if isinstance(places, Signal):
        graph.block(places.ids, f"'{call.operation.name}' takes them as numbers of rows")
    more = len(call.output_shape) - len(x.shape)
    moved_by = more if axis % len(x.shape) < x.axis else 0
    return x.reshaped(call.output_shape, x.axis + moved_by)


def where_rows(rows: list[FloatArray]) -> FloatArray:
    """What a choice between two sends: the number that both are."""
    return np.where(rows[-1] == rows[-2], rows[-1], np.nan)
