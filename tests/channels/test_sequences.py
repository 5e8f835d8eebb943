"""Attention, recurrent layers and layers of one's own: smaller, with the same outputs."""

import os
import random
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_pruning as kp

BACKEND = keras.backend.backend()
# JAX compiles each operation of each model anew, seconds a model.
RANDOM_MODELS = int(
    os.environ.get("RANDOM_MODELS", {"tensorflow": 25, "torch": 15}.get(BACKEND, 4))
)
VARIANTS = 1 if BACKEND == "jax" else None
TOLERANCE = 1e-10 if BACKEND == "tensorflow" else 1e-5  # the others compute some in float32


@pytest.fixture(autouse=True)
def _double_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if BACKEND == "jax" else "float64")
    yield
    keras.config.set_dtype_policy(before)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name == "seed_generator_state":
            continue
        low = 0.5 if variable.name in ("moving_variance", "gamma", "scale") else -0.7
        variable.assign(rng.uniform(low, 0.9, variable.shape))
    return model


def inputs_of(model, seed=0):
    """Three examples; sequences of unknown length have 5 steps, tokens are 0 to 9."""
    rng = np.random.default_rng(seed)
    arrays = []
    for tensor in model.inputs:
        shape = (3, *(size or 5 for size in tensor.shape[1:]))
        tokens = "int" in keras.backend.standardize_dtype(tensor.dtype)
        arrays.append(rng.integers(0, 10, shape) if tokens else rng.normal(size=shape))
    return arrays if len(arrays) > 1 else arrays[0]


