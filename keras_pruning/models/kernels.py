"""The kernels of a Keras model: which layers hold them, and what people call those."""

import collections
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_pruning.models.functional import (
    all_layers,
    is_of_keras,
    own_trainable_weights,
    own_weights,
    sublayers,
)
from keras_pruning.models.heads import head_layers

__all__ = ["KernelLayer", "has_stated_axes", "kernel_layers", "stated_axes", "vectors_left_alone"]

_CONV_TRANSPOSE = (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)
_SEPARABLE = (kl.SeparableConv1D, kl.SeparableConv2D)
_CONV = (kl.Conv1D, kl.Conv2D, kl.Conv3D, *_CONV_TRANSPOSE, *_SEPARABLE)
_DEPTHWISE = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)
_GATED = (kl.LSTM, kl.GRU, kl.SimpleRNN)  # one to four gates, a column of each a unit
_WITH_UNITS = (kl.Dense, *_CONV, kl.EinsumDense, *_GATED)
_CELLS = (kl.SimpleRNNCell, kl.LSTMCell, kl.GRUCell)  # in a loop of the user's own
_WITH_KERNELS = (*_WITH_UNITS, *_DEPTHWISE, kl.RNN, *_CELLS, kl.EinsumDense, kl.Embedding)
_KERNEL_NAMES = {
    "embeddings",
    "kernel",
    "pointwise_kernel",
    "recurrent_kernel",
    "reverse_embeddings",
}
_NO_KERNEL_NAMES = ("bias", "alpha", "beta", "gamma")  # they shift or scale, at any rank


def _values(variable: keras.Variable) -> npt.NDArray[Any]:
    return keras.ops.convert_to_numpy(variable)


def _einsum_axes(layer: Any) -> list[str]:
    """The axes of an EinsumDense's input, kernel and output, without an ellipsis."""
    return layer.equation.replace(" ", "").replace(".", "").replace("->", ",").split(",")


def _made_axes(layer: Any) -> list[str]:
    """The axes that an EinsumDense makes, the units along the first; none if it sums over none."""
    inputs, kernel, outputs = _einsum_axes(layer)
    sums = any(axis in kernel and axis not in outputs for axis in inputs)
    shared = any(axis in kernel and axis in outputs for axis in inputs)
    return [a for a in outputs if a in kernel and a not in inputs] if sums and not shared else []


