"""LoRA and int4: what is pruned is what the layer computes with."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def data(n=64, inputs=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, inputs)).astype("float32"), rng.integers(0, 3, n)


def network(lora=True):
    """Two Dense layers; the first has LoRA weights large enough to change the ranking."""
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(12, activation="relu", name="hidden"), kl.Dense(3, name="logits")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    if lora:
        add_lora(model.get_layer("hidden"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def add_lora(layer, rank=2):
    layer.enable_lora(rank)
    rng = np.random.default_rng(1)
    for variable in (layer.lora_kernel_a, layer.lora_kernel_b):
        variable.assign(rng.normal(size=variable.shape))


def merged(model):
    """The kernel that the first layer computes with, as `layer.kernel` shows it."""
    return numpy(model.get_layer("hidden").kernel)


def without_smallest(kernel, sparsity):
    order = np.argsort(np.abs(kernel).ravel(), kind="stable")
    pruned = kernel.copy().ravel()
    pruned[order[: round(sparsity * kernel.size)]] = 0
    return pruned.reshape(kernel.shape)


def without_weakest_columns(kernel, count):
    pruned = kernel.copy()
    pruned[:, np.argsort(np.linalg.norm(kernel, axis=0))[:count]] = 0
    return pruned


def outputs_with(model, kernel, x):
    hidden, logits = (model.get_layer(name) for name in ("hidden", "logits"))
    activations = np.maximum(x @ kernel + numpy(hidden.bias), 0)
    return activations @ numpy(logits.kernel) + numpy(logits.bias)


def test_of_a_lora_layer_the_merged_kernel_is_ranked_and_pruned():
    model = network()
    pruned = kp.prune_weights(model, 0.75)
    expected = without_smallest(merged(model), 0.75)
    np.testing.assert_allclose(merged(pruned), expected, rtol=1e-5, atol=1e-7)
    assert (merged(pruned) == 0).sum() == 72


def test_a_pruned_lora_model_computes_with_the_merged_and_pruned_kernel():
    model = network()
    x, _ = data()
    expected = outputs_with(model, without_smallest(merged(model), 0.75), x)
    answers = numpy(kp.prune_weights(model, 0.75)(x))
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5)


def test_the_copy_holds_no_lora_weights_and_the_model_keeps_its_own():
    model = network()
    before = [w.copy() for w in model.get_weights()]
    pruned = kp.prune_weights(model, 0.75)
    assert not pruned.get_layer("hidden").lora_enabled
    assert model.get_layer("hidden").lora_enabled
    assert [v.shape for v in pruned.weights] == [v.shape for v in network(lora=False).weights]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_zeros_of_a_pruned_lora_model_survive_saving(tmp_path):
    model = network()
    kp.prune_weights(model, 0.75).save(tmp_path / "pruned.keras")
    loaded = keras.saving.load_model(tmp_path / "pruned.keras")
    expected = without_smallest(merged(model), 0.75)
    np.testing.assert_array_equal(merged(loaded) == 0, expected == 0)


def test_a_pruned_lora_model_is_trained_on_with_its_zeros_kept():
    pruned = kp.prune_weights(network(), 0.75)
    gone = merged(pruned) == 0
    before = merged(pruned)
    pruned.fit(*data(), epochs=2, verbose=0, callbacks=[kp.KeepZeros()])
    assert not merged(pruned)[gone].any()
    assert (merged(pruned)[~gone] != before[~gone]).any()  # LoRA had frozen the kernel


def test_units_of_a_lora_layer_go_by_the_norms_of_the_merged_kernel():
    model = network()
    pruned = kp.prune_units(model, 0.5)
    expected = without_weakest_columns(merged(model), 6)
    np.testing.assert_allclose(merged(pruned), expected, rtol=1e-5, atol=1e-7)
    assert kp.shrink(pruned).get_layer("hidden").units == 6


def test_an_embedding_and_an_einsum_layer_with_lora_are_pruned_as_they_compute():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    x = kl.Embedding(20, 8, name="embedding")(inputs)
    x = kl.EinsumDense("abc,cd->abd", (None, 8), name="einsum")(x)
    model = keras.Model(inputs, kl.Dense(3)(kl.GlobalAveragePooling1D()(x)))
    embedding, einsum = model.get_layer("embedding"), model.get_layer("einsum")
    for layer, names in ((embedding, "embeddings"), (einsum, "kernel")):
        layer.enable_lora(2)
        rng = np.random.default_rng(1)
        for end in "ab":
            variable = getattr(layer, f"lora_{names}_{end}")
            variable.assign(rng.normal(size=variable.shape))
    pruned = kp.prune_weights(model, 0.5)
    for layer, name in ((embedding, "embeddings"), (einsum, "kernel")):
        values = numpy(getattr(layer, name))
        found = numpy(getattr(pruned.get_layer(layer.name), name))
        np.testing.assert_allclose(found, without_smallest(values, 0.5), rtol=1e-5, atol=1e-7)


def test_the_accuracy_of_a_sweep_moves_with_the_merged_kernel():
    model = network()
    x, _ = data(512)
    y = numpy(model(x)).argmax(axis=1)  # so that the unpruned model is always right
    table = kp.sparsity_sweep(
        model, x, y, methods=["weights"], sparsities=[0, 0.5, 0.9], progress=False
    )
    expected = [
        (outputs_with(model, without_smallest(merged(model), s), x).argmax(axis=1) == y).mean()
        for s in (0, 0.5, 0.9)
    ]
    assert expected[0] == 1 and expected[2] < 0.9
    np.testing.assert_allclose(table["accuracy"], expected, atol=0.005)
    np.testing.assert_allclose(table["sparsity_measured"], [0, 0.5, 0.9], atol=0.01)


@pytest.mark.parametrize("callback", [kp.KeepZeros, lambda: kp.GradualPruning(0.5, end=4, every=1)])
def test_training_with_zeros_refuses_a_model_that_still_has_lora_weights(callback):
    model = network()
    with pytest.raises(ValueError, match="hidden.*LoRA|LoRA.*hidden"):
        model.fit(*data(), epochs=2, verbose=0, callbacks=[callback()])


def test_taylor_scores_of_a_lora_model_are_those_of_the_merged_kernel_or_refused_in_words():
    model = network()
    x, y = data()
    try:
        scores = kp.taylor_scores(model, x, y)
    except ValueError as error:
        assert "LoRA" in str(error)
        return
    merged_model = kp.prune_weights(model, 0)  # nothing pruned: the same without LoRA
    plain = network(lora=False)
    plain.set_weights(merged_model.get_weights())
    expected = kp.taylor_scores(plain, x, y)
    np.testing.assert_allclose(scores["hidden"][0], expected["hidden"][0], rtol=1e-3, atol=1e-6)


def test_the_summary_of_a_lora_model_counts_in_the_merged_kernel():
    model = network(lora=False)
    hidden = model.get_layer("hidden")
    hidden.kernel.assign(np.zeros((8, 12)))
    add_lora(hidden)
    row = kp.summary(model).iloc[0]
    assert (row["weights"], row["zeros"]) == (96, np.count_nonzero(merged(model) == 0))


def test_the_summary_of_an_int4_model_counts_weights_not_bytes():
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(64, name="hidden"), kl.Dense(2, name="logits")]
    model = keras.Sequential([keras.Input((128,)), *layers])
    try:
        model.quantize("int4")
    except (NotImplementedError, ValueError) as error:  # not with every Keras and backend
        pytest.skip(str(error))
    weights = kp.summary(model).set_index("layer")["weights"]
    assert weights.to_dict() == {"hidden": 128 * 64, "logits": 64 * 2}
    numbers = sum(np.prod(weight.shape) for weight in model.weights)
    halves = (128 * 64 + 64 * 2) // 2  # two weights in a number
    found = kp.measure(model, np.zeros((1, 128), "float32"), repeats=1)
    assert found.parameters == numbers + halves
