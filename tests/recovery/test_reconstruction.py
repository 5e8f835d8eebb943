"""What is left of a model refitted to the original's answers, against plain NumPy and Keras."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def inputs(examples, *shape, seed=0):
    """Inputs that tell of each other, as pixels do: mixtures of four numbers, and some noise."""
    rng, size = np.random.default_rng(seed), int(np.prod(shape))
    mixing = np.random.default_rng(100).normal(size=(4, size))
    x = rng.normal(size=(examples, 4)) @ mixing + 0.3 * rng.normal(size=(examples, size)) + 0.3
    return x.reshape(examples, *shape).astype("float32")


def with_random_weights(model, seed=1):
    """Gives every weight a value that is not zero, biases and scales too."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(size=variable.shape) * 0.5
        low, high = np.abs(values) + 0.5, np.sign(values) * (np.abs(values) + 0.01)
        variable.assign(low if variable.name.endswith(("variance", "gamma")) else high)
    return model


def masked(model, share=0.5, *, whole_units=False, seed=2):
    """A copy without a share of its kernels' weights, or of their units with their biases.

    What is left is changed a little, so that there is something to mend in any case.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    rng = np.random.default_rng(seed)
    for layer in copy._flatten_layers(include_self=False):
        for kernel in [w for w in layer.weights if w.name.endswith("kernel")]:
            values = array(kernel)
            values = values * rng.uniform(0.7, 1, values.shape)
            if not whole_units:
                kernel.assign(values * (rng.random(values.shape) >= share))
                continue
            axis = -2 if "Transpose" in type(layer).__name__ else -1
            units = values.shape[axis]
            alive = rng.permutation(units) >= round(share * units)
            kernel.assign(np.moveaxis(np.moveaxis(values, axis, -1) * alive, -1, axis))
            if layer.bias is not None:
                layer.bias.assign(array(layer.bias) * alive)
    return copy


def one_layer(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    return with_random_weights(model)


def reconstruct(*args, **options):
    return kp.reconstruct(*args, progress=False, **options)


def weights_of(model):
    return [array(w).copy() for w in model.weights]


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def assert_zeros_kept(result, pruned):
    for ours, theirs in zip(result.weights, pruned.weights, strict=True):
        np.testing.assert_array_equal(array(ours) == 0, array(theirs) == 0, err_msg=ours.path)


def assert_nearer(result, pruned, original, x, *, by=0.95):
    """The whole model's answers: nearer to the original's than the pruned model's."""

    def answers(model):
        found = keras.tree.flatten(model.predict(x, verbose=0))
        return np.concatenate([np.asarray(one, "float32").reshape(-1) for one in found])

    goal = answers(original)
    before, after = (np.linalg.norm(answers(m) - goal) for m in (pruned, result))
    assert 0 < after < by * before, (before, after)


# Every layer kind, against the least squares of a design matrix that plain Keras computes:
# its columns are what the layer answers with a kernel that is 1 at one place and 0 elsewhere.


def design(layer, x, unit_axes):
    """What each of a layer's weights adds to its sums, `(rows, units, weights)`."""
    columns = []
    zeros = [np.zeros(w.shape) for w in layer.weights]
    for number, weight in enumerate(zeros):
        for place in np.ndindex(*weight.shape):
            unit = [w.copy() for w in zeros]
            unit[number][place] = 1
            layer.set_weights(unit)
            y = array(layer(x)).astype("float64")
            y = np.moveaxis(y, unit_axes, range(-len(unit_axes), 0))
            columns.append(y.reshape(-1, int(np.prod(y.shape[-len(unit_axes) :]))))
    return np.stack(columns, axis=-1)


def flat(weights):
    return np.concatenate([np.asarray(w, "float64").ravel() for w in weights])


def ridge_by_lstsq(columns, pruned, goal, damping, *, of_units=None):
    """The weights that fit the goal `(rows, units)`, held where they are by the damping.

    `of_units`: which weights are of which unit, `(units, weights)`, where inputs may be dead.
    """
    fitted = pruned.copy()
    if of_units is None:
        of_units = (columns != 0).any(axis=0)
    for unit in range(columns.shape[1]):
        of_unit = np.flatnonzero(of_units[unit])
        x = columns[:, unit, of_unit]
        ridge = damping * np.mean(np.sum(x**2, axis=0))
        left = goal[:, unit] - x @ pruned[of_unit]
        kept = pruned[of_unit] != 0
        augmented = np.concatenate([x[:, kept], np.sqrt(ridge) * np.eye(kept.sum())])
        change = np.linalg.lstsq(augmented, np.concatenate([left, np.zeros(kept.sum())]))[0]
        fitted[of_unit[kept]] += change
    return fitted


