"""What is found in a Keras model, and that a copy is a copy."""

import random
import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_pruning.models.copies import copy_model
from keras_pruning.models.functional import batch_norms_after, linear_chain
from keras_pruning.models.kernels import kernel_layers


class Plain(keras.Model):
    """A subclassed model that Keras knows nothing of."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.first = kl.Dense(width, name="first")
        self.last = kl.Dense(2, name="last")

    def call(self, inputs):
        return self.last(self.first(inputs))

    def get_config(self):
        return {"width": self.width, **super().get_config()}


class Doubled(kl.Layer):
    def call(self, inputs):
        return 2 * inputs


def custom_loss(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def names(model):
    return [k.name for k in kernel_layers(model)]


def outputs(model):
    return [k.name for k in kernel_layers(model) if k.is_output]


def kernels(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    return [tuple(v.shape) for entry in kernel_layers(model) for v in entry.kernels]


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (kl.Dense(3), (4,), [(4, 3)]),
        (kl.EinsumDense("ab,bc->ac", 3), (4,), [(4, 3)]),
        (kl.Conv1D(3, 2), (8, 4), [(2, 4, 3)]),
        (kl.Conv2D(3, 2), (8, 8, 4), [(2, 2, 4, 3)]),
        (kl.Conv3D(3, 2), (8, 8, 8, 4), [(2, 2, 2, 4, 3)]),
        (kl.Conv1DTranspose(3, 2), (8, 4), [(2, 3, 4)]),
        (kl.Conv2DTranspose(3, 2), (8, 8, 4), [(2, 2, 3, 4)]),
        (kl.DepthwiseConv2D(2, depth_multiplier=3), (8, 8, 4), [(2, 2, 4, 3)]),
        (kl.SeparableConv2D(3, 2), (8, 8, 4), [(2, 2, 4, 1), (1, 1, 4, 3)]),
        (kl.Embedding(9, 4), (5,), [(9, 4)]),
        (kl.SimpleRNN(3), (5, 4), [(4, 3), (3, 3)]),
        (kl.GRU(3), (5, 4), [(4, 9), (3, 9)]),
        (kl.LSTM(3), (5, 4), [(4, 12), (3, 12)]),
        (kl.ConvLSTM1D(3, 2), (5, 8, 4), [(2, 4, 12), (2, 3, 12)]),
    ],
)
def test_kernels_of_each_layer(layer, shape, expected):
    assert kernels(layer, shape) == expected


def test_layers_inside_wrappers_and_attention_are_found():
    inputs = keras.Input((5, 4))
    x = kl.Bidirectional(kl.LSTM(3, return_sequences=True, name="lstm"), name="both")(inputs)
    x = kl.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = kl.TimeDistributed(kl.Dense(2, name="dense"), name="each")(x)
    assert names(keras.Model(inputs, x)) == [
        "both/forward_lstm",
        "both/backward_lstm",
        "attention/query",
        "attention/key",
        "attention/value",
        "attention/attention_output",
        "each/dense",
    ]


def test_nested_layers_carry_the_name_of_their_model():
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="d")], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, kl.Dense(2, name="d")])
    assert names(model) == ["inner/d", "d"]


def test_a_shared_layer_is_listed_once():
    shared = kl.Dense(4, name="shared")
    inputs = keras.Input((4,))
    assert names(keras.Model(inputs, shared(shared(inputs)))) == ["shared"]


# Outputs


def test_the_last_dense_layer_is_the_output_also_behind_an_activation():
    model = keras.Sequential(
        [keras.Input((4,)), kl.Dense(3, name="a"), kl.Dense(2, name="b"), kl.Softmax()]
    )
    assert outputs(model) == ["b"]


def test_each_head_is_an_output():
    inputs = keras.Input((4,))
    x = kl.Dense(3, name="body")(inputs)
    model = keras.Model(inputs, [kl.Dense(2, name="one")(x), kl.Dense(2, name="two")(x)])
    assert outputs(model) == ["one", "two"]


def test_both_sides_of_a_sum_are_outputs():
    inputs = keras.Input((4,))
    body = kl.Dense(3, name="body")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="one")(body) + kl.Dense(2, name="two")(body))
    assert outputs(model) == ["one", "two"]


def test_the_output_may_lie_in_a_nested_model():
    inner = keras.Sequential(
        [keras.Input((3,)), kl.Dense(3, name="a"), kl.Dense(2, name="b")], name="inner"
    )
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="first"), inner])
    assert outputs(model) == ["inner/b"]


def test_a_nested_model_without_kernels_is_looked_through():
    inner = keras.Sequential([keras.Input((2,)), kl.ReLU()], name="inner")
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2, name="first"), inner])
    assert outputs(model) == ["first"]


def test_of_a_subclassed_model_the_last_layer_is_the_output():
    model = Plain()
    model(np.ones((1, 3)))
    assert outputs(model) == ["last"]


class Sampling(keras.Model):
    """Draws random numbers at inference, from a state of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = kl.Dense(2, name="head")
        self.body = kl.Dense(4, activation="relu", name="body")
        self.noise = keras.random.SeedGenerator(0)

    def call(self, inputs):
        hidden = self.body(inputs)
        return self.head(hidden + keras.random.normal((1, 4), seed=self.noise))


