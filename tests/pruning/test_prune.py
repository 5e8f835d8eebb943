"""Pruning put on models: what becomes zero, what stays, what is refused."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.pruning.prune import (
    apply_unit_masks,
    apply_weight_masks,
    unit_masks,
    weight_masks,
)


def dense_network(*units, inputs=8, **options):
    """Dense layers "hidden_1", ... and a last one "logits"."""
    keras.utils.set_random_seed(0)
    names = [f"hidden_{i + 1}" for i in range(len(units) - 1)] + ["logits"]
    stack = [kl.Dense(u, name=n, **options) for u, n in zip(units, names, strict=True)]
    return keras.Sequential([keras.Input((inputs,)), *stack])


def with_kernel(values, next_units=2):
    model = dense_network(np.shape(values)[1], next_units, inputs=np.shape(values)[0])
    model.get_layer("hidden_1").kernel.assign(values)
    return model


def kernel(model, name="hidden_1"):
    return keras.ops.convert_to_numpy(model.get_layer(name).kernel)


def values(variable):
    return keras.ops.convert_to_numpy(variable)


def column(model, name):
    return kp.summary(model).set_index("layer")[name].to_dict()


# Weights


def test_the_smallest_weights_become_zero_and_the_rest_stay():
    pruned = kp.prune_weights(with_kernel([[0.1, -3.0], [2.0, -0.5]]), 0.5)
    assert kernel(pruned).tolist() == [[0, -3], [2, 0]]


def test_an_infinite_weight_is_pruned_to_zero_not_to_nan():
    pruned = kp.prune_weights(with_kernel([[1.0, np.inf]]), 1)
    assert kernel(pruned).tolist() == [[0, 0]]


def test_each_layer_loses_its_share_and_the_output_layer_none():
    pruned = kp.prune_weights(dense_network(10, 20, 3), 0.75)
    assert column(pruned, "zeros") == {"hidden_1": 60, "hidden_2": 150, "logits": 0}


def test_global_scope_ranks_all_layers_together():
    model = dense_network(2, 2, 1, inputs=2, use_bias=False)
    model.set_weights([np.array([[1, 2], [3, 4]]), np.array([[5, 6], [0.5, 7]]), np.ones((2, 1))])
    pruned = kp.prune_weights(model, 0.5, scope="global")
    assert kernel(pruned, "hidden_1").tolist() == [[0, 0], [0, 4]]
    assert kernel(pruned, "hidden_2").tolist() == [[5, 6], [0, 7]]


UNIT_LAYERS = {  # a layer, its input, and the axis of its kernel that counts the units
    "dense": (lambda: kl.Dense(5), (8,), -1),
    "convolution": (lambda: kl.Conv2D(6, 3), (8, 8, 4), -1),
    "transposed": (lambda: kl.Conv2DTranspose(6, 3), (8, 8, 4), -2),
}


@pytest.mark.parametrize("score", ["magnitude", lambda kernel: -kernel])
@pytest.mark.parametrize("case", UNIT_LAYERS)
def test_in_unit_scope_each_unit_loses_the_same_share(case, score):
    build, shape, axis = UNIT_LAYERS[case]
    model = keras.Sequential([keras.Input(shape), build()])
    name = model.layers[0].name
    kernel = model.layers[0].get_weights()[0]
    pruned = kp.prune_weights(model, layers={name: 0.4}, scope="unit", score=score)
    result = np.moveaxis(pruned.layers[0].get_weights()[0], axis, 0)
    for unit, left in zip(np.moveaxis(kernel, axis, 0), result, strict=True):
        ranks = np.abs(unit) if score == "magnitude" else -unit
        cut = np.sort(ranks, axis=None)[round(0.4 * unit.size)]
        np.testing.assert_array_equal(left, np.where(ranks < cut, 0, unit))


def test_in_unit_scope_a_higher_sparsity_prunes_more_and_the_first_of_equals_go():
    model = with_kernel(np.ones((4, 2)))
    assert (
        kernel(kp.prune_weights(model, 0.5, scope="unit")).tolist() == [[0, 0]] * 2 + [[1, 1]] * 2
    )
    more = kp.prune_weights(kp.prune_weights(model, 0.5, scope="unit"), 0.75, scope="unit")
    assert kernel(more).tolist() == [[0, 0]] * 3 + [[1, 1]]


@pytest.mark.parametrize(
    "prune, arguments, message",
    [
        (kp.prune_units, {"sparsity": 0.5}, r"scope must be one of \['layer', 'global'\]"),
        (kp.prune_weights, {"pattern": (2, 4)}, "leave out scope='unit'"),
    ],
)
def test_where_unit_scope_means_nothing_it_is_refused(prune, arguments, message):
    with pytest.raises(ValueError, match=message):
        prune(dense_network(8, 3), scope="unit", **arguments)


def test_named_layers_alone_are_pruned_even_the_output():
    pruned = kp.prune_weights(dense_network(10, 20, 3), 0.5, layers=["hidden_2", "logits"])
    assert column(pruned, "sparsity") == {"hidden_1": 0, "hidden_2": 0.5, "logits": 0.5}


def test_a_dict_gives_each_layer_its_own_sparsity():
    pruned = kp.prune_weights(dense_network(10, 20, 3), layers={"hidden_1": 0.25, "hidden_2": 0.9})
    assert column(pruned, "sparsity") == {"hidden_1": 0.25, "hidden_2": 0.9, "logits": 0}


def test_weights_pruned_before_count_and_stay_pruned():
    model = dense_network(50, 3)
    once = kp.prune_weights(model, 0.5)
    for score in ("magnitude", "random", lambda k: -np.abs(k)):
        twice = kp.prune_weights(once, 0.7, score=score, seed=1)
        assert column(twice, "sparsity")["hidden_1"] == 0.7
        assert not kernel(twice)[kernel(once) == 0].any()


def test_random_pruning_is_nested_and_follows_its_seed():
    model = dense_network(50, 3)
    few, more, other = (
        kernel(kp.prune_weights(model, s, score="random", seed=seed)) == 0
        for s, seed in ((0.3, 1), (0.6, 1), (0.3, 2))
    )
    assert not (few & ~more).any()
    assert (few != other).any()


def test_a_score_function_ranks_the_weights():
    model = with_kernel([[1.0, 2.0], [3.0, 4.0]])
    assert kernel(kp.prune_weights(model, 0.5, score=np.negative)).tolist() == [[1, 2], [0, 0]]


def test_biases_stay_under_weight_pruning():
    model = dense_network(4, 2)
    model.get_layer("hidden_1").bias.assign([0.1, 0.2, 0.3, 0.4])
    pruned = kp.prune_weights(model, 1)
    assert keras.ops.convert_to_numpy(pruned.get_layer("hidden_1").bias).all()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.99, 1])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (kl.Conv2D(5, 3), (8, 8, 2)),
        (kl.Conv2DTranspose(5, 3), (8, 8, 2)),
        (kl.EinsumDense("abc,cd->abd", (8, 5)), (8, 2)),
        (kl.LSTM(5, return_sequences=True), (8, 2)),
        (kl.Bidirectional(kl.GRU(5)), (8, 2)),
    ],
)
@pytest.mark.filterwarnings("ignore:Nothing is left of a kernel")
def test_each_kernel_of_a_layer_loses_the_exact_count_by_itself(layer, shape, sparsity):
    model = keras.Sequential([keras.Input(shape), layer, kl.Flatten(), kl.Dense(2)])
    pruned = kp.prune_weights(model, sparsity)
    for before, after in zip(model.weights, pruned.weights, strict=True):
        if "kernel" in before.name and id(before) not in map(id, model.layers[-1].weights):
            expected = values(before).ravel()
            expected[np.argsort(np.abs(expected))[: round(sparsity * expected.size)]] = 0
            np.testing.assert_array_equal(values(after).ravel(), expected)
        else:
            np.testing.assert_array_equal(values(after), values(before))


@pytest.mark.parametrize(
    "layer, spared, pruned_by_default",
    [
        (kl.DepthwiseConv2D(3, depth_multiplier=2, name="conv"), "conv", {}),
        (kl.SeparableConv2D(5, 3, name="conv"), "conv/depthwise_kernel", {"conv": 5}),
    ],
)
def test_depthwise_kernels_are_spared_unless_they_are_named(layer, spared, pruned_by_default):
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), layer, kl.Flatten(), kl.Dense(30), kl.Dense(2)]
    )
    by_default = column(kp.prune_weights(model, 0.5), "zeros")
    assert by_default.pop(spared) == 0
    assert {"conv": by_default.get("conv")} == ({"conv": None} | pruned_by_default)
    named = column(kp.prune_weights(model, 0.5, layers=[spared]), "zeros")
    assert named[spared] == column(model, "weights")[spared] / 2
    assert sum(named.values()) == named[spared]


def test_half_precision_kernels_keep_their_dtype():
    for dtype in ("float16", "bfloat16"):
        pruned = kp.prune_weights(dense_network(10, 2, dtype=dtype), 0.5)
        variable = pruned.get_layer("hidden_1").kernel
        assert keras.backend.standardize_dtype(variable.dtype) == dtype
        assert column(pruned, "sparsity")["hidden_1"] == 0.5


def test_a_shared_layer_is_pruned_once():
    shared = kl.Dense(4, name="shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Dense(2)(shared(shared(inputs))))
    assert column(kp.prune_weights(model, 0.5), "zeros")["shared"] == 8


def test_layers_in_nested_models_are_pruned_by_their_full_name():
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(4, name="d")], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, kl.Dense(2, name="d")])
    assert column(kp.prune_weights(model, 0.5, layers=["inner/d"]), "zeros") == {
        "inner/d": 8,
        "d": 0,
    }


# Units


def test_a_pruned_unit_loses_its_column_and_its_bias():
    model = with_kernel([[0.1, 3.0, 1.0], [0.2, 4.0, 1.0]])
    model.get_layer("hidden_1").bias.assign([9.0, 9.0, 9.0])
    pruned = kp.prune_units(model, 2 / 3)
    assert kernel(pruned).tolist() == [[0, 3, 0], [0, 4, 0]]
    assert keras.ops.convert_to_numpy(pruned.get_layer("hidden_1").bias).tolist() == [0, 9, 0]


def test_order_one_ranks_by_the_sum_of_magnitudes():
    model = with_kernel([[3.0, 2.0], [0.0, 2.0]])  # L1 norms 3, 4; L2 norms 3, 2.83
    assert kernel(kp.prune_units(model, 0.5, order=1))[:, 0].tolist() == [0, 0]
    assert kernel(kp.prune_units(model, 0.5, order=2))[:, 1].tolist() == [0, 0]


def test_every_layer_keeps_a_unit_below_sparsity_one():
    model = dense_network(10, 20, 3)
    for scope in ("layer", "global"):
        zero = column(kp.prune_units(model, 0.999, scope=scope), "zero_units")
        assert zero == {"hidden_1": 9, "hidden_2": 19, "logits": 0}
    assert column(kp.prune_units(model, 1), "zero_units")["hidden_1"] == 10


def test_global_units_are_ranked_relative_to_their_layer():
    model = dense_network(4, 4, 1, inputs=4, use_bias=False)
    small, large = 0.01 * np.diag([1, 2, 3, 4.0]), np.diag([4, 3, 2, 1.0])
    model.set_weights([small, large, np.ones((4, 1))])
    pruned = kp.prune_units(model, 0.5, scope="global")
    assert column(pruned, "zero_units") == {"hidden_1": 2, "hidden_2": 2, "logits": 0}
    assert not kernel(pruned, "hidden_1")[:, :2].any()
    assert not kernel(pruned, "hidden_2")[:, 2:].any()


def test_global_unit_masks_are_nested():
    model = dense_network(10, 20, 3)
    less = unit_masks(model, 0.3, scope="global")
    more = unit_masks(model, 0.8, scope="global")
    assert all(not (more[name] & ~less[name]).any() for name in less)
    assert sum(np.count_nonzero(~m) for m in less.values()) == 9


@pytest.mark.parametrize(
    "layer, shape, kept",
    [
        (kl.Dense(6), (4,), (slice(None),)),
        (kl.Conv1D(6, 3), (8, 2), (slice(None),) * 2),
        (kl.Conv3D(6, 2), (4, 4, 4, 2), (slice(None),) * 4),
        (kl.Conv2DTranspose(6, 3), (8, 8, 2), (slice(None),) * 2),
    ],
)
def test_the_axis_of_the_units_is_zeroed(layer, shape, kept):
    model = keras.Sequential([keras.Input(shape), layer, kl.Flatten(), kl.Dense(2)])
    pruned = kp.prune_units(model, 0.5)
    values = keras.ops.convert_to_numpy(pruned.layers[0].kernel)
    alive = [bool(values[(*kept, unit)].any()) for unit in range(6)]
    assert alive.count(False) == 3
    untouched = keras.ops.convert_to_numpy(layer.kernel)
    for unit in np.flatnonzero(alive):
        np.testing.assert_array_equal(values[(*kept, unit)], untouched[(*kept, unit)])


def test_a_separable_convolution_loses_filters_of_its_pointwise_kernel():
    model = keras.Sequential([keras.Input((8, 8, 2)), kl.SeparableConv2D(6, 3), kl.Conv2D(2, 1)])
    pruned = kp.prune_units(model, 0.5).layers[0]
    assert keras.ops.convert_to_numpy(pruned.depthwise_kernel).all()
    assert np.count_nonzero(keras.ops.convert_to_numpy(pruned.pointwise_kernel).any((0, 1, 2))) == 3


def test_what_a_pruned_filter_sends_through_its_normalization_is_zero():
    keras.utils.set_random_seed(0)
    for options in ({}, {"scale": False}, {"center": False}):
        norm = kl.BatchNormalization(**options)
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), kl.Conv2D(6, 3), norm, kl.ReLU(), kl.Conv2D(2, 3)]
        )
        rng = np.random.default_rng(0)
        norm.set_weights([rng.uniform(0.5, 2, w.shape) for w in norm.get_weights()])
        pruned = kp.prune_units(model, 0.5)
        behind = keras.Model(pruned.inputs, pruned.layers[1].output)
        signal = behind.predict(rng.normal(size=(2, 8, 8, 1)), verbose=0).any(axis=(0, 1, 2))
        assert np.count_nonzero(~signal) == 3, options


def test_units_pruned_before_go_first_under_any_score():
    once = kp.prune_units(dense_network(20, 3), 0.5)
    for score in ("magnitude", "random", lambda k: -np.abs(k).sum(axis=0)):
        twice = kp.prune_units(once, 0.7, score=score, seed=3)
        assert column(twice, "zero_units")["hidden_1"] == 14


def test_random_units_follow_their_seed():
    model = dense_network(40, 3)
    first, again, other = (
        kp.prune_units(model, 0.5, score="random", seed=seed).get_weights()[0].any(axis=0)
        for seed in (1, 1, 2)
    )
    assert first.sum() == 20
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_score_function_ranks_the_units():
    model = with_kernel([[1.0, 2.0], [1.0, 2.0]])
    pruned = kp.prune_units(model, 0.5, score=lambda k: -k.sum(axis=0))
    assert kernel(pruned).tolist() == [[1, 0], [1, 0]]


# The model passed in, and the copy


@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units])
def test_the_model_passed_in_is_not_changed(prune):
    model = dense_network(10, 3)
    before = model.get_weights()
    prune(model, 0.9)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_pruned_model_is_compiled_as_the_original():
    model = dense_network(10, 3)
    model.compile(keras.optimizers.SGD(0.5), "mse", metrics=["mae"])
    pruned = kp.prune_weights(model, 0.5)
    assert float(pruned.optimizer.learning_rate) == 0.5
    assert set(pruned.evaluate(np.ones((2, 8)), np.ones((2, 3)), verbose=0, return_dict=True)) == {
        "loss",
        "mae",
    }


def test_masks_computed_once_can_be_applied_in_place():
    model = dense_network(10, 3)
    apply_weight_masks(model, weight_masks(model, 0.5))
    assert column(model, "sparsity")["hidden_1"] == 0.5
    apply_unit_masks(model, unit_masks(model, 0.6))
    assert column(model, "zero_units")["hidden_1"] == 6


# What is prunable, and the table


def test_prunable_layers_leave_out_the_output_and_for_units_what_has_none():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            kl.Embedding(9, 4, name="embedding"),
            kl.Conv1D(3, 2, name="conv"),
            kl.LSTM(3, name="lstm"),
            kl.Dense(2, name="logits"),
        ]
    )
    assert kp.prunable_layers(model) == ["embedding", "conv", "lstm"]
    assert kp.prunable_layers(model, "units") == ["conv", "lstm"]


def test_summary_has_a_row_a_layer():
    table = kp.summary(kp.prune_units(dense_network(4, 3), 0.5))
    assert table.to_dict("records") == [
        {
            "layer": "hidden_1",
            "type": "Dense",
            "shape": (8, 4),
            "weights": 32,
            "zeros": 16,
            "sparsity": 0.5,
            "unit": "column",
            "units": 4,
            "zero_units": 2,
            "unit_sparsity": 0.5,
            "output": False,
            "spared": "",
        },
        {
            "layer": "logits",
            "type": "Dense",
            "shape": (4, 3),
            "weights": 12,
            "zeros": 0,
            "sparsity": 0.0,
            "unit": "column",
            "units": 3,
            "zero_units": 0,
            "unit_sparsity": 0.0,
            "output": True,
            "spared": "output",
        },
    ]


def test_summary_counts_single_zeros_and_units_of_zeros_apart():
    model = dense_network(4, 3)
    kernel = np.ones((8, 4))
    kernel[0], kernel[:, 1] = 0, 0
    model.layers[0].kernel.assign(kernel)
    row = kp.summary(model).iloc[0]
    assert (row["zeros"], row["sparsity"]) == (11, 11 / 32)
    assert (row["zero_units"], row["unit_sparsity"]) == (1, 0.25)


# Bad input


@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units])
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"sparsity": -0.5}, ValueError, "sparsity=-0.5"),
        ({"sparsity": 80}, ValueError, "sparsity=80.*divide by 100"),
        ({"sparsity": float("nan")}, ValueError, "sparsity=nan"),
        ({"sparsity": True}, TypeError, "sparsity=True"),
        ({"sparsity": "half"}, TypeError, "sparsity='half'"),
        ({}, ValueError, "Give a sparsity"),
        ({"sparsity": 0.5, "scope": "model"}, ValueError, r"scope.*\['layer', 'global'.*'model'"),
        ({"sparsity": 0.5, "score": "l1"}, ValueError, "score must be one of.*score='l1'"),
        ({"sparsity": 0.5, "layers": ["hidden_9"]}, ValueError, r"no prunable layer.*hidden_9.*hi"),
        ({"sparsity": 0.5, "layers": "hidden_1"}, TypeError, "layers must be a list of names"),
        ({"sparsity": 0.5, "layers": []}, ValueError, "no layer to prune"),
        ({"sparsity": 0.5, "layers": {"hidden_1": 0.5}}, ValueError, "not both"),
        ({"layers": {"hidden_1": 2.0}}, ValueError, "sparsity=2.0"),
        ({"layers": {"hidden_1": 0.5}, "scope": "global"}, ValueError, "one sparsity, not a dict"),
        ({"sparsity": 0.5, "score": lambda k: 1.0}, ValueError, "score must return scores of sha"),
    ],
)
def test_bad_arguments_are_named(prune, arguments, error, message):
    with pytest.raises(error, match=message):
        prune(dense_network(5, 4, 3), **arguments)


@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units])
def test_nan_in_a_kernel_names_the_layer(prune):
    model = dense_network(5, 4, 3)
    model.get_layer("hidden_2").kernel.assign(np.full((5, 4), np.nan))
    with pytest.raises(ValueError, match="kernel of layer 'hidden_2' holds NaN"):
        prune(model, 0.5)


@pytest.mark.parametrize("prune", [kp.prune_weights, kp.prune_units, kp.prunable_layers])
def test_an_unbuilt_model_is_refused(prune):
    with pytest.raises(ValueError, match="is not built"):
        prune(keras.Sequential([kl.Dense(2)]), *([0.5] if prune is not kp.prunable_layers else []))


def test_a_score_with_nan_is_refused():
    with pytest.raises(ValueError, match="that score returned holds NaN"):
        kp.prune_weights(dense_network(5, 3), 0.5, score=lambda k: k * np.nan)


def test_units_of_the_output_layer_are_refused():
    with pytest.raises(ValueError, match="'logits' is the model's output.*prune_weights"):
        kp.prune_units(dense_network(5, 3), 0.5, layers=["logits"])


def test_units_of_a_layer_without_units_are_refused():
    table = kl.Embedding(9, 4, name="table")
    model = keras.Sequential([keras.Input((6,)), table, kl.Flatten(), kl.Dense(2)])
    with pytest.raises(ValueError, match="no prunable layer.*table"):
        kp.prune_units(model, 0.5, layers=["table"])


def test_a_model_of_an_output_layer_alone_has_nothing_to_prune():
    with pytest.raises(ValueError, match="no layer to prune"):
        kp.prune_weights(dense_network(3), 0.5)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method must be one of.*method='filters'"):
        kp.prunable_layers(dense_network(5, 3), "filters")


def test_a_quantized_kernel_is_refused():
    model = dense_network(8, 3)
    model.quantize("int8")
    with pytest.raises(TypeError, match="layer 'hidden_1'.*Prune before quantizing"):
        kp.prune_weights(model, 0.5)


# Patterns n of m


def test_two_of_four_inputs_of_each_unit_stay():
    model = with_kernel([[0.1, 4.0], [-3.0, 0.5], [2.0, -0.6], [0.5, 1.0]])
    pruned = kp.prune_weights(model, pattern=(2, 4))
    assert kernel(pruned).tolist() == [[0, 4], [-3, 0], [2, 0], [0, 1]]


@pytest.mark.parametrize(
    "layer, shape, axis",
    [
        (kl.Dense(6), (8,), -2),
        (kl.Conv2D(6, 3), (6, 6, 8), -2),
        (kl.Conv2D(6, 3, groups=2), (6, 6, 8), -2),
        (kl.Conv2DTranspose(6, 3), (6, 6, 8), -1),
        (kl.LSTM(8), (5, 4), -2),
    ],
)
def test_the_groups_lie_along_the_axis_that_the_layer_sums_over(layer, shape, axis):
    model = keras.Sequential([keras.Input(shape), layer, kl.Flatten(), kl.Dense(2)])
    pruned = kp.prune_weights(model, pattern=(2, 4)).layers[0]
    kernels = [w for w in pruned.get_weights() if w.ndim > 1]
    for values in kernels:
        groups = np.moveaxis(values, axis, -1).reshape(-1, 4)
        assert (np.count_nonzero(groups, axis=1) == 2).all()


def test_a_lower_sparsity_prunes_the_smallest_of_what_the_pattern_prunes():
    model = dense_network(10, 3)
    full = kernel(kp.prune_weights(model, pattern=(2, 4))) == 0
    part = kernel(kp.prune_weights(model, 0.25, pattern=(2, 4))) == 0
    assert part.sum() == 20
    assert not (part & ~full).any()
    magnitudes = np.abs(kernel(model))
    assert magnitudes[part].max() <= magnitudes[full & ~part].min()


def test_a_pattern_goes_with_scores_with_scope_and_with_a_dict():
    model = with_kernel([[1.0], [2.0], [3.0], [4.0]])
    pruned = kp.prune_weights(model, pattern=(1, 4), score=np.negative)
    assert kernel(pruned).ravel().tolist() == [1, 0, 0, 0]
    model = dense_network(8, 8, 3)
    overall = kp.prune_weights(model, 0.4, scope="global", pattern=(2, 4))
    assert sum(column(overall, "zeros").values()) == round(0.4 * 128)
    some = kp.prune_weights(model, layers={"hidden_1": 0.5, "hidden_2": 0.25}, pattern=(2, 4))
    assert column(some, "sparsity") == {"hidden_1": 0.5, "hidden_2": 0.25, "logits": 0}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pattern": (2, 3)}, "kernel of layer 'hidden_1'.*m=3 must divide.*Leave the layer out"),
        ({"pattern": (4, 2)}, r"0 < n < m. Received: pattern=\(4, 2\)"),
        ({"pattern": "2:4"}, "pattern must be a pair.*'2:4'"),
        ({"pattern": (2, 4), "sparsity": 0.6}, "prunes 20 weights .* a sparsity of 0.5; 24 were"),
    ],
)
def test_a_pattern_that_does_not_fit_names_the_layer(arguments, message):
    with pytest.raises(ValueError, match=message):
        kp.prune_weights(dense_network(5, 3), **arguments)


def test_a_kernel_without_an_input_axis_takes_no_pattern():
    model = keras.Sequential(
        [keras.Input((6,)), kl.Embedding(8, 4, name="words"), kl.Flatten(), kl.Dense(2)]
    )
    with pytest.raises(ValueError, match="embeddings of layer 'words' .Embedding. has no axis"):
        kp.prune_weights(model, pattern=(2, 4))


def test_scores_can_be_given_as_a_dict():
    model = with_kernel([[1.0, 2.0], [3.0, 4.0]])
    scores = {"hidden_1": [[[4.0, 3.0], [2.0, 1.0]]]}  # an array a kernel
    assert kernel(kp.prune_weights(model, 0.5, score=scores)).tolist() == [[1, 2], [0, 0]]
    scores = {"hidden_1": np.array([2.0, 1.0])}
    assert kernel(kp.prune_units(model, 0.5, score=scores)).tolist() == [[1, 0], [3, 0]]
