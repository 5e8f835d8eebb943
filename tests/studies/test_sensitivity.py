"""What each weight and each layer is worth: Taylor scores and the sensitivity of layers."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.pruning.taylor import taylor_scores
from keras_pruning.studies.sensitivity import sensitivity_sweep, suggest_sparsities


def network(units=(6, 5), **options):
    keras.utils.set_random_seed(0)
    hidden = [
        kl.Dense(u, activation="relu", name=f"hidden_{i + 1}", **options)
        for i, u in enumerate(units)
    ]
    model = keras.Sequential([keras.Input((4,)), *hidden, kl.Dense(3, name="logits")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def data(examples=50):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 4)).astype("float32")
    return x, x[:, :3].argmax(axis=1)


def array(variable):
    return keras.ops.convert_to_numpy(variable)


# Taylor scores


def linear_model(kernel, **options):
    """One Dense layer without bias under the loss mean (y - x w)^2."""
    kernel = np.array(kernel, float)
    dense = kl.Dense(kernel.shape[1], use_bias=False, name="dense", **options)
    model = keras.Sequential([keras.Input((kernel.shape[0],)), dense])
    dense.kernel.assign(kernel)
    model.compile("sgd", "mse")
    return model


def test_the_score_is_weight_times_gradient_by_hand():
    # dL/dw = mean 2 (x w - y) x; with x = [1, 2], y = 1, w = [1, -1]: residual -2, so [-4, -8]
    scores = taylor_scores(linear_model([[1.0], [-1.0]]), np.array([[1.0, 2.0]]), np.array([[1.0]]))
    np.testing.assert_allclose(scores["dense"][0], [[4.0], [8.0]], rtol=1e-6)


def test_the_score_is_the_change_of_the_loss_by_finite_differences():
    model, (x, y) = network(), data()
    scores = taylor_scores(model, x, y)
    kernel = model.get_layer("hidden_1").kernel
    values = array(kernel)

    def loss(scale):  # of one weight times (1 - scale)
        changed = values.copy()
        changed[1, 2] *= 1 - scale
        kernel.assign(changed)
        result = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
        kernel.assign(values)
        return result

    slope = (loss(0.02) - loss(-0.02)) / 0.04
    assert scores["hidden_1"][0][1, 2] == pytest.approx(abs(slope), rel=0.02, abs=1e-4)


def test_batches_of_any_size_give_the_gradient_of_all_examples():
    model, (x, y) = network(), data()
    whole = taylor_scores(model, x, y)
    for size in (50, 16, 7):
        parts = taylor_scores(model, x, y, batch_size=size)
        for name in whole:
            np.testing.assert_allclose(parts[name][0], whole[name][0], rtol=1e-4, atol=1e-7)


def test_penalties_dropout_and_batch_statistics_do_not_enter():
    x, y = np.array([[1.0, 2.0]]), np.array([[1.0]])
    with_penalty = linear_model([[1.0], [-1.0]], kernel_regularizer="l2")
    np.testing.assert_allclose(taylor_scores(with_penalty, x, y)["dense"][0], [[4.0], [8.0]])

    keras.utils.set_random_seed(0)
    stack = [
        kl.Dense(6, name="d"),
        kl.BatchNormalization(name="norm"),
        kl.Dropout(0.5),
        kl.Dense(3),
    ]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    once, again = (taylor_scores(model, *data())["d"][0] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert array(model.get_layer("norm").moving_mean).tolist() == [0] * 6
    # In training the mean of a batch of one is its value: nothing would reach the loss.
    assert taylor_scores(model, *data(1))["d"][0].any()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_model_is_not_changed_however_it_is_compiled(jit_compile):
    model = network()
    model.compile("adam", model.loss, jit_compile=jit_compile)
    model.fit(*data(), verbose=0)
    before = [array(v) for v in [*model.weights, *model.optimizer.variables]]
    scores = taylor_scores(model, *data())
    assert list(scores) == ["hidden_1", "hidden_2", "logits"]
    for old, new in zip(before, [*model.weights, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(old, array(new))
    model.fit(*data(), verbose=0)


def test_any_layer_and_several_inputs_are_scored():
    keras.utils.set_random_seed(0)
    left, right = keras.Input((6, 4), name="left"), keras.Input((3,), name="right")
    signal = kl.GRU(5, name="gru")(kl.SeparableConv1D(4, 2, name="conv")(left))
    model = keras.Model([left, right], kl.Dense(1, name="out")(kl.Concatenate()([signal, right])))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x = {"left": rng.normal(size=(10, 6, 4)), "right": rng.normal(size=(10, 3))}
    scores = taylor_scores(model, x, rng.normal(size=(10, 1)), batch_size=4)
    shapes = {name: [s.shape for s in arrays] for name, arrays in scores.items()}
    assert shapes == {
        "conv/depthwise_kernel": [(2, 4, 1)],
        "conv": [(1, 4, 4)],
        "gru": [(4, 15), (5, 15)],
        "out": [(8, 1)],
    }
    assert all(s.any() for arrays in scores.values() for s in arrays)
    pruned = kp.prune_weights(model, 0.5, score=scores)
    assert kp.summary(pruned)["zeros"].tolist() == [0, 8, 68, 0]  # depthwise is spared


def test_a_frozen_kernel_is_scored_as_any_other():
    x, y = np.array([[1.0, 2.0]]), np.array([[1.0]])
    model = linear_model([[1.0], [-1.0]])
    model.get_layer("dense").kernel.trainable = False  # all that the network has
    np.testing.assert_allclose(taylor_scores(model, x, y)["dense"][0], [[4.0], [8.0]], rtol=1e-6)
    assert not model.trainable_variables


def test_frozen_layers_are_scored_and_pruned_by_their_scores():
    model, (x, y) = network(), data()
    expected = taylor_scores(model, x, y)
    model.get_layer("hidden_1").trainable = False
    model.get_layer("hidden_2").kernel.trainable = False
    found = taylor_scores(model, x, y)
    for name, arrays in expected.items():
        np.testing.assert_allclose(found[name][0], arrays[0], rtol=1e-5)
    kernel = array(kp.prune_weights(model, 0.5, score=found).get_layer("hidden_1").kernel)
    smallest = np.argsort(expected["hidden_1"][0], axis=None)[:12]
    assert np.flatnonzero(kernel == 0).tolist() == sorted(smallest)
    assert not model.get_layer("hidden_1").trainable


def test_a_unit_is_worth_what_its_removal_changes_to_first_order():
    # residual as above: each unit j gets sum_i w_ij g_ij, signs kept until the sum is taken
    model = linear_model([[1.0, 1.0], [-1.0, 1.0]])
    scores = taylor_scores(model, np.array([[1.0, 2.0]]), np.array([[1.0, 5.0]]), method="units")
    # outputs (-1, 3), dL/dout = (out - y) = (-2, -2), times out is (2, -6)
    np.testing.assert_allclose(scores["dense"], [2.0, 6.0], rtol=1e-6)


def test_the_scores_prune_weights_and_units():
    model, (x, y) = network(), data()
    by_weight = taylor_scores(model, x, y)
    pruned = kp.prune_weights(model, 0.5, score=by_weight)
    gone = array(pruned.get_layer("hidden_1").kernel) == 0
    assert gone.sum() == 12
    assert by_weight["hidden_1"][0][gone].max() <= by_weight["hidden_1"][0][~gone].min()
    by_unit = taylor_scores(model, x, y, method="units")
    pruned = kp.prune_units(model, 0.5, score=by_unit)
    dead = ~array(pruned.get_layer("hidden_1").kernel).any(axis=0)
    assert set(np.flatnonzero(dead)) == set(np.argsort(by_unit["hidden_1"])[:3])
    assert kp.summary(kp.prune_weights(model, 0.5, score=by_weight, scope="global"))[
        "zeros"
    ].sum() == round(0.5 * (24 + 30))


def test_half_precision_scores_are_float32():
    scores = taylor_scores(network(dtype="mixed_float16"), *data())
    assert scores["hidden_1"][0].dtype == np.float32
    assert np.isfinite(scores["hidden_1"][0]).all()


def test_bad_input_of_taylor_scores_is_named():
    x, y = data()
    with pytest.raises(ValueError, match="same number of examples"):
        taylor_scores(network(), x, y[:-1])
    with pytest.raises(ValueError, match="method must be 'weights' or 'units'.*'filters'"):
        taylor_scores(network(), x, y, method="filters")
    with pytest.raises(ValueError, match="is not compiled"):
        taylor_scores(keras.Sequential([keras.Input((4,)), kl.Dense(3)]), x, y)


def test_scores_of_a_wrong_shape_or_of_no_layer_are_named():
    scores = taylor_scores(network(), *data())
    with pytest.raises(ValueError, match="no scores for layer 'hidden_1'"):
        kp.prune_weights(network(), 0.5, score={"hidden_2": scores["hidden_2"]})
    with pytest.raises(ValueError, match=r"shapes \[\(4, 9\)\] for layer 'hidden_1'.*\[\(4, 6\)\]"):
        kp.prune_weights(network((9, 5)), 0.5, score=scores)
    with pytest.raises(ValueError, match=r"shapes \[\(6,\)\] for layer 'hidden_1'"):
        kp.prune_units(network(), 0.5, score=scores)


# Sensitivity


def test_each_layer_is_pruned_alone():
    model, (x, y) = network(), data()
    table = sensitivity_sweep(model, x, y, sparsities=[0.5, 1.0], progress=False)
    assert table["layer"].tolist() == ["hidden_1"] * 3 + ["hidden_2"] * 3
    assert table["sparsity"].tolist() == [0, 0.5, 1] * 2
    assert table["sparsity_measured"].tolist() == [0, 0.5, 1] * 2
    for row in table.itertuples():
        alone = kp.prune_weights(model, layers={row.layer: row.sparsity})
        expected = alone.evaluate(x, y, verbose=0, return_dict=True)
        assert row.accuracy == pytest.approx(expected["accuracy"])
        assert row.loss == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize("score", ["magnitude", "random", "taylor"])
def test_units_and_scores_of_any_kind_are_swept(score):
    model, (x, y) = network(), data()
    given = taylor_scores(model, x, y, method="units") if score == "taylor" else score
    table = sensitivity_sweep(
        model,
        x,
        y,
        method="units",
        sparsities=[0.6],
        score=given,
        layers=["hidden_2"],
        progress=False,
    )
    assert table["sparsity_measured"].tolist() == [0, 0.6]
    alone = kp.prune_units(model, layers={"hidden_2": 0.6}, score=given, seed=0)
    expected = alone.evaluate(x, y, verbose=0, return_dict=True)
    assert table["accuracy"].iloc[1] == pytest.approx(expected["accuracy"])


def test_a_random_score_has_the_seed_asked_for():
    model, (x, y) = network(), data()
    table = sensitivity_sweep(
        model, x, y, sparsities=[0.6], score="random", layers=["hidden_2"], seed=5, progress=False
    )
    alone = kp.prune_weights(model, layers={"hidden_2": 0.6}, score="random", seed=5)
    expected = alone.evaluate(x, y, verbose=0, return_dict=True)
    assert table["loss"].iloc[1] == pytest.approx(expected["loss"], rel=1e-4)


def test_the_model_swept_is_not_changed():
    model = network()
    before = model.get_weights()
    sensitivity_sweep(model, *data(), sparsities=[0.9], progress=False)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_layer_that_is_not_a_chain_is_swept_too():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 4)), kl.Conv1D(4, 3, name="conv"), kl.Flatten(), kl.Dense(3)]
    )
    model.compile("sgd", "mse", metrics=["mae"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 6, 4)), rng.normal(size=(9, 3))
    table = sensitivity_sweep(model, x, y, sparsities=[0.5], progress=False)
    expected = kp.prune_weights(model, 0.5).evaluate(x, y, verbose=0, return_dict=True)
    assert table["mae"].iloc[1] == pytest.approx(expected["mae"], rel=1e-4)


def table_of(**accuracies):
    shares = [0.0, 0.5, 0.8, 0.9]
    return pd.DataFrame(
        {"layer": name, "sparsity": share, "accuracy": accuracy}
        for name, values in accuracies.items()
        for share, accuracy in zip(shares, values, strict=True)
    )


def test_the_highest_sparsity_within_the_drop_is_suggested():
    table = table_of(
        tough=[0.98, 0.98, 0.98, 0.97],
        weak=[0.98, 0.9, 0.8, 0.1],
        lucky=[0.98, 0.975, 0.9, 0.98],  # what lies behind a fall is not trusted
    )
    assert suggest_sparsities(table) == {"tough": 0.9, "weak": 0.0, "lucky": 0.5}
    assert suggest_sparsities(table, max_drop=0.1) == {"tough": 0.9, "weak": 0.5, "lucky": 0.9}
    assert suggest_sparsities(table[::-1], 0) == {"lucky": 0.0, "weak": 0.0, "tough": 0.8}


def test_a_drop_that_rounding_makes_a_little_larger_is_within_it():
    assert 0.92 - 0.1 > 0.82  # in floats
    table = table_of(edge=[0.92, 0.82, 0.5, 0.1])
    assert suggest_sparsities(table, max_drop=0.1) == {"edge": 0.5}


def test_of_a_regression_the_loss_may_rise_by_the_drop():
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(8, activation="relu", name="hidden"), kl.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "mse", metrics=["mae"])
    x, _ = data()
    y = model.predict(x, verbose=0)  # the dense network has no error
    table = sensitivity_sweep(model, x, y, sparsities=[0.25, 0.5, 0.75], progress=False)
    errors = [
        np.square(kp.prune_weights(model, share).predict(x, verbose=0) - y).mean()
        for share in (0.25, 0.5, 0.75)
    ]
    assert errors == sorted(errors) and errors[0] > 0
    between = (errors[1] + errors[2]) / 2
    assert suggest_sparsities(table, between) == {"hidden": 0.5}
    assert suggest_sparsities(table, 2 * errors[2]) == {"hidden": 0.75}
    assert suggest_sparsities(table, errors[0] / 2) == {"hidden": 0}


@pytest.mark.parametrize(
    "metric",
    ["loss", "mae", "root_mean_squared_error", "val_mse", "logits_loss", "binary_crossentropy"],
)
def test_of_losses_and_errors_less_is_better(metric):
    table = table_of(a=[0.2, 0.1, 0.205, 0.9]).rename(columns={"accuracy": metric})
    assert suggest_sparsities(table, metric=metric) == {"a": 0.8}
    assert suggest_sparsities(table, metric=metric, less_is_better=False) == {"a": 0}


@pytest.mark.parametrize("metric", ["auc", "sparse_categorical_accuracy", "f1_score", "r2_score"])
def test_of_scores_more_is_better(metric):
    table = table_of(a=[0.9, 0.95, 0.895, 0.1]).rename(columns={"accuracy": metric})
    assert suggest_sparsities(table, metric=metric) == {"a": 0.8}


def test_a_metric_whose_name_tells_nothing_needs_the_direction():
    table = table_of(a=[3.0, 2.0, 2.0, 9.0]).rename(columns={"accuracy": "badness"})
    with pytest.raises(ValueError, match="'badness' does not tell whether less of it is better"):
        suggest_sparsities(table, metric="badness")
    assert suggest_sparsities(table, metric="badness", less_is_better=True) == {"a": 0.8}


def test_the_suggestion_is_what_layers_takes():
    model, (x, y) = network(), data()
    table = sensitivity_sweep(model, x, y, sparsities=[0.25, 0.5], progress=False)
    suggested = suggest_sparsities(table, max_drop=1)
    measured = kp.summary(kp.prune_weights(model, layers=suggested)).set_index("layer")["sparsity"]
    assert measured.to_dict() == {"hidden_1": 0.5, "hidden_2": round(0.5 * 30) / 30, "logits": 0}


@pytest.mark.parametrize(
    "change, arguments, error, message",
    [
        (lambda t: t.drop(columns="layer"), {}, ValueError, r"no column \['layer'\]"),
        (lambda t: t, {"metric": "auc"}, ValueError, r"no column \['auc'\]"),
        (lambda t: t[t["sparsity"] > 0], {}, ValueError, "'a' has no row of sparsity 0"),
        (lambda t: t, {"max_drop": -1}, ValueError, "max_drop=-1"),
        (lambda t: t, {"max_drop": "1 %"}, TypeError, "max_drop='1 %'"),
        (lambda t: t.to_dict(), {}, TypeError, "DataFrame. Received: dict"),
    ],
)
def test_bad_tables_and_drops_are_named(change, arguments, error, message):
    with pytest.raises(error, match=message):
        suggest_sparsities(change(table_of(a=[0.9, 0.9, 0.9, 0.9])), **arguments)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"method": "filters"}, ValueError, "method must be 'weights' or 'units'.*'filters'"),
        ({"sparsities": [1.5]}, ValueError, "sparsity=1.5"),
        ({"layers": ["hidden_9"]}, ValueError, "no prunable layer.*hidden_9"),
        ({"layers": "hidden_1"}, TypeError, "layers must be a list of names"),
        ({"score": "l1"}, ValueError, "score must be one of"),
    ],
)
def test_bad_arguments_of_the_sweep_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        sensitivity_sweep(network(), *data(), progress=False, **arguments)


# The figure


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX draws nothing without a seed in a compiled step"
)
def test_layers_that_are_named_are_measured_where_the_output_cannot_be_told():
    class Noisy(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = kl.Dense(6, name="hidden"), kl.Dense(3, name="head")

        def call(self, x):
            return self.head(self.hidden(x) + keras.random.normal((1,), stddev=0.1))

        def get_config(self):
            return {}

    model, (x, y) = Noisy(), data()
    model(x)
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="cannot be told.*layers="):
        sensitivity_sweep(model, x, y, progress=False)
    table = sensitivity_sweep(
        model, x, y, layers=["hidden"], sparsities=[0.5], method="weights", progress=False
    )
    assert table["sparsity_measured"].tolist() == [0.0, 0.5]
