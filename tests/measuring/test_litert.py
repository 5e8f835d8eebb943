"""LiteRT files: the model's answers, whole or not at all."""

import errno
import os
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
    kp.export_litert(model, path, sparse=False)
    return path


def chain(shape, *layers, **options):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape, **options), *layers])


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def outputs(model, x):
    return model.predict_on_batch(x)


def test_the_file_gives_the_models_outputs_in_more_than_one_batch(exported, model, images):
    found = kp.litert_predict(exported, images)
    expected = outputs(model, images)
    assert np.ptp(expected, axis=0).min() > 0.1  # the outputs tell the examples apart
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_int8_is_a_quarter_of_the_size_and_close(exported, model, images, tmp_path):
    path = tmp_path / "int8.tflite"
    assert kp.export_litert(model, path, sparse=False, int8=True) == "dense int8"
    expected = outputs(model, images)
    difference = np.abs(kp.litert_predict(path, images) - expected).max()
    assert 0 < difference < 0.03 * np.abs(expected).max()
    saved = exported.stat().st_size - path.stat().st_size
    assert saved > 0.7 * 4 * model.layers[2].kernel.shape[0] * 60


# ---- zeros that are stored as such


def written(model, path, **options):
    """How the kernels are stored, and the file's bytes."""
    return kp.export_litert(model, path, **options), path.stat().st_size


def test_the_smallest_file_is_taken_and_gives_the_models_outputs(model, images, tmp_path):
    path = tmp_path / "model.tflite"
    sizes = {
        f"{kind} {numbers}": written(model, tmp_path / "one.tflite", sparse=sparse, int8=int8)[1]
        for kind, sparse in (("dense", False), ("sparse", True))
        for numbers, int8 in (("float32", False), ("int8", True))
        if (kind, numbers) != ("sparse", "int8")  # refused, see below
    }
    assert sizes["sparse float32"] < sizes["dense int8"] < sizes["dense float32"]
    for int8 in (False, True):
        assert written(model, path, int8=int8) == ("sparse float32", sizes["sparse float32"])
        np.testing.assert_allclose(
            kp.litert_predict(path, images), outputs(model, images), rtol=1e-4, atol=1e-6
        )
    fewer = kp.prune_weights(image_network(), 0.5)
    assert written(fewer, path, int8=True)[0] == "dense int8"


def dense_chain(sparsity):
    return kp.prune_weights(chain((90,), kl.Dense(60, use_bias=False), kl.Dense(3)), sparsity)


@pytest.mark.parametrize("sparsity", [0, 0.15, 0.29])
def test_where_no_kernel_has_zeros_enough_the_file_is_dense(sparsity, tmp_path):
    network = dense_chain(sparsity)
    size = written(network, tmp_path / "model.tflite", sparse=False)[1]
    for sparse in ("auto", True):
        found = written(network, tmp_path / "model.tflite", sparse=sparse)
        assert found == ("dense float32", size)


def test_what_litert_does_not_run_is_refused_and_leaves_no_file(model, tmp_path):
    both = [tf.lite.Optimize.DEFAULT, tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    path = tmp_path / "model.tflite"
    model.export(path, format="litert", verbose=False, optimizations=both)
    try:
        kp.litert_predict(path, np.zeros((1, 9, 10), np.uint8))
        pytest.skip("this LiteRT runs files that are both sparse and int8")
    except RuntimeError:  # up to 2.3
        path.unlink()
    with pytest.raises(ValueError, match="LiteRT cannot run the file.*so none was written"):
        kp.export_litert(model, path, sparse=True, int8=True)
    assert not list(tmp_path.iterdir())


def test_a_sparse_file_with_other_answers_is_not_taken(model, images, tmp_path, monkeypatch):
    export, path = keras.Model.export, tmp_path / "model.tflite"
    other = kp.prune_weights(model, 0.95)

    def damaged(self, *arguments, optimizations, **options):
        wrong = tf.lite.Optimize.EXPERIMENTAL_SPARSITY in optimizations
        export(other if wrong else self, *arguments, optimizations=optimizations, **options)

    monkeypatch.setattr(keras.Sequential, "export", damaged)
    with pytest.raises(ValueError, match="not seen to answer with sparse float32 kernels as with"):
        kp.export_litert(model, path, sparse=True)
    assert not list(tmp_path.iterdir())
    assert kp.export_litert(model, path) == "dense float32"
    np.testing.assert_allclose(kp.litert_predict(path, images), outputs(model, images), rtol=1e-4)


def test_another_value_of_sparse_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="sparse must be True, False or 'auto'. Received: 'CSR'"):
        kp.export_litert(model, tmp_path / "model.tflite", sparse="CSR")


