"""Training that keeps the zeros: with every optimizer, on the backend that Keras runs on."""

import functools
import os
import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp
from keras_pruning.recovery.finetune import KeepZeros, keep_zeros
from keras_pruning.recovery.gradual import GradualPruning, polynomial_sparsity

BACKEND = keras.backend.backend()
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(units=(16, 12), inputs=8, **options):
    """Dense layers "hidden_1", "hidden_2" and "logits", three classes."""
    keras.utils.set_random_seed(0)
    hidden = [
        kl.Dense(u, activation="relu", name=f"hidden_{i + 1}", **options)
        for i, u in enumerate(units)
    ]
    return keras.Sequential([keras.Input((inputs,)), *hidden, kl.Dense(3, name="logits")])


def compiled(model, optimizer="adam", **options):
    model.compile(optimizer, LOSS, **options)
    return model


def batches(steps, shape=(8,)):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(8 * steps, *shape)).astype("float32"),
        "y": rng.integers(0, 3, 8 * steps),
        "batch_size": 8,
        "shuffle": False,
        "verbose": 0,
    }


def kernels(model):
    return [
        keras.ops.convert_to_numpy(v)
        for v in model.trainable_variables
        if v.name.endswith("kernel")
    ]


def zeros(model):
    return [int((k == 0).sum()) for k in kernels(model)]


def is_plain(model):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    changed = {"make_train_function", "train_step", "compile"} & vars(model).keys()
    return "apply" not in vars(optimizer or model) and not changed


class EachStep(keras.callbacks.Callback):
    """Calls `look(model)` after every step and keeps what it returns."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.look(self.model))


class BreakOff(keras.callbacks.Callback):
    def __init__(self, error, epoch=0, batch=2):
        super().__init__()
        self.error, self.at, self.epoch = error, (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise self.error


def zeros_of_each_step(model, steps, epochs=1, callbacks=None):
    """Fits and returns the masks of zeros after each step, stacked into one a kernel."""
    look = EachStep(lambda model: [k == 0 for k in kernels(model)])
    callbacks = [KeepZeros()] if callbacks is None else callbacks
    model.fit(**batches(steps), epochs=epochs, callbacks=[*callbacks, look])
    return [np.stack(masks) for masks in zip(*look.seen, strict=True)]


# KeepZeros


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.optimizers.Adam(0.01),
        keras.optimizers.AdamW(0.01, weight_decay=0.1),
        keras.optimizers.RMSprop(0.01, momentum=0.5),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_zeros_are_zero_after_every_one_of_200_steps(optimizer, jit_compile):
    optimizer = optimizer.from_config(optimizer.get_config())
    model = compiled(network((12,)), optimizer, jit_compile=jit_compile)
    pruned = kp.prune_weights(model, 0.7)
    expected = [k == 0 for k in kernels(pruned)]
    for mask, seen in zip(expected, zeros_of_each_step(pruned, 200), strict=True):
        assert len(seen) == 200
        assert (seen == mask).all()
    for old, new in zip(kernels(model), kernels(pruned), strict=True):
        assert (old != new)[new != 0].mean() > 0.5  # the others are trained


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam(0.01, use_ema=True),
        keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
        keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=3),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01, use_ema=True)),
        keras.optimizers.Adam(0.01, clipnorm=0.1, weight_decay=0.1),
    ],
    ids=["ema", "ema_overwrite", "accumulation", "loss_scale", "loss_scale_ema", "clipped_decay"],
)
def test_zeros_stay_under_what_else_an_optimizer_does(optimizer):
    optimizer = optimizer.from_config(optimizer.get_config())
    pruned = kp.prune_weights(compiled(network(), optimizer), 0.7)
    expected = [k == 0 for k in kernels(pruned)]
    for mask, seen in zip(expected, zeros_of_each_step(pruned, 20), strict=True):
        assert (seen == mask).all()
    assert all((mask == (k == 0)).all() for mask, k in zip(expected, kernels(pruned), strict=True))


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float16"])
def test_zeros_stay_and_no_others_come_in_half_precision(dtype):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    pruned = kp.prune_weights(compiled(network(dtype=dtype), optimizer), 0.7)
    expected = [k == 0 for k in kernels(pruned)]
    for mask, seen in zip(expected, zeros_of_each_step(pruned, 30), strict=True):
        assert (seen == mask).all()


@pytest.mark.skipif(BACKEND == "torch", reason="Keras refuses steps_per_execution on torch")
def test_zeros_stay_with_several_steps_an_execution():
    pruned = kp.prune_weights(compiled(network(), steps_per_execution=4), 0.7)
    before = zeros(pruned)
    pruned.fit(**batches(10), epochs=2, callbacks=[KeepZeros()])
    assert zeros(pruned) == before


def test_zeros_stay_when_the_model_and_its_momentum_are_warm():
    model = compiled(network(), keras.optimizers.SGD(0.05, momentum=0.9))
    model.fit(**batches(10))
    pruned = kp.prune_weights(model, 0.7)
    pruned.fit(**batches(10), callbacks=[KeepZeros()])
    assert zeros(pruned)[:2] == [90, 134]


def test_without_the_callback_they_come_back():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    pruned.fit(**batches(10))
    assert sum(zeros(pruned)) < 100


def test_a_model_without_zeros_is_trained_as_without_the_callback():
    plain, held = (compiled(network()) for _ in range(2))
    for model, callbacks in ((plain, []), (held, [KeepZeros()])):
        keras.utils.set_random_seed(1)
        model.fit(**batches(20), callbacks=callbacks)
    for a, b in zip(plain.get_weights(), held.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_live_weight_that_lands_on_zero_is_not_taken_for_pruned():
    model = network(kernel_constraint="non_neg")
    pruned = kp.prune_weights(compiled(model), 0.5)
    before = zeros(pruned)
    pruned.fit(**batches(20), callbacks=[KeepZeros()])
    assert zeros(pruned) == before
    assert all((k >= 0).all() for k in kernels(pruned)[:2])
    assert any((np.abs(k[k != 0]) < 1e-30).any() for k in kernels(pruned)[:2])


def test_a_pruned_filter_stays_gone_with_its_bias_and_its_normalization():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            kl.Conv2D(8, 3, name="conv"),
            kl.BatchNormalization(name="norm"),
            kl.ReLU(),
            kl.Flatten(),
            kl.Dense(3),
        ]
    )
    pruned = kp.prune_units(compiled(model, keras.optimizers.Adam(0.01, weight_decay=0.1)), 0.5)
    conv, norm = pruned.get_layer("conv"), pruned.get_layer("norm")
    gone = ~keras.ops.convert_to_numpy(conv.kernel).any(axis=(0, 1, 2))
    variables = [conv.kernel, conv.bias, norm.gamma, norm.beta, norm.moving_mean]

    def look(_):
        return [keras.ops.convert_to_numpy(v)[..., gone].any() for v in variables]

    steps = EachStep(look)
    pruned.fit(**batches(30, (6, 6, 2)), callbacks=[KeepZeros(), steps])
    assert gone.sum() == 4
    assert not np.any(steps.seen)
    assert all(keras.ops.convert_to_numpy(v)[..., ~gone].all() for v in variables)


def test_a_unit_without_weights_but_with_a_bias_keeps_training_its_bias():
    model = compiled(network())
    layer = model.get_layer("hidden_1")
    layer.kernel.assign(np.where(np.arange(16) < 2, 0.0, keras.ops.convert_to_numpy(layer.kernel)))
    layer.bias.assign(np.where(np.arange(16) == 1, 1.0, 0.0))
    model.fit(**batches(10), callbacks=[KeepZeros()])
    bias = keras.ops.convert_to_numpy(layer.bias)
    assert bias[0] == 0  # gone: neither weights nor bias
    assert bias[1] not in (0, 1)
    assert bias[2:].all()


def test_any_kernel_is_kept():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            kl.SeparableConv1D(8, 2),
            kl.Bidirectional(kl.GRU(5)),
            kl.Dense(3),
        ]
    )
    pruned = kp.prune_weights(compiled(model), 0.5)
    before = kp.summary(pruned)["zeros"].tolist()
    pruned.fit(**batches(10, (6, 4)), callbacks=[KeepZeros()])
    assert kp.summary(pruned)["zeros"].tolist() == before


class Mix(kl.Layer):
    """A layer of the user's own with two matrices, one with a name of Keras's and one without."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 12), name="kernel")
        self.v = self.add_weight(shape=(12, 12), name="mixing")

    def call(self, x):
        return keras.ops.relu(x @ self.w) @ self.v


