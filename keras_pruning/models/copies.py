"""Copies of Keras models: with their weights, names, compile state and optimizer.

A copy is made anew from the model's configuration and takes over the state of one layer
after the other, so that it needs hardly more memory than its weights. Layers are paired by
their place in the model. What `compile` was called with Keras keeps in the private
`_compile_config`: the loss and functions themselves, whether they can be serialised or not.
"""

import contextlib
import inspect
import random
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from keras_pruning.models.functional import all_layers, functional_graph, own_weights, sublayers
from keras_pruning.models.kernels import kernel_layers

__all__ = [
    "can_be_made_anew",
    "compile_for_inference",
    "compile_like",
    "copy_for_inference",
    "copy_model",
    "copy_own_state",
    "copy_state",
    "loss_head",
    "model_config",
    "model_from_config",
    "python_random_as_before",
    "without_lora",
]

_NOT_SERIALIZABLE = (TypeError, ValueError, NotImplementedError, AttributeError)
_KNOWN_MODULES = {"builtins", "keras", "numpy"}


def copy_model(model: keras.Model) -> keras.Model:
    """Returns an independent copy: weights, names, compile state, optimizer state.

    Goes through Keras's configuration of the model. Custom classes need a `get_config`, but
    neither they nor functions need be registered. LoRA weights are merged into their
    kernels, and the copy's optimizer then starts afresh.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built, or Keras cannot make it anew; says why and what to do.
    """
    copied = copy_for_inference(model)
    compile_like(copied, model)
    if copied.compiled and _same_shapes(model.trainable_variables, copied.trainable_variables):
        _copy_optimizer_state(model, copied)
    return copied


def copy_for_inference(model: keras.Model) -> keras.Model:
    """Returns an independent copy without compile state, and so without an optimizer's.

    Raises:
        TypeError: As `copy_model`.
        ValueError: As `copy_model`.
    """
    ours = _names_and_shapes(model)
    copied = model_from_config(model, model_config(model))
    try:
        copy_state(model, copied)
    except _NOT_SERIALIZABLE as error:
        raise _cannot_be_copied(model, error) from error
    if _names_and_shapes(copied) != ours:
        raise _cannot_be_copied(model, ValueError("made anew, it has other kernels"))
    return copied


def without_lora(model: keras.Model) -> keras.Model:
    """Returns the model, or a copy with its LoRA weights merged into the kernels if it has any."""
    has_lora = any(getattr(layer, "lora_enabled", False) for layer in all_layers(model))
    return copy_model(model) if has_lora else model


def compile_like(model: keras.Model, source: keras.Model, **changes: Any) -> None:
    """Compiles `model` as `source` is compiled, if it is; the optimizer starts afresh.

    It is built if that of `source` is: Keras warns at loading a file of one that is not.

    Args:
        model: A model of the same outputs.
        source: The model whose loss, metrics and options are taken.
        changes: Other arguments of `compile`, instead of those of `source`.

    Raises:
        ValueError: If a metric cannot be made anew.
    """
    if not source.compiled:
        return
    if type(source).compile is not keras.Model.compile:
        _compile_by_itself(model, source)
        return
    arguments = dict(source._compile_config.config) | changes
    try:
        if "optimizer" not in changes:
            arguments["optimizer"] = _anew(source.optimizer)
        for name in ("metrics", "weighted_metrics"):  # they hold sums; functions and losses do not
            arguments[name] = keras.tree.map_structure(
                lambda m: _anew(m) if isinstance(m, keras.Metric) else m, arguments.get(name)
            )
    except _NOT_SERIALIZABLE as error:
        raise ValueError(
            f"The optimizer or a metric of model '{source.name}' cannot be made anew for its "
            "copy. Give its class, and that of a learning rate schedule, a get_config() that "
            f"returns the arguments of __init__, or prune before compile(). Keras says: {error}"
        ) from error
    model.compile(**arguments)
    if "optimizer" not in changes and source.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def compile_for_inference(model: keras.Model, source: keras.Model) -> None:
    """Gives `model` the loss and metrics of `source`, if it has any, and a stateless optimizer."""
    compile_like(model, source, optimizer="sgd")  # it keeps nothing of the size of the weights


