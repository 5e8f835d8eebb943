"""Training that keeps the zeros: one callback in an ordinary `fit`, on every Keras backend.

The zeros are the mask: the `apply` of the model's optimizers is wrapped, the wrapper sees
which weights are zero before the update, and sets those back to zero after it. So it is
with a `train_step` of the model's own, whatever updates weights there. Gradient masks would
not do, since momentum, weight decay and moving averages move a weight without a gradient;
`variable.constraint` would not, since Keras compiles the training step and applies moving
averages after it. What updates weights elsewhere is not seen; so a record of what is pruned,
a bit a weight, is compared at the end.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import ml_dtypes
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_pruning.models import KernelLayer, all_layers, batch_norms_after, kernel_layers

__all__ = [
    "KeepZeros",
    "keep_zeros",
    "model_optimizers",
    "moving_averages",
    "pruned_in",
    "put_zeros",
    "refuse_lora",
]

HeldLayer = tuple[KernelLayer, list[keras.Variable]]  # and what belongs to its units
# A variable, where it may live, and the number that a live weight has for 0.
Kept = tuple[keras.Variable, Any, float | None]


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

    At the end of `fit`, after all other callbacks, pruned weights that have come back, by
    weights that another callback loads say, are set to zero again with a UserWarning.

    The optimizer is as before when training ends. Keras calls no callback when `fit` is
    broken off by an error or Ctrl-C; the next `fit` or `train_on_batch` then takes back
    what was left. To be rid of it at once, use `with keep_zeros(model): model.fit(...)`.
    Nothing of this is in a saved model. Keras traces one training step with KeepZeros and
    one without; both are used again by later fits, until the model is compiled anew.

    Raises:
        ValueError: When training begins: if the model is not built, has no layer with
            kernels, or a layer with LoRA enabled.

    Examples:
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
        self._hold: _Hold | None = None
        self._is_own_hold: bool = False  # not that of a `with` block around, or of another callback
        self._history: keras.callbacks.History | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes back what a broken fit may have left."""
        self._let_go()
        self._hold = self._history = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Wraps the optimizer, in the first epoch; notes in each what is pruned.

        Not in `on_train_begin`, where another callback may still load weights.
        """
        model = self.model
        if self._hold is not None:
            self._hold.record()
            return
        around = _hold_of(model)
        self._hold = around or _Hold(model, until_next_fit=True)
        self._is_own_hold = around is None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks whether Keras's History follows, as it does unless it is in the user's list."""
        history = self._history_of_this_fit()
        self._history = history if history and epoch not in history.epoch[-1:] else None

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the optimizer as it was; checks the zeros after all other callbacks."""
        self._let_go()
        if self._history is not None:
            _call_after(self._history, self._check)
        else:
            self._check()

    def _history_of_this_fit(self) -> keras.callbacks.History | None:
        history: keras.callbacks.History | None = getattr(self.model, "history", None)
        return history if history and history.params is self.params else None

    def _check(self) -> None:
        if self._hold is not None and self.model is not None:  # on JAX, `model` fetches the weights
            self._hold.set_to_zero_again()

    def _let_go(self) -> None:
        if self._hold is not None and self._is_own_hold:
            self._hold.let_go()


@contextlib.contextmanager
def keep_zeros(model: keras.Model) -> Iterator[keras.Model]:
    """Keeps the pruned weights of a model at zero in all training inside the `with` block.

    As `KeepZeros`, for `fit`, `train_on_batch` and loops that call an optimizer of the
    model (`model.optimizer` or one in an attribute of the model), and closed in every case,
    also by an error or Ctrl-C. The model may be compiled anew inside.

    What else updates the weights is not seen: an optimizer of your own, a second model that
    shares a layer, a `tf.function` traced before the block. Pruned weights that have come
    back by the end of the block are set to zero again with a UserWarning.

    Args:
        model: A built and compiled Keras model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built, not compiled, has no layer with kernels, or a layer
            with LoRA enabled.

    Examples:
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
    around = _hold_of(model)
    if around is not None and around.until_next_fit:  # left by a fit that broke off
        around.let_go()
        around = None
    hold = around or _Hold(model, until_next_fit=False)
    ended = False
    try:
        yield model
        ended = True
    finally:
        if hold is not around:
            hold.let_go()
        hold.set_to_zero_again(warn=ended)  # where warnings are errors, this one would hide another