def test_zeros_set_by_hand_in_a_layer_of_the_users_own_are_kept():
    keras.utils.set_random_seed(0)
    mix = Mix()
    model = compiled(keras.Sequential([keras.Input((8,)), mix, kl.ReLU(), kl.Dense(3)]))
    gone = []
    for variable in (mix.w, mix.v):
        values = np.array(keras.ops.convert_to_numpy(variable))
        values[::2] = 0
        variable.assign(values)
        gone.append(values == 0)
    model.fit(**batches(6), callbacks=[KeepZeros()])
    for variable, mask in zip((mix.w, mix.v), gone, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable) == 0, mask)


@pytest.mark.parametrize("jit_compile", ["auto", False])
@pytest.mark.parametrize("warm", [False, True])
def test_weights_set_to_zero_in_the_middle_of_fit_stay_from_the_next_step_on(jit_compile, warm):
    model = compiled(network(), keras.optimizers.SGD(0.05, momentum=0.9), jit_compile=jit_compile)
    if warm:
        model.fit(**batches(4))

    class Cut(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                kernel = self.model.get_layer("hidden_2").kernel
                values = np.array(keras.ops.convert_to_numpy(kernel))
                values[:, :5] = 0
                kernel.assign(values)

    look = EachStep(lambda model: zeros(model)[1])
    model.fit(**batches(8), callbacks=[KeepZeros(), Cut(), look])
    assert look.seen == [0, 0, 0, 80, 80, 80, 80, 80]


def test_callbacks_read_the_weights_of_the_present_step():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    look = EachStep(lambda model: kernels(model)[0])
    pruned.fit(**batches(6), callbacks=[KeepZeros(), look])
    changes = [np.abs(a - b).max() for a, b in zip(look.seen, look.seen[1:], strict=False)]
    assert len(changes) == 5
    assert min(changes) > 0


def test_a_kernel_of_zeros_alone_is_warned_of():
    model = compiled(network(kernel_initializer="zeros"))
    with pytest.warns(UserWarning, match=r"\['hidden_1', 'hidden_2'\] have a kernel of zeros"):
        model.fit(**batches(1), callbacks=[KeepZeros()])


# What else updates the weights


def gradients(model, data):
    """The loss's gradients, as a loop of one's own takes them on each backend."""
    x, y = data["x"], data["y"]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        return tape.gradient(loss, model.trainable_variables)
    if BACKEND == "jax":
        import jax

        def loss_of(trainable, others):
            return LOSS(y, model.stateless_call(trainable, others, x, training=True)[0])

        state = (
            [v.value for v in vs]
            for vs in (model.trainable_variables, model.non_trainable_variables)
        )
        return jax.grad(loss_of)(*state)
    model.zero_grad()
    LOSS(y, model(x, training=True)).backward()
    return [v.value.grad for v in model.trainable_variables]


def train_in_a_loop(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.apply(gradients(model, batches(2)), model.trainable_variables)


class OwnStep(keras.Model):
    """Updates its weights by plain descent in `train_step`, without any optimizer of Keras."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def call(self, x):
        return self.net(x)

    def train_step(self, *arguments):
        *state, data = arguments
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        logs = {"loss": keras.ops.zeros(())}
        if BACKEND == "jax":
            import jax

            trainable, others, *rest = state[0]
            loss = jax.grad(lambda t: LOSS(y, self.stateless_call(t, others, x)[0]))
            trainable = [v - 0.1 * g for v, g in zip(trainable, loss(trainable), strict=True)]
            return logs, (trainable, others, *rest)
        for v, g in zip(self.trainable_variables, gradients(self, {"x": x, "y": y}), strict=True):
            v.assign(v - 0.1 * g)
        return logs


def own_step():
    model = OwnStep()
    model(batches(1)["x"])
    return compiled(model)


def prune_in_place(model, share=0.7):
    """Sets the smallest weights of the two hidden kernels to zero; returns the masks."""
    hidden = [v for v in model.trainable_variables if v.name == "kernel"][:2]
    for variable in hidden:
        kernel = np.array(keras.ops.convert_to_numpy(variable))
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), share)] = 0
        variable.assign(kernel)
    return [k == 0 for k in kernels(model)]


def are_kept(masks, model):
    return all((mask == (k == 0)).all() for mask, k in zip(masks, kernels(model), strict=True))


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*(come back|sparsity|schedule)", UserWarning)
        yield


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("way", ["callback", "block", "single batches"])
def test_zeros_stay_in_a_train_step_of_the_models_own(way):
    model, data = own_step(), batches(4)
    masks, before = prune_in_place(model), kernels(model)
    if way == "callback":
        model.fit(**data, callbacks=[KeepZeros()])
        assert are_kept(masks, model)
    else:
        with keep_zeros(model):
            model.fit(**data) if way == "block" else model.train_on_batch(data["x"], data["y"])
            assert are_kept(masks, model)  # not only after the block
    assert all((a != b).any() for a, b in zip(before, kernels(model), strict=True))
    assert is_plain(model)
    model.fit(**data)
    assert not are_kept(masks, model)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras carries one optimizer's state on JAX")
@pytest.mark.usefixtures("no_warning")
def test_zeros_of_both_parts_of_a_gan_stay():
    class Gan(keras.Model):
        def __init__(self):
            super().__init__()
            self.generator = network((12,), inputs=4)
            self.discriminator = network((10,), inputs=3)
            self.built = True

        def compile(self, d_optimizer, g_optimizer):
            super().compile(optimizer=None)
            self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

        def call(self, x):
            return self.discriminator(self.generator(x))

        def train_step(self, data):
            x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
            parts = [(self.discriminator, self.d_optimizer), (self.generator, self.g_optimizer)]
            for part, optimizer in parts:
                every = dict(
                    zip(
                        map(id, self.trainable_variables),
                        gradients(self, {"x": x, "y": y}),
                        strict=True,
                    )
                )
                own = part.trainable_variables
                optimizer.apply([every[id(v)] for v in own], own)
            return {"loss": keras.ops.zeros(())}

    model = Gan()
    model.compile(
        keras.optimizers.Adam(0.01, use_ema=True), keras.optimizers.SGD(0.1, momentum=0.9)
    )
    data = batches(6, (4,))
    model(data["x"])
    masks = prune_in_place(model)
    model.fit(**data, callbacks=[KeepZeros()])
    assert are_kept(masks, model)
    averages = zip(
        model.d_optimizer._trainable_variables,
        model.d_optimizer._model_variables_moving_average,
        strict=True,
    )
    for variable, average in averages:
        if variable.name == "kernel":
            gone = keras.ops.convert_to_numpy(variable) == 0
            assert not keras.ops.convert_to_numpy(average)[gone].any()
    assert all("apply" not in vars(o) for o in (model.d_optimizer, model.g_optimizer))
    model.fit(**data)
    assert not are_kept(masks, model)


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("which", ["its optimizer", "an attribute", "a new optimizer", "a list"])
def test_zeros_stay_in_a_loop_with_an_optimizer_of_the_model(which):
    model = compiled(network())
    masks = prune_in_place(model)
    own = keras.optimizers.SGD(0.1, momentum=0.9)
    if which == "an attribute":
        model.own = own
    if which == "a list":
        model.both = [own, None]
    with keep_zeros(model):
        if which == "a new optimizer":
            model.optimizer = own
            model.fit(**batches(2))
        train_in_a_loop(model, model.optimizer if which == "its optimizer" else own)
        assert are_kept(masks, model)
    assert "apply" not in vars(own)


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("warm", [False, True])
def test_zeros_stay_under_an_optimizer_that_is_exchanged_in_the_block(warm):
    model = compiled(network())
    masks = prune_in_place(model)
    with keep_zeros(model):
        if warm:
            model.fit(**batches(2))
        model.optimizer = keras.optimizers.SGD(0.1)
        model.fit(**batches(4))
        assert int(model.optimizer.iterations) == 4
        assert are_kept(masks, model)
    model.fit(**batches(4))
    assert int(model.optimizer.iterations) == 8
    assert not are_kept(masks, model)
    assert is_plain(model)


def test_zeros_that_an_optimizer_of_the_users_own_revives_are_set_again_and_said():
    model = compiled(network())
    masks = prune_in_place(model)
    other = keras.optimizers.Adam(0.01)
    with pytest.warns(UserWarning) as seen, keep_zeros(model):
        train_in_a_loop(model, other)
        came_back = sum(
            int((m & (k != 0)).sum()) for m, k in zip(masks, kernels(model), strict=True)
        )
    assert came_back > 100
    (message,) = [str(w.message) for w in seen if "come back" in str(w.message)]
    assert f"{came_back} pruned weights of the layers ['hidden_1', 'hidden_2']" in message
    assert are_kept(masks, model)


def test_an_error_in_the_block_is_not_hidden_by_the_warning():
    model = compiled(network())
    masks = prune_in_place(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(RuntimeError, match="mine"), keep_zeros(model):
            train_in_a_loop(model, keras.optimizers.Adam(0.01))
            raise RuntimeError("mine")
    assert are_kept(masks, model)


@pytest.mark.parametrize("both", [False, True])
def test_zeros_that_a_second_model_with_the_same_layer_revives(both):
    model = compiled(network())
    masks = prune_in_place(model)
    second = keras.Sequential([keras.Input((8,)), *model.layers[:2], kl.Dense(3)])
    compiled(second, keras.optimizers.SGD(0.1))
    if both:
        with keep_zeros(model), keep_zeros(second), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            second.fit(**batches(3))
            assert are_kept(masks, model)
    else:
        with (
            pytest.warns(UserWarning, match="another model that shares a layer"),
            keep_zeros(model),
        ):
            second.fit(**batches(3))
    assert are_kept(masks, model)
    assert is_plain(model)
    assert is_plain(second)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function")
def test_zeros_that_a_step_traced_before_revives_are_set_again_and_said():
    import tensorflow as tf

    model = compiled(network())
    masks, data = prune_in_place(model), batches(2)

    def step():
        model.optimizer.apply(gradients(model, data), model.trainable_variables)

    traced = tf.function(step)
    values = model.get_weights()
    traced()
    model.set_weights(values)
    with pytest.warns(UserWarning, match="a training step traced before"), keep_zeros(model):
        traced()
    assert are_kept(masks, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with keep_zeros(model):
            tf.function(step)()
    assert are_kept(masks, model)


class LoadAtTheEnd(keras.callbacks.Callback):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def on_train_end(self, logs=None):
        self.model.set_weights(self.weights)


@pytest.mark.parametrize("first", [False, True])
def test_zeros_lost_to_weights_that_another_callback_loads_are_set_again_and_said(first):
    model = compiled(network())
    dense = model.get_weights()
    masks = prune_in_place(model)
    callbacks = [LoadAtTheEnd(dense), KeepZeros()]
    count = sum(int(mask.sum()) for mask in masks)
    with pytest.warns(UserWarning, match=f"{count} pruned weights .* a callback that loads"):
        model.fit(**batches(2), callbacks=callbacks if first else callbacks[::-1])
    assert are_kept(masks, model)
    np.testing.assert_array_equal(kernels(model)[2], dense[4])


def test_zeros_set_in_one_epoch_count_as_pruned_from_the_next_on():
    model = compiled(network())
    dense = model.get_weights()

    class Cut(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                prune_in_place(self.model)

    with pytest.warns(UserWarning, match="pruned weights .* had come back"):
        model.fit(**batches(2), epochs=2, callbacks=[KeepZeros(), Cut(), LoadAtTheEnd(dense)])
    assert min(zeros(model)[:2]) > 0


def test_the_check_at_the_end_comes_once_with_a_history_of_the_users_own():
    model = compiled(network())
    dense = model.get_weights()
    masks, history = prune_in_place(model), keras.callbacks.History()
    with pytest.warns(UserWarning, match="come back"):
        model.fit(**batches(2), callbacks=[history, LoadAtTheEnd(dense), KeepZeros()])
    assert are_kept(masks, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(**batches(2), callbacks=[history])
    assert not are_kept(masks, model)


@pytest.mark.parametrize(
    "make", [KeepZeros, lambda: GradualPruning(0.5, every=1), None], ids=["keep", "gradual", "with"]
)
def test_layers_with_lora_are_refused(make):
    model = network()
    model.get_layer("hidden_2").enable_lora(2)
    compiled(model)
    with pytest.raises(ValueError, match=r"\['hidden_2'\] have LoRA enabled: .*Train LoRA first"):
        if make is None:
            with keep_zeros(model):
                pass
        else:
            model.fit(**batches(1), callbacks=[make()])
    assert is_plain(model)
    merged = kp.prune_weights(model, 0.5)
    if not any(getattr(layer, "lora_enabled", False) for layer in merged.layers):
        before = zeros(merged)
        merged.fit(**batches(2), callbacks=[KeepZeros()])
        assert zeros(merged) == before


# How often a training step is traced


class CountTraces(kl.Layer):
    """Counts in Python how often it is traced in training."""

    def __init__(self, **options):
        super().__init__(**options)
        self.count = 0

    def call(self, x, training=False):
        self.count += bool(training)
        return x


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch traces nothing")
def test_a_fit_with_keepzeros_traces_once_and_a_plain_fit_once():
    counter = CountTraces()
    model = compiled(keras.Sequential([keras.Input((8,)), kl.Dense(12), counter, kl.Dense(3)]))
    masks, data, counts = prune_in_place(model), batches(3), []
    for held in (True, True, False, True, False, "with", "with"):
        before = counter.count
        if held == "with":
            with keep_zeros(model):
                model.fit(**data)
        else:
            model.fit(**data, callbacks=[KeepZeros()] if held else [])
        counts.append(counter.count - before)
        assert is_plain(model)
        if held:
            assert are_kept(masks, model)
        else:
            assert not are_kept(masks, model)
            masks = prune_in_place(model)
    assert counts[0] > 0
    assert counts[2] > 0
    assert [c for i, c in enumerate(counts) if i not in (0, 2)] == [0] * 5
    compiled(model)
    before = counter.count
    model.fit(**data, callbacks=[KeepZeros()])
    assert counter.count > before  # compiling starts anew
    assert are_kept(masks, model)


def test_a_layer_frozen_between_two_fits_with_keepzeros_is_not_trained():
    model = compiled(network())
    masks = prune_in_place(model)
    model.fit(**batches(3), callbacks=[KeepZeros()])
    model.get_layer("hidden_2").trainable = False
    before = model.get_layer("hidden_2").get_weights()
    compiled(model)
    model.fit(**batches(3), callbacks=[KeepZeros()])
    for a, b in zip(before, model.get_layer("hidden_2").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (masks[0] == (model.get_layer("hidden_1").get_weights()[0] == 0)).all()


def test_a_model_that_was_held_can_be_forgotten():
    import gc
    import weakref

    model = compiled(network())
    prune_in_place(model)
    model.fit(**batches(2), callbacks=[KeepZeros()])
    with keep_zeros(model):
        model.fit(**batches(2))
    reference = weakref.ref(model)
    keras.backend.clear_session()
    del model
    gc.collect()
    assert reference() is None


# What is left behind: nothing


def test_after_training_the_model_is_plain_again():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    pruned.fit(**batches(3), callbacks=[KeepZeros()])
    assert is_plain(pruned)
    pruned.fit(**batches(10))
    assert sum(zeros(pruned)) < 100


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "^C"])
@pytest.mark.parametrize("make", [KeepZeros, lambda: GradualPruning(0.8, begin=0, end=9, every=1)])
def test_a_fit_broken_off_does_no_harm_to_a_later_plain_fit(error, make):
    pruned = kp.prune_weights(compiled(network()), 0.5)
    callback = make()
    with pytest.raises(type(error)):
        pruned.fit(**batches(9), callbacks=[callback, BreakOff(error)])
    never_held = kp.prune_weights(pruned, 0)
    for model in (pruned, never_held):
        keras.utils.set_random_seed(1)
        model.fit(**batches(10))
    assert is_plain(pruned)
    assert sum(zeros(pruned)) < 50
    for a, b in zip(pruned.get_weights(), never_held.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_callback_left_behind_by_a_broken_fit_can_be_used_again():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    callback, before = KeepZeros(), zeros(pruned)
    with pytest.raises(RuntimeError):
        pruned.fit(**batches(9), callbacks=[callback, BreakOff(RuntimeError())])
    pruned.fit(**batches(9), callbacks=[callback])
    assert zeros(pruned) == before
    assert is_plain(pruned)


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "^C"])
def test_the_with_block_closes_in_every_case(error):
    pruned = kp.prune_weights(compiled(network()), 0.7)
    before = zeros(pruned)
    with pytest.raises(type(error)), keep_zeros(pruned):
        pruned.fit(**batches(9), callbacks=[BreakOff(error)])
    assert zeros(pruned) == before
    assert is_plain(pruned)
    pruned.fit(**batches(10))
    assert sum(zeros(pruned)) < 100


def test_the_with_block_holds_through_several_fits_and_single_batches():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    before, data = zeros(pruned), batches(4)
    with keep_zeros(pruned) as same:
        assert same is pruned
        pruned.fit(**data)
        pruned.fit(**data, callbacks=[KeepZeros()])
        pruned.train_on_batch(data["x"], data["y"])
        assert zeros(pruned) == before
    assert is_plain(pruned)


def test_the_with_block_holds_through_a_compile():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    before, plain_compile = zeros(pruned), pruned.compile
    with keep_zeros(pruned):
        compiled(pruned)
        pruned.fit(**batches(4))
    assert zeros(pruned) == before
    assert is_plain(pruned)
    assert pruned.compile == plain_compile
    pruned.fit(**batches(10))
    assert sum(zeros(pruned)) < 100


def test_the_with_block_holds_after_a_fit_broken_off():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    before = zeros(pruned)
    with pytest.raises(RuntimeError):
        pruned.fit(**batches(4), callbacks=[KeepZeros(), BreakOff(RuntimeError())])
    with keep_zeros(pruned):
        pruned.fit(**batches(4))
        pruned.fit(**batches(4))
    assert zeros(pruned) == before
    assert is_plain(pruned)


def test_an_apply_of_the_users_own_is_called_and_given_back():
    pruned = kp.prune_weights(compiled(network()), 0.7)
    before, calls, plain_apply = zeros(pruned), [], pruned.optimizer.apply

    def apply(grads, trainable_variables=None):
        calls.append(1)
        return plain_apply(grads, trainable_variables)

    pruned.optimizer.apply = apply
    pruned.fit(**batches(3), callbacks=[KeepZeros()])
    assert calls
    assert zeros(pruned) == before
    assert pruned.optimizer.apply is apply


def test_a_file_saved_while_training_loads_where_the_library_is_unknown(tmp_path):
    model = compiled(network())
    path = tmp_path / "model.keras"
    save = keras.callbacks.ModelCheckpoint(path)
    model.fit(**batches(4), callbacks=[GradualPruning(0.7, end=1.0, every=1), save])
    np.save(tmp_path / "x.npy", batches(1)["x"])
    program = """
import sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
x = np.load(sys.argv[2])
print(sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim == 2))
print(float(np.abs(model.predict(x, verbose=0)).sum()))
model.fit(x, np.zeros(len(x)), verbose=0)
print(sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim == 2))
print("keras_pruning" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "x.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"KERAS_BACKEND": BACKEND},
    )
    assert run.returncode == 0, run.stderr
    zero, output, zero_later, imported = run.stdout.split()[-4:]
    assert int(zero) == sum(zeros(model)) == 90 + 134
    np.testing.assert_allclose(
        float(output), np.abs(model.predict(batches(1)["x"], verbose=0)).sum(), rtol=1e-4
    )
    assert int(zero_later) < 100
    assert imported == "False"


