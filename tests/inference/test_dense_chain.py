"""A Dense chain as arrays: the model's outputs, with less work."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.inference.dense_chain import compact, read_dense_chain
from keras_pruning.inference.sparse_chain import sparse_forward


def image_network(activation="relu", use_bias=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5, 6), dtype="uint8"),
            kl.Rescaling(1 / 255, offset=-0.5),
            kl.Flatten(),
            kl.Dense(20, use_bias=use_bias),
            kl.Activation(activation),
            kl.Dropout(0.5),
            kl.Dense(15, activation=activation, use_bias=use_bias),
            kl.Dense(4, activation="softmax", use_bias=use_bias),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.1, w.shape) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (2500, 5, 6), np.uint8)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softplus", "linear"])
@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units])
@pytest.mark.parametrize("sparsity", [0, 0.6, 0.95])
def test_the_compact_chain_gives_the_models_outputs(images, activation, prune, sparsity):
    model = prune(image_network(activation), sparsity)
    outputs = sparse_forward(read_dense_chain(model), images)
    expected = model.predict(images, batch_size=500, verbose=0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)


def test_a_network_with_all_units_pruned_still_has_outputs(images):
    model = kp.prune_units(image_network(), 1)
    outputs = sparse_forward(read_dense_chain(model), images)
    np.testing.assert_allclose(outputs, model.predict(images, verbose=0), rtol=1e-5)


def test_units_that_are_constant_or_unheard_are_left_out():
    model = image_network()
    first, second = model.layers[2], model.layers[5]
    kernel = keras.ops.convert_to_numpy(first.kernel).copy()
    kernel[:, 3] = 0  # constant: its bias alone speaks
    first.kernel.assign(kernel)
    kernel = keras.ops.convert_to_numpy(second.kernel).copy()
    kernel[7] = 0  # unheard
    second.kernel.assign(kernel)
    steps = compact(read_dense_chain(model))
    assert [step.kernel.shape for step in steps] == [(30, 18), (18, 15), (15, 4)]


def test_a_relu_layer_is_read_as_an_activation():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(4), kl.ReLU(), kl.Dense(2)])
    assert [s.activation for s in read_dense_chain(model)] == [
        keras.activations.relu,
        keras.activations.linear,
    ]


@pytest.mark.parametrize(
    "layers",
    [
        [kl.Conv1D(3, 2), kl.Flatten(), kl.Dense(2)],
        [kl.Dense(3), kl.Flatten(), kl.Dense(2)],  # a Dense layer over a longer axis
        [kl.Flatten(), kl.Dense(3), kl.LayerNormalization(), kl.Dense(2)],
        [kl.Flatten(), kl.Dense(3, activation="softmax"), kl.Dense(2)],
        [kl.Flatten(), kl.Dense(3), kl.ReLU(max_value=1.0), kl.Dense(2)],
        [kl.Flatten(), kl.Dense(3, kernel_regularizer="l2"), kl.Dense(2)],
        [kl.Flatten(), kl.Dense(3, dtype="mixed_bfloat16"), kl.Dense(2)],
        [kl.Flatten(), kl.Dense(3), kl.Rescaling(2.0), kl.Dense(2)],
        [kl.Flatten(data_format="channels_first"), kl.Dense(3), kl.Dense(2)],
        [kl.Flatten(), kl.Dense(3, activation="relu"), kl.BatchNormalization()],  # none follows
        [kl.Flatten(), kl.Dense(3, activation="relu"), kl.BatchNormalization(), kl.ReLU()],
        [kl.BatchNormalization(), kl.Flatten(), kl.Dense(2)],  # over the axis of length 3
        [kl.Flatten(), kl.BatchNormalization(dtype="mixed_bfloat16"), kl.Dense(2)],
        [kl.Flatten()],
    ],
)
def test_what_is_more_than_a_dense_chain_is_left_to_keras(layers):
    assert read_dense_chain(keras.Sequential([keras.Input((4, 3)), *layers])) is None


def network_with_norms(activation="relu"):
    """BatchNormalization in front of, behind and without an activation, and on the inputs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5, 6), dtype="uint8"),
            kl.Rescaling(1 / 255, offset=-0.5),
            kl.Flatten(),
            kl.BatchNormalization(),
            kl.Dense(20, use_bias=False),
            kl.BatchNormalization(),
            kl.Activation(activation),
            kl.Dense(15, activation=activation),
            kl.BatchNormalization(scale=False, epsilon=0.1),
            kl.Dropout(0.5),
            kl.BatchNormalization(axis=1, center=False),
            kl.Dense(7),
            kl.BatchNormalization(),
            kl.Dense(4),
            kl.BatchNormalization(),
            kl.Activation("softmax"),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0.1, 0.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units])
