"""What a network is made of once it is planned: steps on blocks of examples.

A block holds 16 or 32 examples of a tensor as (channel, row, column, example), so that a
weight meets the same pixel of all of them at once; what has one axis less has one row, a
vector one row and one column. Around the pixels lies a border of zeros, as wide as the
windows that read the tensor need it. A step that Keras computes gets the examples as rows.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import activations

from keras_pruning.inference.threads import in_threads

__all__ = [
    "Activate",
    "Activation",
    "Block",
    "Call",
    "Combine",
    "Concatenate",
    "Crop",
    "GlobalPool",
    "Linear",
    "MaxPool",
    "Pad",
    "Reshape",
    "Step",
    "Tensor",
    "Upsample",
    "aligned",
    "known",
]

FloatArray = npt.NDArray[np.float32]
Work = Callable[["Block"], None]
Border = tuple[int, int, int, int]  # pixels above, below, on the left, on the right

_NO_BORDER: Border = (0, 0, 0, 0)
_WIDEST = 8  # vectors of LANES summed at once: as many sums hide how long a product takes
_CACHED_BYTES = 36_000  # of the pixels that a chunk of channels reads: the first-level cache
_LEAST_SHARED = 2e7  # products of a step, 0.5 ms, for which waking threads takes 0.1 ms
_WEIGHTS_A_CHUNK = 8  # of a unit; with fewer, loading and storing its sums costs too much


@dataclass(frozen=True)
class Tensor:
    """Shape of one example as Keras has it, up to three axes, and the border around it."""

    shape: tuple[int, ...]
    border: Border = _NO_BORDER

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Rows, columns, channels."""
        rows, columns, channels = (1, 1, *self.shape)[-3:]
        return rows, columns, channels


@dataclass(frozen=True)
class _Room:
    """Where a tensor lies in an array of floats; all but the shape in floats."""

    shape: tuple[int, int, int, int]  # channels, rows, columns, examples
    first: int
    row: int
    channel: int

    @property
    def size(self) -> int:
        return self.shape[0] * self.channel

    def view(self, array: FloatArray) -> FloatArray:
        strides = (4 * self.channel, 4 * self.row, 4 * self.shape[3], 4)
        return np.ndarray(self.shape, np.float32, array, 4 * self.first, strides)


def known(tensors: list[Tensor | None], number: int) -> Tensor:
    """Returns a tensor that has a place in a block.

    Raises:
        ValueError: If it has none.
    """
    tensor = tensors[number]
    if tensor is None:
        raise ValueError("A tensor of more than three axes, or of integers, has no block.")
    return tensor