def outputs(model, x):
    return [numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def check(model, sparsity=0.5, seed=0, names=None):
    """Prunes and shrinks; the outputs are the same, and of every pruned unit nothing is left."""
    pruned = kp.prune_units(randomize(model, seed), sparsity)
    x = inputs_of(model, seed)
    shrunken, table = kp.shrink(pruned, report=True)
    for ours, theirs in zip(outputs(pruned, x), outputs(shrunken, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(ours).max())
    assert (kp.summary(shrunken)["zero_units"].dropna() == 0).all()
    assert shrunken.count_params() < model.count_params()
    return shrunken, table.set_index("layer")


def of(shrunken, name):
    return next(layer for layer in shrunken.layers if layer.name == name)


# Heads


def sequence(size=8, length=6):
    return keras.Input((length, size))


# Keras on JAX multiplies values of another size than the keys wrongly, in shape.
@pytest.mark.parametrize(
    "options",
    [{}, {"value_dim": 3 if BACKEND == "jax" else 5}, {"use_bias": False}, {"dropout": 0.1}],
)
def test_heads_of_attention_go_as_a_whole(options):
    x = sequence()
    attention = kl.MultiHeadAttention(4, 3, name="mha", **options)
    model = keras.Model(x, kl.Dense(2)(kl.Flatten()(attention(x, x, use_causal_mask=True))))
    shrunken, table = check(model)
    heads = {name: table["after"][f"mha/{name}"] for name in ("query", "key", "value")}
    assert heads == {"query": 2, "key": 2, "value": 2}
    assert of(shrunken, "mha").num_heads == 2
    assert of(shrunken, "mha").key_dim == 3


def test_the_heads_with_the_smallest_joint_norm_go():
    x = sequence()
    attention = kl.MultiHeadAttention(3, 2, name="mha")
    model = randomize(keras.Model(x, kl.Dense(2)(attention(x, x))))
    parts = [attention.query_dense, attention.key_dense, attention.value_dense]
    squares = sum(np.square(numpy(part.kernel)).sum(axis=(0, 2)) for part in parts)
    pruned = kp.prune_units(model, 1 / 3, layers=[f"mha/{part.name}" for part in parts])
    kernel = numpy(pruned.get_layer("mha").value_dense.kernel)
    assert np.flatnonzero(~kernel.any(axis=(0, 2))).tolist() == [np.argmin(squares)]


def test_attention_to_another_sequence_with_a_mask():
    x, memory = sequence(), sequence(6, 4)
    mask = keras.Input((6, 4), dtype="bool")
    y = kl.MultiHeadAttention(4, 3, name="mha")(x, memory, attention_mask=mask)
    model = keras.Model([x, memory, mask], kl.Dense(2)(y))
    pruned = kp.prune_units(randomize(model), 0.5)
    shrunken = kp.shrink(pruned)
    rng = np.random.default_rng(1)
    data = [rng.normal(size=(3, 6, 8)), rng.normal(size=(3, 4, 6)), rng.random((3, 6, 4)) < 0.7]
    before, after = outputs(pruned, data)[0], outputs(shrunken, data)[0]
    np.testing.assert_allclose(before, after, rtol=0, atol=TOLERANCE * np.abs(before).max())
    assert of(shrunken, "mha").num_heads == 2


def test_query_heads_go_with_the_key_and_value_they_share():
    x = sequence()
    attention = kl.GroupQueryAttention(8, 6, 3, name="gqa")
    shrunken, _ = check(keras.Model(x, kl.Dense(2)(attention(x, x))), 1 / 3)
    gqa = of(shrunken, "gqa")
    assert (gqa.num_query_heads, gqa.num_key_value_heads, gqa.head_dim) == (4, 2, 8)


def test_scores_of_attention_that_are_the_models_output_keep_the_heads():
    x = sequence()
    y, scores = kl.MultiHeadAttention(4, 3, name="mha")(x, x, return_attention_scores=True)
    model = keras.Model(x, [kl.Dense(2)(y), scores])
    assert not [name for name in kp.prunable_layers(model, "units") if "mha/q" in name]


def test_the_sum_behind_a_layer_normalization_stays_and_units_of_a_gated_block_go():
    x = sequence()
    h = kl.LayerNormalization(name="norm")(kl.Dense(8, name="stream")(x))
    gate = kl.EinsumDense("btd,df->btf", (None, 12), name="gate", activation="silu")(h)
    up = kl.EinsumDense("btd,df->btf", (None, 12), name="up", bias_axes="f")(h)
    y = kl.EinsumDense("btf,fd->btd", (None, 8), name="down")(gate * up)
    shrunken, table = check(keras.Model(x, kl.Dense(2, name="head")(h + y)), 0.25)
    assert table["after"].to_dict() == {
        "stream": 8, "gate": 9, "up": 9, "down": 8, "head": 2,
    }  # fmt: skip
    assert of(shrunken, "up").kernel.shape == (8, 9)


# Recurrent layers


def silent(layer, gates):
    """Which units of a recurrent layer have only zeros, by plain NumPy."""
    return ~np.concatenate(
        [numpy(v).reshape(-1, gates, layer.units).any(axis=(0, 1))[None] for v in layer.weights]
    ).any(axis=0)


@pytest.mark.parametrize("kind, gates", [("LSTM", 4), ("GRU", 3), ("SimpleRNN", 1)])
@pytest.mark.parametrize("options", [{}, {"go_backwards": True}, {"use_bias": False}][:VARIANTS])
def test_hidden_units_go_with_their_columns_in_all_gates_and_their_row(kind, gates, options):
    x = sequence(3)
    layer = getattr(kl, kind)(5, name="rnn", return_sequences=True, **options)
    model = keras.Model(x, kl.Dense(2, name="head")(getattr(kl, kind)(4, name="last")(layer(x))))
    pruned = kp.prune_units(randomize(model), 0.4)
    assert silent(pruned.get_layer("rnn"), gates).sum() == 2
    shrunken, _ = check(model, 0.4)
    assert of(shrunken, "rnn").cell.recurrent_kernel.shape == (3, 3 * gates)
    assert of(shrunken, "last").cell.kernel.shape == (3, 2 * gates)
    assert of(shrunken, "head").kernel.shape == (2, 2)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave"][:VARIANTS])
def test_both_directions_lose_the_same_units(merge_mode):
    x = sequence(3)
    both = kl.Bidirectional(kl.LSTM(6), merge_mode=merge_mode, name="both")(x)
    shrunken, _ = check(keras.Model(x, kl.Dense(2)(both)))
    assert (
        of(shrunken, "both").forward_layer.units == of(shrunken, "both").backward_layer.units == 3
    )


def test_units_of_an_encoder_go_with_those_of_the_decoder_that_starts_from_them():
    x, y = sequence(3), sequence(2, 4)
    _, *states = kl.LSTM(6, return_state=True, name="encoder")(x)
    z = kl.LSTM(6, return_sequences=True, name="decoder")(y, initial_state=states)
    shrunken, _ = check(keras.Model([x, y], kl.Dense(2)(z)))
    assert of(shrunken, "encoder").units == of(shrunken, "decoder").units == 3


def test_a_masked_sequence():
    tokens = keras.Input((6,), dtype="int32")
    x = kl.Embedding(10, 5, mask_zero=True)(tokens)
    shrunken, table = check(keras.Model(tokens, kl.Dense(2)(kl.GRU(8, name="gru")(x))))
    assert table["after"]["gru"] == 4


def test_a_dense_layer_at_every_step():
    x = sequence(3)
    y = kl.TimeDistributed(kl.Dense(8, activation="relu", name="inner"), name="steps")(x)
    shrunken, _ = check(keras.Model(x, kl.Dense(2)(kl.Flatten()(y))))
    assert of(shrunken, "steps").layer.units == 4


# Layers of one's own


@keras.saving.register_keras_serializable("tests")
class FeedForward(kl.Layer):
    """Its configuration tells the width: it is made anew."""

    def __init__(self, width, size, **options):
        super().__init__(**options)
        self.width, self.size = width, size
        self.wide, self.narrow = kl.Dense(width, activation="gelu"), kl.Dense(size)

    def build(self, shape):
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], self.width))

    def call(self, x):
        return x + self.narrow(self.wide(x))

    def get_config(self):
        return super().get_config() | {"width": self.width, "size": self.size}


