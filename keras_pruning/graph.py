"""What a Keras model is made of: its kernels, its output layers, a copy of it.

Keras has no public way to walk a functional graph or to list nested layers; the few
private names this takes (`_flatten_layers`, `_functional`, `_nodes_by_depth`,
`_keras_history`, `_compile_config`) stay in this module.
"""

import copy
import inspect
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

__all__ = [
    "KernelLayer",
    "all_layers",
    "batch_norms_after",
    "compile_for_inference",
    "copy_for_inference",
    "copy_model",
    "copy_state",
    "functional_graph",
    "kernel_layers",
    "linear_chain",
    "loss_head",
    "model_config",
    "model_from_config",
    "nodes_in_order",
]

_CONV_TRANSPOSE = (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)
_SEPARABLE = (kl.SeparableConv1D, kl.SeparableConv2D)
_CONV = (kl.Conv1D, kl.Conv2D, kl.Conv3D, *_CONV_TRANSPOSE, *_SEPARABLE)
_DEPTHWISE = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)
_WITH_UNITS = (kl.Dense, *_CONV)
_WITH_KERNELS = (*_WITH_UNITS, *_DEPTHWISE, kl.RNN, kl.EinsumDense, kl.Embedding)
_KERNEL_NAMES = {
    "depthwise_kernel",
    "embeddings",
    "kernel",
    "pointwise_kernel",
    "recurrent_kernel",
}
# Layers that treat each unit apart, between a layer and its BatchNormalization.
_UNITWISE = (
    kl.Activation, kl.ReLU, kl.LeakyReLU, kl.PReLU, kl.ELU,
    kl.Dropout, kl.SpatialDropout1D, kl.SpatialDropout2D, kl.SpatialDropout3D,
    kl.GaussianDropout, kl.GaussianNoise, kl.AlphaDropout, kl.Rescaling,
    kl.MaxPooling1D, kl.MaxPooling2D, kl.MaxPooling3D,
    kl.AveragePooling1D, kl.AveragePooling2D, kl.AveragePooling3D,
)  # fmt: skip


@dataclass(frozen=True)
class KernelLayer:
    """A layer that holds kernels: its name in the model, its kernels, its part in it."""

    name: str  # with the names of the nested models around it: "encoder/dense_1"
    layer: keras.Layer
    kernels: tuple[keras.Variable, ...]
    is_output: bool

    @property
    def has_units(self) -> bool:
        """Whether whole units of it can be pruned: Dense and convolutions."""
        return isinstance(self.layer, _WITH_UNITS)

    @property
    def unit_kernel(self) -> keras.Variable:
        """The kernel whose slices are the units; of a separable convolution, the pointwise."""
        return self.kernels[-1]

    @property
    def unit_axis(self) -> int:
        """The axis of `unit_kernel` that counts the units."""
        return -2 if isinstance(self.layer, _CONV_TRANSPOSE) else -1

    def alive_units(self, kernel: npt.NDArray[Any] | None = None) -> npt.NDArray[np.bool_]:
        """Which units have a weight that is not zero, shape `(units,)`.

        Args:
            kernel: Values to look at instead of those of `unit_kernel`.
        """
        if kernel is None:
            kernel = keras.ops.convert_to_numpy(self.unit_kernel)
        columns = np.moveaxis(kernel, self.unit_axis, -1)
        return (columns != 0).any(axis=tuple(range(columns.ndim - 1)))

    @property
    def bias(self) -> keras.Variable | None:
        """The bias, shape `(units,)`, or `None`."""
        return next((v for v in self.layer.weights if v.name == "bias"), None)


def kernel_layers(model: keras.Model) -> list[KernelLayer]:
    """Returns the layers that hold kernels, nested ones too, each once, in model order.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built: it has no weights yet.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected a Keras model. Received: {type(model).__name__}")
    named = list(_walk(model))
    unbuilt = [name for name, layer in named if not layer.built]
    if unbuilt or not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no weights to prune"
            + (f" (layers {unbuilt})" if unbuilt else "")
            + ". Give it an Input layer, call model.build(input_shape), or call it on a batch."
        )
    outputs = _output_ids(model, [layer for _, layer in named])
    return [
        KernelLayer(name, layer, _kernels(layer), id(layer) in outputs) for name, layer in named
    ]


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers at every depth, the model and nested ones too, each once."""
    return list({id(layer): layer for layer in model._flatten_layers()}.values())