# GradualPruning


def test_the_schedule_is_cubic_between_begin_and_end():
    at = functools.partial(polynomial_sparsity, sparsity=0.8, begin=100, end=300)
    assert [at(t) for t in (0, 99, 100, 300, 1000)] == [0, 0, 0, 0.8, 0.8]
    assert at(200) == pytest.approx(0.8 * (1 - 0.5**3))
    assert at(200, power=1) == pytest.approx(0.4)
    assert at(100, initial_sparsity=0.5) == 0.5
    assert at(250, initial_sparsity=0.5) == pytest.approx(0.8 - 0.3 * 0.25**3)
    assert polynomial_sparsity(5, sparsity=0.8, begin=5, end=5) == 0.8


PRUNINGS = {
    "weights": (kp.prune_weights, 0.9, "zeros"),
    "global": (functools.partial(kp.prune_weights, scope="global"), 0.9, "zeros"),
    "random": (functools.partial(kp.prune_weights, score="random", seed=0), 0.9, "zeros"),
    "2:4": (functools.partial(kp.prune_weights, pattern=(2, 4)), 0.5, "zeros"),
    "units": (kp.prune_units, 0.8, "zero_units"),
    "global units": (functools.partial(kp.prune_units, scope="global"), 0.7, "zero_units"),
    "a function": (lambda model, sparsity: kp.prune_weights(model, sparsity), 0.9, "zeros"),
}


