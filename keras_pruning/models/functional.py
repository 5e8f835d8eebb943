"""The layers of a Keras model, and the graph of calls that a functional one shows.

Keras has no public way to walk a functional graph or to list nested layers; the few private
names this takes (`_flatten_layers`, `_functional`, `_inputs_struct`, `_outputs_struct`,
`_nodes_by_depth`, `_inbound_nodes`, `_outbound_nodes`, `_trainable_variables`,
`_non_trainable_variables`) stay in this module.
"""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers as kl

__all__ = [
    "all_layers",
    "CannotTrace",
    "Inside",
    "batch_norms_after",
    "first_line",
    "functional_graph",
    "inside",
    "inside_model",
    "inputs_structure",
    "is_of_keras",
    "linear_chain",
    "nodes_in_order",
    "outputs_structure",
    "own_trainable_weights",
    "own_weights",
    "sublayers",
    "with_tensors",
]

# Layers that treat each unit apart, between a layer and its BatchNormalization.
_UNITWISE = (
    kl.Activation, kl.ReLU, kl.LeakyReLU, kl.PReLU, kl.ELU,
    kl.Dropout, kl.SpatialDropout1D, kl.SpatialDropout2D, kl.SpatialDropout3D,
    kl.GaussianDropout, kl.GaussianNoise, kl.AlphaDropout, kl.Rescaling,
    kl.MaxPooling1D, kl.MaxPooling2D, kl.MaxPooling3D,
    kl.AveragePooling1D, kl.AveragePooling2D, kl.AveragePooling3D,
)  # fmt: skip


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layers that a layer or model holds itself, not those inside them."""
    return layer._flatten_layers(include_self=False, recursive=False)


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layers at every depth, the given and nested ones too, each once."""
    return list({id(part): part for part in layer._flatten_layers()}.values())