def batch_norms_after(model: keras.Model, layer: keras.Layer) -> list[kl.BatchNormalization]:
    """Returns the BatchNormalization layers that normalise the units of `layer` alone.

    Followed through activations, dropout and pooling within one functional graph. A
    subclassed model shows no graph: the list is empty.
    """
    found = []
    for function in _functions(model):
        nodes = [node for depth in function._nodes_by_depth.values() for node in depth]
        reached = {id(t) for node in nodes if node.operation is layer for t in node.output_tensors}
        for node in _in_order(function):
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


def copy_model(model: keras.Model) -> keras.Model:
    """Returns an independent copy: weights, names, compile state, optimizer state.

    Goes through Keras's own serialisation in memory. Custom classes and functions
    that the model holds need not be registered.

    Raises:
        ValueError: If Keras cannot serialise the model; says why and what to do.
    """
    try:
        with keras.saving.custom_object_scope(_custom_objects(model)):
            compiled = model.get_compile_config() if model.compiled else None
            if compiled is None or model.optimizer.built:
                # A Lambda layer's code is in this process already: nothing unsafe is loaded.
                return copy.deepcopy(model)
            # A deep copy is a file in memory, and its optimizer is built: nine times the weights.
            copied = copy_for_inference(model)
            compile_for_inference(copied, model)
            config = keras.optimizers.serialize(model.optimizer)
            copied.optimizer = keras.optimizers.deserialize(config)
            copied._compile_config.config["optimizer"] = copied.optimizer
            return copied
    except _NOT_SERIALIZABLE as error:
        raise _cannot_be_copied(model, error) from error


def copy_for_inference(model: keras.Model) -> keras.Model:
    """Returns an independent copy without compile state, and so without an optimizer's.

    Raises:
        ValueError: If Keras cannot serialise the model; says why and what to do.
    """
    config = model_config(model)
    config.pop("compile_config", None)
    copied = model_from_config(model, config)
    copy_state(model, copied)
    return copied


def compile_for_inference(model: keras.Model, source: keras.Model) -> None:
    """Gives `model` the loss and metrics of `source`, if it has any, and a stateless optimizer."""
    if not source.compiled:
        return
    with keras.saving.custom_object_scope(_custom_objects(source)):
        config = source.get_compile_config()
        if config is not None:
            # SGD keeps nothing of the size of the weights.
            model.compile_from_config(config | {"optimizer": "sgd"})


def model_config(model: keras.Model) -> dict[str, Any]:
    """Returns the model's architecture and compile state as Keras serialises them.

    Raises:
        ValueError: If Keras cannot serialise the model; says why and what to do.
    """
    try:
        with keras.saving.custom_object_scope(_custom_objects(model)):
            return keras.saving.serialize_keras_object(model)
    except _NOT_SERIALIZABLE as error:
        raise _cannot_be_copied(model, error) from error


