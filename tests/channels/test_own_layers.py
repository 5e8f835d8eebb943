"""Layers that ask for the size of the batch, and layers whose author says how to cut them."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_pruning as kp

pytestmark = pytest.mark.filterwarnings("ignore:The configuration of")


def with_random_weights(model):
    rng = np.random.default_rng(0)
    for variable in (v for v in model.weights if v.name != "seed_generator_state"):
        variable.assign(rng.uniform(-0.7, 0.9, variable.shape))
    return model


def answers(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def pruned_and_shrunken(model, sparsity=0.5, count=5):
    """Returns both, and the report; their outputs are the same, in batches of two sizes."""
    pruned = kp.prune_units(with_random_weights(model), sparsity)
    shrunken, table = kp.shrink(pruned, report=True)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, *model.input_shape[1:])).astype("float32")
    for part in (x, x[:1]):
        ours, theirs = (answers(m, part) for m in (pruned, shrunken))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.abs(ours).max())
    return pruned, shrunken, table.set_index("layer")


class CausalBlock(kl.Layer):
    """Its mask has the size of the batch; the size of a head follows from their number."""

    def __init__(self, size=8, heads=4, **options):
        super().__init__(**options)
        self.size, self.heads = size, heads
        self.attention = kl.MultiHeadAttention(heads, size // heads, name="attention")
        self.wide, self.narrow = kl.Dense(12, "relu"), kl.Dense(size)

    def build(self, shape):
        self.attention.build(shape, shape)
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], 12))

    def call(self, x):
        batch, steps, _ = ops.shape(x)
        mask = ops.arange(steps)[:, None] >= ops.arange(steps)
        mask = ops.broadcast_to(mask, (batch, steps, steps))
        x = x + self.attention(x, x, attention_mask=mask)
        return x + self.narrow(self.wide(x))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class ByHand(kl.Layer):
    """Puts heads side by side with shapes that name the size of the batch."""

    def __init__(self, **options):
        super().__init__(**options)
        self.parts = [kl.Dense(8) for _ in range(4)]

    def build(self, shape):
        for part in self.parts:
            part.build(shape)

    def call(self, x):
        batch = ops.shape(x)[0]
        heads = [ops.reshape(part(x), (batch, -1, 4, 2)) for part in self.parts[:3]]
        query, key, value = (ops.transpose(h, (0, 2, 1, 3)) for h in heads)
        weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))))
        seen = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return x + self.parts[3](ops.reshape(seen, (batch, -1, 8)))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class OverTheBatch(CausalBlock):
    """What it sends for an example hangs on how many there are."""

    def call(self, x):
        batch, steps, size = ops.shape(x)
        return super().call(ops.reshape(x, (steps, batch, size)))


def model_with(layer, steps=6):
    x = keras.Input((steps, 8))
    return keras.Model(x, kl.Dense(2)(layer(x)))


@pytest.mark.parametrize("kind", [CausalBlock, ByHand])
def test_a_call_that_asks_for_the_size_of_the_batch_loses_heads(kind):
    model = model_with(kind())
    pruned, shrunken, table = pruned_and_shrunken(model)
    assert (kp.summary(shrunken)["zero_units"].dropna() == 0).all()
    assert shrunken.count_params() < 0.65 * model.count_params()


def test_a_call_that_hangs_on_the_size_of_the_batch_keeps_its_heads_and_says_why():
    model = model_with(OverTheBatch())
    spared = kp.summary(model).set_index("layer")["spared"]
    query = next(name for name in spared.index if name.endswith("query"))
    assert spared[query]
    pruned_and_shrunken(model, count=6)


class ByCount(CausalBlock):
    """Answers the same for one example as for two, but not for five."""

    def call(self, x):
        batch, steps, size = ops.shape(x)
        return ops.reshape(super().call(x), (batch, steps, size)) / ((batch + 3) // 4)


def test_a_call_that_only_many_examples_change_keeps_its_heads():
    pruned_and_shrunken(model_with(ByCount()), count=5)


def test_a_model_inside_is_not_changed_by_being_looked_into():
    x = keras.Input((None, 8))
    hidden = ops.relu(kl.Dense(8)(x))
    inner = keras.Model(x, kl.Dense(8)(hidden))
    relu = hidden._keras_history.operation
    a, b = keras.Input((6, 8)), keras.Input((4, 8))
    model = keras.Model([a, b], kl.Dense(2)(kl.Concatenate(axis=1)([inner(a), inner(b)])))
    before = len(relu._inbound_nodes), len(relu._outbound_nodes)
    kp.shrink(model)
    kp.summary(model)
    assert (len(relu._inbound_nodes), len(relu._outbound_nodes)) == before


class FixedSpec(kl.Layer):
    """Says that it sends 8 numbers, however many it does."""

    def __init__(self, width=12, size=8, **options):
        super().__init__(**options)
        self.width, self.size = width, size
        self.wide, self.narrow = kl.Dense(width, "relu"), kl.Dense(size)

    def build(self, shape):
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], self.width))

    def call(self, x):
        return self.narrow(self.wide(x))

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], 8), x.dtype)

    def get_config(self):
        return super().get_config() | {"width": self.width, "size": self.size}


def test_a_layer_that_tells_a_wrong_shape_is_replaced_by_what_it_calls():
    model = model_with(FixedSpec())
    _, shrunken, _ = pruned_and_shrunken(model)
    assert shrunken.count_params() < 0.5 * model.count_params()
    assert "FixedSpec" not in [type(layer).__name__ for layer in shrunken.layers]


def test_a_model_inside_loses_heads_where_the_length_of_its_input_is_known():
    inner = model_with(CausalBlock(), steps=None)
    queries = [n for n in kp.summary(inner)["layer"] if n.endswith("query")]
    assert "cannot say how large" in kp.summary(inner).set_index("layer")["spared"][queries[0]]
    x = keras.Input((6, 8))
    outer = keras.Model(x, inner(x))
    _, shrunken, table = pruned_and_shrunken(outer)
    assert [n for name, n in table["after"].items() if name.endswith("query")] == [2]
    assert shrunken.count_params() < 0.65 * outer.count_params()


class Width(kl.Layer):
    """Its configuration tells the width but not the heads, and a constant is one of its weights."""

    def __init__(self, width=12, size=8, **options):
        super().__init__(**options)
        self.width, self.size = width, size
        self.attention = kl.MultiHeadAttention(4, size // 4, name="attention")
        self.wide, self.narrow = kl.Dense(width, "relu", name="wide"), kl.Dense(size)

    def build(self, shape):
        self.attention.build(shape, shape)
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], self.width))

    def call(self, x):
        x = x + self.attention(x, x)
        tied = ops.sum(self.wide.bias)  # a constant to whoever follows the call
        return x + self.narrow(self.wide(x)) + tied

    def get_config(self):
        return super().get_config() | {"width": self.width, "size": self.size}


def test_a_layer_that_cannot_be_rebuilt_of_what_it_calls_still_loses_what_its_class_can_say():
    pruned = kp.prune_units(with_random_weights(model_with(Width(name="own"))), 0.5)
    shrunken, table = kp.shrink(pruned, report=True)
    after = table.set_index("layer")["after"]
    assert shrunken.get_layer("own").width == after["own/wide"] == 6
    assert after["own/attention/query"] == 4
    reasons = table.set_index("layer")["reason"]
    assert "cannot be rebuilt of what it calls" in reasons["own/attention/query"]


@keras.saving.register_keras_serializable("tests")
class Maxout(kl.Layer):
    """The larger of two products and a shift; its call cannot be followed."""

    says = {"units": {"first": 1, "second": 0, "shift": 0}, "inputs": {"first": 0, "second": 1}}

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def build(self, shape):
        self.first = self.add_weight(shape=(shape[-1], self.width), name="first")
        self.second = self.add_weight(shape=(self.width, shape[-1]), name="second")
        self.shift = self.add_weight(shape=(self.width,), name="shift")

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("numbers alone")
        both = [ops.matmul(x, w) for w in (self.first, ops.transpose(self.second))]
        return ops.maximum(*both) + self.shift

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], self.width), x.dtype)

    def get_config(self):
        return super().get_config() | {"width": self.width}

    def prunable_axes(self):
        return self.says


@keras.saving.register_keras_serializable("tests")
class Gains(kl.Layer):
    """A factor for each channel."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def build(self, shape):
        self.factors = self.add_weight(shape=(self.width,), name="factors")

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("numbers alone")
        return x * self.factors

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self):
        return super().get_config() | {"width": self.width}

    def prunable_axes(self):
        return {"channels": {"factors": 0}}


