"""Shrunken models: the same outputs, fewer units, and a reason for every unit that stays."""

import os
import random

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.channels.shrinking import shrink
from keras_pruning.models.kernels import kernel_layers
from keras_pruning.pruning.prune import apply_unit_masks, unit_masks

BACKEND = keras.backend.backend()
# TensorFlow has no convolution with the channels first on a CPU.
DATA_FORMATS = ["channels_last"] if BACKEND == "tensorflow" else ["channels_last", "channels_first"]
# JAX compiles each operation of each model anew, seconds a model.
RANDOM_MODELS = int(
    os.environ.get("RANDOM_MODELS", {"tensorflow": 60, "torch": 40}.get(BACKEND, 6))
)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def batch(model, seed=0):
    """A batch of 4, for each input if there are several; sizes that are open become 6."""
    rng = np.random.default_rng(seed)
    shapes = [(4, *(size or 6 for size in tensor.shape[1:])) for tensor in model.inputs]
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    return arrays if len(arrays) > 1 else arrays[0]


def outputs(model, inputs):
    return [numpy(t) for t in keras.tree.flatten(model(inputs))]


def largest_difference(model, other, seed=0):
    """The largest difference of any output, relative to the largest output of that tensor."""
    inputs = batch(model, seed)
    pairs = zip(outputs(model, inputs), outputs(other, inputs), strict=True)
    return max(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30) for a, b in pairs)


def randomize(model, rng):
    """Fills all weights, biases and statistics, so that every one of them matters."""
    for variable in model.weights:
        shape, name = variable.shape, variable.name
        if "kernel" in name:
            values = rng.normal(size=shape) * 1.5 / np.sqrt(np.prod(shape[:-1]))
        elif name in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.uniform(-0.5, 0.5, shape)
        variable.assign(values)
    return model


def units(model):
    """Layer name to units, of all layers with units."""
    return kp.summary(model).set_index("layer")["units"].dropna().astype(int).to_dict()


def shrink_and_compare(model):
    """Shrinks a model, compares the outputs, returns its units and the report's reasons."""
    before = [w.copy() for w in model.get_weights()]
    shrunken, table = shrink(model, report=True)
    assert type(shrunken) is type(model)
    assert largest_difference(model, shrunken) < 1e-5
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert table.set_index("layer")["after"].to_dict() == units(shrunken)
    assert table.set_index("layer")["before"].to_dict() == units(model)
    return shrunken, units(shrunken), table.set_index("layer")["reason"].to_dict()


# Random models


def zero_units(model, masks):
    """Zeroes units of the layers of these names, as prune_units would."""
    places = {entry.name: place for place, entry in enumerate(kernel_layers(model))}
    apply_unit_masks(model, {places[name]: mask for name, mask in masks.items()})


