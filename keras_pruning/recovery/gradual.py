"""Pruning step by step while a model trains: a callback and the schedule it follows."""

import functools
import math
import numbers
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_pruning.models import kernel_layers
from keras_pruning.pruning import (
    apply_unit_masks,
    apply_weight_masks,
    check_count,
    check_sparsity,
    prune_units,
    prune_weights,
    pruned_share,
    unit_masks,
    warn_of_emptied,
    weight_masks,
)
from keras_pruning.recovery.finetune import (
    KeepZeros,
    model_optimizers,
    moving_averages,
    put_zeros,
    refuse_lora,
)

__all__ = ["GradualPruning", "polynomial_sparsity"]

PruneFunction = Callable[..., keras.Model]  # (model, sparsity) -> pruned model


class GradualPruning(KeepZeros):
    """Callback that prunes step by step during `fit` and keeps the zeros.

    At the steps `begin`, `begin + every`, ..., and at `end` the model is pruned to
    `polynomial_sparsity(step, ...)`, the cubic schedule of Zhu & Gupta 2017, "To prune,
    or not to prune". A weight once pruned stays pruned. The sparsity reached is logged as
    "sparsity": in the progress bar, in `History`, and for the callbacks that follow in
    the list, as TensorBoard. Its last entry in `History` is measured after all other
    callbacks, on the weights that the model ends with.

    A step is a batch trained on, counted over all epochs from epoch 0, so that training
    can be resumed by `initial_epoch` or BackupAndRestore and goes on in the schedule.

    A callback that chooses among the epochs may choose one from before the end of the
    schedule, with fewer zeros. For EarlyStopping(restore_best_weights=True) give
    `start_from_epoch`, the first epoch at whose end all is pruned. For
    ModelCheckpoint(save_best_only=True), which has no such argument, use two fits: prune to
    the end in the first, and in the second train on with KeepZeros and the ModelCheckpoint.
    If the model ends with less pruned than was, a UserWarning says how much.

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
            `functools.partial(prune_weights, scope="global")`, or a function of your own,
            `prune(model, sparsity)`, that returns a pruned model with the same weights
            otherwise; where `sparsity` is a dict it is called as `prune(model, layers=dict)`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range. When training begins: if `end` comes
            before `begin`, the model is not built, has no layer to prune, a layer with LoRA
            enabled or is pruned more than asked already, or the number of steps is unknown
            and needed. If `prune` does not return a model of the same weights.

    Examples:
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
        check_count("every", every)
        self._every: int = int(every)
        self._power: float = _check_power(power)
        self._pruner: _Pruner = _Pruner(prune)
        self._first: int = 0  # begin and end in steps
        self._last: int = 0
        self._updated_at: int | None = None
        self._before: int = 0  # steps of the earlier epochs
        self._in_epoch: int = 0
        self._first_batch: int = 0
        self._steps_per_execution: int = 1
        self._thread: int = 0
        self._reached: float = 0.0  # by the schedule
        self._measured: float = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps before this epoch; in the first, checks the model and prunes."""
        steps = self.params.get("steps")
        self._before = epoch * steps if steps else self._before + self._in_epoch
        self._in_epoch = 0
        if self._hold is None:
            self._start(epoch, steps)
        super().on_epoch_begin(epoch, logs)
        self._prune_if_due()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the first batch of an execution of one or several steps."""
        self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Prunes if an update is due, and logs the sparsity."""
        if threading.get_ident() != self._thread:
            raise ValueError(
                "Keras runs a callback that is not given in a list in a thread of its own. "
                "Pass callbacks=[GradualPruning(...)]."
            )
        # Of an execution of several steps Keras 3.10 names the first, later versions the last.
        last_batch = self._first_batch + self._steps_per_execution - 1
        self._in_epoch = max(batch, last_batch) + 1
        if self.params.get("steps"):  # with steps_per_execution the last batches may be fewer
            self._in_epoch = min(self._in_epoch, self.params["steps"])
        self._prune_if_due()
        if logs is not None:
            logs["sparsity"] = self._measured

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the sparsity, measured anew."""
        super().on_epoch_end(epoch, logs)
        self._measured = self._pruner.measure(self.model, self._shares)
        if logs is not None:
            logs["sparsity"] = self._measured

    def _check(self) -> None:
        """Says what sparsity there is at the end, and logs it."""
        model, hold = self.model, self._hold
        if hold is None:
            return
        measured = self._pruner.measure(model, self._shares)
        step = self._before + self._in_epoch
        if hold.came_back():
            hold.record(anew=True)
            warnings.warn(
                f"Training ended at sparsity {measured:.3g}, though {self._reached:.3g} had been "
                "reached: weights from before were put back, as EarlyStopping("
                "restore_best_weights=True) does, or updated by what is not the model's optimizer. "
                f"Give EarlyStopping start_from_epoch{self._first_epoch_to_choose()}, or prune to "
                "the end in one fit and train on in a second, with KeepZeros() and the callback "
                "that chooses the weights.",
                stacklevel=2,
            )
        elif step < self._last:
            warnings.warn(
                f"Training ended at step {step}, before the end of the pruning schedule "
                f"({self._last}), at sparsity {measured:.3g}. Train on with initial_epoch, "
                "train longer, or give an earlier end.",
                stacklevel=2,
            )
        if max(self._shares.values(), default=1.0) < 1:
            warn_of_emptied(self._pruner.emptied, stacklevel=2)
        history = self._history_of_this_fit()
        if history and history.history.get("sparsity"):
            history.history["sparsity"][-1] = measured

    def _first_epoch_to_choose(self) -> str:
        steps = self.params.get("steps")
        return f"={max(math.ceil(self._last / steps) - 1, 0)}" if steps else ""

    def _start(self, epoch: int, steps: int | None) -> None:
        self._thread = threading.get_ident()
        self._steps_per_execution = self.model.steps_per_execution
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
        refuse_lora(self.model)
        self._pruner.check(self.model, self._shares)
        self._measured = self._reached = self._pruner.measure(self.model, self._shares)

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
        self._measured = self._reached = self._pruner.measure(model, self._shares)
        if self._hold is not None:
            self._hold.record()


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

    Examples:
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
        self.emptied: list[str] = []  # layers that the last pruning left a kernel of zeros alone

    def __call__(self, model: keras.Model, targets: Mapping[str | None, float]) -> None:
        if not self._is_ours:
            for ours, theirs in zip(model.weights, self._weights_of(model, targets), strict=True):
                put_zeros(ours, ops.convert_to_numpy(theirs) == 0)
        elif self._of_units:
            apply_unit_masks(model, self._masks_for(model, targets))
        else:
            masks = self._masks_for(model, targets)
            apply_weight_masks(model, masks)
            entries = kernel_layers(model)
            self.emptied = [
                entries[place].name
                for place, of_kernels in masks.items()
                if not all(mask.any() for mask in of_kernels)
            ]

    def check(self, model: keras.Model, targets: Mapping[str | None, float]) -> None:
        """Raises an error if there is nothing to prune, or more is pruned than asked."""
        if not self._is_ours:
            return
        entries, counts = kernel_layers(model), []
        for place, masks in self._masks_for(model, targets).items():
            entry = entries[place]
            if self._of_units:
                alive, kept = [entry.alive_units()], [masks]
            else:
                alive, kept = [ops.convert_to_numpy(k) != 0 for k in entry.kernels], masks
            counts.append((entry.name, _count_false(alive), _count_false(kept)))
        if self._options.get("scope") == "global":
            counts = [(model.name, sum(c for _, c, _ in counts), sum(c for *_, c in counts))]
        for name, count, limit in counts:
            if count > limit:
                raise ValueError(
                    f"Of {name!r} {count} {'units' if self._of_units else 'weights'} are pruned "
                    f"already, but the sparsity asked for prunes {limit}. What is pruned is "
                    "not revived: ask for a higher sparsity, or start from the dense model."
                )

    def measure(self, model: keras.Model, targets: Mapping[str | None, float]) -> float:
        """Returns the share of zeros in the layers that are pruned."""
        layers = self._options.get("layers") if None in targets else list(targets)
        return pruned_share(model, "units" if self._of_units else "weights", layers)

    def _weights_of(
        self, model: keras.Model, targets: Mapping[str | None, float]
    ) -> list[keras.Variable]:
        """Calls a function of the user's and returns the weights of the model it returns."""
        if None in targets:
            pruned = self._function(model, targets[None])
        else:
            pruned = self._function(model, **_as_arguments(targets))
        weights: list[keras.Variable] = getattr(pruned, "weights", [])
        if [tuple(v.shape) for v in weights] != [tuple(v.shape) for v in model.weights]:
            raise ValueError(
                "prune must return a model whose weights have the shapes of those of the model "
                f"given to it, '{model.name}', as prune_weights does. It returned: {pruned!r}"
            )
        return weights

    def _masks_for(self, model: keras.Model, targets: Mapping[str | None, float]) -> Any:
        masks = unit_masks if self._of_units else weight_masks
        return masks(model, **_as_arguments(targets), **self._options)


def _count_false(arrays: Sequence[Any]) -> int:
    return sum(array.size - int(np.count_nonzero(array)) for array in arrays)


def _as_arguments(targets: Mapping[str | None, float]) -> dict[str, Any]:
    return {"sparsity": targets[None]} if None in targets else {"layers": dict(targets)}


def _clear_moving_averages(model: keras.Model) -> None:
    """Zeroes the averages of pruned weights: at the end of fit they overwrite the weights."""
    averages = moving_averages(model_optimizers(model))
    for entry in kernel_layers(model) if averages else ():
        for kernel in entry.kernels:
            if id(kernel) in averages:
                put_zeros(averages[id(kernel)], ops.convert_to_numpy(kernel) == 0)


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
