"""Rules for layers that make units, and for those that treat each channel apart.

A rule takes the call of a layer or operation and returns the `Signal` it sends on, or one for
each of its outputs. What has no rule is safe: its channels stay.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import activations
from keras import layers as kl

from keras_pruning.channels.graph import (
    Call,
    ChannelGraph,
    FloatArray,
    IntArray,
    NoRule,
    Signal,
)
from keras_pruning.models import own_weights, stated_axes

Rule = Callable[[ChannelGraph, Call], Signal | list[Signal]]


# Layers that make units


def dense(graph: ChannelGraph, call: Call) -> Signal:
    """Sums over the last axis."""
    layer = call.operation
    x = graph.on_axis(call.inputs[0], -1, layer, "sums over another axis")
    graph.cut(layer, "kernel", 0, x.ids)
    return _sum(graph, call, x, exact=True, size="units", unit_axis=1)


def conv(graph: ChannelGraph, call: Call) -> Signal:
    """Sums over all channels, or treats each apart if there are as many groups."""
    layer = call.operation
    x = on_channels(graph, call)
    rank = len(layer.kernel.shape)
    if layer.groups == 1:
        graph.cut(layer, "kernel", rank - 2, x.ids)
        return _sum(graph, call, x, _is_exact(layer), "filters", rank - 1)
    if layer.groups != len(x.ids):
        raise NoRule(f"has {layer.groups} groups of several channels")
    multiplier = layer.filters // layer.groups
    if graph.what_if is None:
        values = _depthwise_values(graph, layer.kernel, multiplier, x, layer)
    else:
        values = np.zeros(layer.filters)
    ids = graph.make_units(layer, np.repeat(x.ids, multiplier))
    graph.cut(layer, "kernel", rank - 1, ids)
    graph.resize(layer, "filters", ids)
    graph.resize(layer, "groups", x.ids)
    return _with_bias(graph, call, x.axis, ids, values)


def conv_transpose(graph: ChannelGraph, call: Call) -> Signal:
    """As a convolution, with the units on the last axis but one of its kernel."""
    layer = call.operation
    x = on_channels(graph, call)
    rank = len(layer.kernel.shape)
    graph.cut(layer, "kernel", rank - 1, x.ids)
    # A position hears as many weights of the window as reach it: the same for all if one.
    exact = math.prod(layer.kernel_size) == 1 and math.prod(_pair(layer.strides)) == 1
    return _sum(graph, call, x, exact, "filters", rank - 2)


def separable(graph: ChannelGraph, call: Call) -> Signal:
    """A depthwise convolution, and a sum over what it sends."""
    layer = call.operation
    x = on_channels(graph, call)
    rank = len(layer.pointwise_kernel.shape)
    values = _depthwise_values(graph, layer.depthwise_kernel, layer.depth_multiplier, x, layer)
    middle = np.repeat(x.ids, layer.depth_multiplier)
    graph.cut(layer, "depthwise_kernel", rank - 2, x.ids)
    graph.cut(layer, "pointwise_kernel", rank - 2, middle)
    between = Signal(x.shape, x.axis, middle, values)
    return _sum(graph, call, between, True, "filters", rank - 1, "pointwise_kernel")


def _sum(
    graph: ChannelGraph,
    call: Call,
    x: Signal,
    exact: bool,
    size: str,
    unit_axis: int,
    variable: str = "kernel",
) -> Signal:
    """A layer whose units sum over all channels.

    `exact`: a constant channel adds the same at every position, also at the border.
    """
    layer = call.operation
    stored = getattr(layer, variable)
    known = x.values if exact else np.where(x.values == 0, 0.0, np.nan)
    if graph.what_if is not None:
        graph.absorb(layer, x.ids, known, np.ones((1, len(x.ids), 1)))
        values = np.zeros(stored.shape[unit_axis])
    else:
        kernel = _windows(stored)
        if unit_axis == len(stored.shape) - 2:
            kernel = kernel.swapaxes(1, 2)  # stored as (window, filters, channels)
        graph.absorb(layer, x.ids, known, kernel)
        values = sums(kernel, known)
    ids = graph.make_units(layer, graph.new(len(values)))
    graph.cut(layer, variable, unit_axis, ids)
    graph.resize(layer, size, ids)
    return _with_bias(graph, call, x.axis, ids, values)


def stated(graph: ChannelGraph, call: Call) -> Signal:
    """A layer of one's own, as its `prunable_axes` says; the result is compared on examples."""
    layer = call.operation
    axes = stated_axes(layer) or {}
    if len(call.inputs) != 1 or len(call.output_shapes) != 1:
        raise NoRule(
            "has a prunable_axes(), which is for one tensor that comes in and one that goes"
        )
    last = len(call.output_shape) - 1
    x = graph.on_axis(call.inputs[0], -1, layer, "is said to read the last axis")
    weights = {v.name: v for v in own_weights(layer)}
    for name, axis in (axes.get("inputs") or axes.get("channels") or {}).items():
        if weights[name].shape[axis] != len(x.ids):
            raise NoRule(
                f"has {weights[name].shape[axis]} entries of '{name}' for {len(x.ids)} channels, "
                "unlike what its prunable_axes() says"
            )
        graph.cut(layer, name, axis, x.ids)
    known = np.where(x.values == 0, 0.0, np.nan)
    if "channels" in axes:
        return Signal(call.output_shape, last, x.ids, known)

    def rows(role: str) -> npt.NDArray[Any]:  # (..., channels or units)
        of_role = axes.get(role, {}).items()
        flat = [np.moveaxis(as_array(weights[n]), a, -1) for n, a in of_role]
        return np.concatenate([part.reshape(-1, part.shape[-1]) for part in flat])

    if "inputs" in axes:
        kernel = rows("inputs")[..., None]
        graph.absorb(layer, x.ids, known, kernel if graph.what_if is None else np.ones_like(kernel))
    else:
        graph.block(x.ids, f"'{layer.name}' does not say how it reads it")
    if "units" not in axes:
        ids = graph.new(int(call.output_shape[-1] or 0))
        graph.block(ids, f"'{layer.name}' makes no units, says its prunable_axes()")
        return Signal(call.output_shape, last, ids, np.full(len(ids), np.nan))
    silent = (rows("units") == 0).all(axis=0) | (graph.what_if is not None)
    if len(silent) != call.output_shape[-1]:
        raise NoRule(f"sends {call.output_shape[-1]} channels, not its {len(silent)} units")
    ids = graph.make_units(layer, graph.new(len(silent)))
    for name, axis in axes["units"].items():
        graph.cut(layer, name, axis, ids)
    return Signal(call.output_shape, last, ids, np.where(silent, 0.0, np.nan))


