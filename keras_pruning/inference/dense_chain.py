"""A chain of Dense layers as arrays, without what pruning cut off.

Keras traces and compiles a model anew for every shape, so a network cannot get smaller
there without a wait. As arrays it can: what pruning cut off is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import activations
from keras import layers as kl

from keras_pruning.models import linear_chain

__all__ = [
    "ELEMENTWISE",
    "Affine",
    "DenseStep",
    "compact",
    "read_batch_norm",
    "read_dense_chain",
]

FloatArray = npt.NDArray[np.float32]
Affine = tuple[Any, Any]  # x * scale + offset: numbers, or arrays (units,)

_IDENTITY: Affine = (1.0, 0.0)

ELEMENTWISE = {
    getattr(activations, name)
    for name in (
        "elu", "exponential", "gelu", "hard_sigmoid", "leaky_relu", "linear", "mish", "relu",
        "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh",
    )
}  # fmt: skip


@dataclass(frozen=True)
class DenseStep:
    """One step `activation(x @ kernel + bias)`; kernel `(inputs, units)`, bias `(units,)`."""

    kernel: FloatArray
    bias: FloatArray
    activation: Callable[[Any], Any]
    name: str = ""  # of the Keras layer


def read_dense_chain(
    model: keras.Model, weights: Sequence[npt.NDArray[Any]] | None = None
) -> list[DenseStep] | None:
    """Returns the model's Dense steps, or `None` if it is more than a chain of them.

    Understood are Rescaling and Flatten before the first Dense layer, Dense layers in
    float32, Activation, ReLU and BatchNormalization behind them, Dropout anywhere.
    Rescaling is folded into the first step, BatchNormalization, as it is in inference,
    into the Dense layer it follows, or behind an activation into the next one: columns
    and rows are scaled, so zeros stay zeros.

    Args:
        model: A built Keras model.
        weights: Arrays to take instead of `model.get_weights()`, in the same order.
    """
    layers = linear_chain(model)
    has_loss = bool(model.losses)  # regularisation is part of the loss Keras reports
    if layers is None or has_loss or model.inputs[0].dtype in ("float16", "bfloat16"):
        return None
    given = dict(zip(map(id, model.weights), weights or (), strict=False))
    waiting = _IDENTITY  # what the next Dense layer has to take in
    steps: list[DenseStep] = []
    for layer in layers:
        if layer.dtype_policy.name != "float32":
            return None
        if type(layer) in (kl.InputLayer, kl.Dropout):
            continue
        activation = _activation(layer)
        is_linear = bool(steps) and steps[-1].activation is activations.linear
        if type(layer) is kl.Dense and _is_plain(layer):
            steps.append(_after_affine(waiting, _read_dense(layer, given)))
            waiting = _IDENTITY
        elif activation and is_linear:
            steps[-1] = replace(steps[-1], activation=activation)
        elif type(layer) is kl.BatchNormalization and _is_plain(layer):
            norm = read_batch_norm(layer, given)
            if is_linear:
                steps[-1] = _before_affine(steps[-1], norm)
            else:
                waiting = _then(waiting, norm)
        elif not steps and type(layer) is kl.Rescaling and _is_of_numbers(layer):
            waiting = _then(waiting, (layer.scale, layer.offset))
        elif steps or type(layer) is not kl.Flatten or layer.data_format == "channels_first":
            return None
    if not steps or waiting is not _IDENTITY:
        return None
    if any(step.activation not in ELEMENTWISE for step in steps[:-1]):
        return None
    return steps


def compact(steps: list[DenseStep]) -> list[DenseStep]:
    """Returns equal steps without the units that are constant or that nobody hears.

    A unit whose column is zero sends on `activation(bias)`, which is folded into the
    next bias; a unit whose row in the next kernel is zero is not heard.
    """
    steps = list(steps)
    for i, (step, after) in enumerate(zip(steps, steps[1:], strict=False)):
        alive = (step.kernel != 0).any(axis=0)
        if alive.all():
            continue
        constants = keras.ops.convert_to_numpy(step.activation(_tensor(step.bias[~alive])))
        bias = after.bias + constants @ after.kernel[~alive]
        after = replace(after, kernel=after.kernel[alive], bias=bias)
        steps[i : i + 2] = [_take_units(step, alive), after]
    for i in range(len(steps) - 2, -1, -1):
        heard = (steps[i + 1].kernel != 0).any(axis=1)
        if heard.all():
            continue
        steps[i] = _take_units(steps[i], heard)
        steps[i + 1] = replace(steps[i + 1], kernel=steps[i + 1].kernel[heard])
    return steps


def _tensor(values: FloatArray) -> Any:
    return keras.ops.convert_to_tensor(values)


def _take_units(step: DenseStep, kept: npt.NDArray[np.bool_]) -> DenseStep:
    return replace(step, kernel=step.kernel[:, kept], bias=step.bias[kept])


def _read_dense(layer: kl.Dense, given: Mapping[int, npt.NDArray[Any]]) -> DenseStep:
    kernel = _values(layer.kernel, given)
    bias = np.zeros(kernel.shape[1], np.float32)
    if layer.use_bias:
        bias += _values(layer.bias, given)
    return DenseStep(kernel, bias, layer.activation, layer.name)


def read_batch_norm(layer: kl.BatchNormalization, given: Mapping[int, npt.NDArray[Any]]) -> Affine:
    """Returns what the layer multiplies by and what it adds, each `(units,)`."""
    mean, variance = _values(layer.moving_mean, given), _values(layer.moving_variance, given)
    scale = 1 / np.sqrt(variance + np.float32(layer.epsilon))
    if layer.scale:
        scale = scale * _values(layer.gamma, given)
    offset = -mean * scale
    if layer.center:
        offset = offset + _values(layer.beta, given)
    return scale, offset


def _then(first: Affine, second: Affine) -> Affine:
    return first[0] * second[0], first[1] * second[0] + second[1]


def _before_affine(step: DenseStep, affine: Affine) -> DenseStep:
    """Returns one step that is `step`, then `affine`; `step` has no activation."""
    scale, offset = affine
    return replace(step, kernel=step.kernel * scale, bias=step.bias * scale + offset)


def _after_affine(affine: Affine, step: DenseStep) -> DenseStep:
    """Returns one step that is `affine`, then `step`."""
    if affine is _IDENTITY:
        return step
    inputs = len(step.kernel)
    scale, offset = (np.broadcast_to(np.asarray(a, np.float32), inputs) for a in affine)
    return replace(step, kernel=scale[:, None] * step.kernel, bias=step.bias + offset @ step.kernel)


def _values(variable: keras.Variable, given: Mapping[int, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    array = given.get(id(variable))
    return keras.ops.convert_to_numpy(variable) if array is None else array


def _is_plain(layer: keras.Layer) -> bool:
    """Whether the layer computes in float32, unquantised, on inputs of rank 2."""
    return layer.dtype_policy.name == "float32" and len(layer.input.shape) == 2


def _is_of_numbers(layer: kl.Rescaling) -> bool:
    return np.ndim(layer.scale) == np.ndim(layer.offset) == 0


def _activation(layer: keras.Layer) -> Callable[[Any], Any] | None:
    """The function of a layer that is an activation and nothing else, else `None`."""
    if type(layer) is kl.Activation:
        return layer.activation
    if (
        type(layer) is not kl.ReLU
        or layer.max_value is not None
        or layer.negative_slope
        or layer.threshold
    ):
        return None
    return activations.relu