def own_trainable_weights(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the trainable weights of a layer itself, frozen or not, not of those inside it."""
    return list(layer._trainable_variables)


def own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """Returns all weights of a layer itself, not of those inside it."""
    return layer._trainable_variables + layer._non_trainable_variables


def is_of_keras(layer: keras.Layer) -> bool:
    """Whether the layer's class is Keras's own."""
    return type(layer).__module__.split(".")[0] == "keras"


def functional_graph(model: keras.Layer) -> Any | None:
    """Returns the functional graph that calling the model runs, or `None` if it has none.

    The graph has `inputs` and `outputs`, flat lists of symbolic tensors.
    """
    function, kind = _functional(model), type(model)
    runs_it = any(
        base.__name__ in ("Functional", "Sequential")
        and getattr(base, "call", None) is getattr(kind, "call", None)
        for base in kind.__mro__
        if base.__module__.split(".")[0] == "keras"
    )
    return function if runs_it else None


def first_line(error: Exception) -> str:
    """Returns the beginning of what an error says, to be told in a sentence of ours."""
    lines = [re.sub("\x1b.*?m", "", line).strip() for line in str(error).splitlines()]
    said = [x for x in lines if x and not x.startswith("Exception encountered when calling")]
    return (said or ["no message"])[0][:200]


class CannotTrace(Exception):
    """A layer whose call is no graph of layers and operations; the message says why."""


@dataclass(frozen=True)
class Inside:
    """What a layer's call is made of: calls of other layers and of operations."""

    inputs: list[Any]  # symbolic tensors, in the order in which they were given
    weights: list[tuple[Any, keras.Variable]]  # of its own that it reads, as symbolic tensors
    sources: list[tuple[Any, keras.Layer, Any]]  # what a layer gives for constants, (args, kwargs)
    outputs: list[Any]
    nodes: list[Any]  # the calls, each after those it takes its inputs from
    arguments: tuple[Any, dict[str, Any]]  # that it was called with
    returned: Any  # the structure of the outputs
    asks_for_batch: bool  # it was followed for one example, since it asks how many there are


def inside(layer: keras.Layer, args: Any, kwargs: dict[str, Any]) -> Inside:
    """Returns what a layer calls when it is called with symbolic tensors, in prediction.

    A call that asks for the size of the batch is followed for one example, and what it calls
    is called again for any number of them. Neither the layer nor the tensors are changed.

    Raises:
        CannotTrace: If its `call` fails on symbolic tensors, or does not use them.
    """
    try:
        return _inside(layer, args, kwargs)
    except CannotTrace as why:
        shapes = [t.shape for t in keras.tree.flatten((args, kwargs)) if _is_symbol(t)]
        if not any(shape[:1] == (None,) for shape in shapes) or any(None in s[1:] for s in shapes):
            raise
        one = with_tensors((args, kwargs), lambda t: _with_batch(t, 1))
        try:
            return _inside(layer, one[0], one[1], is_one_example=True)
        except CannotTrace:
            raise why from None


def _inside(
    layer: keras.Layer, args: Any, kwargs: dict[str, Any], is_one_example: bool = False
) -> Inside:
    given = [t for t in keras.tree.flatten((args, kwargs)) if _is_symbol(t)]
    own = {name: v for name, v in vars(layer).items() if isinstance(v, keras.Variable)}
    stand_ins = {name: keras.KerasTensor(tuple(v.shape), v.dtype) for name, v in own.items()}
    takes_training = "training" in inspect.signature(layer.call).parameters
    training = {"training": False} if takes_training else {}
    with _as_before(layer), _constants_noted(layer) as sources:
        vars(layer).update(stand_ins)
        try:
            returned = layer.call(*args, **kwargs, **training)
            sent = keras.tree.flatten(returned)
            if is_one_example:
                given, sent = _for_any_number(given, sent)
            starts = [*given, *stand_ins.values(), *(tensor for tensor, *_ in sources)]
            at_once = {id(tensor) for tensor in starts}
            outputs = [keras.ops.copy(t) if id(t) in at_once else t for t in sent]
            used = [t for t in starts if hasattr(t, "_keras_history")]
            function = keras.Function(used, outputs)
        except Exception as error:  # of the user's own code, of the backend: of any kind
            raise CannotTrace(f"{type(error).__name__}: {first_line(error)}") from error
    nodes = [node for node in nodes_in_order(function) if node.input_tensors]
    if any(None in _new_shape(node.operation) for node in nodes):
        raise CannotTrace("it gives a tensor a shape with an open size")
    read = {id(tensor) for node in nodes for tensor in node.input_tensors}
    weights = [(stand_ins[name], v) for name, v in own.items() if id(stand_ins[name]) in read]
    outputs = list(function.outputs)
    return Inside(given, weights, sources, outputs, nodes, (args, kwargs), returned, is_one_example)


def _for_any_number(given: list[Any], sent: list[Any]) -> tuple[list[Any], list[Any]]:
    """Returns the symbols of one example and what became of them, for any number of examples."""
    new = {id(t): _with_batch(t, None) for t in given}
    starts = [t for t in given if hasattr(t, "_keras_history")]
    for node in nodes_in_order(keras.Function(starts, sent)):
        if not node.input_tensors:
            continue
        args, kwargs = with_tensors(
            (node.arguments.args, node.arguments.kwargs), lambda t: new.get(id(t), t)
        )
        received = [t for t in keras.tree.flatten((args, kwargs)) if _is_symbol(t)]
        is_open = any(t.shape[:1] == (None,) for t in received)
        operation, shape = node.operation, node.output_tensors[0].shape
        if is_open and _new_shape(operation) and shape[:1] == (1,):
            args, kwargs = (args[0],), {}
            operation = type(operation)((-1, *shape[1:]))
        outputs = keras.tree.flatten(operation(*args, **kwargs))
        if is_open and any(t.shape[:1] != (None,) for t in outputs):
            raise CannotTrace(f"its {operation.name} depends on the size of the batch")
        new.update({id(t): o for t, o in zip(node.output_tensors, outputs, strict=True)})
    return [new[id(t)] for t in given], [new.get(id(t), t) for t in sent]


def _new_shape(operation: Any) -> tuple[int | None, ...]:
    """The shape that an operation `reshape` gives, batch and all; of others nothing."""
    if isinstance(operation, keras.Layer) or type(operation).__name__ != "Reshape":
        return ()
    return tuple(operation.get_config()["newshape"])


def _is_symbol(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _with_batch(tensor: Any, size: int | None) -> Any:
    return keras.KerasTensor((size, *tensor.shape[1:]), tensor.dtype)


@contextlib.contextmanager
def _as_before(layer: keras.Layer) -> Iterator[None]:
    """Gives layers their attributes back, and takes away the calls that are noted meanwhile.

    Also from the operations of the models among them.
    """
    parts = all_layers(layer)
    attributes = [dict(vars(part)) for part in parts]
    graphs = [graph for part in parts if (graph := functional_graph(part)) is not None]
    between = [node.operation for graph in graphs for node in nodes_in_order(graph)]
    called = list({id(one): one for one in (*parts, *between)}.values())
    counts = [(len(one._inbound_nodes), len(one._outbound_nodes)) for one in called]
    try:
        yield
    finally:
        for part, before in zip(parts, attributes, strict=True):
            for name in vars(part).keys() - before.keys():
                del vars(part)[name]
            vars(part).update(before)
        for one, (n_inbound, n_outbound) in zip(called, counts, strict=True):
            del one._inbound_nodes[n_inbound:], one._outbound_nodes[n_outbound:]


@contextlib.contextmanager
def _constants_noted(layer: keras.Layer) -> Iterator[list[tuple[Any, keras.Layer, Any]]]:
    """Notes meanwhile what layers inside send for constants, which is symbolic then too.

    An embedding of all positions, say, would come out as an array, and its weights be lost.
    """
    sources: list[tuple[Any, keras.Layer, Any]] = []
    parts = [part for part in all_layers(layer)[1:] if part.weights]
    depth = 0  # of layers that are asked for the shapes they send: they call others with arrays

    def noting(part: keras.Layer) -> None:
        call, compute_output_spec = part.call, part.compute_output_spec

        def noted_call(*args: Any, **kwargs: Any) -> Any:
            leaves = keras.tree.flatten((args, kwargs))
            if depth or any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
                return call(*args, **kwargs)
            sent = call(*args, **kwargs)
            tensor = keras.KerasTensor(
                tuple(sent.shape), keras.backend.standardize_dtype(sent.dtype)
            )
            sources.append((tensor, part, (args, kwargs)))
            return tensor

        def noted_spec(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                try:
                    sent = compute_output_spec(*args, **kwargs)
                except TypeError:  # subclasses whose call takes more than it knows of
                    sent = keras.Operation.compute_output_spec(part, *args, **kwargs)
                return _with_known_sizes(part, args, sent)
            finally:
                depth -= 1

        vars(part)["call"], vars(part)["compute_output_spec"] = noted_call, noted_spec

    for part in parts:
        noting(part)
    yield sources  # `_as_before` takes both away


def _with_known_sizes(layer: keras.Layer, args: tuple[Any, ...], sent: Any) -> Any:
    """What an EinsumDense sends, with the sizes of its input that its configuration leaves open."""
    if not isinstance(layer, kl.EinsumDense) or not args or "..." in layer.equation:
        return sent
    inputs, _, outputs = layer.equation.replace("->", ",").split(",")
    sizes = dict(zip(inputs, args[0].shape, strict=False))
    shape = [size or sizes.get(axis) for axis, size in zip(outputs, sent.shape, strict=False)]
    return keras.KerasTensor(tuple(shape), sent.dtype)


def inside_model(model: keras.Model) -> Inside:
    """Returns what a model without a graph calls, on inputs of the shapes it was built with.

    Raises:
        CannotTrace: As `inside`; also if it does not know its shapes.
    """
    try:
        return inside(model, *_arguments(model, "float32"))
    except CannotTrace as why:  # the type of its inputs is not known: token ids perhaps
        with contextlib.suppress(CannotTrace):
            return inside(model, *_arguments(model, "int32"))
        raise why


def with_tensors(structure: Any, new: Callable[[Any], Any]) -> Any:
    """Returns a structure of arguments with other things in the place of symbolic tensors."""
    return keras.tree.map_structure(lambda leaf: new(leaf) if _is_symbol(leaf) else leaf, structure)


def _arguments(model: keras.Model, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns symbolic arguments of the shapes that a model without a graph was built with."""
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"": config.get("input_shape")}
    if None in shapes.values():
        raise CannotTrace("it does not know the shape of its inputs")

    def filled(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: filled(part) for name, part in shape.items()}
        if any(not isinstance(size, (int, type(None))) for size in shape):
            return type(shape)(filled(part) for part in shape)
        return keras.KerasTensor((None, *shape[1:]), dtype)

    named = {name.removesuffix("_shape"): filled(shape) for name, shape in shapes.items()}
    return ((named.pop(""),) if "" in named else ()), named


def inputs_structure(function: Any) -> Any:
    """Returns the inputs of a functional graph in the structure in which it takes them."""
    return function._inputs_struct


def outputs_structure(function: Any) -> Any:
    """Returns the outputs of a functional graph in the structure in which it gives them."""
    return function._outputs_struct


def nodes_in_order(function: Any) -> Iterator[Any]:
    """Yields the calls of a functional graph, each after those it takes its inputs from."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def linear_chain(model: keras.Model) -> list[keras.Layer] | None:
    """Returns the layers one after the other, or `None` if the model is no plain chain."""
    function = functional_graph(model)
    if function is None or len(function.inputs) != 1 or len(function.outputs) != 1:
        return None
    nodes = list(nodes_in_order(function))
    links = zip(nodes, nodes[1:], strict=False)
    chained = all(
        [id(t) for t in after.input_tensors] == [id(t) for t in before.output_tensors]
        for before, after in links
    )
    layers = [node.operation for node in nodes]
    return layers if chained and all(isinstance(x, keras.Layer) for x in layers) else None


def batch_norms_after(model: keras.Model, layer: keras.Layer) -> list[kl.BatchNormalization]:
    """Returns the BatchNormalization layers that normalise the units of `layer` alone.

    Followed through activations, dropout and pooling within one functional graph. A
    subclassed model shows no graph: the list is empty.
    """
    found = []
    for function in _functions(model):
        nodes = list(nodes_in_order(function))
        reached = {id(t) for node in nodes if node.operation is layer for t in node.output_tensors}
        for node in nodes:
            operation = node.operation
            from_layer = bool(node.input_tensors) and all(
                id(t) in reached for t in node.input_tensors
            )
            if not from_layer:
                continue
            is_norm = isinstance(operation, kl.BatchNormalization)
            if is_norm and not _same_axis(operation, layer, node.input_tensors[0]):
                continue
            if is_norm or isinstance(operation, _UNITWISE):
                reached |= {id(t) for t in node.output_tensors}
            if is_norm and _only_called_on(operation, nodes, reached):
                found.append(operation)
    return list(dict.fromkeys(found))


def _functional(model: keras.Layer) -> Any | None:
    """The functional graph behind a Functional or Sequential model, else `None`."""
    function = getattr(model, "_functional", None) or model
    return function if hasattr(function, "_nodes_by_depth") else None


def _functions(model: keras.Model) -> list[Any]:
    functions = (_functional(layer) for layer in all_layers(model))
    return list({id(f): f for f in functions if f is not None}.values())


def _same_axis(norm: kl.BatchNormalization, layer: keras.Layer, tensor: Any) -> bool:
    rank = len(tensor.shape)
    unit_axis = 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1
    return norm.axis % rank == unit_axis


def _only_called_on(operation: Any, nodes: list[Any], reached: set[int]) -> bool:
    calls = [node for node in nodes if node.operation is operation]
    return all(id(t) in reached for node in calls for t in node.input_tensors)
