"""Which units could go once they are pruned: said beforehand, and then tried."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from test_shrink import RANDOM_MODELS, RandomModel

from keras_pruning.channels.shrinking import shrink
from keras_pruning.channels.walk import prunable_groups
from keras_pruning.models.functional import batch_norms_after
from keras_pruning.models.kernels import kernel_layers


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def image(channels=3, size=6):
    return keras.Input((size, size, channels))


def conv(name, count=4, window=3, **options):
    return kl.Conv2D(count, window, padding="same", name=name, **options)


def head(x):
    return kl.Dense(2, name="head")(kl.Flatten()(x))


def chain():
    x = inputs = keras.Input((5,))
    for name, activation in (("a", "relu"), ("b", "sigmoid"), ("c", "softplus")):
        x = kl.Dense(4, activation, name=name)(x)
    return keras.Model(inputs, kl.Dense(2, name="head")(x))


def sigmoid_before_padding():
    inputs = image()
    x = conv("a", activation="sigmoid")(inputs)
    x = conv("b", activation="softplus")(x)
    return keras.Model(inputs, head(conv("c", window=1)(x)))


def constant_through_batch_norm_before_padding():
    """BatchNormalization behind `a` alone goes with its units; a sigmoid behind it does not."""
    inputs = image()
    x = kl.BatchNormalization()(conv("a")(inputs))
    x = kl.BatchNormalization()(conv("b", activation="sigmoid")(x))
    x = kl.BatchNormalization(scale=False)(conv("c", activation="sigmoid")(x))
    return keras.Model(inputs, head(conv("d")(x)))


def residual():
    inputs = image()
    x = conv("a")(inputs)
    y = conv("c")(kl.ReLU()(kl.BatchNormalization()(conv("b", 5)(x))))
    return keras.Model(inputs, head(conv("d")(kl.ReLU()(x + y))))


def residual_to_layer_norm():
    inputs = keras.Input((5, 3))
    x = kl.Dense(4, name="a")(inputs)
    y = kl.Dense(4, name="c")(kl.Dense(6, "gelu", name="b")(kl.LayerNormalization(name="n")(x)))
    return keras.Model(inputs, head(x + y))


def concatenation():
    inputs = image()
    x = kl.Concatenate()([conv("a")(inputs), conv("b", 3, activation="sigmoid")(inputs)])
    return keras.Model(inputs, head(conv("c", window=1)(x)))


def dense_net():
    """The shift of a BatchNormalization behind two layers stays; ReLU silences half of it."""
    inputs = image()
    x = conv("a", 8)(inputs)
    x = kl.Concatenate()([x, conv("b", 8)(kl.ReLU()(kl.BatchNormalization()(x)))])
    x = kl.ReLU()(kl.BatchNormalization()(x))
    return keras.Model(inputs, head(conv("c")(x)))


def squeeze_and_excite():
    inputs = image()
    x = kl.ReLU()(kl.BatchNormalization()(conv("a")(inputs)))
    gate = kl.Dense(4, "sigmoid", name="e")(
        kl.Dense(3, "relu", name="s")(kl.GlobalAveragePooling2D()(x))
    )
    x = kl.Multiply()([x, kl.Reshape((1, 1, 4))(gate)])
    return keras.Model(inputs, head(conv("b")(x)))


def spatial_gate():
    """The gate of one channel is never pruned, so it hides no constant."""
    inputs = image()
    x = conv("a", activation="sigmoid")(inputs)
    return keras.Model(inputs, head(conv("b")(x * conv("gate", 1, activation="relu")(inputs))))


def depthwise(bias=False):
    inputs = image()
    x = kl.DepthwiseConv2D(3, padding="same", use_bias=bias)(conv("a")(inputs))
    x = kl.SeparableConv2D(4, 3, padding="same", name="s")(x)
    x = kl.Conv2D(8, 3, groups=4, padding="same", name="g")(x)
    return keras.Model(inputs, head(x))


def depthwise_of_a_constant():
    """What the sigmoid sends goes through the depthwise kernel, then ReLU stops half of it."""
    inputs = image()
    x = conv("a", 8, activation="sigmoid")(inputs)
    x = kl.DepthwiseConv2D(1, activation="relu")(x)
    return keras.Model(inputs, head(conv("b")(x)))


def transposed():
    inputs = image()
    x = kl.Conv2DTranspose(4, 2, strides=2, name="a", activation="sigmoid")(inputs)
    return keras.Model(inputs, head(kl.Conv2DTranspose(3, 2, name="b")(x)))


def group_norm():
    inputs = image()
    return keras.Model(inputs, head(kl.GroupNormalization(2, name="n")(conv("a")(inputs))))


def vision_transformer():
    inputs = image(size=8)
    x = kl.Conv2D(6, 4, 4, name="patches")(inputs)
    x = kl.Reshape((4, 6))(x)
    y = kl.LayerNormalization(name="n1")(x)
    x = kl.Add()([x, kl.MultiHeadAttention(2, 3, name="mha")(y, y)])
    y = kl.Dense(12, "gelu", name="ffn1")(kl.LayerNormalization(name="n2")(x))
    x = kl.Add()([x, kl.Dense(6, name="ffn2")(y)])
    x = kl.GlobalAveragePooling1D()(kl.LayerNormalization(name="n3")(x))
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.Dense(5, "relu", name="fc")(x)))


def recurrent():
    inputs = keras.Input((5, 3))
    x = kl.LSTM(4, name="lstm")(kl.Dense(4, name="b")(kl.Dense(4, "relu", name="a")(inputs)))
    return keras.Model(inputs, kl.Dense(2, name="head")(kl.Dense(4, name="c")(x)))


def nested():
    """The inner model's output is added outside; its BatchNormalization is inside."""
    inner_inputs = keras.Input((4,))
    y = kl.BatchNormalization()(kl.Dense(6, "relu", name="deep")(inner_inputs))
    inner = keras.Model(inner_inputs, kl.Dense(4, name="out")(y), name="inner")
    inputs = keras.Input((3,))
    x = kl.Dense(4, name="a")(inputs)
    x = kl.Add()([x, inner(x)])
    return keras.Model(inputs, kl.Dense(2, name="head")(x))