def maxout_network(layer=Maxout):
    x = keras.Input((6,))
    y = layer(10, name="own")(kl.Dense(12, name="before")(x))
    return keras.Model(x, kl.Dense(3)(Gains(10, name="gains")(y)))


def test_a_layer_loses_units_as_its_author_says(tmp_path):
    model = with_random_weights(maxout_network())
    first, second, shift = (ops.convert_to_numpy(v) for v in model.get_layer("own").weights)
    norms = np.sqrt((first**2).sum(axis=0) + (second**2).sum(axis=1))
    stay = np.sort(np.argsort(norms)[5:])
    pruned, shrunken, table = pruned_and_shrunken(model)
    np.testing.assert_array_equal(pruned.get_layer("own").shift != 0, np.isin(range(10), stay))
    assert table["after"].to_dict()["before"] == 6
    new = shrunken.get_layer("own")
    assert type(new) is Maxout and new.width == 5
    np.testing.assert_array_equal(new.shift, shift[stay])
    assert new.first.shape == (6, 5) and new.second.shape == (5, 6)
    assert shrunken.get_layer("gains").width == 5
    shrunken.save(tmp_path / "small.keras")
    x = np.ones((2, 6), "float32")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(answers(loaded, x), answers(shrunken, x))


def test_what_goes_with_a_unit_stays_zero_in_training():
    pruned = kp.prune_units(with_random_weights(maxout_network()), 0.5)
    pruned.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)), rng.normal(size=(64, 3))
    pruned.fit(x, y, epochs=2, verbose=0, callbacks=[kp.KeepZeros()])
    own = pruned.get_layer("own")
    assert [int((ops.convert_to_numpy(v) == 0).sum()) for v in own.weights][1:] == [5 * 12, 5]


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"units": {"first": 0, "second": 0}}, r"axes of one size .*'first': 12, 'second': 10"),
        ({"units": {"third": 1}}, r"axis 1 of 'third' for its units.*\(12, 10\)"),
        ({"units": {"first": 2}}, "axis 2 of 'first'"),
        ({"units": {"shift": 0}}, r"no trainable matrix for its units: \['shift'\]"),
        ({"unit": {"first": 1}}, "a dict with keys of"),
        ({"channels": {"shift": 0}, "units": {"first": 1}}, "neither 'units' nor 'inputs'"),
        (["first"], "must be a method that returns a dict of dicts"),
        ({"units": ["first"]}, "must be a method that returns a dict of dicts"),
        ({"units": {"first": 1.0}}, "axis 1.0 of 'first'"),
        ({"units": {"first": None}}, "axis None of 'first'"),
    ],
)
def test_what_an_author_says_must_fit_the_layers_weights(says, message):
    class Wrong(Maxout):
        pass

    Wrong.says = says
    model = maxout_network(Wrong)
    for function in (kp.summary, kp.prune_weights, kp.prune_units, kp.shrink):
        options = {"sparsity": 0.5} if function in (kp.prune_weights, kp.prune_units) else {}
        with pytest.raises(ValueError, match=r"prunable_axes\(\) of layer 'own'.*" + message):
            function(model, **options)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (
            {"units": {"first": 1}, "inputs": {"first": 0}},
            "fits what its prunable_axes() says with none",
        ),
        ({"units": {"first": 0, "second": 1}}, "sends 10 channels, not its 12 units"),
        ({"units": {"first": 1}, "inputs": {"first": 1}}, "10 entries of 'first' for 12 channels"),
    ],
)
def test_units_stay_where_what_the_author_says_is_not_so(says, reason):
    class Wrong(Maxout):
        pass

    Wrong.says = says
    model = with_random_weights(maxout_network(Wrong))
    pruned = kp.prune_units(model, 0.5, layers=["own", "before"])
    shrunken, table = kp.shrink(pruned, report=True)
    assert reason in table.set_index("layer")["reason"]["own"]
    x = np.random.default_rng(0).normal(size=(4, 6))
    np.testing.assert_allclose(answers(shrunken, x), answers(pruned, x), atol=1e-5)


