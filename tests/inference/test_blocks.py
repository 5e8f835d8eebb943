"""SparseModel of networks that are more than a chain of Dense layers; Keras is the oracle."""

import copy
import importlib.util
import json
import os
import pickle
import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.inference import block_layers, sparse_chain
from keras_pruning.inference.block_layers import Call
from keras_pruning.inference.block_network import BlockNetwork, FasterOf
from keras_pruning.inference.planner import plan_blocks
from keras_pruning.inference.sparse_model import SparseModel

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="blocks need numba"
)
# JAX compiles every operation of every model anew, which takes it seconds a model.
RANDOM_MODELS = int(
    os.environ.get("RANDOM_MODELS", "8" if keras.backend.backend() == "jax" else "30")
)


def in_blocks(model, x, n_threads=2):
    """The outputs by blocks, whatever is faster; as Keras's structure."""
    plan, why = plan_blocks(model)
    assert plan is not None, why
    network = BlockNetwork(plan, n_threads, sparse_chain.compiled_loops())
    inputs = [np.asarray(part) for part in keras.tree.flatten(x)]
    return network.forward(inputs), plan


def by_keras(model, x):
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def assert_equal_outputs(outputs, expected):
    for own, theirs in zip(outputs, expected, strict=True):
        assert own.shape == theirs.shape
        assert own.dtype == theirs.dtype
        largest = np.abs(theirs).max(initial=0)
        np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-5 * largest)


def shaken(model, rng, sparsity=None):
    """The model with weights of all kinds far from what they start with, many of them zero."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            shaken(layer, rng, sparsity)
            continue
        share = rng.choice([0, 0.5, 0.8, 0.95, 0.99]) if sparsity is None else sparsity
        weights = []
        for w in layer.get_weights():
            if w.dtype.kind != "f":
                weights.append(w)
            elif w.ndim == 1:
                weights.append(rng.uniform(0.3, 1, w.shape))
            else:
                size = np.sqrt(max(np.prod(w.shape[:-1]) * (1 - share), 1))
                kept = rng.random(w.shape) >= share
                weights.append(rng.normal(0, 1 / size, w.shape) * kept)
        layer.set_weights(weights)
    return model


def data(model, count, rng):
    return [rng.standard_normal((count, *t.shape[1:])).astype("float32") for t in model.inputs]


def check(model, seed=0, counts=(1, 33), called=0, sparsity=0.7):
    """Compares blocks with Keras; `called` steps of them are Keras's."""
    rng = np.random.default_rng(seed)
    shaken(model, rng, sparsity)
    for count in counts:
        x = data(model, count, rng)
        given = x[0] if isinstance(model, keras.Sequential) or len(x) == 1 else x
        outputs, plan = in_blocks(model, given)
        assert_equal_outputs(outputs, by_keras(model, given))
    names = [step.kind for step in plan.steps if isinstance(step, Call)]
    assert called is None or len(names) == called, names
    return plan


def chain(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


# Every layer that is known


@needs_numba
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"strides": (1, 3)},
        {"strides": (3, 2), "kernel_size": (2, 4)},
        {"dilation_rate": 2},
        {"dilation_rate": (1, 3), "kernel_size": (3, 2)},
        {"groups": 2},
        {"groups": 6, "filters": 12},
        {"kernel_size": 1},
        {"kernel_size": 1, "strides": 2},
        {"kernel_size": (9, 10)},
        {"use_bias": False, "activation": None},
        {"activation": "tanh"},
        {"activation": "gelu"},
        {"activation": "leaky_relu"},
        {"activation": "softmax"},
    ],
)
def test_convolutions(padding, options):
    settings = {"filters": 8, "kernel_size": 3, "activation": "relu", "padding": padding}
    check(chain((9, 10, 6), kl.Conv2D(**settings | options)))


@needs_numba
@pytest.mark.parametrize(
    "layer",
    [
        kl.Conv1D(5, 3),
        kl.Conv1D(5, 3, padding="same", strides=2),
        kl.Conv1D(5, 3, padding="causal", dilation_rate=2, activation="relu"),
        kl.Conv1D(6, 3, groups=3),
        kl.DepthwiseConv1D(3, depth_multiplier=2),
        kl.SeparableConv1D(5, 4, padding="same", activation="silu"),
        kl.MaxPooling1D(3, padding="same"),
        kl.AveragePooling1D(2),
        kl.GlobalAveragePooling1D(),
        kl.GlobalMaxPooling1D(keepdims=True),
        kl.ZeroPadding1D((1, 2)),
        kl.Cropping1D((1, 2)),
        kl.UpSampling1D(3),
        kl.BatchNormalization(),
        kl.Dense(4, activation="relu"),
    ],
)
def test_layers_of_sequences(layer):
    check(chain((11, 6), layer))


