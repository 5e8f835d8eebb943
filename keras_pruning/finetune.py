"""Training that keeps the zeros: one callback in an ordinary `fit`, on every Keras backend.

The zeros are the mask, so there is no state to carry: the optimizer's `apply` of the
model being fitted is wrapped, the wrapper sees which weights are zero before the update,
and sets those back to zero after it. Gradient masks would not do, since momentum, weight
decay and moving averages move a weight without a gradient; `variable.constraint` would
not, since Keras compiles the training step and applies moving averages after it.
"""

import contextlib
import functools
import numbers
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import ml_dtypes
import numpy as np
from keras import ops

from keras_pruning.graph import KernelLayer, batch_norms_after, kernel_layers
from keras_pruning.masks import check_sparsity
from keras_pruning.prune import (
    apply_unit_masks,
    apply_weight_masks,
    prune_units,
    prune_weights,
    summary,
    unit_masks,
    weight_masks,
)

__all__ = ["GradualPruning", "KeepZeros", "keep_zeros", "polynomial_sparsity"]

PruneFunction = Callable[..., keras.Model]  # (model, sparsity) -> pruned model


class KeepZeros(keras.callbacks.Callback):
    """Callback that keeps pruned weights at exactly 0.0 in `fit`.

    Every weight of a kernel that is zero before an optimizer step is zero after it,
    with any optimizer. So is the bias of a unit whose weights are all zero, and the
    scale and offset of a BatchNormalization behind it, where they were zero; its moving
    mean then stays zero by itself. A weight that is not zero never becomes exactly zero:
    should an update hit 0.0, the weight is set to the smallest normal number, so that
    no more than what was pruned counts as pruned. (A kernel without any zero, then, is
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
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.ones((32, 8)), np.ones((32, 10))
    >>> pruned = prune_weights(model, 0.5, layers=["dense"])  # doctest: +SKIP
    >>> pruned.fit(x, y, callbacks=[KeepZeros()])  # doctest: +SKIP
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


class GradualPruning(KeepZeros):
    """Callback that prunes step by step during `fit` and keeps the zeros.

    At the steps `begin`, `begin + every`, ..., and at `end` the model is pruned to
    `polynomial_sparsity(step, ...)`, the cubic schedule of Zhu & Gupta 2017, "To prune,
    or not to prune". A weight once pruned stays pruned. The sparsity reached is logged as
    "sparsity": in the progress bar, in `History`, and for the callbacks that follow in
    the list, as TensorBoard.

    A step is a batch trained on, counted over all epochs from epoch 0, so that training
    can be resumed by `initial_epoch` or BackupAndRestore and goes on in the schedule.

    Args:
        sparsity: Share to prune by the end, a float in [0, 1]; or a dict of layer name
            to share.
        begin: First step at which to prune, an int, or a float in [0, 1], the share of
            the training that comes before it.
        end: Step from which the final sparsity holds, an int or a share likewise. What
            is left of the training heals the damage.
        every: Steps from one pruning to the next, an int from 1.
        initial_sparsity: Share pruned at `begin`.
        power: Exponent of the schedule.
        prune: `prune_weights`, `prune_units`, either with options by
            `functools.partial(prune_weights, scope="global")`, or a function
            `(model, sparsity) -> pruned model`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range. When training begins: if `end` comes
            before `begin`, the model is not built, has no layer to prune or is pruned
            more than asked already, or the number of steps is unknown and needed.

    Example:
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(10, name="hidden"),
    ...                           keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y, gradual = np.ones((64, 8)), np.ones((64, 1)), GradualPruning(0.75, every=1)
    >>> model.fit(x, y, batch_size=8, verbose=0, callbacks=[gradual]).history["sparsity"]
    [0.75]
    """

    def __init__(
        self,
        sparsity: float | Mapping[str, float],
        *,
        begin: int | float = 0.0,
        end: int | float = 0.75,
        every: int = 100,
        initial_sparsity: float = 0.0,
        power: float = 3,
        prune: PruneFunction = prune_weights,
    ) -> None:
        super().__init__()
        shares = dict(sparsity) if isinstance(sparsity, Mapping) else {None: sparsity}
        self._shares: dict[str | None, float] = {
            name: check_sparsity(share) for name, share in shares.items()
        }
        self._initial: float = _check_initial(initial_sparsity, self._shares)
        self._begin: int | float = _check_time("begin", begin)
        self._end: int | float = _check_time("end", end)
        if type(self._begin) is type(self._end):
            _check_order(self._begin, self._end, begin, end)
        if isinstance(every, bool) or not isinstance(every, numbers.Integral) or every < 1:
            raise ValueError(f"every must be a whole number of steps from 1. Received: {every!r}")
        self._every: int = int(every)
        self._power: float = _check_power(power)
        self._pruner: _Pruner = _Pruner(prune)
        self._first: int = 0  # begin and end in steps
        self._last: int = 0
        self._updated_at: int | None = None
        self._before: int = 0  # steps of the earlier epochs
        self._in_epoch: int = 0
        self._thread: int = 0
        self._measured: float = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps before this epoch; in the first, checks the model and prunes."""
        steps = self.params.get("steps")
        self._before = epoch * steps if steps else self._before + self._in_epoch
        self._in_epoch = 0
        if self._release is None:
            self._start(epoch, steps)
            super().on_epoch_begin(epoch, logs)
        self._prune_if_due()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Prunes if an update is due, and logs the sparsity."""
        if threading.get_ident() != self._thread:
            raise ValueError(
                "Keras runs a callback that is not given in a list in a thread of its own. "
                "Pass callbacks=[GradualPruning(...)]."
            )
        self._in_epoch = batch + 1
        if self.params.get("steps"):  # with steps_per_execution the last batches may be fewer
            self._in_epoch = min(self._in_epoch, self.params["steps"])
        self._prune_if_due()
        if logs is not None:
            logs["sparsity"] = self._measured

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the sparsity."""
        if logs is not None:
            logs["sparsity"] = self._measured

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the optimizer as it was; warns if training ended before the schedule."""
        super().on_train_end(logs)
        step = self._before + self._in_epoch
        if step < self._last:
            warnings.warn(
                f"Training ended at step {step}, before the end of the pruning schedule "
                f"({self._last}), at sparsity {self._measured:.3g}. Train on with initial_epoch, "
                "train longer, or give an earlier end.",
                stacklevel=2,
            )

    def _start(self, epoch: int, steps: int | None) -> None:
        self._thread = threading.get_ident()
        self._updated_at = None
        total = steps * self.params["epochs"] if steps else None
        if total is None and (
            epoch or isinstance(self._begin, float) or isinstance(self._end, float)
        ):
            raise ValueError(
                "The number of steps an epoch is unknown, so shares of the training and resumed "
                "epochs cannot be counted in steps. Pass steps_per_epoch to fit, or begin and end "
                f"as whole numbers of steps. Received: begin={self._begin!r}, end={self._end!r}"
            )
        self._before = epoch * (steps or 0)
        self._first, self._last = (
            round(time * total) if isinstance(time, float) and total is not None else int(time)
            for time in (self._begin, self._end)
        )
        _check_order(self._first, self._last, self._begin, self._end)
        self._pruner.check(self.model, self._shares)
        self._measured = self._pruner.measure(self.model, self._shares)

    def _prune_if_due(self) -> None:
        step = self._before + self._in_epoch
        if step < self._first:
            return
        due = min(step, self._last)
        if step < self._last:
            due -= (step - self._first) % self._every
        if due == self._updated_at:
            return
        self._updated_at = due
        targets = {
            name: polynomial_sparsity(
                due,
                sparsity=share,
                begin=self._first,
                end=self._last,
                initial_sparsity=self._initial,
                power=self._power,
            )
            for name, share in self._shares.items()
        }
        model = self.model  # on JAX this fetches the present weights
        self._pruner(model, targets)
        _clear_moving_averages(model)
        self._measured = self._pruner.measure(model, self._shares)


@contextlib.contextmanager
def keep_zeros(model: keras.Model) -> Iterator[keras.Model]:
    """Keeps the pruned weights of a model at zero in all training inside the `with` block.

    As `KeepZeros`, for `fit`, `train_on_batch` and loops that call the optimizer, and
    closed in every case, also by an error or Ctrl-C.

    Args:
        model: A built and compiled Keras model. Compile it before, not inside the block.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built, not compiled, or has no layer with kernels.

    Example:
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="last")])
    >>> model.layers[0].kernel.assign([[0.0], [1.0]])  # doctest: +SKIP
    >>> model.compile("adam", "mse")
    >>> with keep_zeros(prune_weights(model, 0.5, layers=["last"])) as pruned:
    ...     _ = pruned.train_on_batch(np.ones((4, 2)), np.ones((4, 1)))
    >>> summary(pruned)["zeros"].tolist()
    [1]
    """
    release = _hold(model, until_next_fit=False)
    try:
        yield model
    finally:
        release()


def polynomial_sparsity(
    step: float,
    *,
    sparsity: float,
    begin: float,
    end: float,
    initial_sparsity: float = 0.0,
    power: float = 3,
) -> float:
    """Returns the scheduled sparsity at a training step.

    `s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^power` from `begin` t_0 to
    `end` t_1 (Zhu & Gupta 2017, "To prune, or not to prune", equation 1, with power 3):
    fast at first, while much is redundant, slow at the end. 0 before, `sparsity` after.

    Args:
        step: Step t, counted as `begin` and `end` are.
        sparsity: Final sparsity s_f, in [0, 1].
        begin: First step of pruning.
        end: Step of the final sparsity, not before `begin`.
        initial_sparsity: Sparsity s_i at `begin`, in [0, sparsity].
        power: Exponent, a positive number.

    Raises:
        TypeError: If a sparsity is not a number.
        ValueError: If an argument is out of range.

    Example:
    >>> [polynomial_sparsity(t, sparsity=0.5, begin=10, end=30) for t in (9, 10, 20, 30, 99)]
    [0.0, 0.0, 0.4375, 0.5, 0.5]
    """
    share = check_sparsity(sparsity)
    initial = _check_initial(initial_sparsity, {None: share})
    power = _check_power(power)
    _check_order(begin, end, begin, end)
    if step < begin:
        return 0.0
    if step >= end:
        return share
    return share + (initial - share) * (1 - (step - begin) / (end - begin)) ** power


class _Pruner:
    """Prunes a model in place, as `prune_weights`, `prune_units` or a given function would."""

    def __init__(self, prune: PruneFunction) -> None:
        if not callable(prune):
            raise TypeError(f"prune must be a function (model, sparsity). Received: {prune!r}")
        function, options = prune, {}
        if isinstance(prune, functools.partial) and not prune.args:
            function, options = prune.func, prune.keywords
        self._function = prune
        self._options: dict[str, Any] = dict(options)
        self._is_ours = function in (prune_weights, prune_units)
        self._of_units = function is prune_units

    def __call__(self, model: keras.Model, targets: Mapping[str | None, float]) -> None:
        if not self._is_ours:
            pruned = self._function(model, **_as_arguments(targets))
            for ours, theirs in zip(model.weights, pruned.weights, strict=True):
                _set_to_zero(ours, keras.ops.convert_to_numpy(theirs) == 0)
        elif self._of_units:
            apply_unit_masks(model, self._masks_for(model, targets))
        else:
            apply_weight_masks(model, self._masks_for(model, targets))

    def check(self, model: keras.Model, targets: Mapping[str | None, float]) -> None:
        """Raises an error if there is nothing to prune, or more is pruned than asked."""
        kernel_layers(model)
        if not self._is_ours:
            return
        asked = {
            name: sum(
                int(np.count_nonzero(~mask)) for mask in (masks if not self._of_units else [masks])
            )
            for name, masks in self._masks_for(model, targets).items()
        }
        table = summary(model).set_index("layer").loc[list(asked)]
        pruned = table["zero_units" if self._of_units else "zeros"].astype(int).to_dict()
        if self._options.get("scope") == "global":
            asked, pruned = ({model.name: sum(counts.values())} for counts in (asked, pruned))
        for name, count in pruned.items():
            if count > asked[name]:
                raise ValueError(
                    f"Of {name!r} {count} {'units' if self._of_units else 'weights'} are pruned "
                    f"already, but the sparsity asked for prunes {asked[name]}. What is pruned is "
                    "not revived: ask for a higher sparsity, or start from the dense model."
                )

    def measure(self, model: keras.Model, targets: Mapping[str | None, float]) -> float:
        """Returns the share of zeros in the layers that are pruned."""
        table = summary(model)
        chosen = self._options.get("layers") or [name for name in targets if name is not None]
        part = table[table["layer"].isin(list(chosen)) if chosen else ~table["output"]]
        total, zero = ("units", "zero_units") if self._of_units else ("weights", "zeros")
        part = part[part["units"].notna() | (not self._of_units)]
        return float(part[zero].sum() / part[total].sum())

    def _masks_for(self, model: keras.Model, targets: Mapping[str | None, float]) -> Any:
        masks = unit_masks if self._of_units else weight_masks
        return masks(model, **_as_arguments(targets), **self._options)


def _as_arguments(targets: Mapping[str | None, float]) -> dict[str, Any]:
    return {"sparsity": targets[None]} if None in targets else {"layers": dict(targets)}


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
    # LossScaleOptimizer on JAX calls `apply` of the optimizer inside it alone.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
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
            variable.assign(_zero_unless(alive, variable, least))
            average = _moving_average(optimizer, variable)
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
            least = float(ml_dtypes.finfo(kernel.dtype).smallest_normal)
            yield kernel, ops.not_equal(kernel, 0), least
    if vectors:
        kernel = entry.unit_kernel
        axes = [a for a in range(len(kernel.shape)) if a != len(kernel.shape) + entry.unit_axis]
        has_weights = ops.any(ops.not_equal(kernel, 0), axis=axes)
        for vector in vectors:
            yield vector, ops.logical_or(has_weights, ops.not_equal(vector, 0)), None


def _zero_unless(alive: Any, variable: keras.Variable, least: float | None = None) -> Any:
    values = ops.convert_to_tensor(variable)
    if least is not None:
        values = ops.where(ops.equal(values, 0), ops.cast(least, values.dtype), values)
    return ops.where(alive, values, ops.cast(0, values.dtype))


def _moving_average(optimizer: keras.Optimizer, variable: keras.Variable) -> Any | None:
    if not optimizer.use_ema or not optimizer.built:
        return None
    return optimizer._model_variables_moving_average[optimizer._get_variable_index(variable)]


def _clear_moving_averages(model: keras.Model) -> None:
    """Zeroes the averages of pruned weights: at the end of fit they overwrite the weights."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    for entry in kernel_layers(model):
        for kernel in entry.kernels:
            average = _moving_average(optimizer, kernel) if kernel.trainable else None
            if average is not None:
                _set_to_zero(average, ops.convert_to_numpy(kernel) == 0)