@pytest.mark.parametrize("sparsity", [0, 0.6])
def test_batch_normalization_is_folded_into_the_dense_layers(images, activation, prune, sparsity):
    model = prune(network_with_norms(activation), sparsity)
    outputs = sparse_forward(read_dense_chain(model), images)
    expected = model.predict(images, batch_size=500, verbose=0)
    assert np.ptp(expected, axis=0).min() > 1e-3  # the outputs tell the examples apart
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)


def test_folding_keeps_exactly_the_zeros_of_the_kernels():
    model = kp.prune_weights(network_with_norms(), 0.6)
    kernels = [
        keras.ops.convert_to_numpy(layer.kernel)
        for layer in model.layers
        if isinstance(layer, kl.Dense)
    ]
    for step, kernel in zip(read_dense_chain(model), kernels, strict=True):
        np.testing.assert_array_equal(step.kernel == 0, kernel == 0)


def test_folding_takes_the_weights_that_are_given(images):
    model = network_with_norms()
    weights = [1.5 * w for w in model.get_weights()]
    outputs = sparse_forward(read_dense_chain(model, weights), images)
    model.set_weights(weights)
    np.testing.assert_allclose(outputs, model.predict(images, verbose=0), rtol=1e-4, atol=1e-6)


def test_folding_by_hand():
    norm = kl.BatchNormalization(epsilon=0.0)
    model = keras.Sequential([keras.Input((1,)), kl.Dense(2), norm])
    model.set_weights(
        [
            np.array([[3.0, 0.0]]),  # kernel
            np.array([1.0, 2.0]),  # bias
            np.array([2.0, 5.0]),  # gamma
            np.array([10.0, 20.0]),  # beta
            np.array([7.0, 1.0]),  # moving mean
            np.array([4.0, 25.0]),  # moving variance
        ]
    )
    (step,) = read_dense_chain(model)
    np.testing.assert_array_equal(step.kernel, [[3.0, 0.0]])
    np.testing.assert_array_equal(step.bias, [(1 - 7) * 2 / 2 + 10, (2 - 1) * 5 / 5 + 20])


@keras.saving.register_keras_serializable()
class Thrice(kl.Dropout):
    def call(self, x, training=None):
        return 3 * x


@keras.saving.register_keras_serializable()
class Twice(keras.Sequential):
    def call(self, x, training=None, mask=None):
        return 2 * super().call(x)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: keras.Sequential([x, kl.Dense(3), Thrice(0.5), kl.Dense(2)]),
        lambda x: Twice([x, kl.Dense(3), kl.Dense(2)]),
        lambda x: keras.Sequential([x, kl.Rescaling(2.0, offset=[1.0, 2, 3, 4]), kl.Dense(2)]),
        lambda x: keras.Sequential([x, kl.Rescaling(1 / 3, dtype="float16"), kl.Dense(2)]),
        lambda x: keras.Sequential([x, kl.Dense(3), kl.Dropout(0.5, dtype="float16")]),
        lambda x: keras.Sequential([keras.Input((4,), dtype="float16"), kl.Dense(2)]),
    ],
)
def test_what_only_looks_like_a_chain_gives_the_models_outputs(model):
    keras.utils.set_random_seed(0)
    model = model(keras.Input((4,)))
    x = np.random.default_rng(0).standard_normal((20, 4)).astype("float32")
    outputs, expected = kp.SparseModel(model).predict(x), model.predict_on_batch(x)
    assert outputs.dtype == expected.dtype
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