def test_a_pruned_model_of_several_inputs_and_outputs_is_stored_sparse(tmp_path):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((40,), name="b"), keras.Input((30,), name="a")  # named against their order
    ya, yb = kl.Dense(50)(a), kl.Dense(50)(b)
    network = kp.prune_weights(keras.Model([a, b], [kl.Dense(2)(ya + yb), kl.Dense(3)(yb)]), 0.8)
    assert written(network, tmp_path / "model.tflite")[0] == "sparse float32"
    runner = tf.lite.Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    x = {"b": normal(5, 40), "a": normal(5, 30)}
    by_width = {x[name].shape[1]: x[name] for name in x}
    named = {key: by_width[d["shape"][1]] for key, d in runner.get_input_details().items()}
    found = sorted(runner(**named).values(), key=lambda y: y.shape[1])
    for one, expected in zip(found, network.predict_on_batch([x["b"], x["a"]]), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)


# ---- what is in a file


def test_the_report_counts_bytes_and_zeros_as_they_are_stored(tmp_path):
    path = tmp_path / "model.tflite"
    kp.export_litert(dense_chain(0.9), path)
    table = kp.litert_report(path).tensors
    assert list(table) == ["name", "shape", "type", "stored", "bytes", "zeros"]
    rows = {row.shape: row[3:] for row in table.itertuples(index=False)}
    # 540 numbers of 4 bytes, a place of 1 byte for each, 61 ends of rows of 2 bytes
    assert rows[60, 90] == ("CSR", 540 * 4 + 540 + 61 * 2, 4860)
    assert rows[3, 60] == ("dense", 3 * 60 * 4, 0)
    assert table["bytes"].sum() < path.stat().st_size < table["bytes"].sum() + 3000
    kp.export_litert(dense_chain(0.9), path, sparse=False, int8=True)
    table = kp.litert_report(path).tensors
    row = table[table["shape"] == (60, 90)].iloc[0]
    assert tuple(row[2:5]) == ("int8", "dense", 60 * 90) and 4860 <= row["zeros"] < 4900


def test_few_numbers_are_stored_in_blocks_of_four_and_answered_right(tmp_path):
    path = tmp_path / "model.tflite"
    layers = [kl.Dense(256, use_bias=False), kl.Dense(3, use_bias=False)]
    network = kp.prune_weights(chain((512,), *layers), 0.99)
    kernel = network.layers[0].get_weights()[0]
    blocks = int(kernel.T.reshape(256, 128, 4).any(axis=2).sum())
    x = normal(20, 512)
    for int8 in (False, True):  # sparse int8 runs here, with other answers, in LiteRT 2.3
        assert kp.export_litert(network, path, int8=int8).startswith("sparse")
        expected = outputs(network, x)
        difference = np.abs(kp.litert_predict(path, x) - expected).max()
        assert difference < (0.03 if int8 else 1e-5) * np.abs(expected).max()
    kp.export_litert(network, path)
    table = kp.litert_report(path).tensors
    row = table[table["shape"] == (256, 512)].iloc[0]
    assert row["stored"] == "block" and row["zeros"] == (kernel == 0).sum()
    assert 16 * blocks < row["bytes"] < 20 * blocks + 4 * 257


def mobile(*, channels=3, padding="valid", last=kl.GlobalAveragePooling2D, extra=()):
    """A network as XNNPACK's sparse inference takes it: its README's rules, one by one."""
    pad = [kl.ZeroPadding2D(1)] if padding == "valid" else []
    return chain(
        (16, 16, channels),
        kl.ZeroPadding2D(1),
        kl.Conv2D(8, 3, strides=2, activation="relu"),
        kl.DepthwiseConv2D(3, padding="same"),
        kl.Conv2D(16, 1, activation="relu"),
        *extra,
        *pad,
        kl.DepthwiseConv2D(3, strides=2, padding=padding),
        kl.Conv2D(16, 1),
        last(),
        kl.Dense(2),
    )