def test_finding_the_heads_leaves_the_model_as_it_was():
    model = Sampling()
    model(np.ones((2, 3), "float32"))
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    assert outputs(model) == ["head"]
    for variable, values in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), values)
    assert "call" not in vars(model.head) and "call" not in vars(model.body)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_network_whose_units_are_all_dead_has_the_same_heads(value):
    model = Sampling()
    model(np.ones((2, 3), "float32"))
    model.body.kernel.assign(np.full((3, 4), value, "float32"))
    assert outputs(model) == ["head"]


class Skipping(keras.Model):
    """Its hidden layer counts for nothing yet: a scale of zero is behind it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = kl.Dense(4, name="first")
        self.branch = kl.Dense(4, name="branch")
        self.scale = kl.BatchNormalization(gamma_initializer="zeros")
        self.last = kl.Dense(2, name="last")

    def call(self, inputs):
        x = self.first(inputs)
        return self.last(x + self.scale(self.branch(x)))


def test_a_layer_that_counts_for_nothing_yet_is_no_output():
    model = Skipping()
    model(np.ones((2, 3), "float32"))
    assert outputs(model) == ["last"]


class Decoder(keras.Model):
    """A loop of the user's own around a cell, and no `call` of which Keras would know."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.cell = kl.LSTMCell(4, name="cell")
        self.read = kl.Dense(3, name="read")

    def call(self, inputs):
        state = [keras.ops.zeros((inputs.shape[0], 4))] * 2
        for step in range(inputs.shape[1]):
            output, state = self.cell(inputs[:, step], state)
        return self.read(output)


def test_a_recurrent_cell_without_its_layer_has_its_kernels():
    model = Decoder()
    model(np.ones((2, 3, 5), "float32"))
    assert names(model) == ["cell", "read"]
    assert [tuple(k.shape) for k in kernel_layers(model)[0].kernels] == [(5, 16), (4, 16)]
    assert outputs(model) == ["read"]