@needs_numba
@pytest.mark.parametrize(
    "layer",
    [
        kl.DepthwiseConv2D(3, padding="same"),
        kl.DepthwiseConv2D((2, 3), strides=2, depth_multiplier=3, activation="relu6"),
        kl.DepthwiseConv2D(3, dilation_rate=2),
        kl.SeparableConv2D(7, 3, depth_multiplier=2, strides=2, padding="same"),
        kl.MaxPooling2D(2),
        kl.MaxPooling2D(3, strides=2, padding="same"),
        kl.MaxPooling2D((1, 4), strides=(3, 1)),
        kl.AveragePooling2D(2),
        kl.AveragePooling2D(3, strides=2),
        kl.GlobalAveragePooling2D(),
        kl.GlobalMaxPooling2D(keepdims=True),
        kl.ZeroPadding2D(((1, 2), (3, 0))),
        kl.Cropping2D(((1, 2), (3, 0))),
        kl.UpSampling2D((2, 3)),
        kl.BatchNormalization(),
        kl.BatchNormalization(scale=False, center=False),
        kl.Rescaling(3.0, offset=-1.0),
        kl.Dense(4),
        kl.Flatten(),
        kl.Reshape((20, 27)),
        kl.Reshape((-1,)),
        kl.ReLU(max_value=0.5),
        kl.LeakyReLU(negative_slope=0.2),
        kl.Activation("hard_silu"),
        kl.Softmax(),
        kl.Dropout(0.5),
    ],
)
def test_layers_of_images(layer):
    check(chain((9, 10, 6), layer), called=None if layer.name.startswith("activation") else 0)


@needs_numba
@pytest.mark.parametrize(
    ("layer", "called"),
    [
        (kl.LayerNormalization(), 1),
        (kl.Conv2DTranspose(4, 3), 1),
        (kl.AveragePooling2D(3, padding="same"), 1),
        (kl.UpSampling2D(2, interpolation="bilinear"), 1),
        (kl.Permute((2, 3, 1)), 1),
        (kl.PReLU(), 1),
        (kl.Activation("log_softmax"), 1),
        (kl.Softmax(axis=1), 1),
        (kl.BatchNormalization(axis=1), 1),
    ],
)
def test_what_is_not_known_is_called_in_keras(layer, called):
    check(chain((9, 10, 6), kl.Conv2D(6, 3, padding="same"), layer, kl.Conv2D(5, 2)), called=called)


@needs_numba
@pytest.mark.parametrize(
    "merge",
    [kl.Add(), kl.Subtract(), kl.Multiply(), kl.Maximum(), kl.Minimum(), kl.Average(),
     kl.Concatenate(), kl.Concatenate(axis=1), kl.Concatenate(axis=2)],
)  # fmt: skip
def test_layers_of_several_inputs(merge):
    x = keras.Input((5, 6, 4))
    parts = [kl.Conv2D(4, 3, padding="same", activation=a)(x) for a in (None, "relu", None)]
    y = merge(parts[:2] if isinstance(merge, kl.Subtract) else parts)
    check(keras.Model(x, kl.ReLU()(y)))


# What is computed together


@needs_numba
def test_batch_normalization_padding_sums_and_activations_take_no_step_of_their_own():
    x = keras.Input((8, 8, 3))
    y = kl.ZeroPadding2D(((2, 1), (0, 3)))(x)
    y = kl.Conv2D(6, 3, strides=2)(y)
    y = kl.ReLU()(kl.BatchNormalization()(y))
    z = kl.BatchNormalization()(kl.Conv2D(6, 1)(y))
    y = kl.Activation("relu")(kl.Add()([y, z]))
    plan = check(keras.Model(x, y))
    assert [step.kind for step in plan.steps] == ["Conv2D", "Conv2D"]


@needs_numba
def test_what_two_layers_read_is_not_changed_for_one_of_them():
    x = keras.Input((8, 8, 3))
    y = kl.Conv2D(4, 3)(x)
    normed = kl.BatchNormalization()(y)
    rectified = kl.ReLU()(y)
    padded = kl.ZeroPadding2D(1)(y)
    outputs = [kl.Add()([normed, rectified]), kl.Conv2D(3, 3)(padded), padded, y]
    check(keras.Model(x, outputs))


@needs_numba
def test_a_tensor_added_to_itself_and_an_input_that_is_an_output():
    x = keras.Input((4, 4, 3))
    y = kl.Conv2D(3, 1)(x)
    check(keras.Model(x, [kl.Add()([y, y]), x, kl.Dropout(0.5)(y)]))


@needs_numba
def test_operations_between_tensors():
    x = keras.Input((6, 6, 4))
    y = kl.Conv2D(4, 3, padding="same")(x)
    check(keras.Model(x, keras.ops.relu(y + x) * y - x), called=0)
    check(keras.Model(x, keras.ops.exp(y / 3.0) + 1.0), called=None)


