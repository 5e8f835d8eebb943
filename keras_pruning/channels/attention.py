"""Rules for products along named axes, of which attention is made: heads are channels.

What an `EinsumDense` makes along the first of its new axes are its units: in a projection to
heads, `(batch, time, heads, size)`, the heads. Attention treats each of them apart.
"""

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers as kl

from keras_pruning.channels.graph import (
    Call,
    ChannelGraph,
    FloatArray,
    NoRule,
    OwnWeight,
    Signal,
)
from keras_pruning.channels.rules import as_array, is_elementwise, product, sums, through
from keras_pruning.models import sublayers

__all__ = ["attention", "dot_product_attention", "einsum", "einsum_dense", "matmul"]

_HEADS = 2  # the axis of (batch, time, heads, size) that counts them


def einsum_dense(graph: ChannelGraph, call: Call) -> Signal:
    """Sums over channels, treats them apart, or lets them pass on an axis it does not know."""
    return _einsum_dense(graph, call.operation, call.inputs[0], call.output_shape)


def _einsum_dense(
    graph: ChannelGraph, layer: Any, x: Signal, output_shape: tuple[int | None, ...]
) -> Signal:
    inputs, kernel, outputs = _axes(layer.equation, [len(x.shape), None, len(output_shape)])
    axis = inputs[x.axis] if x.axis else ""
    if axis and axis in outputs:
        if axis in kernel:  # a product for each channel
            graph.cut(layer, "kernel", kernel.index(axis), x.ids)
        _cut_bias(graph, layer, axis, x)
        graph.resize(layer, ("output_shape", outputs.index(axis) - len(outputs)), x.ids)
        sent = x.carrying(np.where(x.values == 0, 0.0, np.nan))
        return _behind_bias(graph, layer, sent.reshaped(output_shape, outputs.index(axis)))
    summed = [a for a in inputs if a in kernel and a not in outputs]
    made = [a for a in outputs if a in kernel and a not in inputs]
    if not summed or not made or any(a in outputs for a in inputs if a in kernel):
        raise NoRule(f"computes {layer.equation!r}")
    axis = axis if axis in summed else summed[0]
    x = graph.on_axis(x, inputs.index(axis), layer, "sums over another axis")
    graph.cut(layer, "kernel", kernel.index(axis), x.ids)
    # A constant that is no zero would need a bias of each place of the output.
    known = x.values if [*(layer.bias_axes or "")] == made else np.where(x.values == 0, 0.0, np.nan)
    others = [a for a in kernel if a not in (axis, *made)]
    stored = as_array(layer.kernel)
    order = [kernel.index(a) for a in (*others, axis, *made)]
    sizes = [stored.shape[kernel.index(a)] for a in made]
    if graph.what_if is not None:
        graph.absorb(layer, x.ids, known, np.ones((1, len(x.ids), 1)))
        values = np.zeros(sizes)
    else:
        matrix = stored.transpose(order).reshape(-1, len(x.ids), int(np.prod(sizes)))
        graph.absorb(layer, x.ids, known, matrix)
        values = sums(matrix, known).reshape(sizes)
        if layer.bias is not None:
            bias = as_array(layer.bias)
            values = values + bias.reshape(sizes) if bias.size == values.size else values + np.nan
    ids = graph.make_units(layer, graph.new(sizes[0]))
    graph.cut(layer, "kernel", kernel.index(made[0]), ids)
    if graph.bound and len(made) > 1:
        graph.block(ids, graph.bound)
    sent = Signal(output_shape, outputs.index(made[0]), ids, np.zeros(sizes[0]))
    _cut_bias(graph, layer, made[0], sent)
    graph.resize(layer, ("output_shape", outputs.index(made[0]) - len(outputs)), ids)
    rows = values.reshape(sizes[0], -1)
    same = np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan)
    return _activated(graph, layer, sent.carrying(same))