# Each: a layer without activation, the shape of an example, the output axes that are its units.
KINDS = {
    "dense": (lambda: kl.Dense(5), (7,), (-1,)),
    "dense, no bias": (lambda: kl.Dense(5, use_bias=False), (7,), (-1,)),
    "dense on a sequence": (lambda: kl.Dense(5), (3, 7), (-1,)),
    "einsum": (lambda: kl.EinsumDense("...x,xy->...y", 4, bias_axes="y"), (3, 5), (-1,)),
    "einsum, heads": (
        lambda: kl.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        (4, 5),
        (-2, -1),
    ),
    "einsum, heads together": (
        lambda: kl.EinsumDense("abcd,cde->abe", (None, 4), bias_axes="e"),
        (3, 2, 3),
        (-1,),
    ),
    "einsum, units before rows": (
        lambda: kl.EinsumDense("abc,cd->adb", (4, None)),
        (3, 5),
        (1,),
    ),
    "einsum, a kernel a place": (
        lambda: kl.EinsumDense("abc,bcd->abd", (3, 4), bias_axes="bd"),
        (3, 5),
        (-2, -1),
    ),
    "conv1d, causal, dilated": (
        lambda: kl.Conv1D(3, 3, padding="causal", dilation_rate=2),
        (9, 3),
        (-1,),
    ),
    "conv1d, same, strides": (
        lambda: kl.Conv1D(3, 3, strides=2, padding="same"),
        (9, 3),
        (-1,),
    ),
    "conv2d": (lambda: kl.Conv2D(3, 3), (6, 5, 2), (-1,)),
    "conv2d, strides, groups": (
        lambda: kl.Conv2D(6, (3, 2), strides=(2, 1), padding="same", groups=3),
        (7, 6, 6),
        (-1,),
    ),
    "conv2d, dilated, no bias": (
        lambda: kl.Conv2D(3, 2, dilation_rate=2, use_bias=False),
        (6, 5, 2),
        (-1,),
    ),
    "conv3d": (lambda: kl.Conv3D(3, 2, padding="same"), (3, 4, 3, 2), (-1,)),
    "transposed1d": (lambda: kl.Conv1DTranspose(3, 3, strides=2), (5, 3), (-1,)),
    "transposed2d": (
        lambda: kl.Conv2DTranspose(3, 3, strides=2, padding="same"),
        (4, 3, 2),
        (-1,),
    ),
    "transposed2d, output padding": (
        lambda: kl.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=1),
        (4, 3, 2),
        (-1,),
    ),
    "transposed3d": (lambda: kl.Conv3DTranspose(2, 2, strides=2), (2, 3, 2, 2), (-1,)),
    "depthwise1d": (lambda: kl.DepthwiseConv1D(3, depth_multiplier=2), (8, 3), (-1,)),
    "depthwise2d": (
        lambda: kl.DepthwiseConv2D(3, strides=2, padding="same"),
        (6, 5, 3),
        (-1,),
    ),
}
WITH_UNITS = [kind for kind in KINDS if not kind.startswith(("einsum", "depthwise"))]