@pytest.mark.parametrize("case", PRUNINGS)
def test_gradual_pruning_hits_its_schedule_at_every_update_and_revives_nothing(case):
    prune, final, column = PRUNINGS[case]
    model = compiled(network(), keras.optimizers.Adam(0.01))
    tables = EachStep(
        lambda model: kp.summary(model).set_index("layer").loc[["hidden_1", "hidden_2"]]
    )
    masks = EachStep(lambda model: [k == 0 for k in kernels(model)])
    gradual = GradualPruning(final, begin=3, end=17, every=4, prune=prune)
    history = model.fit(**batches(10), epochs=2, callbacks=[gradual, tables, masks]).history
    total = "units" if column == "zero_units" else "weights"
    for step, table in enumerate(tables.seen, start=1):
        updates = [t for t in (3, 7, 11, 15, 17) if t <= step]
        share = 0.0
        if updates:
            share = polynomial_sparsity(updates[-1], sparsity=final, begin=3, end=17)
        if "global" in case:
            assert table[column].sum() == round(share * table[total].sum()), step
        else:
            assert table[column].tolist() == [round(share * n) for n in table[total]], step
    for seen in zip(*masks.seen, strict=True):
        assert not np.any(np.stack(seen[:-1]) & ~np.stack(seen[1:]))
    last = tables.seen[-1]
    assert history["sparsity"][-1] == pytest.approx(last[column].sum() / last[total].sum())


