"""The channels of a model's tensors: where each comes from, which go together.

Every channel that a layer makes has an id. Wherever the channel passes, its id passes with
it; where a layer adds two tensors, the ids of the two are joined, since their channels can
only be removed together. What a channel carries is followed as well: a channel that is
the same number for every input and at every position needs no unit.

This module holds the book-keeping; `rules`, `moving` and `attention` know the layers, `walk`
goes through a model.
"""

import inspect
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keras_pruning.models import all_layers

__all__ = ["HEAD_SIZES", "Call", "ChannelGraph", "Fold", "NoRule", "Shape", "Signal"]

Shape = tuple[int | None, ...]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_ALL = slice(None)
HEAD_SIZES = frozenset({"head_dim", "key_dim"})  # what configurations call the size of a head


class NoRule(Exception):
    """A layer whose channels cannot be followed; the message says why."""


@dataclass(frozen=True)
class OwnWeight:
    """A weight that a layer of one's own holds itself."""

    holder: Any
    variable: Any

    @property
    def name(self) -> str:
        """Its name among those of its holder."""
        return str(self.variable.name)

    def __hash__(self) -> int:
        return hash((id(self.holder), id(self.variable)))


@dataclass(frozen=True)
class Signal:
    """What is known of a tensor: which axis counts its channels, their ids and constants."""

    shape: Shape  # with the batch axis
    axis: int  # 0, the batch axis: nothing is known of the tensor
    ids: IntArray  # (channels,)
    values: FloatArray  # (channels,): the number the channel always is, NaN if it varies
    lost: str = ""  # why nothing is known
    weight: OwnWeight | None = None  # that it is, at every input

    @staticmethod
    def unknown(shape: Shape, why: str) -> "Signal":
        """A tensor of whose channels nothing is known."""
        return Signal(shape, 0, np.zeros(0, np.int64), np.zeros(0), why)

    def reshaped(self, shape: Shape, axis: int, channels: IntArray | slice = _ALL) -> "Signal":
        """The signal where axis `axis` of `shape` counts these of its channels."""
        return Signal(shape, axis, self.ids[channels], self.values[channels])

    def carrying(self, values: FloatArray) -> "Signal":
        """The same channels with other constants."""
        known = np.where(np.isfinite(values), values, np.nan)
        return replace(self, values=known, weight=None)


@dataclass(frozen=True)
class Call:
    """One call of a layer or operation, signals in the place of its tensors."""

    operation: Any
    args: tuple[Any, ...]
    options: dict[str, Any]  # keyword arguments that are not None or False
    output_shapes: list[Shape]

    @property
    def inputs(self) -> list[Signal]:
        """The tensors, also those of keyword arguments."""
        leaves = keras.tree.flatten((self.args, self.options))
        return [leaf for leaf in leaves if isinstance(leaf, Signal)]

    @property
    def arguments(self) -> list[Any]:
        """The positional arguments, tensors and what else there is between them."""
        return list(keras.tree.flatten(self.args))

    @property
    def named(self) -> dict[str, Any]:
        """All arguments by the names that a layer's `call` gives them."""
        parameters = inspect.signature(self.operation.call)
        return dict(parameters.bind(*self.args, **self.options).arguments)

    @property
    def output_shape(self) -> Shape:
        """The shape of the first output."""
        return self.output_shapes[0]

    @property
    def input(self) -> Signal:
        """The one input; its axis is known."""
        if len(self.inputs) != 1:
            raise NoRule("has several inputs")
        if not self.inputs[0].axis:
            raise NoRule(f"has an input that cannot be followed: {self.inputs[0].lost}")
        return self.inputs[0]


@dataclass(frozen=True)
class Fold:
    """What the constant input channels of a layer add to its bias."""

    ids: IntArray  # (channels,)
    values: FloatArray  # (channels,)
    constant: IntArray  # which of the channels add something, (constants,)
    additions: FloatArray  # (constants, units)

    def addition(self, removed: BoolArray) -> FloatArray:
        """What removed ids add to the bias, shape (units,)."""
        return self.additions[removed[self.ids[self.constant]]].sum(axis=0)


