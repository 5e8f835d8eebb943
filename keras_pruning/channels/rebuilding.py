"""Layers that were looked into, made anew with fewer channels: by their own configuration.

Where that cannot say the new sizes, what such a layer calls takes its place.
"""

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_pruning.channels.graph import HEAD_SIZES, BoolArray, ChannelGraph, FloatArray, Signal
from keras_pruning.models import (
    Inside,
    all_layers,
    as_floats,
    copy_own_state,
    copy_state,
    first_line,
    functional_graph,
    inputs_structure,
    inside,
    inside_model,
    model_config,
    model_from_config,
    nodes_in_order,
    outputs_structure,
    own_weights,
    random_like,
    states_kept,
    with_tensors,
)

__all__ = [
    "CannotUnroll",
    "alike",
    "fill_resized",
    "is_touched",
    "new_shapes",
    "resized",
    "unrolled",
]

Array = npt.NDArray[Any]

_MOST_TRIES = 64
_HIDDEN = "a weight of its own would be a constant there"
_Path = tuple[Any, ...]  # the keys to an entry of a nested configuration


class CannotUnroll(Exception):
    """A layer whose call cannot take its place; the message says why."""

    def __init__(self, layer: keras.Layer, why: str) -> None:
        super().__init__(why)
        self.layer = layer


def is_touched(layer: keras.Layer, graph: ChannelGraph, removed: BoolArray) -> bool:
    """Whether a layer that was looked into receives, holds or sends a channel that goes."""
    _, inputs, outputs = graph.opened[layer]
    inside = [ids for part in all_layers(layer) for ids in graph.cuts.get(part, {}).values()]
    return any(removed[ids].any() for ids in [*inside, *(s.ids for s in [*inputs, *outputs])])


def resized(
    model: keras.Layer,
    layer: keras.Layer,
    entry: dict[str, Any],
    graph: ChannelGraph,
    removed: BoolArray,
) -> dict[str, Any] | None:
    """Returns the configuration of a layer that was looked into, with the new sizes.

    Which entries count what, nobody says. Those are tried that are a size that has changed, or
    twice one; what is built of the right ones has weights of the right shapes, and sends what
    the layer sends.

    Args:
        model: The model that holds it.
        layer: A layer of `graph.opened`.
        entry: Its serialised form.
        graph: The channels.
        removed: Which ids go.

    Returns:
        `None` if there is no such configuration.
    """
    if any(part.bias is None for part, _ in _additions(layer, graph, removed)):
        return None
    trial = _Trial(model, layer, entry, graph, removed)
    places = trial.places()
    if len(places) > 1:
        places = [place for place in places if trial.matters(dict([place]))]
    choices = (
        dict(chosen)
        for count in range(len(places) + 1)
        for chosen in itertools.combinations(places, count)
    )
    for changes in itertools.islice(choices, _MOST_TRIES):
        if trial.fits(changes):
            return _changed(entry["config"], changes)
    return None