def sums(kernel: npt.NDArray[Any], known: FloatArray) -> FloatArray:
    """The constants that units sum up to, (units,); kernel of shape (window, channels, units)."""
    varies = np.isnan(known)
    constant = np.flatnonzero(~varies & (known != 0))
    sums = kernel[:, constant].sum(axis=0, dtype=np.float64)  # (constants, units)
    values = known[constant] @ sums
    values[(kernel[:, varies] != 0).any(axis=(0, 1))] = np.nan
    return values


def _with_bias(
    graph: ChannelGraph, call: Call, axis: int, ids: IntArray, values: FloatArray
) -> Signal:
    """Adds the bias and goes through the layer's activation."""
    layer = call.operation
    if layer.use_bias:
        pruned = graph.what_if is not None and layer in graph.units
        values = values if pruned else values + as_array(layer.bias)
        graph.cut(layer, "bias", 0, ids)
    sent = Signal(call.output_shape, axis, ids, values).carrying(values)
    if not is_elementwise(layer.activation):
        graph.block(ids, f"the activation of '{layer.name}' mixes units or is unknown")
        return sent.carrying(np.full(len(ids), np.nan))
    return sent.carrying(through(layer.activation, values))


def depthwise(graph: ChannelGraph, call: Call) -> Signal:
    """Each channel is filtered by itself."""
    layer = call.operation
    x = on_channels(graph, call)
    values = _depthwise_values(graph, layer.kernel, layer.depth_multiplier, x, layer)
    graph.cut(layer, "kernel", len(layer.kernel.shape) - 2, x.ids)
    ids = np.repeat(x.ids, layer.depth_multiplier)
    return _with_bias(graph, call, x.axis, ids, values)


