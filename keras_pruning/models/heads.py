"""Which kernel layers are a model's heads: what they send are its answers.

Every tensor is tagged with the kernel layers that it comes from with no other one between.
In a functional graph the tags follow the calls; what shows no graph, a custom block or a
subclassed model, is listened to while it runs (see `listening`).
"""

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import keras

from keras_pruning.models.functional import all_layers, functional_graph, nodes_in_order
from keras_pruning.models.listening import (
    CannotRun,
    Hearing,
    example_of_call,
    example_of_model,
    listen,
)

__all__ = ["head_layers"]

Tags = frozenset[int]  # ids of kernel layers
Feeds = dict[int, set[int]]  # id of a kernel layer to those that feed it directly

_known: "weakref.WeakKeyDictionary[keras.Model, tuple[Tags, Tags]]" = weakref.WeakKeyDictionary()
_one_at_a_time = threading.Lock()  # the layers of a model are changed while it is listened to


def head_layers(model: keras.Model, layers: Sequence[keras.Layer]) -> Tags:
    """Returns the ids of the layers whose outputs are the model's answers.

    Those that come last on the way to an output, if none of them feeds another. If one does,
    a stream passes by the last layer, as in a residual network without a head, and what
    comes out is no layer's answer.

    Args:
        model: A built model.
        layers: Its layers with kernels.

    Raises:
        ValueError: If the model shows no graph and cannot be run on an example.
    """
    ids = frozenset(map(id, layers))
    with _one_at_a_time:
        known = _known.get(model)
        if known is None or known[0] != ids:
            known = _known[model] = (ids, _Follower(layers).heads(model))
    return known[1]


class _Follower:
    """Follows the tags through a model and notes which kernel layer feeds which."""

    def __init__(self, layers: Sequence[keras.Layer]) -> None:
        self._layers = {id(layer): layer for layer in layers}
        self._feeds: Feeds = {place: set() for place in self._layers}

    def heads(self, model: keras.Model) -> Tags:
        heads: set[int] = set()
        for last in self._outputs_of(model):
            if not any(self._upstream(layer) & last for layer in last):
                heads |= last
        return frozenset(heads)

    def _outputs_of(self, model: keras.Model) -> list[Tags]:
        function = functional_graph(model)
        if function is not None:
            return self._graph(function, [frozenset()] * len(function.inputs))
        inside = self._inside(model)
        try:
            hearing = example_of_model(model, lambda example: listen(model, inside, example))
        except CannotRun as why:
            raise ValueError(
                f"The output layer of '{model.name}' ({type(model).__name__}), whose units are its "
                f"answers, cannot be told: the model shows no graph, and {why}. Say what to prune "
                "by `layers=[names]`; summary(model) lists them."
            ) from why
        return self._heard(hearing, [])

    def _graph(self, function: Any, inputs: list[Tags]) -> list[Tags]:
        tags = {id(t): heard for t, heard in zip(function.inputs, inputs, strict=True)}
        for node in nodes_in_order(function):
            if node.input_tensors:
                received = [tags[id(tensor)] for tensor in node.input_tensors]
                sent = self._call(node, received)
                tags |= {id(t): heard for t, heard in zip(node.output_tensors, sent, strict=True)}
        return [tags[id(tensor)] for tensor in function.outputs]

    def _call(self, node: Any, received: list[Tags]) -> list[Tags]:
        """Returns the tags of each output of a call."""
        operation, count = node.operation, len(node.output_tensors)
        everything: Tags = frozenset().union(*received)
        inside = self._inside(operation)
        if not inside:
            return [everything] * count
        if inside == [operation]:
            self._feeds[id(operation)] |= everything
            return [frozenset([id(operation)])] * count
        function = functional_graph(operation)
        if function is not None:
            matched = len(received) == len(function.inputs)
            return self._graph(
                function, received if matched else [everything] * len(function.inputs)
            )
        try:
            hearing = listen(operation, inside, example_of_call(node))
        except CannotRun:  # each of them may be last
            for layer in inside:
                self._feeds[id(layer)] |= everything
            return [frozenset(map(id, inside))] * count
        return self._heard(hearing, received)

    def _heard(self, hearing: Hearing, received: list[Tags]) -> list[Tags]:
        """Puts what was heard in place of the inputs and layers that were disturbed."""
        outputs: list[set[int]] = [set() for _ in range(hearing.count)]
        by_source = [(tags, hearing.by_input[i]) for i, tags in enumerate(received)]
        by_source += [(frozenset([layer]), heard) for layer, heard in hearing.by_layer.items()]
        for tags, (hearers, places) in by_source:
            for hearer in hearers:
                self._feeds[hearer] |= tags
            for place in places:
                outputs[place] |= tags
        return [frozenset(tags) for tags in outputs]

    def _inside(self, operation: Any) -> list[keras.Layer]:
        if not isinstance(operation, keras.Layer):
            return []
        return [part for part in all_layers(operation) if id(part) in self._layers]

    def _upstream(self, layer: int) -> set[int]:
        """The layers that feed a layer, directly or through others, without itself."""
        found: set[int] = set()
        new = set(self._feeds[layer])
        while new:
            found |= new
            new = set().union(*(self._feeds[part] for part in new)) - found
        return found - {layer}