class ChannelGraph:
    """The ids of a model's channels and what binds them.

    `cuts` names, for each layer, the axes of its weights that are indexed by channels,
    `sizes` the entries of its configuration that count them, `units` the ids of the
    units it makes, `folds` what its bias takes over from removed inputs, `opened` the first
    call of a layer that was looked into, `refused` the layers that have no rule, and why.

    With `what_if` kernels are not read: every unit counts as pruned, with the scale, offset
    and mean of these BatchNormalization layers, and every weight that reads one as not zero.
    """

    def __init__(
        self,
        what_if: Collection[keras.Layer] | None = None,
        closed: Mapping[keras.Layer, str] | None = None,
        bound_layers: Mapping[keras.Layer, str] | None = None,
    ) -> None:
        self.what_if = what_if
        self.closed = closed or {}  # layers not to look into, and why
        self.bound_layers = bound_layers or {}  # not to be rebuilt of what they call, and why
        self.asks_for_batch = False  # a layer inside does: followed for one example
        self.is_sure = True  # only layers whose rules have been proved at length
        self.bound = ""  # why heads stay, inside a layer that cannot be rebuilt of what it calls
        # The node, what it receives and what it sends.
        self.opened: dict[keras.Layer, tuple[Any, list[Signal], list[Signal]]] = {}
        self.cuts: dict[keras.Layer, dict[tuple[str, int], IntArray]] = {}
        self.sizes: dict[keras.Layer, dict[Hashable, IntArray]] = {}
        self.units: dict[keras.Layer, IntArray] = {}
        self.folds: dict[keras.Layer, Fold] = {}
        self.refused: dict[Any, str] = {}
        self._count = 0
        self._joined: list[tuple[IntArray, IntArray]] = []
        self._blocked: list[tuple[IntArray, str]] = []

    def new(self, count: int) -> IntArray:
        """Returns the ids of `count` new channels."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def join(self, first: IntArray, second: IntArray) -> None:
        """Notes that channels can only be removed together, pair by pair."""
        if len(first) != len(second):
            raise NoRule(f"matches {len(first)} channels with {len(second)}")
        self._joined.append((first, second))

    def block(self, ids: IntArray, reason: str) -> None:
        """Notes that channels cannot be removed."""
        if ids.size:
            self._blocked.append((ids, reason))

    def refuse(self, operation: Any, reason: str) -> None:
        """Notes that a layer has no rule: what earlier calls of it let go stays as well."""
        self.refused.setdefault(operation, reason)
        parts = all_layers(operation) if isinstance(operation, keras.Layer) else []
        for sizes in [table.get(part, {}) for part in parts for table in (self.cuts, self.sizes)]:
            for ids in sizes.values():
                self.block(ids, reason)

    def make_units(self, layer: keras.Layer, ids: IntArray) -> IntArray:
        """Returns the ids of a layer's units: `ids`, or joined to those of an earlier call."""
        return self._note(self.units, layer, ids)

    def cut(self, layer: keras.Layer, variable: str, axis: int, ids: IntArray) -> IntArray:
        """Notes that an axis of a weight is indexed by channels; returns its first ids."""
        return self._note(self.cuts.setdefault(layer, {}), (variable, axis), ids)

    def resize(self, layer: keras.Layer, entry: Hashable, ids: IntArray) -> None:
        """Notes that an entry of a layer's configuration counts channels.

        The entry is a key, or (key, index) of a shape; of a shape one axis may shrink.
        """
        sizes = self.sizes.setdefault(layer, {})
        for other, others in sizes.items():
            if isinstance(entry, tuple) and isinstance(other, tuple) and entry != other:
                why = f"'{layer.name}' is called with its units on several axes"
                self.block(np.concatenate([ids, others]), why)
        self._note(sizes, entry, ids)

    def on_axis(self, signal: Signal, axis: int, operation: Any, why: str) -> Signal:
        """Returns the signal with the channels of this axis, which stay if they are not its own."""
        axis %= len(signal.shape)
        if signal.axis == axis:
            return signal
        why = f"reads what cannot be followed: {signal.lost}" if signal.lost else why
        reason = f"'{operation.name}' {why}"
        self.block(signal.ids, reason)
        size = signal.shape[axis]
        if size is None:
            raise NoRule("has an input of unknown size")
        ids = self.new(size)
        self.block(ids, reason)
        return Signal(signal.shape, axis, ids, np.full(size, np.nan))

    def absorb(
        self, layer: Any, ids: IntArray, values: FloatArray, kernel: npt.NDArray[Any]
    ) -> None:
        """Notes that a layer sums over channels: which of them it can do without.

        Those are the channels that are constant, whose share the bias takes over, and those
        whose weights are all zero. The kernel has the shape (window, channels, units).
        """
        heard = (kernel != 0).any(axis=(0, 2))
        self.block(
            ids[heard & np.isnan(values)],
            f"'{layer.name}' reads it, alone or combined, where it is no constant to fold",
        )
        earlier = self.folds.get(layer)
        if earlier is not None:
            self.join(earlier.ids, ids)
            differs = heard & (earlier.values != values)
            self.block(ids[differs], f"'{layer.name}' is called with different constants")
            return
        constant = np.flatnonzero(heard & np.isfinite(values) & (values != 0))
        sums = kernel[:, constant].sum(axis=0, dtype=np.float64)  # (constants, units)
        self.folds[layer] = Fold(ids, values, constant, values[constant, None] * sums)

    def groups(self) -> IntArray:
        """Returns the group of every id: channels of one group can only go together."""
        first = np.concatenate([pair[0] for pair in self._joined] or [np.zeros(0, np.int64)])
        second = np.concatenate([pair[1] for pair in self._joined] or [np.zeros(0, np.int64)])
        links = coo_array((np.ones(len(first), bool), (first, second)), (self._count, self._count))
        return connected_components(links, directed=False)[1].astype(np.int64)

    def reasons(self, groups: IntArray) -> dict[int, str]:
        """Returns why a group cannot be removed, of each that cannot."""
        found: dict[int, str] = {}
        for ids, reason in self._blocked:
            for group in np.unique(groups[ids]).tolist():
                found.setdefault(group, reason)
        return found

    def _note(self, table: dict[Any, IntArray], key: Any, ids: IntArray) -> IntArray:
        if key in table:
            self.join(table[key], ids)
        return table.setdefault(key, ids)