def _depthwise_values(
    graph: ChannelGraph, stored: keras.Variable, multiplier: int, x: Signal, layer: keras.Layer
) -> FloatArray:
    """What each channel sends on by itself, (channels * multiplier,)."""
    known = x.values if _is_exact(layer) else np.where(x.values == 0, 0.0, np.nan)
    if graph.what_if is not None and not np.nan_to_num(known).any():
        return np.repeat(known, multiplier)  # zeros and what varies: whatever the kernel
    kernel = as_array(stored).reshape(-1, len(x.ids), multiplier)
    sums = kernel.sum(axis=0, dtype=np.float64)
    silent = ~(kernel != 0).any(axis=0)
    return np.where(silent, 0.0, known[:, None] * sums).reshape(-1)


def _is_exact(layer: Any) -> bool:
    """Whether a constant channel adds the same at every position: no zeros beside it."""
    return layer.padding == "valid" or math.prod(_pair(layer.kernel_size)) == 1


def recurrent(graph: ChannelGraph, call: Call) -> Signal | list[Signal]:
    """LSTM, GRU and SimpleRNN: a unit has a column in each gate and a row of its own.

    It says zero if its candidate is zero, whatever its gates.
    """
    layer, given = call.operation, call.named
    if layer.stateful:
        raise NoRule("is stateful")
    x = graph.on_axis(given["sequences"], -1, layer, "sums over another axis")
    states = [s for s in keras.tree.flatten(given.get("initial_state")) if isinstance(s, Signal)]
    names = ("kernel", "recurrent_kernel", "bias")
    held = {v.name: as_array(v) for v in layer.weights if v.name in names}
    count = held["recurrent_kernel"].shape[0]
    gates = held["kernel"].shape[1] // count
    ids = graph.make_units(layer, graph.new(count))
    for name, values in held.items():
        graph.cut(layer, name, values.ndim - 1, np.tile(ids, gates))
    graph.cut(layer, "kernel", 0, x.ids)
    graph.cut(layer, "recurrent_kernel", 0, ids)
    graph.resize(layer, "units", ids)
    silent = np.ones(count, bool)
    for state in states:
        silent &= graph.on_axis(state, -1, layer, OTHER_AXIS).values == 0
        graph.join(ids, state.ids)
    if graph.what_if is None:
        candidate = slice(-count, None) if gates == 3 else slice(2 * count, 3 * count)
        columns = [v[..., candidate if gates > 1 else slice(None)] for v in held.values()]
        silent &= ~np.any([(c != 0).reshape(-1, count).any(axis=0) for c in columns], axis=0)
        if not is_elementwise(layer.activation) or through(layer.activation, np.zeros(1))[0] != 0:
            silent[:] = False
        read = {name: held[name][None] for name in names[:2]}
    else:
        read = {"kernel": np.ones((1, len(x.ids), 1)), "recurrent_kernel": np.ones((1, count, 1))}
    values = np.where(silent, 0.0, np.nan)
    graph.absorb(layer, x.ids, np.where(x.values == 0, 0.0, np.nan), read["kernel"])
    graph.absorb(layer.cell, ids, values, read["recurrent_kernel"])
    return [Signal(shape, len(shape) - 1, ids, values) for shape in call.output_shapes]


def bidirectional(graph: ChannelGraph, call: Call) -> list[Signal]:
    """Both directions, whose units go pair by pair: they are made from one configuration."""
    layer = call.operation
    if len([x for x in call.inputs if len(x.shape) == 3]) != 1:
        raise NoRule("is called with initial states")
    halves: list[list[Signal]] = []
    for part in (layer.forward_layer, layer.backward_layer):
        if type(part) not in (kl.LSTM, kl.GRU, kl.SimpleRNN):
            raise NoRule(f"goes both ways with a {type(part).__name__}")
        shapes = [part.compute_output_shape(call.inputs[0].shape)]
        shapes = shapes[0] if part.return_state else shapes
        sent = recurrent(graph, Call(part, call.args[:1], {}, [tuple(s) for s in shapes]))
        halves.append(sent if isinstance(sent, list) else [sent])
    (first, *states), (second, *others) = halves
    graph.join(first.ids, second.ids)
    if layer.merge_mode is None:
        return [first, second, *states, *others]
    both = [first.values, second.values]
    ids = first.ids
    if layer.merge_mode == "concat":
        ids, values = np.concatenate([ids, second.ids]), np.concatenate(both)
    else:
        values = product(both) if layer.merge_mode == "mul" else both[0] + both[1]
    shape = call.output_shape
    return [Signal(shape, len(shape) - 1, ids, values), *states, *others]


