"""measure and compare: what is counted, what is timed, and in which order."""

import gzip
import logging
import sys
import types

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.measuring.operations import count_multiply_adds

module = sys.modules[kp.measure.__module__]  # the package's name for it is the function's
FEATURES = 6


def network(units=(8,), seed=0):
    keras.utils.set_random_seed(seed)
    hidden = [kl.Dense(n, activation="relu") for n in units]
    return keras.Sequential([keras.Input((FEATURES,)), *hidden, kl.Dense(3)])


def compiled(model, metrics=("accuracy",)):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=list(metrics))
    return model


def quickly(model, x, y=None):
    return kp.measure(model, x, y, batch_sizes=(1,), repeats=1)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(20, FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def y():
    return np.arange(20) % 3


# ---- multiply-adds


def chain(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def count(model):
    shapes = [(1, *tensor.shape[1:]) for tensor in model.inputs]
    inputs = [np.ones(shape, "float32") for shape in shapes]
    return count_multiply_adds(model, inputs[0] if len(inputs) == 1 else inputs)


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        ((3,), kl.Dense(4), 3 * 4),
        ((5, 3), kl.Dense(4), 5 * 3 * 4),
        ((5, 3), kl.EinsumDense("abc,cd->abd", (None, 4)), 5 * 3 * 4),
        ((5, 3), kl.EinsumDense("...bc,cd->...bd", (5, 4)), 5 * 3 * 4),
        ((5, 6), kl.EinsumDense("abc,cde->abde", (None, 2, 4)), 5 * 6 * 2 * 4),
        ((5, 2, 4), kl.EinsumDense("abde,dec->abc", (None, 7)), 5 * 2 * 4 * 7),
        ((8, 4), kl.Conv1D(2, 3), 6 * 3 * 4 * 2),
        ((8, 4), kl.Conv1D(2, 3, padding="same", strides=2), 4 * 3 * 4 * 2),
        ((8, 4), kl.Conv1D(2, 3, dilation_rate=2), 4 * 3 * 4 * 2),
        ((6, 7, 4), kl.Conv2D(2, (3, 2)), 4 * 6 * 3 * 2 * 4 * 2),
        ((6, 7, 4), kl.Conv2D(2, 3, groups=2), 4 * 5 * 3 * 3 * 2 * 2),
        ((4, 5, 6, 2), kl.Conv3D(3, 2), 3 * 4 * 5 * 2 * 2 * 2 * 2 * 3),
        ((5, 4), kl.Conv1DTranspose(2, 3, strides=2), 5 * 3 * 4 * 2),
        ((5, 6, 4), kl.Conv2DTranspose(2, 3, strides=2), 5 * 6 * 3 * 3 * 4 * 2),
        ((2, 3, 4, 5), kl.Conv3DTranspose(2, 3), 2 * 3 * 4 * 27 * 5 * 2),
        ((8, 4), kl.DepthwiseConv1D(3, depth_multiplier=2), 6 * 3 * 4 * 2),
        ((6, 7, 4), kl.DepthwiseConv2D(3), 4 * 5 * 9 * 4),
        ((8, 4), kl.SeparableConv1D(5, 3, depth_multiplier=2), 6 * (3 * 4 * 2 + 4 * 2 * 5)),
        ((6, 7, 4), kl.SeparableConv2D(5, 3), 4 * 5 * (9 * 4 + 4 * 5)),
        ((7, 3), kl.SimpleRNN(4), 7 * (3 * 4 + 4 * 4)),
        ((7, 3), kl.LSTM(4), 7 * (3 * 16 + 4 * 16)),
        ((7, 3), kl.GRU(4, return_state=True), 7 * (3 * 12 + 4 * 12)),
        ((7, 3), kl.Bidirectional(kl.LSTM(4)), 2 * 7 * (3 * 16 + 4 * 16)),
        ((7,), kl.Embedding(10, 4), 0),
        ((5, 3), kl.LayerNormalization(axis=(1, 2)), 0),
        ((5, 3), kl.PReLU(), 0),
    ],
)  # fmt: skip
def test_multiply_adds_by_layer_kind(shape, layer, expected):
    inputs = keras.Input(shape)
    outputs = keras.tree.flatten(layer(inputs))[0]
    assert count(keras.Model(inputs, outputs)) == (expected, expected)