def _cut_bias(graph: ChannelGraph, layer: Any, axis: str, signal: Signal) -> None:
    if layer.bias is not None and axis in layer.bias_axes:
        outputs = layer.equation.split("->")[1].strip(" .")
        first = min(outputs.index(other) for other in layer.bias_axes)
        graph.cut(layer, "bias", outputs.index(axis) - first, signal.ids)


def _behind_bias(graph: ChannelGraph, layer: Any, sent: Signal) -> Signal:
    pruned = graph.what_if is not None and layer in graph.units
    if layer.bias is not None and not pruned and np.any(as_array(layer.bias)):
        sent = sent.carrying(np.full(len(sent.ids), np.nan))
    return _activated(graph, layer, sent)


def _activated(graph: ChannelGraph, layer: Any, sent: Signal) -> Signal:
    if is_elementwise(layer.activation):
        return sent.carrying(through(layer.activation, sent.values))
    graph.block(sent.ids, f"the activation of '{layer.name}' mixes units or is unknown")
    return sent.carrying(np.full(len(sent.ids), np.nan))


def attention(graph: ChannelGraph, call: Call) -> Signal | list[Signal]:
    """The heads of a MultiHeadAttention or GroupedQueryAttention.

    A head goes if what it adds to the output is zero, with all of its four projections. Query
    heads that share a key and a value go together.
    """
    layer = call.operation
    parts = {part.name: part for part in sublayers(layer) if isinstance(part, kl.EinsumDense)}
    if not {"query", "key", "value", "attention_output"} <= {*parts}:
        raise NoRule("has other projections than those of Keras's attention")
    given = call.named
    query, value = given["query"], given["value"]
    key = value if given.get("key") is None else given["key"]
    masks = [x for name, x in given.items() if "mask" in name and isinstance(x, Signal)]
    size = (*query.shape[:-1], None, None)
    if len(size) != 4:
        raise NoRule("attends along several axes")

    def projected(name: str, x: Signal) -> Signal:
        return _einsum_dense(graph, parts[name], x, size)

    queries, values = projected("query", query), projected("value", value)
    heads = _attended(graph, layer, queries, projected("key", key), values, masks)
    if "gate" in parts:
        gates = projected("gate", query)
        graph.join(heads.ids, gates.ids)
        heads = heads.carrying(product([heads.values, gates.values]))
    sent = _einsum_dense(graph, parts["attention_output"], heads, call.output_shape)
    if layer.get_config().get("output_shape") is None:
        kind = type(layer).__name__
        graph.block(sent.ids, f"'{layer.name}' ({kind}) sends as much as it receives")
    if len(call.output_shapes) == 1:
        return sent
    scores = Signal(call.output_shapes[1], 1, heads.ids, np.full(len(heads.ids), np.nan))
    return [sent, scores]


def _attended(
    graph: ChannelGraph,
    operation: Any,
    query: Signal,
    key: Signal,
    value: Signal,
    masks: Sequence[Signal],
) -> Signal:
    """What attention sends: a head for each of the query, zero where the value is."""
    for mask in masks:
        graph.block(mask.ids, f"'{operation.name}' takes it as a mask")
        if len(mask.shape) == 4 and mask.shape[1] != 1:
            graph.block(query.ids, f"'{operation.name}' has a mask for each head")
    graph.join(key.ids, value.ids)
    shared, rest = divmod(len(query.ids), max(len(value.ids), 1))
    if rest or query.axis != _HEADS or value.axis != _HEADS or key.axis != _HEADS:
        raise NoRule("has heads that cannot be matched")
    ids, values = np.repeat(value.ids, shared), np.repeat(value.values, shared)
    graph.join(ids, query.ids)
    return Signal(query.shape, _HEADS, query.ids, np.where(values == 0, 0.0, np.nan))


def dot_product_attention(graph: ChannelGraph, call: Call) -> Signal:
    """The operation of this name on `(batch, time, heads, size)`."""
    tensors = [
        graph.on_axis(x, _HEADS, call.operation, "attends to it head by head")
        for x in call.inputs[:3]
    ]
    query, key, value = tensors
    sent = _attended(graph, call.operation, query, key, value, call.inputs[3:])
    return sent.reshaped(call.output_shape, _HEADS)