def loss_head(model: keras.Model) -> keras.Model | None:
    """Returns a model of no layers that takes outputs and has the loss and metrics of `model`.

    `None` if the model is not compiled, or if its loss and metrics do not follow from its
    outputs alone, since it overrides how they are computed.
    """
    steps = ("compile", "evaluate", "test_step", "compute_loss", "compute_metrics")
    as_usual = all(getattr(type(model), step) is getattr(keras.Model, step) for step in steps)
    if not (model.compiled and as_usual):
        return None
    identity = keras.layers.Identity(name=model.layers[-1].name)  # metrics may go by this name
    head = keras.Sequential([keras.Input(model.output_shape[1:]), identity])
    # Compiling a few sums with XLA takes longer than all of them together.
    compile_like(head, model, optimizer="sgd", jit_compile=False)
    return head


def model_config(model: keras.Model) -> dict[str, Any]:
    """Returns the model's architecture as Keras serialises it, without LoRA.

    Raises:
        ValueError: If Keras cannot serialise the model; says why and what to do.
    """
    kind = type(model)
    try:
        with keras.saving.custom_object_scope(_custom_objects(model)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
            config = {
                "module": kind.__module__,
                "class_name": kind.__name__,
                "config": keras.saving.serialize_keras_object(model.get_config()),
                "registered_name": keras.saving.get_registered_name(kind),
                "build_config": model.get_build_config(),
            }
    except _NOT_SERIALIZABLE as error:
        raise _cannot_be_copied(model, error) from error
    _drop_lora(config)
    return config


def model_from_config(model: keras.Model, config: dict[str, Any]) -> keras.Model:
    """Returns a model of an edited `model_config(model)`, with fresh weights, not compiled.

    Raises:
        ValueError: If Keras cannot make the model; says why and what to do.
    """
    objects = _custom_objects(model)
    _refer_to_functions(model, config, objects)
    try:
        with warnings.catch_warnings(), python_random_as_before():
            # Layers without a build() are built when the graph is made: by their call.
            warnings.filterwarnings("ignore", r"`build\(\)` was called on layer")
            # A Lambda layer's code is in this process already: nothing unsafe is loaded.
            return keras.saving.deserialize_keras_object(
                config, custom_objects=objects, safe_mode=False
            )
    except _NOT_SERIALIZABLE as error:
        raise _cannot_be_copied(model, error) from error


def can_be_made_anew(layer: keras.Layer) -> bool:
    """Whether Keras can make a layer anew from its configuration."""
    try:
        model_from_config(layer, model_config(layer))
    except Exception:  # of the user's own code: of any kind
        return False
    return True


@contextlib.contextmanager
def python_random_as_before() -> Iterator[None]:
    """Keras draws the seeds of initializers from Python's random numbers: a copy's do not count."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Gives `target` the weights, names and other state of a layer of the same configuration.

    Raises:
        ValueError: If the two do not hold the same layers and weights.
    """
    for old, new in _pairs(source, target, set()):
        if old.built and not new.built:
            new.build_from_config(old.get_build_config())
        new.name = old.name  # made anew, layers without a name of their own get another
        if new.trainable != old.trainable:
            new.trainable = old.trainable
        copy_own_state(old, new)


def _names_and_shapes(model: keras.Model) -> list[tuple[str, list[Any]]]:
    """Of the kernels, in the order by which masks are put on them."""
    return [(e.name, [tuple(k.shape) for k in e.kernels]) for e in kernel_layers(model)]


def copy_own_state(old: keras.Layer, new: keras.Layer) -> None:
    """Gives a layer the weights and other state that another holds itself, of the same shapes."""
    store: dict[str, Any] = {}
    old.save_own_variables(store)  # LoRA weights merged
    # JAX would take over the arrays themselves, and training one model would free the other's.
    new.load_own_variables({key: keras.ops.copy(value) for key, value in store.items()})
    if not getattr(old, "lora_enabled", False):  # it froze the kernel
        for a, b in zip(own_weights(old), own_weights(new), strict=True):
            if b.trainable != a.trainable:
                b.trainable = a.trainable
    if hasattr(old, "save_assets"):  # the vocabulary of a text layer
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _pairs(
    old: keras.Layer, new: keras.Layer, seen: set[int]
) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Yields the layers of two models side by side, the outer before the inner, each once."""
    if id(old) in seen:
        return
    seen.add(id(old))
    yield old, new
    ours, theirs = ([x for x in sublayers(part) if not _is_input(x)] for part in (old, new))
    by_name = {x.name: x for x in theirs}
    if functional_graph(old) is not None and {x.name for x in ours} == set(by_name):
        theirs = [by_name[x.name] for x in ours]  # the order may differ, the names do not
    if [type(x) for x in ours] != [type(x) for x in theirs]:
        raise ValueError(
            f"'{old.name}' ({type(old).__name__}), made anew from its get_config(), holds other "
            f"layers: {[x.name for x in theirs]} instead of {[x.name for x in ours]}."
        )
    for a, b in zip(ours, theirs, strict=True):
        yield from _pairs(a, b, seen)


def _is_input(layer: keras.Layer) -> bool:
    """Nested models may share the input of the outer one, which a copy makes twice."""
    return isinstance(layer, keras.layers.InputLayer)


def _compile_by_itself(model: keras.Model, source: keras.Model) -> None:
    """Compiles a model that overrides `compile`, by what it says of it."""
    config = source.get_compile_config()
    if type(source).compile_from_config is keras.Model.compile_from_config or config is None:
        warnings.warn(
            f"Model '{source.name}' ({type(source).__name__}) has a compile() of its own, so its "
            "copy is not compiled: call compile() on it, or give the class get_compile_config() "
            "and compile_from_config().",
            stacklevel=4,
        )
        return
    with keras.saving.custom_object_scope(_custom_objects(source)):
        model.compile_from_config(config)


def _anew(part: Any) -> Any:
    """An optimizer or metric of the same settings, without state."""
    with keras.saving.custom_object_scope(_held_objects([part, *vars(part).values()])):
        return type(part).from_config(part.get_config())


def _copy_optimizer_state(model: keras.Model, copied: keras.Model) -> None:
    if not isinstance(model.optimizer, keras.Optimizer) or not model.optimizer.built:
        return
    if _same_shapes(model.optimizer.variables, copied.optimizer.variables):
        for old, new in zip(model.optimizer.variables, copied.optimizer.variables, strict=True):
            new.assign(keras.ops.copy(old))


def _same_shapes(ours: list[keras.Variable], theirs: list[keras.Variable]) -> bool:
    return [tuple(v.shape) for v in ours] == [tuple(v.shape) for v in theirs]


def _drop_lora(config: Any) -> None:
    """Takes LoRA out of a nested configuration: the copy's kernels hold the sums."""
    if isinstance(config, dict):
        for key in ("lora_rank", "lora_alpha"):
            config.pop(key, None)
    for part in config.values() if isinstance(config, dict) else config:
        if isinstance(part, (dict, list, tuple)):
            _drop_lora(part)


def _refer_to_functions(
    model: keras.Layer, config: dict[str, Any], objects: dict[str, Any], prefix: str = ""
) -> None:
    """Names the user's functions in the layers of a functional model, lambdas too.

    Keras would look for them by their own names, under which they need not be found. What a
    name stands for is put into `objects`.
    """
    if functional_graph(model) is None:
        return
    layers = {layer.name: layer for layer in sublayers(model)}
    entries = config["config"].get("layers")  # a class of the user's may call its widths so
    for entry in entries if isinstance(entries, list) else ():
        layer = layers.get(entry["config"].get("name")) if isinstance(entry, dict) else None
        if layer is None:
            continue
        for key in entry["config"]:
            value = getattr(layer, key, None)
            if callable(value) and not isinstance(value, keras.Layer) and _is_users(value):
                name = f"{prefix}{layer.name}/{key}"
                objects[name] = value
                entry["config"][key] = {
                    "module": "builtins",
                    "class_name": "function",
                    "config": name,
                    "registered_name": name,
                }
        _refer_to_functions(layer, entry, objects, f"{prefix}{layer.name}/")


def _custom_objects(model: keras.Model) -> dict[str, Any]:
    """The user's classes and functions that a model and its layers hold, by name."""
    held: list[Any] = []
    for layer in all_layers(model):
        held += [layer, *vars(layer).values()]
    return _held_objects(held)


def _held_objects(held: list[Any]) -> dict[str, Any]:
    objects = [
        part if inspect.isfunction(part) or inspect.isclass(part) else type(part)
        for part in held
        if inspect.isfunction(part) or inspect.isclass(part) or hasattr(part, "get_config")
    ]
    return {o.__name__: o for o in objects if _is_users(o)}


def _is_users(part: Any) -> bool:
    return str(getattr(part, "__module__", "builtins")).split(".")[0] not in _KNOWN_MODULES


def _cannot_be_copied(model: keras.Model, error: Exception) -> ValueError:
    says = " ".join(str(error).split())
    return ValueError(
        f"Model '{model.name}' ({type(model).__name__}) cannot be copied, since Keras cannot make "
        "it anew from its configuration. Give its own layers and models a get_config() that "
        f"returns the arguments of __init__. Keras says: {says[:300]}{'...' * (len(says) > 300)}"
    )