@pytest.mark.parametrize(
    ("changes", "sparsity", "told"),
    [
        ({}, 0.7, "tried: skips the zeros of 1x1 convolutions"),
        ({}, 0.2, "skips no zeros: no kernel is stored sparse"),
        ({}, 0.6, "two thirds of the weights of 1x1 convolutions must be zeros, 60% are"),
        ({"channels": 1}, 0.7, "must begin with a 3x3 convolution of stride 2 on 3 channels"),
        ({"padding": "same"}, 0.7, "hold DEPTHWISE_CONV_2D 3x3, stride 2x2, padding uneven"),
        ({"extra": [kl.MaxPooling2D()]}, 0.7, "may not hold MAX_POOL_2D"),
        ({"extra": [kl.Conv2D(8, 5)]}, 0.7, "may not hold CONV_2D 5x5, stride 1x1, padding 0"),
        ({"last": kl.Flatten}, 0.7, "must end with a mean over the image"),
    ],
)
def test_the_report_names_the_first_rule_that_keeps_zeros_from_being_skipped(
    changes, sparsity, told, tmp_path
):
    network = kp.prune_weights(mobile(**changes), sparsity)
    kp.export_litert(network, tmp_path / "model.tflite", sparse=True)
    found = kp.litert_report(tmp_path / "model.tflite").sparse_inference
    assert found.startswith("XNNPACK on ARM and WebAssembly, by its rules, not tried: ")
    assert told in found


def test_another_file_has_no_report(tmp_path, monkeypatch, exported):
    path = tmp_path / "other.tflite"
    for content in (b"", b"something else", exported.read_bytes()[:3000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="other.tflite' is damaged, or no LiteRT file"):
            kp.litert_report(path)
    for name in ("ai_edge_litert", "tensorflow.lite.python"):
        monkeypatch.setitem(sys.modules, f"{name}.schema_py_generated", None)
    with pytest.raises(ImportError, match=r'pip install "keras-pruning\[litert\]"'):
        kp.litert_report(exported)


def test_a_convolutional_network_with_batch_normalization(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [kl.Conv2D(4, 3), kl.BatchNormalization(), kl.ReLU(), kl.Flatten(), kl.Dense(2)]
    model = kp.shrink(kp.prune_units(keras.Sequential([keras.Input((6, 6, 1)), *layers]), 0.5))
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 1)).astype("float32")
    kp.export_litert(model, tmp_path / "conv.tflite")
    found = kp.litert_predict(tmp_path / "conv.tflite", x)
    np.testing.assert_allclose(found, outputs(model, x), rtol=1e-4, atol=1e-6)


# ---- files that run with LiteRT's own operations


def assert_file_answers(model, x, path, tolerance=1e-5):
    kp.export_litert(model, path)
    assert b"Flex" not in path.read_bytes()  # as LiteRT names what only TensorFlow can run
    expected = model.predict(x, verbose=0).astype("float64")
    assert np.ptp(expected, axis=0).min() > 20 * tolerance  # the outputs tell the examples apart
    np.testing.assert_allclose(kp.litert_predict(path, x), expected, atol=tolerance)
    assert list(path.parent.iterdir()) == [path]


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


@keras.saving.register_keras_serializable("test_litert")
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


