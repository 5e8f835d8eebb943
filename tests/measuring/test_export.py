"""LiteRT files: the model's answers, whole or not at all."""

import sys

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp

tf = pytest.importorskip("tensorflow")

pytestmark = pytest.mark.skipif(
    "litert" not in keras.Model.export.__doc__, reason="this Keras cannot write LiteRT files"
)


def image_network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((9, 10), dtype="uint8"),
            kl.Rescaling(1 / 255),
            kl.Flatten(),
            kl.Dense(60, activation="relu"),
            kl.Dropout(0.5),
            kl.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (300, 9, 10), np.uint8)


@pytest.fixture(scope="module")
def model():
    return kp.prune_weights(image_network(), 0.9)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    kp.export_litert(model, path)
    return path


def outputs(model, x):
    return model.predict_on_batch(x)


def test_the_file_gives_the_models_outputs_in_more_than_one_batch(exported, model, images):
    found = kp.litert_predict(exported, images)
    expected = outputs(model, images)
    assert np.ptp(expected, axis=0).min() > 0.1  # the outputs tell the examples apart
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_int8_is_a_quarter_of_the_size_and_close(exported, model, images, tmp_path):
    path = tmp_path / "int8.tflite"
    kp.export_litert(model, path, int8=True)
    expected = outputs(model, images)
    difference = np.abs(kp.litert_predict(path, images) - expected).max()
    assert 0 < difference < 0.03 * np.abs(expected).max()
    saved = exported.stat().st_size - path.stat().st_size
    assert saved > 0.7 * 4 * model.layers[2].kernel.shape[0] * 60


def test_a_convolutional_network_with_batch_normalization(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [kl.Conv2D(4, 3), kl.BatchNormalization(), kl.ReLU(), kl.Flatten(), kl.Dense(2)]
    model = kp.shrink(kp.prune_units(keras.Sequential([keras.Input((6, 6, 1)), *layers]), 0.5))
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 1)).astype("float32")
    kp.export_litert(model, tmp_path / "conv.tflite")
    found = kp.litert_predict(tmp_path / "conv.tflite", x)
    np.testing.assert_allclose(found, outputs(model, x), rtol=1e-4, atol=1e-6)


# ---- files that run with LiteRT's own operations


def chain(shape, *layers, **options):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape, **options), *layers])


def assert_file_answers(model, x, path, tolerance=1e-5):
    kp.export_litert(model, path)
    assert b"Flex" not in path.read_bytes()  # as LiteRT names what only TensorFlow can run
    expected = model.predict(x, verbose=0).astype("float64")
    assert np.ptp(expected, axis=0).min() > 20 * tolerance  # the outputs tell the examples apart
    np.testing.assert_allclose(kp.litert_predict(path, x), expected, atol=tolerance)
    assert list(path.parent.iterdir()) == [path]


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize(
    "layer",
    [
        kl.LSTM(4),
        kl.GRU(4, unroll=True),
        kl.SimpleRNN(4, return_sequences=True),
        kl.Bidirectional(kl.GRU(3)),
        kl.RNN(kl.LSTMCell(3)),
    ],
    ids=["lstm", "gru_unrolled", "rnn", "bidirectional", "cell"],
)
def test_the_file_of_a_recurrent_network_runs(layer, tmp_path):
    model = chain((6, 3), layer, kl.Dense(2))
    assert_file_answers(kp.prune_weights(model, 0.5), normal(7, 6, 3), tmp_path / "model.tflite")


def test_the_file_of_a_recurrent_network_takes_sequences_of_any_length_and_several_inputs(tmp_path):
    words, other = keras.Input((None, 3), name="words"), keras.Input((6, 3), name="other")
    model = keras.Model(words, kl.Dense(2)(kl.LSTM(4)(words)))
    assert_file_answers(model, normal(5, 9, 3), tmp_path / "model.tflite")
    both = keras.Model({"words": words, "other": other}, kl.GRU(2)(words) + kl.LSTM(2)(other))
    kp.export_litert(both, tmp_path / "both.tflite")
    interpreter = tf.lite.Interpreter(str(tmp_path / "both.tflite"))
    x = {"words": normal(1, 4, 3), "other": normal(1, 6, 3)}
    found = interpreter.get_signature_runner()(**x)
    np.testing.assert_allclose(*found.values(), both.predict(x, verbose=0), atol=1e-5)


def test_a_batch_that_the_input_fixes_stays_and_its_last_part_is_answered(tmp_path):
    model = chain((6, 3), kl.LSTM(4), batch_size=4)
    kp.export_litert(model, tmp_path / "model.tflite")
    x = normal(8, 6, 3)
    expected = model.predict(x, batch_size=4, verbose=0)
    for examples in (8, 6, 1):
        found = kp.litert_predict(tmp_path / "model.tflite", x[:examples])
        np.testing.assert_allclose(found, expected[:examples], atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("mixed_float16", 0.005), ("float16", 0.005), ("float64", 1e-5)]
)
def test_the_file_of_a_network_in_another_precision_runs(dtype, tolerance, tmp_path):
    layers = [kl.Conv2D(4, 3, dtype=dtype), kl.BatchNormalization(dtype=dtype), kl.Flatten()]
    model = chain((5, 5, 1), *layers, kl.Dense(3, dtype=dtype))
    model.compile("adam", "mse")
    before = model.layers[0].compute_dtype
    assert_file_answers(model, normal(20, 5, 5, 1), tmp_path / "model.tflite", tolerance)
    assert model.layers[0].compute_dtype == before  # a copy was exported