def embedding(graph: ChannelGraph, call: Call) -> Signal:
    """Its columns are channels that stay, unless what they are added to goes."""
    layer = call.operation
    for places in call.inputs:
        graph.block(places.ids, f"'{layer.name}' looks it up")
    table = as_array(layer.embeddings)
    ids = graph.cut(layer, "embeddings", 1, graph.new(table.shape[1]))
    graph.resize(layer, "output_dim", ids)
    constant = np.where((table == table[:1]).all(axis=0), table[0], np.nan)
    return Signal(call.output_shape, len(call.output_shape) - 1, ids, constant.astype(float))


# Layers that treat each channel apart


def batch_norm(graph: ChannelGraph, call: Call) -> Signal:
    """Each channel is scaled and moved by numbers of its own."""
    layer = call.operation
    if getattr(layer, "renorm", False):
        raise NoRule("renormalizes")
    x = graph.on_axis(call.inputs[0], layer.axis, layer, "normalizes another axis")
    held = {
        name: as_array(getattr(layer, name))
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
        if getattr(layer, name) is not None
    }
    for name in held:
        graph.cut(layer, name, 0, x.ids)
    if graph.what_if is not None and layer in graph.what_if:
        held |= {name: np.zeros_like(held[name]) for name in held if name != "moving_variance"}
    scale = held.get("gamma", 1.0) / np.sqrt(held["moving_variance"] + layer.epsilon)
    centred = np.where(scale == 0, 0.0, scale * (x.values - held["moving_mean"]))
    return x.carrying(centred + held.get("beta", 0.0))


def prelu(graph: ChannelGraph, call: Call) -> Signal:
    """A slope for each place, or for each channel."""
    layer, x = call.operation, call.input
    alpha = as_array(layer.alpha)  # (*shape of an example), 1 where shared
    if alpha.shape[x.axis - 1] > 1:
        graph.cut(layer, "alpha", x.axis - 1, x.ids)
    rows = np.moveaxis(alpha, x.axis - 1, 0).reshape(alpha.shape[x.axis - 1], -1)
    slope = np.where(rows.min(axis=1) == rows.max(axis=1), rows[:, 0], np.nan)
    return x.carrying(np.where(x.values >= 0, x.values, x.values * slope))


def normalization(graph: ChannelGraph, call: Call) -> Signal:
    """A layer or operation that makes what is along some axes depend on all of it."""
    x, axis = call.inputs[0], call.operation.axis
    for scale in call.inputs[1:]:
        graph.block(scale.ids, f"'{call.operation.name}' scales by it")
    axes = [axis] if isinstance(axis, int) else range(len(x.shape)) if axis is None else axis
    # GroupNormalization goes along all axes, whichever it takes the groups of.
    in_groups = isinstance(call.operation, kl.GroupNormalization)
    if in_groups or x.axis in [a % len(x.shape) for a in axes]:
        kind = type(call.operation).__name__
        graph.block(x.ids, f"'{call.operation.name}' ({kind}) normalizes over it")
    return x.carrying(np.full(len(x.ids), np.nan))


def activation(graph: ChannelGraph, call: Call) -> Signal:
    """A layer that goes element by element."""
    layer, x = call.operation, call.input
    if not is_elementwise(getattr(layer, "activation", None)):
        raise NoRule("has an activation that mixes units or is unknown")
    if np.ndim(getattr(layer, "scale", 0)) or np.ndim(getattr(layer, "offset", 0)):
        raise NoRule("holds numbers for each unit")
    return x.carrying(through(layer.call, x.values))