@needs_numba
def test_squeeze_and_excitation():
    x = keras.Input((6, 6, 8))
    y = kl.Conv2D(8, 3, padding="same", activation="silu")(x)
    s = kl.Reshape((1, 1, 8))(kl.GlobalAveragePooling2D()(y))
    s = kl.Conv2D(8, 1, activation="sigmoid")(kl.Conv2D(2, 1, activation="silu")(s))
    check(keras.Model(x, kl.Multiply()([y, s])))


# Structures of models


@needs_numba
def test_means_of_large_images_are_not_rounded_away():
    model = chain((300, 300, 1), kl.GlobalAveragePooling2D())
    outputs, _ = in_blocks(model, np.full((2, 300, 300, 1), 0.7, "float32"))
    np.testing.assert_allclose(outputs[0], 0.7, rtol=5e-6)


@needs_numba
def test_nested_and_shared_models():
    inner_x = keras.Input((6, 6, 4))
    inner = keras.Model(inner_x, [kl.Conv2D(4, 3, padding="same")(inner_x), kl.ReLU()(inner_x)])
    block = keras.Sequential([kl.Conv2D(4, 1), kl.BatchNormalization(), kl.ReLU()])
    x, other = keras.Input((6, 6, 4)), keras.Input((6, 6, 4))
    a, b = inner(x)
    c, d = inner(kl.Add()([other, b]))
    check(keras.Model([x, other], [block(kl.Add()([a, c])), kl.Flatten()(block(d))]))


@needs_numba
def test_a_nested_model_finds_its_inputs_by_their_names():
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    inner = keras.Model([b, a], kl.Subtract()([kl.Dense(3)(a), kl.Dense(3)(b)]))
    p, q = keras.Input((5,)), keras.Input((5,))
    check(keras.Model([p, q], inner({"a": p, "b": q})), called=1)
    check(keras.Model([p, q], inner([q, p])))


@needs_numba
def test_shared_layers_are_computed_once_a_call():
    x, shared = keras.Input((6, 6, 4)), kl.Conv2D(4, 3, padding="same", activation="relu")
    check(keras.Model(x, shared(shared(x))))


@needs_numba
def test_layers_of_a_models_own():
    class Halve(kl.Layer):
        def call(self, x, training=True):
            return x if training else x / 2

    class OfTwo(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = kl.Dense(3)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x), x * 2

    x = keras.Input((6, 6, 4))
    y = Halve()(kl.Conv2D(4, 3)(x))
    check(keras.Model(x, OfTwo()(y)), called=2)


@needs_numba
def test_images_of_integers():
    x = keras.Input((6, 6, 3), dtype="uint8")
    model = keras.Model(x, kl.Conv2D(4, 3)(kl.Rescaling(1 / 255)(x)))
    shaken(model, np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 256, (20, 6, 6, 3), np.uint8)
    outputs, _ = in_blocks(model, images)
    assert_equal_outputs(outputs, by_keras(model, images))


@needs_numba
def test_integers_are_summed_as_in_keras():
    x = keras.Input((6,), dtype="uint8")
    model = keras.Model(x, [kl.Add()([x, x]), kl.Dense(4)(kl.Rescaling(0.5)(x))])
    numbers = np.random.default_rng(1).integers(0, 256, (20, 6), np.uint8)
    outputs, _ = in_blocks(model, numbers)
    assert_equal_outputs(outputs, by_keras(model, numbers))


@needs_numba
def test_an_input_of_bfloat16_is_rounded_as_in_keras(always):
    x = keras.Input((6, 5), dtype="bfloat16")
    model = shaken(keras.Model(x, kl.Dense(4)(x)), np.random.default_rng(0), 0.5)
    x = np.random.default_rng(1).standard_normal((20, 6, 5)).astype("float32")
    assert_equal_outputs([SparseModel(model).predict(x)], [model.predict_on_batch(x)])


@needs_numba
def test_mixed_precision_is_called_in_keras_and_gives_its_outputs():
    layers = [kl.Conv2D(4, 3, dtype="mixed_float16"), kl.Conv2D(4, 1, dtype="float32")]
    model = shaken(chain((6, 6, 3), *layers), np.random.default_rng(0))
    x = data(model, 5, np.random.default_rng(1))[0]
    outputs, plan = in_blocks(model, x)
    assert [step.way for step in plan.steps] == ["Keras", "sparse"]
    np.testing.assert_allclose(outputs[0], by_keras(model, x)[0], rtol=1e-2, atol=1e-2)


# Blocks or Keras, whichever is faster