def refuse_lora(model: keras.Model) -> None:
    """Raises a ValueError if a layer of the model computes with a kernel that is not its own."""
    names = [layer.name for layer in all_layers(model) if getattr(layer, "lora_enabled", False)]
    if names:
        raise ValueError(
            f"The layers {names} have LoRA enabled: they compute with kernel + A·B, and training "
            "A and B fills the zeros of the kernel. Train LoRA first; then prune by "
            "prune_weights(model, ...), which merges the LoRA weights into the copy that it "
            "returns; then train that copy with KeepZeros."
        )


def model_optimizers(model: keras.Model) -> list[keras.Optimizer]:
    """Returns the optimizers that a model holds: `model.optimizer`, and those of a GAN, say.

    Of a LossScaleOptimizer the one inside, since on JAX it calls the `apply` of that alone.
    """
    held: list[Any] = []
    for value in vars(model).values():
        parts = value.values() if isinstance(value, dict) else value
        held += parts if isinstance(value, (dict, list, tuple)) else [value]
    found = [getattr(x, "inner_optimizer", x) for x in held if isinstance(x, keras.Optimizer)]
    return list({id(optimizer): optimizer for optimizer in found}.values())


def moving_averages(optimizers: Iterable[keras.Optimizer]) -> dict[int, keras.Variable]:
    """Returns what `use_ema` sooner or later overwrites variables with, by their id."""
    return {
        id(variable): average
        for optimizer in optimizers
        if optimizer.use_ema and optimizer.built
        for variable, average in zip(
            optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
        )
    }