class Token(kl.Layer):
    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")
        self.places = self.add_weight(shape=(shape[1], shape[-1]), name="places")
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma")

    def call(self, x):
        return x * self.gamma + self.places + self.token


def test_the_summary_lists_weights_of_ones_own_that_no_pruning_touches():
    model = model_with(Token(name="token"))
    table = kp.summary(model).set_index("layer")
    left = table[table["spared"] == "no matrix"]
    assert left["shape"].tolist() == [(1, 1, 8)]
    assert left.index[0].endswith("token/token")
    pruned = kp.prune_weights(with_random_weights(model), 0.5, layers=["token"])
    zeros = {v.name: int((ops.convert_to_numpy(v) == 0).sum()) for v in pruned.weights[:3]}
    assert zeros == {"token": 0, "places": 24, "gamma": 0}


def test_the_summary_says_what_a_unit_is():
    x = keras.Input((6, 8))
    y = kl.MultiHeadAttention(2, 4, name="mha")(x, x)
    y = kl.EinsumDense("btd,df->btf", (None, 5), name="slices")(kl.Conv1D(4, 2, name="conv")(y))
    y = kl.Dense(3, name="dense")(kl.LSTM(4, name="lstm")(y))
    units = kp.summary(keras.Model(x, y)).set_index("layer")["unit"].to_dict()
    assert units == {
        "mha/query": "head",
        "mha/key": "head",
        "mha/value": "head",
        "mha/attention_output": "slice",
        "conv": "filter",
        "slices": "slice",
        "lstm": "hidden unit",
        "dense": "column",
    }
    assert kp.summary(maxout_network())["unit"].tolist() == ["column", "unit", "column", ""]