def test_a_full_disk_and_a_folder_that_is_not_there_leave_nothing(model, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        kp.export_litert(model, tmp_path / "missing" / "model.tflite", sparse=False)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kp.export_litert(model, path, sparse=False)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


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


def network_with_parts(head=False, excited=False, foreign=None, axis=(1, 2)):
    """A network as XNNPACK's sparse inference takes it, and ways to break its rules."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = kl.Conv2D(16, 3, strides=2, activation="relu")(kl.ZeroPadding2D(1)(inputs))
    x = kl.Conv2D(32, 1, activation="relu", name="first")(x)
    if excited:
        gate = kl.GlobalAveragePooling2D(keepdims=True)(x)
        x = kl.Multiply()([x, kl.Conv2D(32, 1, activation="sigmoid", name="gate")(gate)])
    x = foreign(x) if foreign else x
    x = kl.Conv2D(32, 1, activation="relu", name="second")(x)
    x = keras.ops.mean(x, axis, keepdims=True)
    return keras.Model(inputs, kl.Conv2D(400, 1, name="head")(x) if head else x)


@pytest.mark.parametrize(
    ("options", "sparsities", "answer"),
    [
        ({}, {"first": 0.8, "second": 0.8}, "skips the zeros"),
        ({}, {"first": 1.0, "second": 0.6}, "skips the zeros"),
        ({}, {"first": 0.5, "second": 0.5}, "50% are"),
        ({"head": True}, {"first": 0.8, "second": 0.8}, "skips the zeros"),
        ({"head": True}, {"first": 0.4, "second": 0.4, "head": 0.9}, "40% are"),
        ({"excited": True}, {"first": 0.8, "second": 0.8, "gate": 0.8}, "skips the zeros"),
        (
            {"excited": True, "foreign": kl.MaxPooling2D()},
            {"first": 0.8, "second": 0.8, "gate": 0.8},
            "may not hold MAX_POOL_2D",
        ),
        ({"axis": 3}, {"first": 0.8, "second": 0.8}, "must end with a mean"),
        (
            {"foreign": lambda x: x + np.arange(2048, dtype="float32").reshape(1, 8, 8, 32)},
            {"first": 0.8, "second": 0.8},
            "may not hold ADD of an array",
        ),
    ],
)
def test_the_rules_of_sparse_inference_hold_for_the_part_up_to_the_mean(
    options, sparsities, answer, tmp_path
):
    model = network_with_parts(**options)
    for name, sparsity in sparsities.items():
        kernel = model.get_layer(name).kernel
        values = np.array(keras.ops.convert_to_numpy(kernel))
        values.reshape(-1)[: round(sparsity * values.size)] = 0
        kernel.assign(values)
    kp.export_litert(model, tmp_path / "mobile.tflite", sparse=True)
    assert answer in kp.litert_report(tmp_path / "mobile.tflite").sparse_inference


def test_a_kernel_of_zeros_alone_is_in_the_report(tmp_path):
    model = keras.Sequential([keras.Input((40,)), kl.Dense(50), kl.Dense(3)])
    model.layers[0].kernel.assign(np.zeros((40, 50)))
    kp.export_litert(model, tmp_path / "zeros.tflite", sparse=True)
    table = kp.litert_report(tmp_path / "zeros.tflite").tensors
    row = table[table["zeros"] == 2000]
    assert len(row) == 1 and sorted(row["shape"].iloc[0]) == [40, 50]
    assert row["stored"].iloc[0] != "dense" and row["bytes"].iloc[0] > 0


def test_damage_inside_a_file_is_named(exported, tmp_path):
    content = exported.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = np.frombuffer(content, "uint8").copy()
        damaged[rng.integers(8, min(3000, len(damaged)), 3)] ^= 0xFF
        (tmp_path / "damaged.tflite").write_bytes(damaged.tobytes())
        try:
            kp.litert_report(tmp_path / "damaged.tflite")
        except ValueError as error:
            assert "is damaged, or no LiteRT file" in str(error)


def test_a_table_of_one_row_and_a_large_open_image_are_exported(tmp_path):
    inputs = keras.Input((4,), dtype="int32")
    table = keras.Model(inputs, kl.Dense(3)(kl.Flatten()(kl.Embedding(1, 8)(inputs))))
    assert kp.export_litert(table, tmp_path / "one.tflite") == "dense float32"
    x = image = keras.Input((None, None, 3))
    for _ in range(4):
        x = kl.Conv2D(16, 3, strides=2)(x)
    model = keras.Model(image, x)
    image = kp.prune_weights(model, 0.9, layers=kp.summary(model)["layer"][:2])
    assert kp.export_litert(image, tmp_path / "image.tflite") == "sparse float32"


def test_a_name_with_a_space_is_refused_with_a_remedy(tmp_path):
    inputs = keras.Input((6, 4), name="my input")
    model = keras.Model(inputs, kl.LSTM(3)(inputs))
    with pytest.raises(ValueError, match="leave spaces out"):
        kp.export_litert(model, tmp_path / "spaces.tflite")
