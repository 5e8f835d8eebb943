"""Training that keeps the zeros: one callback in an ordinary `fit`, on every Keras backend.

The zeros are the mask, so there is no state to carry: the optimizer's `apply` of the
model being fitted is wrapped, the wrapper sees which weights are zero before the update,
and sets those back to zero after it. Gradient masks would not do, since momentum, weight
decay and moving averages move a weight without a gradient; `variable.constraint` would
not, since Keras compiles the training step and applies moving averages after it.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import ml_dtypes
from keras import ops

from keras_pruning.graph import KernelLayer, batch_norms_after, kernel_layers

__all__ = ["KeepZeros", "inner_optimizer", "keep_zeros", "moving_average"]


class KeepZeros(keras.callbacks.Callback):
    """Callback that keeps pruned weights at exactly 0.0 in `fit`.

    Every weight of a kernel that is zero before an optimizer step is zero after it,
    with any optimizer. So is the bias of a unit whose weights are all zero, and the
    scale and offset of a BatchNormalization behind it, where they were zero; its moving
    mean then stays zero by itself. A weight that is not zero never becomes exactly zero:
    should an update hit 0.0, the weight becomes the smallest positive number, so that no
    more than what was pruned counts as pruned. (A kernel without any zero, then, is
    trained as without this callback.) Weights set to zero in the middle of training, by
    another callback say, are kept from the next step on.

    The optimizer is as before when training ends. Keras calls no callback when `fit` is
    broken off by an error or Ctrl-C; the next `fit` or `train_on_batch` then takes back
    what was left. To be rid of it at once, use `with keep_zeros(model): model.fit(...)`.
    Nothing of this is in a saved model.

    Raises:
        ValueError: When training begins: if the model is not built or has no layer with
            kernels.

    Example:
    >>> import numpy as np
    >>> layer = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> layer.set_weights([np.array([[0.0], [1.0], [0.0], [2.0]])])
    >>> model.compile("adam", "mse")
    >>> _ = model.fit(np.ones((32, 4)), np.ones(32), verbose=0, callbacks=[KeepZeros()])
    >>> layer.get_weights()[0].ravel() != 0
    array([False,  True, False,  True])
    """

    def __init__(self) -> None:
        super().__init__()
        self._release: Callable[[], None] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes back what a broken fit may have left."""
        self._let_go()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Wraps the optimizer, in the first epoch.

        Not in `on_train_begin`, where another callback may still load weights.
        """
        if self._release is None:
            self._release = _hold(self.model, until_next_fit=True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the optimizer as it was."""
        self._let_go()

    def _let_go(self) -> None:
        if self._release is not None:
            self._release()
            self._release = None


@contextlib.contextmanager
def keep_zeros(model: keras.Model) -> Iterator[keras.Model]:
    """Keeps the pruned weights of a model at zero in all training inside the `with` block.

    As `KeepZeros`, for `fit`, `train_on_batch` and loops that call the optimizer, and
    closed in every case, also by an error or Ctrl-C. The model may be compiled anew inside.

    Args:
        model: A built and compiled Keras model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built, not compiled, or has no layer with kernels.

    Example:
    >>> import numpy as np
    >>> layer = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((4,)), layer])
    >>> layer.set_weights([np.array([[0.0], [1.0], [0.0], [2.0]])])
    >>> model.compile("adam", "mse")
    >>> with keep_zeros(model):
    ...     _ = model.train_on_batch(np.ones((8, 4)), np.ones(8))
    >>> layer.get_weights()[0].ravel() != 0
    array([False,  True, False,  True])
    """
    release = _hold(model, until_next_fit=False)
    compile_model = model.compile

    def compile_and_hold(*args: Any, **kwargs: Any) -> None:
        nonlocal release
        release()
        compile_model(*args, **kwargs)
        release = _hold(model, until_next_fit=False)

    model.compile = compile_and_hold
    try:
        yield model
    finally:
        del model.compile
        release()


def inner_optimizer(model: keras.Model) -> keras.Optimizer:
    """Returns the optimizer that updates the weights.

    A LossScaleOptimizer has it inside, and on JAX calls its `apply` alone.
    """
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def moving_average(optimizer: keras.Optimizer, variable: keras.Variable) -> Any | None:
    """Returns the variable with which `use_ema` overwrites the given one, or `None`."""
    if not optimizer.use_ema or not optimizer.built:
        return None
    return optimizer._model_variables_moving_average[optimizer._get_variable_index(variable)]