def test_two_of_four_along_the_inputs_is_reached_exactly():
    model = compiled(network())
    prune = functools.partial(kp.prune_weights, pattern=(2, 4))
    model.fit(**batches(10), callbacks=[GradualPruning(0.5, every=2, prune=prune)])
    for kernel in kernels(model)[:2]:
        groups = (kernel != 0).reshape(-1, 4, kernel.shape[1])
        assert (groups.sum(axis=1) == 2).all()


def test_each_layer_can_have_its_own_sparsity():
    model = compiled(network())
    gradual = GradualPruning({"hidden_2": 0.9, "logits": 0.5}, every=2)
    history = model.fit(**batches(10), callbacks=[gradual]).history
    assert zeros(model) == [0, 173, 18]
    assert history["sparsity"] == [pytest.approx((173 + 18) / (192 + 36))]


def test_begin_and_end_are_steps_or_shares_of_the_training():
    for times in ({"begin": 5, "end": 15}, {"begin": 0.25, "end": 0.75}):
        model = compiled(network())
        look = EachStep(lambda model: zeros(model)[0])
        gradual = GradualPruning(0.5, initial_sparsity=0.25, every=5, **times)
        model.fit(**batches(10), epochs=2, callbacks=[gradual, look])
        assert look.seen[3:5] == [0, 32]
        assert look.seen[13:] == [60, 64, 64, 64, 64, 64, 64]