@pytest.mark.parametrize(
    ("kind", "whole_units"),
    [(kind, False) for kind in KINDS] + [(kind, True) for kind in WITH_UNITS],
    ids=list(KINDS) + [f"{kind}, units" for kind in WITH_UNITS],
)
def test_each_layer_kind_gets_the_least_squares_solution(kind, whole_units):
    make, shape, unit_axes = KINDS[kind]
    original = one_layer(make(), shape)
    pruned = masked(original, whole_units=whole_units)
    x = inputs(30, *shape)
    result = reconstruct(pruned, original, x, damping=0.05, batch_size=11)
    columns = design(one_layer(make(), shape).layers[0], x, unit_axes)
    goal = columns @ flat(original.get_weights())
    expected = ridge_by_lstsq(columns, flat(pruned.get_weights()), goal, 0.05)
    np.testing.assert_allclose(flat(result.get_weights()), expected, rtol=2e-3, atol=2e-4)
    assert_zeros_kept(result, pruned)
    assert np.abs(expected - flat(pruned.get_weights())).max() > 0.01  # it was to be changed


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_separable_convolution_is_refitted_kernel_after_kernel(rank, multiplier):
    separable = (kl.SeparableConv1D, kl.SeparableConv2D)[rank - 1]
    depthwise = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)[rank - 1]
    pointwise = (kl.Conv1D, kl.Conv2D)[rank - 1]
    shape = (6,) * rank + (3,)
    original = one_layer(separable(4, 3, depth_multiplier=multiplier), shape)
    pruned = masked(original)
    x = inputs(30, *shape)
    result = reconstruct(pruned, original, x, damping=0.05)

    first = one_layer(depthwise(3, depth_multiplier=multiplier, use_bias=False), shape)
    columns = design(first.layers[0], x, (-1,))
    goal = columns @ flat(original.get_weights()[:1])
    fitted = ridge_by_lstsq(columns, flat(pruned.get_weights()[:1]), goal, 0.05)
    np.testing.assert_allclose(flat(result.get_weights()[:1]), fitted, rtol=2e-3, atol=2e-4)

    first.set_weights([fitted.reshape(first.weights[0].shape)])
    second = one_layer(pointwise(4, 1), (6,) * rank + (3 * multiplier,))
    heard = first.predict(x, verbose=0)
    columns = design(second.layers[0], heard, (-1,))
    of_units = (design(second.layers[0], heard * 0 + 1, (-1,)) != 0).any(axis=0)
    goal = original.predict(x, verbose=0).reshape(-1, 4)
    small = flat(pruned.get_weights()[1:])
    fitted = ridge_by_lstsq(columns, small, goal, 0.05, of_units=of_units)
    np.testing.assert_allclose(flat(result.get_weights()[1:]), fitted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("activation", ["relu", "softmax", "gelu"])
def test_a_layer_is_fitted_to_what_the_refitted_layer_before_it_sends(activation):
    hidden = kl.Dense(9, activation=activation)
    original = with_random_weights(keras.Sequential([keras.Input((6,)), hidden, kl.Dense(3)]))
    pruned = masked(original)
    x = inputs(200, 6)
    result = reconstruct(pruned, original, x, damping=0.02)

    def fit(heard, goal, kernel, bias):
        heard = np.concatenate([heard, np.ones((len(heard), 1))], axis=1)
        weights = np.concatenate([kernel, bias[None]])
        ridge = np.sqrt(0.02 * np.mean(np.sum(heard**2, axis=0)))
        for column, target in zip(weights.T, goal.T, strict=True):  # views: filled in place
            kept = np.flatnonzero(column)
            a = np.concatenate([heard[:, kept], ridge * np.eye(len(kept))])
            b = np.concatenate([target - heard @ column, np.zeros(len(kept))])
            column[kept] += np.linalg.lstsq(a, b)[0]
        return weights[:-1], weights[-1]

    kernel, bias, kernel_2, bias_2 = (w.astype("float64") for w in original.get_weights())
    small, small_bias, small_2, small_bias_2 = (w.astype("float64") for w in pruned.get_weights())
    apply = keras.activations.get(activation)

    def active(sums):
        return array(apply(keras.ops.convert_to_tensor(sums.astype("float32")))).astype("float64")

    small, small_bias = fit(x, x @ kernel + bias, small, small_bias)
    goal = active(x @ kernel + bias) @ kernel_2 + bias_2
    small_2, small_bias_2 = fit(active(x @ small + small_bias), goal, small_2, small_bias_2)
    expected = (small, small_bias, small_2, small_bias_2)
    assert_same(result.get_weights(), expected, rtol=5e-3, atol=1e-3)


# Whole models


@keras.saving.register_keras_serializable("test_reconstruction")
class Gated(keras.layers.Layer):
    """A layer of the user's own with layers inside."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units
        self.value, self.gate = kl.Dense(units), kl.Dense(units, activation="sigmoid")

    def build(self, shape):
        self.value.build(shape)
        self.gate.build(shape)

    def call(self, x):
        return self.value(x) * self.gate(x)

    def get_config(self):
        return super().get_config() | {"units": self.units}


def dense_network():
    return keras.Sequential(
        [keras.Input((8,)), kl.Dense(24, "relu"), kl.Dense(20, "relu"), kl.Dense(4)]
    )


def sequential_with_norm():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            kl.Conv2D(8, 3, padding="same", use_bias=False),
            kl.BatchNormalization(),
            kl.ReLU(),
            kl.MaxPooling2D(),
            kl.SeparableConv2D(10, 3, activation="relu"),
            kl.BatchNormalization(),
            kl.Dropout(0.5),
            kl.Flatten(),
            kl.Dense(5, activation="softmax"),
        ]
    )


def residual():
    x = start = keras.Input((6, 6, 3))
    x = kl.Conv2D(6, 3, padding="same", name="stem")(x)
    for _ in range(2):
        y = kl.Activation("relu")(kl.BatchNormalization()(kl.Conv2D(6, 3, padding="same")(x)))
        y = kl.BatchNormalization()(kl.Conv2D(6, 3, padding="same")(y))
        x = kl.Activation("relu")(kl.add([x, y]))
    return keras.Model(start, kl.Dense(4)(kl.GlobalAveragePooling2D()(x)))


def nested():
    start = keras.Input((7,))
    inner = keras.Model(start, kl.BatchNormalization()(kl.Dense(9, "relu")(start)), name="inner")
    outer = keras.Sequential([keras.Input((9,)), kl.Dense(6, "relu"), kl.Dense(5)], name="outer")
    x = keras.Input((7,))
    return keras.Model(x, kl.Dense(3)(outer(inner(x))))


def shared():
    a, b = keras.Input((6,)), keras.Input((6,))
    tower = keras.Sequential([keras.Input((6,)), kl.Dense(9, "relu"), kl.BatchNormalization()])
    both = kl.Dense(9, "relu", name="twice")
    return keras.Model([a, b], kl.Dense(2)(kl.concatenate([both(tower(a)), both(tower(b))])))


def named_inputs():
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    x = kl.concatenate([kl.Dense(9, "relu")(a), kl.Dense(7, "relu")(b)])
    return keras.Model({"a": a, "b": b}, {"y": kl.Dense(2)(x), "z": kl.Dense(3)(x)})


def custom_layer():
    return keras.Sequential([keras.Input((6,)), Gated(8), kl.Dense(6, "relu"), kl.Dense(2)])


def attention():
    start = keras.Input((5, 8))
    x = kl.LayerNormalization()(start)
    x = kl.add([start, kl.MultiHeadAttention(2, 4)(x, x)])
    y = kl.Dense(8)(kl.Dense(16, "gelu")(kl.LayerNormalization()(x)))
    return keras.Model(start, kl.Dense(3)(kl.Flatten()(kl.add([x, y]))))


def autoencoder():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            kl.Conv2D(6, 3, strides=2, padding="same", activation="relu"),
            kl.DepthwiseConv2D(3, padding="same", activation="relu"),
            kl.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu"),
            kl.Conv2D(1, 3, padding="same"),
        ]
    )


def x_of(model, examples=300, seed=3):
    def one(tensor):
        return inputs(examples, *tensor.shape[1:], seed=seed)

    tensors = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(one, tensors)


WHOLE = [
    dense_network,
    sequential_with_norm,
    residual,
    nested,
    shared,
    named_inputs,
    custom_layer,
    attention,
    autoencoder,
]


def settled(model):
    """Random weights, and moving statistics that are those of what the layers hear."""
    with_random_weights(model)
    x = x_of(model, seed=9)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, kl.BatchNormalization):
            layer.momentum = 0.0
    for _ in range(3):  # each sees what the one before has settled to
        model(x, training=True)
    return model


PRUNING = {
    "weights": lambda model: kp.prune_weights(model, 0.5),
    "units": lambda model: kp.prune_units(model, 0.3),
    "what is left changed too": masked,
}
REFITTED = {
    *("Dense", "EinsumDense", "Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "SeparableConv2D")
}


@pytest.mark.parametrize("prune", PRUNING.values(), ids=PRUNING)
@pytest.mark.parametrize("make", WHOLE)
def test_zeros_are_kept_and_answers_come_nearer(make, prune):
    original = settled(make())
    pruned = prune(original)
    result, report = reconstruct(pruned, original, x_of(original), report=True)
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x_of(original, seed=5))
    refitted = report[report.done == "refitted"]
    layers = {id(x): x for x in original._flatten_layers()}.values()
    assert len(refitted) == sum(type(layer).__name__ in REFITTED for layer in layers)
    assert (refitted.error_after <= refitted.error_before + 1e-6).all()


def test_two_of_four_weights_stay_two_of_four():
    original = settled(dense_network())
    pruned = kp.prune_weights(original, pattern=(2, 4))
    result = reconstruct(pruned, original, x_of(original))
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x_of(original, seed=5))


@pytest.mark.parametrize("make", WHOLE)
def test_an_unpruned_model_comes_back_as_it_was(make):
    original = settled(make())
    copy = keras.models.clone_model(original)
    copy.set_weights(original.get_weights())
    result = reconstruct(copy, original, x_of(original))
    assert_same(weights_of(result), weights_of(original), rtol=1e-5, atol=1e-6)


def test_moving_statistics_follow_the_change_of_what_the_layer_hears():
    original = settled(
        keras.Sequential([keras.Input((6,)), kl.Dense(8), kl.BatchNormalization(name="norm")])
    )
    pruned = masked(original)
    x = x_of(original)
    result = reconstruct(pruned, original, x)
    heard = [x @ m.get_weights()[0] + m.get_weights()[1] for m in (result, original)]
    before, after = (m.get_layer("norm") for m in (original, result))
    np.testing.assert_allclose(
        array(after.moving_mean),
        array(before.moving_mean) + heard[0].mean(axis=0) - heard[1].mean(axis=0),
        rtol=1e-3,
        atol=1e-3,
    )
    np.testing.assert_allclose(
        array(after.moving_variance),
        array(before.moving_variance) * heard[0].var(axis=0) / heard[1].var(axis=0),
        rtol=1e-3,
    )


@pytest.mark.parametrize("copies", [1, 3, 999])
def test_an_example_that_is_always_the_same_leaves_moving_variances_alone(copies):
    original = settled(
        keras.Sequential([keras.Input((6,)), kl.Dense(4000), kl.BatchNormalization(name="norm")])
    )
    pruned = masked(original)
    result = reconstruct(pruned, original, np.repeat(inputs(1, 6), copies, axis=0))
    assert_zeros_kept(result, pruned)
    np.testing.assert_array_equal(
        array(result.get_layer("norm").moving_variance),
        array(pruned.get_layer("norm").moving_variance),
    )


# The inputs


def pair(shape=(6,), **options):
    """A small network and the same without half of its weights."""
    original = keras.Sequential(
        [keras.Input(shape, **options), kl.Dense(10, "relu"), kl.Dense(3, name="last")]
    )
    with_random_weights(original)
    return masked(original), original


def test_inputs_that_are_always_zero_leave_their_weights_as_they_are():
    pruned, original = pair()
    x = inputs(100, 6)
    x[:, [1, 4]] = 0
    result = reconstruct(pruned, original, x)
    ours, theirs = array(result.weights[0]), array(pruned.weights[0])
    np.testing.assert_allclose(ours[[1, 4]], theirs[[1, 4]], atol=1e-6)
    assert np.abs(ours - theirs).max() > 0.01
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x)


def test_inputs_that_are_all_zero_mend_the_biases_alone():
    pruned, original = pair()
    result = reconstruct(pruned, original, np.zeros((20, 6), "float32"))
    assert_same([result.get_weights()[0]], [pruned.get_weights()[0]])
    assert_nearer(result, pruned, original, np.zeros((20, 6), "float32"))


@pytest.mark.parametrize("damping", [1e-6, 0.01])
@pytest.mark.parametrize("examples", [1, 2, 5])
def test_few_examples_help_on_themselves_and_leave_weights_in_reason(examples, damping):
    original = with_random_weights(
        keras.Sequential([keras.Input((30,)), kl.Dense(20, "relu"), kl.Dense(3)])
    )
    pruned = masked(original)
    x = inputs(examples, 30)
    result = reconstruct(pruned, original, x, damping=damping)
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x)
    assert max(np.abs(w).max() for w in result.get_weights()) < 10


def test_inputs_in_one_row_are_taken_as_keras_takes_them():
    original = with_random_weights(keras.Sequential([keras.Input((1,)), kl.Dense(5), kl.Dense(2)]))
    pruned = masked(original)
    x = inputs(50, 1)
    assert_same(
        reconstruct(pruned, original, x[:, 0]).get_weights(),
        reconstruct(pruned, original, x).get_weights(),
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(bad):
    pruned, original = pair()
    x = inputs(10, 6)
    x[3, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite.*Leave these examples out"):
        reconstruct(pruned, original, x)


def test_inputs_of_a_wrong_shape_are_refused_and_both_models_left_as_they_were():
    pruned, original = pair()
    with pytest.raises(ValueError, match="incompatible"):
        reconstruct(pruned, original, inputs(10, 5))
    assert not any("call" in vars(x) for m in (pruned, original) for x in m._flatten_layers())


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.zeros((0, 6), "float32"), ValueError, "at least one"),
        ([[1.0] * 6], TypeError, "takes arrays"),
        (None, TypeError, "takes arrays"),
    ],
)
def test_no_inputs_are_refused(x, error, match):
    with pytest.raises(error, match=match):
        reconstruct(*pair(), x)


def test_whole_numbers_are_inputs_too():
    start = keras.Input((6, 6, 1), dtype="uint8")
    x = kl.Conv2D(5, 3, activation="relu")(kl.Rescaling(1 / 255)(start))
    original = with_random_weights(keras.Model(start, kl.Dense(3)(kl.Flatten()(x))))
    pruned = masked(original)
    x = np.random.default_rng(0).integers(0, 256, (200, 6, 6, 1)).astype("uint8")
    result = reconstruct(pruned, original, x)
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x)


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, number):
        return self.x[number * 20 : number * 20 + 20], np.zeros(20)


def test_a_data_set_gives_what_its_arrays_give():
    pruned, original = pair()
    x = inputs(60, 6)
    expected = reconstruct(pruned, original, x).get_weights()
    assert_same(reconstruct(pruned, original, Batches(x)).get_weights(), expected)
    tensor = keras.ops.convert_to_tensor(x)
    assert_same(reconstruct(pruned, original, tensor).get_weights(), expected)
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        batches = tensorflow.data.Dataset.from_tensor_slices(x).batch(16)
        assert_same(reconstruct(pruned, original, batches).get_weights(), expected)


@pytest.mark.parametrize("batch_size", [1, 7, 59, 1000])
def test_the_batch_size_changes_the_numbers_by_rounding_alone(batch_size):
    pruned, original = pair()
    x = inputs(60, 6)
    assert_same(
        reconstruct(pruned, original, x, batch_size=batch_size).get_weights(),
        reconstruct(pruned, original, x).get_weights(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_same_call_gives_the_same_weights():
    original = settled(sequential_with_norm())
    pruned = kp.prune_weights(original, 0.5)
    x = x_of(original, 2000)  # more places than are looked at: some are drawn
    first = reconstruct(pruned, original, x)
    assert_same(weights_of(first), weights_of(reconstruct(pruned, original, x)))


@pytest.mark.parametrize("damping", [0, -1, np.nan, np.inf, "0.01", None, 1j])
def test_a_damping_that_is_no_positive_number_is_refused(damping):
    with pytest.raises(ValueError, match="damping must be a positive number. Received: damping="):
        reconstruct(*pair(), inputs(10, 6), damping=damping)


def test_more_damping_leaves_the_weights_nearer_to_where_they_were():
    pruned, original = pair()
    x = inputs(100, 6)

    def moved(damping):
        result = reconstruct(pruned, original, x, damping=damping)
        return np.linalg.norm(flat(result.get_weights()) - flat(pruned.get_weights()))

    assert moved(1e6) < 1e-3 < moved(10) < moved(0.1) < moved(1e-3)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_a_batch_size_that_is_no_count_is_refused(batch_size):
    with pytest.raises((ValueError, TypeError), match="batch_size"):
        reconstruct(*pair(), inputs(10, 6), batch_size=batch_size)


# The models


def test_a_model_of_another_architecture_is_refused_by_both_names():
    pruned, _ = pair()
    other = keras.Sequential([keras.Input((6,)), kl.Dense(9), kl.Dense(3)], name="other")
    with pytest.raises(ValueError, match=f"Model 'other' has other layers.*'{pruned.name}'"):
        reconstruct(pruned, other, inputs(10, 6))


def test_a_model_of_more_layers_is_refused_by_both_names():
    pruned, _ = pair()
    layers = [keras.Input((6,)), kl.Dense(10), kl.Dense(3), kl.ReLU()]
    with pytest.raises(ValueError, match=f"Model 'more' has other layers.*'{pruned.name}'"):
        reconstruct(pruned, keras.Sequential(layers, name="more"), inputs(10, 6))


def test_a_shrunk_model_is_refused():
    original = settled(dense_network())
    shrunk = kp.shrink(kp.prune_units(original, 0.5))
    with pytest.raises(ValueError, match="before shrink"):
        reconstruct(shrunk, original, x_of(original))


def test_layers_of_the_same_weights_that_step_otherwise_are_refused():
    def strided(strides):
        model = keras.Sequential([keras.Input((9, 2)), kl.Conv1D(4, 3, strides=strides)])
        return with_random_weights(model)

    with pytest.raises(ValueError, match="has other layers, or layers of other sizes"):
        reconstruct(masked(strided(1)), strided(2), inputs(10, 9, 2))


@pytest.mark.parametrize("other", ["model.keras", None, kl.Dense(3)])
def test_what_is_no_model_is_refused(other):
    pruned, original = pair()
    with pytest.raises(TypeError, match="Expected a Keras model"):
        reconstruct(pruned, other, inputs(10, 6))
    with pytest.raises(TypeError, match="Expected a Keras model"):
        reconstruct(other, original, inputs(10, 6))


def test_a_model_without_weights_yet_is_refused():
    pruned, original = pair()
    unbuilt = keras.Sequential([kl.Dense(10), kl.Dense(3)])
    with pytest.raises(ValueError, match="is not built"):
        reconstruct(pruned, unbuilt, inputs(10, 6))
    with pytest.raises(ValueError, match="is not built"):
        reconstruct(unbuilt, original, inputs(10, 6))


def test_a_model_with_nothing_to_refit_is_refused_with_the_reasons():
    recurrent = keras.Sequential([keras.Input((5, 3)), kl.LSTM(4, name="memory")])
    with pytest.raises(ValueError, match="no layer that can be refitted.*'memory': 'left"):
        reconstruct(recurrent, recurrent, inputs(10, 5, 3))
    wide = keras.Sequential([keras.Input((9000,)), kl.Dense(1, name="wide")])
    with pytest.raises(ValueError, match="'wide': 'left: more than 8,192 inputs"):
        reconstruct(wide, wide, inputs(2, 9000))
    with pytest.raises(ValueError, match="no layer"):
        empty = keras.Sequential([keras.Input((4,)), kl.ReLU()])
        reconstruct(empty, empty, inputs(2, 4))


def test_layers_that_are_not_known_are_left_and_named():
    start = keras.Input((5,), dtype="int32")
    x = kl.LSTM(6, name="memory")(kl.Embedding(9, 4, mask_zero=True, name="words")(start))
    original = with_random_weights(keras.Model(start, kl.Dense(3, name="last")(x)))
    pruned = masked(original)
    x = np.random.default_rng(0).integers(0, 9, (100, 5))
    result, report = reconstruct(pruned, original, x, report=True)
    assert list(report.columns) == ["layer", "done", "error_before", "error_after"]
    done = report.set_index("layer").done
    assert done["last"] == "refitted"
    assert done["words"].startswith("left") and done["memory"].startswith("left")
    assert report.set_index("layer").loc[["words", "memory"]].error_after.isna().all()
    for name in ("words", "memory"):
        assert_same(result.get_layer(name).get_weights(), pruned.get_layer(name).get_weights())
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x)


def test_the_report_tells_the_error_of_each_layers_sums():
    pruned, original = pair()
    x = inputs(100, 6)
    result, report = reconstruct(pruned, original, x, report=True)

    def heard_by_last(model):
        kernel, bias = model.get_weights()[:2]
        return np.maximum(x @ kernel + bias, 0)

    def sums(heard, model):
        return heard @ model.get_weights()[2] + model.get_weights()[3]

    goal = sums(heard_by_last(original), original)
    heard = heard_by_last(result)
    row = report.set_index("layer").loc["last"]
    for error, model in ((row.error_before, pruned), (row.error_after, result)):
        expected = np.linalg.norm(sums(heard, model) - goal) / np.linalg.norm(goal)
        np.testing.assert_allclose(error, expected, rtol=1e-3)


class Doubled(kl.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


class Loop(keras.layers.Layer):
    """Calls a layer inside a loop that JAX compiles."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = kl.Dense(6)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return keras.ops.fori_loop(0, 2, lambda _, y: self.inner(y), x)


class Cell(keras.layers.Layer):
    state_size = output_size = 6

    def __init__(self, **options):
        super().__init__(**options)
        self.of_input, self.of_state = kl.Dense(6), kl.Dense(6)

    def build(self, shape):
        self.of_input.build(shape)
        self.of_state.build((None, 6))

    def call(self, x, states):
        y = keras.ops.tanh(self.of_input(x) + self.of_state(states[0]))
        return y, [y]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: Doubled(6), (6,)),
        (Loop, (6,)),
        (lambda: kl.RNN(Cell()), (4, 6)),
        (lambda: kl.TimeDistributed(kl.Dense(5, "relu")), (4, 6)),
        (lambda: kl.Bidirectional(kl.GRU(4)), (4, 6)),
        (lambda: kl.Dense(6, activation=kl.PReLU()), (4, 6)),
        (lambda: kl.Dense(6, activation=kl.LeakyReLU()), (4, 6)),
        (lambda: kl.Conv1D(6, 3, activation=kl.PReLU()), (4, 6)),
        (lambda: kl.Conv1D(6, 3, activation=lambda x: keras.ops.softmax(x, axis=1)), (4, 6)),
        (lambda: kl.Conv1D(6, 2, activity_regularizer="l2", kernel_constraint="max_norm"), (4, 6)),
        (lambda: kl.SpectralNormalization(kl.Dense(6)), (4, 6)),
    ],
    ids=range(11),
)
def test_uncommon_layers_are_refitted_or_left_and_the_rest_of_the_model_mended(layer, shape):
    def make():
        return keras.Sequential(
            [keras.Input(shape), layer(), kl.Flatten(), kl.Dense(8, "relu"), kl.Dense(2)]
        )

    original, pruned = make(), make()
    x = inputs(100, *shape)
    for model in (original, pruned):
        model(x)  # an activation that is a layer has its weights from now on
    with_random_weights(original)
    pruned.set_weights(original.get_weights())
    for kernel in [w for w in pruned.weights if w.name.endswith("kernel")]:
        values = array(kernel)
        kernel.assign(values * (np.random.default_rng(0).random(values.shape) > 0.4))
    try:
        result = reconstruct(pruned, original, x)
    except TypeError as error:  # what Keras cannot copy, no function here takes
        pytest.skip(str(error))
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x)


