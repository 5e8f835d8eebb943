"""LiteRT files from Keras's PyTorch backend, where the package litert-torch is installed."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch" or not importlib.util.find_spec("litert_torch"),
    reason="needs the PyTorch backend and litert-torch",
)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def pruned(shape, *layers):
    keras.utils.set_random_seed(0)
    return kp.prune_weights(keras.Sequential([keras.Input(shape), *layers, kl.Dense(3)]), 0.9)


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((9, 10), [kl.Flatten(), kl.Dense(60, activation="relu")]),
        ((8, 8, 1), [kl.Conv2D(8, 3), kl.BatchNormalization(), kl.ReLU(), kl.Flatten()]),
        ((6, 3), [kl.LSTM(4)]),
    ],
    ids=["dense", "convolutional", "recurrent"],
)
def test_the_file_gives_the_models_outputs(shape, layers, tmp_path):
    model, path = pruned(shape, *layers), tmp_path / "model.tflite"
    assert kp.export_litert(model, path) == "dense float32"
    x = normal(7, *shape)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(kp.litert_predict(path, x), expected, rtol=1e-4, atol=1e-5)
    table = kp.litert_report(path).tensors
    zeros = sum((array == 0).sum() for array in model.get_weights() if array.ndim > 1)
    assert table["zeros"].sum() >= zeros and set(table["stored"]) == {"dense"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("options", [{"sparse": True}, {"int8": True}])
def test_what_it_cannot_store_is_refused_with_a_way_round(options, tmp_path):
    with pytest.raises(ValueError, match=r"litert-torch stores kernels dense.*KERAS_BACKEND=tens"):
        kp.export_litert(pruned((4,), kl.Dense(50)), tmp_path / "model.tflite", **options)
    assert not list(tmp_path.iterdir())