def einsum(graph: ChannelGraph, call: Call) -> Signal:
    """`keras.ops.einsum`: channels that all operands name pass, others stay."""
    ranks = [len(x.shape) for x in call.inputs]
    axes = _axes(call.operation.subscripts, [*ranks, len(call.output_shape)])
    first, second = call.inputs[0], call.inputs[-1]
    if second.weight is not None and ranks[1:] == [2]:
        x, kernel, out = axes
        if x[:-1] == out[:-1] and kernel == x[-1] + out[-1]:
            return _by_weight(graph, call, first, second.weight)
    return _einsum(graph, call, axes)


def matmul(graph: ChannelGraph, call: Call) -> Signal:
    """`keras.ops.matmul` of two tensors of one rank, matrix by matrix."""
    first, second = call.inputs
    rank = len(first.shape)
    if second.weight is not None and len(second.shape) == 2 and rank > 1:
        return _by_weight(graph, call, first, second.weight)
    if rank != len(second.shape) or rank < 2 or len(call.inputs) != len(call.arguments):
        raise NoRule("multiplies matrices of other ranks")
    batch = string.ascii_lowercase[: rank - 2]
    return _einsum(graph, call, [f"{batch}xy", f"{batch}yz", f"{batch}xz"])


def _by_weight(graph: ChannelGraph, call: Call, x: Signal, weight: OwnWeight) -> Signal:
    """A product with a matrix that a layer of one's own holds: as in a Dense without a bias."""
    x = graph.on_axis(x, -1, call.operation, "sums over another axis")
    graph.cut(weight.holder, weight.name, 0, x.ids)
    known = np.where(x.values == 0, 0.0, np.nan)
    matrix = as_array(weight.variable)[None]
    graph.absorb(weight, x.ids, known, matrix if graph.what_if is None else np.ones_like(matrix))
    ids = graph.cuts[weight.holder][weight.name, 1]
    values = sums(matrix, known) if graph.what_if is None else np.full(len(ids), np.nan)
    return Signal(call.output_shape, len(call.output_shape) - 1, ids, values)


def _einsum(graph: ChannelGraph, call: Call, axes: Sequence[str]) -> Signal:
    *inputs, outputs = axes
    followed = [names[x.axis] for names, x in zip(inputs, call.inputs, strict=True) if x.axis]
    axis = next((a for a in followed if a in outputs), None)
    if axis is None:
        raise NoRule("sums over its channels")
    rows: list[FloatArray] = []
    ids = np.zeros(0, np.int64)
    for names, x in zip(inputs, call.inputs, strict=True):
        if axis not in names:
            graph.block(x.ids, f"'{call.operation.name}' combines it with other channels")
            rows.append(np.full(call.output_shape[outputs.index(axis)] or 0, np.nan))
            continue
        part = graph.on_axis(x, names.index(axis), call.operation, "combines it with other units")
        if ids.size and len(ids) != len(part.ids):
            raise NoRule("spreads one channel over others")
        if ids.size:
            graph.join(ids, part.ids)
        ids = ids if ids.size else part.ids
        rows.append(part.values)
    rows = [row if len(row) == len(ids) else np.full(len(ids), np.nan) for row in rows]
    values: FloatArray = np.where(product(rows) == 0, 0.0, np.nan)
    return Signal(call.output_shape, outputs.index(axis), ids, values)


def _axes(equation: str, ranks: Sequence[int | None]) -> list[str]:
    """The axes of each tensor of an equation, a letter each, an ellipsis spelt out."""
    parts = equation.replace(" ", "").replace("->", ",").split(",")
    free = [a for a in string.ascii_uppercase if a not in equation]
    return [
        part.replace("...", "".join(free[: (rank or 0) - len(part) + 3])) if "..." in part else part
        for part, rank in zip(parts, ranks, strict=True)
    ]
