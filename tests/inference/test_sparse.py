"""SparseModel: a Dense chain's outputs without the work that zeros would cost."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.inference import sparse_chain
from keras_pruning.inference.dense_chain import DenseStep, read_dense_chain
from keras_pruning.inference.sparse_chain import SparseChain, sparse_forward
from keras_pruning.inference.sparse_model import SparseModel

HAS_NUMBA = importlib.util.find_spec("numba") is not None
INPUTS = 70
BATCHES = (1, 7, 256, 3000)


def network(activation="relu", use_bias=True, widths=(133, 65, 17), seed=0):
    """Widths that no vector's length divides; biases far from zero."""
    keras.utils.set_random_seed(seed)
    hidden = [kl.Dense(units, activation=activation, use_bias=use_bias) for units in widths]
    model = keras.Sequential([keras.Input((INPUTS,)), *hidden, kl.Dense(3, use_bias=use_bias)])
    rng = np.random.default_rng(seed)
    model.set_weights([w + rng.normal(0, 0.1, w.shape) for w in model.get_weights()])
    return model


def image_network():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((5, 6), dtype="uint8"),
            kl.Rescaling(1 / 255, offset=-0.5),
            kl.Flatten(),
            kl.Dense(20, activation="relu"),
            kl.Dropout(0.5),
            kl.Dense(15),
            kl.ReLU(),
            kl.Dense(4, activation="softmax"),
        ]
    )


def compiled(model):
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def set_kernel(layer, kernel):
    layer.set_weights([kernel, *layer.get_weights()[1:]])


def expected_outputs(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def assert_equal_outputs(outputs, expected):
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def x():
    x = np.random.default_rng(1).standard_normal((max(BATCHES), INPUTS)).astype(np.float32)
    return np.maximum(x, 0)  # half of it zero, as images and rectified activations are


@pytest.fixture(params=["numba", "SciPy"])
def library(request, monkeypatch):
    """The sparse products of numba, and those of SciPy where numba is missing."""
    use_library(request.param, monkeypatch)


@pytest.fixture(params=["weights with numba", "weights with SciPy", "inputs with numba"])
def way(request, monkeypatch):
    """Every layer skips zeros in this way, whether or not that is faster on this machine."""
    way, library = request.param.split(" with ")
    use_library(library, monkeypatch)
    always(way, monkeypatch)


@pytest.fixture
def always_sparse(monkeypatch):
    always("weights", monkeypatch)


def use_library(library, monkeypatch):
    if library == "numba" and not HAS_NUMBA:
        pytest.skip("needs numba")
    if library == "SciPy":
        monkeypatch.setattr(sparse_chain, "compiled_loops", lambda: None)
    costs = functools.lru_cache(sparse_chain._costs.__wrapped__)
    monkeypatch.setattr(sparse_chain, "_costs", costs)


def always(way, monkeypatch):
    monkeypatch.setattr(SparseChain, "_choose", lambda self, x, rows: [way] * len(self.steps))
    monkeypatch.setattr(
        sparse_chain,
        "_fastest_products",
        lambda steps, x: [sparse_chain._ways(step)[-1] for step in steps],
    )


# The outputs are the Keras model's


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.99, 1])
def test_sparse_products_give_the_models_outputs(x, way, sparsity, n_threads):
    model = kp.prune_weights(network(), sparsity)
    skipping = SparseModel(model, n_threads=n_threads)
    expected = expected_outputs(model, x)
    for batch in BATCHES:
        assert_equal_outputs(skipping.predict(x[:batch]), expected[:batch])


@pytest.mark.parametrize("sparsity", [0, 0.3, 0.8, 0.97])
def test_the_faster_products_give_the_models_outputs(x, library, sparsity):
    model = kp.prune_weights(network(), sparsity)
    skipping = SparseModel(model)
    expected = expected_outputs(model, x)
    for batch in BATCHES:
        assert_equal_outputs(skipping.predict(x[:batch]), expected[:batch])


@pytest.mark.parametrize("letters", ["wdwd", "dwwd", "iwid", "wiwi"])
def test_the_ways_can_alternate(x, letters, monkeypatch):
    ways = [{"w": "weights", "d": "dense", "i": "inputs"}[letter] for letter in letters]
    use_library("numba", monkeypatch)
    monkeypatch.setattr(SparseChain, "_choose", lambda self, x, rows: ways)
    model = kp.prune_weights(network(), 0.8)
    assert_equal_outputs(SparseModel(model).predict(x), expected_outputs(model, x))