def small_network(sparsity=0.9, seed=0):
    """A residual network for images of 12 x 12."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((12, 12, 3), name="image")
    y = kl.Conv2D(16, 3, padding="same", use_bias=False)(x)
    y = start = kl.ReLU()(kl.BatchNormalization()(y))
    y = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(16, 3, padding="same")(y)))
    y = kl.BatchNormalization()(kl.Conv2D(16, 3, padding="same")(y))
    y = kl.MaxPooling2D()(kl.ReLU()(kl.Add()([start, y])))
    y = kl.Dense(10, activation="softmax")(kl.GlobalAveragePooling2D()(y))
    return shaken(keras.Model(x, y), np.random.default_rng(seed), sparsity)


@pytest.fixture
def images():
    return np.random.default_rng(3).standard_normal((50, 12, 12, 3)).astype("float32")


@pytest.fixture(params=[pytest.param("blocks", marks=needs_numba), "Keras"])
def always(request, monkeypatch):
    """One of the two computes every model, whichever is faster on this machine."""
    monkeypatch.setattr(FasterOf, "_measure", lambda self, inputs: request.param == "blocks")
    return request.param


@pytest.mark.parametrize("count", [1, 50])
def test_outputs_and_their_number(always, images, count):
    model = small_network()
    outputs = SparseModel(model, n_threads=2).predict(images[:count])
    assert_equal_outputs([outputs], by_keras(model, images[:count]))
    assert SparseModel(model).predict(images[:0]).shape == (0, 10)


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.99, 1])
def test_the_faster_one_gives_the_models_outputs(images, sparsity):
    model = small_network(sparsity)
    assert_equal_outputs([SparseModel(model).predict(images)], by_keras(model, images))


@needs_numba
def test_the_number_of_threads_changes_no_digit(images, monkeypatch):
    monkeypatch.setattr(FasterOf, "_measure", lambda self, inputs: True)
    one, two = (SparseModel(small_network(), n_threads=n).predict(images) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_later_training_does_not_change_it(always, images):
    model = small_network()
    sparse = SparseModel(model)
    before = sparse.predict(images)
    model.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_array_equal(sparse.predict(images), before)


def test_without_numba_keras_computes_all(images, monkeypatch):
    monkeypatch.setattr("keras_pruning.inference.sparse_model.compiled_loops", lambda: None)
    model = small_network()
    with pytest.warns(UserWarning, match="numba is not installed, so Keras computes this model"):
        sparse = SparseModel(model)
    assert_equal_outputs([sparse.predict(images)], by_keras(model, images))
    assert set(sparse.report(images)["runs"]) == {"Keras"}


@keras.saving.register_keras_serializable()
class Centred(kl.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


@needs_numba
def test_what_mixes_examples_is_left_to_keras_with_a_warning(images):
    model = shaken(chain((12, 12, 3), kl.Conv2D(8, 3), Centred()), np.random.default_rng(0), 0.9)
    sparse = SparseModel(model)
    with pytest.warns(UserWarning, match="gives other outputs than in Keras"):
        outputs = sparse.predict(images)
    assert_equal_outputs([outputs], by_keras(model, images))


def test_masks_are_left_to_keras():
    x = keras.Input((7,), dtype="int32")
    y = kl.Embedding(20, 8, mask_zero=True)(x)
    y = kl.GlobalAveragePooling1D()(kl.Conv1D(8, 1)(y))
    model = shaken(keras.Model(x, y), np.random.default_rng(0), 0.9)
    assert "gives a mask" in plan_blocks(model)[1]
    words = np.random.default_rng(0).integers(0, 3, (20, 7))
    assert_equal_outputs([SparseModel(model).predict(words)], by_keras(model, words))


@pytest.fixture
def blocks_are_faster(monkeypatch):
    """Blocks compute every model whose outputs they were seen to give."""
    measure = FasterOf._measure
    both = lambda self, inputs: measure(self, inputs) or self.blocks is not None  # noqa: E731
    monkeypatch.setattr(FasterOf, "_measure", both)


@needs_numba
@pytest.mark.filterwarnings("ignore:Computed in blocks")
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_what_mixes_examples_is_found_once_there_are_two_blocks(blocks_are_faster, n_threads):
    model = shaken(chain((5, 6), kl.Dense(8), Centred()), np.random.default_rng(0), 0.9)
    sparse = SparseModel(model, n_threads=n_threads)
    x = np.random.default_rng(0).standard_normal((40, 5, 6)).astype("float32")
    for count in (8, 9, 16, 17, 32, 33, 40):
        assert_equal_outputs([sparse.predict(x[:count])], by_keras(model, x[:count]))


@needs_numba
def test_a_missing_number_in_the_first_call_hides_no_mixing(blocks_are_faster):
    model = shaken(chain((5, 6), kl.Dense(8), Centred()), np.random.default_rng(0), 0.9)
    sparse = SparseModel(model)
    x = np.random.default_rng(0).standard_normal((40, 5, 6)).astype("float32")
    missing = x.copy()
    missing[0, 0, 0] = np.nan
    with pytest.warns(UserWarning, match="gives other outputs than in Keras"):
        sparse.predict(missing)
    assert_equal_outputs([sparse.predict(x)], by_keras(model, x))


@needs_numba
def test_what_makes_more_examples_of_them_is_left_to_keras_with_a_warning():
    x = keras.Input((9, 4))
    y = kl.Dense(3)(keras.ops.reshape(x, (-1, 4)))
    model = keras.Model(x, keras.ops.reshape(y, (-1, 9, 3)))
    sparse = SparseModel(shaken(model, np.random.default_rng(0), 0.9))
    x = np.random.default_rng(0).standard_normal((20, 9, 4)).astype("float32")
    with pytest.warns(UserWarning, match="gives other outputs than in Keras, or none"):
        outputs = sparse.predict(x)
    assert_equal_outputs([outputs], by_keras(model, x))


@keras.saving.register_keras_serializable()
class Words(kl.Layer):
    """Holds an Embedding that gives a mask."""

    def __init__(self, **options):
        super().__init__(**options)
        self.embedding = kl.Embedding(9, 4, mask_zero=True)

    def build(self, shape):
        self.embedding.build(shape)

    def call(self, x):
        return self.embedding(x)


@pytest.mark.parametrize("kind", ["nested", "own"])
def test_masks_from_inside_of_layers_are_left_to_keras(always, kind):
    nested = keras.Sequential([keras.Input((None,), dtype="int32"), Words().embedding])
    x = keras.Input((7,), dtype="int32")
    y = (nested if kind == "nested" else Words())(x)
    model = keras.Model(x, kl.GlobalAveragePooling1D()(kl.Dense(4)(y)))
    shaken(model, np.random.default_rng(0), 0.5)
    words = np.random.default_rng(0).integers(0, 3, (20, 7)).astype("int32")
    assert_equal_outputs([SparseModel(model).predict(words)], by_keras(model, words))


@needs_numba
def test_words_without_a_mask():
    x = keras.Input((7,), dtype="int32")
    y = kl.Conv1D(8, 3)(kl.Embedding(20, 8)(x))
    model = shaken(keras.Model(x, y), np.random.default_rng(0), 0.5)
    words = np.random.default_rng(0).integers(0, 20, (20, 7)).astype("int32")
    outputs, _ = in_blocks(model, words)
    assert_equal_outputs(outputs, by_keras(model, words))


def test_a_model_that_shows_no_graph_is_left_to_keras(images):
    @keras.saving.register_keras_serializable()
    class Own(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.conv = kl.Conv2D(4, 3)

        def call(self, x):
            return self.conv(x)

    model = Own()
    model(images)
    sparse = SparseModel(model)
    assert_equal_outputs([sparse.predict(images)], by_keras(model, images))
    assert list(sparse.report(images)["runs"]) == ["Keras"]
    with pytest.raises(ValueError, match="cannot be saved.*no functional or Sequential model"):
        sparse.save("anywhere.npz")


def test_a_fixed_number_of_examples_is_left_to_keras():
    x = keras.Input(batch_shape=(4, 6, 6, 3))
    model = shaken(keras.Model(x, kl.Conv2D(4, 3)(x)), np.random.default_rng(0), 0.9)
    assert "fixed number of examples" in plan_blocks(model)[1]
    images = np.ones((4, 6, 6, 3), "float32")
    assert_equal_outputs([SparseModel(model).predict(images)], by_keras(model, images))


def test_very_large_images_are_called_in_keras():
    model = keras.Sequential(
        [keras.Input((2049, 4096, 1)), kl.MaxPooling2D(32), kl.Conv2D(4, 3), kl.Flatten()]
    )
    model = kp.prune_weights(model, 0.8, layers=[model.layers[1].name])
    plan, _ = plan_blocks(model)
    assert [type(step) is Call for step in plan.steps] == [True, False, False]


def test_images_of_any_size():
    x = keras.Input((None, None, 3))
    y = kl.GlobalAveragePooling2D()(kl.Conv2D(4, 3, activation="relu")(x))
    model = shaken(keras.Model(x, kl.Dense(3)(y)), np.random.default_rng(0), 0.5)
    images = np.random.default_rng(0).standard_normal((20, 7, 8, 3)).astype("float32")
    assert_equal_outputs([SparseModel(model).predict(images)], by_keras(model, images))


# Several inputs and outputs


def two_inputs(form):
    a, b = keras.Input((6, 6, 3), name="a"), keras.Input((5,), name="b")
    y = kl.Concatenate()([kl.Flatten()(kl.Conv2D(4, 3)(a)), kl.Dense(7)(b)])
    outputs = {"sum": kl.Dense(3)(y), "all": y} if form == "dict" else [kl.Dense(3)(y), y]
    inputs = {"b": b, "a": a} if form == "dict" else [b, a]
    return shaken(keras.Model(inputs, outputs), np.random.default_rng(0), 0.8)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_structures_of_inputs_and_outputs(always, form):
    model, rng = two_inputs(form), np.random.default_rng(0)
    a, b = (rng.standard_normal((20, *s)).astype("float32") for s in ((6, 6, 3), (5,)))
    outputs = SparseModel(model).predict({"a": a, "b": b})
    assert type(outputs) is (dict if form == "dict" else list)
    expected = by_keras(model, {"b": b, "a": a} if form == "dict" else [b, a])
    assert_equal_outputs(keras.tree.flatten(outputs), expected)
    if form == "list":
        assert_equal_outputs(SparseModel(model).predict([b, a]), expected)


def test_an_output_that_is_given_twice_and_one_in_a_list(always, images):
    x = keras.Input((12, 12, 3))
    y = kl.Conv2D(4, 3)(x)
    for outputs in ([y, kl.ReLU()(y), y], [y]):
        model = shaken(keras.Model(x, outputs), np.random.default_rng(0), 0.8)
        predicted = keras.tree.flatten(SparseModel(compiled(model)).predict(images))
        assert_equal_outputs(predicted, by_keras(model, images))


@pytest.mark.parametrize(
    ("form", "x", "message"),
    [
        ("dict", {"a": 1}, "dict of inputs named"),
        ("list", {"a": 1}, "hold inputs named"),
        ("list", [1, 2, 3], "list of 2 arrays. Received: 3"),
        ("list", [np.ones((2, 5)), np.ones((3, 6, 6, 3))], "as many examples"),
        ("list", [np.ones((2, 6)), np.ones((2, 6, 6, 3))], r"shape \(examples, 5\).*input 'b'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(form, x, message):
    with pytest.raises(ValueError, match=message):
        SparseModel(two_inputs(form)).predict(x)


@pytest.mark.parametrize("shape", [(5, 12, 12, 4), (12, 12, 3), (5, 432), ()])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(examples, 12, 12, 3\).*Received: \("):
        SparseModel(small_network()).predict(np.zeros(shape))


@pytest.mark.parametrize("kind", [str, complex, object])
def test_images_that_are_no_numbers_are_refused(kind):
    with pytest.raises(TypeError, match="real numbers. Received: dtype"):
        SparseModel(small_network()).predict(np.zeros((5, 12, 12, 3)).astype(kind))


@pytest.mark.parametrize("nested", [False, True])
def test_weights_that_are_not_finite_are_refused_by_layer(nested):
    model = small_network()
    conv = model.layers[1]
    weights = conv.get_weights()
    weights[0].flat[3] = np.nan
    conv.set_weights(weights)
    model = chain((12, 12, 3), model) if nested else model
    with pytest.raises(ValueError, match=f"'{conv.name}' has weights that are NaN"):
        SparseModel(model)


# Loss, report, counts


def compiled(model):
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_evaluate_gives_the_keras_models_loss_and_metrics(always, images):
    model = compiled(small_network())
    y = np.random.default_rng(2).integers(0, 10, len(images))
    expected = model.evaluate(images, y, verbose=0, return_dict=True)
    assert SparseModel(model).evaluate(images, y) == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_several_outputs_or_weights_is_not_told_by_one_output():
    model = two_inputs("list")
    model.compile(loss="mse")
    assert not SparseModel(model).compiled
    regular = keras.regularizers.L2(0.1)
    model = chain((6, 6, 3), kl.Conv2D(4, 3, kernel_regularizer=regular))
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="no loss and metrics to evaluate.*use predict"):
        SparseModel(model).evaluate(np.ones((2, 6, 6, 3)), np.ones((2, 4, 4, 4)))


def test_a_report_tells_how_each_step_runs(always, images):
    model = small_network(0.9)
    report = SparseModel(model).report(images)
    assert list(report) == ["layer", "type", "runs", "zeros", "time"]
    if always == "Keras":
        assert list(report["layer"]) == [layer.name for layer in model.layers[1:]]
        assert set(report["runs"]) == {"Keras"}
        return
    assert list(report["runs"]) == [*["sparse"] * 3, "dense", "dense", "sparse"]
    kinds = [*["Conv2D"] * 3, "MaxPooling2D", "GlobalAveragePooling2D", "Dense"]
    assert list(report["type"]) == kinds
    kernel = model.layers[1].get_weights()[0]
    assert report["zeros"][0] == pytest.approx((kernel == 0).mean())
    assert np.isnan(report["zeros"][3])
    assert report["time"].sum() == pytest.approx(1)


@needs_numba
def test_a_report_without_examples(blocks_are_faster, images):
    sparse = SparseModel(small_network())
    steps = list(sparse.report(images)["layer"])
    assert list(sparse.report(images[:0])["layer"]) == steps


def test_a_report_of_a_chain_of_dense_layers():
    model = shaken(chain((70,), kl.Dense(50, activation="relu"), kl.Dense(3)),
                   np.random.default_rng(0), 0.9)  # fmt: skip
    report = SparseModel(model).report(np.ones((40, 70)))
    assert list(report["type"]) == ["Dense", "Dense"]
    assert report["time"].sum() == pytest.approx(1)


def test_counts_of_weights_and_products():
    model = chain((6, 6, 2), kl.Conv2D(3, 3), kl.Flatten(), kl.Dense(2, use_bias=False))
    kernel = np.zeros((3, 3, 2, 3))
    kernel[0, 0, 0] = kernel[2, 2, 1] = 1
    model.set_weights([kernel, np.ones(3), np.ones((48, 2))])
    counts = SparseModel(model).counts
    assert counts == (54 + 3 + 96, 6 + 3 + 96, 16 * 54 + 96, 16 * 6 + 96)


def test_measure_takes_it(images):
    model = compiled(small_network())
    y = np.random.default_rng(2).integers(0, 10, len(images))
    found = kp.measure(SparseModel(model), images, y, batch_sizes=(1,), repeats=2)
    assert found.multiply_adds_nonzero < 0.3 * found.multiply_adds
    assert found.file_bytes == SparseModel(model).size_bytes
    assert found.accuracy == pytest.approx(kp.measure(model, images, y).accuracy)


# Files


@needs_numba
@pytest.mark.parametrize("form", ["list", "dict"])
def test_a_loaded_model_gives_exactly_the_same_outputs(tmp_path, form, monkeypatch):
    monkeypatch.setattr(FasterOf, "_measure", lambda self, inputs: True)
    sparse = SparseModel(two_inputs(form))
    sparse.save(tmp_path / "network.npz")
    assert sparse.size_bytes == (tmp_path / "network.npz").stat().st_size
    loaded = SparseModel.load(tmp_path / "network.npz", n_threads=1)
    rng = np.random.default_rng(0)
    x = {"a": rng.standard_normal((40, 6, 6, 3)), "b": rng.standard_normal((40, 5))}
    before, after = sparse.predict(x), loaded.predict(x)
    assert type(before) is type(after)
    for own, other in zip(keras.tree.flatten(after), keras.tree.flatten(before), strict=True):
        np.testing.assert_array_equal(own, other)
    assert len(loaded.report(x)) == len(sparse.report(x))
    assert loaded.counts == sparse.counts
    assert not loaded.compiled


@needs_numba
@pytest.mark.parametrize("seed", range(0, RANDOM_MODELS, 5))
def test_random_models_from_files(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(FasterOf, "_measure", lambda self, inputs: True)
    rng = np.random.default_rng(seed)
    model = shaken(random_model(rng), rng)
    sparse = SparseModel(model)
    called = [step.kind for step in plan_blocks(model)[0].steps if isinstance(step, Call)]
    if called:
        with pytest.raises(ValueError, match="cannot be saved: Keras computes"):
            sparse.save(tmp_path / "network.npz")
        return
    sparse.save(tmp_path / "network.npz")
    x = data(model, 20, rng)
    outputs = SparseModel.load(tmp_path / "network.npz").predict(x)
    assert_equal_outputs(keras.tree.flatten(outputs), by_keras(model, x))


@needs_numba
@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_copy_and_a_pickled_model_give_the_same_outputs(tmp_path, images, is_loaded, always):
    sparse = SparseModel(small_network())
    expected = sparse.predict(images)
    if is_loaded:
        sparse.save(tmp_path / "network.npz")
        sparse = SparseModel.load(tmp_path / "network.npz")
    for again in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert again.n_threads == sparse.n_threads
        np.testing.assert_allclose(again.predict(images), expected, rtol=1e-5, atol=1e-6)


@needs_numba
def test_a_file_is_small_and_holds_no_code(tmp_path):
    model = small_network(0.95)
    SparseModel(model).save(tmp_path / "network.npz")
    model.save(tmp_path / "network.keras")
    sizes = [(tmp_path / f"network.{end}").stat().st_size for end in ("npz", "keras")]
    assert sizes[0] < 0.3 * sizes[1]
    with np.load(tmp_path / "network.npz", allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


@needs_numba
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "network.npz"
    SparseModel(small_network()).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="network.npz' is damaged, or no file that"):
            SparseModel.load(path)


@needs_numba
@pytest.mark.parametrize(
    ("step", "field", "value"),
    [
        (0, "shape", [16, 3, 2, 2]),
        (0, "shape", [16, 3, -3, -3]),
        (0, "pads", [-1, 1]),
        (1, "added", 0),
        (3, "window", [9, 9]),
    ],
)
def test_a_file_whose_numbers_do_not_fit_is_refused(tmp_path, step, field, value):
    path = tmp_path / "network.npz"
    SparseModel(small_network()).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    assert field in header["steps"][step][1]
    header["steps"][step][1][field] = value
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="network.npz' is damaged.*does not fit"):
        SparseModel.load(path)


@needs_numba
def test_infinite_inputs_change_no_other_example(images):
    changed = images.copy()
    changed[7, 3, 3, 1] = np.inf
    model = small_network()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        outputs = SparseModel(model).predict(changed)
    others = np.arange(len(images)) != 7
    assert_equal_outputs([outputs[others]], [by_keras(model, images)[0][others]])


# Random models

ACTIVATIONS = (
    "elu", "gelu", "hard_sigmoid", "leaky_relu", "mish", "relu6", "selu", "sigmoid", "silu",
    "softmax", "softplus", "softsign", "tanh",
)  # fmt: skip


def random_model(rng):
    """A functional model of layers of any kind, with branches that meet again."""
    is_image = rng.random() < 0.75
    size = tuple(int(n) for n in rng.integers(5, 12, 2 if is_image else 1))
    n_inputs = 1 + (rng.random() < 0.2)
    channels = int(rng.integers(1, 20))
    inputs = [keras.Input((*size, channels)) for _ in range(n_inputs)]
    tensors = list(inputs)
    conv, depthwise, separable, largest, mean, pad, crop, up, total = (
        (kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D, kl.MaxPooling2D, kl.AveragePooling2D,
         kl.ZeroPadding2D, kl.Cropping2D, kl.UpSampling2D, kl.GlobalAveragePooling2D)
        if is_image
        else (kl.Conv1D, kl.DepthwiseConv1D, kl.SeparableConv1D, kl.MaxPooling1D,
              kl.AveragePooling1D, kl.ZeroPadding1D, kl.Cropping1D, kl.UpSampling1D,
              kl.GlobalAveragePooling1D)
    )  # fmt: skip

    def pick(*options):
        return options[int(rng.integers(len(options)))]

    def activation():
        return pick(None, "relu", "relu", *ACTIVATIONS)

    def layer(x):
        least = min(x.shape[1:-1])
        filters, k = int(rng.integers(1, 24)), int(rng.integers(1, min(4, least) + 1))
        padding, strides = pick("same", "valid"), pick(1, 1, 2)
        kinds = [
            lambda: conv(filters, k, strides=strides, padding=padding, activation=activation()),
            lambda: conv(filters, k, padding="same", dilation_rate=pick(1, 2), use_bias=False),
            lambda: depthwise(k, strides=strides, padding=padding, depth_multiplier=pick(1, 2)),
            lambda: separable(filters, k, padding=padding, activation=activation()),
            lambda: largest(min(2, least), strides=strides, padding=padding),
            lambda: mean(min(2, least), strides=strides),
            lambda: pad(pick(1, 2)),
            lambda: crop(1) if least > 3 else kl.ReLU(),
            lambda: up(2) if least < 8 else kl.BatchNormalization(),
            lambda: kl.BatchNormalization(),
            lambda: kl.LayerNormalization(),
            lambda: kl.Activation(pick("relu", "gelu", "softplus")),
            lambda: kl.LeakyReLU(),
            lambda: kl.Dropout(0.3),
            lambda: kl.Dense(filters, activation=activation()),
            lambda: keras.Sequential([conv(filters, 1), kl.BatchNormalization(), kl.ReLU()]),
        ]
        return kinds[int(rng.integers(len(kinds)))]()

    for _ in range(int(rng.integers(3, 12))):
        x = tensors[-1] if rng.random() < 0.7 else pick(*tensors)
        y = layer(x)(x)
        tensors.append(y)
        alike = [t for t in tensors[:-1] if t.shape == y.shape]
        if alike and rng.random() < 0.7:
            merge = pick(kl.Add(), kl.Add(), kl.Multiply(), kl.Concatenate(), kl.Maximum())
            tensors.append(merge([pick(*alike), y]))
            if rng.random() < 0.5:
                tensors.append(kl.ReLU()(tensors[-1]))
    last = tensors[-1]
    head = pick(kl.Flatten(), total())(last)
    head = kl.Dense(int(rng.integers(1, 8)), activation=pick(None, "softmax"))(head)
    outputs = [head, *([pick(*tensors)] if rng.random() < 0.3 else [])]
    used = keras.Function(inputs, outputs) if n_inputs == 1 else None
    if used is None:
        outputs.append(kl.Add()([total()(x) for x in inputs]))
    return keras.Model(inputs, outputs)


@needs_numba
@pytest.mark.parametrize("seed", range(RANDOM_MODELS))
def test_random_models(seed):
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    check(random_model(rng), seed, counts=(int(rng.choice([1, 15, 17, 40])),), called=None,
          sparsity=None)  # fmt: skip


@needs_numba
@pytest.mark.parametrize("n_threads", [2, 3, 8])
@pytest.mark.parametrize("seed", range(6))
def test_a_single_block_is_shared_by_rows_or_columns(seed, n_threads, monkeypatch):
    monkeypatch.setattr(block_layers, "_LEAST_SHARED", 0)
    rng = np.random.default_rng(seed)
    model = shaken(random_model(rng), rng)
    x = data(model, 5, rng)
    given = x[0] if len(x) == 1 else x
    alone, _ = in_blocks(model, given, n_threads=1)
    shared, _ = in_blocks(model, given, n_threads)
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)
    assert_equal_outputs(shared, by_keras(model, given))