class Block(kl.Layer):
    """As keras.io teaches it: how large a head is follows from how many there are."""

    def __init__(self, size=8, heads=4, width=16, **options):
        super().__init__(**options)
        self.attention = kl.MultiHeadAttention(heads, size // heads)
        self.feed_forward = keras.Sequential([kl.Dense(width, activation="relu"), kl.Dense(size)])
        self.norms = [kl.LayerNormalization(), kl.LayerNormalization()]
        self.dropout = kl.Dropout(0.1)

    def call(self, x, training=None):
        x = self.norms[0](x + self.dropout(self.attention(x, x), training=training))
        return self.norms[1](x + self.feed_forward(x))


class Positions(kl.Layer):
    def __init__(self, length=6, size=8, **options):
        super().__init__(**options)
        self.length, self.size = length, size
        self.tokens, self.places = kl.Embedding(10, size), kl.Embedding(length, size)

    def build(self, shape):
        self.scale = self.add_weight(shape=(self.size,), name="gain")

    def call(self, x):
        return (self.tokens(x) + self.places(ops.arange(self.length))) * self.scale


class Matrix(kl.Layer):
    """A product with a weight of its own."""

    def __init__(self, units=6, **options):
        super().__init__(**options)
        self.units = units

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], self.units), name="matrix")
        self.shift = self.add_weight(shape=(self.units,), name="shift")

    def call(self, x):
        return ops.relu(ops.matmul(x, self.matrix) + self.shift)


class Heads(kl.Layer):
    """Attention written by hand, of Dense layers."""

    def __init__(self, size=8, heads=4, **options):
        super().__init__(**options)
        self.size, self.heads = size, heads
        self.parts = [kl.Dense(size) for _ in range(4)]

    def apart(self, x):
        x = ops.reshape(x, (-1, x.shape[1], self.heads, self.size // self.heads))
        return ops.transpose(x, (0, 2, 1, 3))

    def call(self, x):
        query, key, value = (self.apart(part(x)) for part in self.parts[:3])
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / 2.0
        y = ops.transpose(ops.matmul(ops.softmax(scores), value), (0, 2, 1, 3))
        return self.parts[3](ops.reshape(y, (-1, x.shape[1], self.size)))


def test_a_layer_whose_configuration_tells_its_width_keeps_its_class(tmp_path):
    x = sequence()
    model = keras.Model(x, kl.Dense(2)(FeedForward(16, 8, name="a")(FeedForward(8, 8)(x))))
    shrunken, _ = check(model)
    assert type(of(shrunken, "a")) is FeedForward
    assert of(shrunken, "a").get_config()["width"] == 8
    shrunken.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    x = inputs_of(model)
    np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(shrunken, x)[0])


def test_a_layer_that_derives_the_size_of_its_heads_is_replaced_by_what_it_calls(tmp_path):
    tokens = keras.Input((6,), dtype="int32")
    y = Block(name="block")(Block(name="first")(Positions()(tokens)))
    model = keras.Model(tokens, kl.Dense(2)(kl.GlobalAveragePooling1D()(y)))
    with pytest.warns(UserWarning, match=r"'first \(Block\)', 'block \(Block\)'.*in their place"):
        shrunken, table = check(model)
    kinds = [type(layer).__name__ for layer in shrunken.layers]
    assert kinds.count("MultiHeadAttention") == 2
    assert "Block" not in kinds
    shrunken.save(tmp_path / "small.keras")
    with keras.saving.custom_object_scope({"Positions": Positions}):
        loaded = keras.saving.load_model(tmp_path / "small.keras")
    x = inputs_of(model)
    np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(shrunken, x)[0])