def pruned_in(entry: KernelLayer, vectors: list[keras.Variable]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yields where each kernel of a layer is pruned, then each vector that belongs to its units."""
    for kernel in entry.kernels:
        yield ops.convert_to_numpy(kernel) == 0
    if vectors:
        gone = ~entry.alive_units()
        for vector in vectors:
            yield entry.spread(gone, vector) & (ops.convert_to_numpy(vector) == 0)


def put_zeros(variable: keras.Variable, where: npt.NDArray[np.bool_]) -> None:
    """Sets these entries of a variable to zero."""
    values = np.array(ops.convert_to_numpy(variable))
    values[where] = 0
    variable.assign(values)


class _Hold:
    """Keeps the zeros of a model until it lets go, and knows which have come back.

    It gives attributes to this one model and its optimizers, and changes no class.
    """

    def __init__(self, model: keras.Model, *, until_next_fit: bool) -> None:
        entries = _layers_to_keep(model)
        _warn_of_zero_kernels(entries)
        self.until_next_fit = until_next_fit  # or else until the end of a `with` block
        self._model = model
        self._layers = [(entry, _unit_vectors(model, entry)) for entry in entries]
        self._pruned: list[npt.NDArray[np.uint8]] = []  # a bit a weight
        self._undo = contextlib.ExitStack()
        self.record()
        self._take()

    def record(self, *, anew: bool = False) -> None:
        """Notes what is pruned now, besides what was, or `anew` instead of it."""
        now = [np.packbits(where) for layer in self._layers for where in pruned_in(*layer)]
        before = now if anew or not self._pruned else self._pruned
        self._pruned = [a | b for a, b in zip(now, before, strict=True)]

    def came_back(self, *, set_to_zero: bool = False) -> dict[str, int]:
        """Returns layer name to the number of weights that were pruned and are not zero."""
        found: dict[str, int] = {}
        variables = [(e.name, v) for e, vectors in self._layers for v in (*e.kernels, *vectors)]
        for (name, variable), bits in zip(variables, self._pruned, strict=True):
            values = ops.convert_to_numpy(variable)
            pruned = np.unpackbits(bits, count=values.size).reshape(values.shape).astype(bool)
            back = pruned & (values != 0)
            if back.any():
                found[name] = found.get(name, 0) + int(np.count_nonzero(back))
                if set_to_zero:
                    put_zeros(variable, back)
        return found

    def set_to_zero_again(self, *, warn: bool = True) -> None:
        """Sets to zero what came back, and warns of it."""
        found = self.came_back(set_to_zero=True)
        if found and warn:
            warnings.warn(
                f"{sum(found.values())} pruned weights of the layers {list(found)} had come back "
                "and are set to zero again. They were updated by what is not seen here: an "
                "optimizer that is not the model's, another model that shares a layer, a training "
                "step traced before, or a callback that loads weights. Train by fit, or by the "
                "model's own optimizer in a step made inside `with keep_zeros(model):`, with such "
                "a block for each of several models that share layers.",
                stacklevel=4,
            )

    def let_go(self) -> None:
        """Takes everything back. A second call does nothing."""
        self._undo.close()

    def _take(self) -> None:
        model, undo = self._model, self._undo
        model.make_train_function()
        plain, parts = model.train_function, _parts_of_step(model)
        for optimizer in model_optimizers(model):
            _replace(undo, optimizer, "apply", _apply_and_keep_zeros(optimizer, self._layers))
        _replace(undo, model, "train_step", _train_step_that_keeps_zeros(model, self._layers))
        known_parts, held = getattr(plain, "keeps_zeros", ([], None))
        if _same(parts, known_parts):
            model.train_function = held
        else:  # a traced training step knows only the old `apply`
            model.make_train_function(force=True)
        undo.callback(self._give_back, plain, parts, model.train_function)
        self._parts, self._make_train_function = parts, model.make_train_function
        _replace(undo, model, "make_train_function", self._look_again)
        if not self.until_next_fit:
            self._compile = model.compile
            _replace(undo, model, "compile", self._compile_and_take)

    def _give_back(self, plain: Any, parts: list[Any], held: Any) -> None:
        """Gives back the plain training function, which remembers the other while it lives."""
        unchanged = self._model.train_function is held and _same(parts, _parts_of_step(self._model))
        if unchanged:
            plain.keeps_zeros = parts, held
        self._model.train_function = plain if unchanged else None

    def _look_again(self, force: bool = False) -> Any:
        """What `fit` and `train_on_batch` call first, as `model.make_train_function`."""
        if self.until_next_fit:  # This is that fit. Keras told no callback that the last broke off.
            self.let_go()
        elif not _same(self._parts, _parts_of_step(self._model)):  # model.optimizer = SGD(), say
            self.let_go()
            self._take()
        return self._make_train_function(force)

    def _compile_and_take(self, *args: Any, **kwargs: Any) -> None:
        self.let_go()
        self._compile(*args, **kwargs)
        self._take()


def _hold_of(model: keras.Model) -> _Hold | None:
    """The one that holds a model now, or since a fit that broke off."""
    holder = getattr(getattr(model, "__dict__", {}).get("make_train_function"), "__self__", None)
    return holder if isinstance(holder, _Hold) else None


def _replace(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Gives one object an attribute until the stack is closed."""
    if name in vars(owner):  # one of the user's own
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)


def _parts_of_step(model: keras.Model) -> list[Any]:
    """What a traced training step has in it."""
    return [*model_optimizers(model), *model.trainable_variables]


def _same(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))


def _call_after(history: keras.callbacks.History, check: Callable[[], None]) -> None:
    """Calls `check` when this fit comes to `history`, the callback that Keras puts last."""
    before, params = history.on_train_end, history.params

    def on_train_end(logs: dict[str, Any] | None = None) -> None:
        vars(history).pop("on_train_end", None)
        before(logs)
        if history.params is params:
            check()

    history.on_train_end = on_train_end


def _apply_and_keep_zeros(
    optimizer: keras.Optimizer, layers: list[HeldLayer]
) -> Callable[..., None]:
    update = optimizer.apply

    def apply(grads: Any, trainable_variables: Any = None) -> None:
        updated = trainable_variables or optimizer._trainable_variables
        kept = _masks_to_keep(layers, updated)
        update(grads, trainable_variables)
        _put_back(kept, moving_averages([optimizer]))

    return apply


