"""The task in PQuantML: layers that prune (and quantise) themselves while a Keras model trains.

It has no pruning without training. "One epoch" is one epoch of its PDP method, which reaches the
sparsity in that epoch (epsilon 1), quantization off; then 80 % once more with its default trained
fixed point of 8 bits. Units pruned by it stay in the model as zeros.
"""

import _task
import keras
import numpy as np
import pquant
from pquant.core.keras.train import PQuantCallback


def network(kernels: list[np.ndarray]) -> keras.Model:
    x = inputs = keras.Input((len(kernels[0]),))
    for place, kernel in enumerate(kernels):
        last = place + 1 == len(kernels)
        name, activation = ("logits", None) if last else (f"hidden_{place + 1}", "relu")
        x = keras.layers.Dense(kernel.shape[1], activation, use_bias=False, name=name)(x)
    model = keras.Model(inputs, x)
    model.set_weights(kernels)
    return model


def compressed(
    task: _task.Task,
    kernels: list[np.ndarray],
    sparsity: float,
    *,
    structured: bool = False,
    quantized: bool = False,
) -> keras.Model:
    """A model with its layers, after one epoch."""
    config = pquant.pdp_config()
    training, pruning = config.training_parameters, config.pruning_parameters
    training.pretraining_epochs, training.epochs, training.fine_tuning_epochs = 0, 1, 0
    pruning.sparsity, pruning.epsilon, pruning.structured_pruning = sparsity, 1.0, structured
    pruning.disable_pruning_for_layers = ["logits"]
    config.quantization_parameters.enable_quantization = quantized
    model = pquant.add_compression_layers(network(kernels), config)
    rate = keras.optimizers.schedules.CosineDecay(_task.LEARNING_RATE, task.steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    own = PQuantCallback(config, log_ebops=False, log_keep_ratio=False)
    x = _task.flat(task.x_train)
    model.fit(x, task.y_train, _task.BATCH, own.total_epochs, verbose=0, callbacks=[own])
    return model


def accuracy(task: _task.Task, model: keras.Model) -> float:
    return task.accuracy(lambda images: model.predict_on_batch(_task.flat(images)))


def hidden_kernels(model: keras.Model) -> list[np.ndarray]:
    """Of its own layers, which have names of their own, without the outputs."""
    kernels = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    return [keras.ops.convert_to_numpy(kernel) for kernel in kernels[:-1]]


def zeros(model: keras.Model) -> float:
    """Percent of the weights of the hidden layers."""
    kernels = hidden_kernels(model)
    return 100 * sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)


def main() -> None:
    options = _task.arguments(__doc__.splitlines()[0])
    task = _task.Task(options.task, options.quick)
    report = _task.Report(
        "PQuantML", ["pquant-ml", "keras", "tensorflow", "numpy"], options.results
    )
    dense = [accuracy(task, network(kernels)) for kernels in task.dense]
    report.add("dense", None, dense, "% accuracy")
    for sparsity in task.sparsities:
        models = [compressed(task, kernels, sparsity) for kernels in task.dense]
        found = [accuracy(task, model) for model in models]
        report.add("weights, one epoch", sparsity, found, "% accuracy")
        found = [zeros(model) for model in models]
        report.add("weights, zeros after one epoch", sparsity, found, "%")
    for sparsity in task.unit_sparsities:
        models = [compressed(task, k, sparsity, structured=True) for k in task.dense]
        found = [accuracy(task, model) for model in models]
        report.add("units, one epoch", sparsity, found, "% accuracy")
        sizes = [sum(k.size for k in hidden_kernels(model)) for model in models]
        before = [sum(k.size for k in kernels[:-1]) for kernels in task.dense]
        left = [100 * a / b for a, b in zip(sizes, before, strict=True)]
        report.add("units, parameters left", sparsity, left, "%")
    model = compressed(task, task.dense[0], _task.SPARSITIES[0], quantized=True)
    found = [accuracy(task, model)]
    report.add("weights in 8 bits, one epoch", _task.SPARSITIES[0], found, "% accuracy")
    pruned = compressed(task, task.dense[0], _task.SPEED_SPARSITY)
    x = _task.flat(task.x_test[: _task.TIMED_IMAGES])
    before = network(task.dense[0])
    found = _task.ratios(
        lambda: pruned.predict_on_batch(x), lambda: before.predict_on_batch(x), task.repeats
    )
    report.add("zeros, times as fast", _task.SPEED_SPARSITY, found)
    report.save()


if __name__ == "__main__":
    main()