@dataclass(frozen=True)
class KernelLayer:
    """A layer that holds kernels: its name in the model, its kernels, its part in it.

    A separable convolution has two of them: its depthwise kernel is one of its own.
    """

    name: str  # unique, with the names of the layers around it: "encoder/dense_1"
    layer: keras.Layer
    kernels: tuple[keras.Variable, ...]
    # The ids of the heads, or why they cannot be told; looked for when first asked for.
    _heads: Callable[[], frozenset[int] | str] = field(repr=False, compare=False)

    @property
    def is_output(self) -> bool:
        """Whether it is a head of the model: what it sends are the model's answers.

        Raises:
            ValueError: If that cannot be told of the model.
        """
        heads = self._heads()
        if isinstance(heads, str):
            raise ValueError(heads)
        return id(self.layer) in heads

    @property
    def output_if_known(self) -> bool | None:
        """Whether it is a head of the model; `None` where that cannot be told."""
        heads = self._heads()
        return None if isinstance(heads, str) else id(self.layer) in heads

    @property
    def is_depthwise(self) -> bool:
        """Whether its one kernel filters each channel apart: few weights that carry much."""
        kernel = self.kernels[0]
        return isinstance(self.layer, _DEPTHWISE) or (
            isinstance(self.layer, _SEPARABLE) and kernel is self.layer.depthwise_kernel
        )

    @property
    def has_units(self) -> bool:
        """Whether whole units of it can be pruned: of layers that sum, and where the author says.

        Those are Dense, EinsumDense, convolutions and recurrent layers.
        """
        if isinstance(self.layer, kl.EinsumDense):
            return bool(_made_axes(self.layer))
        if stated := stated_axes(self.layer):
            return "units" in stated
        return isinstance(self.layer, _WITH_UNITS) and not self.is_depthwise

    @property
    def unit_kind(self) -> str:
        """What a unit of it is called: "column", "filter", "hidden unit", "head", "slice"."""
        if not self.has_units:
            return ""
        if isinstance(self.layer, kl.EinsumDense):
            return "head" if len(_made_axes(self.layer)) > 1 else "slice"
        names = {kl.Dense: "column", _CONV: "filter", _GATED: "hidden unit"}
        return next((n for kind, n in names.items() if isinstance(self.layer, kind)), "unit")

    @property
    def unit_kernel(self) -> keras.Variable:
        """The kernel whose slices are the units; of a separable convolution, the pointwise."""
        return self.kernels[0]

    @property
    def unit_axis(self) -> int:
        """The axis of `unit_kernel` that counts the units, or all gates of them."""
        if isinstance(self.layer, kl.EinsumDense) and (made := _made_axes(self.layer)):
            _, kernel, _ = _einsum_axes(self.layer)
            return kernel.index(made[0]) - len(kernel)
        if stated := stated_axes(self.layer):
            return stated["units"][self.unit_kernel.name] - len(self.unit_kernel.shape)
        return -2 if isinstance(self.layer, _CONV_TRANSPOSE) else -1

    @property
    def unit_slices(self) -> list[tuple[keras.Variable, int, int]]:
        """Where the units are: of each kernel, and the bias last, the axis and how many gates.

        A unit of a recurrent layer has a column in each gate, one gate behind the other. Of a
        layer of one's own it may have entries in more vectors than the bias.
        """
        if stated := stated_axes(self.layer):
            named = {v.name: v for v in own_weights(self.layer)}
            found = [(named[n], a - len(named[n].shape), 1) for n, a in stated["units"].items()]
            return sorted(found, key=lambda one: not self._is_kernel(one[0]))
        gates, of_bias, bias = self._gates, -1, self.bias
        if isinstance(self.layer, kl.EinsumDense) and bias is not None:
            of_bias = -len(bias.shape)  # it begins with the first axis that is made, if it has it
            bias = bias if _made_axes(self.layer)[0] in self.layer.bias_axes else None
        kernels = self.kernels if isinstance(self.layer, _GATED) else self.kernels[:1]
        slices = [(kernel, self.unit_axis, gates) for kernel in kernels]
        return slices if bias is None else [*slices, (bias, of_bias, gates)]

    @property
    def unit_vectors(self) -> list[keras.Variable]:
        """What each unit has entries of its own in beside the kernels: the bias, if it has one."""
        return [variable for variable, *_ in self.unit_slices if not self._is_kernel(variable)]

    def _is_kernel(self, variable: keras.Variable) -> bool:
        return any(variable is kernel for kernel in self.kernels)

    @property
    def n_units(self) -> int:
        """How many units it has."""
        return int(self.unit_kernel.shape[self.unit_axis]) // self._gates

    @property
    def _gates(self) -> int:
        recurrent = isinstance(self.layer, _GATED)
        return self.unit_kernel.shape[-1] // self.layer.units if recurrent else 1

    def unit_columns(self, read: Callable[[keras.Variable], Any] = _values) -> npt.NDArray[Any]:
        """The weights of each unit in the kernels, shape `(..., units)`."""
        columns = [
            np.moveaxis(read(variable), axis, -1)
            for variable, axis, _ in self.unit_slices
            if self._is_kernel(variable)
        ]
        if len(columns) == 1 and self._gates == 1:
            return columns[0]
        return np.concatenate([column.reshape(-1, self.n_units) for column in columns])

    def spread(self, flags: Any, variable: keras.Variable) -> Any:
        """Flags of the units, `(units,)`, in a shape that fits a variable of `unit_slices`.

        Other variables are taken to have an entry a unit.
        """
        found = [(axis, gates) for v, axis, gates in self.unit_slices if v is variable]
        axis, gates = found[0] if found else (-1, 1)
        numbers = keras.ops if keras.ops.is_tensor(flags) else np
        flags = numbers.tile(flags, gates) if gates > 1 else flags
        return numbers.reshape(flags, (-1, *[1] * (-1 - axis))) if axis < -1 else flags

    def values(self, kernel: keras.Variable) -> npt.NDArray[Any]:
        """A kernel's weights; int4 packs two into a number, which the layer unpacks."""
        if getattr(self.layer, "quantization_mode", None) == "int4":
            name = "embeddings" if kernel.name == "embeddings" else "kernel"
            return keras.ops.convert_to_numpy(getattr(self.layer, name))
        return keras.ops.convert_to_numpy(kernel)

    def alive_units(self, read: Callable[[keras.Variable], Any] = _values) -> npt.NDArray[np.bool_]:
        """Which units have a weight that is not zero, shape `(units,)`.

        Args:
            read: Returns a variable's values, if they are to be others than the model's.
        """
        columns = self.unit_columns(read)
        return (columns != 0).any(axis=tuple(range(columns.ndim - 1)))

    @property
    def bias(self) -> keras.Variable | None:
        """The bias, shape `(units,)`, or `None`."""
        return next((v for v in self.layer.weights if v.name == "bias"), None)