def _set_to_zero(variable: keras.Variable, where: Any) -> None:
    values = np.array(ops.convert_to_numpy(variable))
    values[where] = 0
    variable.assign(values)


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


def _check_initial(initial: float, shares: Mapping[Any, float]) -> float:
    initial = check_sparsity(initial)
    least = min(shares.values(), default=1.0)
    if initial > least:
        raise ValueError(
            f"initial_sparsity must not exceed the final sparsity ({least}). "
            f"Received: initial_sparsity={initial!r}"
        )
    return initial


def _check_time(name: str, time: int | float) -> int | float:
    is_number = isinstance(time, numbers.Real) and not isinstance(time, bool)
    is_whole = is_number and isinstance(time, numbers.Integral)
    if not is_number or time < 0 or not (is_whole or time <= 1):
        raise ValueError(
            f"{name} must be a step, a whole number from 0, or a share of the training, a float "
            f"in [0, 1]. Received: {name}={time!r}"
        )
    return int(time) if is_whole else float(time)


def _check_order(first: float, last: float, begin: float, end: float) -> None:
    if last < first:
        steps = "" if (first, last) == (begin, end) else f", that is steps {first} and {last}"
        raise ValueError(
            f"The end of pruning must not come before its begin. "
            f"Received: begin={begin!r}, end={end!r}{steps}"
        )


def _check_power(power: float) -> float:
    if isinstance(power, bool) or not isinstance(power, numbers.Real) or not power > 0:
        raise ValueError(f"power must be a positive number. Received: power={power!r}")
    return float(power)
