"""How much the loss depends on each weight or unit: first-order Taylor scores."""

from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_pruning.models import (
    KernelLayer,
    all_layers,
    check_data,
    copy_model,
    kernel_layers,
    own_trainable_weights,
    without_lora,
)
from keras_pruning.pruning.scores import check_method

__all__ = ["taylor_scores"]

FloatArray = npt.NDArray[Any]


def taylor_scores(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    method: Literal["weights", "units"] = "weights",
    batch_size: int = 1000,
) -> dict[str, Any]:
    """Returns how much the loss would change, to first order, without each weight or unit.

    Of a weight `|w dL/dw|`, of a unit `|sum w dL/dw|` over its weights and its bias, with
    L the compiled loss averaged over the data (Molchanov et al. 2017, "Pruning
    Convolutional Neural Networks for Resource Efficient Inference"). The model runs as in
    prediction: no dropout, the moving statistics of BatchNormalization; penalties on the
    weights do not count. The result is what `score=` takes:

        prune_weights(model, 0.9, score=taylor_scores(model, x, y))
        prune_units(model, 0.5, score=taylor_scores(model, x, y, method="units"))

    Args:
        model: A built and compiled Keras model. It is not changed.
        x: Inputs, shape `(examples, ...)`, or a list or dict of such arrays; or a finite
            `tf.data.Dataset`, `PyDataset` or `DataLoader`, read once into memory. Some
            thousand training examples are enough.
        y: Targets, of the same length; of a data set, which holds them, `None`.
        method: "weights" for `prune_weights`, "units" for `prune_units`.
        batch_size: Examples at a time; the result is that of all of them together.

    Returns:
        Layer name to a list of arrays, one a kernel, each of the kernel's shape; for
        "units" layer name to an array of shape `(units,)`. Frozen layers too; not those
        quantised to integers, which have no gradient.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not compiled or not built, x and y differ in length,
            or the method is unknown.

    Examples:
        >>> dense = keras.layers.Dense
        >>> layers = [keras.Input((8,)), dense(10, name="hidden"), dense(3, name="out")]
        >>> model = keras.Sequential(layers)
        >>> model.compile("sgd", "mse")
        >>> scores = taylor_scores(model, np.ones((4, 8)), np.ones((4, 3)))
        >>> {name: [array.shape for array in arrays] for name, arrays in scores.items()}
        {'hidden': [(8, 10)], 'out': [(10, 3)]}
    """
    x, y = check_data(model, x, y)
    check_method(method)
    model = without_lora(model)  # what it computes with is what is pruned
    gradients = _gradients(model, x, y, batch_size)
    entries = [
        entry
        for entry in kernel_layers(model)
        if all(id(kernel) in gradients for kernel in entry.kernels)
        and (method == "weights" or entry.has_units)
    ]

    def terms(variable: keras.Variable) -> FloatArray:
        return _as_numpy(variable) * gradients[id(variable)]

    if method == "units":
        return {entry.name: _unit_scores(entry, terms) for entry in entries}
    return {entry.name: [np.abs(terms(kernel)) for kernel in entry.kernels] for entry in entries}


class _Recorder(keras.optimizers.Optimizer):
    """An optimizer that adds up the gradients, times its learning rate, and changes no weight."""

    def build(self, variables: list[keras.Variable]) -> None:
        if not self.built:
            super().build(variables)
            self.sums = self.add_optimizer_variables(variables, "sum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        total = self.sums[self._get_variable_index(variable)]
        self.assign_add(total, ops.cast(learning_rate, total.dtype) * gradient)


def _gradients(model: keras.Model, x: Any, y: Any, batch_size: int) -> dict[int, FloatArray]:
    """Returns the gradient of the mean loss by the id of each variable that has one."""
    scratch = copy_model(model)
    for layer in all_layers(scratch):  # a frozen kernel can be pruned as well
        layer.trainable = True
        for variable in own_trainable_weights(layer):
            variable.trainable, variable.regularizer = True, None
    # Keras then calls the model without training=True.
    scratch._call_has_training_arg = False
    in_half = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    recorder = _Recorder(1.0, loss_scale_factor=1024.0 if in_half else None, name="recorder")
    recorder.build(scratch.trainable_variables)
    scratch.optimizer = recorder
    scratch.train_function = None
    examples = len(keras.tree.flatten(x)[0])
    for start in range(0, examples, batch_size):
        part_x, part_y = (
            keras.tree.map_structure(lambda a: a[start : start + batch_size], data)  # noqa: B023
            for data in (x, y)
        )
        recorder.learning_rate = len(keras.tree.flatten(part_x)[0]) / examples
        scratch.train_on_batch(part_x, part_y)
    sums = dict(zip(map(id, scratch.trainable_variables), recorder.sums, strict=True))
    pairs = zip(model.weights, scratch.weights, strict=True)
    return {id(own): _as_numpy(sums[id(copied)]) for own, copied in pairs if id(copied) in sums}


def _unit_scores(entry: KernelLayer, terms: Any) -> FloatArray:
    columns = entry.unit_columns(terms)
    scores = columns.reshape(-1, columns.shape[-1]).sum(axis=0)
    n_kernels = len(entry.unit_slices) - len(entry.unit_vectors)
    for vector, axis, gates in entry.unit_slices[n_kernels:]:
        values = np.moveaxis(terms(vector), axis, -1)  # all of a unit's entries
        scores = scores + values.reshape(-1, values.shape[-1] // gates).sum(axis=0)
    return np.abs(scores)


def _as_numpy(variable: keras.Variable) -> FloatArray:
    """As float32 at least: products of half-precision numbers underflow."""
    values = ops.convert_to_numpy(variable)
    return values.astype(np.promote_types(values.dtype, np.float32))
