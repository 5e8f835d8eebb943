"""Rewinding to earlier weights, and the loop that prunes a bit and trains a bit."""

import functools

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.recovery.iterative import prune_iteratively, rewind


def network(units=16, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            kl.Dense(units, name="hidden", **options),
            kl.BatchNormalization(name="norm"),
            kl.ReLU(),
            kl.Dense(3, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def data(examples=96):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 8)).astype("float32")
    return x, x[:, :3].argmax(axis=1)


def array(variable):
    return keras.ops.convert_to_numpy(variable)


# Rewinding


def test_the_survivors_go_back_and_the_pruned_stay_zero():
    original = network()
    trained = kp.prune_weights(original, 0)
    trained.fit(*data(), verbose=0)
    pruned = kp.prune_weights(trained, 0.75)
    ticket = rewind(pruned, original)
    gone = array(pruned.get_layer("hidden").kernel) == 0
    kernel = array(ticket.get_layer("hidden").kernel)
    assert gone.sum() == 96
    np.testing.assert_array_equal(
        kernel, np.where(gone, 0, array(original.get_layer("hidden").kernel))
    )
    for name in ("norm", "logits"):
        for a, b in zip(
            ticket.get_layer(name).get_weights(),
            original.get_layer(name).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_a_pruned_unit_stays_gone():
    original = network(bias_initializer="ones")
    norm = original.get_layer("norm")
    for variable in (norm.beta, norm.moving_mean):  # which begin as zeros
        variable.assign(np.ones(16))
    pruned = kp.prune_units(original, 0.5)
    ticket = rewind(pruned, original)
    gone = ~array(pruned.get_layer("hidden").kernel).any(axis=0)
    assert gone.sum() == 8
    hidden, norm = ticket.get_layer("hidden"), ticket.get_layer("norm")
    for variable in (hidden.kernel, hidden.bias, norm.gamma, norm.beta, norm.moving_mean):
        assert not array(variable)[..., gone].any()
    assert array(hidden.bias)[~gone].all()


def test_rewinding_is_to_the_optimizer_of_the_original_and_changes_neither_model():
    original = network()
    pruned = kp.prune_weights(original, 0.5)
    pruned.fit(*data(), verbose=0)
    before = [w.copy() for w in pruned.get_weights() + original.get_weights()]
    ticket = rewind(pruned, original)
    assert int(array(pruned.optimizer.iterations)) == 3
    assert int(array(ticket.optimizer.iterations)) == 0
    ticket.fit(*data(), verbose=0)
    for old, new in zip(before, pruned.get_weights() + original.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_models_of_different_architecture_are_refused():
    with pytest.raises(ValueError, match=r"same architecture.*\(8, 16\).*\(8, 12\)"):
        rewind(network(16), network(12))
    shorter = keras.Sequential([keras.Input((8,)), kl.Dense(16, name="hidden")])
    with pytest.raises(ValueError, match="same architecture"):
        rewind(network(16), shorter)
    with pytest.raises(TypeError, match="Expected a Keras model. Received: list"):
        rewind(network(), network().get_weights())
    with pytest.raises(ValueError, match="is not built"):
        rewind(network(), keras.Sequential([kl.Dense(3)]))


# The loop


@pytest.mark.parametrize(
    "prune, column",
    [
        (kp.prune_weights, "sparsity"),
        (functools.partial(kp.prune_weights, scope="global"), "sparsity"),
        (kp.prune_units, "unit_sparsity"),
    ],
    ids=["weights", "global", "units"],
)
def test_the_loop_returns_a_trained_model_for_each_sparsity(prune, column):
    model = network()
    before = model.get_weights()
    table = prune_iteratively(
        model, *data(), [0.5, 0.75], epochs=2, prune=prune, batch_size=32, progress=False
    )
    assert table["sparsity"].tolist() == table["sparsity_measured"].tolist() == [0.5, 0.75]
    assert list(table) == ["sparsity", "sparsity_measured", "epoch", "accuracy", "loss", "model"]
    for row in table.itertuples():
        assert kp.summary(row.model)[column][0] == row.sparsity
        measured = row.model.evaluate(*data(), verbose=0, return_dict=True)
        assert measured["accuracy"] == pytest.approx(row.accuracy)
    first, second = (array(m.get_layer("hidden").kernel) for m in table["model"])
    assert not second[first == 0].any()
    assert (first != second)[second != 0].all()  # trained on
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_best_epoch_is_kept_not_the_last():
    x, y = data()
    rates = keras.callbacks.LearningRateScheduler(lambda epoch, _: [0.01, 0.01, 10.0][epoch])
    table = prune_iteratively(
        network(), x, y, [0.5], epochs=3, validation_data=(x, y), callbacks=[rates], progress=False
    )
    assert table["epoch"].item() == 2
    assert table["loss"].item() < 2


def test_the_best_epoch_is_that_of_the_metric_asked_for():
    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["accuracy"] = [0.1, 0.9, 0.5, 0.5][epoch]

    table = prune_iteratively(
        network(), *data(), [0.5], epochs=4, monitor="accuracy", callbacks=[Score()], progress=False
    )
    assert table["epoch"].item() == 2


def test_with_rewinding_each_round_starts_from_the_same_weights():
    original = network()
    table = prune_iteratively(
        original, *data(), [0.5, 0.8], epochs=1, rewind_to=original, progress=False
    )
    for model in table["model"]:
        assert int(array(model.optimizer.iterations)) == 1  # one step of 96 examples at 128


def test_the_progress_bar_can_be_shown(capsys):
    prune_iteratively(network(), *data(), [0.5])
    assert "Prune and train: 100%" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"sparsities": [0.9, 0.5]}, ValueError, r"must ascend.*\[0.9, 0.5\]"),
        ({"sparsities": []}, ValueError, "must ascend"),
        ({"sparsities": [1.2]}, ValueError, "sparsity=1.2"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number from 1.*epochs=0"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        prune_iteratively(network(), *data(), **{"sparsities": [0.5]} | arguments)


def test_a_model_that_is_not_compiled_is_refused():
    model = keras.Sequential([keras.Input((8,)), kl.Dense(4), kl.Dense(3)])
    with pytest.raises(ValueError, match="is not compiled"):
        prune_iteratively(model, *data(), [0.5])