@keras.saving.register_keras_serializable("test_export")
class Block(kl.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = kl.Dense(3)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


def test_layers_within_custom_layers_are_cast_too(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = chain((5,), Block(), kl.ReLU(), kl.Dense(2))
        assert_file_answers(model, normal(20, 5), tmp_path / "model.tflite", 0.01)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_model_with_operations_that_litert_lacks_is_refused_and_leaves_no_file(tmp_path):
    model = chain((4,), kl.Dense(3), kl.Lambda(lambda x: tf.math.betainc(x, x, x)))
    with pytest.raises(ValueError, match="LiteRT does not have: Betainc. No file was written"):
        kp.export_litert(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_a_subclassed_recurrent_model_is_refused_with_a_remedy_that_works(tmp_path):
    class Reader(keras.Model):
        def __init__(self):
            super().__init__()
            self.lstm = kl.LSTM(3)

        def call(self, x):
            return self.lstm(x)

    model = Reader()
    x = normal(5, 6, 3)
    expected = model.predict(x, verbose=0)
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"'lstm.*Input\(shape, batch_size=1\), then export"):
        kp.export_litert(model, path)
    assert not list(tmp_path.iterdir())
    inputs = keras.Input((6, 3), batch_size=1)
    kp.export_litert(keras.Model(inputs, model(inputs)), path)
    np.testing.assert_allclose(kp.litert_predict(path, x), expected, atol=1e-5)


def test_a_file_that_no_interpreter_runs_is_refused_and_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    export = keras.Model.export

    def unbounded(self, path, target_spec, input_signature, **options):
        export(self, path, **options)

    monkeypatch.setattr(keras.Model, "export", unbounded)
    with pytest.raises(ValueError, match="LiteRT cannot run the file.*none was written"):
        kp.export_litert(chain((6, 3), kl.LSTM(4)), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_a_model_quantised_by_keras_is_refused_with_a_remedy_and_leaves_no_file(tmp_path):
    model = image_network()
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"quantised by Keras.*before quantize\(\), with int8"):
        kp.export_litert(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def fail(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(keras.Sequential, "export", fail)
    with pytest.raises(OSError, match="disk full"):
        kp.export_litert(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["model", "model.keras", "model.tflite.gz"])
def test_another_ending_is_refused(model, tmp_path, name):
    with pytest.raises(ValueError, match=f"must end in '.tflite'.*{name}"):
        kp.export_litert(model, tmp_path / name)


def test_what_is_no_built_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Expected a Keras model. Received: int"):
        kp.export_litert(3, tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="is not built"):
        kp.export_litert(keras.Sequential([kl.Dense(2)]), tmp_path / "model.tflite")


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_are_refused_with_a_remedy(model, tmp_path, monkeypatch, backend):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(ValueError, match=f"this is '{backend}'.*KERAS_BACKEND=tensorflow"):
        kp.export_litert(model, tmp_path / "model.tflite")


@pytest.mark.parametrize("shape", [(4, 9, 11), (9, 10), (0, 9, 10), (4, 90)])
def test_inputs_of_another_shape_are_refused(exported, shape):
    with pytest.raises(ValueError, match=r"shape \(examples, 9, 10\), at least one"):
        kp.litert_predict(exported, np.zeros(shape, np.uint8))


def test_several_inputs_are_refused(tmp_path):
    a, b = keras.Input((2,)), keras.Input((2,))
    kp.export_litert(keras.Model([a, b], a + b), tmp_path / "sum.tflite")
    with pytest.raises(ValueError, match="has 2 and 1"):
        kp.litert_predict(tmp_path / "sum.tflite", np.zeros((1, 2), np.float32))


def test_another_file_is_refused_by_name(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="other.tflite' is damaged, or no LiteRT file"):
        kp.litert_predict(path, np.zeros((1, 2)))
    with pytest.raises(FileNotFoundError):
        kp.litert_predict(tmp_path / "missing.tflite", np.zeros((1, 2)))


def test_without_an_interpreter_the_error_names_the_package(exported, monkeypatch):
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "keras-pruning\[litert\]"'):
        kp.litert_predict(exported, np.zeros((1, 9, 10), np.uint8))


def test_a_keras_without_litert_is_named(model, tmp_path, monkeypatch):
    def export(self, path, format, **options):
        raise ValueError(f"Unrecognized format={format}. Supported formats are: ['onnx'].")

    monkeypatch.setattr(keras.Model, "export", export)
    with pytest.raises(ValueError, match="Keras .* cannot write LiteRT files. Take a newer one"):
        kp.export_litert(model, tmp_path / "model.tflite")
