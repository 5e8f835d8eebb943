"""Layers as products of rows and a matrix: the sums are those that plain Keras computes."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_pruning.models import linear_maps


def first(**options):
    return {"data_format": "channels_first", **options}


# Each: a layer, and the shape of one example.
CASES = {
    "dense": (kl.Dense(5), (7,)),
    "dense without bias": (kl.Dense(5, use_bias=False), (7,)),
    "dense on a sequence": (kl.Dense(5), (3, 7)),
    "dense on images": (kl.Dense(5), (3, 2, 7)),
    "dense of one input": (kl.Dense(3), (1,)),
    "einsum, last axis": (kl.EinsumDense("...x,xy->...y", 7, bias_axes="y"), (5, 4)),
    "einsum, ellipsis of none": (kl.EinsumDense("...x,xy->...y", 7, bias_axes="y"), (4,)),
    "einsum, two axes of units": (
        kl.EinsumDense("abc,cde->abde", (None, 3, 4), bias_axes="de"),
        (5, 6),
    ),
    "einsum, two axes of inputs": (
        kl.EinsumDense("abcd,cde->abe", (None, 7), bias_axes="e"),
        (5, 3, 4),
    ),
    "einsum, inputs in another order": (
        kl.EinsumDense("abcd,dce->abe", (None, 7), bias_axes="e"),
        (5, 3, 4),
    ),
    "einsum, units before two axes of inputs": (
        kl.EinsumDense("abcd,ecd->abe", (None, 7), bias_axes="e"),
        (5, 3, 4),
    ),
    "einsum, units before inputs": (kl.EinsumDense("ab,cb->ac", 6, bias_axes="c"), (5,)),
    "einsum, units before rows": (kl.EinsumDense("abc,cd->adb", (7, None)), (5, 3)),
    "einsum, a kernel for each place": (
        kl.EinsumDense("abc,bcd->abd", (5, 7), bias_axes="bd"),
        (5, 3),
    ),
    "einsum, a kernel for each place, in another order": (
        kl.EinsumDense("abcd,dbe->acbe", (None, 5, 7), bias_axes="be"),
        (5, 2, 3),
    ),
    "conv1d": (kl.Conv1D(4, 3), (9, 3)),
    "conv1d, causal, dilated": (
        kl.Conv1D(4, 3, padding="causal", dilation_rate=2),
        (9, 3),
    ),
    "conv1d, causal, strided": (kl.Conv1D(4, 3, padding="causal", strides=2), (9, 3)),
    "conv1d, same, strided": (kl.Conv1D(4, 3, strides=2, padding="same"), (9, 3)),
    "conv1d, same, strides beyond the window": (
        kl.Conv1D(4, 2, strides=3, padding="same"),
        (10, 3),
    ),
    "conv1d, groups, dilated": (kl.Conv1D(6, 3, groups=2, dilation_rate=3), (9, 4)),
    "conv1d, same, dilated": (kl.Conv1D(4, 4, padding="same", dilation_rate=2), (9, 2)),
    "conv1d, channels first": (kl.Conv1D(4, 3, **first(padding="same")), (3, 9)),
    "conv2d, groups, strides": (
        kl.Conv2D(6, (3, 2), strides=(2, 1), padding="same", groups=3),
        (8, 7, 3),
    ),
    "conv2d, a group a channel": (kl.Conv2D(6, 3, groups=3), (8, 7, 3)),
    "conv2d, dilated": (kl.Conv2D(4, 3, dilation_rate=(2, 3)), (9, 8, 2)),
    "conv2d, same, large window": (kl.Conv2D(4, 5, strides=3, padding="same"), (10, 11, 2)),
    "conv2d, one by one": (kl.Conv2D(4, 1, strides=2), (7, 6, 5)),
    "conv2d, no bias": (kl.Conv2D(4, 3, use_bias=False), (7, 6, 2)),
    "conv2d, channels first": (
        kl.Conv2D(6, (3, 2), **first(strides=(2, 1), padding="same", groups=3)),
        (3, 8, 7),
    ),
    "conv3d": (kl.Conv3D(4, 2, strides=2, padding="same"), (5, 4, 6, 2)),
    "conv3d, dilated": (kl.Conv3D(3, (2, 1, 3), dilation_rate=(2, 1, 1)), (5, 4, 6, 2)),
    "depthwise1d": (kl.DepthwiseConv1D(3, depth_multiplier=2), (8, 3)),
    "depthwise2d": (
        kl.DepthwiseConv2D(3, depth_multiplier=2, padding="same", strides=2),
        (8, 7, 3),
    ),
    "depthwise2d, dilated": (kl.DepthwiseConv2D(3, dilation_rate=2), (8, 7, 3)),
    "depthwise2d, channels first": (
        kl.DepthwiseConv2D(3, **first(depth_multiplier=2)),
        (3, 8, 7),
    ),
    "separable1d": (kl.SeparableConv1D(5, 3, strides=2), (8, 3)),
    "separable2d": (kl.SeparableConv2D(5, 3, depth_multiplier=2, padding="same"), (8, 7, 3)),
    # Not as wide as it has filters: there Keras 3.15 on TensorFlow adds the bias along the width.
    "separable2d, channels first": (kl.SeparableConv2D(5, 3, **first()), (3, 8, 9)),
    "transposed1d, same": (kl.Conv1DTranspose(4, 3, strides=2, padding="same"), (6, 3)),
    "transposed1d, output padding": (
        kl.Conv1DTranspose(4, 5, strides=3, padding="same", output_padding=1),
        (6, 3),
    ),
    "transposed1d, dilated": (kl.Conv1DTranspose(4, 3, dilation_rate=2), (6, 3)),
    "transposed2d, valid": (kl.Conv2DTranspose(4, 3, strides=2), (5, 6, 3)),
    "transposed2d, gaps": (kl.Conv2DTranspose(4, 2, strides=3), (5, 6, 3)),
    "transposed2d, same": (kl.Conv2DTranspose(4, 4, strides=2, padding="same"), (5, 6, 3)),
    "transposed2d, same, no stride": (kl.Conv2DTranspose(4, 2, padding="same"), (5, 6, 3)),
    "transposed2d, output padding": (
        kl.Conv2DTranspose(4, 3, strides=2, padding="same", output_padding=1),
        (5, 6, 3),
    ),
    "transposed2d, valid, output padding": (
        kl.Conv2DTranspose(4, 3, strides=2, output_padding=1),
        (5, 6, 3),
    ),
    "transposed2d, one output padding an axis": (
        kl.Conv2DTranspose(4, (3, 5), strides=(2, 3), padding="same", output_padding=(1, 2)),
        (5, 6, 3),
    ),
    "transposed2d, same, dilated": (
        kl.Conv2DTranspose(4, 3, padding="same", dilation_rate=2),
        (5, 6, 3),
    ),
    "transposed2d, channels first": (
        kl.Conv2DTranspose(4, 3, **first(strides=2, padding="same")),
        (3, 5, 6),
    ),
    "transposed3d": (kl.Conv3DTranspose(4, 3, strides=2, padding="same"), (3, 4, 2, 3)),
}


def called(layer, x):
    """What plain Keras computes; skips what the backend does not run."""
    if not layer.built:
        layer.build((None, *x.shape[1:]))
    rng = np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    try:
        return keras.ops.convert_to_numpy(layer(x))
    except Exception as error:
        pytest.skip(f"{keras.backend.backend()} does not run it: {error}")


def example(shape, examples=4):
    return np.random.default_rng(0).normal(size=(examples, *shape)).astype("float32")


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def sums(maps, x, wanted):
    """The rows times the matrices, one after the other, with the bias: `(rows, units)`."""
    rows = maps[0].rows(x, wanted)
    for part in maps:
        rows = rows.reshape(len(rows), len(part.to_matrix(array(part.kernel))), -1)
        rows = np.einsum("rgf,gfu->rgu", rows, part.to_matrix(array(part.kernel)))
        if part.bias is not None:
            rows = rows + array(part.bias).reshape(1, *rows.shape[1:])
    return rows.reshape(len(rows), -1)


@pytest.mark.parametrize(("layer", "shape"), CASES.values(), ids=CASES)
def test_rows_times_matrix_is_what_the_layer_answers(layer, shape):
    x = example(shape)
    y = called(layer, x)
    maps = linear_maps(layer)
    answers = maps[-1].answers(y)
    assert maps[0].count(x) == len(answers)
    assert answers.size == y.size
    wanted = np.random.default_rng(2).permutation(len(answers))  # in any order
    np.testing.assert_allclose(sums(maps, x, wanted), answers[wanted], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "shape"), CASES.values(), ids=CASES)
def test_a_few_rows_are_those_of_all_rows(layer, shape):
    x = example(shape)
    called(layer, x)
    maps = linear_maps(layer)
    everything = maps[0].rows(x, np.arange(maps[0].count(x)))
    some = np.arange(maps[0].count(x))[::-3]
    np.testing.assert_array_equal(maps[0].rows(x, some), everything[some])


@pytest.mark.parametrize(("layer", "shape"), CASES.values(), ids=CASES)
def test_a_kernel_comes_back_from_its_matrix(layer, shape):
    called(layer, example(shape))
    maps = linear_maps(layer)
    for part in maps:
        kernel = array(part.kernel)
        groups, features, units = part.to_matrix(kernel).shape
        assert groups * features * units == kernel.size
        np.testing.assert_array_equal(part.to_kernel(part.to_matrix(kernel)), kernel)
    assert [id(part.kernel) for part in maps] == [
        id(variable) for variable in layer.weights if variable.name.endswith("kernel")
    ]
    assert maps[-1].bias is layer.bias


class Scaled(kl.Dense):
    """A Dense layer that computes something of its own."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Scaled(3), (4,)),
        (kl.Embedding(5, 3), ()),
        (kl.LSTM(3), (4, 2)),
        (kl.BatchNormalization(), (4,)),
        # The bias goes along an axis of rows, or along one of two axes of units.
        (kl.EinsumDense("abc,cd->abd", (5, 7), bias_axes="bd"), (5, 3)),
        (kl.EinsumDense("abc,cde->abde", (None, 3, 4), bias_axes="e"), (5, 6)),
        # The input is summed over an axis that the kernel has not.
        (kl.EinsumDense("abc,cd->ad", 7), (5, 3)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_other_layers_are_no_products(layer, shape):
    layer.build((None, *shape))
    assert linear_maps(layer) == []


def test_a_layer_without_weights_yet_is_no_product():
    assert linear_maps(kl.Dense(3)) == []


def test_a_quantized_layer_is_no_product():
    layer = kl.Dense(3)
    layer.build((None, 4))
    layer.quantize("int8")
    assert linear_maps(layer) == []