_ROLES = ("units", "inputs", "channels")


def has_stated_axes(layer: Any) -> bool:
    """Whether the author of a layer says how it is cut: see `stated_axes`."""
    return getattr(layer, "prunable_axes", None) is not None


def stated_axes(layer: keras.Layer) -> dict[str, dict[str, int]] | None:
    """Returns what a layer's author says of its weights, by a method `prunable_axes`, or `None`.

    The method returns a dict of roles, each a dict of the name of a weight that the layer holds
    itself to one of its axes. Channels are those of the last axis of what it receives and sends.
    "units": the axis counts the units it makes, each of which sends 0 if all its weights are 0.
    "inputs": the axis counts the channels it receives, of whose products it makes sums.
    "channels": it treats each channel that it receives apart, and sends 0 for a 0.

    Raises:
        ValueError: If that names no weights or axes of the layer, or axes of different sizes.
    """
    if not has_stated_axes(layer) or not layer.built:
        return None
    method: Any = layer.prunable_axes
    says = f"prunable_axes() of layer '{layer.name}' ({type(layer).__name__})"
    try:
        said = {role: dict(axes) for role, axes in method().items()}
    except Exception as error:  # of the author's own code: of any kind
        raise ValueError(
            f"{says} must be a method that returns a dict of dicts. "
            f"({type(error).__name__}: {error})"
        ) from error
    if not said or not {*said} <= {*_ROLES}:
        raise ValueError(f"{says} must return a dict with keys of {_ROLES}. Received: {said!r}")
    if "channels" in said and len(said) > 1:
        raise ValueError(f"{says}: a layer with 'channels' has neither 'units' nor 'inputs'.")
    names = [v.name for v in own_weights(layer)]
    shapes = {v.name: tuple(v.shape) for v in own_weights(layer)}
    found: dict[str, dict[str, int]] = {}
    for role, axes in said.items():
        for name, axis in axes.items():
            if names.count(name) > 1:
                raise ValueError(f"{says} names '{name}', and {names.count(name)} weights are so.")
            is_axis = isinstance(axis, int) and name in shapes
            if not is_axis or not -len(shapes[name]) <= axis < len(shapes[name]):
                raise ValueError(
                    f"{says} gives axis {axis!r} of '{name}' for its {role}. "
                    f"The layer's own weights have the shapes {shapes}."
                )
            found.setdefault(role, {})[name] = axis % len(shapes[name])
        sizes = {name: shapes[name][axis] for name, axis in found.get(role, {}).items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"{says} must name axes of one size for its {role}. It has: {sizes}")
    return found


def kernel_layers(model: keras.Model) -> list[KernelLayer]:
    """Returns the layers that hold kernels, nested ones too, each once, in model order.

    The kernels of Keras's Dense, EinsumDense, Embedding, convolutional and recurrent
    layers, and of any other layer, one of the user's own say, each trainable
    floating-point weight that it holds itself with two axes or more that are longer than
    one, but for biases and scales (by their names: "bias", "alpha", "beta", "gamma"). A
    layer that has no weights yet, since the model was built without it, is left out.

    Two layers of one name are called "block/dense#1" and "block/dense#2".

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is not built: it has no weights yet.
    """
    _check_is_model(model)
    found = list(_walk(model))
    unbuilt = [name for name, layer, _ in found if not layer.built]
    found = [entry for entry in found if entry[1].built]
    if not found and not model.built or unbuilt and not (model.built and found):
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no weights to prune"
            + (f" (layers {unbuilt})" if unbuilt else "")
            + ". Give it an Input layer, call model.build(input_shape), or call it on a batch."
        )
    layers = [layer for _, layer, _ in found]

    @functools.cache  # also that they cannot be told, for which a model is run several times
    def heads() -> frozenset[int] | str:
        try:
            return head_layers(model, layers)
        except ValueError as error:
            return str(error)

    return [
        KernelLayer(name, layer, kernels, heads)
        for name, (_, layer, kernels) in zip(_unique([f[0] for f in found]), found, strict=True)
    ]