class _Trial:
    """Makes a layer anew of changed configurations, and compares it with the layer."""

    def __init__(
        self,
        model: keras.Layer,
        layer: keras.Layer,
        entry: dict[str, Any],
        graph: ChannelGraph,
        removed: BoolArray,
    ) -> None:
        self._model, self._layer, self._graph, self._removed = model, layer, graph, removed
        self._entry = {k: v for k, v in entry.items() if k not in ("build_config", "inbound_nodes")}
        self._node, inputs, self._outputs = graph.opened[layer]
        tensors = self._node.input_tensors
        self._signals = {id(t): signal for t, signal in zip(tensors, inputs, strict=True)}
        self._given = {id(t): random_like(t) for t in tensors}
        try:
            bears_them = all(np.isfinite(y).all() for y in self._called(layer, lambda x, _: x))
        except Exception:  # of the user's own code, of the backend: of any kind
            bears_them = False
        if not bears_them:
            self._given = {id(t): random_like(t, gentle=True) for t in tensors}
        for key, signal in self._signals.items():  # what goes is constant, or read by nobody
            for channel in np.flatnonzero(removed[signal.ids]).tolist() if signal.axis else ():
                place = (slice(None),) * signal.axis + (channel,)
                self._given[key][place] = np.nan_to_num(signal.values[channel])

    def places(self) -> list[tuple[_Path, int]]:
        """Returns what could be changed to what: sizes that have changed, and twice those."""
        sizes: dict[int, set[int]] = {}
        head_sizes = set()
        for variable, axis, keep in _cuts(self._layer, self._graph, self._removed):
            if not keep.all():
                for factor in (1, 2):
                    sizes.setdefault(factor * keep.size, set()).add(factor * int(keep.sum()))
                if axis == 1 and len(variable.shape) == 3:  # (inputs, heads, size)
                    head_sizes.add(int(variable.shape[-1]))
        # The size of a head that follows from their number must be said, once there are fewer.
        return [
            (path, size)
            for path, old in _numbers(self._entry["config"], ())
            for size in (head_sizes if old is None else sizes.get(old, ()))
        ]

    def matters(self, changes: dict[_Path, int]) -> bool:
        """Whether changes give the same weights in other shapes, as far as it can be told.

        What is said of heads matters once there are fewer.
        """
        if any(path[-1] in HEAD_SIZES for path in changes):
            return True
        new = self._made(changes)
        before = _shapes(self._layer)
        return new is None or len(new.weights) == len(before) and _shapes(new) != before

    def fits(self, changes: dict[_Path, int]) -> bool:
        """Whether a layer of what is left of the weights sends what is left of the outputs."""
        layer, graph, removed = self._layer, self._graph, self._removed
        new = self._made(changes)
        if new is None or _shapes(new) != new_shapes(layer, graph, removed):
            return False
        try:
            fill_resized(layer, new, graph, removed)
            sent = self._called(layer, lambda x, _: x)
            wanted = [self._without(y, s) for y, s in zip(sent, self._outputs, strict=True)]
            same = alike(self._called(new, self._without), wanted, layer)
            return same and self._tells(new) == [y.shape[1:] for y in wanted]
        except Exception:  # of the user's own code, of the backend: of any kind
            return False

    def _made(self, changes: dict[_Path, int]) -> keras.Layer | None:
        """Returns a layer, built by a call, or `None` if that fails."""
        config = _changed(self._entry["config"], changes)
        try:
            # A copy: wrappers take their configuration apart.
            entry = copy.deepcopy(self._entry | {"config": config})
            new: keras.Layer = model_from_config(self._model, entry)
            self._called(new, self._without)
        except Exception:  # of the user's own code, of the backend: of any kind
            return None
        return new

    def _tells(self, layer: keras.Layer) -> list[tuple[int, ...]]:
        """The shapes, without the batch, that a layer says it sends for the example's."""
        args, kwargs = with_tensors(
            (self._node.arguments.args, self._node.arguments.kwargs),
            lambda t: keras.KerasTensor(
                self._without(self._given[id(t)], self._signals[id(t)]).shape, t.dtype
            ),
        )
        return [tuple(y.shape[1:]) for y in keras.tree.flatten(layer(*args, **kwargs))]

    def _called(self, layer: keras.Layer, cut: Callable[[Array, Signal], Array]) -> list[Array]:
        args, kwargs = with_tensors(
            (self._node.arguments.args, self._node.arguments.kwargs),
            lambda t: keras.ops.convert_to_tensor(cut(self._given[id(t)], self._signals[id(t)])),
        )
        if "training" in inspect.signature(layer.call).parameters:
            kwargs = kwargs | {"training": False}
        with states_kept(layer):
            return [as_floats(y) for y in keras.tree.flatten(layer(*args, **kwargs))]

    def _without(self, values: Array, signal: Signal) -> Array:
        keep = ~self._removed[signal.ids]
        return np.compress(keep, values, signal.axis) if signal.axis else values


