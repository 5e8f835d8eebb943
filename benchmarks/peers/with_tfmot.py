"""The task in tensorflow-model-optimization: magnitude pruning of legacy Keras models.

It prunes while a model trains. "At once" is one step of training at a learning rate of 0, and
"one epoch" a training that prunes at its first step and then every hundredth, its default. It has
no pruning of units, and its models keep their shapes.
"""

import os
from functools import partial

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import _task
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

sparsity_api = tfmot.sparsity.keras


def network(kernels: list[np.ndarray]) -> tf_keras.Model:
    model = tf_keras.Sequential([tf_keras.layers.InputLayer((len(kernels[0]),))])
    for kernel in kernels:
        last = kernel is kernels[-1]
        activation = None if last else "relu"
        model.add(tf_keras.layers.Dense(kernel.shape[1], activation, use_bias=False))
    model.set_weights(kernels)
    return model


def wrapped(model: tf_keras.Model, sparsity: float) -> tf_keras.Model:
    """All layers but that of the outputs, wrapped; their weights stay those of the model."""
    schedule = sparsity_api.ConstantSparsity(sparsity, begin_step=1)  # its steps count from 1

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if layer is model.layers[-1]:
            return layer
        return sparsity_api.prune_low_magnitude(layer, schedule)

    return tf_keras.models.clone_model(model, clone_function=wrap)


def train(model: tf_keras.Model, optimizer, x: np.ndarray, y: np.ndarray) -> None:
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    update = sparsity_api.UpdatePruningStep()
    model.fit(x, y, batch_size=_task.BATCH, verbose=0, callbacks=[update])


def accuracy(task: _task.Task, model: tf_keras.Model) -> float:
    return task.accuracy(lambda images: model.predict_on_batch(_task.flat(images)))


def weights(task: _task.Task, report: _task.Report) -> None:
    x, y, differ = _task.flat(task.x_train), task.y_train, 0
    for sparsity in task.sparsities:
        found: dict[str, list[float]] = {"at once": [], "one epoch": []}
        zeros = []
        for kernels in task.dense:
            pruned = wrapped(network(kernels), sparsity)
            train(pruned, tf_keras.optimizers.SGD(0.0), x[: _task.BATCH], y[: _task.BATCH])
            stripped = sparsity_api.strip_pruning(pruned)
            for before, after in zip(kernels[:-1], stripped.get_weights(), strict=False):
                differ += int(((after != 0) != _task.smallest_kept(before, sparsity)).sum())
            found["at once"].append(accuracy(task, stripped))
            pruned = wrapped(network(kernels), sparsity)
            rate = tf_keras.optimizers.schedules.CosineDecay(_task.LEARNING_RATE, task.steps)
            train(pruned, tf_keras.optimizers.Adam(rate), x, y)
            stripped = sparsity_api.strip_pruning(pruned)
            hidden = stripped.get_weights()[:-1]
            share = sum((k == 0).sum() for k in hidden) / sum(k.size for k in hidden)
            zeros.append(100 * share)
            found["one epoch"].append(accuracy(task, stripped))
        for what, accuracies in found.items():
            report.add(f"weights, {what}", sparsity, accuracies, "% accuracy")
        report.add("weights, zeros after one epoch", sparsity, zeros, "%")
    report.add("weights other than the smallest", None, [differ])


def times(task: _task.Task, report: _task.Report) -> None:
    kernel = task.large_kernel()
    schedule = sparsity_api.ConstantSparsity(_task.LARGE_SPARSITY, begin_step=0, frequency=1)
    layer = tf_keras.layers.Dense(kernel.shape[1], use_bias=False)
    layer = sparsity_api.prune_low_magnitude(layer, schedule, input_shape=kernel.shape[:1])
    tf_keras.Sequential([layer])
    layer.layer.set_weights([kernel])
    layer.pruning_step.assign(0)

    @tf.function
    def prune() -> None:
        layer.pruning_obj.conditional_mask_update()

    found = _task.ratios(partial(_task.partition, kernel), prune, task.repeats)
    report.add("prune 10 million weights", None, found, "x np.partition")
    dense = network(task.dense[0])
    masks = [_task.smallest_kept(k, _task.SPEED_SPARSITY) for k in task.dense[0][:-1]]
    *hidden, last = task.dense[0]
    pruned = network([*(k * m for k, m in zip(hidden, masks, strict=True)), last])
    x = _task.flat(task.x_test[: _task.TIMED_IMAGES])
    before, after = (partial(model.predict_on_batch, x) for model in (dense, pruned))
    found = _task.ratios(after, before, task.repeats)
    report.add("zeros, times as fast", _task.SPEED_SPARSITY, found)


def refuses_keras_3(report: _task.Report) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    try:
        sparsity_api.prune_low_magnitude(model)
    except ValueError as error:
        report.say(f"a model of Keras {keras.__version__}", f"refused: {str(error)[:80]} ...")
    else:
        report.say(f"a model of Keras {keras.__version__}", "accepted")


def main() -> None:
    options = _task.arguments(__doc__.splitlines()[0])
    task = _task.Task(options.task, options.quick)
    packages = ["tensorflow-model-optimization", "tf_keras", "tensorflow", "numpy"]
    report = _task.Report("tfmot", packages, options.results)
    dense = [accuracy(task, network(kernels)) for kernels in task.dense]
    report.add("dense", None, dense, "% accuracy")
    weights(task, report)
    times(task, report)
    refuses_keras_3(report)
    report.save()


if __name__ == "__main__":
    main()