@pytest.mark.parametrize("activation", ["linear", "tanh", "sigmoid", "softplus", "gelu"])
def test_other_activations_than_relu(x, way, activation):
    model = kp.prune_weights(network(activation), 0.8)
    expected = expected_outputs(model, x)
    for batch in (1, 256):
        assert_equal_outputs(SparseModel(model).predict(x[:batch]), expected[:batch])


def test_a_network_without_biases(x, way):
    model = kp.prune_weights(network(use_bias=False), 0.9)
    assert_equal_outputs(SparseModel(model).predict(x), expected_outputs(model, x))


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])  # sigmoid(0) is not zero
@pytest.mark.parametrize("sparsity", [0.7, 1])
def test_pruned_units(x, way, activation, sparsity):
    model = kp.prune_units(network(activation), sparsity)
    assert_equal_outputs(SparseModel(model).predict(x), expected_outputs(model, x))


def test_a_layer_of_zeros_alone(x, way):
    model = network()
    set_kernel(model.layers[-1], np.zeros((17, 3)))
    assert_equal_outputs(SparseModel(model).predict(x), expected_outputs(model, x))


def test_all_weights_in_the_last_inputs_and_units(x, way):
    model = network(widths=(300, 200))  # more inputs than one chunk of them
    kernel = np.zeros((300, 200), np.float32)
    kernel[290:, 190:] = 1
    set_kernel(model.layers[1], kernel)
    assert_equal_outputs(SparseModel(model).predict(x), expected_outputs(model, x))


def test_sums_of_several_chunks_of_inputs(way):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((1000, 37)).astype(np.float32)
    kernel[rng.random(kernel.shape) < 0.5] = 0
    x = rng.standard_normal((130, 1000)).astype(np.float32)
    step = DenseStep(kernel, np.full(37, -3, np.float32), keras.activations.relu)
    expected = np.maximum(x.astype(np.float64) @ kernel - 3, 0)
    assert_equal_outputs(sparse_forward([step], x), expected)


def test_integer_weights_give_exact_outputs(way):
    kernel = np.array([[1, 0, -2], [0, 0, 3]], np.float32)
    step = DenseStep(kernel, np.array([1, 5, 0], np.float32), keras.activations.relu)
    x = np.array([[1, 1], [2, 0], [0, 0], [0, -1]], np.float32)
    expected = [[2, 5, 1], [3, 5, 0], [1, 5, 0], [1, 5, 0]]
    np.testing.assert_array_equal(sparse_forward([step], x), expected)
    np.testing.assert_array_equal(sparse_forward([step], x[:1]), expected[:1])


def test_images_of_uint8_with_rescaling_and_softmax(way):
    model = kp.prune_weights(image_network(), 0.5)
    images = np.random.default_rng(0).integers(0, 256, (99, 5, 6), np.uint8)
    skipping = SparseModel(model)
    assert_equal_outputs(skipping.predict(images), expected_outputs(model, images))
    assert_equal_outputs(skipping.predict(images[:1]), expected_outputs(model, images[:1]))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float64),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),  # read-only
        lambda x: x.tolist(),
    ],
)
def test_inputs_in_any_form_of_the_same_numbers(x, always_sparse, change):
    skipping = SparseModel(kp.prune_weights(network(), 0.9))
    np.testing.assert_array_equal(skipping.predict(change(x[:20])), skipping.predict(x[:20]))


def test_no_examples_give_no_outputs(x, way):
    skipping = SparseModel(kp.prune_weights(network(), 0.9))
    assert skipping.predict(x[:0]).shape == (0, 3)


def test_a_call_is_a_prediction(x):
    skipping = SparseModel(network())
    np.testing.assert_array_equal(skipping(x[:5]), skipping.predict(x[:5]))


