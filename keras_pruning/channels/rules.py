"""How each kind of layer passes its channels on: a table of rules.

A rule takes the call of a layer and returns the `Signal` it sends on. What has no rule is
safe: its channels stay.
"""

import math
from collections.abc import Callable
from functools import partial
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
    Shape,
    Signal,
)

__all__ = ["rule_of"]


Rule = Callable[[ChannelGraph, Call], Signal]


def rule_of(operation: Any) -> Rule:
    """Returns the rule of a layer or operation, or raises `NoRule`."""
    is_layer = isinstance(operation, keras.Layer)
    kind = type(operation)
    rule = _RULES.get(kind) if is_layer else _OPERATION_RULES.get(kind.__name__)
    if rule is None or (not is_layer and not kind.__module__.startswith("keras.")):
        raise NoRule("has no rule")
    if getattr(operation, "quantization_mode", None) or getattr(operation, "lora_enabled", False):
        raise NoRule("is quantized or has LoRA weights")
    return rule


# Layers that make units


def _dense(graph: ChannelGraph, call: Call) -> Signal:
    layer = call.operation
    x = graph.on_axis(call.inputs[0], -1, layer, "sums over another axis")
    graph.cut(layer, "kernel", 0, x.ids)
    return _sum(graph, call, x, exact=True, size="units", unit_axis=1)


def _conv(graph: ChannelGraph, call: Call) -> Signal:
    layer = call.operation
    x = _on_channels(graph, call)
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


def _conv_transpose(graph: ChannelGraph, call: Call) -> Signal:
    layer = call.operation
    x = _on_channels(graph, call)
    rank = len(layer.kernel.shape)
    graph.cut(layer, "kernel", rank - 1, x.ids)
    # A position hears as many weights of the window as reach it: the same for all if one.
    exact = math.prod(layer.kernel_size) == 1 and math.prod(_pair(layer.strides)) == 1
    return _sum(graph, call, x, exact, "filters", rank - 2)


def _separable(graph: ChannelGraph, call: Call) -> Signal:
    layer = call.operation
    x = _on_channels(graph, call)
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
        values = _sums(kernel, known)
    ids = graph.make_units(layer, graph.new(len(values)))
    graph.cut(layer, variable, unit_axis, ids)
    graph.resize(layer, size, ids)
    return _with_bias(graph, call, x.axis, ids, values)


def _sums(kernel: npt.NDArray[Any], known: FloatArray) -> FloatArray:
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
        values = values if pruned else values + _array(layer.bias)
        graph.cut(layer, "bias", 0, ids)
    sent = Signal(call.output_shape, axis, ids, values).carrying(values)
    if not _is_elementwise(layer.activation):
        graph.block(ids, f"the activation of '{layer.name}' mixes units or is unknown")
        return sent.carrying(np.full(len(ids), np.nan))
    return sent.carrying(_through(layer.activation, values))


def _depthwise(graph: ChannelGraph, call: Call) -> Signal:
    layer = call.operation
    x = _on_channels(graph, call)
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
    kernel = _array(stored).reshape(-1, len(x.ids), multiplier)
    sums = kernel.sum(axis=0, dtype=np.float64)
    silent = ~(kernel != 0).any(axis=0)
    return np.where(silent, 0.0, known[:, None] * sums).reshape(-1)


def _is_exact(layer: Any) -> bool:
    """Whether a constant channel adds the same at every position: no zeros beside it."""
    return layer.padding == "valid" or math.prod(_pair(layer.kernel_size)) == 1


# Layers that treat each channel apart