def test_multiply_adds_of_attention_are_those_of_its_projections_and_of_its_products():
    inputs, other = keras.Input((5, 6)), keras.Input((7, 6))
    # Keras on JAX takes no values of another size than the keys.
    size = 4 if keras.backend.backend() == "jax" else 3
    outputs = kl.MultiHeadAttention(num_heads=2, key_dim=4, value_dim=size)(inputs, other)
    projections = 5 * 6 * 8 + 7 * 6 * 8 + 2 * 7 * 6 * size + 2 * 5 * 6 * size
    products = 2 * 5 * 7 * 4 + 2 * 5 * 7 * size
    assert count(keras.Model([inputs, other], outputs)).total == projections + products


def test_query_heads_of_a_group_multiply_with_the_same_key():
    inputs = keras.Input((5, 6))
    outputs = kl.GroupQueryAttention(3, 4, 2)(inputs, inputs)
    projections = 2 * 5 * 6 * 4 * 3 + 2 * 5 * 6 * 2 * 3
    assert count(keras.Model(inputs, outputs)).total == projections + 4 * 5 * 5 * (3 + 3)


def test_shared_and_nested_layers_count_once_a_call():
    shared = kl.Dense(4)
    nested = chain((4,), kl.Dense(5), kl.Dense(2))
    a, b = keras.Input((3,)), keras.Input((7, 3))
    outputs = [nested(shared(a)), nested(nested.layers[0](shared(b))[:, 0, :4])]
    model = keras.Model([a, b], outputs)
    expected = (3 * 4) + (4 * 5 + 5 * 2) + (7 * 3 * 4) + (7 * 4 * 5) + (4 * 5 + 5 * 2)
    assert count(model).total == expected


def test_a_subclassed_model_is_counted_too():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = kl.Dense(3)

        def call(self, x):
            return self.dense(self.dense(x))

    model = Twice()
    model(np.ones((1, 3), "float32"))
    assert count_multiply_adds(model, np.ones((1, 3), "float32")).total == 2 * 9


@pytest.mark.parametrize(
    "layer",
    [kl.Dense(4), kl.Conv1D(4, 2), kl.SeparableConv1D(4, 2), kl.EinsumDense("abc,cd->ad", 4)],
)
def test_zero_weights_are_no_multiply_adds(layer):
    model = chain((5, 3), layer)
    halved = [np.where(np.arange(w.size).reshape(w.shape) % 2, w, 0) for w in layer.get_weights()]
    layer.set_weights(halved)
    places = {"Conv1D": 4, "SeparableConv1D": 4}.get(type(layer).__name__, 5)
    zeros = sum(-(-w.size // 2) for w in halved if w.ndim > 1)
    total = places * sum(w.size for w in halved if w.ndim > 1)
    assert count(model) == (total, total - places * zeros)


class Product(kl.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 2), name=self.name)

    def call(self, x):
        return x @ self.matrix


class Gated(kl.Dense):
    def build(self, shape):
        super().build(shape)
        self.gate = self.add_weight(shape=(shape[-1], self.units), name="gate")

    def call(self, x):
        return super().call(x) * (x @ self.gate)


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((3,), Product(name="matrix")),
        ((3,), Product(name="kernel")),
        ((3,), Gated(2)),
        ((5, 3), kl.TimeDistributed(kl.Dense(2))),
        ((5, 6, 3), kl.ConvLSTM1D(2, 3)),
        ((5, 3), kl.RNN(kl.StackedRNNCells([kl.LSTMCell(2), kl.LSTMCell(2)]))),
    ],
)
def test_what_is_not_understood_is_none_and_not_a_guess(shape, layer):
    assert count(chain(shape, layer)) is None


def test_a_layer_of_the_users_own_with_two_inputs_is_not_understood_either():
    class Bilinear(kl.Layer):
        def build(self, shapes):
            self.kernel = self.add_weight(shape=(shapes[0][-1], shapes[1][-1]), name="kernel")

        def call(self, pair):
            return keras.ops.sum((pair[0] @ self.kernel) * pair[1], axis=-1)

    inputs = [keras.Input((3,)), keras.Input((4,))]
    assert count(keras.Model(inputs, Bilinear()(inputs))) is None


