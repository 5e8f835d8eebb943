"""Layers as products: the rows that a kernel multiplies, and the kernel as a matrix.

A Dense layer is `rows @ matrix + bias`. So is a convolution, of the windows that it moves over
its input. Grouped and depthwise ones multiply each group of channels apart, so arrays here have
an axis of groups: rows `(rows, groups, features)`, matrices `(groups, features, units)`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_pruning.models.calls import as_floats

__all__ = ["LinearMap", "linear_maps", "sample"]

Array = npt.NDArray[Any]

_CONVOLUTIONS = (kl.Conv1D, kl.Conv2D, kl.Conv3D)
_DEPTHWISE = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)
_SEPARABLE = (kl.SeparableConv1D, kl.SeparableConv2D)
_TRANSPOSED = (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)


@dataclass(frozen=True)
class LinearMap:
    """One kernel of a layer as a product.

    Attributes:
        kernel: The variable.
        bias: The variable that is added to the product, one number a unit, or `None`.
        to_matrix: Takes values of the kernel and returns `(groups, features, units)`.
        to_kernel: Takes such a matrix and returns values of the kernel.
        count: Takes the layer's input and returns how many rows the product has.
        rows: Takes the input and which rows are wanted; returns `(rows, groups, features)`.
        answers: Takes the layer's output and returns it as `(all rows, groups * units)`.
    """

    kernel: keras.Variable
    bias: keras.Variable | None
    to_matrix: Callable[[Array], Array]
    to_kernel: Callable[[Array], Array]
    count: Callable[[Array], int]
    rows: Callable[[Array, Array], Array]
    answers: Callable[[Array], Array]

    @property
    def matrix(self) -> Array:
        """The kernel as it is now, `(groups, features, units)`."""
        return self.to_matrix(as_floats(self.kernel))

    def product(self, rows: Array) -> Array:
        """Returns the sums, with the bias, `(rows, groups, units)`."""
        sums = np.matmul(rows.swapaxes(0, 1), self.matrix).swapaxes(0, 1)
        if self.bias is None:
            return sums
        return sums + as_floats(self.bias).reshape(1, *sums.shape[1:])


def sample(count: int, most: int, rng: np.random.Generator) -> Array:
    """Returns which rows of a product to look at: all, or `most` of them at random."""
    return np.arange(count) if count <= most else rng.choice(count, most, replace=False)


def linear_maps(layer: keras.Layer) -> list[LinearMap]:
    """Returns the products that a layer computes, each of what the one before gives.

    Separable convolutions are two. A layer that is not known, or quantized, is none.
    """
    if not layer.built or getattr(layer, "quantization_mode", None):
        return []
    if type(layer) is kl.Dense:
        return [_einsum(layer, "...a,ab->...b")]
    if type(layer) is kl.EinsumDense:
        return [_einsum(layer, layer.equation)] if _is_product(layer) else []
    if type(layer) in (*_CONVOLUTIONS, *_DEPTHWISE, *_TRANSPOSED):
        return [_convolution(layer, layer.kernel, layer.bias)]
    if type(layer) in _SEPARABLE:
        return [_convolution(layer, layer.depthwise_kernel, None), _pointwise(layer)]
    return []


def _is_product(layer: kl.EinsumDense) -> bool:
    """Whether each axis is one of rows, groups, features or units, and the bias one of units."""
    inputs, kernel, outputs = _axes(layer.equation)
    units = [axis for axis in outputs if axis in kernel]
    return (
        {*inputs} <= {*kernel, *outputs}
        and {*outputs} <= {*inputs, *kernel}
        and {*kernel} <= {*inputs, *outputs}
        and (layer.bias is None or [*layer.bias_axes] == units)
        and units == sorted(units, key=lambda axis: axis not in inputs)  # groups come first
    )


def _axes(equation: str) -> list[str]:
    """Returns the axes of the input, the kernel and the output; "." stands for an ellipsis."""
    return equation.replace("...", ".").replace("->", ",").split(",")


def _einsum(layer: Any, equation: str) -> LinearMap:
    inputs, kernel, outputs = _axes(equation)
    sizes = dict(zip(kernel, layer.kernel.shape, strict=True))
    rest = [axis for axis in outputs if axis not in kernel]
    groups = [axis for axis in kernel if axis in inputs and axis in outputs]
    features = [axis for axis in kernel if axis not in outputs]
    units = [axis for axis in outputs if axis in kernel and axis not in inputs]
    shape = [math.prod(sizes[axis] for axis in part) for part in (groups, features, units)]
    order = [kernel.index(axis) for axis in (*groups, *features, *units)]

    def rows_last(x: Array, axes: str, last: Sequence[str]) -> Array:
        """Returns x with its axes in the order of the rows' and then the last ones."""
        spread = x.ndim - len(axes.replace(".", ""))  # axes that an ellipsis stands for
        places: dict[str, list[int]] = {}
        for axis in axes:
            start = sum(map(len, places.values()))
            places[axis] = list(range(start, start + (spread if axis == "." else 1)))
        return x.transpose([place for axis in (*rest, *last) for place in places[axis]])

    def all_rows(x: Array) -> Array:
        return rows_last(x, inputs, [*groups, *features]).reshape(-1, *shape[:2])

    return LinearMap(
        layer.kernel,
        layer.bias,
        to_matrix=lambda values: values.transpose(order).reshape(shape),
        to_kernel=lambda matrix: matrix.reshape([layer.kernel.shape[i] for i in order]).transpose(
            np.argsort(order)
        ),
        count=lambda x: len(all_rows(x)),
        rows=lambda x, wanted: all_rows(x)[wanted],
        answers=lambda y: rows_last(y, outputs, [*groups, *units]).reshape(-1, shape[0] * shape[2]),
    )