def test_with_a_power_of_one_the_sparsity_rises_in_a_straight_line():
    model = compiled(network())
    look = EachStep(lambda model: zeros(model)[0])
    gradual = GradualPruning(0.5, begin=0, end=8, every=4, power=1)
    model.fit(**batches(8), callbacks=[gradual, look])
    assert look.seen == [0, 0, 0, 32, 32, 32, 32, 64]


def test_the_sparsity_is_logged_for_each_epoch_and_each_batch():
    model = compiled(network())

    class Logs(keras.callbacks.Callback):
        batch, epoch = [], []

        def on_train_batch_end(self, batch, logs=None):
            self.batch.append(logs["sparsity"])

        def on_epoch_end(self, epoch, logs=None):
            self.epoch.append(logs["sparsity"])

    history = model.fit(
        **batches(4), epochs=2, callbacks=[GradualPruning(0.5, end=1.0, every=4), Logs()]
    )
    assert Logs.batch == [0, 0, 0, 0.4375, 0.4375, 0.4375, 0.4375, 0.5]
    assert Logs.epoch == history.history["sparsity"] == [0.4375, 0.5]


def test_the_moving_averages_do_not_bring_back_what_the_last_step_pruned():
    model = compiled(network(), keras.optimizers.Adam(0.01, use_ema=True))
    model.fit(**batches(4), callbacks=[GradualPruning(0.5, begin=0, end=4, every=4)])
    assert zeros(model)[:2] == [64, 96]


def test_what_is_pruned_already_counts_and_stays():
    pruned = kp.prune_weights(compiled(network()), 0.4)
    mask = [k == 0 for k in kernels(pruned)]
    look = EachStep(lambda model: zeros(model)[0])
    pruned.fit(**batches(8), callbacks=[GradualPruning(0.8, end=1.0, every=2), look])
    assert look.seen[0] == 51
    assert look.seen[-1] == 102
    assert not any((m & (k != 0)).any() for m, k in zip(mask, kernels(pruned), strict=True))


def test_gradual_pruning_can_be_used_twice_on_one_model():
    model = compiled(network())
    gradual = GradualPruning(0.5, every=2)
    model.fit(**batches(8), callbacks=[gradual])
    model.fit(**batches(8), callbacks=[gradual])
    assert zeros(model)[:2] == [64, 96]
    model.fit(**batches(8), callbacks=[GradualPruning(0.9, every=2)])
    assert zeros(model)[:2] == [115, 173]
    assert is_plain(model)


def choosing(patience, start_from_epoch=0):
    """EarlyStopping that takes the first epoch for the best: the loss falls."""
    return keras.callbacks.EarlyStopping(
        "loss",
        mode="max",
        patience=patience,
        restore_best_weights=True,
        start_from_epoch=start_from_epoch,
    )


