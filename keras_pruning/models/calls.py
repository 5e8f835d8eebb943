"""What layers hear and send while a model runs: the calls of a layer shown to a function."""

import contextlib
import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.models.listening import states_kept

__all__ = ["as_floats", "calls_in_order", "calls_of", "outputs_of"]

Array = npt.NDArray[Any]

_ONE_AT_A_TIME = threading.RLock()  # of two threads that watch a layer one would watch for ever


def calls_in_order(
    model: keras.Model, layers: Collection[keras.Layer], batch: Any
) -> list[tuple[keras.Layer, int]]:
    """Returns those of the layers that a model calls, the first call first, and how often.

    Without those that it calls inside a function that the backend compiles.
    """
    counts: dict[keras.Layer, int] = {}
    hidden: set[keras.Layer] = set()
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        for layer in layers:

            def see(x: Any, y: Any, layer: keras.Layer = layer) -> None:
                counts[layer] = counts.get(layer, 0) + 1
                try:
                    as_floats(y)
                except Exception:  # of each backend another: y stands for numbers to come
                    hidden.add(layer)

            stack.enter_context(_seen(layer, see))
        _run(model, batch)
    return [(layer, count) for layer, count in counts.items() if layer not in hidden]


def calls_of(
    model: keras.Model, counts: Mapping[keras.Layer, int], batch: Any
) -> dict[keras.Layer, list[tuple[Array, Any]]]:
    """Returns of so many first calls of each layer the input, as floats, and the output.

    The model runs as in prediction, and no further than that.
    """
    calls: dict[keras.Layer, list[tuple[Array, Any]]] = {layer: [] for layer in counts}

    def see(layer: keras.Layer, x: Any, y: Any) -> None:
        if len(calls[layer]) < counts[layer]:
            calls[layer].append((as_floats(x), y))
        if all(len(calls[layer]) == count for layer, count in counts.items()):
            raise _Reached

    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        for layer in counts:
            stack.enter_context(_seen(layer, functools.partial(see, layer)))
        with contextlib.suppress(_Reached):
            _run(model, batch)
    return calls


def outputs_of(model: keras.Model, batch: Any) -> list[Array]:
    """Returns the outputs of a model in prediction, as floats."""
    return [as_floats(y) for y in keras.tree.flatten(_run(model, batch))]


def _run(model: keras.Model, batch: Any) -> Any:
    """Runs a model as in prediction; states, as of a recurrent layer, are as before after it."""
    with states_kept(model):
        return model(batch, training=False)


def as_floats(tensor: Any) -> Array:
    """Returns the values of a tensor or variable, of a type that NumPy computes with."""
    array = keras.ops.convert_to_numpy(tensor)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


class _Reached(BaseException):  # no Exception, which Keras would wrap in one of its own
    """The last call was seen: the rest of the model need not run."""


@contextlib.contextmanager
def _seen(layer: keras.Layer, see: Callable[[Any, Any], None]) -> Iterator[None]:
    """Shows the input and the output of each call of a layer to a function meanwhile."""
    call, own, thread = layer.call, vars(layer).get("call"), threading.get_ident()

    def shown(*args: Any, **kwargs: Any) -> Any:
        y = call(*args, **kwargs)
        if threading.get_ident() == thread:  # another may use the model meanwhile
            see(args[0] if args else next(iter(kwargs.values())), y)
        return y

    layer.call = shown
    try:
        yield
    finally:
        if own is None:
            del layer.call
        else:
            layer.call = own