def test_counting_leaves_the_layers_as_they_were():
    model = network()
    count(model)
    assert all("call" not in vars(layer) for layer in model.layers)


# ---- weights, files, accuracy


def test_parameters_and_what_is_not_zero(x):
    model = kp.prune_weights(network((10,)), 0.75)
    found = quickly(model, x)
    biases = 10 + 3  # zeros, as they start
    assert found.parameters == 6 * 10 + 10 * 3 + biases
    assert found.nonzero == 6 * 10 - 45 + 10 * 3
    assert (found.multiply_adds, found.multiply_adds_nonzero) == (90, 45)


def test_the_file_is_that_of_the_model_without_optimizer_and_compile_state(x, y, tmp_path):
    model = compiled(network((50,)))
    model.fit(x, y, verbose=0)
    plain = network((50,))  # never compiled
    plain.set_weights(model.get_weights())
    plain.save(tmp_path / "plain.keras")
    model.save(tmp_path / "whole.keras")
    file = (tmp_path / "plain.keras").read_bytes()
    found = quickly(model, x)
    assert abs(found.file_bytes - len(file)) < 200  # names of layers differ
    assert abs(found.file_gzip_bytes - len(gzip.compress(file))) < 200
    assert (
        found.file_bytes < (tmp_path / "whole.keras").stat().st_size - 2 * 4 * model.count_params()
    )


def test_accuracy_and_loss_are_those_of_evaluate(x, y):
    model = compiled(network(), metrics=("accuracy", "sparse_categorical_crossentropy"))
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    found = quickly(model, x, y)
    assert found.metrics == pytest.approx(expected)
    assert found.accuracy == pytest.approx(expected["accuracy"])
    assert found.loss == pytest.approx(expected["loss"])


def test_a_metric_by_a_longer_name_is_the_accuracy_too(x, y):
    model = compiled(network(), metrics=[keras.metrics.SparseCategoricalAccuracy()])
    found = quickly(model, x, y)
    assert found.accuracy == found.metrics["sparse_categorical_accuracy"]


def test_without_targets_or_loss_there_is_no_accuracy(x, y):
    for found in (quickly(compiled(network()), x), quickly(network(), x, y)):
        assert (found.accuracy, found.loss, dict(found.metrics)) == (None, None, {})


def test_the_model_and_its_training_do_not_change(x, y):
    model = compiled(network())
    model.fit(x, y, verbose=0)
    train_function, optimizer = model.train_function, model.optimizer
    before = [keras.ops.convert_to_numpy(v).copy() for v in (*model.weights, *optimizer.variables)]
    metrics = model.get_metrics_result()
    quickly(model, x, y)
    after = [keras.ops.convert_to_numpy(v) for v in (*model.weights, *model.optimizer.variables)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.train_function is train_function
    assert model.optimizer is optimizer
    assert model.get_metrics_result() == metrics
    assert model.predict_function is None


def test_a_sparse_model_is_measured_by_its_own_file_and_weights(x, y, tmp_path):
    pruned = compiled(kp.prune_weights(network((30, 20)), 0.8))
    sparse = kp.SparseModel(pruned, n_threads=1)
    found = quickly(sparse, x, y)
    assert found.file_bytes == sparse.size_bytes
    sparse.save(tmp_path / "sparse")
    assert found.file_gzip_bytes == len(gzip.compress((tmp_path / "sparse").read_bytes()))
    assert found.accuracy == pytest.approx(quickly(pruned, x, y).accuracy)
    assert found.n_threads == 1
    weights = sum(np.count_nonzero(step.kernel) for step in sparse.steps)
    assert found.multiply_adds_nonzero == found.nonzero == weights  # biases are zero
    assert found.parameters == found.multiply_adds > weights


def test_a_sparse_model_without_a_loss_or_a_file_is_measured_still(x, y):
    model = chain((FEATURES,), kl.Dense(3, activation=lambda v: v / 2))
    found = quickly(kp.SparseModel(model), x, y)
    assert (found.accuracy, found.file_bytes, found.file_gzip_bytes) == (None, None, None)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_zeros_stay_zeros_when_a_pruned_model_is_quantised_to_int8(x):
    model = kp.prune_weights(network((10,)), 0.75)
    model.quantize("int8")
    table = kp.summary(model)
    assert table["zeros"][0] >= 45
    found = quickly(model, x)
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers]
    left = sum(np.count_nonzero(kernel) for kernel in kernels)
    assert found.multiply_adds == 90
    assert found.multiply_adds_nonzero == left <= 45
    assert found.nonzero == left + 10 + 3  # a scale a unit


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.skipif(
    tuple(map(int, keras.version().split(".")[:2])) < (3, 11), reason="int4 came with Keras 3.11"
)
def test_weights_packed_two_to_a_byte_are_not_counted(x):
    model = network((10,))
    model.quantize("int4")
    found = quickly(model, x)
    assert (found.nonzero, found.multiply_adds, found.multiply_adds_nonzero) == (None,) * 3