def test_a_quantized_layer_is_left():
    original = with_random_weights(
        keras.Sequential([keras.Input((6,)), kl.Dense(10, name="whole numbers"), kl.Dense(3)])
    )
    original.layers[0].quantize("int8")
    pruned = kp.prune_weights(original, 0.5, layers=[original.layers[1].name])
    result, report = reconstruct(pruned, original, inputs(100, 6), report=True)
    assert_same(result.layers[0].get_weights(), pruned.layers[0].get_weights())
    assert report.set_index("layer").done["whole numbers"].startswith("left")
    assert_zeros_kept(result, pruned)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_models_of_half_precision_keep_their_zeros_and_types(policy):
    original = with_random_weights(
        keras.Sequential(
            [
                keras.Input((6,)),
                kl.Dense(16, "relu", dtype=policy),
                kl.BatchNormalization(dtype=policy),
                kl.Dense(3, dtype=policy),
            ]
        )
    )
    pruned = kp.prune_weights(original, 0.4, layers=[x.name for x in original.layers[::2]])
    x = inputs(200, 6)
    result = reconstruct(pruned, original, x)
    assert [w.dtype for w in result.weights] == [w.dtype for w in pruned.weights]
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x)


def test_a_weight_that_float16_would_make_zero_or_infinite_stays_as_it_was():
    # The input is 1: the sums ask for a weight of 1e-9 and one of 1e5, after a small and a large.
    pruned = keras.Sequential([keras.Input((1,)), kl.Dense(2, use_bias=False, dtype="float16")])
    original = keras.Sequential([keras.Input((1,)), kl.Dense(2, use_bias=False)])
    pruned.set_weights([np.array([[1e-4, 6e4]])])
    original.set_weights([np.array([[1e-9, 1e5]])])
    result = reconstruct(pruned, original, np.ones((9, 1), "float32"), damping=1e-9)
    assert_same(result.get_weights(), pruned.get_weights())


