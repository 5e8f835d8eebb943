"""Shrunken models: the same outputs, fewer units, and a reason for every unit that stays."""

import os

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.graph import kernel_layers
from keras_pruning.prune import apply_unit_masks, unit_masks
from keras_pruning.shrink import shrink

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
# TensorFlow has no convolution with the channels first on a CPU.
DATA_FORMATS = ["channels_last"] if ON_TENSORFLOW else ["channels_last", "channels_first"]
RANDOM_MODELS = int(os.environ.get("RANDOM_MODELS", "300" if ON_TENSORFLOW else "60"))


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
        names = [None, None, "relu", "relu", "sigmoid", "softplus", "tanh", "elu", "softmax"]
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
            step = self.pick([self.unit_step] * 4 + [self.plain_step] * 3 + [self.join_step] * 2)
            self.seen.append(step(self.seen[-1]))

    def unit_step(self, x):
        x = self.unit_layer(x)
        if self.coin(0.4):
            x = kl.BatchNormalization(axis=self.axis, scale=self.coin(0.8), center=self.coin(0.8))(x)
        return self.pick([kl.ReLU(), kl.LeakyReLU(), kl.Identity(), kl.Activation("sigmoid")])(x)

    def plain_step(self, x):
        shared = list(range(1, self.dims + 1)) if self.coin() and self.axis != 1 else None
        layers = [
            kl.BatchNormalization(axis=self.axis),
            kl.PReLU(shared_axes=shared),
            kl.Dropout(0.3),
            kl.Rescaling(2.0, self.pick([0.0, 0.5])),
            kl.LayerNormalization(axis=self.axis),
        ]
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
            apply_unit_masks(model, unit_masks(model, float(self.rng.uniform(0, 0.99)), layers=chosen))
            return
        for entry in kernel_layers(model):
            if not entry.has_units or entry.is_output:
                continue
            count = entry.alive_units().size
            gone = self.rng.permutation(count)[: int(self.rng.uniform(0, 0.99) * count)]
            keep = ~np.isin(np.arange(count), gone)
            if self.coin(0.6):
                apply_unit_masks(model, {entry.name: keep})
            else:
                kernel = np.moveaxis(numpy(entry.unit_kernel).copy(), entry.unit_axis, -1)
                kernel *= keep
                entry.unit_kernel.assign(np.moveaxis(kernel, -1, entry.unit_axis))


@pytest.mark.parametrize("seed", range(RANDOM_MODELS))
def test_a_random_model_gives_the_same_outputs_with_fewer_parameters(seed):
    recipe = RandomModel(seed)
    model = recipe.build(depth=int(recipe.rng.integers(1, 8)))
    recipe.prune(model)
    shrunken, after, _ = shrink_and_compare(model)
    fewer = sum(after.values()) < sum(units(model).values())
    assert fewer == (shrunken.count_params() < model.count_params())