def _hold(model: keras.Model, *, until_next_fit: bool) -> Callable[[], None]:
    """Makes the optimizer keep the zeros of `model`; returns a function that undoes it."""
    entries = kernel_layers(model)
    if not entries:
        raise ValueError(
            f"Model '{model.name}' has no layer with a kernel, so there are no zeros to keep."
        )
    if not model.compiled:
        raise ValueError(
            f"Model '{model.name}' is not compiled, so it has no optimizer. "
            "Call model.compile(...) first."
        )
    _warn_of_zero_kernels(entries)
    if not until_next_fit:
        model.make_train_function()  # takes back what a broken fit left, see below
    optimizer = inner_optimizer(model)
    if hasattr(optimizer.apply, "keeps_zeros_of"):
        return lambda: None  # held already: by keep_zeros around this fit, or a second callback
    instance_apply = vars(optimizer).get("apply")
    optimizer.apply = _apply_and_keep_zeros(model, optimizer, entries)
    model.make_train_function(force=True)  # a traced training step knows only the old `apply`
    held = True

    def release() -> None:
        nonlocal held
        if not held:
            return
        held = False
        del optimizer.apply
        if instance_apply is not None:
            optimizer.apply = instance_apply
        if until_next_fit:
            del model.make_train_function
        model.train_function = None

    if until_next_fit:
        # Keras tells no callback of a fit that breaks off. The next one begins by calling this.
        def make_train_function(force: bool = False) -> Any:
            release()
            return model.make_train_function(force)

        model.make_train_function = make_train_function
    return release


def _apply_and_keep_zeros(
    model: keras.Model, optimizer: keras.Optimizer, entries: list[KernelLayer]
) -> Callable[..., None]:
    update = optimizer.apply
    layers = [(entry, _unit_vectors(model, entry)) for entry in entries]

    def apply(grads: Any, trainable_variables: Any = None) -> None:
        kept = [mask for entry, vectors in layers for mask in _masks_to_keep(entry, vectors)]
        update(grads, trainable_variables)
        for variable, alive, least in kept:
            if least is not None:
                # Turns 0 into `least` and leaves the others as they are, for it is lost in
                # rounding. Assigned at once: a second temporary costs PyTorch a millisecond.
                variable.assign(ops.add(variable, ops.cast(least, variable.dtype)))
            variable.assign(_zero_unless(alive, variable))
            average = moving_average(optimizer, variable)
            if average is not None:  # it overwrites the weights sooner or later
                average.assign(_zero_unless(alive, average))

    apply.keeps_zeros_of = model.name  # type: ignore[attr-defined]
    return apply


def _unit_vectors(model: keras.Model, entry: KernelLayer) -> list[keras.Variable]:
    """What belongs to the units of a layer: bias, and scale and offset behind it."""
    if entry.is_output or not entry.has_units:
        return []
    norms = batch_norms_after(model, entry.layer)
    vectors = [entry.bias, *(v for norm in norms for v in (norm.gamma, norm.beta))]
    return [v for v in vectors if v is not None and v.trainable]


def _masks_to_keep(
    entry: KernelLayer, vectors: list[keras.Variable]
) -> Iterator[tuple[keras.Variable, Any, float | None]]:
    """Yields (variable, where it may live, the number a live weight has for 0)."""
    for kernel in entry.kernels:
        if kernel.trainable:
            yield kernel, ops.not_equal(kernel, 0), _least(kernel.dtype)
    if vectors:
        nonzero = [ops.not_equal(vector, 0) for vector in vectors]
        # A pass over the kernel, of no use where no vector has a zero, as soon after the start.
        has_weights = ops.cond(
            ops.all(ops.stack(nonzero)),
            lambda: ops.ones_like(nonzero[0]),
            lambda: _has_weights(entry),
        )
        for vector, alive in zip(vectors, nonzero, strict=True):
            yield vector, ops.logical_or(has_weights, alive), None


def _has_weights(entry: KernelLayer) -> Any:
    """Which units have a weight that is not zero: boolean, shape `(units,)`."""
    kernel = ops.convert_to_tensor(entry.unit_kernel)
    axes = [a for a in range(len(kernel.shape)) if a != len(kernel.shape) + entry.unit_axis]
    # Five times faster on PyTorch than ops.any(ops.not_equal(kernel, 0), axes).
    return ops.logical_or(ops.amax(kernel, axes) > 0, ops.amin(kernel, axes) < 0)


def _zero_unless(alive: Any, variable: keras.Variable) -> Any:
    values = ops.convert_to_tensor(variable)
    return ops.where(alive, values, ops.cast(0, values.dtype))


def _least(dtype: str) -> float:
    """The smallest positive number of a type; a normal one where the processor may flush others."""
    limits = ml_dtypes.finfo(dtype)
    return float(limits.smallest_subnormal if dtype == "float16" else limits.smallest_normal)


def _warn_of_zero_kernels(entries: list[KernelLayer]) -> None:
    empty = [
        entry.name
        for entry in entries
        for kernel in entry.kernels
        if kernel.trainable and not ops.convert_to_numpy(ops.any(ops.not_equal(kernel, 0)))
    ]
    if empty:
        warnings.warn(
            f"The layers {empty} have a kernel of zeros alone, which counts as pruned and stays "
            "so. If it was initialized with zeros, train the model before it is pruned.",
            stacklevel=2,
        )