def test_the_number_of_threads_changes_no_digit(x, way):
    model = kp.prune_weights(network(), 0.9)
    one, two = (SparseModel(model, n_threads=n).predict(x) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_predictions_from_several_threads_at_once(x, always_sparse):
    skipping = SparseModel(kp.prune_weights(network(), 0.9), n_threads=2)
    outputs = {}
    threads = [
        threading.Thread(target=lambda i=i: outputs.update({i: skipping.predict(x)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(outputs[i], skipping.predict(x))


def test_sparse_forward_takes_the_steps_of_a_chain(x, way):
    model = kp.prune_weights(network(), 0.9)
    outputs = sparse_forward(read_dense_chain(model), x, n_threads=1)
    assert_equal_outputs(outputs, expected_outputs(model, x))


def test_later_training_does_not_change_it(x):
    model = kp.prune_weights(network(), 0.9)
    skipping = SparseModel(model)
    before = skipping.predict(x)
    model.set_weights([2 * w for w in model.get_weights()])
    np.testing.assert_array_equal(skipping.predict(x), before)


# Which way a layer is computed


def costs_of(**changes):
    slow = {"dense": 1, "weight": 99, "border": 0, "met": 99, "input": 0}
    return sparse_chain._Costs(**slow | changes)


def test_weights_are_skipped_where_that_costs_less():
    shapes, counts = [(10, 10)] * 4, [100, 51, 49, 0]
    ways = sparse_chain._cheapest(shapes, counts, [1] * 4, costs_of(weight=2))
    assert ways == ("dense", "dense", "weights", "weights")


def test_inputs_are_skipped_where_that_costs_less():
    shapes, densities = [(10, 64)] * 3, [1, 0.51, 0.49]
    ways = sparse_chain._cheapest(shapes, [640] * 3, densities, costs_of(met=2))
    assert ways == ("dense", "dense", "inputs")


def test_inputs_of_few_units_are_not_worth_a_look():
    ways = sparse_chain._cheapest([(10, 64), (10, 5)], [640, 50], [0.1] * 2, costs_of(met=2))
    assert ways == ("inputs", "dense")


def test_a_border_is_crossed_only_where_it_pays():
    shapes, costs = [(10, 10)] * 3, costs_of(weight=2, border=1)
    assert sparse_chain._cheapest(shapes, [0, 55, 0], [1] * 3, costs) == ("weights",) * 3
    assert sparse_chain._cheapest(shapes, [100, 45, 100], [1] * 3, costs) == ("dense",) * 3


def test_the_inputs_of_each_layer_are_looked_at(x):
    model = network()
    steps = read_dense_chain(model)
    densities = sparse_chain._input_densities(steps, x)
    hidden = keras.Model(model.inputs, [layer.output for layer in model.layers[:-1]])(x)
    expected = [(keras.ops.convert_to_numpy(h) > 0).mean() for h in (x, *hidden)]
    np.testing.assert_allclose(densities, expected, atol=1e-4)


def test_a_network_with_hardly_a_zero_does_without_numba(x, monkeypatch):
    monkeypatch.setattr(sparse_chain, "compiled_loops", lambda: pytest.fail("numba was imported"))
    SparseModel(network()).predict(x[:10])


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_a_full_network_skips_inputs_of_zero_once_it_is_used_more(x, monkeypatch):
    chain, dark = SparseModel(network())._network.chain, np.zeros_like(x).reshape(len(x), -1)
    dark[:, 0] = 1
    monkeypatch.setattr(sparse_chain, "_costs", lambda rows: costs_of(input=1e-3, met=1))
    assert set(chain._choose(dark, len(dark))) == {"dense"}
    monkeypatch.setattr(sparse_chain, "_LITTLE_WORK", 1)
    assert chain._choose(dark, len(dark))[0] == "inputs"


def test_importing_the_library_imports_no_numba():
    code = "import sys, keras_pruning.inference.sparse_chain; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_the_kernels_work_where_nothing_can_be_cached(tmp_path):
    source = importlib.util.find_spec("keras_pruning.inference._sparse_kernels").origin
    shutil.copy(source, tmp_path / "kernels.py")
    (tmp_path / "__pycache__").write_text("a file, where a folder would have to be")
    code = """if True:
        import kernels, numpy as np
        y = np.zeros(1, np.float32)
        kernels.multiply_dense(np.ones(3, np.float32), np.ones((3, 1), np.float32), y)
        print(y[0], kernels.multiply_dense.stats.cache_path)
    """
    nowhere = str(tmp_path / "kernels.py" / "home")
    # No HOME leads anywhere: numba's second choice is the user's folder of caches.
    env = {**os.environ, "HOME": nowhere, "XDG_CACHE_HOME": nowhere, "NUMBA_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout.split() == ["3.0", "None"], done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_the_kernels_work_on_a_processor_without_wide_vectors(tmp_path):
    code = """if True:
        import keras, numpy as np, keras_pruning as kp
        from keras_pruning.inference import sparse_chain
        keras.utils.set_random_seed(0)
        hidden = [keras.layers.Dense(n, activation="relu") for n in (70, 130)]
        model = keras.Sequential([keras.Input((50,)), *hidden, keras.layers.Dense(3)])
        model = kp.prune_weights(model, 0.8)
        x = np.random.default_rng(0).normal(size=(100, 50)).astype(np.float32)
        expected = model.predict(x, verbose=0)
        for way in ("weights", "inputs"):
            sparse_chain._cheapest = lambda shapes, *rest: (way,) * len(shapes)
            outputs = kp.SparseModel(model).predict(x)
            np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
        assembly = sparse_chain.compiled_loops().forward_chain.inspect_asm()
        print(any("ymm" in code or "zmm" in code for code in assembly.values()))
    """
    env = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    env["NUMBA_CACHE_DIR"] = str(tmp_path)  # nothing that was compiled for this processor
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


# Loss and metrics


def test_evaluate_gives_the_keras_models_loss_and_metrics(x):
    model = compiled(kp.prune_weights(network(), 0.9))
    y = np.random.default_rng(2).integers(0, 3, len(x))
    expected = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=500)
    skipping = SparseModel(model)
    skipping.evaluate(x[:7], (y[:7] + 1) % 3)  # which leaves nothing behind
    assert skipping.evaluate(x, y) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_is_not_compiled_has_no_loss(x):
    with pytest.raises(ValueError, match="no loss and metrics.*compiled model, or use predict"):
        SparseModel(network()).evaluate(x, np.zeros(len(x)))


def test_evaluate_wants_a_target_an_example(x):
    with pytest.raises(ValueError, match="lengths: 3000 and 7"):
        SparseModel(compiled(network())).evaluate(x, np.zeros(7))


# Files


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 1])
def test_a_loaded_model_gives_exactly_the_same_outputs(x, tmp_path, sparsity):
    skipping = SparseModel(kp.prune_weights(network(), sparsity))
    skipping.save(tmp_path / "network.npz")
    loaded = SparseModel.load(tmp_path / "network.npz")
    for batch in BATCHES:
        np.testing.assert_array_equal(loaded.predict(x[:batch]), skipping.predict(x[:batch]))


def test_a_loaded_model_knows_its_input_shape_and_activations(tmp_path):
    model = kp.prune_units(image_network(), 0.3)
    SparseModel(model).save(str(tmp_path / "network.npz"))
    loaded = SparseModel.load(str(tmp_path / "network.npz"), n_threads=1)
    images = np.random.default_rng(0).integers(0, 256, (9, 5, 6), np.uint8)
    assert_equal_outputs(loaded.predict(images), expected_outputs(model, images))
    with pytest.raises(ValueError, match="shape"):
        loaded.predict(images.reshape(9, 30))


def test_a_loaded_model_has_no_loss(x, tmp_path):
    SparseModel(compiled(network())).save(tmp_path / "network.npz")
    with pytest.raises(ValueError, match="loaded from a file"):
        SparseModel.load(tmp_path / "network.npz").evaluate(x, np.zeros(len(x)))


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_a_file_is_near_the_limit_of_information(tmp_path, sparsity):
    model = keras.Sequential([keras.Input((500,)), kl.Dense(400, use_bias=False)])
    model = kp.prune_weights(model, sparsity, layers=[model.layers[0].name])
    skipping = SparseModel(model)
    skipping.save(tmp_path / "network.npz")
    size = (tmp_path / "network.npz").stat().st_size
    share = np.array([sparsity, 1 - sparsity])
    mask_bits = 500 * 400 * -(share * np.log2(share)).sum()
    limit = 4 * round(500 * 400 * (1 - sparsity)) + mask_bits / 8
    assert skipping.size_bytes == size
    assert size < 1.2 * limit


def test_saving_twice_writes_the_same_bytes_and_no_other_file(tmp_path):
    skipping = SparseModel(kp.prune_weights(network(), 0.9))
    path = tmp_path / "network.npz"
    skipping.save(path)
    first = path.read_bytes()
    skipping.save(path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "network.npz"
    path.write_text("old")

    def fail(self, target):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="no space"):
        SparseModel(network()).save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "network.npz"
    SparseModel(kp.prune_weights(network(), 0.9)).save(path)
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="network.npz' is damaged, or no file that"):
            SparseModel.load(path)


def test_a_flipped_byte_is_refused_or_changes_nothing(x, tmp_path):
    path = tmp_path / "network.npz"
    skipping = SparseModel(kp.prune_weights(network(), 0.9))
    skipping.save(path)
    data = bytearray(path.read_bytes())
    refused = 0
    for place in range(0, len(data), len(data) // 40):
        damaged = data.copy()
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = SparseModel.load(path)
        except ValueError as error:
            assert "network.npz" in str(error)  # noqa: PT017
            refused += 1
        else:  # bytes that nobody reads, a date for example
            np.testing.assert_array_equal(loaded.predict(x), skipping.predict(x))
    assert refused > 30


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x80\x04N."])
def test_another_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "other.npz").write_bytes(content)
    with pytest.raises(ValueError, match="other.npz' is damaged, or no file that SparseModel"):
        SparseModel.load(tmp_path / "other.npz")


def test_an_archive_of_other_arrays_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz.*KeyError"):
        SparseModel.load(tmp_path / "other.npz")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        SparseModel.load(tmp_path / "none.npz")


def test_an_activation_of_the_users_own_predicts_but_cannot_be_saved(x, tmp_path):
    def halve(x):
        return x / 2

    model = keras.Sequential([keras.Input((INPUTS,)), kl.Dense(5, activation=halve, name="last")])
    skipping = SparseModel(model)
    assert_equal_outputs(skipping.predict(x), expected_outputs(model, x))
    with pytest.raises(ValueError, match="cannot be saved.*'last'.*apply it to the outputs"):
        skipping.save(tmp_path / "network.npz")


# Bad input


def test_what_is_no_keras_model_is_refused():
    with pytest.raises(TypeError, match="Expected a Keras model. Received: str"):
        SparseModel("model.keras")


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="not built"):
        SparseModel(keras.Sequential([kl.Dense(3)]))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("variable", [0, 1])
def test_weights_that_are_not_finite_are_refused_by_layer(number, variable):
    model = network()
    weights = model.layers[1].get_weights()
    weights[variable].flat[3] = number
    model.layers[1].set_weights(weights)
    with pytest.raises(ValueError, match=f"'{model.layers[1].name}' has weights that are NaN"):
        SparseModel(model)


def normed_network():
    model = keras.Sequential(
        [keras.Input((INPUTS,)), kl.Dense(40), kl.BatchNormalization(), kl.ReLU(), kl.Dense(3)]
    )
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0.1, 0.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units])
def test_batch_normalization_is_part_of_the_sparse_model(x, way, prune):
    model = prune(normed_network(), 0.8)
    assert_equal_outputs(SparseModel(model).predict(x), expected_outputs(model, x))