def new_shapes(
    layer: keras.Layer, graph: ChannelGraph, removed: BoolArray
) -> list[tuple[int, ...]]:
    """Returns the shapes that the weights inside a layer will have."""
    shapes = {id(variable): list(variable.shape) for variable in layer.weights}
    for variable, axis, keep in _cuts(layer, graph, removed):
        shapes[id(variable)][axis] = int(keep.sum())
    return [tuple(shapes[id(variable)]) for variable in layer.weights]


def _shapes(layer: keras.Layer) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in layer.weights]


def alike(ours: list[Array], theirs: list[Array], layer: keras.Layer) -> bool:
    """Whether what a layer sends is the same but for rounding."""
    in_half = layer.compute_dtype in ("float16", "bfloat16")
    tolerance = 3e-2 if in_half else 1e-4
    if [y.shape for y in ours] != [y.shape for y in theirs]:
        return False
    return all(  # example by example: small and large ones are among them
        np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=0)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(np.atleast_1d(one), np.atleast_1d(other), strict=True)
    )


def _cuts(
    layer: keras.Layer, graph: ChannelGraph, removed: BoolArray
) -> Iterator[tuple[keras.Variable, int, BoolArray]]:
    """Yields the weights inside a layer that lose channels, the axis, and which of it stay."""
    for part in all_layers(layer):
        for (name, axis), ids in graph.cuts.get(part, {}).items():
            yield next(v for v in part.weights if v.name == name), axis, ~removed[ids]


def _additions(
    layer: keras.Layer, graph: ChannelGraph, removed: BoolArray
) -> Iterator[tuple[Any, FloatArray]]:
    """Yields the layers inside whose bias takes over what removed channels add, and what."""
    for part in all_layers(layer):
        if part in graph.folds and (addition := graph.folds[part].addition(removed)).any():
            yield part, addition


def _numbers(config: Any, path: _Path) -> Iterator[tuple[_Path, int | None]]:
    """Yields the whole numbers of a nested configuration, each with the way to it.

    And sizes of heads that are `None`.
    """
    if isinstance(config, dict):
        for key, part in config.items():
            if key not in ("build_config", "dtype", "seed"):
                yield from _numbers(part, (*path, key))
    elif isinstance(config, (list, tuple)):
        for place, part in enumerate(config):
            yield from _numbers(part, (*path, place))
    elif isinstance(config, int) and not isinstance(config, bool):
        yield path, config
    elif config is None and path and path[-1] in HEAD_SIZES:
        yield path, None


def _changed(config: Any, changes: dict[_Path, int], path: _Path = ()) -> Any:
    """A copy of a nested configuration with other numbers."""
    if path in changes:
        return changes[path]
    if isinstance(config, dict):
        return {
            key: _changed(part, changes, (*path, key))
            for key, part in config.items()
            if key != "build_config"
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_changed(part, changes, (*path, i)) for i, part in enumerate(config))
    return config


def fill_resized(
    layer: keras.Layer, target: keras.Layer, graph: ChannelGraph, removed: BoolArray
) -> None:
    """Copies what is left of the weights into a layer of the configuration `resized`."""
    values: dict[int, Array] = {}

    def held(variable: keras.Variable) -> Array:
        return values.setdefault(id(variable), np.array(keras.ops.convert_to_numpy(variable)))

    for part, addition in _additions(layer, graph, removed):
        bias = held(part.bias)
        bias += addition.reshape(bias.shape).astype(bias.dtype)
    for variable, axis, keep in _cuts(layer, graph, removed):
        values[id(variable)] = np.compress(keep, held(variable), axis=axis)
    for part, new in zip(all_layers(layer), all_layers(target), strict=True):
        own = own_weights(part)
        if any(id(variable) in values for variable in own):
            for variable, smaller in zip(own, own_weights(new), strict=True):
                smaller.assign(held(variable))
                if smaller.trainable and not variable.trainable:
                    smaller.trainable = False
        else:
            copy_own_state(part, new)
        new.name = part.name  # one that its configuration does not tell is lost
        if new.trainable != part.trainable:
            new.trainable = part.trainable