def _convolution(layer: Any, kernel: keras.Variable, bias: keras.Variable | None) -> LinearMap:
    transposed = isinstance(layer, _TRANSPOSED)
    *window, channels, filters = kernel.shape
    if transposed:
        groups, channels, filters = 1, filters, channels
    elif isinstance(layer, _CONVOLUTIONS):
        groups = layer.groups
    else:  # depthwise
        groups, channels, filters = channels, 1, channels * filters
    inner = (math.prod(window), channels, groups, filters // groups)
    source = _transposed_source if transposed else _source

    def channels_last(x: Array) -> Array:
        return x if layer.data_format == "channels_last" else np.moveaxis(x, 1, -1)

    def output_size(x: Array) -> tuple[int, ...]:
        shape = layer.compute_output_shape(x.shape)
        return tuple(shape[1:-1] if layer.data_format == "channels_last" else shape[2:])

    def to_matrix(values: Array) -> Array:
        values = values.swapaxes(-1, -2) if transposed else values
        return values.reshape(inner).transpose(2, 0, 1, 3).reshape(groups, -1, inner[-1])

    def to_kernel(matrix: Array) -> Array:
        values = matrix.reshape(groups, *inner[:2], inner[-1]).transpose(1, 2, 0, 3)
        if transposed:
            return values.reshape(*window, channels, filters).swapaxes(-1, -2)
        return values.reshape(kernel.shape)

    def rows(x: Array, wanted: Array) -> Array:
        size = output_size(x)
        x = channels_last(x)
        example, *places = np.unravel_index(wanted, (len(x), *size))
        seen = np.zeros((len(wanted), inner[0], x.shape[-1]), x.dtype)
        for number, offsets in enumerate(np.ndindex(*window)):
            found = [
                source(layer, axis, places[axis], offset, x.shape[axis + 1], size[axis])
                for axis, offset in enumerate(offsets)
            ]
            inside = np.logical_and.reduce(
                [(place >= 0) & (place < x.shape[axis + 1]) for axis, place in enumerate(found)]
            )
            at = tuple(place[inside] for place in found)
            seen[inside, number] = x[(example[inside], *at)]
        seen = seen.reshape(len(wanted), inner[0], groups, channels)
        return seen.transpose(0, 2, 1, 3).reshape(len(wanted), groups, -1)

    return LinearMap(
        kernel,
        bias,
        to_matrix,
        to_kernel,
        count=lambda x: len(x) * math.prod(output_size(x)),
        rows=rows,
        answers=lambda y: channels_last(y).reshape(-1, channels_last(y).shape[-1]),
    )


def _source(layer: Any, axis: int, place: Array, offset: int, size: int, out: int) -> Array:
    """Returns the input place that a window at an output place sees; outside is padding."""
    stride, dilation = layer.strides[axis], layer.dilation_rate[axis]
    reach = (layer.kernel_size[axis] - 1) * dilation
    before = {"valid": 0, "causal": reach}.get(
        layer.padding, max((out - 1) * stride + reach + 1 - size, 0) // 2
    )
    return place * stride + offset * dilation - before


def _transposed_source(
    layer: Any, axis: int, place: Array, offset: int, size: int, out: int
) -> Array:
    """The same for a transposed convolution, -1 where a stride leaves a gap."""
    stride, dilation = layer.strides[axis], layer.dilation_rate[axis]
    reach = (layer.kernel_size[axis] - 1) * dilation
    cut = 0
    if layer.padding == "same":
        more = layer.output_padding
        more = more[axis] if isinstance(more, tuple) else more
        length = stride + reach - 1 if more is None else reach + (reach + 1) % 2 - 1 + more
        cut = reach - min(length // 2 + length % 2, reach)
    place = place + cut - offset * dilation
    return np.where(place % stride == 0, place // stride, -1)


def _pointwise(layer: Any) -> LinearMap:
    """The second product of a separable convolution: of what the depthwise one gives."""
    first = _convolution(layer, layer.depthwise_kernel, None)
    kernel = layer.pointwise_kernel
    return LinearMap(
        kernel,
        layer.bias,
        to_matrix=lambda values: values.reshape(1, *kernel.shape[-2:]),
        to_kernel=lambda matrix: matrix.reshape(kernel.shape),
        count=first.count,
        rows=first.rows,
        answers=first.answers,
    )