def model_from_config(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """Returns a model of an edited `model_config(model)`, with fresh weights and optimizer.

    Raises:
        ValueError: If Keras cannot serialise the model; says why and what to do.
    """
    try:
        # A Lambda layer's code is in this process already: nothing unsafe is loaded.
        return keras.saving.deserialize_keras_object(
            config, custom_objects=_custom_objects(model), safe_mode=False
        )
    except _NOT_SERIALIZABLE as error:
        raise _cannot_be_copied(model, error) from error


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Gives `target` the weights and other state of a layer of the same configuration."""
    pairs = zip(source._flatten_layers(), target._flatten_layers(), strict=True)
    for old, new in pairs:
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        # JAX would take over the arrays themselves, and training one model would free the other's.
        new.load_own_variables(
            {key: np.array(keras.ops.convert_to_numpy(value)) for key, value in store.items()}
        )
        if hasattr(old, "save_assets"):  # the vocabulary of a text layer
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


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
    return _in_order(function)


def loss_head(model: keras.Model) -> keras.Model | None:
    """Returns a model of no layers that takes outputs and has the loss and metrics of `model`.

    `None` if the model is not compiled, or if its loss and metrics do not follow from its
    outputs alone, since it overrides how they are computed.
    """
    steps = ("evaluate", "test_step", "compute_loss", "compute_metrics")
    as_usual = all(getattr(type(model), step) is getattr(keras.Model, step) for step in steps)
    if not (model.compiled and as_usual):
        return None
    identity = keras.layers.Identity(name=model.layers[-1].name)  # metrics may go by this name
    head = keras.Sequential([keras.Input(model.output_shape[1:]), identity])
    with keras.saving.custom_object_scope(_custom_objects(model)):
        # Compiling a few sums with XLA takes longer than all of them together.
        head.compile_from_config(model.get_compile_config() | {"jit_compile": False})
    return head


def linear_chain(model: keras.Model) -> list[keras.Layer] | None:
    """Returns the layers one after the other, or `None` if the model is no plain chain."""
    function = _functional(model)
    if function is None or len(function.inputs) != 1 or len(function.outputs) != 1:
        return None
    nodes = list(_in_order(function))
    links = zip(nodes, nodes[1:], strict=False)
    chained = all(
        [id(t) for t in after.input_tensors] == [id(t) for t in before.output_tensors]
        for before, after in links
    )
    layers = [node.operation for node in nodes]
    return layers if chained and all(isinstance(x, keras.Layer) for x in layers) else None


def _walk(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Yields (name, layer) of each layer that holds kernels, once."""
    seen: set[int] = set()

    def visit(parent: keras.Layer, prefix: str) -> Iterator[tuple[str, keras.Layer]]:
        for child in parent._flatten_layers(include_self=False, recursive=False):
            if id(child) in seen:
                continue
            seen.add(id(child))
            if isinstance(child, _WITH_KERNELS):
                yield prefix + child.name, child
            else:
                yield from visit(child, f"{prefix}{child.name}/")

    return visit(layer, prefix)


def _kernels(layer: keras.Layer) -> tuple[keras.Variable, ...]:
    return tuple(v for v in layer.weights if v.name in _KERNEL_NAMES)


def _functional(model: keras.Layer) -> Any | None:
    """The functional graph behind a Functional or Sequential model, else `None`."""
    function = getattr(model, "_functional", None) or model
    return function if hasattr(function, "_nodes_by_depth") else None


def _functions(model: keras.Model) -> list[Any]:
    functions = (_functional(layer) for layer in model._flatten_layers())
    return list({id(f): f for f in functions if f is not None}.values())


def _in_order(function: Any) -> Iterator[Any]:
    for depth in sorted(function._nodes_by_depth, reverse=True):
        yield from function._nodes_by_depth[depth]


def _output_ids(model: keras.Model, layers: list[keras.Layer]) -> set[int]:
    """Ids of the kernel layers between which and the model's output no other one lies."""
    function = _functional(model)
    if function is None:  # a subclassed model shows no graph: its last layer, then
        return {id(layers[-1])} if layers else set()
    found: set[int] = set()
    tensors, seen = list(function.outputs), set()
    while tensors:
        tensor = tensors.pop()
        operation, node_index, _ = tensor._keras_history
        if (id(operation), node_index) in seen:
            continue
        seen.add((id(operation), node_index))
        inside = {id(part) for part in _parts(operation)} & {id(layer) for layer in layers}
        if inside and _functional(operation) is not None:
            inside = _output_ids(operation, [part for part in layers if id(part) in inside])
        found |= inside
        if not inside:
            tensors += operation._inbound_nodes[node_index].input_tensors
    return found


def _parts(operation: Any) -> list[keras.Layer]:
    return operation._flatten_layers() if isinstance(operation, keras.Layer) else []


def _same_axis(norm: kl.BatchNormalization, layer: keras.Layer, tensor: Any) -> bool:
    rank = len(tensor.shape)
    unit_axis = 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1
    return norm.axis % rank == unit_axis


def _only_called_on(operation: Any, nodes: list[Any], reached: set[int]) -> bool:
    calls = [node for node in nodes if node.operation is operation]
    return all(id(t) in reached for node in calls for t in node.input_tensors)


_NOT_SERIALIZABLE = (TypeError, ValueError, NotImplementedError, AttributeError)


def _cannot_be_copied(model: keras.Model, error: Exception) -> ValueError:
    return ValueError(
        f"Model '{model.name}' cannot be copied, since Keras cannot save and load it. "
        "Give its custom layers a get_config() and decorate custom functions with "
        f"@keras.saving.register_keras_serializable(). Keras says: {error}"
    )


def _custom_objects(model: keras.Model) -> dict[str, Any]:
    held = list(model._flatten_layers())
    if model.compiled and getattr(model, "_compile_config", None) is not None:
        held += keras.tree.flatten(dict(model._compile_config.config))
    objects = (
        part if inspect.isfunction(part) or inspect.isclass(part) else type(part) for part in held
    )
    return {o.__name__: o for o in objects if o.__module__.split(".")[0] not in _KNOWN_MODULES}


_KNOWN_MODULES = {"builtins", "keras", "numpy"}