def unrolled(model: keras.Model, layers: list[keras.Layer]) -> keras.Model:
    """Returns a functional model with what these layers call in their place.

    A weight that such a layer holds itself becomes an `Embedding` of one row.

    Args:
        model: A model; if it shows no graph, it is the one layer.
        layers: Layers of it, at any depth but not one inside another.

    Raises:
        CannotUnroll: If the call of one of them is no graph of layers and operations.
    """
    found: Any = functional_graph(model)
    if found is not None:
        taken, returned = inputs_structure(found), outputs_structure(found)
    else:
        found = inside_model(model)
        (taken, *more), named = found.arguments
        if more or named:
            raise CannotUnroll(model, "it takes several arguments, not one")
        if _has_hidden_weight(model, found, _symbols(found.arguments)):
            raise CannotUnroll(model, _HIDDEN)
        returned = found.returned
    structure = with_tensors(taken, _input_like)
    inputs = keras.tree.flatten(structure)
    outputs = _Unroller(model, layers, inputs).follow(found, inputs)
    return keras.Model(structure, keras.tree.pack_sequence_as(returned, outputs), name=model.name)


def _input_like(tensor: Any) -> Any:
    layer: Any = tensor._keras_history[0] if hasattr(tensor, "_keras_history") else None
    options = {}
    if isinstance(layer, kl.InputLayer):
        options = {"name": layer.name, "optional": getattr(layer, "optional", False)}
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, **options)


def _symbols(arguments: Any) -> Any:
    return with_tensors(arguments, lambda x: keras.KerasTensor(x.shape, x.dtype))