def test_moving_statistics_that_are_not_finite_are_refused_by_layer():
    model = normed_network()
    model.layers[1].moving_variance.assign(np.full(40, np.nan))
    with pytest.raises(ValueError, match=f"'{model.layers[1].name}' has weights that are NaN"):
        SparseModel(model)


def test_it_says_its_threads_its_steps_and_whether_it_has_a_loss(tmp_path):
    model = network()
    sparse = SparseModel(model, n_threads=2)
    assert (sparse.n_threads, sparse.compiled) == (2, False)
    assert [s.kernel.shape for s in sparse.steps] == [(INPUTS, 133), (133, 65), (65, 17), (17, 3)]
    assert SparseModel(compiled(model)).compiled
    sparse.save(tmp_path / "network.npz")
    assert SparseModel.load(tmp_path / "network.npz", n_threads=3).n_threads == 3


@pytest.mark.parametrize("shape", [(5, INPUTS + 1), (INPUTS,), (5, 7, 10), ()])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape \(examples, 70\).*Received: \("):
        SparseModel(network()).predict(np.zeros(shape))


@pytest.mark.parametrize("kind", [str, complex, object])
def test_inputs_that_are_no_numbers_are_refused(kind):
    with pytest.raises(TypeError, match="real numbers. Received: dtype"):
        SparseModel(network()).predict(np.zeros((5, INPUTS)).astype(kind))


@pytest.mark.parametrize(
    ("n_threads", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_threads_are_a_whole_number_from_one(n_threads, error):
    with pytest.raises(error, match=f"n_threads must be .* Received: {n_threads}"):
        SparseModel(network(), n_threads=n_threads)
