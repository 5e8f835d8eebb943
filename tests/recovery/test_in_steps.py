"""Pruning in steps, refitted after each."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.recovery import in_steps


@pytest.fixture(scope="module")
def learnt():
    """A network that has learnt a function, and inputs."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 10)).astype("float32")
    y = np.abs(x @ rng.normal(size=(10, 6))) @ rng.normal(size=(6, 3))
    model = keras.Sequential([keras.Input((10,)), kl.Dense(60, "relu"), kl.Dense(40, "relu")])
    model.add(kl.Dense(3))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, y, epochs=20, verbose=0)
    return model, x


def distance(model, original, x):
    return float(np.abs(model.predict(x, verbose=0) - original.predict(x, verbose=0)).mean())


@pytest.mark.parametrize(("method", "sparsity"), [("weights", 0.9), ("units", 0.8)])
def test_pruning_in_steps_costs_far_less_than_without_refitting(learnt, method, sparsity):
    model, x = learnt
    prune = kp.prune_weights if method == "weights" else kp.prune_units
    masked = prune(model, sparsity)
    stepwise = kp.prune_in_steps(model, x[:300], sparsity, method=method, progress=False)
    assert distance(stepwise, model, x[300:]) < 0.7 * distance(masked, model, x[300:])


def test_what_has_been_refitted_is_ranked_anew(learnt):
    model, x = learnt
    at_once = kp.prune_weights(model, 0.9)
    stepwise = kp.prune_in_steps(model, x[:300], 0.9, progress=False)
    kernels = zip(at_once.get_weights()[:3:2], stepwise.get_weights()[:3:2], strict=True)
    assert all(((one == 0) != (other == 0)).any() for one, other in kernels)


def test_each_step_leaves_the_same_share_and_is_refitted_as_asked(learnt, monkeypatch):
    model, x = learnt
    left, options = [], []

    def refit(pruned, original, inputs, **given):
        left.append(np.count_nonzero(pruned.layers[0].get_weights()[0]))
        options.append((original is model, given["damping"], given["batch_size"]))

    monkeypatch.setattr(in_steps, "refit_in_place", refit)
    kp.prune_in_steps(model, x, 0.875, steps=3, damping=0.3, batch_size=50, progress=False)
    assert left == [300, 150, 75]  # of 600
    assert options == [(True, 0.3, 50)] * 3


@pytest.mark.parametrize(
    ("method", "by_default", "other"),
    [("weights", "magnitude", "activation"), ("units", "activation", "magnitude")],
)
def test_by_default_weights_go_by_magnitude_and_units_by_activation(
    learnt, method, by_default, other
):
    model, x = learnt
    options = {"method": method, "steps": 1, "progress": False}
    kept = [
        kp.prune_in_steps(model, x[:100], 0.5, score=score, **options).get_weights()[0] != 0
        for score in (None, by_default, other)
    ]
    np.testing.assert_array_equal(kept[0], kept[1])
    assert (kept[0] != kept[2]).any()


def test_exactly_the_sparsity_asked_for_is_reached(learnt):
    model, x = learnt
    pruned = kp.prune_in_steps(model, x[:100], 0.73, steps=3, progress=False)
    for layer in pruned.layers[:2]:
        kernel = layer.get_weights()[0]
        assert np.count_nonzero(kernel == 0) == round(0.73 * kernel.size)
    pruned = kp.prune_in_steps(model, x[:100], 0.5, method="units", steps=3, progress=False)
    dead = [int((~layer.get_weights()[0].any(axis=0)).sum()) for layer in pruned.layers]
    assert dead == [30, 20, 0]
    assert [unit.shape[-1] for unit in kp.shrink(pruned).get_weights()[::2]] == [30, 20, 3]


def test_the_model_and_its_compile_state_are_as_before(learnt):
    model, x = learnt
    before = model.get_weights()
    pruned = kp.prune_in_steps(model, x[:50], 0.5, steps=2, progress=False)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert pruned.loss == "mse" and type(pruned.optimizer) is type(model.optimizer)


def test_layers_can_be_chosen(learnt):
    model, x = learnt
    layer = model.layers[1]
    for layers in ([layer.name], [layer], layer, (one.name for one in [layer])):
        pruned = kp.prune_in_steps(model, x[:50], 0.5, steps=2, layers=layers, progress=False)
        zeros = [np.count_nonzero(one.get_weights()[0] == 0) for one in pruned.layers]
        assert zeros == [0, 1200, 0]
    with pytest.raises(TypeError, match="layers must be a list here"):
        kp.prune_in_steps(model, x[:50], 0.5, layers={layer.name: 0.5}, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must be below 1"),
        ({"sparsity": 0.5, "steps": 0}, "steps must be a whole number from 1"),
        ({"sparsity": 0.5, "method": "filters"}, "method must be 'weights' or 'units'"),
        ({"sparsity": 0.5, "score": "taylor"}, "score must be 'magnitude' or 'activation'"),
    ],
)
def test_bad_arguments_are_named(learnt, arguments, message):
    model, x = learnt
    with pytest.raises(ValueError, match=message):
        kp.prune_in_steps(model, x, progress=False, **arguments)