def test_numbers_beyond_float16_leave_the_layer_and_say_so():
    original = with_random_weights(
        keras.Sequential(
            [keras.Input((6,)), kl.Dense(9), kl.Dense(9, dtype="mixed_float16", name="half")]
            + [kl.BatchNormalization(name="norm")]
        )
    )
    pruned = masked(original)
    result, report = reconstruct(pruned, original, 1e5 * inputs(50, 6), report=True)
    for name in ("half", "norm"):
        assert "not finite" in report.set_index("layer").done[name]
    assert all(np.isfinite(w).all() for w in result.get_weights())


def test_units_that_are_all_pruned_leave_the_bias_to_give_the_mean():
    original = with_random_weights(keras.Sequential([keras.Input((6,)), kl.Dense(4)]))
    pruned = keras.models.clone_model(original)
    kernel, bias = original.get_weights()
    pruned.set_weights([np.zeros_like(kernel), bias])
    x = inputs(100, 6)
    result = reconstruct(pruned, original, x, damping=1e-6)
    ours, our_bias = result.get_weights()
    assert not ours.any()
    np.testing.assert_allclose(our_bias, (x @ kernel + bias).mean(axis=0), rtol=1e-3, atol=1e-3)


def test_a_bias_that_is_zero_stays_zero():
    original = with_random_weights(keras.Sequential([keras.Input((6,)), kl.Dense(4)]))
    pruned = masked(original)
    pruned.layers[0].bias.assign([0, 1, 0, 2])
    result = reconstruct(pruned, original, inputs(100, 6))
    assert list(array(result.layers[0].bias) == 0) == [True, False, True, False]