def same(graph: ChannelGraph, call: Call) -> Signal:
    """Nothing happens at inference; for training the shape of the noise follows."""
    layer, x = call.operation, call.input
    noise_shape = getattr(layer, "noise_shape", None)
    if noise_shape is not None and len(noise_shape) != len(x.shape):
        raise NoRule(f"has the noise shape {noise_shape} for an input of shape {x.shape}")
    if noise_shape is not None and noise_shape[x.axis] not in (None, 1):
        graph.resize(layer, ("noise_shape", x.axis), x.ids)
    return x


def pad(graph: ChannelGraph, call: Call) -> Signal:
    """Zeros are put beside the border."""
    x = on_channels(graph, call)
    everywhere = x.carrying(np.where(x.values == 0, 0.0, np.nan))
    return everywhere.reshaped(call.output_shape, x.axis)


def move(graph: ChannelGraph, call: Call) -> Signal:
    """Positions are left out, repeated or averaged: a constant stays what it is."""
    x = on_channels(graph, call)
    return x.reshaped(call.output_shape, x.axis)


def pool(graph: ChannelGraph, call: Call) -> Signal:
    """Windows of one channel are combined."""
    # Backends differ in what padding="same" puts beside the border.
    return (pad if call.operation.padding == "same" else move)(graph, call)


def upsample(graph: ChannelGraph, call: Call) -> Signal:
    """Places are repeated, or new ones put between them."""
    if getattr(call.operation, "interpolation", "nearest") not in ("nearest", "bilinear"):
        raise NoRule("interpolates beyond the border")
    return move(graph, call)


def global_pool(graph: ChannelGraph, call: Call) -> Signal:
    """All places of a channel are combined."""
    x = on_channels(graph, call)
    axis = x.axis if len(call.output_shape) == len(x.shape) else 1
    return x.reshaped(call.output_shape, axis)


# Helpers


def product(rows: list[FloatArray]) -> FloatArray:
    """What a product of constants is: zero if one of them is."""
    stacked = np.stack(rows)
    return np.where((stacked == 0).any(axis=0), 0.0, stacked.prod(axis=0))


def on_channels(graph: ChannelGraph, call: Call) -> Signal:
    """The one input, on the axis that the layer's data format calls channels."""
    layer, signal = call.operation, call.inputs[0]
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    return graph.on_axis(signal, axis, layer, "has its channels on another axis")


def _windows(kernel: keras.Variable) -> npt.NDArray[Any]:
    """A convolution's kernel with one axis for the window: (window, ..., ...)."""
    values = as_array(kernel)
    return values.reshape(-1, *values.shape[-2:])


def as_array(variable: keras.Variable) -> npt.NDArray[Any]:
    """The values of a weight, as floats that NumPy computes with."""
    values = keras.ops.convert_to_numpy(variable)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def _pair(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    return sizes if isinstance(sizes, tuple) else (sizes,)


def is_elementwise(activation: Any) -> bool:
    """Whether an activation goes element by element; one of the user's own is tried."""
    if activation is None or type(activation) in _PLAIN or activation in _ACTIVATIONS:
        return True
    if isinstance(activation, keras.Layer) or not callable(activation):
        return False
    x = np.random.default_rng(0).normal(0, 3, (4, 6)).astype("float32")
    try:
        rows, entries = (
            keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(values)))
            for values in (x, x.reshape(-1, 1))
        )
        same = np.allclose(rows, entries.reshape(x.shape), atol=1e-6)
    except Exception:  # of the user's own code, of the backend: of any kind
        return False
    return rows.shape == x.shape and same


def through(function: Callable[[Any], Any] | None, values: FloatArray) -> FloatArray:
    """The constants behind an elementwise function."""
    known = ~np.isnan(values)
    if function is None or not known.any():
        return values
    sent = values.copy()
    row = keras.ops.convert_to_tensor(values[known][None], keras.config.floatx())
    sent[known] = keras.ops.convert_to_numpy(function(row))[0]
    return sent


_ACTIVATIONS = [
    getattr(activations, name)
    for name in (
        "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu",
        "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu",
        "sigmoid", "silu", "soft_shrink", "softplus", "softsign", "squareplus", "tanh",
        "tanh_shrink", "threshold",
    )
    if hasattr(activations, name)
]  # fmt: skip
OTHER_AXIS = "combines it with units on another axis"
_PLAIN = {kl.ReLU, kl.LeakyReLU, kl.ELU}
