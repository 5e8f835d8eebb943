"""Scores of weights and units that look at what the layers hear."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs_of(model, name, x):
    layer = model.get_layer(name)
    return keras.Model(model.inputs, layer.output).predict(x, verbose=0)


@pytest.fixture
def dense():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            kl.Dense(5, "relu", name="first"),
            kl.Dense(4, "relu", name="second"),
            kl.Dense(3, name="answers"),
        ]
    )


def test_a_weight_counts_as_much_as_what_it_multiplies(dense):
    x = numbers(50, 6)
    scores = kp.activation_scores(dense, x, batch_size=7)
    kernel = dense.get_layer("second").get_weights()[0]
    heard = np.sqrt(np.mean(outputs_of(dense, "first", x) ** 2, axis=0))
    np.testing.assert_allclose(scores["second"][0], np.abs(kernel) * heard[:, None], rtol=1e-5)
    assert scores.keys() == {"first", "second", "answers"}


def test_a_unit_counts_as_much_as_what_it_sends_and_what_reads_it(dense):
    x = numbers(50, 6)
    scores = kp.activation_scores(dense, x, method="units")
    sent = np.sqrt(np.mean(outputs_of(dense, "first", x) ** 2, axis=0))
    read = np.linalg.norm(dense.get_layer("second").get_weights()[0], axis=1)
    np.testing.assert_allclose(scores["first"], sent * read, rtol=1e-5)


def test_a_filter_behind_which_stand_a_window_and_a_flatten():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = kl.Conv2D(4, 3, activation="relu", name="first")(inputs)
    x = kl.Conv2D(3, 2, activation="relu", name="second")(x)
    model = keras.Model(inputs, kl.Dense(2, name="answers")(kl.Flatten()(x)))
    images = numbers(20, 6, 6, 2)
    scores = kp.activation_scores(model, images, method="units")
    sent = outputs_of(model, "second", images)  # (20, 3, 3, 3)
    kernel = model.get_layer("answers").get_weights()[0].reshape(3, 3, 3, 2)
    of_places = np.mean(sent**2, axis=0) * np.sum(kernel**2, axis=-1)
    np.testing.assert_allclose(scores["second"], np.sqrt(of_places.sum(axis=(0, 1))), rtol=1e-4)
    sent = outputs_of(model, "first", images)  # (20, 4, 4, 4), of which a window sees 3 by 3
    kernel = model.get_layer("second").get_weights()[0]
    total = np.zeros(4)
    for row, column in np.ndindex(2, 2):
        seen = sent[:, row : row + 3, column : column + 3]
        total += np.mean(seen**2, axis=(0, 1, 2)) * np.sum(kernel[row, column] ** 2, axis=-1)
    np.testing.assert_allclose(scores["first"], np.sqrt(total), rtol=1e-4)


def test_units_that_meet_in_a_sum_have_one_score():
    inputs = keras.Input((5,))
    first = kl.Dense(4, name="first")(inputs)
    second = kl.Dense(4, name="second")(first)
    answers = kl.Dense(2, name="answers")(kl.Add()([first, second]))
    model = keras.Model(inputs, answers)
    scores = kp.activation_scores(model, numbers(30, 5), method="units")
    np.testing.assert_array_equal(scores["first"], scores["second"])
    pruned = kp.prune_units(model, 0.5, score=scores)
    assert (kp.summary(pruned).set_index("layer").loc[["first", "second"], "zero_units"] == 2).all()


def test_a_unit_that_never_speaks_goes_first(dense):
    kernel, bias = dense.get_layer("first").get_weights()
    bias[2] = -1000.0
    dense.get_layer("first").set_weights([kernel, bias])
    scores = kp.activation_scores(dense, numbers(50, 6), method="units")
    assert scores["first"][2] == 0 and (np.delete(scores["first"], 2) > 0).any()
    pruned = kp.prune_units(dense, 0.2, layers=["first"], score=scores)
    assert not pruned.get_layer("first").get_weights()[0][:, 2].any()


def test_the_scores_of_a_separable_convolution_are_of_both_its_kernels():
    model = keras.Sequential([keras.Input((6, 6, 2)), kl.SeparableConv2D(3, 3), kl.Flatten()])
    model.add(kl.Dense(2))
    images = numbers(10, 6, 6, 2)
    layer = model.layers[0]
    scores = kp.activation_scores(model, images)
    middle = kl.DepthwiseConv2D(3, use_bias=False)
    middle.build((None, 6, 6, 2))
    middle.kernel.assign(layer.depthwise_kernel)
    heard = keras.ops.convert_to_numpy(middle(images)).reshape(-1, 2)
    kernel = keras.ops.convert_to_numpy(layer.pointwise_kernel)
    expected = np.abs(kernel) * np.sqrt(np.mean(heard**2, axis=0))[:, None]
    np.testing.assert_allclose(scores[layer.name][0], expected, rtol=1e-4)
    assert scores[f"{layer.name}/depthwise_kernel"][0].shape == layer.depthwise_kernel.shape


def test_a_model_that_cannot_be_followed_has_no_scores_of_units():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = kl.Dense(4), kl.Dense(2)

        def call(self, x):
            looked = keras.ops.convert_to_numpy(x).sum()
            return self.second(self.first(x)) * float(looked == looked)

    model = Own()
    model(numbers(2, 3))
    assert kp.activation_scores(model, numbers(5, 3)).keys() == {
        model.first.name,
        model.second.name,
    }
    with pytest.raises(ValueError, match="shows no graph"):
        kp.activation_scores(model, numbers(5, 3), method="units")


def test_units_that_something_unseen_reads_have_no_score():
    inputs = keras.Input((5, 4))
    x = kl.LSTM(3)(kl.Dense(6, name="heard_by_lstm")(inputs))
    x = kl.Dense(7, "relu", name="heard_by_dense")(x)
    model = keras.Model(inputs, kl.Dense(2)(x))
    scores = kp.activation_scores(model, np.ones((4, 5, 4), "float32"), method="units")
    assert list(scores) == ["heard_by_dense"]


def test_inputs_that_are_not_finite_are_refused(dense):
    with pytest.raises(ValueError, match="x holds NaN"):
        kp.activation_scores(dense, np.full((4, 6), np.nan))


def test_an_unknown_method_is_named(dense):
    with pytest.raises(ValueError, match="method must be 'weights' or 'units'.*'filters'"):
        kp.activation_scores(dense, numbers(5, 6), method="filters")