class Pair(keras.Model):
    """Two built models and no call, as a GAN has them."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second


def test_a_model_without_a_call_has_the_kernels_of_its_built_parts():
    parts = [keras.Sequential([keras.Input((3,)), kl.Dense(2, name="d")], name=n) for n in "ab"]
    assert names(Pair(*parts)) == ["a/d", "b/d"]


def test_a_copy_does_not_move_pythons_random_numbers():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(2)])
    state = random.getstate()
    copy_model(model)
    assert random.getstate() == state


# BatchNormalization


def norms_after(model, name):
    return [norm.name for norm in batch_norms_after(model, model.get_layer(name))]


def test_a_norm_behind_activation_and_pooling_belongs_to_the_layer():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            kl.Conv2D(3, 3, name="conv"),
            kl.BatchNormalization(name="first"),
            kl.ReLU(),
            kl.MaxPooling2D(),
            kl.BatchNormalization(name="second"),
            kl.Conv2D(3, 3, name="next"),
            kl.BatchNormalization(name="of_next"),
        ]
    )
    assert norms_after(model, "conv") == ["first", "second"]
    assert norms_after(model, "next") == ["of_next"]


def test_a_norm_behind_a_sum_or_flatten_belongs_to_no_layer_alone():
    inputs = keras.Input((4, 4))
    x = kl.Dense(4, name="dense")(inputs)
    summed = kl.BatchNormalization(name="of_sum")(x + inputs)
    flat = kl.BatchNormalization(name="of_flat")(kl.Flatten()(x))
    assert norms_after(keras.Model(inputs, [summed, flat]), "dense") == []


def test_a_norm_over_another_axis_is_left_alone():
    inputs = keras.Input((5, 4))
    x = kl.BatchNormalization(axis=1, name="time")(kl.Dense(5, name="dense")(inputs))
    assert norms_after(keras.Model(inputs, x), "dense") == []


def test_a_norm_shared_by_two_layers_is_left_alone():
    norm = kl.BatchNormalization(name="shared")
    inputs = keras.Input((4,))
    one, two = kl.Dense(4, name="one")(inputs), kl.Dense(4, name="two")(inputs)
    model = keras.Model(inputs, [norm(one), norm(two)])
    assert norms_after(model, "one") == []
    assert norms_after(model, "two") == []


def test_a_norm_inside_a_nested_model_is_found():
    inner = keras.Sequential(
        [keras.Input((4,)), kl.Dense(3, name="dense"), kl.BatchNormalization(name="norm")]
    )
    model = keras.Sequential([keras.Input((4,)), inner, kl.Dense(2)])
    found = batch_norms_after(model, inner.get_layer("dense"))
    assert [norm.name for norm in found] == ["norm"]


# Chains


def test_a_sequential_model_is_a_chain_and_a_branch_is_not():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(4), kl.ReLU()])
    assert [type(layer) for layer in linear_chain(model)] == [kl.InputLayer, kl.Dense, kl.ReLU]
    inputs = keras.Input((4,))
    x = kl.Dense(4)(inputs)
    assert linear_chain(keras.Model(inputs, kl.Add()([x, kl.ReLU()(x)]))) is None
    assert linear_chain(keras.Model(inputs, x + 1.0)) is None


# Copies


def sample_models():
    inputs = keras.Input((4,))
    hidden = kl.Dense(4, name="hidden")(inputs)
    normalization = kl.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(5, 3, (50, 4)))
    subclassed = Plain()
    subclassed(np.ones((1, 4)))
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(3)], name="inner")
    return {
        "sequential": keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Dense(2)]),
        "sum": keras.Model(inputs, hidden + inputs),
        "normalization": keras.Sequential([keras.Input((4,)), normalization, kl.Dense(2)]),
        "lambda": keras.Sequential([keras.Input((4,)), kl.Lambda(lambda t: t * 3), kl.Dense(2)]),
        "custom layer": keras.Sequential([keras.Input((4,)), Doubled(), kl.Dense(2)]),
        "subclassed": subclassed,
        "nested": keras.Sequential([keras.Input((4,)), inner, kl.Dense(2)]),
    }


@pytest.mark.parametrize("kind", list(sample_models()))
def test_a_copy_gives_the_same_outputs_and_shares_no_weight(kind):
    model = sample_models()[kind]
    copied = copy_model(model)
    x = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(copied.predict(x, verbose=0), expected, rtol=1e-6)
    copied.set_weights([np.zeros_like(w) for w in copied.get_weights()])
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-6)
    assert names(copied) == names(model)


def test_a_copy_keeps_the_compile_state_and_the_optimizer_state():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), custom_loss, metrics=["mae"])
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    copied = copy_model(model)
    assert int(copied.optimizer.iterations) == 1
    assert float(copied.optimizer.learning_rate) == pytest.approx(0.01)
    assert copied.evaluate(np.ones((4, 4)), np.ones((4, 2)), verbose=0) == pytest.approx(
        model.evaluate(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    )


def test_a_model_compiled_but_not_trained_is_copied_without_a_warning():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    model.compile("adam", "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert copy_model(model).compiled


def test_a_copy_of_an_untrained_model_takes_no_memory_for_its_optimizer():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    copied = copy_model(model)
    assert not copied.optimizer.built
    assert copied.optimizer is not model.optimizer
    copied.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    assert float(copied.optimizer.learning_rate) == pytest.approx(0.01)
    assert copied.get_compile_config()["optimizer"]["config"]["learning_rate"] == pytest.approx(
        0.01
    )


# Bad input


def test_something_else_than_a_model_is_refused():
    with pytest.raises(TypeError, match="Expected a Keras model. Received: list"):
        kernel_layers([kl.Dense(2)])


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="Model 'young' is not built.*Give it an Input layer"):
        kernel_layers(keras.Sequential([kl.Dense(2)], name="young"))


class Wordless(keras.Model):
    """A model of which Keras cannot know how it was made."""

    def __init__(self, made_of):
        super().__init__(name="odd")
        self.dense = kl.Dense(made_of.size)

    def call(self, inputs):
        return self.dense(inputs)


def test_a_model_that_cannot_be_copied_says_why_in_few_words():
    model = Wordless(np.zeros(3))
    model(np.ones((1, 2)))
    with pytest.raises(ValueError, match="'odd' .Wordless. cannot be copied.*get_config") as found:
        copy_model(model)
    assert len(str(found.value)) < 700
