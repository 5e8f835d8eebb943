"""The layers of a Keras model, and the graph of calls that a functional one shows.

Keras has no public way to walk a functional graph or to list nested layers; the few
private names this takes (`_flatten_layers`, `_functional`, `_nodes_by_depth`,
`_trainable_variables`, `_non_trainable_variables`) stay in this module.
"""

from collections.abc import Iterator
from typing import Any

import keras
from keras import layers as kl

__all__ = [
    "all_layers",
    "batch_norms_after",
    "functional_graph",
    "is_of_keras",
    "linear_chain",
    "nodes_in_order",
    "own_trainable_weights",
    "own_weights",
    "sublayers",
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


def nodes_in_order(function: Any) -> Iterator[Any]:
    """Yields the calls of a functional graph, each after those it takes its inputs from."""
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def linear_chain(model: keras.Model) -> list[keras.Layer] | None:
    """Returns the layers one after the other, or `None` if the model is no plain chain."""
    function = _functional(model)
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