@functools.lru_cache(4096)
def _room(tensor: Tensor, examples: int) -> _Room:
    top, bottom, left, right = tensor.border
    rows, columns, channels = tensor.pixels
    row = (left + columns + right) * examples
    # An odd number of cache lines: channels that lie a power of two apart would meet in
    # the same few places of the cache.
    channel = ((top + rows + bottom) * row // 16 | 1) * 16
    return _Room((channels, rows, columns, examples), top * row + left * examples, row, channel)


class Block:
    """The tensors of one block of examples while it passes the steps.

    Args:
        tensors: Of the network.
        examples: Of a block, a multiple of 16.
        kernels: The compiled loops.
        count: Examples that are there; the rest of the block is zero at first.
        free: Arrays for the tensors, which they take and give back.
        n_threads: Threads that share a step, where there is no other block for them.
    """

    def __init__(
        self,
        tensors: list[Tensor | None],
        examples: int,
        kernels: ModuleType,
        count: int,
        free: list[FloatArray],
        n_threads: int = 1,
    ) -> None:
        self.n_threads = n_threads
        self.examples, self.count, self.kernels = examples, count, kernels
        self._tensors = tensors
        self._arrays: dict[int, FloatArray] = {}
        self._rows: dict[int, npt.NDArray[Any]] = {}
        self._free = free

    def room(self, tensor: int) -> _Room:
        """Where the tensor lies in its array."""
        return _room(known(self._tensors, tensor), self.examples)

    def array(self, tensor: int) -> FloatArray:
        """The tensor with its border, flat."""
        if tensor not in self._arrays:
            room, rows = self.room(tensor), self._rows[tensor]
            shape = (self.count, *room.shape[1:3], room.shape[0])
            array = self.make(tensor)
            source = np.require(rows, np.float32, ["C", "W"]).reshape(shape)
            to_block = self.kernels.to_block
            to_block(source, array, room.first, room.channel, room.row, self.examples)
        return self._arrays[tensor]

    def view(self, tensor: int) -> FloatArray:
        """The tensor without its border: channels, rows, columns, examples."""
        return self.room(tensor).view(self.array(tensor))

    def rows(self, tensor: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """The examples as Keras has them: `(examples, ...)`; written to `out` if it is given."""
        if tensor not in self._rows:
            room, shape = self.room(tensor), known(self._tensors, tensor).shape
            pixels = (self.count, *room.shape[1:3], room.shape[0])
            rows = np.empty(pixels, np.float32) if out is None else out.reshape(pixels)
            from_block = self.kernels.from_block
            from_block(
                self._arrays[tensor], room.first, room.channel, room.row, self.examples, rows
            )
            self._rows[tensor] = rows.reshape(self.count, *shape)
        elif out is not None:
            out[...] = self._rows[tensor]
        return self._rows[tensor]

    def make(self, tensor: int) -> FloatArray:
        """An array for the tensor, its border zero, the rest to be written."""
        room, border = self.room(tensor), known(self._tensors, tensor).border
        array = self._take(room.size)
        if any(border):
            _clear_border(array, room, border)
        self._arrays[tensor] = array
        return array

    def _take(self, size: int) -> FloatArray:
        """The smallest free array that is large enough; a new one takes the largest's place."""
        order = sorted(range(len(self._free)), key=lambda i: self._free[i].size)
        for i in order:
            if self._free[i].size >= size:
                return self._free.pop(i)
        if order:
            del self._free[order[-1]]
        return aligned(size)

    def fill(self, tensor: int) -> FloatArray:
        """As `make`; returns the view without the border."""
        return self.room(tensor).view(self.make(tensor))

    def put_rows(self, tensor: int, rows: npt.NDArray[Any]) -> None:
        """Sets the tensor to examples as Keras has them."""
        self._rows[tensor] = rows

    def drop(self, tensor: int) -> None:
        """Forgets a tensor that no step needs any more."""
        self._rows.pop(tensor, None)
        array = self._arrays.pop(tensor, None)
        if array is not None:
            self._free.append(array)


def _clear_border(array: FloatArray, room: _Room, border: Border) -> None:
    channels, rows, columns, examples = room.shape
    top, bottom, left, right = border
    whole = (channels, top + rows + bottom, left + columns + right, examples)
    strides = (4 * room.channel, 4 * room.row, 4 * examples, 4)
    view = np.ndarray(whole, np.float32, array, 0, strides)
    view[:, :top] = view[:, top + rows :] = 0
    view[:, top : top + rows, :left] = view[:, top : top + rows, left + columns :] = 0


def aligned(size: int) -> FloatArray:
    """Returns an array of floats that starts at a cache line; NumPy's start anywhere."""
    room = np.empty(4 * size + 64, np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    return room[start : start + 4 * size].view(np.float32)


@dataclass(frozen=True)
class Activation:
    """An elementwise function, or softmax over the channels, by its name in Keras.

    "leaky" is that of the layer LeakyReLU, with a slope of its own. A function of the user's
    own, which a chain of Dense layers may end with, has no name.
    """

    name: str = "linear"
    number: float = np.inf  # of "relu": the largest value; of "leaky": the slope

    @property
    def is_ours(self) -> bool:
        """Whether it takes NumPy alone."""
        return self.name == "relu" or self.name in _FUNCTIONS

    def __call__(self, x: FloatArray) -> FloatArray:
        """Returns the values, of the same shape; x is `(channels, ...)`."""
        if self.name == "relu":
            return np.minimum(np.maximum(x, 0), np.float32(self.number))
        if self.name in _FUNCTIONS:
            return _FUNCTIONS[self.name](x, np.float32(self.number))
        values = activations.get(self.name)(keras.ops.convert_to_tensor(np.ascontiguousarray(x)))
        return keras.ops.convert_to_numpy(values)


def _softmax(x: FloatArray) -> FloatArray:
    powers = np.exp(x - x.max(axis=0, keepdims=True))
    return powers / powers.sum(axis=0, keepdims=True)


def _sigmoid(x: FloatArray) -> FloatArray:
    one = np.float32(1)
    return one / (one + np.exp(-np.maximum(x, np.float32(-87))))  # exp(88.8) is infinite


_FUNCTIONS: dict[str, Callable[[FloatArray, Any], FloatArray]] = {
    "linear": lambda x, _: x,
    "relu6": lambda x, _: np.clip(x, 0, np.float32(6)),
    "leaky": lambda x, slope: np.where(x >= 0, x, slope * x),
    "sigmoid": lambda x, _: _sigmoid(x),
    "silu": lambda x, _: x * _sigmoid(x),
    "tanh": lambda x, _: np.tanh(x),
    "softmax": lambda x, _: _softmax(x),
}


@dataclass
class Step:
    """One step of a planned network.

    Args:
        name: Of the Keras layer.
        kind: Class of the Keras layer.
        inputs: Numbers of the tensors it reads.
        output: Number of the tensor it writes.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    output: int

    way = "dense"  # how it runs, as the report says it
    zeros = math.nan  # share of its weights

    def fits(self, tensors: list[Tensor | None]) -> bool:
        """Whether what it reads and writes lies within the tensors; NumPy looks by itself."""
        return True

    def prepare(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        """Returns what computes the step on a block of so many examples."""
        return self._work(tensors, examples, kernels)

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        raise NotImplementedError


@dataclass
class Linear(Step):
    """A convolution, in all its kinds; a product with a matrix is one with windows of a pixel.

    Args:
        shape: Units, channels, rows and columns of the window.
        places: int64: where in the kernel of this shape the weights stand that are not zero.
        values: float32: these weights.
        bias: float32 `(units,)`.
        strides: From one window to the next, down and across.
        dilation: From one pixel of the window to the next, down and across.
        pads: Rows above and columns on the left of the inputs that the first window reads.
        activation: What follows.
        is_unitwise: Whether each unit reads one channel alone.
        added: Number of a tensor that is added before the activation.
        weights: How many there are, zeros too.
    """

    shape: tuple[int, int, int, int]
    places: npt.NDArray[np.int64]
    values: FloatArray
    bias: FloatArray
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    activation: Activation = Activation()
    is_unitwise: bool = False
    added: int | None = None
    weights: int = 0

    @property
    def way(self) -> str:  # type: ignore[override]
        """How it runs, as the report says it."""
        return "sparse" if len(self.values) < self.weights else "dense"

    @property
    def zeros(self) -> float:  # type: ignore[override]
        """Share of the weights that are zero."""
        return 1 - len(self.values) / self.weights if self.weights else math.nan

    def fits(self, tensors: list[Tensor | None]) -> bool:
        """Whether weights, inputs, outputs and what is added suit each other."""
        places, values, units = self.places, self.values, self.shape[0]
        x, y = (known(tensors, i).pixels for i in (self.inputs[0], self.output))
        added = y if self.added is None else known(tensors, self.added).pixels
        within = not len(places) or 0 <= places.min() <= places.max() < math.prod(self.shape)
        return (
            within
            and len(places) == len(values)
            and (x[2], y[2], added) == (self.shape[1], units, y)
            and self.bias.shape == (units,)
            and self.bias.dtype == np.float32
            and min(*self.shape[2:], *self.strides, *self.dilation) > 0
            and min(*self.shape, *self.pads) >= 0
        )

    def multiply_adds(self, tensors: list[Tensor | None]) -> tuple[int, int]:
        """Returns the products for one example, and those whose weight is not zero."""
        places = math.prod(known(tensors, self.output).pixels[:2])
        return places * self.weights, places * len(self.values) * (self.weights > 0)

    def border(self, tensors: list[Tensor | None]) -> Border:
        """Returns the border that the windows need around the inputs."""
        before, after = (known(tensors, i).pixels[:2] for i in (self.inputs[0], self.output))
        of_window = self.strides, self.dilation, self.shape[2:], self.pads
        sizes = zip(before, after, *of_window, strict=True)
        (top, bottom), (left, right) = (
            (pad, max(0, (n_out - 1) * stride + (k - 1) * apart + 1 - pad - n_in))
            for n_in, n_out, stride, apart, k, pad in sizes
        )
        return top, bottom, left, right

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        ends = [self.inputs[0], self.output, *([] if self.added is None else [self.added])]
        rooms = [_room(known(tensors, i), examples) for i in ends]
        x, y, z = rooms[0], rooms[1], rooms[-1]
        rows, columns = y.shape[1:3]
        is_pointwise = self.shape[2:] == self.strides == (1, 1)
        if (
            is_pointwise
            and all(room.row == room.shape[2] * examples for room in rooms)
            and not any(any(known(tensors, i).border) for i in ends)
        ):
            rows, columns = 1, rows * columns
        steps = examples // 16
        many = _pixels_at_once(columns, steps)
        starts, offsets, values, chunks = self._pack(x, many, examples)
        units = self.shape[0]
        x_first = x.first - self.pads[0] * x.row - self.pads[1] * examples
        z_first = -1 if self.added is None else z.first
        sizes = np.array(
            [rows, columns, units, 1 if self.is_unitwise else units, chunks,
             x_first, x.row * self.strides[0], y.first, y.row, y.channel,
             z_first, z.row, z.channel],
            np.int64,
        )  # fmt: skip
        is_long = len(values) * rows * columns * examples > _LEAST_SHARED
        is_relu = self.activation.name == "relu"
        limits = np.array([0 if is_relu else 1, self.activation.number if is_relu else np.inf])
        limits = limits.astype(np.float32)
        like, pixel, gap = (0,) * (many * steps), (0,) * steps, (0,) * self.strides[1]

        def work(block: Block) -> None:
            source = block.array(self.inputs[0])
            added = source if self.added is None else block.array(self.added)
            target = block.make(self.output)
            n_threads = block.n_threads if is_long else 1
            pieces = iter(_pieces(sizes, n_threads, many, examples, self.strides[1]))

            def share() -> None:
                for piece in pieces:
                    kernels.convolve(
                        source, target, added, piece, starts, offsets, values, self.bias, limits,
                        like, pixel, gap,
                    )  # fmt: skip

            in_threads(share, n_threads, on_own_cores=True)
            if not is_relu and self.activation.name != "linear":
                view = block.view(self.output)
                view[...] = self.activation(view)

        return work

    def _pack(self, x: _Room, many: int, examples: int) -> tuple[Any, ...]:
        """Returns starts, offsets and values as `convolve` takes them, and the chunks."""
        units, channels, height, width = self.shape
        window = width * height * channels
        chunk = channels
        if not self.is_unitwise and len(self.values):
            read = height * (many * self.strides[1] + width - 1) * examples * 4
            per_channel = len(self.values) / (units * channels)
            chunk = max(_CACHED_BYTES // read, round(_WEIGHTS_A_CHUNK / per_channel), 1)
        chunks = max(1, -(-channels // chunk))
        chunk = -(-channels // chunks)
        unit, rest = np.divmod(self.places, max(window, 1))
        channel, rest = np.divmod(rest, max(height * width, 1))
        down, across = np.divmod(rest, max(width, 1))
        segment = channel // max(chunk, 1) * units + unit
        order = np.argsort(segment, kind="stable")
        offsets = channel * x.channel + down * (self.dilation[0] * x.row)
        offsets += across * (self.dilation[1] * examples)
        starts = np.searchsorted(segment[order], np.arange(chunks * units + 1)).astype(np.int64)
        return starts, offsets[order].astype(np.uint32), self.values[order], chunks


def _pieces(
    sizes: npt.NDArray[np.int64], n_threads: int, many: int, examples: int, stride: int
) -> list[npt.NDArray[np.int64]]:
    """Returns the sizes of parts of a convolution, of rows or of a single row's columns."""
    rows, columns = sizes[:2]
    if n_threads == 1:
        return [sizes]
    if rows > 1:  # of x, y and what is added: where the first row starts
        axis, steps = 0, (sizes[6], sizes[8], sizes[11])
        bounds = np.linspace(0, rows, min(rows, 2 * n_threads) + 1).astype(int)
    else:
        axis, steps = 1, (examples * stride, examples, examples)
        bounds = np.linspace(0, columns, max(min(columns // many, 2 * n_threads), 1) + 1).astype(
            int
        )
    pieces = []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        piece = sizes.copy()
        piece[axis] = end - begin
        piece[5] += begin * steps[0]
        piece[7] += begin * steps[1]
        if piece[10] >= 0:
            piece[10] += begin * steps[2]
        pieces.append(piece)
    return pieces


def _pixels_at_once(columns: int, steps: int) -> int:
    """The most neighbours, a power of two, that a row and the registers have room for."""
    many = max(_WIDEST // steps, 1)
    while many > columns:
        many //= 2
    return many


@dataclass
class MaxPool(Step):
    """The largest of each channel in windows."""

    window: tuple[int, int]
    strides: tuple[int, int]

    def fits(self, tensors: list[Tensor | None]) -> bool:
        """Whether all windows lie within the inputs."""
        x, y = (known(tensors, i).pixels for i in (self.inputs[0], self.output))
        sizes = zip(x, y, self.window, self.strides, strict=False)
        return x[2] == y[2] and all(
            size > 0 and stride > 0 and (n_out - 1) * stride + size <= n_in
            for n_in, n_out, size, stride in sizes
        )

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        x, y = (_room(known(tensors, i), examples) for i in (self.inputs[0], self.output))
        steps = examples // 16
        many = _pixels_at_once(y.shape[2], steps)
        offsets = np.add.outer(np.arange(self.window[0]) * x.row,
                               np.arange(self.window[1]) * examples).ravel()  # fmt: skip
        sizes = np.array(
            [y.shape[1], y.shape[2], y.shape[0], x.first, x.row * self.strides[0], x.channel,
             y.first, y.row, y.channel],
            np.int64,
        )  # fmt: skip
        like, pixel, gap = (0,) * (many * steps), (0,) * steps, (0,) * self.strides[1]

        def work(block: Block) -> None:
            source, target = block.array(self.inputs[0]), block.make(self.output)
            kernels.pool_largest(source, target, sizes, offsets, like, pixel, gap)

        return work


@dataclass
class GlobalPool(Step):
    """The mean or the largest of all pixels of each channel."""

    is_mean: bool

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        def work(block: Block) -> None:
            view = block.view(self.inputs[0])
            if self.is_mean:  # row by row: a sum of all pixels would round more
                pooled = view.mean(axis=2).mean(axis=1)
            else:
                pooled = view.max(axis=(1, 2))
            block.fill(self.output)[:, 0, 0] = pooled

        return work


_COMBINED: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Average": np.add,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Multiply": np.multiply,
    "Subtract": np.subtract,
}


@dataclass
class Combine(Step):
    """Tensors of the same shape, or with axes of one, combined pixel by pixel."""

    function: str  # a name of `_COMBINED`
    activation: Activation = Activation()

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        function = _COMBINED[self.function]

        def work(block: Block) -> None:
            first, *others = (block.view(i) for i in self.inputs)
            y = block.fill(self.output)
            if not others:
                y[...] = first
            for other in others:
                function(first, other, out=y)
                first = y
            if self.function == "Average":
                y /= np.float32(len(self.inputs))
            if self.activation.name == "relu":
                np.maximum(y, 0, out=y)
                if self.activation.number < np.inf:
                    np.minimum(y, np.float32(self.activation.number), out=y)
            elif self.activation.name != "linear":
                y[...] = self.activation(y)

        return work


@dataclass
class Activate(Step):
    """An activation by itself."""

    activation: Activation

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        def work(block: Block) -> None:
            block.fill(self.output)[...] = self.activation(block.view(self.inputs[0]))

        return work


@dataclass
class Concatenate(Step):
    """Tensors one after the other; axis 0 is that of the channels, then rows, columns."""

    axis: int

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        def work(block: Block) -> None:
            views = [block.view(i) for i in self.inputs]
            y, place = np.moveaxis(block.fill(self.output), self.axis, 0), 0
            for view in views:
                part = np.moveaxis(view, self.axis, 0)
                y[place : place + len(part)] = part
                place += len(part)

        return work


@dataclass
class Pad(Step):
    """Pixels of one value around the inputs."""

    pads: Border
    value: float = 0.0

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        top, _, left, _ = self.pads

        def work(block: Block) -> None:
            view, y = block.view(self.inputs[0]), block.fill(self.output)
            y[...] = self.value
            y[:, top : top + view.shape[1], left : left + view.shape[2]] = view

        return work


@dataclass
class Crop(Step):
    """The pixels from a row and a column on."""

    first: tuple[int, int]

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        top, left = self.first

        def work(block: Block) -> None:
            view, y = block.view(self.inputs[0]), block.fill(self.output)
            y[...] = view[:, top : top + y.shape[1], left : left + y.shape[2]]

        return work


@dataclass
class Upsample(Step):
    """Each pixel several times."""

    times: tuple[int, int]

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        down, across = self.times

        def work(block: Block) -> None:
            view, y = block.view(self.inputs[0]), block.fill(self.output)
            for row in range(down):
                for column in range(across):
                    y[:, row::down, column::across] = view

        return work


@dataclass
class Reshape(Step):
    """The same numbers in another shape; Flatten too."""

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        def work(block: Block) -> None:
            rows = block.view(self.inputs[0]).transpose(1, 2, 0, 3)  # channels last, as in Keras
            y = block.fill(self.output).transpose(1, 2, 0, 3)
            y[...] = rows.reshape(y.shape)

        return work


@dataclass
class Call(Step):
    """A layer or operation that Keras computes."""

    operation: Any
    arguments: Callable[[list[Any]], tuple[Any, dict[str, Any]]]
    outputs: tuple[int, ...] = field(default=())

    way = "Keras"

    def _work(self, tensors: list[Tensor | None], examples: int, kernels: ModuleType) -> Work:
        call = getattr(self.operation, "call", None)
        training = {}
        if isinstance(self.operation, keras.Layer) and call is not None:
            if "training" in inspect.signature(call).parameters:
                training = {"training": False}

        def work(block: Block) -> None:
            given = [keras.ops.convert_to_tensor(block.rows(i)) for i in self.inputs]
            args, kwargs = self.arguments(given)
            returned = keras.tree.flatten(self.operation(*args, **{**kwargs, **training}))
            for number, values in zip(self.outputs, returned, strict=True):
                block.put_rows(number, keras.ops.convert_to_numpy(values))

        return work