def test_inputs_by_name(x):
    a, b = keras.Input((FEATURES,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"a": a, "b": b}, kl.Dense(2)(kl.Concatenate()([a, b])))
    found = kp.measure(model, {"a": x, "b": x[:, :2]}, repeats=1)
    assert found.multiply_adds == 16


def halved_squares(y_true, y_pred):
    return keras.ops.sum(keras.ops.square(y_pred), axis=-1) / 2


class Shift(kl.Layer):
    def call(self, x):
        return x + 1.0


def test_a_layer_and_a_loss_of_the_users_own(x, y):
    model = chain((FEATURES,), Shift(), kl.Dense(3))
    model.compile("adam", halved_squares)
    found = quickly(model, x, y)
    assert found.loss == pytest.approx(model.evaluate(x, y, verbose=0))
    assert found.multiply_adds == 18


# ---- latency


def spies(names, calls):
    """Functions that note their name and the size of the batch."""
    return [lambda x, name=name: calls.append((name, len(x))) for name in names]


def test_models_are_timed_in_turns_in_the_order_given():
    calls = []
    times = module._interleaved_ms(spies("ab", calls), np.zeros(4), repeats=7)
    warm_up = [("a", 4), ("b", 4)]
    turns = [("a", 4)] * 6 + [("b", 4)] * 6 + [("a", 4)] * 3 + [("b", 4)] * 3  # one untimed
    assert calls == warm_up + turns
    assert [len(own) for own in times] == [7, 7]


def test_latencies_are_the_quartiles_of_the_timed_calls(monkeypatch):
    now = [0.0]
    seconds = iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # two untimed

    def predict(x):
        now[0] += next(seconds)

    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    (times,) = module._interleaved_ms([predict], np.zeros(1), repeats=5)
    assert module._latency(8, times) == kp.Latency(8, 3000.0, 2000.0, 4000.0)


def test_the_table_holds_the_quartiles_of_as_many_calls_as_asked(monkeypatch, x):
    asked = []

    def timed(predicts, batch, repeats):
        asked.append((len(batch), repeats))
        return [[1.0, 2.0, 3.0, 4.0, 5.0]]

    monkeypatch.setattr(module, "_interleaved_ms", timed)
    (row,) = kp.compare({"a": network()}, x, batch_sizes=(4,), repeats=5).to_dict("records")
    assert asked == [(4, 5)]
    assert [row[f"batch_4_ms{end}"] for end in ("_lower", "", "_upper")] == [2, 3, 4]


def test_what_is_timed_answers_batches_of_the_sizes_asked(monkeypatch, x):
    sizes = []
    predict = keras.Model.predict_on_batch

    def noted(self, inputs):
        sizes.append(len(inputs))
        return predict(self, inputs)

    monkeypatch.setattr(keras.Model, "predict_on_batch", noted)
    found = kp.measure(network(), x, batch_sizes=(1, 50), repeats=2)
    assert sizes == [1] * 4 + [50] * 4
    assert [latency.batch_size for latency in found.latencies] == [1, 50]
    assert all(0 < t.lower_ms <= t.median_ms <= t.upper_ms for t in found.latencies)


def test_tensorflows_advice_on_retracing_is_not_shown_and_other_warnings_are(
    monkeypatch, caplog, x
):
    logger = logging.getLogger("tensorflow")

    def predict(self, inputs):
        logger.warning("5 out of the last 5 calls triggered tf.function retracing")
        logger.warning("something else")

    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(keras.Model, "predict_on_batch", predict)
    quickly(network(), x)
    logger.warning("retracing: triggered tf.function retracing")  # not ours, afterwards
    shown = [record.getMessage() for record in caplog.records]
    assert set(shown[:-1]) == {"something else"}
    assert shown[-1].startswith("retracing")


