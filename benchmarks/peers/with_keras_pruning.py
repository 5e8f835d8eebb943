"""The task in this library: weights, units, refitted without labels, trained on, and timed."""

import sys
from functools import partial
from pathlib import Path

import _task

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import pruning_utils as pu  # noqa: E402  # mutes TensorFlow before Keras

import keras  # noqa: E402  # isort: skip
import numpy as np  # noqa: E402  # isort: skip
import keras_pruning as kp  # noqa: E402  # isort: skip
from make_task import convolutional_network  # noqa: E402  # isort: skip

REFITTED_IMAGES = 2_000


def network(kernels: list[np.ndarray]) -> keras.Model:
    model = pu.build_dense_network()
    model.set_weights(kernels)
    return model


def one_epoch(model: keras.Model, data: pu.Dataset) -> keras.Model:
    how = {"learning_rate": _task.LEARNING_RATE, "batch_size": _task.BATCH}
    pu.train(model, data, epochs=1, callbacks=[kp.KeepZeros()], verbose=False, **how)
    return model


def weights(task: _task.Task, report: _task.Report, data: pu.Dataset) -> None:
    differ = 0
    for sparsity in task.sparsities:
        found: dict[str, list[float]] = {"at once": [], "refitted": [], "one epoch": []}
        for kernels in task.dense:
            dense = network(kernels)
            pruned = kp.prune_weights(dense, sparsity)
            for before, after in zip(kernels[:-1], pruned.get_weights(), strict=False):
                differ += int(((after != 0) != _task.smallest_kept(before, sparsity)).sum())
            x = task.x_train[:REFITTED_IMAGES]
            refitted = kp.reconstruct(pruned, dense, x, progress=False)
            for what, model in (("at once", pruned), ("refitted", refitted)):
                found[what].append(task.accuracy(model.predict_on_batch))
            found["one epoch"].append(task.accuracy(one_epoch(pruned, data).predict_on_batch))
        for what, accuracies in found.items():
            report.add(f"weights, {what}", sparsity, accuracies, "% accuracy")
    report.add("weights other than the smallest", None, [differ])


def units(task: _task.Task, report: _task.Report, data: pu.Dataset) -> None:
    for sparsity in task.unit_sparsities:
        found: dict[str, list[float]] = {"at once": [], "refitted": [], "one epoch": []}
        left, faster = [], []
        for kernels in task.dense:
            dense = network(kernels)
            pruned = kp.prune_units(dense, sparsity)
            x = task.x_train[:REFITTED_IMAGES]
            refitted = kp.shrink(kp.reconstruct(pruned, dense, x, progress=False))
            small = kp.shrink(pruned)
            left.append(100 * small.count_params() / dense.count_params())
            for what, model in (("at once", small), ("refitted", refitted)):
                found[what].append(task.accuracy(model.predict_on_batch))
            faster += speed(task, dense.predict_on_batch, small.predict_on_batch)
            found["one epoch"].append(task.accuracy(one_epoch(small, data).predict_on_batch))
        for what, accuracies in found.items():
            report.add(f"units, {what}", sparsity, accuracies, "% accuracy")
        report.add("units, parameters left", sparsity, left, "%")
        report.add("units, times as fast", sparsity, faster)


def convolutional(task: _task.Task, report: _task.Report, data: pu.Dataset) -> None:
    dense = convolutional_network()
    dense.set_weights(task.convolutional)
    sparsity = _task.UNIT_SPARSITIES[0]
    pruned = kp.prune_units(dense, sparsity)
    x = task.x_train[:REFITTED_IMAGES]
    refitted = kp.shrink(kp.reconstruct(pruned, dense, x, progress=False))
    small = kp.shrink(pruned)
    left = 100 * small.count_params() / dense.count_params()
    report.add("filters, parameters left", sparsity, [left], "%")
    for what, model in (("dense", dense), ("at once", small), ("refitted", refitted)):
        accuracy = task.accuracy(model.predict_on_batch)
        report.add(f"filters, {what}", sparsity, [accuracy], "% accuracy")
    faster = speed(task, dense.predict_on_batch, small.predict_on_batch)
    report.add("filters, times as fast", sparsity, faster)
    accuracy = task.accuracy(one_epoch(small, data).predict_on_batch)
    report.add("filters, one epoch", sparsity, [accuracy], "% accuracy")


def speed(task: _task.Task, dense, small) -> list[float]:
    images = task.x_test[: _task.TIMED_IMAGES]
    return _task.ratios(partial(small, images), partial(dense, images), task.repeats)


def times(task: _task.Task, report: _task.Report) -> None:
    kernel = task.large_kernel()
    layer = keras.layers.Dense(kernel.shape[1], use_bias=False, name="large")
    model = keras.Sequential([keras.Input(kernel.shape[:1]), layer])
    model.set_weights([kernel])
    prune = partial(kp.prune_weights, model, _task.LARGE_SPARSITY, layers=["large"])
    base = partial(_task.partition, kernel)
    found = _task.ratios(base, prune, task.repeats)
    report.add("prune 10 million weights", None, found, "x np.partition")
    mask = partial(kp.weight_mask, kernel, _task.LARGE_SPARSITY)
    found = _task.ratios(base, mask, task.repeats)
    report.add("weight_mask of 10 million", None, found, "x np.partition")
    dense = network(task.dense[0])
    sparse = kp.SparseModel(kp.prune_weights(dense, _task.SPEED_SPARSITY))
    found = speed(task, dense.predict_on_batch, sparse.predict)
    report.add("zeros, times as fast", _task.SPEED_SPARSITY, found)


def main() -> None:
    options = _task.arguments(__doc__.splitlines()[0])
    task = _task.Task(options.task, options.quick)
    backend = keras.backend.backend()
    report = _task.Report("this library", ["keras", backend, "numpy"], options.results)
    split = task.x_train, task.y_train, task.x_test, task.y_test
    data = pu.Dataset("mnist", "MNIST", *split, tuple("0123456789"))
    dense = [task.accuracy(network(kernels).predict_on_batch) for kernels in task.dense]
    report.add("dense", None, dense, "% accuracy")
    weights(task, report, data)
    units(task, report, data)
    convolutional(task, report, data)
    times(task, report)
    report.save()


if __name__ == "__main__":
    main()