def shared():
    """`s` reads a zero of `a`, but of `b` a half."""
    inputs = keras.Input((3,))
    s = kl.Dense(4, "relu", name="s")
    x = s(kl.Dense(5, "relu", name="a")(inputs)) + s(kl.Dense(5, "sigmoid", name="b")(inputs))
    return keras.Model(inputs, kl.Dense(2, name="head")(x))


def softmax_and_output():
    inputs = keras.Input((3,))
    x = kl.Dense(4, "softmax", name="a")(inputs)
    y = kl.Dense(3, name="b")(x)
    return keras.Model(inputs, [y, kl.Dense(2, name="head")(y)])


MODELS = [
    chain, sigmoid_before_padding, constant_through_batch_norm_before_padding, residual,
    residual_to_layer_norm, concatenation, dense_net, squeeze_and_excite, spatial_gate, depthwise,
    lambda: depthwise(bias=True), depthwise_of_a_constant, transposed, group_norm,
    vision_transformer, recurrent, nested, shared, softmax_and_output,
]  # fmt: skip


def randomize(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name == "seed_generator_state":
            continue
        low = 0.5 if variable.name == "moving_variance" else -1
        variable.assign(rng.uniform(low, 1, variable.shape))


def zero_units(model, layer, gone):
    """Sets units to zero, with their bias and the BatchNormalization that goes with them."""
    if isinstance(layer, kl.LSTM):  # a column in each of four gates
        for variable in layer.weights:
            variable.assign(numpy(variable) * ~np.tile(gone, 4))
        return
    kernel = getattr(layer, "kernel", None)
    kernel = layer.pointwise_kernel if kernel is None else kernel
    values = numpy(kernel).copy()
    if isinstance(layer, kl.EinsumDense) and layer.name != "attention_output":
        kernel.assign(values * ~gone[:, None])  # (inputs, heads, size)
        layer.bias.assign(numpy(layer.bias) * ~gone[:, None])
        return
    if isinstance(layer, (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)):
        values[..., gone, :] = 0
    else:
        values[..., gone] = 0
    kernel.assign(values)
    for norm in [layer, *batch_norms_after(model, layer)]:
        for name in ("bias", "gamma", "beta", "moving_mean"):
            if getattr(norm, name, None) is not None:
                getattr(norm, name).assign(numpy(getattr(norm, name)) * ~gone)


def check_by_shrinking(model, count=None):
    """Zeroes one group after the other, or `count` of them, and looks whether it goes."""
    weights = model.get_weights()
    units, reasons = prunable_groups(model)
    names = {entry.layer: entry.name for entry in kernel_layers(model)}
    for group in np.unique(np.concatenate(list(units.values()))).tolist()[:count]:
        if group not in reasons and any((groups == group).all() for groups in units.values()):
            continue  # a layer would be left without units
        model.set_weights(weights)
        for layer, groups in units.items():
            zero_units(model, layer, groups == group)
        table = shrink(model, report=True)[1].set_index("layer")
        for layer, groups in units.items():
            row, members = table.loc[names[layer]], np.count_nonzero(groups == group)
            expected = 0 if group in reasons else members
            assert not members or row["before"] - row["after"] == expected, reasons.get(group)


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_the_units_that_are_said_to_go_go_and_no_others(build):
    model = build()
    randomize(model, seed=0)
    check_by_shrinking(model)


@pytest.mark.parametrize("seed", range(RANDOM_MODELS // 10))
def test_in_random_models_too(seed):
    recipe = RandomModel(seed)
    check_by_shrinking(recipe.build(depth=int(recipe.rng.integers(1, 8))), count=4)


def never(model):
    """Layer name to how many of its units can never go, and why."""
    units, reasons = prunable_groups(model)
    return {
        layer.name: (
            sum(group in reasons for group in groups.tolist()),
            {reasons[group] for group in groups.tolist() if group in reasons},
        )
        for layer, groups in units.items()
    }


def test_feed_forward_units_and_heads_of_a_vision_transformer_can_go_and_its_stream_not():
    found = never(vision_transformer())
    free = {name for name, (count, _) in found.items() if count == 0}
    assert free == {"ffn1", "fc", "query", "key", "value"}
    units, _ = prunable_groups(vision_transformer())
    heads = {layer.name: groups.tolist() for layer, groups in units.items()}
    assert heads["query"] == heads["key"] == heads["value"]
    assert len(heads["query"]) == 2
    assert found["patches"][0] == 6
    assert "'n1' (LayerNormalization)" in " ".join(found["patches"][1])
    assert found["head"] == (3, {"it is the model's output"})


def test_before_a_recurrent_layer_and_in_it_units_can_go():
    assert {name: count for name, (count, _) in never(recurrent()).items()} == {
        "a": 0, "b": 0, "lstm": 0, "c": 0, "head": 2,
    }  # fmt: skip


def test_before_a_recurrent_layer_that_remembers_no_unit_can_go():
    inputs = keras.Input(batch_shape=(2, 5, 3))
    x = kl.LSTM(4, name="lstm", stateful=True)(kl.Dense(4, name="a")(inputs))
    count, reasons = never(keras.Model(inputs, kl.Dense(2)(x)))["a"]
    assert (count, reasons) == (4, {"'lstm' (LSTM) is stateful"})


def test_which_units_can_go_does_not_hang_on_the_kernels_values():
    model = dense_net()
    randomize(model, seed=0)
    before = prunable_groups(model)
    for entry in kernel_layers(model):
        entry.unit_kernel.assign(np.zeros(entry.unit_kernel.shape))
    after = prunable_groups(model)
    assert before[1] == after[1]
    for layer, groups in before[0].items():
        np.testing.assert_array_equal(groups, after[0][layer])


class Own(keras.Model):
    def __init__(self, looks):
        super().__init__()
        self.hidden, self.dense, self.looks = kl.Dense(4), kl.Dense(2), looks

    def call(self, x):
        x = self.hidden(x)
        if self.looks and keras.ops.convert_to_numpy(x).sum() > 0:
            x = 2 * x
        return self.dense(x)


def test_a_model_without_a_graph_is_looked_into():
    model = Own(looks=False)
    model(np.ones((1, 3)))
    assert [count for count, _ in never(model).values()] == [0, 2]


def test_a_model_whose_call_looks_at_numbers_says_nothing():
    model = Own(looks=True)
    model(np.ones((1, 3)))
    assert prunable_groups(model) is None