def test_attention_written_by_hand():
    x = sequence()
    with pytest.warns(UserWarning, match="in their place"):
        shrunken, table = check(keras.Model(x, kl.Dense(2)(Heads(name="own")(x))))
    assert [n for n in table["after"] if n != 2] == [4, 4, 4, 4]


def test_a_weight_of_ones_own_loses_columns_that_are_zero():
    x = sequence(3)
    model = randomize(keras.Model(x, kl.Dense(2)(Matrix(6, name="own")(kl.Dense(5)(x)))))
    own = model.get_layer("own")
    keep = np.array([1, 0, 1, 1, 0, 1])
    own.matrix.assign(numpy(own.matrix) * keep)
    own.shift.assign(numpy(own.shift) * keep)
    shrunken = kp.shrink(kp.prune_units(model, 0.4))
    assert of(shrunken, "own").matrix.shape == (3, 4)
    x = inputs_of(model)
    before = outputs(kp.prune_units(model, 0.4), x)[0]
    np.testing.assert_allclose(before, outputs(shrunken, x)[0], atol=TOLERANCE)


class OwnModel(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.positions, self.block, self.head = Positions(), Block(), kl.Dense(3)
        self.first = self.add_weight(shape=(1, 1, 8), name="first")

    def call(self, tokens):
        x = self.positions(tokens)
        first = ops.add(ops.zeros_like(x[:, :1]), self.first)
        return self.head(self.block(ops.concatenate([first, x], axis=1))[:, 0])


def test_a_subclassed_model_becomes_a_functional_one_with_its_own_weights_too(tmp_path):
    model = OwnModel()
    tokens = np.random.default_rng(0).integers(0, 10, (4, 6))
    model(tokens)
    randomize(model)
    pruned = kp.prune_units(model, 0.5)
    with pytest.warns(UserWarning, match="in their place"):
        shrunken = kp.shrink(pruned)
    before = outputs(pruned, tokens)[0]
    np.testing.assert_allclose(outputs(shrunken, tokens)[0], before, atol=TOLERANCE)
    shrunken.save(tmp_path / "small.keras")
    with keras.saving.custom_object_scope({"Positions": Positions}):
        loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(outputs(loaded, tokens)[0], outputs(shrunken, tokens)[0])
    assert [v.shape for v in loaded.trainable_variables if "first" in v.path] == [(1, 8)]


class Looking(FeedForward):
    def call(self, x):
        return super().call(x) if numpy(x).sum() > 0 else x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_a_layer_that_looks_at_numbers_keeps_its_units_and_says_why():
    x = sequence()
    y = Looking(16, 8, name="own")(kl.Dense(8, name="a")(x))
    model = keras.Model(x, kl.Dense(2)(kl.Dense(4, name="b")(y)))
    _, table = check(model)
    assert table["after"].to_dict()["b"] == 2
    assert table["after"].to_dict()["a"] == 8
    spared = kp.summary(model).set_index("layer")["spared"]
    assert "'own' (Looking) has no rule, and cannot be looked into" in spared["a"]


class Lying(FeedForward):
    """Answers otherwise with another width."""

    def call(self, x):
        return super().call(x) * self.width


def test_a_layer_that_hangs_on_its_width_in_another_way_is_replaced():
    x = sequence()
    model = keras.Model(x, kl.Dense(2)(Lying(16, 8, name="own")(x)))
    with pytest.warns(UserWarning, match=r"'own \(Lying\)'"):
        shrunken, _ = check(model)
    assert "Lying" not in [type(layer).__name__ for layer in shrunken.layers]


# What could go wrong without anybody's noticing


def unchanged(model, x):
    """Whatever `shrink` takes away, the outputs are the same."""
    for ours, theirs in zip(outputs(model, x), outputs(kp.shrink(model), x), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6 * np.abs(ours).max())


def as_mask(tensor):
    return ops.cast(tensor, "bool")


@pytest.mark.parametrize(
    "build",
    [
        lambda x: ops.dot_product_attention(
            *[kl.EinsumDense("btd,dhe->bthe", (6, 4, 2))(x) for _ in range(3)],
            bias=ops.expand_dims(kl.Dense(6)(x), 1),
        ),
        lambda x: kl.MultiHeadAttention(2, 3)(
            x, x, attention_mask=as_mask(kl.Dense(6, activation="relu")(x))
        ),
        lambda x: kl.LSTM(3)(x, mask=as_mask(kl.Dense(6, activation="relu")(kl.Flatten()(x)))),
        lambda x: kl.Embedding(10, 4)(ops.cast(ops.sigmoid(kl.Dense(3)(x)) * 9, "int32")),
        lambda x: ops.max(kl.Dense(6, activation="relu")(x), axis=1, initial=0.7),
        lambda x: kl.GroupNormalization(3, axis=1)(kl.Dense(6)(x)),
    ],
    ids=["bias", "attention mask", "mask", "places in a table", "initial number", "groups"],
)
def test_what_a_layer_takes_as_something_else_than_channels_stays(build):
    x = sequence()
    model = randomize(keras.Model(x, kl.Dense(2)(kl.Flatten()(build(x)))))
    unchanged(model, inputs_of(model))
    if kp.prunable_layers(model, "units"):
        unchanged(kp.prune_units(model, 0.5), inputs_of(model))


def test_heads_that_have_a_mask_each_stay():
    x, mask = sequence(), keras.Input((4, 6, 6), dtype="bool")
    y = kl.MultiHeadAttention(4, 2, name="mha")(x, x, attention_mask=mask)
    model = keras.Model([x, mask], kl.Dense(2)(y))
    assert not [name for name in kp.prunable_layers(model, "units") if "mha/q" in name]


class Filling(kl.Layer):
    def call(self, x, mask=None):
        return x if mask is None else ops.where(mask[..., None], x, 5.0)


def test_a_layer_that_writes_into_masked_steps_keeps_what_it_reads():
    x = sequence()
    y = Filling()(kl.Dense(10, activation="relu", name="a")(kl.Masking()(x)))
    model = keras.Model(x, kl.Dense(2)(kl.Flatten()(kl.Dense(4, name="b")(y))))
    pruned = kp.prune_units(randomize(model), 0.5)
    data = inputs_of(model)
    data[:, 3:] = 0
    unchanged(pruned, data)
    assert "is called with a mask" in kp.summary(model).set_index("layer")["spared"]["a"]


class Clipping(FeedForward):
    """Tells large inputs by its width, small ones not."""

    def call(self, x):
        return ops.clip(super().call(x), -self.width, self.width)


def test_a_configuration_must_hold_for_large_inputs_and_negative_ones_too():
    x = sequence()
    model = randomize(keras.Model(x, kl.Dense(2)(Clipping(16, 8, name="own")(x))))
    pruned = kp.prune_units(model, 0.5)
    with pytest.warns(UserWarning, match=r"'own \(Clipping\)'"):
        unchanged(pruned, 20 * inputs_of(model))


def test_a_constant_goes_into_the_bias_of_an_einsum_dense():
    x = sequence()
    y = kl.Dense(6, activation="sigmoid", name="a")(x)
    y = kl.EinsumDense("btd,de->bte", (6, 4), bias_axes="e")(y)
    shrunken, table = check(keras.Model(x, kl.Dense(2)(kl.Flatten()(y))))
    assert table["after"]["a"] == 3


def test_a_recurrent_layer_of_zeros_is_refused():
    x = sequence()
    model = keras.Model(x, kl.Dense(2)(kl.LSTM(3, name="dead")(x)))
    model.get_layer("dead").set_weights([0 * w for w in model.get_layer("dead").get_weights()])
    with pytest.raises(ValueError, match="'dead' has no unit left"):
        kp.shrink(model)


def test_a_table_of_one_row_keeps_a_column():
    tokens = keras.Input((6,), dtype="int32")
    y = kl.Dense(3)(kl.Embedding(1, 4)(ops.minimum(tokens, 0)))
    model = randomize(keras.Model(tokens, kl.Dense(2)(kl.Flatten()(y))))
    unchanged(model, inputs_of(model))


@pytest.mark.parametrize(
    "operation",
    [
        lambda h: ops.repeat(h, [2, 1, 3, 1] if BACKEND == "tensorflow" else 2, axis=-1),
        lambda h: ops.einsum("bii->bi", ops.stack([h] * 4, axis=1)),
        lambda h: kl.Activation(lambda x: x * ops.cast(ops.arange(4), x.dtype))(h),
    ],
    ids=["repeat", "diagonal", "activation"],
)
def test_operations_with_a_number_for_each_channel_keep_them(operation):
    x = keras.Input((8,))
    h = kl.Dense(4, activation="relu", name="a")(kl.Dense(6, name="before")(x))
    model = randomize(keras.Model(x, kl.Dense(2)(operation(h))))
    pruned = kp.prune_units(model, 0.5, layers=["a", "before"])
    unchanged(pruned, inputs_of(model))
    if operation(keras.KerasTensor((3, 4))).shape != (3, 8):  # each twice: two go together
        assert kp.summary(kp.shrink(pruned)).set_index("layer")["units"]["a"] == 4


class ByName(FeedForward):
    """Its activation is looked up by its name, as many write it."""

    def call(self, x):
        return x + self.narrow(keras.activations.get("relu")(self.wide(x)))


def test_an_activation_that_is_looked_up_by_its_name():
    x = sequence()
    shrunken, _ = check(keras.Model(x, kl.Dense(2)(ByName(16, 8, name="own")(x))))
    assert of(shrunken, "own").width == 8


def test_attention_without_a_key():
    x = sequence()
    shrunken, _ = check(
        keras.Model(x, kl.Dense(2)(kl.MultiHeadAttention(4, 3, name="a")(x, x, None)))
    )
    assert of(shrunken, "a").num_heads == 2


class WithTraining(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden, self.head = kl.Dense(10, activation="relu"), kl.Dense(3)

    def call(self, x, training=None):
        return {"answer": self.head(self.hidden(x))}


def test_a_subclass_that_takes_training_and_returns_a_dict():
    model = WithTraining()
    x = np.random.default_rng(0).normal(size=(5, 4))
    model(x)
    pruned = kp.prune_units(randomize(model), 0.5)
    with pytest.warns(UserWarning, match="in their place"):
        shrunken = kp.shrink(pruned)
    assert shrunken(x).keys() == {"answer"}
    np.testing.assert_allclose(outputs(shrunken, x)[0], outputs(pruned, x)[0], atol=1e-6)
    assert shrunken.count_params() == 4 * 5 + 5 + 5 * 3 + 3


class Remembering(FeedForward):
    """Counts its calls, and remembers what it sent."""

    def build(self, shape):
        super().build(shape)
        self.calls = self.add_weight(shape=(), name="calls", trainable=False)
        self.noise = kl.Dropout(0.5)

    def call(self, x):
        self.last = x
        self.calls.assign_add(1.0)
        return super().call(x) + 0 * self.noise(x, training=True)


def test_the_model_passed_in_and_the_random_numbers_of_python_stay_as_they_were():
    x = sequence()
    y = kl.Dense(4, name="b")(Remembering(16, 8, name="own")(x))
    model = randomize(keras.Model(x, kl.Dense(2)(y)))
    own = model.get_layer("own")
    wide = own.wide.call
    own.wide.call = lambda x: 2 * wide(x)  # somebody's own
    before = [numpy(v).copy() for v in model.variables]
    attributes, state = {*vars(own)}, random.getstate()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        shrunken = kp.shrink(kp.prune_units(model, 0.5))
        kp.shrink(model)
    assert state == random.getstate()
    assert {*vars(own)} == attributes
    assert "call" in vars(own.wide)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, numpy(new))
    del own.wide.call
    assert shrunken.count_params() <= model.count_params()


class Tied(kl.Layer):
    """Multiplies with its table, turned round."""

    def __init__(self, **options):
        super().__init__(**options)
        self.table, self.wide, self.narrow = kl.Embedding(10, 8), kl.Dense(16), kl.Dense(8)

    def call(self, tokens):
        x = self.table(tokens)
        x = x + self.narrow(ops.relu(self.wide(x)))
        return ops.matmul(x, ops.transpose(self.table.embeddings))


def test_a_tie_between_weights_is_not_cut():
    tokens = keras.Input((6,), dtype="int32")
    model = randomize(keras.Model(tokens, Tied(name="own")(tokens)))
    shrunken, table = kp.shrink(kp.prune_units(model, 0.5), report=True)
    trained = sum(int(np.prod(v.shape)) for v in shrunken.trainable_variables)
    assert trained == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert "would be a constant" in " ".join(table["reason"])


def test_frozen_weights_stay_frozen():
    x = sequence()
    model = keras.Model(x, kl.Dense(2)(FeedForward(16, 8, name="own")(kl.Dense(8, name="a")(x))))
    model.get_layer("own").wide.kernel.trainable = False
    shrunken, _ = check(model)
    assert not of(shrunken, "own").wide.kernel.trainable
    assert of(shrunken, "own").wide.bias.trainable


class OwnDense(kl.Dense):
    """A class of one's own, as Keras's."""


def test_the_report_counts_the_columns_of_a_layer_of_ones_own():
    x = keras.Input((6,))
    y = OwnDense(10, activation="relu", name="own")(x)
    model = randomize(keras.Model(x, kl.Dense(2)(y)))
    own = model.get_layer("own")
    keep = np.arange(10) % 2
    own.kernel.assign(numpy(own.kernel) * keep)
    own.bias.assign(numpy(own.bias) * keep)
    shrunken, table = kp.shrink(model, report=True)
    assert (table["before"][0], table["after"][0]) == (10, 5)
    assert of(shrunken, "own").units == 5


# Random models


class RandomSequenceModel:
    """Blocks of attention, feed-forward and recurrent layers behind each other."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.size = 2 * int(self.rng.integers(2, 5))

    def pick(self, *options):
        return options[int(self.rng.integers(len(options)))]

    def number(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def norm(self, x):
        kind = self.pick(None, "LayerNormalization", "RMSNormalization", "BatchNormalization")
        return x if kind is None else getattr(kl, kind)()(x)

    def attention(self, x):
        options = {"use_bias": self.pick(True, False), "dropout": self.pick(0.0, 0.1)}
        if self.pick(True, False):
            shared, repeats = self.number(1, 3), self.number(1, 2)
            layer = kl.GroupQueryAttention(self.number(2, 4), shared * repeats, shared, **options)
        else:
            value_dim = self.pick(None, self.number(2, 4))
            heads, key_dim = self.number(1, 4), self.number(2, 4)
            layer = kl.MultiHeadAttention(heads, key_dim, value_dim=value_dim, **options)
        return x + layer(self.norm(x), x, use_causal_mask=self.pick(True, False))

    def feed_forward(self, x):
        width, activation = self.number(3, 9), self.pick("relu", "gelu", "silu", "tanh", "sigmoid")
        h = self.norm(x)
        if self.pick(True, False):
            wide = kl.Dense(width, activation=activation)(h)
        else:
            wide, gate = (kl.EinsumDense("btd,df->btf", (None, width)) for _ in range(2))
            wide = wide(h) * kl.Activation(activation)(gate(h))
        return x + kl.Dense(self.size)(kl.Dropout(0.1)(wide))

    def recurrent(self, x):
        kind = self.pick(kl.LSTM, kl.GRU, kl.SimpleRNN)
        layer = kind(self.number(2, 6), return_sequences=True)
        if self.pick(True, False):
            layer = kl.Bidirectional(layer, merge_mode=self.pick("concat", "sum", "mul", "ave"))
        return kl.Dense(self.size)(self.norm(layer(x)))

    def own(self, x):
        return self.pick(
            lambda: FeedForward(self.number(3, 9), self.size)(x),
            lambda: Block(self.size, 2, self.number(3, 9))(x),
            lambda: Heads(self.size, 2)(x),
            lambda: Matrix(self.size)(x) + x,
            lambda: kl.TimeDistributed(kl.Dense(self.size, activation="relu"))(x),
        )()

    def build(self):
        if self.pick(True, False):
            inputs = keras.Input((6,), dtype="int32")
            x = kl.Embedding(10, self.size, mask_zero=self.pick(True, False))(inputs)
        else:
            inputs = keras.Input((6, self.size))
            x = inputs
        parts = [self.attention, self.feed_forward, self.recurrent]  # they have units to prune
        x = self.pick(*parts)(x)
        for part in [self.pick(*parts, self.own) for _ in range(self.number(1, 3))]:
            x = part(x)
        return keras.Model(inputs, kl.Dense(3)(kl.GlobalMaxPooling1D()(x)))


@pytest.mark.filterwarnings(
    "ignore:The configuration of", "ignore:Layer .* does not support masking"
)
@pytest.mark.parametrize("seed", range(RANDOM_MODELS))
def test_random_models_answer_the_same_without_their_pruned_units(seed):
    recipe = RandomSequenceModel(seed)
    model = randomize(recipe.build(), seed)
    pruned = kp.prune_units(
        model, recipe.pick(0.3, 0.5, 0.8), coupled=recipe.pick(True, True, False)
    )
    shrunken = kp.shrink(pruned)
    x = inputs_of(model, seed)
    before, after = outputs(pruned, x)[0], outputs(shrunken, x)[0]
    np.testing.assert_allclose(before, after, rtol=0, atol=TOLERANCE * np.abs(before).max())


def test_the_example_of_a_vision_transformer_loses_what_it_prunes(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    example = pytest.importorskip("vision_transformer")
    model = randomize(example.vision_transformer())
    pruned = kp.prune_units(model, layers=example.pruned_shares())
    shrunken = kp.shrink(pruned)
    assert of(shrunken, "attention_0").num_heads == 4
    assert of(shrunken, "wide_1").units == 96
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype("uint8")
    before, after = outputs(pruned, images)[0], outputs(shrunken, images)[0]
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-5 * np.abs(before).max())


# In training


def trained_on(model, callbacks, epochs=2):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6, 8)), rng.integers(0, 3, 64)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy())
    model.fit(x, y, batch_size=16, epochs=epochs, callbacks=callbacks, verbose=0)
    return model


def mixed():
    x = sequence()
    y = kl.MultiHeadAttention(4, 3, name="mha")(x, x)
    y = FeedForward(16, 8, name="own")(kl.LayerNormalization()(x + y))
    y = kl.LSTM(6, name="lstm")(kl.EinsumDense("btd,df->btf", (None, 10), bias_axes="f")(y))
    return keras.Model(x, kl.Dense(3, activation="softmax")(y))


def zeros(model):
    return [numpy(v) == 0 for v in model.trainable_variables]


def test_pruned_heads_and_hidden_units_stay_pruned_in_training_with_all_that_is_theirs():
    pruned = kp.prune_units(randomize(mixed()), 0.5)
    before = zeros(pruned)
    trained = trained_on(pruned, [kp.KeepZeros()])
    for old, new in zip(before, zeros(trained), strict=True):
        assert new[old].all()
    mha = trained.get_layer("mha")
    assert (numpy(mha.value_dense.bias) == 0).all(axis=1).sum() == 2
    assert kp.shrink(trained).get_layer("mha").num_heads == 2


def test_units_go_little_by_little_while_the_model_is_trained():
    model = randomize(mixed())
    schedule = kp.GradualPruning(0.5, begin=0, end=4, every=1, prune=kp.prune_units)
    shrunken = kp.shrink(trained_on(model, [schedule]))
    assert of(shrunken, "mha").num_heads == 2
    assert of(shrunken, "lstm").units == 3
    assert of(shrunken, "own").width == 8


def test_what_is_left_of_a_transformer_is_refitted():
    model = randomize(mixed())
    x = np.random.default_rng(1).normal(size=(200, 6, 8))
    pruned = kp.prune_units(model, 0.5)
    refitted, table = kp.reconstruct(pruned, model, x, report=True, progress=False)
    for old, new in zip(zeros(pruned), zeros(refitted), strict=True):
        assert new[old].all()
    done = table.set_index("layer")
    assert done["done"]["mha/attention_output"] == "refitted"
    assert (
        done["error_after"]["mha/attention_output"] < done["error_before"]["mha/attention_output"]
    )