def _train_step_that_keeps_zeros(model: keras.Model, layers: list[HeldLayer]) -> Callable[..., Any]:
    step = model.train_step
    if type(model).train_step is keras.Model.train_step and "train_step" not in vars(model):
        # A function of its own all the same: JAX keeps one trace of `model.train_step`.
        return lambda *args: step(*args)

    def train_step(data: Any) -> Any:
        kept = _masks_to_keep(layers, model.trainable_variables)
        logs = step(data)
        _put_back(kept)
        return logs

    def stateless_train_step(state: Any, data: Any) -> Any:
        variables = model.trainable_variables
        with keras.StatelessScope(list(zip(variables, state[0], strict=True))):
            kept = _masks_to_keep(layers, variables)
        logs, state = step(state, data)
        with keras.StatelessScope(list(zip(variables, state[0], strict=True))) as scope:
            _put_back(kept)
        return logs, ([scope.get_current_value(v) for v in variables], *state[1:])

    return stateless_train_step if keras.backend.backend() == "jax" else train_step


def _layers_to_keep(model: keras.Model) -> list[KernelLayer]:
    entries = kernel_layers(model)
    if not entries:
        raise ValueError(
            f"Model '{model.name}' has no layer with a kernel, so there are no zeros to keep."
        )
    if not model.compiled:
        raise ValueError(
            f"Model '{model.name}' is not compiled, so it has no optimizer. Call "
            "model.compile(...) first; a training loop of your own then uses model.optimizer."
        )
    refuse_lora(model)
    return entries


def _unit_vectors(model: keras.Model, entry: KernelLayer) -> list[keras.Variable]:
    """What belongs to the units of a layer: bias, and scale and offset behind it."""
    if not entry.has_units or entry.output_if_known is not False:
        return []
    norms = batch_norms_after(model, entry.layer)
    vectors = [*entry.unit_vectors, *(v for norm in norms for v in (norm.gamma, norm.beta))]
    return [v for v in vectors if v is not None and v.trainable]


def _masks_to_keep(layers: list[HeldLayer], updated: Iterable[keras.Variable]) -> list[Kept]:
    """Returns the masks of those variables of the layers that are about to be updated."""
    ids = {id(variable) for variable in updated}
    kept: list[Kept] = []
    for entry, vectors in layers:
        kernels = [k for k in entry.kernels if k.trainable and id(k) in ids]
        kept += [(k, ops.not_equal(k, 0), _least(k.dtype)) for k in kernels]
        vectors = [v for v in vectors if id(v) in ids]
        if not vectors:
            continue
        nonzero = [ops.not_equal(vector, 0) for vector in vectors]
        # A pass over the kernel, of no use where no vector has a zero, as soon after the start.
        has_weights = ops.cond(
            ops.all(ops.stack([ops.all(own) for own in nonzero])),
            lambda entry=entry: ops.ones((entry.n_units,), "bool"),
            lambda entry=entry: _has_weights(entry),
        )
        alive = [
            ops.logical_or(entry.spread(has_weights, vector), own)
            for vector, own in zip(vectors, nonzero, strict=True)
        ]
        kept += [(vector, mask, None) for vector, mask in zip(vectors, alive, strict=True)]
    return kept


def _put_back(kept: list[Kept], averages: Mapping[int, keras.Variable] | None = None) -> None:
    """Sets to zero what was zero when the masks were made."""
    for variable, alive, least in kept:
        if least is not None:
            # Turns 0 into `least` and leaves the others as they are, for it is lost in
            # rounding. Assigned at once: a second temporary costs PyTorch a millisecond.
            variable.assign(ops.add(variable, ops.cast(least, variable.dtype)))
        variable.assign(_zero_unless(alive, variable))
        average = (averages or {}).get(id(variable))
        if average is not None:
            average.assign(_zero_unless(alive, average))


def _has_weights(entry: KernelLayer) -> Any:
    """Which units have a weight that is not zero: boolean, shape `(units,)`."""
    found = []
    vectors = set(map(id, entry.unit_vectors))
    for variable, axis, gates in entry.unit_slices:
        if id(variable) not in vectors:
            kernel = ops.convert_to_tensor(variable)
            axes = [a for a in range(len(kernel.shape)) if a != len(kernel.shape) + axis]
            # Five times faster on PyTorch than ops.any(ops.not_equal(kernel, 0), axes).
            alive = ops.logical_or(ops.amax(kernel, axes) > 0, ops.amin(kernel, axes) < 0)
            found.append(alive if gates == 1 else ops.any(ops.reshape(alive, (gates, -1)), 0))
    return functools.reduce(ops.logical_or, found)


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