def test_a_model_that_is_pruned_away_whole_stays_so():
    original = with_random_weights(keras.Sequential([keras.Input((6,)), kl.Dense(4)]))
    pruned = keras.models.clone_model(original)
    pruned.set_weights([0 * w for w in original.get_weights()])
    result, report = reconstruct(pruned, original, inputs(100, 6), report=True)
    assert not any(w.any() for w in result.get_weights())
    assert np.isfinite(report.error_after).all()


def test_a_model_with_lora_is_taken_with_its_weights_merged():
    original = with_random_weights(keras.Sequential([keras.Input((6,)), kl.Dense(4)]))
    original.layers[0].enable_lora(2)
    with_random_weights(original)
    pruned = kp.prune_weights(original, 0.5, layers=[original.layers[0].name])
    x = inputs(100, 6)
    result = reconstruct(pruned, original, x)
    assert_zeros_kept(result, pruned)
    assert_nearer(result, pruned, original, x)
    assert original.layers[0].lora_enabled


# What is handed back, and what was handed in


def compiled_pair():
    original = settled(sequential_with_norm())
    original.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
    x, y = x_of(original, 64), np.random.default_rng(0).random((64, 5))
    pruned = kp.prune_weights(original, 0.5)
    pruned.fit(x, y, epochs=1, verbose=0, callbacks=[kp.KeepZeros()])
    return pruned, original, x, y