def test_too_few_examples_are_repeated():
    batch = module._batch({"a": np.arange(3), "b": np.arange(6).reshape(3, 2)}, 5, 3)
    np.testing.assert_array_equal(batch["a"], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(batch["b"], [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]])


def test_the_table_has_a_row_a_model_in_the_order_given(x, y):
    model = compiled(network((30,)), metrics=("accuracy", "sparse_categorical_crossentropy"))
    pruned = kp.prune_weights(model, 0.9)
    models = {"sparse": kp.SparseModel(pruned), "dense": model, "pruned": pruned}
    table = kp.compare(models, x, y, batch_sizes=(1, 4), repeats=1)
    assert table["model"].tolist() == ["sparse", "dense", "pruned"]
    assert table.columns.tolist() == [
        "model", "accuracy", "loss", "sparse_categorical_crossentropy", "parameters",
        "nonzero", "multiply_adds", "multiply_adds_nonzero",
        "file_bytes", "file_gzip_bytes", "n_threads",
        "batch_1_ms", "batch_1_ms_lower", "batch_1_ms_upper",
        "batch_4_ms", "batch_4_ms_lower", "batch_4_ms_upper",
    ]  # fmt: skip
    assert table["nonzero"][2] < table["nonzero"][1]
    assert table["accuracy"][0] == pytest.approx(table["accuracy"][2])


# ---- bad input


@pytest.mark.parametrize(
    "call", [kp.measure, kp.sparsity_sweep, kp.sensitivity_sweep, kp.taylor_scores]
)
def test_a_model_of_the_keras_before_3_is_told_its_package_and_a_way(call, x):
    legacy = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})()
    with pytest.raises(TypeError, match=r"tf_keras .Keras 2., a Sequential.*new.set_weights"):
        call(legacy, x, np.zeros(len(x)))


def test_models_that_are_none_are_refused_by_name(x):
    with pytest.raises(TypeError, match="'wrong' must be a Keras model or a SparseModel.*: int"):
        kp.compare({"right": network(), "wrong": 3}, x)
    with pytest.raises(TypeError, match="must be a Keras model or a SparseModel.*: NoneType"):
        kp.measure(None, x)
    with pytest.raises(TypeError, match="models must be a dict.*Received: list"):
        kp.compare([network()], x)


def test_no_models_are_refused(x):
    with pytest.raises(ValueError, match="models is empty. Give at least one"):
        kp.compare({}, x)


def test_a_model_that_cannot_be_copied_is_refused_with_a_remedy(x):
    class Unsaved(kl.Layer):
        def __init__(self, width):
            super().__init__()

        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"'unsaved' .*cannot be copied.*get_config\(\)"):
        kp.measure(keras.Sequential([keras.Input((FEATURES,)), Unsaved(3)], name="unsaved"), x)


def test_a_model_that_is_not_built_is_refused(x):
    with pytest.raises(ValueError, match="'unbuilt' is not built.*Input layer"):
        kp.measure(keras.Sequential([kl.Dense(3)], name="unbuilt"), x)


@pytest.mark.parametrize("sparse", [False, True])
def test_inputs_of_another_shape_are_refused(sparse):
    model = kp.SparseModel(network()) if sparse else network()
    message = r"must have the shape" if sparse else r"'model' cannot be called on x.*\(4, 5\)"
    with pytest.raises(ValueError, match=message):
        kp.measure(model, np.zeros((4, 5), "float32"))


@pytest.mark.parametrize(("n_x", "n_y"), [(20, 19), (0, 0)])
def test_lengths_that_differ_or_are_zero_are_refused(x, y, n_x, n_y):
    with pytest.raises(ValueError, match=rf"same number.*Received lengths: \[{n_x}, {n_y}\]"):
        kp.measure(compiled(network()), x[:n_x], y[:n_y])


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_repeats_and_batch_sizes_are_whole_numbers_from_one(x, number):
    with pytest.raises(ValueError, match=f"repeats must be a whole number.*={number}"):
        kp.measure(network(), x, repeats=number)
    with pytest.raises(ValueError, match=f"batch_sizes must be a whole number.*={number}"):
        kp.measure(network(), x, batch_sizes=(1, number))