def vectors_left_alone(model: keras.Model) -> list[tuple[keras.Layer, keras.Variable]]:
    """Returns the trainable weights of layers of one's own that no pruning touches.

    Those that are no kernels, as class tokens; biases and scales apart, and what goes with units.
    """
    entries = kernel_layers(model)
    pruned = {id(kernel) for entry in entries for kernel in entry.kernels}
    pruned |= {id(v) for entry in entries if entry.has_units for v in entry.unit_vectors}
    own = [part for part in all_layers(model) if not is_of_keras(part)]
    return [
        (layer, variable)
        for layer in own
        for variable in own_trainable_weights(layer)
        if id(variable) not in pruned and not variable.name.endswith(_NO_KERNEL_NAMES)
    ]


def _check_is_model(model: object) -> None:
    if isinstance(model, keras.Model):
        return
    package = type(model).__module__.split(".")[0]
    kind = type(model).__name__
    if package.startswith("tf_keras"):
        raise TypeError(
            f"Received a model of tf_keras (Keras 2), a {kind}, which cannot be pruned here. Build "
            "the same layers with keras (Keras 3) and give them its weights: "
            "new.set_weights(old.get_weights())."
        )
    raise TypeError(f"Expected a Keras model. Received: {kind}")


def _walk(model: keras.Model) -> Iterator[tuple[str, keras.Layer, tuple[keras.Variable, ...]]]:
    """Yields (name, layer, kernels) of each layer that holds kernels or is not built yet."""
    seen: set[int] = set()

    def visit(
        layer: keras.Layer, prefix: str, name: str
    ) -> Iterator[tuple[str, keras.Layer, tuple[keras.Variable, ...]]]:
        of_keras = isinstance(layer, _WITH_KERNELS)
        kernels = _kernels(layer)
        if isinstance(layer, _SEPARABLE) and kernels:
            yield f"{name}/depthwise_kernel", layer, (layer.depthwise_kernel,)
        if kernels or (of_keras and not layer.built):
            yield name, layer, kernels
        if of_keras:
            return
        for child in sublayers(layer):
            if id(child) not in seen:
                seen.add(id(child))
                yield from visit(child, f"{prefix}{child.name}/", prefix + child.name)

    return visit(model, "", model.name)


def _kernels(layer: keras.Layer) -> tuple[keras.Variable, ...]:
    """The kernels of a layer, without those of the layers inside it; that of its units first."""
    if not layer.built:
        return ()
    known = isinstance(layer, _WITH_KERNELS)
    found = [v for v in layer.weights if v.name in _KERNEL_NAMES] if known else []
    # A recurrent layer holds the weights of its cells, which may be of the user's own.
    for part in all_layers(layer) if isinstance(layer, kl.RNN) else [layer]:
        if not (is_of_keras(part) and isinstance(part, _WITH_KERNELS)):
            found += [v for v in own_trainable_weights(part) if _is_matrix(v)]
    if units := (stated_axes(layer) or {}).get("units"):
        found.sort(key=lambda v: v.name not in units)
        if not found or found[0].name not in units:
            raise ValueError(
                f"prunable_axes() of layer '{layer.name}' ({type(layer).__name__}) names no "
                f"trainable matrix for its units: {sorted(units)}"
            )
    return tuple({id(v): v for v in found}.values())


def _is_matrix(variable: keras.Variable) -> bool:
    longer = sum(size > 1 for size in variable.shape)
    is_float = "float" in keras.backend.standardize_dtype(variable.dtype)
    return longer >= 2 and is_float and not variable.name.endswith(_NO_KERNEL_NAMES)


def _unique(names: list[str]) -> list[str]:
    """The names, numbered where several layers share one: "dense#1", "dense#2"."""
    counts = collections.Counter(names)
    seen: collections.Counter[str] = collections.Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name}#{seen[name]}" if counts[name] > 1 else name)
    return numbered
