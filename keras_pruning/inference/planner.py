"""From a functional Keras model to steps on blocks of examples."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import activations
from keras import layers as kl

import keras_pruning.inference.block_layers as bl
from keras_pruning.inference.block_layers import Activation, Linear, Step, Tensor
from keras_pruning.inference.dense_chain import (
    ELEMENTWISE,
    Affine,
    DenseStep,
    read_batch_norm,
)
from keras_pruning.models import (
    all_layers,
    functional_graph,
    inputs_structure,
    is_of_keras,
    nodes_in_order,
    with_tensors,
)

__all__ = ["Plan", "dense_chain_of", "make_plan", "plan_blocks", "plan_of_dense_chain"]

_LEAST_SPARSITY = 0.25  # below, a product that skips zeros takes longer than a dense one
_LARGEST = 2**23  # floats of an example's tensor: half a GiB for the smallest block
_PASSED_ON = (
    kl.ActivityRegularization, kl.AlphaDropout, kl.Dropout, kl.GaussianDropout, kl.GaussianNoise,
    kl.Identity, kl.SpatialDropout1D, kl.SpatialDropout2D,
)  # fmt: skip

_MAKE_FLOATS = (kl.BatchNormalization, kl.Dense, kl.Rescaling)


@dataclass(frozen=True)
class Plan:
    """A network as steps, one after the other.

    Args:
        tensors: By number; `None` where a tensor has no place in a block: it has more than
            three axes, sizes that are not known or very large, or other numbers than float32.
        steps: In order.
        inputs: Numbers of the tensors that the network takes.
        outputs: Numbers of those that it gives.
        last: Of each step, the tensors that no later one reads.
    """

    tensors: list[Tensor | None]
    steps: list[Step]
    inputs: list[int]
    outputs: list[int]
    last: list[list[int]]

    @property
    def skips_zeros(self) -> bool:
        """Whether any layer has so many zeros that skipping them may pay."""
        linear = [step for step in self.steps if isinstance(step, Linear)]
        return any(step.zeros >= _LEAST_SPARSITY for step in linear)


def plan_blocks(model: keras.Model) -> tuple[Plan | None, str]:
    """Returns the plan of a model, or `None` and why Keras computes it whole.

    Layers and operations that are not known become calls of Keras. The plan holds the
    layers of the model for them; all other weights are copied.
    """
    function = functional_graph(model)
    if function is None:
        return None, "it is no functional or Sequential model"
    planner = _Planner()
    try:
        planner.inputs = [planner.number(t, is_input=True) for t in function.inputs]
        planner.add_graph(function)
        outputs = [planner.number(tensor) for tensor in function.outputs]
    except _StaysWithKeras as why:
        return None, str(why)
    return _finished(planner, outputs), ""


def plan_of_dense_chain(steps: list[DenseStep]) -> Plan:
    """Returns the plan of a chain of Dense layers, whatever shape its inputs have in Keras."""
    sizes = [len(steps[0].kernel), *(len(step.bias) for step in steps)]
    linear: list[Step] = []
    for i, step in enumerate(steps):
        kernel = np.ascontiguousarray(step.kernel.T)
        places = np.flatnonzero(kernel)
        linear.append(
            Linear(
                step.name, "Dense", (i,), i + 1, (*kernel.shape, 1, 1), places,
                kernel.ravel()[places], step.bias, activation=_named_activation(step.activation),
                weights=kernel.size,
            )
        )  # fmt: skip
    return make_plan([Tensor((size,)) for size in sizes], linear, [0], [len(steps)])


def dense_chain_of(plan: Plan) -> list[DenseStep] | None:
    """Returns the steps of a plan that is a chain of Dense layers, else `None`."""
    steps = []
    ends = [*plan.inputs, *(step.output for step in plan.steps)]
    if plan.outputs != ends[-1:] or any(t is None or len(t.shape) > 1 for t in plan.tensors):
        return None
    for step, end in zip(plan.steps, ends, strict=False):
        if not isinstance(step, Linear) or step.kind != "Dense" or step.inputs != (end,):
            return None
        if step.activation.number != np.inf or step.added is not None:
            return None
        kernel = np.zeros(step.shape[:2], np.float32)
        kernel.reshape(-1)[step.places] = step.values
        function = activations.get(step.activation.name)
        steps.append(DenseStep(np.ascontiguousarray(kernel.T), step.bias, function, step.name))
    return steps or None


def _named_activation(function: Callable[[Any], Any]) -> Activation:
    """A function by its name in Keras, or by none."""
    name = getattr(function, "__name__", "")
    return Activation(name if getattr(activations, name, None) is function else "")


class _StaysWithKeras(Exception):
    """A network that is no sequence of steps on blocks; the message says why."""


class _Planner:
    """Numbers the tensors of a graph, and turns its calls into steps."""

    def __init__(self) -> None:
        self.tensors: list[Tensor | None] = []
        self.steps: list[Step] = []
        self.inputs: list[int] = []
        self._numbers: dict[int, int] = {}
        self._symbols: list[Any] = []  # held, so that their ids stay theirs

    def number(self, symbol: Any, is_input: bool = False) -> int:
        """Returns the number of a symbolic tensor of Keras; inputs of integers have a block."""
        if id(symbol) not in self._numbers:
            if not symbol.shape or symbol.shape[0] is not None:
                raise _StaysWithKeras("a tensor has a fixed number of examples, or none")
            known = None not in symbol.shape[1:] and 2 <= len(symbol.shape) <= 4
            is_float = symbol.dtype in ("float32", "float16", "bfloat16")
            is_number = is_float or (is_input and symbol.dtype != "string")
            size = math.prod(symbol.shape[1:]) if known else 0
            fits = is_number and 0 < size <= _LARGEST
            self._numbers[id(symbol)] = self.new(tuple(symbol.shape[1:]) if fits else None)
            self._symbols.append(symbol)
        return self._numbers[id(symbol)]

    def new(self, shape: tuple[int, ...] | None) -> int:
        self.tensors.append(None if shape is None else Tensor(shape))
        return len(self.tensors) - 1

    def shape(self, number: int) -> tuple[int, ...]:
        tensor = self.tensors[number]
        return tensor.shape if tensor else ()

    def add_graph(self, function: Any) -> None:
        for node in nodes_in_order(function):
            if not node.input_tensors:
                continue
            inside = functional_graph(node.operation)
            if inside is None or not self._enter(inside, node):
                self._add(node)

    def _enter(self, function: Any, node: Any) -> bool:
        """Plans a nested model in its place; not where its inputs are given in another form."""
        given = node.input_tensors
        args, kwargs = node.arguments.args, node.arguments.kwargs
        same = len(args) == 1 and not any(isinstance(v, keras.KerasTensor) for v in kwargs.values())
        if not same or [t.shape for t in given] != [t.shape for t in function.inputs]:
            return False
        if len(given) > 1 and _form(args[0]) != _form(inputs_structure(function)):
            return False  # Keras finds them by their names
        if [t.dtype for t in given] != [t.dtype for t in function.inputs]:
            return False
        outer = dict(self._numbers)
        for symbol in _all_symbols(function):  # called before, with other inputs
            self._numbers.pop(id(symbol), None)
        for symbol, source in zip(function.inputs, given, strict=True):
            self._numbers[id(symbol)] = outer[id(source)]
            self._symbols.append(symbol)
        self.add_graph(function)
        inner = [self.number(symbol) for symbol in function.outputs]
        self._numbers = outer
        for symbol, number in zip(node.output_tensors, inner, strict=True):
            self._numbers[id(symbol)] = number
            self._symbols.append(symbol)
        return True

    def _add(self, node: Any) -> None:
        operation = node.operation
        _check_mask(operation, node)
        inputs = [self.number(tensor) for tensor in node.input_tensors]
        kinds = {tensor.dtype for tensor in (*node.input_tensors, *node.output_tensors)}
        if type(operation) in _PASSED_ON and len(inputs) == len(kinds) == 1:
            self._numbers[id(node.output_tensors[0])] = inputs[0]
            self._symbols.append(node.output_tensors[0])
            return
        outputs = tuple(self.number(tensor) for tensor in node.output_tensors)
        if len(outputs) == 1 and self._is_plain(node, inputs, outputs[0]):
            steps = _steps_of(self, operation, tuple(inputs), outputs[0])
            if steps is not None:
                self.steps += steps
                return
        self.steps.append(_call(node, tuple(inputs), outputs))

    def _is_plain(self, node: Any, inputs: list[int], output: int) -> bool:
        """Whether it is Keras's own, computes in float32 and takes tensors alone."""
        operation, args = node.operation, node.arguments.args
        is_layer = isinstance(operation, keras.Layer)
        if is_layer and operation.dtype_policy.name != "float32":
            return False
        leaves = keras.tree.flatten((args, node.arguments.kwargs))
        symbols = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, keras.KerasTensor)]
        integers = any("float" not in symbol.dtype for symbol in symbols)
        if integers and not isinstance(operation, _MAKE_FLOATS):
            return False  # Keras computes in integers, whatever the symbolic output says
        return (
            is_of_keras(operation)
            and node.output_tensors[0].dtype == "float32"
            and len(symbols) == len(inputs)
            and all(other is None for other in others)
            and all(self.tensors[i] is not None for i in (*inputs, output))
        )


