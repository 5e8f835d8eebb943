"""Data sets, lists and strings in place of arrays: the same figures, or an error in words."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4)).astype("float32")
Y = X[:, :3].argmax(axis=1)


def network():
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(6, activation="relu", name="hidden"), kl.Dense(3, name="logits")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


class Batches(keras.utils.PyDataset):
    """Batches of 16, the last of 2."""

    def __init__(self, *parts, number=4):
        super().__init__()
        self.parts, self.number = parts, number

    @property
    def num_batches(self):
        return self.number

    def __getitem__(self, i):
        return tuple(part[16 * i : 16 * (i + 1)] for part in self.parts)


def tensorflow_data(*parts):
    return pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices(parts).batch(16)


def torch_data(*parts):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*map(torch.as_tensor, parts)), batch_size=16)


KINDS = pytest.mark.parametrize("data_set", [Batches, tensorflow_data, torch_data])


@KINDS
def test_a_data_set_gives_what_its_arrays_give(data_set):
    model = network()
    options = {"sparsities": (0.5,), "progress": False}
    for function in (kp.sparsity_sweep, kp.sensitivity_sweep):
        found = function(model, data_set(X, Y), **options)
        assert found.equals(function(model, X, Y, **options))
        accuracy = kp.prune_weights(model, 0.5).evaluate(X, Y, verbose=0)[1]
        assert found["accuracy"][found["sparsity"] == 0.5].iloc[0] == pytest.approx(accuracy)
    np.testing.assert_array_equal(
        kp.taylor_scores(model, data_set(X, Y))["hidden"][0],
        kp.taylor_scores(model, X, Y)["hidden"][0],
    )
    found = kp.measure(model, data_set(X, Y), repeats=1)
    assert found.accuracy == pytest.approx(np.mean(model.predict(X, verbose=0).argmax(1) == Y))
    table = kp.compare({"model": model}, data_set(X, Y), repeats=1)
    assert table["accuracy"].tolist() == [found.accuracy]


@KINDS
def test_a_data_set_of_inputs_alone_is_measured_without_accuracy(data_set):
    found = kp.measure(network(), data_set(X), repeats=1)
    assert (found.accuracy, found.multiply_adds) == (None, 4 * 6 + 6 * 3)
    with pytest.raises(ValueError, match=r"There are no targets: give y, or a data set of"):
        kp.sparsity_sweep(network(), data_set(X), progress=False)


def test_a_data_set_with_several_inputs_by_name():
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    model = keras.Model({"a": a, "b": b}, kl.Dense(2)(kl.Concatenate()([a, b])))

    class Pairs(Batches):
        def __getitem__(self, i):
            rows = slice(16 * i, 16 * (i + 1))
            return {"a": X[rows], "b": X[rows, :2]}

    assert kp.measure(model, Pairs(), repeats=1).multiply_adds == 12


@KINDS
def test_sample_weights_and_targets_beside_a_data_set_are_refused(data_set):
    weights = np.ones(50, "float32")
    with pytest.raises(ValueError, match="has sample weights, which count nowhere"):
        kp.measure(network(), data_set(X, Y, weights))
    with pytest.raises(ValueError, match="holds its targets itself. Leave out y"):
        kp.taylor_scores(network(), data_set(X, Y), Y)


def test_an_endless_data_set_is_refused():
    with pytest.raises(ValueError, match="never ends. Give a finite part"):
        kp.measure(network(), Batches(X, Y, number=None))
    with pytest.raises(ValueError, match="never ends. Give a finite part"):
        kp.measure(network(), tensorflow_data(X, Y).repeat())


def test_data_sets_that_are_empty_or_not_batched_are_refused():
    with pytest.raises(ValueError, match="gives no batch"):
        kp.measure(network(), Batches(X, Y, number=0))
    with pytest.raises(ValueError, match=r"not batched.*dataset.batch\(256\)"):
        kp.measure(network(), tensorflow_data(X, Y).unbatch())


@pytest.mark.parametrize("measured", [kp.measure, kp.sparsity_sweep, kp.taylor_scores])
def test_lists_of_numbers_are_refused_with_a_remedy(measured):
    with pytest.raises(TypeError, match=r"x takes arrays.*Received: float.*np.asarray\(x\)"):
        measured(network(), X.tolist(), Y)
    with pytest.raises(TypeError, match=r"y takes arrays.*Received: int.*np.asarray\(y\)"):
        measured(network(), X, Y.tolist())
    ragged = np.array([[1.0], [1.0, 2.0]], dtype=object)
    with pytest.raises(TypeError, match="x is an array of Python objects"):
        measured(network(), ragged, Y[:2])


def test_a_list_of_arrays_is_several_inputs():
    a, b = keras.Input((4,)), keras.Input((2,))
    model = keras.Model([a, b], kl.Dense(2)(kl.Concatenate()([a, b])))
    assert kp.measure(model, [X, X[:, :2]], repeats=1).multiply_adds == 12


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="text runs on TensorFlow")
@pytest.mark.parametrize("dtype", [str, object, bytes])
def test_a_model_of_texts_is_measured_and_swept(dtype, tmp_path):
    texts = np.array(["the cat sat", "a dog", "the dog sat", "mat"])
    words = kl.TextVectorization(output_mode="multi_hot", vocabulary=["the", "cat", "dog", "sat"])
    layers = [words, kl.Dense(4, name="hidden"), kl.Dense(2)]
    model = keras.Sequential([keras.Input((), dtype="string"), *layers])
    model.compile("adam", "mse")
    x, y = texts.astype(dtype), np.ones((4, 2))
    bags = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 1, 0], [0, 1, 0, 1, 1], [1, 0, 0, 0, 0]])
    outputs = bags @ model.layers[1].kernel.numpy() @ model.layers[2].kernel.numpy()
    found = kp.measure(model, x, y, repeats=1)
    assert found.loss == pytest.approx(np.mean((outputs - 1) ** 2), rel=1e-4)
    assert found.multiply_adds == 5 * 4 + 4 * 2
    options = {"methods": ["weights"], "sparsities": (0, 0.5), "progress": False}
    table = kp.sparsity_sweep(model, x, y, **options, store=tmp_path)
    assert table["loss"][0] == pytest.approx(found.loss)
    assert kp.measure(model, tensorflow_data(x, y), repeats=1).loss == pytest.approx(found.loss)
    again = kp.sparsity_sweep(model, texts.astype(dtype), y, **options, store=tmp_path)
    assert again.equals(table) and len(list(tmp_path.glob("*.csv"))) == 2
