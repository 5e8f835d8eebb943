"""Which layers hear which, in a part of a model that shows no graph.

It is run on a small example, and in place of what its kernel layers send stand fixed numbers.
Then those of one layer, or an input, are disturbed: what hears it changes, and only what hears
it directly, since the layers in between send what they sent before.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_pruning.models.functional import (
    all_layers,
    first_line,
    functional_graph,
    inputs_structure,
    own_trainable_weights,
    with_tensors,
)

__all__ = [
    "CannotRun",
    "Example",
    "Hearing",
    "example_of_call",
    "example_of_model",
    "listen",
    "random_inputs",
    "random_like",
    "with_sizes",
    "states_kept",
]

Arrays = list[npt.NDArray[Any]]
Heard = tuple[frozenset[int], frozenset[int]]  # ids of layers, places of outputs
Example = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments

_EXAMPLES = 2
_FREE_SIZE = 32  # of an axis whose size is free: an image that some pooling leaves something of
_FREE_LENGTH = 8  # of a sequence, that no table of positions is too short for


class CannotRun(Exception):
    """A part of a model that cannot be listened to; the message says why."""


@dataclass(frozen=True)
class Hearing:
    """What hears each input, by its place, and each layer, by its id, and how many outputs."""

    by_input: dict[int, Heard]
    by_layer: dict[int, Heard]
    count: int


def listen(operation: keras.Layer, layers: Sequence[keras.Layer], example: Example) -> Hearing:
    """Returns what hears each of the layers inside an operation, and each of its inputs.

    It runs as in prediction, and is as before afterwards, its weights and states too.

    Raises:
        CannotRun: If it fails on the example, or is random at inference.
    """
    stage = _Stage(_innermost(layers))
    places = [i for i, leaf in enumerate(keras.tree.flatten(example)) if _is_array(leaf)]
    try:
        with stage.set_up(), states_kept(operation) as restore:
            run = _runner(operation, stage, restore)
            run(example)  # what each layer sends is noted
            still = run(example)
            if _changes(still, run(example)) != (frozenset(), frozenset()):
                raise CannotRun("it is random at inference")
            by_input = {
                number: _changes(still, run(_with_disturbed_leaf(example, place)))
                for number, place in enumerate(places)
            }
            by_layer = {}
            for layer in layers:
                with stage.disturbing(layer):
                    heard = by_layer[id(layer)] = _changes(still, run(example))
                if any(heard) and stage.stands_before(layer) and id(layer) not in still[0]:
                    raise CannotRun(f"its layer '{layer.name}' is used without being called")
            if not any(outputs for _, outputs in by_layer.values()):
                raise CannotRun("no output of it changes with what its layers send")
    except CannotRun:
        raise
    except Exception as error:  # of the user's own code, of the backend: of any kind
        raise CannotRun(
            f"it fails on an example ({type(error).__name__}: {first_line(error)})"
        ) from error
    return Hearing(by_input, by_layer, len(still[1]))


def _innermost(layers: Sequence[keras.Layer]) -> list[keras.Layer]:
    """Those that hold none of the others; while a layer is stood in for, what it holds is mute."""
    ids = set(map(id, layers))
    return [x for x in layers if not any(id(part) in ids for part in all_layers(x)[1:])]


def example_of_call(node: Any) -> Example:
    """Returns arguments like those of a call in a functional graph."""
    return keras.tree.map_structure(
        lambda leaf: (
            _random(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))
            if isinstance(leaf, keras.KerasTensor)
            else leaf
        ),
        (tuple(node.arguments.args), dict(node.arguments.kwargs)),
    )


def example_of_model(model: keras.Model, use: Callable[[Example], Hearing]) -> Hearing:
    """Returns `use(example)` for the first example that the model takes.

    It has the shapes that the model was built with. Their type is not known: floating-point
    numbers are tried, then whole ones; first two examples, then as many as it was built with.

    Raises:
        CannotRun: If it takes none of them.
    """
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"": config.get("input_shape")}
    if None in shapes.values():
        raise CannotRun("does not know the shape of its inputs")
    for dtype in ("float32", "int32"):
        for n_examples in (_EXAMPLES, None):
            arrays = {
                name.removesuffix("_shape"): _filled(shape, dtype, n_examples)
                for name, shape in shapes.items()
            }
            positional = (arrays.pop(""),) if "" in arrays else ()
            try:
                return use((positional, arrays))
            except CannotRun as why:
                reason = why
    raise reason


class _Stage:
    """Stands before some layers: notes what each hears, and always sends the same for it.

    Not what the layer would send: that may be a constant, as after pruning, which would hide
    what hears it.
    """

    def __init__(self, layers: Sequence[keras.Layer]) -> None:
        self._layers = layers
        self._sent: dict[tuple[int, int], Any] = {}  # by layer and the number of its call
        self._calls: dict[int, int] = {}
        self._disturbed: int | None = None
        self.heard: dict[int, Arrays] = {}

    @contextlib.contextmanager
    def set_up(self) -> Iterator[None]:
        watched = [(layer, name) for layer in self._layers for name in ("call", "quantized_call")]
        own = [vars(layer).get(name) for layer, name in watched]  # of the user's own
        try:
            for layer, name in watched:
                if hasattr(layer, name):
                    setattr(layer, name, self._standing_in(layer, getattr(layer, name)))
            yield
        finally:
            for (layer, name), before in zip(watched, own, strict=True):
                if before is not None:
                    setattr(layer, name, before)
                elif name in vars(layer):
                    delattr(layer, name)

    def stands_before(self, layer: keras.Layer) -> bool:
        return any(layer is part for part in self._layers)

    def begin(self) -> None:
        self._calls, self.heard = {}, {}

    @contextlib.contextmanager
    def disturbing(self, layer: keras.Layer) -> Iterator[None]:
        """Disturbs what a layer sends, or its weights if nothing calls it as a layer."""
        if id(layer) in self._calls:
            self._disturbed = id(layer)
            yield
            self._disturbed = None
            return
        weights = own_trainable_weights(layer)
        before = [keras.ops.convert_to_numpy(weight).copy() for weight in weights]
        try:
            for weight, values in zip(weights, before, strict=True):
                weight.assign(_disturbed(values))
            yield
        finally:
            for weight, values in zip(weights, before, strict=True):
                weight.assign(values)

    def _standing_in(self, layer: keras.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            number = self._calls[id(layer)] = self._calls.get(id(layer), 0) + 1
            self.heard.setdefault(id(layer), []).extend(_arrays((args, kwargs)))
            if (id(layer), number) not in self._sent:
                self._sent[id(layer), number] = _disturbed_tensors(call(*args, **kwargs))
            sent = self._sent[id(layer), number]
            return _disturbed_tensors(sent) if id(layer) == self._disturbed else sent

        return stand_in


def _runner(
    operation: keras.Layer, stage: _Stage, restore: Callable[[], None]
) -> Callable[[Example], tuple[dict[int, Arrays], Arrays]]:
    parameters = list(inspect.signature(operation.call).parameters)

    def run(example: Example) -> tuple[dict[int, Arrays], Arrays]:
        restore()
        stage.begin()
        args, kwargs = keras.tree.map_structure(
            lambda leaf: keras.ops.convert_to_tensor(leaf) if _is_array(leaf) else leaf, example
        )
        if "training" in parameters[len(args) :] and kwargs.get("training") is None:
            kwargs = kwargs | {"training": False}  # whatever its default
        outputs = operation(*args, **kwargs)
        return stage.heard, _arrays(outputs)

    return run


@contextlib.contextmanager
def states_kept(operation: keras.Layer) -> Iterator[Callable[[], None]]:
    """Gives a function that sets back what calls have changed, and calls it at the end."""
    states = _states(operation)

    def restore() -> None:
        for variable, values in states:
            if not np.array_equal(keras.ops.convert_to_numpy(variable), values):
                variable.assign(values)

    try:
        yield restore
    finally:
        restore()


def _states(operation: keras.Layer) -> list[tuple[keras.Variable, npt.NDArray[Any]]]:
    """What a call may change: random states, and weights that are not trained."""
    parts = all_layers(operation)
    trained = {id(weight) for part in parts for weight in own_trainable_weights(part)}
    states = [v for v in operation.non_trainable_variables if id(v) not in trained]
    for part in parts:  # what a stateful layer remembers stands in no list of variables
        remembered = keras.tree.flatten(part.states) if isinstance(part, keras.layers.RNN) else []
        states += [v for v in remembered if isinstance(v, keras.Variable)]
    return [(v, keras.ops.convert_to_numpy(v).copy()) for v in states]


def _changes(
    before: tuple[dict[int, Arrays], Arrays], after: tuple[dict[int, Arrays], Arrays]
) -> Heard:
    layers = frozenset(
        layer for layer, heard in before[0].items() if _differ(heard, after[0].get(layer, []))
    )
    pairs = zip(before[1], after[1], strict=True)
    return layers, frozenset(i for i, (a, b) in enumerate(pairs) if _differ([a], [b]))


def _differ(before: Arrays, after: Arrays) -> bool:
    """Whether arrays differ by more than rounding."""
    return len(before) != len(after) or any(
        a.shape != b.shape or not np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(before, after, strict=True)
    )


def _with_disturbed_leaf(example: Example, place: int) -> Example:
    leaves = keras.tree.flatten(example)
    leaves[place] = _disturbed(leaves[place])
    return keras.tree.pack_sequence_as(example, leaves)


def _disturbed_tensors(sent: Any) -> Any:
    return keras.tree.map_structure(
        lambda t: keras.ops.convert_to_tensor(_disturbed(keras.ops.convert_to_numpy(t))), sent
    )


def _disturbed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Other values of the same type: neighbours are moved up and down."""
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind in "iu":
        return 1 - values  # the examples are 0 and 1
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(values.size).reshape(values.shape) % 2, 1.0, -1.0)
    scale = 1 + np.abs(values.astype(np.float32)).max(initial=0)
    moved = values + scale * signs * rng.uniform(0.5, 1.5, values.shape)
    return moved.astype(values.dtype)