def _form(structure: Any) -> Any:
    return keras.tree.map_structure(lambda _: None, structure)


def _all_symbols(function: Any) -> list[Any]:
    return [t for node in nodes_in_order(function) for t in node.output_tensors]


def _check_mask(operation: Any, node: Any) -> None:
    """Raises where a layer, or one inside it, may give a mask, which later layers would miss."""
    if not isinstance(operation, keras.Layer):
        return
    given = (*node.arguments.args, *node.arguments.kwargs.values())[0]
    try:
        mask = operation.compute_mask(given, None)
    except Exception:  # a layer that gives no mask may not bear to be asked
        mask = None
    inside = [layer for layer in all_layers(operation) if layer is not operation]
    if any(part is not None for part in keras.tree.flatten(mask)) or any(map(_makes_mask, inside)):
        raise _StaysWithKeras(f"layer '{operation.name}' gives a mask to those that follow")


def _makes_mask(layer: Any) -> bool:
    """Whether a layer, which cannot be asked without its inputs, may give a mask."""
    is_own = not is_of_keras(layer) and type(layer).compute_mask is not keras.Layer.compute_mask
    return is_own or isinstance(layer, kl.Masking) or getattr(layer, "mask_zero", False)


def _call(node: Any, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Step:
    structure = (node.arguments.args, node.arguments.kwargs)
    order = [id(tensor) for tensor in node.input_tensors]

    def arguments(given: list[Any]) -> tuple[Any, dict[str, Any]]:
        args, kwargs = with_tensors(structure, lambda symbol: given[order.index(id(symbol))])
        return args, kwargs

    operation = node.operation
    kind = type(operation).__name__
    return bl.Call(operation.name, kind, inputs, outputs[0], operation, arguments, outputs)


def _steps_of(
    planner: _Planner, operation: Any, inputs: tuple[int, ...], output: int
) -> list[Step] | None:
    """Returns the steps of a layer or operation, or `None` if Keras has to compute it."""
    kind = type(operation).__name__
    known = _LAYERS if isinstance(operation, keras.Layer) else _OPERATIONS
    make = known.get(kind)
    return make(planner, operation, inputs, output) if make else None


def _values(variable: Any) -> npt.NDArray[np.float32]:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def _activation(function: Any) -> Activation | None:
    if function is activations.softmax or function in ELEMENTWISE:
        name = activations.serialize(function)
        return Activation(name) if isinstance(name, str) else None
    return None


def _linear(
    layer: Any,
    inputs: tuple[int, ...],
    output: int,
    kernel: npt.NDArray[np.float32],
    **options: Any,
) -> Linear:
    """A step of a kernel `(units, channels, rows, columns)`."""
    places = np.flatnonzero(kernel)
    units = len(kernel)
    options.setdefault("bias", np.zeros(units, np.float32))
    options.setdefault("weights", kernel.size)
    values = np.ascontiguousarray(kernel.ravel()[places])
    shape: Any = kernel.shape
    return Linear(
        layer.name, type(layer).__name__, inputs, output, shape, places, values, **options
    )


def _then_activation(step: Linear, layer: Any) -> list[Step] | None:
    """The step with the layer's bias and activation."""
    activation = _activation(layer.activation)
    if activation is None:
        return None
    if layer.use_bias:
        step.bias = _values(layer.bias)
    step.activation = activation
    return [step]


def _dense(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    kernel = np.ascontiguousarray(_values(layer.kernel).T)[:, :, None, None]
    return _then_activation(_linear(layer, inputs, output, kernel), layer)


def _window(planner: _Planner, layer: Any, inputs: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Strides, dilation and pads of a layer with windows, of rows and columns."""
    rank = len(sizes)
    strides = _both(layer.strides, rank)
    dilation = _both(getattr(layer, "dilation_rate", 1), rank)
    rows, columns, _ = bl.known(planner.tensors, inputs[0]).pixels
    window = _both(sizes, rank)
    pads = [0, 0]
    if layer.padding != "valid":
        for axis, size in enumerate((rows, columns)):
            reach = (window[axis] - 1) * dilation[axis] + 1
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0)
            pads[axis] = reach - 1 if layer.padding == "causal" and axis == 1 else total // 2
    return {"strides": strides, "dilation": dilation, "pads": tuple(pads)}


def _both(sizes: Any, rank: int) -> tuple[int, int]:
    """Down and across, of a setting for one axis or for two."""
    sizes = (sizes,) * rank if isinstance(sizes, int) else tuple(sizes)
    return (1, *sizes) if rank == 1 else sizes  # type: ignore[return-value]


def _is_channels_last(layer: Any) -> bool:
    return layer.data_format == "channels_last"


def _conv(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if not _is_channels_last(layer):
        return None
    kernel = _values(layer.kernel)
    sizes = kernel.shape[:-2]
    kernel = kernel.reshape(-1, *_both(sizes, len(sizes))[1:], *kernel.shape[-2:])
    kernel = kernel.transpose(3, 2, 0, 1)  # (units, channels of a group, rows, columns)
    weights, groups = kernel.size, layer.groups
    if groups > 1:
        units, part = kernel.shape[:2]
        whole = np.zeros((units, part * groups, *kernel.shape[2:]), np.float32)
        for unit, of_unit in enumerate(kernel):
            first = unit // (units // groups) * part
            whole[unit, first : first + part] = of_unit
        kernel = whole
    options = _window(planner, layer, inputs, sizes)
    step = _linear(layer, inputs, output, np.ascontiguousarray(kernel), weights=weights, **options)
    step.is_unitwise = groups == step.shape[1] and groups > 1
    return _then_activation(step, layer)


def _depthwise_kernel(kernel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`(..., channels, multiplier)` as `(units, channels, rows, columns)`, zeros elsewhere."""
    sizes, (channels, times) = kernel.shape[:-2], kernel.shape[-2:]
    rows, columns = _both(sizes, len(sizes))
    kernel = kernel.reshape(rows, columns, channels * times)
    whole = np.zeros((channels * times, channels, rows, columns), np.float32)
    units = np.arange(channels * times)
    whole[units, units // times] = kernel.transpose(2, 0, 1)
    return whole


def _depthwise(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if not _is_channels_last(layer):
        return None
    kernel = _values(layer.kernel)
    options = _window(planner, layer, inputs, kernel.shape[:-2])
    step = _linear(
        layer, inputs, output, _depthwise_kernel(kernel),
        weights=kernel.size, is_unitwise=True, **options,
    )  # fmt: skip
    return _then_activation(step, layer)


def _separable(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if not _is_channels_last(layer):
        return None
    depthwise, pointwise = _values(layer.depthwise_kernel), _values(layer.pointwise_kernel)
    options = _window(planner, layer, inputs, depthwise.shape[:-2])
    channels = pointwise.shape[-2]
    between = planner.new((*planner.shape(output)[:-1], channels))
    first = _linear(
        layer, inputs, between, _depthwise_kernel(depthwise),
        weights=depthwise.size, is_unitwise=True, **options,
    )  # fmt: skip
    kernel = np.ascontiguousarray(pointwise.reshape(channels, -1).T)[:, :, None, None]
    second = _then_activation(_linear(layer, (between,), output, kernel), layer)
    return None if second is None else [first, *second]


def _affine(layer: Any, inputs: Any, output: int, affine: Affine, channels: int) -> Linear:
    scale, offset = (
        np.broadcast_to(np.asarray(part, np.float32), channels).astype(np.float32)
        for part in affine
    )
    units = np.arange(channels)
    return Linear(
        layer.name, type(layer).__name__, inputs, output, (channels, channels, 1, 1),
        units * channels + units, scale, offset, is_unitwise=True,
    )  # fmt: skip


def _batch_norm(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    shape = planner.shape(output)
    if layer.axis not in (-1, len(shape)) or len(inputs) != 1:
        return None
    return [_affine(layer, inputs, output, read_batch_norm(layer, {}), shape[-1])]


def _rescaling(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        return None
    channels = planner.shape(output)[-1]
    return [_affine(layer, inputs, output, (layer.scale, layer.offset), channels)]


def _activate(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    activation = _activation(layer.activation)
    return activation and [bl.Activate(*_named(layer), inputs, output, activation)]  # type: ignore[return-value]


def _named(layer: Any) -> tuple[str, str]:
    return layer.name, type(layer).__name__


def _relu(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if layer.threshold or (layer.max_value is not None and layer.max_value < 0):
        return None
    if layer.negative_slope:
        return None
    limit = np.inf if layer.max_value is None else float(layer.max_value)
    return [bl.Activate(*_named(layer), inputs, output, Activation("relu", limit))]


def _leaky_relu(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    slope = Activation("leaky", float(layer.negative_slope))
    return [bl.Activate(*_named(layer), inputs, output, slope)]


def _softmax(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if layer.axis not in (-1, len(planner.shape(output))) or len(inputs) != 1:
        return None
    return [bl.Activate(*_named(layer), inputs, output, Activation("softmax"))]


def _combine(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if len({len(planner.shape(i)) for i in (*inputs, output)}) != 1:
        return None
    return [bl.Combine(*_named(layer), inputs, output, type(layer).__name__)]


def _concatenate(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    rank = len(planner.shape(output))
    axis = layer.axis % (rank + 1)
    if axis == 0 or any(len(planner.shape(i)) != rank for i in inputs):
        return None
    # Of Keras's axes the last one is that of the channels, here the first.
    place = 0 if axis == rank else axis + (3 - rank)
    return [bl.Concatenate(*_named(layer), inputs, output, place)]


def _reshape(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    return [bl.Reshape(*_named(layer), inputs, output)]


def _zero_padding(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    pads = _borders(layer.padding)
    if getattr(layer, "data_format", None) not in (None, "channels_last"):
        return None
    return [bl.Pad(*_named(layer), inputs, output, pads)]


def _borders(settings: Any) -> bl.Border:
    """Above, below, left and right of a setting of a layer that pads or crops."""
    settings = tuple(settings)
    if not isinstance(settings[0], (tuple, list)):
        settings = ((0, 0), settings)
    (top, bottom), (left, right) = settings
    return top, bottom, left, right


def _cropping(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if getattr(layer, "data_format", None) not in (None, "channels_last"):
        return None
    top, _, left, _ = _borders(layer.cropping)
    return [bl.Crop(*_named(layer), inputs, output, (top, left))]


def _upsampling(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if getattr(layer, "interpolation", "nearest") != "nearest":
        return None
    if getattr(layer, "data_format", None) not in (None, "channels_last"):
        return None
    times = (1, layer.size) if isinstance(layer.size, int) else tuple(layer.size)
    return [bl.Upsample(*_named(layer), inputs, output, times)]


def _max_pool(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if not _is_channels_last(layer):
        return None
    sizes = layer.pool_size if isinstance(layer.pool_size, tuple) else (layer.pool_size,)
    options = _window(planner, layer, inputs, sizes)
    window = _both(sizes, len(sizes))
    steps: list[Step] = []
    if layer.padding == "same":
        (rows, columns, channels), (n_rows, n_columns, _) = (
            bl.known(planner.tensors, i).pixels
            for i in (inputs[0], output)  # type: ignore[union-attr]
        )
        top, left = options["pads"]
        bottom, right = (
            max(0, (n - 1) * stride + reach - size - pad)
            for n, stride, reach, size, pad in zip(
                (n_rows, n_columns), options["strides"], window, (rows, columns), (top, left),
                strict=True,
            )
        )  # fmt: skip
        if any((top, bottom, left, right)):
            shape = (rows + top + bottom, columns + left + right, channels)
            between = planner.new(shape)
            pads = (top, bottom, left, right)
            steps.append(bl.Pad(*_named(layer), inputs, between, pads, -np.inf))
            inputs = (between,)
    steps.append(bl.MaxPool(*_named(layer), inputs, output, window, options["strides"]))
    return steps


def _average_pool(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    sizes = layer.pool_size if isinstance(layer.pool_size, tuple) else (layer.pool_size,)
    if not _is_channels_last(layer) or layer.padding != "valid":
        return None
    options = _window(planner, layer, inputs, sizes)
    channels = planner.shape(output)[-1]
    kernel = np.full((*sizes, channels, 1), 1 / math.prod(sizes), np.float32)
    step = _linear(
        layer, inputs, output, _depthwise_kernel(kernel), weights=0, is_unitwise=True, **options
    )
    return [step]


def _global_pool(planner: _Planner, layer: Any, inputs: Any, output: int) -> list[Step] | None:
    if not _is_channels_last(layer) or len(inputs) != 1:
        return None
    is_mean = "Average" in type(layer).__name__
    return [bl.GlobalPool(*_named(layer), inputs, output, is_mean)]


Maker = Callable[[_Planner, Any, Any, int], list[Step] | None]

_LAYERS: dict[str, Maker] = {
    "Activation": _activate,
    "Add": _combine,
    "Average": _combine,
    "AveragePooling1D": _average_pool,
    "AveragePooling2D": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concatenate": _concatenate,
    "Conv1D": _conv,
    "Conv2D": _conv,
    "Cropping1D": _cropping,
    "Cropping2D": _cropping,
    "Dense": _dense,
    "DepthwiseConv1D": _depthwise,
    "DepthwiseConv2D": _depthwise,
    "Flatten": _reshape,
    "GlobalAveragePooling1D": _global_pool,
    "GlobalAveragePooling2D": _global_pool,
    "GlobalMaxPooling1D": _global_pool,
    "GlobalMaxPooling2D": _global_pool,
    "LeakyReLU": _leaky_relu,
    "MaxPooling1D": _max_pool,
    "MaxPooling2D": _max_pool,
    "Maximum": _combine,
    "Minimum": _combine,
    "Multiply": _combine,
    "ReLU": _relu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv1D": _separable,
    "SeparableConv2D": _separable,
    "Softmax": _softmax,
    "Subtract": _combine,
    "UpSampling1D": _upsampling,
    "UpSampling2D": _upsampling,
    "ZeroPadding1D": _zero_padding,
    "ZeroPadding2D": _zero_padding,
}

_OPERATIONS: dict[str, Maker] = {
    "Add": _combine,
    "Maximum": _combine,
    "Minimum": _combine,
    "Multiply": _combine,
    "Subtract": _combine,
    "Relu": lambda planner, operation, inputs, output: [
        bl.Activate(*_named(operation), inputs, output, Activation("relu"))
    ],
}


def _finished(planner: _Planner, outputs: list[int]) -> Plan:
    return make_plan(planner.tensors, _fused(planner, outputs), planner.inputs, outputs)


def make_plan(
    tensors: list[Tensor | None], steps: list[Step], inputs: list[int], outputs: list[int]
) -> Plan:
    """Returns a plan of steps whose tensors have the borders that the windows need.

    Raises:
        ValueError: If a step reads or writes beyond its tensors: the compiled loops do not look.
    """
    tensors = list(tensors)
    for step in steps:
        if isinstance(step, Linear):
            tensor = bl.known(tensors, step.inputs[0])
            border: Any = tuple(map(max, tensor.border, step.border(tensors)))
            tensors[step.inputs[0]] = replace(tensor, border=border)
    for step in steps:
        if not step.fits(tensors):
            raise ValueError(
                f"Step '{step.name}' does not fit the tensors that it reads and writes."
            )
    return Plan(tensors, steps, inputs, outputs, _last_uses(steps, inputs, outputs))


def _reads(step: Step) -> tuple[int, ...]:
    added = getattr(step, "added", None)
    return step.inputs if added is None else (*step.inputs, added)


def _writes(step: Step) -> tuple[int, ...]:
    return step.outputs if isinstance(step, bl.Call) else (step.output,)


def _last_uses(steps: list[Step], inputs: list[int], outputs: list[int]) -> list[list[int]]:
    last = dict.fromkeys(inputs, 0)
    for i, step in enumerate(steps):
        last.update(dict.fromkeys((*_reads(step), *_writes(step)), i))
    return [
        [tensor for tensor, at in last.items() if at == i and tensor not in outputs]
        for i in range(len(steps))
    ]


def _fused(planner: _Planner, outputs: list[int]) -> list[Step]:
    """Returns fewer steps: what only one other reads is computed together with it."""
    uses = Counter(outputs) + Counter(i for step in planner.steps for i in _reads(step))
    made: dict[int, Step] = {}  # by the tensor they write

    def alone(tensor: int, kind: Any) -> Any:
        """The step that makes the tensor, if it is of a kind and nobody else reads it."""
        step = made.get(tensor)
        return step if isinstance(step, kind) and uses[tensor] == 1 else None

    for step in planner.steps:
        before = alone(step.inputs[0], (Linear, bl.Combine, bl.Pad)) if step.inputs else None
        if isinstance(step, Linear):
            if isinstance(before, bl.Pad) and before.value == 0:
                del made[before.output]
                pads = before.pads
                step.inputs = before.inputs
                step.pads = (step.pads[0] + pads[0], step.pads[1] + pads[2])
            elif _is_affine(step) and isinstance(before, Linear) and _is_open(before):
                del made[before.output]
                step = _scaled(before, step)
        elif isinstance(step, bl.Activate) and before is not None and _takes(before):
            del made[before.output]
            before.activation, before.output = step.activation, step.output
            step = before
        elif isinstance(step, bl.Combine) and step.function == "Add" and len(step.inputs) == 2:
            step = _added(planner, step, alone, made)
        made[step.output] = step
        for tensor in _writes(step):
            made[tensor] = step
    return list({id(step): step for step in made.values()}.values())


def _takes(step: Step) -> bool:
    """Whether an activation can follow within the step."""
    return isinstance(step, (Linear, bl.Combine)) and step.activation.name == "linear"


def _is_open(step: Linear) -> bool:
    return step.activation.name == "linear" and step.added is None


def _is_affine(step: Linear) -> bool:
    return step.kind in ("BatchNormalization", "Rescaling")


def _scaled(step: Linear, norm: Linear) -> Linear:
    """One step that is `step`, then `norm`."""
    scale, offset = norm.values, norm.bias
    units = step.places // math.prod(step.shape[1:])
    values = (step.values * scale[units]).astype(np.float32)
    bias = (step.bias * scale + offset).astype(np.float32)
    return replace(step, values=values, bias=bias, output=norm.output)


def _added(planner: _Planner, step: Step, alone: Any, made: dict[int, Step]) -> Step:
    """A sum that is taken together with the convolution that makes one of its parts."""
    first, second = step.inputs
    for own, other in ((second, first), (first, second)):
        linear = alone(own, Linear)
        same = planner.shape(own) == planner.shape(other)
        if linear is not None and first != second and same and _is_open(linear):
            del made[own]
            linear.added, linear.output = other, step.output
            return linear
    return step