def _batch_norm(graph: ChannelGraph, call: Call) -> Signal:
    layer = call.operation
    if getattr(layer, "renorm", False):
        raise NoRule("renormalizes")
    x = graph.on_axis(call.inputs[0], layer.axis, layer, "normalizes another axis")
    held = {
        name: _array(getattr(layer, name))
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


def _prelu(graph: ChannelGraph, call: Call) -> Signal:
    layer, x = call.operation, call.input
    alpha = _array(layer.alpha)  # (*shape of an example), 1 where shared
    if alpha.shape[x.axis - 1] > 1:
        graph.cut(layer, "alpha", x.axis - 1, x.ids)
    rows = np.moveaxis(alpha, x.axis - 1, 0).reshape(alpha.shape[x.axis - 1], -1)
    slope = np.where(rows.min(axis=1) == rows.max(axis=1), rows[:, 0], np.nan)
    return x.carrying(np.where(x.values >= 0, x.values, x.values * slope))


def _elementwise(graph: ChannelGraph, call: Call) -> Signal:
    layer, x = call.operation, call.input
    if not _is_elementwise(getattr(layer, "activation", None)):
        raise NoRule("has an activation that mixes units or is unknown")
    if np.ndim(getattr(layer, "scale", 0)) or np.ndim(getattr(layer, "offset", 0)):
        raise NoRule("holds numbers for each unit")
    return x.carrying(_through(layer.call, x.values))


def _same(graph: ChannelGraph, call: Call) -> Signal:
    """Nothing happens at inference; for training the shape of the noise follows."""
    layer, x = call.operation, call.input
    noise_shape = getattr(layer, "noise_shape", None)
    if noise_shape is not None and len(noise_shape) != len(x.shape):
        raise NoRule(f"has the noise shape {noise_shape} for an input of shape {x.shape}")
    if noise_shape is not None and noise_shape[x.axis] not in (None, 1):
        graph.resize(layer, ("noise_shape", x.axis), x.ids)
    return x


def _pad(graph: ChannelGraph, call: Call) -> Signal:
    x = _on_channels(graph, call)
    everywhere = x.carrying(np.where(x.values == 0, 0.0, np.nan))
    return everywhere.reshaped(call.output_shape, x.axis)


def _move(graph: ChannelGraph, call: Call) -> Signal:
    """Positions are left out, repeated or averaged: a constant stays what it is."""
    x = _on_channels(graph, call)
    return x.reshaped(call.output_shape, x.axis)


def _pool(graph: ChannelGraph, call: Call) -> Signal:
    # Backends differ in what padding="same" puts beside the border.
    return (_pad if call.operation.padding == "same" else _move)(graph, call)


def _upsample(graph: ChannelGraph, call: Call) -> Signal:
    if getattr(call.operation, "interpolation", "nearest") not in ("nearest", "bilinear"):
        raise NoRule("interpolates beyond the border")
    return _move(graph, call)


def _global_pool(graph: ChannelGraph, call: Call) -> Signal:
    x = _on_channels(graph, call)
    axis = x.axis if len(call.output_shape) == len(x.shape) else 1
    return x.reshaped(call.output_shape, axis)


# Layers that move the axis


def _flatten(graph: ChannelGraph, call: Call) -> Signal:
    order = _channel_of_each_entry(call.input)
    if call.operation.data_format == "channels_first":
        order = np.moveaxis(order, 0, -1)
    return call.input.reshaped(call.output_shape, 1, order.reshape(-1))


def _reshape(graph: ChannelGraph, call: Call) -> Signal:
    layer, target = call.operation, _known(call.output_shape[1:])
    order = _channel_of_each_entry(call.input).reshape(target)
    axis = next((a for a in reversed(range(len(target))) if _varies_along(order, a)), None)
    if axis is None:
        raise NoRule("spreads units over several axes")
    channels = np.moveaxis(order, axis, -1).reshape(-1, target[axis])[0]
    sent = call.input.reshaped(call.output_shape, axis + 1, channels)
    graph.resize(layer, ("target_shape", axis), sent.ids)
    return sent


def _varies_along(order: IntArray, axis: int) -> bool:
    """Whether an array is the same along all axes but this one."""
    rows = np.moveaxis(order, axis, -1).reshape(-1, order.shape[axis])
    return bool((rows == rows[:1]).all())


def _permute(graph: ChannelGraph, call: Call) -> Signal:
    x = call.input
    axis = 1 + call.operation.dims.index(x.axis)
    return x.reshaped(call.output_shape, axis)


def _repeat_vector(graph: ChannelGraph, call: Call) -> Signal:
    return call.input.reshaped(call.output_shape, 2)


def _channel_of_each_entry(signal: Signal) -> IntArray:
    """The position of the channel that each entry of an example belongs to."""
    shape = _known(signal.shape[1:])
    along = [1] * len(shape)
    along[signal.axis - 1] = -1
    return np.broadcast_to(np.arange(len(signal.ids)).reshape(along), shape)


def _known(shape: Shape) -> tuple[int, ...]:
    sizes = tuple(size for size in shape if size is not None)
    if len(sizes) < len(shape):
        raise NoRule("has a tensor of unknown size")
    return sizes


# Layers and operations with several inputs


def _merge(
    graph: ChannelGraph, call: Call, combine: Callable[[list[FloatArray]], FloatArray]
) -> Signal:
    """Combines tensors element by element: their channels are joined.

    An operand with one channel is spread over the channels of the others and stays.
    """
    tensors = call.inputs
    axis = next((s.axis for s in tensors if s.axis and _spans(s, s.axis, call)), None)
    if axis is None or any(len(s.shape) != len(call.output_shape) for s in tensors):
        raise NoRule("combines tensors whose units cannot be matched")
    rows, joined = [], []
    for operand in call.arguments:
        if isinstance(operand, float):
            rows.append(np.array([operand]))
        elif _spans(operand, axis, call):
            joined.append(graph.on_axis(operand, axis, call.operation, _OTHER_AXIS))
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


def _spans(signal: Signal, axis: int, call: Call) -> bool:
    """Whether a tensor has all channels of the output, not one that is spread over them."""
    return len(signal.shape) > axis and signal.shape[axis] == call.output_shape[axis] is not None


def _product(rows: list[FloatArray]) -> FloatArray:
    stacked = np.stack(rows)
    return np.where((stacked == 0).any(axis=0), 0.0, stacked.prod(axis=0))


def _concatenate(graph: ChannelGraph, call: Call) -> Signal:
    axis = call.operation.axis % len(call.output_shape)
    axes = [s.axis for s in call.inputs if s.axis]
    if not axes:
        raise NoRule("has no input that can be followed")
    along = axis if axis in axes else axes[0]
    parts = [graph.on_axis(s, along, call.operation, _OTHER_AXIS) for s in call.inputs]
    if along == axis:
        ids = np.concatenate([part.ids for part in parts])
        return Signal(call.output_shape, axis, ids, np.concatenate([p.values for p in parts]))
    for part in parts[1:]:
        graph.join(parts[0].ids, part.ids)
    same = np.all([part.values == parts[0].values for part in parts], axis=0)
    values = np.where(same, parts[0].values, np.nan)
    return Signal(call.output_shape, along, parts[0].ids, values)


def _operation(graph: ChannelGraph, call: Call) -> Signal:
    """An operation on one tensor, element by element, such as `keras.ops.relu`."""
    x = call.input
    if len(call.arguments) != 1:
        raise NoRule("is called with more than a tensor")
    return x.carrying(_through(call.operation.call, x.values))


# Helpers


def _on_channels(graph: ChannelGraph, call: Call) -> Signal:
    """The one input, on the axis that the layer's data format calls channels."""
    layer, signal = call.operation, call.inputs[0]
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    return graph.on_axis(signal, axis, layer, "has its channels on another axis")


def _windows(kernel: keras.Variable) -> npt.NDArray[Any]:
    """A convolution's kernel with one axis for the window: (window, ..., ...)."""
    values = _array(kernel)
    return values.reshape(-1, *values.shape[-2:])


def _array(variable: keras.Variable) -> npt.NDArray[Any]:
    values = keras.ops.convert_to_numpy(variable)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def _pair(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    return sizes if isinstance(sizes, tuple) else (sizes,)


def _is_elementwise(activation: Any) -> bool:
    return activation is None or type(activation) in _PLAIN or activation in _ACTIVATIONS


def _through(function: Callable[[Any], Any] | None, values: FloatArray) -> FloatArray:
    """The constants behind an elementwise function."""
    known = ~np.isnan(values)
    if function is None or not known.any():
        return values
    sent = values.copy()
    row = keras.ops.convert_to_tensor(values[known][None], keras.config.floatx())
    sent[known] = keras.ops.convert_to_numpy(function(row))[0]
    return sent


def _rules(rule: Rule, *kinds: str) -> dict[type, Rule]:
    """The rule for layer classes by name; an older Keras may lack some."""
    return {getattr(kl, kind): rule for kind in kinds if hasattr(kl, kind)}


def _dimensions(*names: str) -> list[str]:
    return [f"{name}{d}D" for name in names for d in (1, 2, 3)]


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
_OTHER_AXIS = "combines it with units on another axis"
_PLAIN = {kl.ReLU, kl.LeakyReLU, kl.ELU}
# Merging layers, and operations between layers such as `x + y`, by the name of either's class.
_MERGES: dict[str, Rule] = {
    "Add": partial(_merge, combine=lambda rows: np.sum(rows, axis=0)),
    "Subtract": partial(_merge, combine=lambda rows: rows[0] - rows[1]),
    "Multiply": partial(_merge, combine=_product),
    "TrueDivide": partial(_merge, combine=lambda rows: rows[0] / rows[1]),
    "Maximum": partial(_merge, combine=lambda rows: np.max(rows, axis=0)),
    "Minimum": partial(_merge, combine=lambda rows: np.min(rows, axis=0)),
}

_RULES: dict[type, Rule] = {
    **_rules(_dense, "Dense"),
    **_rules(_conv, *_dimensions("Conv")),
    **_rules(_conv_transpose, "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    **_rules(_separable, "SeparableConv1D", "SeparableConv2D"),
    **_rules(_depthwise, "DepthwiseConv1D", "DepthwiseConv2D"),
    **_rules(_batch_norm, "BatchNormalization"),
    **_rules(_prelu, "PReLU"),
    **_rules(_elementwise, "Activation", "ReLU", "LeakyReLU", "ELU", "Rescaling"),
    **_rules(
        _same,
        "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
        "Identity", *_dimensions("SpatialDropout"),
    ),
    **_rules(_pad, *_dimensions("ZeroPadding")),
    **_rules(_move, *_dimensions("Cropping")),
    **_rules(_upsample, *_dimensions("UpSampling")),
    **_rules(_pool, *_dimensions("AveragePooling", "MaxPooling")),
    **_rules(_global_pool, *_dimensions("GlobalAveragePooling", "GlobalMaxPooling")),
    **_rules(_flatten, "Flatten"),
    **_rules(_reshape, "Reshape"),
    **_rules(_permute, "Permute"),
    **_rules(_repeat_vector, "RepeatVector"),
    **_rules(_concatenate, "Concatenate"),
    **_rules(partial(_merge, combine=lambda rows: np.mean(rows, axis=0)), "Average"),
    **{getattr(kl, kind): rule for kind, rule in _MERGES.items() if hasattr(kl, kind)},
}  # fmt: skip
_OPERATION_RULES: dict[str, Rule] = {  # by name: the classes of operations are not public
    **_MERGES,
    **dict.fromkeys(
        ("Absolute", "Exp", "Negative", "Relu", "Sigmoid", "Silu", "Softplus", "Square", "Tanh"),
        _operation,
    ),
}
