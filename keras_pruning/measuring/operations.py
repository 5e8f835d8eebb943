"""How many multiply-adds a model's kernels take for one example, and how many meet no zero."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
from keras import layers as kl

from keras_pruning.models import KernelLayer, all_layers, kernel_layers, sublayers
from keras_pruning.pruning import count_nonzero

__all__ = ["MultiplyAdds", "count_multiply_adds", "packs_weights"]

_TRANSPOSED = (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)
_CONVOLUTIONS = (
    kl.Conv1D, kl.Conv2D, kl.Conv3D, kl.DepthwiseConv1D, kl.DepthwiseConv2D,
    kl.SeparableConv1D, kl.SeparableConv2D,
)  # fmt: skip
_RECURRENT = (kl.SimpleRNN, kl.LSTM, kl.GRU)
# Tensors that scale, shift or are looked up, at whatever rank.
_NO_KERNELS = {"alpha", "beta", "gamma", "mean", "moving_mean", "moving_variance", "variance"}
_WHOLE_NUMBER_MODES = {None, "int8", "float8"}  # one weight a number; int4 packs two a byte

Shape = tuple[int, ...]


class MultiplyAdds(NamedTuple):
    """Multiply-adds of one example: all, and those whose weight is not zero."""

    total: int
    nonzero: int


def count_multiply_adds(model: keras.Model, example: Any) -> MultiplyAdds | None:
    """Returns the multiply-adds of weights with inputs that one example takes.

    The model is called on one example, and each call of a layer that holds kernels is
    counted, so shared and nested layers count as often as they are used. A weight counts
    once a place: a Dense or EinsumDense weight once a position of the other axes, a
    convolution's once an output position (a transposed one's: input position), borders
    included, a recurrent one's once a time step. Embeddings are looked up: none. Attention
    multiplies queries with keys and what comes of it with values besides; no weight is in
    these products, so all of them count. Not counted are biases, normalisation, activations,
    and attention of other classes than Keras's own.

    Args:
        model: A built Keras model; the layers' `call` is watched meanwhile.
        example: One example as the model takes it, shape `(1, ...)`.

    Returns:
        The counts, or `None` if they cannot be told: the model has a weight of rank 2 or
        more outside Keras's own kernel layers, a kernel layer of a class that is not
        Keras's own, a recurrent layer of another kind than SimpleRNN, LSTM and GRU, a
        layer inside TimeDistributed, or weights packed several to a byte.
    """
    entries = kernel_layers(model)
    calls: list[tuple[KernelLayer, Shape, Shape]] = []
    understood = _is_understood(model, entries)
    with _watched(entries if understood else [], calls):
        model(example, training=False)  # also where it is not: raises unless the example suits
    if not understood:
        return None
    total = nonzero = 0
    for entry, input_shape, output_shape in calls:
        for variable in entry.kernels:
            kernel = keras.ops.convert_to_numpy(variable)
            places = _places(entry.layer, variable, input_shape, output_shape)
            total += places * kernel.size
            nonzero += places * count_nonzero(kernel)
    between = _attention_products(model, calls)
    return MultiplyAdds(total + between, nonzero + between)


def _attention_products(model: keras.Model, calls: list[tuple[KernelLayer, Shape, Shape]]) -> int:
    """Returns the multiply-adds of queries with keys, and of their scores with values."""
    total = 0
    for layer in all_layers(model):
        if isinstance(layer, (kl.MultiHeadAttention, kl.GroupQueryAttention)):
            parts = {part.name: part for part in sublayers(layer)}
            # Of each call the shapes (1, *places, heads, size).
            sent = [
                [shape for entry, _, shape in calls if entry.layer is parts[name]]
                for name in ("query", "key", "value")
            ]
            for query, key, value in zip(*sent, strict=True):
                pairs = math.prod(query[:-1]) * math.prod(key[1:-2])  # of every head
                total += pairs * (query[-1] + value[-1])
    return total


def packs_weights(model: keras.Model) -> bool:
    """Whether a quantised layer stores several weights in one number, as int4 does."""
    modes = {getattr(layer, "quantization_mode", None) for layer in all_layers(model)}
    return not modes <= _WHOLE_NUMBER_MODES


@contextmanager
def _watched(
    entries: list[KernelLayer], calls: list[tuple[KernelLayer, Shape, Shape]]
) -> Iterator[None]:
    """Notes the shapes of every call of the layers; a quantised layer calls its own method."""
    watched = [(entry, name) for entry in entries for name in ("call", "quantized_call")]
    try:
        for entry, name in watched:
            setattr(entry.layer, name, _noting(entry, getattr(entry.layer, name), calls))
        yield
    finally:
        for entry, name in watched:
            if name in vars(entry.layer):
                delattr(entry.layer, name)


def _noting(
    entry: KernelLayer,
    call: Callable[..., Any],
    calls: list[tuple[KernelLayer, Shape, Shape]],
) -> Callable[..., Any]:
    def noting_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = call(inputs, *args, **kwargs)
        first = keras.tree.flatten(outputs)[0]  # a recurrent layer's states follow
        calls.append((entry, tuple(inputs.shape), tuple(first.shape)))
        return outputs

    return noting_call


def _is_understood(model: keras.Model, entries: list[KernelLayer]) -> bool:
    layers = all_layers(model)
    known = {id(weight) for entry in entries for weight in entry.layer.weights}
    return (
        not packs_weights(model)
        and not any(isinstance(layer, kl.TimeDistributed) for layer in layers)
        and all(type(entry.layer).__module__.startswith("keras.") for entry in entries)
        and all(isinstance(e.layer, _RECURRENT) for e in entries if isinstance(e.layer, kl.RNN))
        and all(
            len(weight.shape) < 2 or weight.name in _NO_KERNELS or id(weight) in known
            for weight in model.weights
        )
    )


def _places(
    layer: keras.Layer, kernel: keras.Variable, input_shape: Shape, output_shape: Shape
) -> int:
    """Returns how often each weight of the kernel is used for one example in one call."""
    if isinstance(layer, kl.Embedding):
        return 0
    if isinstance(layer, kl.RNN):
        return input_shape[1]
    if isinstance(layer, _TRANSPOSED):
        return math.prod(_spatial(layer, input_shape))
    if isinstance(layer, _CONVOLUTIONS):
        return math.prod(_spatial(layer, output_shape))
    if isinstance(layer, kl.EinsumDense):
        return _einsum_places(layer.equation, input_shape, kernel.shape)
    return math.prod(input_shape[1:-1])  # Dense


def _spatial(layer: keras.Layer, shape: Shape) -> Shape:
    return shape[2:] if layer.data_format == "channels_first" else shape[1:-1]


def _einsum_places(equation: str, input_shape: Shape, kernel_shape: Shape) -> int:
    """Returns the product of the input's axes, without the batch, that the kernel lacks."""
    letters = equation.split("->")[0].split(",")[1].strip()
    sizes = dict(zip(letters, kernel_shape, strict=True))
    shared = [sizes[letter] for letter in equation.split(",")[0] if letter in sizes]
    return math.prod(input_shape[1:]) // math.prod(shared)
