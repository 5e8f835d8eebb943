"""Functions that the tests' workers import: small data, small networks, short training."""

import keras
import numpy as np


def blobs():
    """Four clouds of points in twenty dimensions."""
    rng = np.random.default_rng(0)
    centres = 1.2 * rng.normal(size=(4, 20))

    def part(count):
        y = rng.integers(0, 4, count)
        return (centres[y] + rng.normal(size=(count, 20))).astype("float32"), y

    return part(600), part(300)


def train(x, y, *, seed):
    network = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(4),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    network.fit(x, y, epochs=2, verbose=0)
    return network


def one_epoch(model, x, y, *, seed):
    model.fit(x, y, verbose=0)


def compiled_anew(model, x, y, *, seed):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"])
    model.fit(x, y, verbose=0)


def overwrite(model, x, y, *, seed):
    model.set_weights([array + 1 for array in model.get_weights()])


def fail(model, x, y, *, seed):
    raise ArithmeticError("the loss is NaN")


def interrupt(model, x, y, *, seed):
    raise KeyboardInterrupt


def no_model(x, y, *, seed):
    return "a network"


def no_split():
    return np.zeros(3)


def last_units(model, sparsity, *, seed):
    """A way of pruning of one's own."""
    pruned = keras.models.clone_model(model)
    pruned.set_weights([(1 - sparsity) * array for array in model.get_weights()])
    return pruned