@pytest.mark.parametrize("patience", [2, 99], ids=["stopped", "to the end"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("block", [False, True])
def test_weights_restored_from_before_the_end_of_the_schedule_are_said(patience, first, block):
    model = compiled(network(), keras.optimizers.Adam(0.01))
    callbacks = [choosing(patience), GradualPruning(0.9, begin=0, end=12, every=4)]
    callbacks = callbacks if first else callbacks[::-1]
    with pytest.warns(UserWarning) as seen:
        if block:
            with keep_zeros(model):
                history = model.fit(**batches(4), epochs=4, callbacks=callbacks).history
        else:
            history = model.fit(**batches(4), epochs=4, callbacks=callbacks).history
    real = sum(zeros(model)[:2]) / (128 + 192)
    assert real == pytest.approx(0.9 * (1 - (8 / 12) ** 3), abs=0.01)  # after the first epoch
    assert history["sparsity"][-1] == pytest.approx(real)
    (message,) = [str(w.message) for w in seen if "Training ended" in str(w.message)]
    assert re.search(f"ended at sparsity {real:.3g}, though 0.9 had been reached", message)
    assert "start_from_epoch=2" in message
    assert not [w for w in seen if "come back" in str(w.message)]
    assert is_plain(model)


@pytest.mark.usefixtures("no_warning")
def test_both_remedies_keep_the_sparsity():
    model = compiled(network(), keras.optimizers.Adam(0.01))
    gradual = GradualPruning(0.9, begin=0, end=12, every=4)
    for callbacks in ([choosing(99, 2), gradual], [choosing(99), KeepZeros()]):
        history = model.fit(**batches(4), epochs=4, callbacks=callbacks).history
        assert zeros(model)[:2] == [115, 173]
        assert history.get("sparsity", [0.9])[-1] == pytest.approx(288 / 320)


@pytest.mark.parametrize("first", [False, True])
def test_dense_weights_loaded_at_the_end_are_not_logged_as_pruned(first):
    model = compiled(network())
    callbacks = [LoadAtTheEnd(model.get_weights()), GradualPruning(0.5, every=1)]
    with pytest.warns(UserWarning, match="ended at sparsity 0, though 0.5 had been reached"):
        history = model.fit(**batches(8), callbacks=callbacks if first else callbacks[::-1])
    assert history.history["sparsity"] == [0]


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("on_epoch", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_the_logged_sparsity_is_there_after_swapped_moving_averages(on_epoch, first):
    model = compiled(network(), keras.optimizers.Adam(0.01, use_ema=True))
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch)
    callbacks = [swap, GradualPruning(0.9, begin=0, end=10, every=3)]
    history = model.fit(
        **batches(4),
        epochs=4,
        callbacks=callbacks if first else callbacks[::-1],
        validation_data=(batches(1)["x"], batches(1)["y"]),
    )
    assert zeros(model)[:2] == [115, 173]
    assert history.history["sparsity"][-1] == pytest.approx(288 / 320)


@pytest.mark.usefixtures("no_warning")
def test_gradual_pruning_reaches_its_sparsity_in_a_train_step_of_the_models_own():
    model = own_step()
    history = model.fit(**batches(8), callbacks=[GradualPruning(0.5, every=2)]).history
    assert zeros(model)[:2] == [64, 96]
    assert history["sparsity"] == [0.5]


def test_a_function_of_ones_own_is_called_as_documented():
    calls = []

    def own(m, s=None, *, layers=None):
        calls.append((s, layers))
        return kp.prune_weights(m, s, layers=layers)

    model = compiled(network())
    prune = lambda m, s: own(m, s)  # noqa: E731
    model.fit(**batches(4), callbacks=[GradualPruning(0.5, end=4, every=4, prune=prune)])
    assert zeros(model)[:2] == [64, 96]
    assert calls[-1] == (0.5, None)
    gradual = GradualPruning({"hidden_2": 0.75}, end=4, every=4, prune=own)
    history = model.fit(**batches(4), callbacks=[gradual]).history
    assert zeros(model) == [64, 144, 0]
    assert calls[-1] == (None, {"hidden_2": 0.75})
    assert history["sparsity"] == [0.75]


@pytest.mark.parametrize(
    "prune, returned",
    [
        (lambda m, s: None, "None"),
        (lambda m, s: network((5,)), "<Sequential"),
        (lambda m, s: m.get_weights(), r"\["),
    ],
)
def test_a_function_that_returns_no_model_of_the_same_weights_is_refused(prune, returned):
    model = compiled(network())
    with pytest.raises(ValueError, match=f"prune must return a model.* It returned: {returned}"):
        model.fit(**batches(2), callbacks=[GradualPruning(0.5, begin=0, end=1, prune=prune)])
    model.fit(**batches(1))
    assert is_plain(model)


@pytest.mark.parametrize("backup_first", [False, True])
def test_training_goes_on_in_the_schedule_after_a_restart(tmp_path, backup_first):
    def fit(*callbacks):
        model = compiled(network())
        both = [
            GradualPruning(0.9, end=1.0, every=3),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        ]
        both = both[::-1] if backup_first else both
        history = model.fit(**batches(5), epochs=4, callbacks=[*both, *callbacks])
        return model, history.history["sparsity"]

    whole, expected = fit()
    with pytest.raises(RuntimeError):
        fit(BreakOff(RuntimeError(), epoch=2, batch=1))
    resumed, sparsities = fit()
    assert sparsities == expected[2:]
    assert zeros(resumed)[:2] == zeros(whole)[:2] == [115, 173]


def test_several_fits_make_one_training_by_initial_epoch():
    model = compiled(network())
    gradual = GradualPruning(0.5, begin=0, end=8, every=2)
    with pytest.warns(UserWarning, match=r"ended at step 4, .* schedule \(8\)"):
        model.fit(**batches(4), epochs=1, callbacks=[gradual])
    assert zeros(model)[0] == 56
    model.fit(**batches(4), initial_epoch=1, epochs=2, callbacks=[gradual])
    assert zeros(model)[0] == 64


@pytest.mark.skipif(BACKEND == "torch", reason="Keras refuses steps_per_execution on torch")
def test_an_update_inside_an_execution_of_several_steps_is_made_after_it():
    model = compiled(network(), steps_per_execution=4)
    look = EachStep(lambda model: zeros(model)[0])
    model.fit(**batches(10), callbacks=[GradualPruning(0.5, begin=0, end=10, every=3), look])
    schedule = [polynomial_sparsity(t, sparsity=0.5, begin=0, end=10) for t in (3, 6, 10)]
    assert look.seen == [round(share * 128) for share in schedule]


def test_data_of_unknown_length_are_counted_as_they_come():
    def generate():
        data = batches(6)
        for start in range(0, 48, 8):
            yield data["x"][start : start + 8], data["y"][start : start + 8]

    model = compiled(network())
    look = EachStep(lambda model: zeros(model)[0])
    model.fit(generate(), verbose=0, callbacks=[GradualPruning(0.5, begin=0, end=4, every=2), look])
    assert look.seen == [0, 56, 56, 64, 64, 64]


def test_both_callbacks_and_the_with_block_go_together():
    model = compiled(network())
    with keep_zeros(model):
        model.fit(**batches(8), callbacks=[GradualPruning(0.5, every=2), KeepZeros()])
        model.fit(**batches(2))
    assert zeros(model)[:2] == [64, 96]
    assert is_plain(model)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow builds in the first step")
def test_a_model_that_fit_builds_can_be_pruned_gradually():
    model = compiled(keras.Sequential([kl.Dense(16, name="hidden"), kl.Dense(3)]))
    model.fit(**batches(8), callbacks=[GradualPruning(0.5, every=2)])
    assert zeros(model) == [64, 0]


# Bad input


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"sparsity": 1.5}, ValueError, "sparsity=1.5"),
        ({"sparsity": "half"}, TypeError, "sparsity='half'"),
        ({"sparsity": {"hidden_1": 2}}, ValueError, "sparsity=2"),
        ({"begin": 20, "end": 10}, ValueError, "end of pruning.*begin=20, end=10"),
        ({"begin": 0.9, "end": 0.5}, ValueError, "end of pruning.*begin=0.9, end=0.5"),
        ({"begin": -1}, ValueError, "begin must be a step.*begin=-1"),
        ({"end": 1.5}, ValueError, "end must be a step.*end=1.5"),
        ({"end": "late"}, ValueError, "end must be a step.*end='late'"),
        ({"every": 0}, ValueError, "every must be a whole number from 1.*every=0"),
        ({"every": 2.5}, ValueError, "every must be a whole number from 1.*every=2.5"),
        ({"initial_sparsity": 0.7}, ValueError, "must not exceed.*initial_sparsity=0.7"),
        ({"power": 0}, ValueError, "power must be a positive number.*power=0"),
        ({"prune": "weights"}, TypeError, "prune must be a function.*'weights'"),
    ],
)
def test_bad_arguments_of_gradual_pruning_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        GradualPruning(**{"sparsity": 0.5} | arguments)