def random_inputs(model: keras.Model, *, gentle: bool = False) -> Any:
    """Returns two examples for a functional model, in the structure that it takes."""
    structure = inputs_structure(functional_graph(model))
    return with_tensors(structure, functools.partial(random_like, gentle=gentle))


def random_like(tensor: Any, *, gentle: bool = False) -> npt.NDArray[Any]:
    """Returns numbers for a symbolic tensor: small and large floats of both signs, or 0 and 1.

    Gentle ones are between 0 and 1, as the numbers of tokens may have to be.
    """
    values = _random(tensor.shape, keras.backend.standardize_dtype(tensor.dtype))
    if gentle or values.dtype.kind != "f" or not values.ndim:
        return values
    numbers = np.random.default_rng(1).normal(size=values.shape)
    numbers[1::2] *= 30
    return numbers.astype(values.dtype)


def _filled(shape: Any, dtype: str, n_examples: int | None) -> Any:
    """Random arrays in the place of shapes, which may be nested."""
    if isinstance(shape, dict):
        return {name: _filled(part, dtype, n_examples) for name, part in shape.items()}
    if any(not isinstance(size, (int, type(None))) for size in shape):
        return type(shape)(_filled(part, dtype, n_examples) for part in shape)
    first = (n_examples,) if n_examples else tuple(shape[:1])
    return _random((*first, *shape[1:]), dtype)


def with_sizes(shape: Any) -> tuple[int, ...]:
    """Returns a shape with numbers for open sizes: of an image larger ones than of a sequence."""
    free = _FREE_SIZE if len(shape) > 3 else _FREE_LENGTH
    first, *sizes = shape or (1,)
    known = (first or _EXAMPLES, *(size or free for size in sizes))
    return known if shape else ()


def _random(shape: Any, dtype: str) -> npt.NDArray[Any]:
    sizes = with_sizes(shape)
    rng = np.random.default_rng(0)
    if "float" in dtype:
        return rng.random(sizes, np.float32).astype(
            np.dtype("float32") if dtype == "bfloat16" else dtype
        )
    return rng.integers(0, 2, sizes).astype(dtype)


def _arrays(structure: Any) -> Arrays:
    tensors = [t for t in keras.tree.flatten(structure) if keras.ops.is_tensor(t)]
    arrays = [keras.ops.convert_to_numpy(tensor) for tensor in tensors]
    # NumPy compares no bfloat16
    return [a if a.dtype.kind in "biuf" else a.astype(np.float32) for a in arrays]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray)