def state(model):
    variables = [*model.variables, *(model.optimizer.variables if model.optimizer else [])]
    return [array(v).copy() for v in variables if "seed" not in v.path]


def test_the_models_that_are_given_are_not_changed():
    pruned, original, x, _ = compiled_pair()
    before = [state(m) for m in (pruned, original)]
    attributes = [set(vars(layer)) for m in (pruned, original) for layer in m._flatten_layers()]
    result = reconstruct(pruned, original, x)
    for model, was in zip((pruned, original), before, strict=True):
        assert_same(state(model), was)
        assert model.compiled
    now = [set(vars(layer)) for m in (pruned, original) for layer in m._flatten_layers()]
    assert now == attributes
    assert not any("call" in vars(layer) for layer in result._flatten_layers())


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5])
def test_an_error_in_the_middle_leaves_the_models_as_they_were(after, monkeypatch):
    pruned, original, x, _ = compiled_pair()
    before = [state(m) for m in (pruned, original)]
    calls, plain = [], kl.Conv2D.call

    def failing(self, inputs):
        calls.append(self)
        if len(calls) > after:
            raise KeyboardInterrupt
        return plain(self, inputs)

    monkeypatch.setattr(kl.Conv2D, "call", failing)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(pruned, original, x)
    monkeypatch.undo()
    for model, was in zip((pruned, original), before, strict=True):
        assert_same(state(model), was)
        assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_a_call_of_the_users_own_on_a_layer_stays_and_the_layer_is_left():
    pruned, original = pair()
    layer = original.layers[0]

    def own(x, training=None):
        return 2 * type(layer).call(layer, x)

    layer.call = own
    result, report = reconstruct(pruned, original, inputs(20, 6), report=True)
    assert vars(layer)["call"] is own
    assert report.set_index("layer").done[layer.name].startswith("left: it computes more")
    assert_same(result.layers[0].get_weights(), pruned.layers[0].get_weights())


def test_the_result_is_compiled_and_goes_on_training_as_the_pruned_model():
    pruned, original, x, y = compiled_pair()
    result = reconstruct(pruned, original, x)
    assert result.name == pruned.name
    assert [layer.name for layer in result.layers] == [layer.name for layer in pruned.layers]
    assert result.loss == "mse"
    assert int(array(result.optimizer.iterations)) == int(array(pruned.optimizer.iterations)) > 0
    np.testing.assert_allclose(float(array(result.optimizer.learning_rate)), 0.02, rtol=1e-6)
    assert set(result.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "mae"}
    result.fit(x, y, verbose=0, callbacks=[kp.KeepZeros()])


def test_a_model_that_is_not_compiled_stays_so():
    pruned, original = pair()
    assert not reconstruct(pruned, original, inputs(20, 6)).compiled