def test_an_end_before_begin_is_seen_when_one_is_a_share():
    with pytest.raises(ValueError, match="begin=50, end=0.5, that is steps 50 and 4"):
        compiled(network()).fit(**batches(8), callbacks=[GradualPruning(0.5, begin=50, end=0.5)])


def test_a_sparsity_below_what_is_pruned_already_is_refused():
    weights = kp.prune_weights(compiled(network()), 0.8)
    with pytest.raises(ValueError, match="'hidden_1' 102 weights are pruned already.*prunes 64"):
        weights.fit(**batches(2), callbacks=[GradualPruning(0.5)])
    units = kp.prune_units(compiled(network()), 0.5)
    with pytest.raises(ValueError, match="'hidden_1' 8 units are pruned already.*prunes 4"):
        units.fit(**batches(2), callbacks=[GradualPruning(0.25, prune=kp.prune_units)])
    overall = functools.partial(kp.prune_weights, scope="global")
    with pytest.raises(ValueError, match=f"'{weights.name}' 256 weights are pruned already"):
        weights.fit(**batches(2), callbacks=[GradualPruning(0.5, prune=overall)])


def test_a_callback_on_an_unbuilt_model_is_refused():
    model = compiled(keras.Sequential([kl.Dense(4), kl.Dense(3)]))
    for callback in (KeepZeros(), GradualPruning(0.5, begin=0, end=1)):
        callback.set_model(model)
        callback.set_params({"epochs": 1, "steps": 1})
        with pytest.raises(ValueError, match="is not built"):
            callback.on_epoch_begin(0)
    with pytest.raises(ValueError, match="is not built"), keep_zeros(model):
        pass


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras builds before the first epoch")
@pytest.mark.parametrize("make", [KeepZeros, lambda: GradualPruning(0.5, every=1)])
def test_a_fit_of_an_unbuilt_model_is_refused(make):
    model = compiled(keras.Sequential([kl.Dense(4), kl.Dense(3)]))
    with pytest.raises(ValueError, match="is not built"):
        model.fit(**batches(2), callbacks=[make()])
    assert is_plain(model)


def test_a_model_without_kernels_is_refused():
    model = compiled(keras.Sequential([keras.Input((3,)), kl.BatchNormalization()]))
    with pytest.raises(ValueError, match="no layer with a kernel"):
        model.fit(**batches(2, (3,)), callbacks=[KeepZeros()])
    with pytest.raises(ValueError, match="no layer to prune"):
        model.fit(**batches(2, (3,)), callbacks=[GradualPruning(0.5)])


def test_a_model_of_an_output_layer_alone_has_nothing_to_prune_gradually():
    model = compiled(keras.Sequential([keras.Input((8,)), kl.Dense(3)]))
    with pytest.raises(ValueError, match="no layer to prune"):
        model.fit(**batches(2), callbacks=[GradualPruning(0.5)])
    assert is_plain(model)


def test_keep_zeros_needs_a_compiled_keras_model():
    with pytest.raises(ValueError, match="is not compiled"), keep_zeros(network()):
        pass
    with pytest.raises(TypeError, match="Expected a Keras model. Received: str"), keep_zeros("m"):
        pass


def test_shares_of_a_training_of_unknown_length_are_refused():
    data = batches(1)
    model = compiled(network())
    with pytest.raises(ValueError, match="Pass steps_per_epoch to fit.*end=0.75"):
        model.fit(
            ((data["x"], data["y"]) for _ in range(3)), verbose=0, callbacks=[GradualPruning(0.5)]
        )


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow runs it in the same thread")
def test_a_callback_outside_a_list_is_refused_where_keras_runs_it_in_another_thread():
    with pytest.raises(ValueError, match=r"Pass callbacks=\[GradualPruning"):
        compiled(network()).fit(**batches(20), callbacks=GradualPruning(0.5))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"begin": 9, "end": 5}, "begin=9, end=5"),
        ({"sparsity": 1.2}, "sparsity=1.2"),
        ({"initial_sparsity": 0.9}, "initial_sparsity=0.9"),
        ({"power": -1}, "power=-1"),
    ],
)
def test_bad_arguments_of_the_schedule_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        polynomial_sparsity(1, **{"sparsity": 0.5, "begin": 0, "end": 10} | arguments)


def test_gradual_pruning_says_of_which_kernel_nothing_is_left():
    layers = [kl.Dense(40, name="wide"), kl.Dense(1, name="thin"), kl.Dense(1, name="last")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "mse")
    gradual = kp.GradualPruning(0.99, every=1)
    with pytest.warns(UserWarning, match=r"Nothing is left of a kernel of the layers \['thin'\]"):
        model.fit(np.ones((8, 4)), np.ones(8), batch_size=2, verbose=0, callbacks=[gradual])