def test_a_promise_that_is_not_kept_is_found_by_comparing():
    class Shifted(Maxout):
        def call(self, x):
            return super().call(x) + 1  # what a unit of zeros sends is no zero

    pruned = kp.prune_units(with_random_weights(maxout_network(Shifted)), 0.5)
    shrunken, table = kp.shrink(pruned, report=True)
    assert table.set_index("layer")["after"]["own"] == 10
    assert "answers otherwise" in table.set_index("layer")["reason"]["own"]
    x = np.random.default_rng(0).normal(size=(4, 6))
    np.testing.assert_allclose(answers(shrunken, x), answers(pruned, x), atol=1e-5)


def test_a_unit_with_some_weights_left_stays():
    model = with_random_weights(maxout_network())
    first, second, shift = model.get_layer("own").weights
    first.assign(ops.convert_to_numpy(first) * (np.arange(12) > 10)[:, None])
    assert kp.shrink(model).get_layer("own").width == 10
    second.assign(np.zeros(second.shape))
    first.assign(np.zeros(first.shape))
    shift.assign(np.eye(10)[3])
    assert kp.shrink(model).get_layer("own").width == 1


def test_a_layer_whose_author_names_no_units_loses_what_it_reads():
    class Reading(Maxout):
        says = {"inputs": {"first": 0, "second": 1}}

    pruned, shrunken, table = pruned_and_shrunken(maxout_network(Reading))
    assert table["after"].tolist() == [6, 3]  # of "before", and of the last
    assert shrunken.get_layer("own").first.shape == (6, 10)
    assert kp.summary(pruned).set_index("layer")["units"].isna()["own"]


class WithCache(kl.MultiHeadAttention):
    """Takes more than Keras's attention knows the output shape of, as Keras Hub's does."""

    def call(self, query, value, cache=None, **options):
        return super().call(query, value, **options)

    def compute_output_spec(self, query, value, **options):
        if "cache" in options:
            raise TypeError("got an unexpected keyword argument 'cache'")
        return super().compute_output_spec(query, value)


class CachedBlock(CausalBlock):
    def __init__(self, **options):
        super().__init__(**options)
        self.attention = WithCache(4, 2, name="attention")

    def call(self, x):
        x = x + self.attention(x, x, cache=None)
        return x + self.narrow(self.wide(x))


def test_arguments_that_say_what_holds_anyway_are_left_out_where_a_layer_is_rebuilt():
    model = model_with(CachedBlock())
    _, shrunken, table = pruned_and_shrunken(model)
    assert shrunken.count_params() < 0.65 * model.count_params()


def test_a_layer_all_of_whose_units_may_go_keeps_one():
    model = with_random_weights(maxout_network())
    model.layers[-1].kernel.assign(np.zeros((10, 3)))
    shrunken = kp.shrink(model)
    assert shrunken.get_layer("own").width == 1


def test_a_layer_with_two_outputs_keeps_its_units():
    class Two(Maxout):
        def call(self, x):
            return super().call(x), super().call(x)

        def compute_output_spec(self, x):
            return [super().compute_output_spec(x)] * 2

    x = keras.Input((6,))
    model = keras.Model(x, kl.Dense(3)(kl.Add()(Two(10, name="own")(x))))
    assert kp.summary(model).set_index("layer")["spared"]["own"].startswith("units: ")
    assert kp.shrink(model).count_params() == model.count_params()


def test_a_name_that_two_weights_have_is_refused():
    class Twice(Maxout):
        says = {"units": {"first": 1}}

        def build(self, shape):
            super().build(shape)
            self.again = self.add_weight(shape=(shape[-1], self.width), name="first")

    with pytest.raises(ValueError, match="names 'first', and 2 weights are so"):
        kp.summary(maxout_network(Twice))


def test_a_subclass_may_take_the_method_back():
    class Followed(Maxout):
        prunable_axes = None

    model = with_random_weights(maxout_network(Followed))
    assert kp.summary(model).set_index("layer")["units"].isna()["own"]