def _has_hidden_weight(layer: keras.Layer, found: Inside, symbols: Any) -> bool:
    """Whether a constant in what a layer calls follows from a weight, as of a table turned round.

    It is told by tracing once more, with other weights.
    """
    constants = _constants(found)
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in layer.trainable_variables]
    try:
        for variable, values in zip(layer.trainable_variables, before, strict=True):
            variable.assign(values + 1)
        again = inside(layer, *symbols)
        pairs = zip(constants, _constants(again), strict=True)
        return any(not np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    finally:
        for variable, values in zip(layer.trainable_variables, before, strict=True):
            variable.assign(values)


def _not_default(layer: keras.Layer, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call without those that say what holds anyway.

    Subclasses of Keras's layers that take more of them do not always know the shape they send.
    """
    known = inspect.signature(layer.call).parameters
    return {k: v for k, v in kwargs.items() if k not in known or v is not known[k].default}


def _constants(found: Inside) -> list[Array]:
    leaves = keras.tree.flatten([(n.arguments.args, n.arguments.kwargs) for n in found.nodes])
    # Copies: PyTorch's may share the memory of a weight.
    return [np.array(as_floats(leaf)) for leaf in leaves if keras.ops.is_tensor(leaf)]


class _Unroller:
    """Calls the layers of a model anew, copies of them."""

    def __init__(self, model: keras.Model, layers: list[keras.Layer], inputs: list[Any]) -> None:
        self._model, self._layers, self._inputs = model, layers, inputs
        self._copies: dict[int, keras.Layer] = {}
        self._weights: dict[int, Any] = {}
        self._names = {t.name for t in inputs}
        self._hidden: dict[str, bool] = {}

    def follow(self, found: Any, inputs: list[Any], prefix: str = "") -> Any:
        tensors = {id(t): new for t, new in zip(found.inputs, inputs, strict=True)}
        nodes = found.nodes if isinstance(found, Inside) else list(nodes_in_order(found))
        if isinstance(found, Inside):
            weights = {
                id(tensor): self._weight(variable, prefix) for tensor, variable in found.weights
            }
            constants = {
                id(tensor): self._of_constants(layer, given, prefix)
                for tensor, layer, given in found.sources
            }
            tensors.update(weights | constants)
        for node in nodes:
            if node.input_tensors:
                arguments = (node.arguments.args, node.arguments.kwargs)
                args, kwargs = with_tensors(arguments, lambda tensor: tensors[id(tensor)])
                sent = keras.tree.flatten(self._call(node.operation, args, kwargs, prefix))
                pairs = zip(node.output_tensors, sent, strict=True)
                tensors.update({id(t): new for t, new in pairs})
        return [tensors[id(t)] for t in found.outputs]

    def _call(self, operation: Any, args: Any, kwargs: dict[str, Any], prefix: str) -> Any:
        if not isinstance(operation, keras.Layer):
            config = {k: v for k, v in operation.get_config().items() if k != "name"}
            return type(operation)(**config)(*args, **kwargs)
        given = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        inner = f"{prefix}{operation.name}_"
        if any(operation is layer for layer in self._layers):
            kwargs = {name: value for name, value in kwargs.items() if name != "training"}
            symbols = _symbols((args, kwargs))
            try:
                found = inside(operation, *symbols)
                if self._hides_weight(operation, found, symbols):
                    raise CannotUnroll(operation, _HIDDEN)
                return self.follow(found, given, inner)
            except CannotUnroll:
                raise
            except Exception as error:  # of the user's own code, of the backend: of any kind
                raise CannotUnroll(operation, first_line(error)) from error
        kwargs = _not_default(operation, kwargs)
        function = functional_graph(operation)
        held = {id(part) for part in all_layers(operation)}
        if function is not None and (prefix or any(id(x) in held for x in self._layers)):
            return self.follow(function, given, inner)
        return self._copied(operation, prefix, lambda new: new(*args, **kwargs))

    def _hides_weight(self, layer: keras.Layer, found: Inside, symbols: Any) -> bool:
        """As `_has_hidden_weight`; of layers that are made alike one is asked."""
        shapes = [t.shape for t in keras.tree.flatten(symbols) if isinstance(t, keras.KerasTensor)]
        try:
            made_of: Any = model_config(layer)["config"] | {"name": ""}
        except ValueError:  # it tells none
            made_of = id(layer)
        key = repr((type(layer), made_of, shapes))
        if key not in self._hidden:
            self._hidden[key] = _has_hidden_weight(layer, found, symbols)
        return self._hidden[key]

    def _copied(self, layer: keras.Layer, prefix: str, call: Any) -> Any:
        """Calls the copy of a layer, which is made for its first call."""
        if id(layer) in self._copies:
            return call(self._copies[id(layer)])
        new = model_from_config(self._model, model_config(layer))
        sent = call(new)
        copy_state(layer, new)
        new.name = self._unique(prefix + layer.name)
        self._copies[id(layer)] = new
        return sent

    def _of_constants(self, layer: keras.Layer, given: Any, prefix: str) -> Any:
        zero = self._zero()
        args, kwargs = keras.tree.map_structure(
            lambda x: (
                keras.ops.add(keras.ops.cast(zero, x.dtype), x) if keras.ops.is_tensor(x) else x
            ),
            given,
        )
        return self._copied(layer, prefix, lambda new: new(*args, **kwargs))

    def _weight(self, variable: keras.Variable, prefix: str) -> Any:
        if id(variable) not in self._weights:
            values = keras.ops.convert_to_numpy(variable)
            table = kl.Embedding(1, values.size, name=self._unique(prefix + variable.name))
            row = table(keras.ops.expand_dims(self._zero(), 0))
            table.embeddings.assign(values.reshape(1, -1))
            table.trainable = variable.trainable
            self._weights[id(variable)] = keras.ops.reshape(row, values.shape)
        return self._weights[id(variable)]

    def _zero(self) -> Any:
        """A symbolic 0: what hangs on no input is no part of a functional model."""
        return keras.ops.sum(keras.ops.zeros_like(self._inputs[0], dtype="int32"))

    def _unique(self, name: str) -> str:
        names = (f"{name}_{number}" if number else name for number in itertools.count())
        found = next(name for name in names if name not in self._names)
        self._names.add(found)
        return found