class RandomModel:
    """A functional model of random layers behind each other and beside each other."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        keras.utils.set_random_seed(seed)
        self.dims = int(self.rng.choice([0, 0, 1, 2, 2, 2, 3]))  # of space
        self.data_format = self.pick(DATA_FORMATS)
        size = {0: (), 1: (12,), 2: (9, 9), 3: (7, 7, 7)}[self.dims]
        channels = int(self.rng.integers(2, 5))
        first = self.data_format == "channels_first"
        self.axis = 1 if first or not self.dims else self.dims + 1
        self.inputs = [keras.Input((channels, *size) if first else (*size, channels))]
        self.seen = [self.unit_layer(self.inputs[0])]

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def coin(self, probability=0.5):
        return self.rng.random() < probability

    def of_dims(self, name, *args, **options):
        return getattr(kl, name.replace("#", f"{self.dims}D"))(
            *args, data_format=self.data_format, **options
        )

    def options(self):
        names = [None, None, "relu", "relu", "sigmoid", "softplus", "tanh", "elu", None]
        if self.coin(0.03):
            names = ["softmax"]
        return {"activation": self.pick(names), "use_bias": self.coin(0.8)}

    def unit_layer(self, x, count=None):
        count = count or int(self.rng.integers(2, 9))
        if not self.dims or self.coin(0.1) and self.data_format == "channels_last":
            return kl.Dense(count, **self.options())(x)
        kind = self.pick(["Conv#"] * 4 + ["SeparableConv#", "Conv#Transpose"])
        if self.dims == 3 and kind == "SeparableConv#":
            kind = "Conv#"
        padding = self.pick(["same", "same", "valid"])
        window = self.pick([1, 2, 3]) if min(self.space(x)) > 4 or padding == "same" else 1
        extra = {"depth_multiplier": self.pick([1, 2])} if kind == "SeparableConv#" else {}
        return self.of_dims(kind, count, window, padding=padding, **self.options(), **extra)(x)

    def space(self, x):
        return [size for i, size in enumerate(x.shape) if i not in (0, self.axis)]

    def grow(self, depth):
        for _ in range(depth):
            step = self.pick([self.unit_step] * 4 + [self.plain_step] * 3 + [self.join_step] * 4)
            self.seen.append(step(self.seen[-1]))

    def unit_step(self, x):
        x = self.unit_layer(x)
        if self.coin(0.4):
            x = kl.BatchNormalization(axis=self.axis, scale=self.coin(0.8), center=self.coin(0.8))(
                x
            )
        return self.pick([kl.ReLU(), kl.LeakyReLU(), kl.Identity(), kl.Activation("sigmoid")])(x)

    def plain_step(self, x):
        shared = list(range(1, self.dims + 1)) if self.coin() and self.axis != 1 else None
        layers = [
            kl.BatchNormalization(axis=self.axis),
            kl.PReLU(shared_axes=shared),
            kl.Dropout(0.3),
            kl.Rescaling(2.0, self.pick([0.0, 0.5])),
        ]
        if self.data_format == "channels_last":  # PyTorch takes no other axis
            layers.append(kl.LayerNormalization())
        if self.dims:
            layers += [
                self.of_dims("MaxPooling#", 2, strides=1, padding=self.pick(["same", "valid"])),
                self.of_dims("AveragePooling#", 2, strides=1, padding="same"),
                self.of_dims("UpSampling#", 1) if self.dims > 1 else kl.UpSampling1D(1),
                self.of_dims("ZeroPadding#", 1) if self.dims > 1 else kl.ZeroPadding1D(1),
                kl.Permute(self.rotated()),
            ]
        if self.dims in (1, 2):
            window = self.pick([1, 3])
            layers += [
                self.of_dims("DepthwiseConv#", window, padding="same", depth_multiplier=m)
                for m in (1, 2)
            ]
        layer = self.pick(layers)
        x = layer(x)
        return kl.Permute(self.rotated(back=True))(x) if isinstance(layer, kl.Permute) else x

    def rotated(self, back=False):
        forth = [*range(2, self.dims + 2), 1]
        return [forth.index(i) + 1 for i in range(1, self.dims + 2)] if back else forth

    def join_step(self, x):
        if self.coin(0.15):
            return x * self.pick([2.0, 0.5]) + self.pick([0, 1])
        if self.coin(0.2):
            return self.grouped(x)
        if self.coin(0.2):
            return self.nested(x)
        partners = [t for t in self.seen[:-1] if self.space(t) == self.space(x)]
        if not partners:
            return self.unit_layer(x)
        y = self.pick(partners)
        if self.coin(0.3):
            return kl.Concatenate(axis=self.axis)([x, y])
        if y.shape != x.shape:
            count = x.shape[self.axis]
            y = self.of_dims("Conv#", count, 1)(y) if self.dims else kl.Dense(count)(y)
        merge = [kl.Add(), kl.Add(), kl.Multiply(), kl.Average(), kl.Maximum(), kl.Subtract()]
        merge += [lambda pair: pair[0] + pair[1], lambda pair: pair[0] * pair[1]]
        return self.pick(merge)([x, y])

    def grouped(self, x):
        if not self.dims or self.dims == 3:
            return kl.ReLU()(x)
        channels = x.shape[self.axis]
        return self.of_dims("Conv#", 2 * channels, 3, padding="same", groups=channels)(x)

    def nested(self, x):
        inner = keras.Input(x.shape[1:])
        y = self.unit_layer(inner)
        model = keras.Model(inner, self.pick([kl.ReLU(), kl.Identity()])(y))
        y = model(x)
        return kl.Add()([y, model(kl.Rescaling(0.5)(x))]) if self.coin() else y

    def build(self, depth):
        self.grow(depth)
        ends = [self.end(self.seen[-1])]
        if self.coin(0.2):
            ends.append(self.end(self.pick(self.seen)))
        return randomize(keras.Model(self.inputs[0], ends), self.rng)

    def end(self, x):
        if self.dims and self.coin():
            x = self.of_dims("GlobalAveragePooling#")(x)
        elif self.dims and self.coin(0.5):
            size = int(np.prod(x.shape[1:]))
            x = kl.Reshape(self.pick([(size,), (-1, x.shape[-1])]))(x)
            x = kl.Flatten()(x)
        else:
            x = kl.Flatten(data_format=self.data_format)(x)
        return kl.Dense(3, use_bias=self.coin())(x)

    def prune(self, model):
        """Zeroes random units, at times without their bias and BatchNormalization."""
        if self.coin(0.3):
            chosen = kp.prunable_layers(model, "units")
            share = float(self.rng.uniform(0, 0.99))
            if chosen:
                apply_unit_masks(model, unit_masks(model, share, layers=chosen))
            return
        for entry in kernel_layers(model):
            if not entry.has_units or entry.is_output:
                continue
            count = entry.alive_units().size
            gone = self.rng.permutation(count)[: int(self.rng.uniform(0, 0.99) * count)]
            keep = ~np.isin(np.arange(count), gone)
            if self.coin(0.6):
                zero_units(model, {entry.name: keep})
            else:
                kernel = np.moveaxis(numpy(entry.unit_kernel).copy(), entry.unit_axis, -1)
                kernel *= keep
                entry.unit_kernel.assign(np.moveaxis(kernel, -1, entry.unit_axis))


def test_pythons_random_numbers_are_not_used_up():
    dense = kl.Dense(8, "relu", name="hidden")
    model = keras.Sequential([keras.Input((5,)), dense, kl.Dropout(0.5), kl.Dense(3)])
    pruned = kp.prune_units(model, 0.5)
    before = random.getstate()
    shrink(pruned)
    assert random.getstate() == before


@pytest.mark.parametrize("seed", range(RANDOM_MODELS))
def test_a_random_model_gives_the_same_outputs_with_fewer_parameters(seed):
    recipe = RandomModel(seed)
    model = recipe.build(depth=int(recipe.rng.integers(1, 8)))
    recipe.prune(model)
    shrunken, after, _ = shrink_and_compare(model)
    fewer = sum(after.values()) < sum(units(model).values())
    assert fewer == (shrunken.count_params() < model.count_params())


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "softplus"])
def test_a_plain_chain_loses_every_pruned_unit(activation):
    rng = np.random.default_rng(0)
    for sparsity in (0.25, 0.8):
        layers = [kl.Dense(8, activation) for _ in range(3)]
        model = randomize(keras.Sequential([keras.Input((5,)), *layers, kl.Dense(2)]), rng)
        _, after, reasons = shrink_and_compare(kp.prune_units(model, sparsity))
        assert list(after.values()) == [8 - round(8 * sparsity)] * 3 + [2]
        assert not any(reasons.values())


# Small models with kernels to check by hand


def two_dense(middle=(), **options):
    """Dense 2 -> 3 whose second unit is zero, and Dense 3 -> 2."""
    hidden, last = kl.Dense(3, name="hidden", **options), kl.Dense(2, name="last")
    model = keras.Sequential([keras.Input((2,)), hidden, *middle, last])
    hidden.kernel.assign([[1, 0, 2], [3, 0, 4]])
    if hidden.use_bias:
        hidden.bias.assign([5, 0, 6])
    last.kernel.assign([[1, 2], [3, 4], [5, 6]])
    last.bias.assign([7, 8])
    return model


def weights(model, name):
    return [w.tolist() for w in model.get_layer(name).get_weights()]


def test_the_column_the_bias_and_the_row_behind_it_are_cut_out():
    shrunken, _, _ = shrink_and_compare(two_dense())
    assert weights(shrunken, "hidden") == [[[1, 2], [3, 4]], [5, 6]]
    assert weights(shrunken, "last") == [[[1, 2], [5, 6]], [7, 8]]


def test_what_a_dead_unit_sends_goes_into_the_next_bias():
    shrunken, _, _ = shrink_and_compare(two_dense(activation="sigmoid"))  # sigmoid(0) = 0.5
    assert weights(shrunken, "last") == [[[1, 2], [5, 6]], [7 + 0.5 * 3, 8 + 0.5 * 4]]


def test_a_layer_without_a_bias_gets_one_if_it_needs_it_and_only_then():
    for activation, has_bias in (("sigmoid", True), ("relu", False)):
        first, last = kl.Dense(3, activation), kl.Dense(1, use_bias=False)
        model = keras.Sequential([keras.Input((2,)), first, last])
        first.kernel.assign([[1, 0, 2], [3, 0, 4]])
        last.kernel.assign([[1], [2], [3]])
        shrunken, _, _ = shrink_and_compare(model)
        assert shrunken.layers[-1].use_bias == has_bias
    assert numpy(shrink(model).layers[-1].kernel).tolist() == [[1], [3]]


def test_a_unit_that_nobody_reads_is_cut_out():
    model = two_dense()
    model.get_layer("last").kernel.assign([[0, 0], [3, 4], [5, 6]])
    shrunken, after, _ = shrink_and_compare(model)
    assert after == {"hidden": 1, "last": 2}
    assert weights(shrunken, "hidden") == [[[2], [4]], [6]]


def test_batch_normalization_turns_a_dead_unit_into_a_constant():
    norm = kl.BatchNormalization(name="norm", epsilon=0.0)
    model = two_dense([norm])
    norm.set_weights([np.full(3, v) for v in (4.0, 1.0, 2.0, 4.0)])  # 4 (x - 2) / 2 + 1
    shrunken, _, _ = shrink_and_compare(model)
    assert numpy(shrunken.get_layer("norm").gamma).shape == (2,)
    assert weights(shrunken, "last")[1] == [7 - 3 * 3, 8 - 3 * 4]


def test_a_scale_of_zero_silences_a_unit_that_is_not_zero():
    norm = kl.BatchNormalization(name="norm")
    model = two_dense([norm])
    norm.gamma.assign([1, 1, 0])
    _, after, _ = shrink_and_compare(model)
    assert after == {"hidden": 1, "last": 2}


def conv_then(*layers, channels=4, dead=(1, 2), shape=(6, 6, 2), bias=0.0, **options):
    """A convolution of which some filters are zero, with this bias, and what comes behind it."""
    rng = np.random.default_rng(0)
    conv = kl.Conv2D(channels, 3, name="conv", **options)
    model = randomize(keras.Sequential([keras.Input(shape), conv, *layers]), rng)
    kernel, biases = (w.copy() for w in conv.get_weights())
    kernel[..., list(dead)], biases[list(dead)] = 0, bias
    conv.set_weights([kernel, biases])
    return model


@pytest.mark.parametrize(
    "layers",
    [
        [kl.Flatten(), kl.Dense(2)],
        [kl.Reshape((16, 4)), kl.Conv1D(2, 3)],
        [kl.Reshape((-1, 4)), kl.Reshape((4, 4, 4, 1)), kl.Flatten(), kl.Dense(2)],
        [kl.Permute((3, 1, 2)), kl.Flatten(), kl.Dense(2)],
        [kl.Permute((1, 3, 2)), kl.Reshape((16, 4)), kl.Permute((2, 1)), kl.Flatten(), kl.Dense(2)],
        [kl.GlobalMaxPooling2D(), kl.RepeatVector(3), kl.Conv1D(2, 2)],
        [kl.GlobalAveragePooling2D(keepdims=True), kl.Conv2DTranspose(2, 1)],
        [kl.Cropping2D(1), kl.UpSampling2D(2), kl.SeparableConv2D(2, 2)],
        [kl.DepthwiseConv2D(2, depth_multiplier=2), kl.Conv2D(2, 1, padding="same")],
        [kl.Conv2D(8, 3, groups=4), kl.Conv2D(2, 1)],
        [kl.AveragePooling2D(2), kl.SpatialDropout2D(0.5), kl.PReLU(), kl.Conv2D(2, 2)],
        [kl.PReLU(shared_axes=[1, 2]), kl.ELU(), kl.Conv2D(2, 2)],
    ],
    ids=lambda layers: "-".join(type(layer).__name__ for layer in layers),
)
def test_a_dead_filter_goes_through(layers):
    layers = [type(layer).from_config(layer.get_config()) for layer in layers]
    for bias in (0.0, 0.7):
        shrunken, after, _ = shrink_and_compare(conv_then(*layers, bias=bias))
        assert after["conv"] == 2
        layers = [type(layer).from_config(layer.get_config()) for layer in layers]


def test_flattened_rows_are_those_of_the_kept_filters():
    model = conv_then(kl.Flatten(), kl.Dense(2, name="last"), dead=(1,))
    kernel = numpy(model.get_layer("last").kernel).reshape(4, 4, 4, 2)  # height, width, filters
    expected = np.delete(kernel, 1, axis=2).reshape(48, 2)
    np.testing.assert_array_equal(numpy(shrink(model).get_layer("last").kernel), expected)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_channels_before_positions_are_flattened_in_the_order_of_the_data_format(data_format):
    inputs = keras.Input((3, 4))  # three channels of four positions
    x = kl.Permute((2, 1))(kl.Conv1D(3, 1, name="conv")(kl.Permute((2, 1))(inputs)))
    flat = kl.Flatten(data_format=data_format)(x)
    model = randomize(keras.Model(inputs, kl.Dense(2, name="last")(flat)), np.random.default_rng(0))
    zero_units(model, {"conv": np.array([True, False, True])})
    shrunken, after, _ = shrink_and_compare(model)
    assert after["conv"] == 2
    rows = (3, 4) if data_format == "channels_last" else (4, 3)  # channels, positions; reversed
    kernel = numpy(model.get_layer("last").kernel).reshape(*rows, 2)
    expected = np.delete(kernel, 1, axis=rows.index(3)).reshape(8, 2)
    np.testing.assert_array_equal(numpy(shrunken.get_layer("last").kernel), expected)


@pytest.mark.parametrize(
    "layers",
    [
        [kl.Conv2D(2, 3, padding="same", name="next")],
        [kl.ZeroPadding2D(1), kl.Conv2D(2, 3, name="next")],
        [kl.AveragePooling2D(2, padding="same"), kl.Dense(2, name="next")],
        [kl.DepthwiseConv2D(3, padding="same"), kl.Conv2D(2, 1, name="next")],
        [kl.Conv2DTranspose(2, 3, name="next")],
    ],
    ids=lambda layers: type(layers[0]).__name__,
)
def test_a_constant_stays_where_zeros_are_put_beside_it_and_a_zero_goes(layers):
    for bias, left in ((0.7, 4), (0.0, 2)):
        layers = [type(layer).from_config(layer.get_config()) for layer in layers]
        _, after, reasons = shrink_and_compare(conv_then(*layers, bias=bias))
        assert after["conv"] == left
        assert ("'next'" in reasons["conv"]) == (left == 4)


# Units that go together


def residual(dead_left, dead_right, merge=lambda a, b: a + b):
    inputs = keras.Input((3,))
    left, right = kl.Dense(4, name="left")(inputs), kl.Dense(4, name="right")(inputs)
    model = keras.Model(inputs, kl.Dense(2, name="last")(merge(left, right)))
    randomize(model, np.random.default_rng(0))
    masks = {"left": dead_left, "right": dead_right}
    zero_units(model, {k: ~np.isin(np.arange(4), dead) for k, dead in masks.items()})
    return model


def test_a_sum_loses_the_units_that_are_dead_in_both_branches():
    for merge in (lambda a, b: a + b, lambda a, b: kl.Average()([a, b])):
        _, after, reasons = shrink_and_compare(residual([0, 1], [1, 2], merge))
        assert after == {"left": 3, "right": 3, "last": 2}
        assert "'last'" in reasons["left"] and "'last'" in reasons["right"]


def test_a_product_loses_the_units_that_are_dead_in_one_branch():
    _, after, _ = shrink_and_compare(residual([0, 1], [1, 2], lambda a, b: a * b))
    assert after == {"left": 1, "right": 1, "last": 2}


def test_a_concatenation_loses_every_dead_unit():
    merge = kl.Concatenate()
    _, after, _ = shrink_and_compare(residual([0, 1], [1, 2, 3], lambda a, b: merge([a, b])))
    assert after == {"left": 2, "right": 1, "last": 2}


def test_coupled_pruning_removes_as_much_as_asked_from_residual_branches():
    model = residual([], [])
    for name, norms in (("left", [4, 1, 3, 2]), ("right", [1, 4, 3, 2])):  # joint: 17, 17, 18, 8
        kernel = np.zeros((3, 4))
        kernel[0] = norms
        model.get_layer(name).kernel.assign(kernel)
    together = kp.prune_units(model, 0.25)
    assert numpy(together.get_layer("left").kernel)[0].tolist() == [4, 1, 3, 0]
    assert shrink_and_compare(together)[1] == {"left": 3, "right": 3, "last": 2}
    apart = kp.prune_units(model, 0.25, coupled=False)
    assert numpy(apart.get_layer("left").kernel)[0].tolist() == [4, 0, 3, 2]
    assert shrink_and_compare(apart)[1] == {"left": 4, "right": 4, "last": 2}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("score", ["magnitude", "random", lambda k: k.sum(axis=0)])
def test_coupled_pruning_keeps_the_counts(scope, score):
    for sparsity in (0.25, 0.5, 0.99, 1):
        pruned = kp.prune_units(residual([], []), sparsity, scope=scope, score=score, seed=0)
        zero = kp.summary(pruned).set_index("layer")["zero_units"]
        expected = 8 if sparsity == 1 else min(round(8 * sparsity), 6)
        assert zero["left"] + zero["right"] == expected
        assert zero["left"] == zero["right"]


def test_coupled_pruning_takes_single_units_where_partners_differ():
    pruned = kp.prune_units(residual([], []), layers={"left": 0.75, "right": 0.25})
    zero = kp.summary(pruned).set_index("layer")["zero_units"]
    assert (zero["left"], zero["right"]) == (3, 1)
    assert shrink_and_compare(pruned)[1]["left"] == 3


def test_a_shared_layer_is_cut_once_for_all_its_calls():
    inputs = keras.Input((4,))
    shared, first = kl.Dense(4, name="shared"), kl.Dense(4, name="first")
    model = keras.Model(inputs, kl.Dense(2)(shared(shared(first(inputs)))))
    randomize(model, np.random.default_rng(0))
    mask = np.array([True, False, True, True])
    zero_units(model, {"shared": mask})
    assert shrink_and_compare(model)[1]["shared"] == 4  # `first` still speaks
    zero_units(model, {"first": mask})
    assert shrink_and_compare(model)[1]["shared"] == 3


def test_nested_models_are_shrunken_inside():
    inner = keras.Sequential(
        [keras.Input((4,)), kl.Dense(5, "relu", name="deep"), kl.Dense(4, name="out")], name="inner"
    )
    model = keras.Sequential([keras.Input((3,)), kl.Dense(4, name="first"), inner, kl.Dense(2)])
    randomize(model, np.random.default_rng(0))
    shrunken, after, _ = shrink_and_compare(kp.prune_units(model, 0.5))
    assert list(after.values()) == [2, 3, 2, 2]
    assert shrunken.get_layer("inner").input_shape == (None, 2)


def test_several_inputs_and_outputs_keep_their_names_and_sizes():
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    hidden = kl.Dense(6, "relu", name="hidden")(kl.Concatenate()([a, b]))
    model = keras.Model(
        {"a": a, "b": b}, {"x": kl.Dense(2, name="x")(hidden), "y": kl.Dense(3, name="y")(hidden)}
    )
    pruned = kp.prune_units(randomize(model, np.random.default_rng(0)), 0.5)
    shrunken, table = shrink(pruned, report=True)
    assert table["after"].tolist() == [3, 2, 3]
    data = {"a": np.ones((2, 3), "float32"), "b": np.full((2, 4), 0.5, "float32")}
    expected, found = pruned(data), shrunken(data)
    assert list(found) == ["x", "y"]
    for name in found:
        np.testing.assert_allclose(numpy(found[name]), numpy(expected[name]), rtol=1e-5)


@pytest.mark.parametrize("kind", [kl.Dropout, kl.AlphaDropout])
@pytest.mark.parametrize("noise_shape", [(None, 1, 1), (None, 5, None), (8, 1, 4)])
def test_dropout_with_a_noise_shape_loses_units_and_trains_on(kind, noise_shape):
    layers = [kl.Dense(4, name="hidden"), kind(0.5, noise_shape), kl.Flatten(), kl.Dense(2)]
    model = keras.Sequential([keras.Input((5, 3)), *layers])
    pruned = kp.prune_units(randomize(model, np.random.default_rng(0)), 0.5, layers=["hidden"])
    shrunken, after, reasons = shrink_and_compare(pruned)
    assert after["hidden"] == 2
    assert not reasons["hidden"]
    shrunken.compile("sgd", "mse")
    shrunken.fit(np.ones((8, 5, 3)), np.ones((8, 2)), batch_size=8, verbose=0)


# What stays, and why


@pytest.mark.parametrize(
    "layer",
    [
        kl.LayerNormalization(name="odd"),
        kl.Softmax(name="odd"),
        kl.RNN(kl.LSTMCell(3), name="odd"),
        kl.GroupNormalization(2, name="odd"),
        kl.Rescaling([1.0, 2.0, 3.0, 4.0], name="odd"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_before_a_layer_without_a_rule_units_stay_and_the_report_says_so(layer):
    layer = type(layer).from_config(layer.get_config())
    dense = kl.Dense(4, name="hidden")
    model = keras.Sequential([keras.Input((5, 2)), dense, layer, kl.Flatten(), kl.Dense(2)])
    pruned = kp.prune_units(randomize(model, np.random.default_rng(0)), 0.5, layers=["hidden"])
    _, after, reasons = shrink_and_compare(pruned)
    assert after["hidden"] == 4
    assert reasons["hidden"].startswith(f"'odd' ({type(layer).__name__})")


def test_units_of_a_softmax_and_of_the_output_stay():
    model = two_dense(activation="softmax")
    model.get_layer("last").kernel.assign(np.zeros((3, 2)))
    _, after, reasons = shrink_and_compare(model)
    assert after == {"hidden": 3, "last": 2}
    assert reasons["hidden"] == "the activation of 'hidden' mixes units or is unknown"
    assert reasons["last"] == "it is the model's output"


def block_and_dense(block):
    """A Dense whose units are added to what a layer without a rule sends on."""
    inputs = keras.Input((5, 4))
    lost = kl.BatchNormalization(name="norm")(block(inputs))
    dense = kl.Dense(4, name="hidden")(inputs)
    add = kl.Add(name="sum")([lost, dense])
    model = keras.Model(inputs, kl.Dense(2, name="last")(kl.Flatten()(add)))
    randomize(model, np.random.default_rng(0))
    zero = np.array([[1, 0, 1, 0]])
    for entry in kernel_layers(model):
        if entry.name.endswith(("hidden", "inside")):
            entry.unit_kernel.assign(numpy(entry.unit_kernel) * zero)
    return shrink(model, report=True)[1].set_index("layer")


class Block(kl.Layer):
    """A Dense; with `looks` its call hangs on numbers, which nobody can follow."""

    def __init__(self, looks=False, **options):
        super().__init__(**options)
        self.dense, self.looks = kl.Dense(4, name="inside"), looks

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        positive = self.looks and keras.ops.convert_to_numpy(x).sum() > 0
        return self.dense(2 * x if positive else x)

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], 4), x.dtype)


def test_a_reason_names_the_layer_without_a_rule_behind_a_sum():
    table = block_and_dense(Block(looks=True, name="odd"))
    odd = "'odd' (Block) has no rule, and cannot be looked into: "
    assert table["reason"]["hidden"].startswith(odd)


def test_the_reason_of_a_layer_inside_a_custom_layer_names_the_custom_layer():
    table = block_and_dense(Block(looks=True, name="own"))
    inside = next(name for name in table.index if name.startswith("own/"))
    assert table["after"][inside] == 4
    assert table["reason"][inside].startswith("'own' (Block) has no rule, and cannot be looked")


def test_the_last_unit_of_a_layer_is_kept_in_its_name():
    inputs = keras.Input((3,))
    hidden = kl.Dense(4, "sigmoid", name="hidden")
    model = keras.Model(inputs, kl.Dense(2, name="last")(hidden(inputs)))
    randomize(model, np.random.default_rng(0))
    model.get_layer("last").kernel.assign(np.zeros((4, 2)))  # nothing reads it
    hidden.kernel.assign(numpy(hidden.kernel) * [0, 1, 1, 1])
    assert shrink_and_compare(model)[2]["hidden"] == "'hidden' keeps one unit"


@pytest.mark.parametrize("own_units", [False, True])
def test_a_nested_model_that_one_of_two_calls_hides_keeps_its_units(own_units):
    inner_input = keras.Input((4,))
    x = kl.ReLU()(inner_input)
    inner = keras.Model(inner_input, kl.Dense(4)(x) if own_units else x, name="inner")
    inputs = keras.Input((3,))
    a, b = (kl.Dense(4, name=name)(inputs) for name in "ab")
    both = kl.Concatenate()([inner(a), inner(b, training=True)])
    model = randomize(keras.Model(inputs, kl.Dense(2)(both)), np.random.default_rng(0))
    for name in "ab":
        dense = model.get_layer(name)
        dense.kernel.assign(numpy(dense.kernel) * [1, 0, 1, 0])
    _, after, reasons = shrink_and_compare(model)
    assert (after["a"], after["b"]) == (4, 4)
    assert reasons["a"] == "'inner' (Functional) is called with ['training']"


def test_a_layer_called_for_training_is_not_followed():
    inputs = keras.Input((3,))
    x = kl.BatchNormalization(name="norm")(kl.Dense(4, name="hidden")(inputs), training=True)
    model = randomize(keras.Model(inputs, kl.Dense(2)(x)), np.random.default_rng(0))
    zero_units(model, {"hidden": np.array([True, False, True, True])})
    table = shrink(model, report=True)[1].set_index("layer")
    assert table["after"]["hidden"] == 4
    assert "'norm' (BatchNormalization) is called with ['training']" in table["reason"]["hidden"]


# The model that comes back


def test_a_shrunken_model_is_saved_loaded_and_trained_as_any_other(tmp_path):
    model = two_dense(activation="relu")
    model.compile(keras.optimizers.Adam(0.25), "mse", metrics=["mae"])
    shrunken = shrink(model)
    assert float(shrunken.optimizer.learning_rate) == 0.25
    shrunken.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert largest_difference(model, loaded) < 1e-5
    history = loaded.fit(np.ones((8, 2)), np.ones((8, 2)), epochs=2, verbose=0).history
    assert history["mae"][1] < history["mae"][0]


def test_layer_state_outside_of_the_weights_is_kept():
    normalization = kl.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(5, 3, (50, 2)))
    model = keras.Sequential([keras.Input((2,)), normalization, kl.Dense(4), kl.Dense(2)])
    assert list(shrink_and_compare(kp.prune_units(model, 0.5))[1].values()) == [2, 2]


HALF = np.array([1, 0, 1, 0, 0, 1])  # of six units three are kept


class OwnConfig(keras.Model):
    """Functional, but its configuration tells no layers: the pattern of Keras Hub's models.

    With `fixed`, it does not tell the width either.
    """

    def __init__(self, width, nested=None, fixed=False, **options):
        inputs = keras.Input((4,), name="x") if nested is None else nested.input
        x = inputs if nested is None else nested(inputs)
        x = kl.Dense(width, "relu", name="hidden")(x)
        super().__init__(inputs, kl.Dense(3, name="answer")(x), **options)
        self.width, self.nested, self.fixed = width, nested, fixed

    def get_config(self):
        width = str(self.width) if self.fixed else self.width
        config = {"name": self.name, "trainable": self.trainable, "layers": [width]}
        if self.nested is not None:
            config["nested"] = keras.saving.serialize_keras_object(self.nested)
        return config

    @classmethod
    def from_config(cls, config):
        config["width"] = int(config.pop("layers")[0])
        if "nested" in config:
            config["nested"] = keras.saving.deserialize_keras_object(
                config["nested"], custom_objects={"OwnConfig": OwnConfig}
            )
        return cls(**config)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_model_with_its_own_config_keeps_its_class_if_that_tells_the_size(fixed, tmp_path):
    model = randomize(OwnConfig(6, name="mine", fixed=fixed), np.random.default_rng(0))
    model.compile(keras.optimizers.Adam(0.25), "mse")
    model.get_layer("hidden").trainable = False
    model.get_layer("hidden").kernel.assign(numpy(model.get_layer("hidden").kernel) * HALF)
    model.get_layer("hidden").bias.assign(numpy(model.get_layer("hidden").bias) * HALF)
    shrunken, table = shrink(model, report=True)
    assert table["after"].tolist() == [3, 3]
    assert largest_difference(model, shrunken) < 1e-5
    assert shrunken.name == "mine"
    assert not shrunken.get_layer("hidden").trainable
    assert float(shrunken.optimizer.learning_rate) == 0.25
    shrunken.save(tmp_path / "small.keras")
    plain = type(keras.Model(model.input, model.output))
    assert type(shrunken) is (plain if fixed else OwnConfig)
    with keras.saving.custom_object_scope({} if fixed else {"OwnConfig": OwnConfig}):
        loaded = keras.models.load_model(tmp_path / "small.keras")
    assert largest_difference(model, loaded) < 1e-5


class OwnSequential(keras.Sequential):
    def __init__(self, width, **options):
        hidden = kl.Dense(width, "relu", name="hidden")
        super().__init__([keras.Input((4,)), hidden, kl.Dense(3)], **options)
        self.width = width

    def get_config(self):
        return {"name": self.name, "width": self.width}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_a_sequential_model_with_its_own_config_comes_back_as_a_plain_model():
    model = randomize(OwnSequential(6), np.random.default_rng(0))
    shrunken = shrink(kp.prune_units(model, 0.5))
    assert shrunken.get_layer("hidden").units == 3
    assert largest_difference(kp.prune_units(model, 0.5), shrunken) < 1e-5


def test_a_model_with_its_own_config_keeps_its_class_where_no_unit_goes():
    model = randomize(OwnConfig(6), np.random.default_rng(0))
    shrunken = shrink(model)
    assert isinstance(shrunken, OwnConfig)
    assert largest_difference(model, shrunken) == 0


@pytest.mark.parametrize("around", ["plain", "own", "sequential"])
def test_a_nested_model_with_its_own_config_is_shrunken_inside(around):
    inner = OwnConfig(6, name="inner")
    if around == "own":  # it shares its Input with the model around it
        model = OwnConfig(6, nested=inner)
    elif around == "plain":
        inputs = keras.Input((4,))
        x = kl.Dense(4, name="first")(inputs)
        model = keras.Model(inputs, kl.Dense(2)(inner(x)))
    else:
        model = keras.Sequential([keras.Input((4,)), inner, kl.Dense(2)])
    randomize(model, np.random.default_rng(0))
    hidden = inner.get_layer("hidden")
    hidden.kernel.assign(numpy(hidden.kernel) * HALF)
    hidden.bias.assign(numpy(hidden.bias) * HALF)
    shrunken, table = shrink(model, report=True)
    after = table.set_index("layer")["after"]
    assert after["inner/hidden"] == 3
    assert largest_difference(model, shrunken) < 1e-5
    assert shrunken.get_layer("inner").get_layer("hidden").units == 3


class Nameless(kl.Layer):
    """Its configuration forgets its name, so a copy has another one."""

    def call(self, x):
        return x * self.scale

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], name="scale")

    def get_config(self):
        return {}


def test_a_custom_layer_that_loses_its_name_keeps_its_weights():
    layers = [Nameless(name="one"), kl.Dense(6, "relu", name="hidden"), kl.Dense(4), Nameless()]
    x = inputs = keras.Input((4,))
    for layer in layers:
        x = layer(x)
    model = randomize(keras.Model(inputs, x), np.random.default_rng(0))
    layers[1].kernel.assign(numpy(layers[1].kernel) * HALF)
    layers[1].bias.assign(numpy(layers[1].bias) * HALF)
    shrunken = shrink(model)
    assert shrunken.get_layer("hidden").units == 3
    assert largest_difference(model, shrunken) < 1e-5


def test_a_custom_layer_without_a_name_in_its_config_is_passed_over_in_a_sequential_model():
    layers = [kl.Dense(6, "relu", name="hidden"), kl.Dense(4), Nameless(), kl.Dense(2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    randomize(model, np.random.default_rng(0))
    layers[0].kernel.assign(numpy(layers[0].kernel) * HALF)
    layers[0].bias.assign(numpy(layers[0].bias) * HALF)
    shrunken = shrink(model)
    assert shrunken.get_layer("hidden").units == 3
    assert largest_difference(model, shrunken) < 1e-5


# Bad input


def test_a_layer_of_zeros_alone_is_refused():
    model = kp.prune_units(two_dense(), 1)
    with pytest.raises(ValueError, match="'hidden' has no unit left: all its 3.*sparsity below 1"):
        shrink(model)


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="Model 'young' is not built.*Give it an Input layer"):
        shrink(keras.Sequential([kl.Dense(2)], name="young"))


def test_something_else_than_a_model_is_refused():
    with pytest.raises(TypeError, match="Expected a Keras model. Received: list"):
        shrink([kl.Dense(2)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.hidden, self.last = kl.Dense(3), kl.Dense(2)

    def call(self, x):
        return self.last(keras.ops.relu(self.hidden(x)))


def test_a_subclassed_model_comes_back_as_a_functional_one():
    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    model(x)
    model.hidden.kernel.assign(numpy(model.hidden.kernel) * [1, 0, 1])
    with pytest.warns(UserWarning, match=r"\['own \(Subclassed\)'\] cannot say the new sizes"):
        shrunken = shrink(model)
    assert type(shrunken).__name__ == "Functional"
    assert list(units(shrunken).values()) == [2, 2]
    np.testing.assert_allclose(numpy(shrunken(x)), numpy(model(x)), atol=1e-6)


class Looking(Subclassed):
    def call(self, x):
        return super().call(x) if keras.ops.convert_to_numpy(x).sum() > 0 else x


def test_a_subclassed_model_that_looks_at_numbers_is_refused():
    model = Looking()
    model(np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"'own' \(Looking\) shows no graph.*keras.ops alone"):
        shrink(model)


@pytest.mark.parametrize("position, name", [(0, "kernel"), (1, "bias")])
def test_nan_in_the_weights_is_refused(position, name):
    model = two_dense()
    values = model.get_layer("hidden").get_weights()
    values[position][...] = np.nan
    model.get_layer("hidden").set_weights(values)
    with pytest.raises(ValueError, match=f"The {name} of layer 'hidden' holds NaN"):
        shrink(model)


def test_training_the_shrunken_model_leaves_the_original_as_it_was():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), kl.Dense(6), kl.LayerNormalization(), kl.Dense(2)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    before = keras.ops.convert_to_numpy(model(x)).copy()
    smaller = kp.shrink(model)  # nothing to remove: all is copied
    smaller.fit(x, np.ones((8, 2)), verbose=0)  # in place, on JAX in the very same memory
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x)), before)
