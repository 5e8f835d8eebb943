"""The sweep: what stands in its table, and that it measures what a plain loop would."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.studies import sweep
from keras_pruning.studies.sweep import SPARSITIES


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8, 8, 1)).astype("float32")
    return x, (x.mean(axis=(1, 2, 3)) > 0).astype("int64")


def compiled(model):
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def dense_network():
    keras.utils.set_random_seed(0)
    hidden = [kl.Dense(30, activation="relu"), kl.Dense(20, activation="relu")]
    return compiled(keras.Sequential([keras.Input((8, 8, 1)), kl.Flatten(), *hidden, kl.Dense(2)]))


def conv_network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = kl.ReLU()(kl.BatchNormalization()(kl.Conv2D(8, 3)(inputs)))
    x = kl.ReLU()(kl.Conv2D(8, 3, padding="same")(x) + x)
    return compiled(keras.Model(inputs, kl.Dense(2)(kl.GlobalAveragePooling2D()(x))))


def plain_loop(model, prune, sparsities, x, y):
    return [prune(model, s).evaluate(x, y, verbose=0, return_dict=True) for s in sparsities]


@pytest.mark.parametrize("network", [dense_network, conv_network])
@pytest.mark.parametrize(
    "method, prune", [("weights", kp.prune_weights), ("units", kp.prune_units)]
)
def test_the_sweep_measures_what_a_plain_loop_measures(network, method, prune, data):
    model = network()
    sparsities = (0.0, 0.5, 0.9)
    table = kp.sparsity_sweep(model, *data, methods=[method], sparsities=sparsities)
    expected = plain_loop(model, prune, sparsities, *data)
    for column in ("accuracy", "loss"):
        np.testing.assert_allclose(table[column], [e[column] for e in expected], rtol=1e-4)


@pytest.mark.parametrize("network", [dense_network, conv_network])
def test_points_are_refitted_before_they_are_measured(network, data):
    model = network()
    inputs = np.random.default_rng(1).normal(size=(50, 8, 8, 1)).astype("float32")
    options = {"methods": ["weights", "units"], "sparsities": (0, 0.5, 0.8)}
    table = kp.sparsity_sweep(model, *data, reconstruct_on=inputs, **options)
    assert list(table.columns) == list(kp.sparsity_sweep(model, *data, **options).columns)
    for row in table.to_dict("records"):
        prune = kp.prune_units if row["method"] == "units" else kp.prune_weights
        expected = prune(model, row["sparsity"])
        if row["sparsity"]:
            expected = kp.reconstruct(expected, model, inputs, progress=False)
        loss = expected.evaluate(*data, verbose=0, return_dict=True)["loss"]
        assert row["loss"] == pytest.approx(loss, rel=1e-3)
        assert row["nonzero"] == sum((w != 0).sum() for w in expected.get_weights())


def test_refitting_is_the_same_on_workers_and_apart_in_a_store(data, tmp_path):
    inputs = np.random.default_rng(1).normal(size=(2, 50, 8, 8, 1)).astype("float32")

    def swept(**options):
        return kp.sparsity_sweep(
            dense_network(), *data, methods=["weights"], sparsities=(0.5, 0.9), **options
        )

    here, other = swept(reconstruct_on=inputs[0]), swept(reconstruct_on=inputs[1])
    assert not other["loss"].equals(here["loss"])
    with ThreadPoolExecutor(2) as pool:
        there = swept(reconstruct_on=inputs[0], executor=pool, store=tmp_path)
        pd.testing.assert_frame_equal(there, here)
        pd.testing.assert_frame_equal(
            swept(reconstruct_on=inputs[1], executor=pool, store=tmp_path), other
        )
    assert len(kp.load_results(tmp_path)) == 4
    pd.testing.assert_frame_equal(swept(reconstruct_on=inputs[0], store=tmp_path), here)


def test_more_points_do_not_read_the_weights_more_often(data, monkeypatch):
    model = dense_network()
    of_model, reads = {id(v) for v in model.weights}, []
    convert = keras.ops.convert_to_numpy

    def counted(values):
        if id(values) in of_model:
            reads.append(id(values))
        return convert(values)

    def count(sparsities):
        reads.clear()
        kp.sparsity_sweep(model, *data, sparsities=sparsities)
        return len(reads)

    monkeypatch.setattr(keras.ops, "convert_to_numpy", counted)
    assert len(of_model) <= count([0, 0.5, 0.9]) == count([0.5])


def test_two_points_are_measured_side_by_side_as_one_by_one(data, monkeypatch):
    def measured(cores):
        monkeypatch.setattr(sweep, "count_cores", lambda: cores)
        methods = ("units", "random_weights")
        return kp.sparsity_sweep(
            dense_network(), *data, methods=methods, sparsities=(0.5, 0.9), repeats=3
        )

    one_by_one = measured(cores=1)
    forward, both = sweep.sparse_forward, threading.Barrier(2, timeout=60)

    def meeting(*arguments, **options):
        both.wait()  # goes on when another point has come as far
        return forward(*arguments, **options)

    monkeypatch.setattr(sweep, "sparse_forward", meeting)
    pd.testing.assert_frame_equal(measured(cores=2), one_by_one, check_exact=True)


def test_one_point_alone_takes_all_cores(data, monkeypatch):
    monkeypatch.setattr(sweep, "count_cores", lambda: 2)
    forward, threads = sweep.sparse_forward, []

    def counted(*arguments, n_threads, **options):
        threads.append(n_threads)
        return forward(*arguments, n_threads=n_threads, **options)

    monkeypatch.setattr(sweep, "sparse_forward", counted)
    kp.sparsity_sweep(dense_network(), *data, methods=["weights"], sparsities=(0.5,))
    kp.sparsity_sweep(dense_network(), *data, methods=["weights"], sparsities=(0.5, 0.9))
    assert threads == [2, 1, 1]


def test_threads_that_share_a_keras_model_measure_one_after_the_other(data, monkeypatch):
    class Scratch:
        def set_weights(self, weights):
            self.weights = weights

        def evaluate(self, *arguments, **options):
            time.sleep(0.1)  # the other thread would set its weights now
            return {"loss": self.weights}

    monkeypatch.setattr(sweep, "copy_model", lambda model: Scratch())
    evaluate = sweep.evaluator(conv_network(), *data, batch_size=100)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(evaluate, [1.0, 2.0])) == [{"loss": 1.0}, {"loss": 2.0}]


def test_given_functions_are_called_in_the_thread_of_the_caller(data, monkeypatch):
    monkeypatch.setattr(sweep, "count_cores", lambda: 2)
    threads = []

    def mine(model, sparsity, *, seed):
        threads.append(threading.current_thread())
        return kp.prune_weights(model, sparsity)

    kp.sparsity_sweep(dense_network(), *data, methods={"mine": mine}, sparsities=(0.5, 0.9))
    assert threads == [threading.current_thread()] * 2


def test_a_row_for_each_method_and_sparsity(data):
    table = kp.sparsity_sweep(dense_network(), *data)
    assert table["method"].tolist() == [
        m for m in ("weights", "units", "random_weights") for _ in range(10)
    ]
    assert table["sparsity"].tolist() == list(SPARSITIES) * 3
    assert list(table.columns) == [
        "method",
        "sparsity",
        "sparsity_measured",
        "parameters",
        "nonzero",
        "accuracy",
        "loss",
        "seed",
        "repeat",
    ]


def test_sparsity_and_nonzero_are_measured(data):
    table = kp.sparsity_sweep(
        dense_network(), *data, methods=["weights", "units"], sparsities=[0.5]
    )
    weights, units = table.to_dict("records")
    prunable, spared = 64 * 30 + 30 * 20, 20 * 2
    assert weights["sparsity_measured"] == 0.5
    assert weights["nonzero"] == prunable / 2 + spared  # biases start as zeros
    assert units["sparsity_measured"] == 0.5
    assert units["nonzero"] == 64 * 15 + 30 * 10 + spared
    assert weights["parameters"] == units["parameters"] == prunable + spared + 30 + 20 + 2


def test_random_methods_alone_are_repeated_with_new_seeds(data):
    table = kp.sparsity_sweep(
        dense_network(),
        *data,
        methods=["units", "random_units"],
        sparsities=[0.5],
        repeats=3,
        seed=7,
    )
    assert table["method"].tolist() == ["units"] + ["random_units"] * 3
    assert table["seed"].isna().tolist() == [True, False, False, False]
    assert table["seed"].tolist()[1:] == [7, 8, 9]
    assert table["loss"].nunique() == 4


def test_the_same_seed_gives_the_same_table(data):
    one, two = (
        kp.sparsity_sweep(dense_network(), *data, sparsities=[0.3, 0.8], seed=5) for _ in range(2)
    )
    assert one.equals(two)


def test_a_method_may_be_a_function(data):
    model = dense_network()

    def by_first_order(model, sparsity, *, seed):
        return kp.prune_units(model, sparsity, order=1)

    table = kp.sparsity_sweep(model, *data, methods={"L1": by_first_order}, sparsities=[0.5])
    expected = kp.prune_units(model, 0.5, order=1).evaluate(*data, verbose=0, return_dict=True)
    assert table["method"].tolist() == ["L1"]
    assert table["loss"][0] == pytest.approx(expected["loss"], rel=1e-4)


def test_scope_and_layers_reach_the_pruning(data):
    model = dense_network()
    name = kp.prunable_layers(model)[1]
    table = kp.sparsity_sweep(model, *data, methods=["weights"], sparsities=[0.5], layers=[name])
    assert table["nonzero"][0] == 64 * 30 + 300 + 40
    both = [
        kp.sparsity_sweep(model, *data, methods=["weights"], sparsities=[0.5], scope=scope)
        for scope in ("layer", "global")
    ]
    assert both[0]["loss"][0] != both[1]["loss"][0]
    assert both[0]["nonzero"][0] == both[1]["nonzero"][0]


def test_a_model_with_its_own_evaluate_is_evaluated_by_it(data):
    @keras.saving.register_keras_serializable("tests")
    class Doubled(keras.Sequential):
        def evaluate(self, *args, **kwargs):
            result = super().evaluate(*args, **kwargs)
            return {name: 2 * value for name, value in result.items()}

    plain = dense_network()
    model = compiled(Doubled([keras.Input((8, 8, 1)), *plain.layers]))
    doubled = kp.sparsity_sweep(model, *data, methods=["weights"], sparsities=[0.5])
    once = kp.sparsity_sweep(plain, *data, methods=["weights"], sparsities=[0.5])
    assert doubled["loss"][0] == pytest.approx(2 * once["loss"][0], rel=1e-4)


def test_regularisation_counts_in_the_loss(data):
    model = compiled(
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                kl.Flatten(),
                kl.Dense(9, kernel_regularizer="l2"),
                kl.Dense(2),
            ]
        )
    )
    table = kp.sparsity_sweep(model, *data, methods=["weights"], sparsities=[0])
    expected = model.evaluate(*data, verbose=0, return_dict=True)["loss"]
    assert table["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_the_model_is_not_changed(data):
    model = dense_network()
    before = model.get_weights()
    kp.sparsity_sweep(model, *data, sparsities=[0.9])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_progress_bar_is_on_standard_output_or_nowhere(data, capsys):
    kp.sparsity_sweep(dense_network(), *data, methods=["weights"], sparsities=[0.5])
    shown = capsys.readouterr()
    assert "1/1" in shown.out
    assert shown.err == ""
    kp.sparsity_sweep(dense_network(), *data, methods=["weights"], sparsities=[0.5], progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"methods": ["l1"]}, ValueError, r"Unknown method \['l1'\].*random_units"),
        ({"methods": "weights"}, TypeError, "methods must be a list"),
        ({"sparsities": [0.5, 90]}, ValueError, "sparsity=90"),
        ({"repeats": 0}, ValueError, "repeats=0"),
        ({"scope": "all"}, ValueError, "scope='all'"),
        ({"layers": ["absent"]}, ValueError, "absent"),
        ({"layers": {"dense": 0.5}}, TypeError, "list of names"),
        ({"reconstruct_on": np.full((4, 8, 8, 1), np.nan)}, ValueError, "NaN"),
        ({"reconstruct_on": "train.npz"}, TypeError, "x takes arrays"),
    ],
)
def test_bad_arguments_are_named(data, arguments, error, message):
    with pytest.raises(error, match=message):
        kp.sparsity_sweep(dense_network(), *data, **arguments)


def test_labels_and_images_of_different_length_are_refused(data):
    x, y = data
    with pytest.raises(ValueError, match=r"same number of examples.*\[400, 399\]"):
        kp.sparsity_sweep(dense_network(), x, y[:-1])
    with pytest.raises(ValueError, match="at least one"):
        kp.sparsity_sweep(dense_network(), x[:0], y[:0])


def test_a_model_that_is_not_compiled_is_refused(data):
    model = keras.Sequential([keras.Input((8, 8, 1)), kl.Flatten(), kl.Dense(3), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"not compiled.*model.compile"):
        kp.sparsity_sweep(model, *data)


@pytest.mark.parametrize("nothing", [{"methods": []}, {"sparsities": []}])
def test_a_sweep_of_no_points_is_refused(data, nothing):
    with pytest.raises(ValueError, match="nothing to do"):
        kp.sparsity_sweep(dense_network(), *data, **nothing)