def test_the_result_can_be_saved(tmp_path):
    original = settled(custom_layer())
    pruned = kp.prune_weights(original, 0.5)
    x = x_of(original)
    result = reconstruct(pruned, original, x)
    result.save(tmp_path / "mended.keras")
    loaded = keras.saving.load_model(tmp_path / "mended.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), result.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_nothing_is_printed_without_progress_and_a_bar_with_it(capsys):
    pruned, original = pair()
    reconstruct(pruned, original, inputs(20, 6))
    assert capsys.readouterr().out == ""
    kp.reconstruct(pruned, original, inputs(20, 6))
    assert "Reconstruct" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:What model .* answers is further")  # nothing makes up for it
def test_statistics_along_another_axis_follow_too():
    model = keras.Sequential([keras.Input((4, 6)), kl.Dense(5), kl.BatchNormalization(axis=1)])
    original = settled(model)
    pruned, x = masked(original), x_of(original)
    result = reconstruct(pruned, original, x)
    heard = [x @ m.get_weights()[0] + m.get_weights()[1] for m in (result, original)]
    moved = heard[0].mean(axis=(0, 2)) - heard[1].mean(axis=(0, 2))
    before, after = (array(m.layers[1].moving_mean) for m in (original, result))
    np.testing.assert_allclose(after, before + moved, rtol=1e-3, atol=1e-3)


def test_a_layer_that_is_called_twice_is_fitted_to_both_calls():
    a, b = keras.Input((6,)), keras.Input((6,))
    twice = kl.Dense(5)
    original = with_random_weights(keras.Model([a, b], [twice(a), twice(b)]))
    pruned = masked(original)
    x, y = inputs(40, 6), inputs(40, 6, seed=8) - 2
    once = with_random_weights(keras.Sequential([keras.Input((6,)), kl.Dense(5)]))
    once.set_weights(original.get_weights())
    half = keras.models.clone_model(once)
    half.set_weights(pruned.get_weights())
    assert_same(
        reconstruct(pruned, original, [x, y]).get_weights(),
        reconstruct(half, once, np.concatenate([x, y])).get_weights(),
        rtol=1e-4,
        atol=1e-5,
    )


def sums_of_repeated_calls(model, x, count):
    kernel, bias = model.layers[1].get_weights()
    found = []
    for _ in range(count):
        x = x @ kernel + bias
        found.append(x)
    return np.stack(found)


@pytest.mark.filterwarnings("ignore:What model .* answers is further")  # the sums are nearer
@pytest.mark.parametrize("calls, done", [(2, "refitted"), (8, "left: called again")])
def test_the_error_of_a_layer_that_hears_itself_is_measured_anew(calls, done):
    x = inputs(300, 6)
    outputs = inner = keras.Input((6,))
    layer = kl.Dense(6)
    for _ in range(calls):
        outputs = layer(outputs)
    original = with_random_weights(keras.Model(inner, outputs))
    if done == "refitted":
        layer.kernel.assign(0.2 * array(layer.kernel))
    pruned = masked(original)
    if done != "refitted":  # there is no other layer
        with pytest.raises(ValueError, match=done):
            reconstruct(pruned, original, x)
        return
    result, report = reconstruct(pruned, original, x, report=True)
    goal = sums_of_repeated_calls(original, x, calls)
    for model, column in ((pruned, "error_before"), (result, "error_after")):
        error = np.linalg.norm(sums_of_repeated_calls(model, x, calls) - goal)
        assert report[column][0] == pytest.approx(error / np.linalg.norm(goal), rel=1e-3)


def test_two_threads_may_refit_to_one_original():
    x = inputs(100, 6)
    original = with_random_weights(
        keras.Sequential([keras.Input((6,)), kl.Dense(8, "relu"), kl.Dense(8, "relu"), kl.Dense(3)])
    )
    pruned = masked(original)
    alone = weights_of(reconstruct(pruned, original, x))
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(reconstruct, pruned, original, x) for _ in range(6)]
        answers = [pool.submit(original, x[:2]) for _ in range(20)]
    for result in results:
        assert_same(weights_of(result.result()), alone, rtol=1e-4, atol=1e-5)
    for answer in answers:
        np.testing.assert_allclose(array(answer.result()), array(original(x[:2])), rtol=1e-5)
    assert not any("call" in vars(layer) for layer in original.layers)


def test_states_are_as_before_and_a_fixed_batch_size_is_kept():
    x = inputs(40, 5, 4)
    outputs = keras.Input(batch_shape=(10, 5, 4))
    layers = [kl.LSTM(6, stateful=True), kl.Dense(8, "relu"), kl.Dense(3)]
    inner = outputs
    for layer in layers:
        outputs = layer(outputs)
    original = with_random_weights(keras.Model(inner, outputs))
    pruned = masked(original)
    for model in (original, pruned):
        model(x[:10])  # states are not zero after that
    before = [[array(state) for state in m.layers[1].states] for m in (original, pruned)]
    result = reconstruct(pruned, original, x, batch_size=10)
    kp.activation_scores(original, x, batch_size=10)
    for model, states in zip((original, pruned), before, strict=True):
        assert_same([array(state) for state in model.layers[1].states], states)
    assert_zeros_kept(result, pruned)


def test_weights_with_a_constraint_are_left():
    x = inputs(100, 6)
    layers = [kl.Dense(8, kernel_constraint="non_neg"), kl.Dense(3)]
    original = with_random_weights(keras.Sequential([keras.Input((6,)), *layers]))
    pruned = masked(original)
    result, report = reconstruct(pruned, original, x, report=True)
    assert report["done"].tolist() == ["left: its weights have a constraint", "refitted"]
    assert_same(result.layers[0].get_weights(), pruned.layers[0].get_weights())


@keras.saving.register_keras_serializable("tests")
class Tied(kl.Layer):
    """Sends what a Dense layer sends, taken back by the same kernel."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = kl.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        y = keras.ops.matmul(self.dense(x), keras.ops.transpose(self.dense.kernel))
        return 3 * keras.ops.square(y)


def test_a_model_that_is_further_off_afterwards_is_told():
    warned = 0
    for seed in range(6):
        x = inputs(100, 8, seed=seed)
        original = with_random_weights(keras.Sequential([keras.Input((8,)), Tied()]), seed)
        pruned = masked(original, 0.6, seed=seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            result = reconstruct(pruned, original, x)
        goal = array(original(x))
        before, after = (np.linalg.norm(array(m(x)) - goal) for m in (pruned, result))
        messages = [str(w.message) for w in told if "further from the original" in str(w.message)]
        assert bool(messages) == (after > 1.01 * before)
        warned += len(messages)
    assert warned


@pytest.mark.filterwarnings("ignore:What model .* answers is further")  # nothing makes up for it
def test_an_activation_that_changes_the_size_leaves_its_layer():
    x = inputs(60, 6)
    layers = [kl.Dense(3), kl.Dense(8, keras.activations.glu)]
    original = with_random_weights(keras.Sequential([keras.Input((6,)), *layers]))
    _, report = reconstruct(masked(original), original, x, report=True)
    assert report["done"].tolist() == ["refitted", "left: it computes more than its kernel says"]


def test_what_rounding_to_half_precision_costs_stands_in_the_report():
    x = inputs(200, 6)
    original = one_layer(kl.Dense(5, dtype="bfloat16"), (6,))
    pruned = masked(original, 0.3)
    result, report = reconstruct(pruned, original, x, report=True)
    heard = array(keras.ops.cast(x, "bfloat16")).astype("float32")

    def sums(model):
        kernel, bias = (array(w).astype("float32") for w in model.layers[0].weights)
        return heard @ kernel + bias

    error = np.linalg.norm(sums(result) - sums(original)) / np.linalg.norm(sums(original))
    assert report["error_after"][0] == pytest.approx(error, rel=0.05)
