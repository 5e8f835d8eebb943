"""Compiled loops of the sparse forward pass. Imports numba: import this module lazily.

A block holds some examples' activations as (channel, row, column, example), so that one
weight meets neighbouring floats. The running sums of a unit stay in vector
registers, which plain numba cannot express: an array of sums lives in memory. Hence a
numba type for a vector of floats, and the few operations on it. They are LLVM's generic
vectors, which its code generator splits to the registers of any processor.

Intrinsics and kernels are globals of the module: numba's cache misses those in closures.
"""

# numba passes an intrinsic its first argument, which the types of numba do not tell:
# mypy: disable-error-code="call-arg, var-annotated"

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

__all__ = [
    "LANES",
    "convolve",
    "forward_chain",
    "from_block",
    "multiply_dense",
    "multiply_inputs",
    "multiply_sparse",
    "pool_largest",
    "squeeze",
    "to_block",
]

LANES = 16  # floats in one step of width: an AVX-512 register, two of AVX, four of SSE or NEON
_ALIGNMENT = 64  # bytes, a cache line; a block that straddles lines costs up to 40 %


class _Lanes(types.Type):
    """A vector of `width` float32 values."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Lanes({width})")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: _Lanes) -> None:
        super().__init__(manager, lanes, _llvm_type(lanes))


def _llvm_type(lanes: _Lanes) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), lanes.width)


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles without the global lock; cached on disk, where a folder can be written."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no place for its cache
        return njit(nogil=True)(function)


@intrinsic
def _splat(typing: Any, value: Any, like: Any) -> Any:
    """A vector of one value; as wide as LANES times the length of the tuple `like`."""
    lanes = _Lanes(LANES * len(like))

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _broadcast(builder, args[0], lanes)

    return lanes(types.float32, like), build


@intrinsic
def _load(typing: Any, array: Any, offset: Any, like: Any) -> Any:
    """The vector at `array[offset]`, an aligned place."""
    lanes = _Lanes(LANES * len(like))

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], lanes)
        return builder.load(place, align=_ALIGNMENT)

    return lanes(array, types.intp, like), build


@intrinsic
def _store(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Writes the vector to `array[offset]`, an aligned place."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], vector)
        builder.store(args[2], place, align=_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), build


@intrinsic
def _multiply_add(typing: Any, weight: Any, vector: Any, sums: Any) -> Any:
    """`weight * vector + sums`, fused where the processor can."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _llvm_type(sums)
        name = f"llvm.fmuladd.v{sums.width}f32"
        function = ir.FunctionType(kind, [kind] * 3)
        fused = cgutils.get_or_insert_function(builder.module, function, name)
        return builder.call(fused, [_broadcast(builder, args[0], sums), args[1], args[2]])

    return sums(types.float32, vector, sums), build


@intrinsic
def _relu(typing: Any, vector: Any) -> Any:
    """The vector with its negative values set to zero; NaN stays."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(_llvm_type(vector), None)
        negative = builder.fcmp_ordered("<", args[0], zero)
        return builder.select(negative, zero, args[0])

    return vector(vector), build


def _broadcast(builder: Any, value: Any, lanes: _Lanes) -> Any:
    kind = _llvm_type(lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    every = ir.Constant(ir.VectorType(ir.IntType(32), lanes.width), [0] * lanes.width)
    return builder.shuffle_vector(first, undefined, every)


def _place(
    context: Any, builder: Any, array_type: Any, array: Any, offset: Any, lanes: _Lanes
) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _llvm_type(lanes).as_pointer())


@_jit
def squeeze(x, chunk, segment, starts, indices, values):
    """Writes the entries of a matrix that are not zero, row by row within each chunk of columns.

    Args:
        x: float32 `(rows, columns)`: of a layer's inputs, or of its kernel, transposed.
        chunk: Columns a chunk.
        segment: The first place in `starts`; what stands there is where the entries begin.
        starts: int64, written: where the entries of each chunk and row begin.
        indices: uint32, written: the entries' columns. One longer than there are entries.
        values: float32, written: the entries.
    """
    rows, columns = x.shape
    place = np.uint64(starts[segment])  # unsigned: no index is counted from the end
    for begin in range(0, max(columns, 1), chunk):
        end = np.uint64(min(begin + chunk, columns))
        for row in range(rows):
            part, first = x[row], place
            for column in range(np.uint64(begin), end):
                indices[place] = column  # overwritten where the entry is zero: no branch
                place += np.uint64(part[column] != 0)
            for k in range(first, place):
                values[k] = part[np.uint64(indices[k])]
            segment += 1
            starts[segment] = place


@_jit
def multiply_inputs(x, chunk, kernel, bias, y, relu, like):
    """Writes `x @ kernel + bias`, skipping inputs of zero.

    The same loop as in `convolve` with the parts exchanged: there the weights are sparse
    and the activations of some examples lie side by side, here the activations are sparse
    and the weights of `width` units lie side by side.

    Args:
        x: float32 `(examples, inputs)`.
        chunk: Inputs a chunk.
        kernel: float32, aligned: `(blocks, inputs, width)`, flat.
        bias: float32, aligned, `(blocks * width,)`.
        y: float32, aligned: `(examples, blocks * width)`, flat; written.
        relu: Whether relu follows.
        like: A tuple; its length tells `width`, in steps of LANES.
    """
    width = LANES * len(like)
    examples, inputs = x.shape
    blocks = len(bias) // width
    starts = np.zeros(-(-max(inputs, 1) // chunk) * examples + 1, np.int64)
    indices, values = np.empty(x.size + 1, np.uint32), np.empty(x.size, np.float32)
    squeeze(x, chunk, 0, starts, indices, values)
    for block in range(blocks):
        segment = 0
        for begin in range(0, max(inputs, 1), chunk):
            is_first = begin == 0
            rectify = relu and begin + chunk >= inputs
            for example in range(examples):
                place = (example * blocks + block) * width
                if is_first:
                    sums = _load(bias, block * width, like)
                else:
                    sums = _load(y, place, like)
                for k in range(np.uint64(starts[segment]), np.uint64(starts[segment + 1])):
                    weights = _load(kernel, (block * inputs + np.intp(indices[k])) * width, like)
                    sums = _multiply_add(values[k], weights, sums)
                if rectify:
                    sums = _relu(sums)
                _store(y, place, sums)
                segment += 1


@_jit
def multiply_sparse(x, starts, indices, values, y):
    """Adds the product of one example `(inputs,)` and CSR rows to y; skips inputs of zero."""
    for i in range(len(x)):
        if x[i] != 0:
            for k in range(np.uint64(starts[i]), np.uint64(starts[i + 1])):
                y[indices[k]] += x[i] * values[k]


@_jit
def multiply_dense(x, kernel, y):
    """Adds the product of one example `(inputs,)` and a kernel to y; skips inputs of zero."""
    active = np.empty(len(x), np.int64)
    count = 0
    for i in range(len(x)):
        active[count] = i
        count += x[i] != 0
    fours = count // 4 * 4  # four rows at a time, so that y is read and written less
    for k in range(0, fours, 4):
        a, b, c, d = active[k], active[k + 1], active[k + 2], active[k + 3]
        for unit in range(len(y)):
            y[unit] += (x[a] * kernel[a, unit] + x[b] * kernel[b, unit]) + (
                x[c] * kernel[c, unit] + x[d] * kernel[d, unit]
            )
    for k in range(fours, count):
        for unit in range(len(y)):
            y[unit] += x[active[k]] * kernel[active[k], unit]


@intrinsic
def _load_apart(typing: Any, array: Any, offset: Any, like: Any, pixel: Any, gap: Any) -> Any:
    """A vector of pixels that lie apart: every second for a `gap` of two, and so on.

    A pixel is as many steps of LANES as the tuple `pixel` is long.
    """
    lanes = _Lanes(LANES * len(like))
    one = _Lanes(LANES)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if len(gap) == 1:
            place = _place(context, builder, signature.args[0], args[0], args[1], lanes)
            return builder.load(place, align=_ALIGNMENT)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        start = builder.gep(data, [args[1]])
        parts = []
        for step in range(len(like)):
            pixels, rest = divmod(step, len(pixel))
            far = LANES * (pixels * len(gap) * len(pixel) + rest)
            place = builder.gep(start, [ir.Constant(ir.IntType(64), far)])
            place = builder.bitcast(place, _llvm_type(one).as_pointer())
            parts.append(builder.load(place, align=_ALIGNMENT))
        return _joined(builder, parts, LANES)

    return lanes(array, types.intp, like, pixel, gap), build


def _joined(builder: Any, parts: list[Any], width: int) -> Any:
    """One vector of several, which are `width` floats each."""
    vector, total = parts[0], width
    for part in parts[1:]:
        count = total + width
        if total > width:  # LLVM shuffles vectors of one width alone
            grow = [*range(width), *[width] * (total - width)]
            undefined = ir.Constant(ir.VectorType(ir.FloatType(), width), ir.Undefined)
            part = builder.shuffle_vector(part, undefined, _places(grow))
        vector = builder.shuffle_vector(vector, part, _places([*range(count)]))
        total = count
    return vector


def _places(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


@intrinsic
def _at_most(typing: Any, vector: Any, limit: Any) -> Any:
    """The vector with its values above the limit set to it; NaN stays."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        top = _broadcast(builder, args[1], vector)
        return builder.select(builder.fcmp_ordered(">", args[0], top), top, args[0])

    return vector(vector, types.float32), build


@intrinsic
def _larger(typing: Any, one: Any, other: Any) -> Any:
    """The larger ones of two vectors' values; NaN if one is."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        stays = builder.fcmp_unordered(">", args[0], args[1])
        larger = builder.select(stays, args[0], args[1])
        return builder.select(builder.fcmp_unordered("uno", args[1], args[1]), args[1], larger)

    return one(one, one), build


@intrinsic
def _plus(typing: Any, one: Any, other: Any) -> Any:
    """The sum of two vectors."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1])

    return one(one, one), build


@_jit
def convolve(x, y, z, sizes, starts, offsets, values, bias, limits, like, pixel, gap):
    """Writes a convolution without the products of weights that are zero.

    All weights of a unit that read one chunk of channels are one list: a weight, and how
    far from the first pixel of the window the pixel lies that it multiplies. A block of
    pixels meets all lists of one chunk, whose pixels stay in the first-level cache.

    Args:
        x: float32, aligned: a block's inputs, with the border of zeros that the window needs.
        y: float32, aligned: a block's outputs; written.
        z: float32, aligned: what is added to the outputs, if `sizes` says so.
        sizes: int64: rows, columns, units, units at once, chunks; then in floats of x: where the
            first window begins, from one window's row to the next; of y: where the first output
            stands, from one row to the next, from one unit to the next; as much of z, or -1.
        starts: int64 `(chunks * units + 1,)`: where the list of each chunk and unit begins.
        offsets: uint32, in floats of x.
        values: float32; the weights.
        bias: float32 `(units,)`.
        limits: float32: 0 where relu follows or less; the largest output, or infinity.
        like: A tuple; its length tells the floats that are summed at once, in steps of LANES.
        pixel: A tuple; its length tells the examples of a block, in steps of LANES.
        gap: A tuple; its length is the stride from one window to the next in its row.
    """
    rows, columns, units, together, chunks = sizes[:5]
    x_first, x_row, y_first, y_row, y_unit, z_first, z_row, z_unit = sizes[5:]
    examples = LANES * len(pixel)
    many = len(like) // len(pixel)  # pixels at once
    rectifies, limit = limits[0] == 0, limits[1]
    is_limited = limit < np.inf
    for first_unit in range(0, units, together):
        for row in range(rows):
            for begin in range(0, columns, many):
                column = min(begin, columns - many)  # the last ones may be computed twice
                window = x_first + row * x_row + column * examples * len(gap)
                place = y_first + row * y_row + column * examples
                added = z_first + row * z_row + column * examples
                for chunk in range(chunks):
                    is_last = chunk == chunks - 1
                    for unit in range(first_unit, min(first_unit + together, units)):
                        out = place + unit * y_unit
                        if chunk > 0:
                            sums = _load(y, out, like)
                        else:
                            sums = _splat(bias[np.uint64(unit)], like)
                            if z_first >= 0:
                                sums = _plus(sums, _load(z, added + unit * z_unit, like))
                        segment = np.uint64(chunk * units + unit)
                        end = np.uint64(starts[segment + np.uint64(1)])
                        for k in range(np.uint64(starts[segment]), end):
                            at = window + np.intp(offsets[k])
                            pixels = _load_apart(x, at, like, pixel, gap)
                            sums = _multiply_add(values[k], pixels, sums)
                        if is_last and rectifies:
                            sums = _relu(sums)
                        if is_last and is_limited:
                            sums = _at_most(sums, limit)
                        _store(y, out, sums)


@_jit
def pool_largest(x, y, sizes, offsets, like, pixel, gap):
    """Writes the largest pixels of windows.

    Args:
        x: As in `convolve`.
        y: As in `convolve`.
        sizes: int64: rows, columns, channels; in floats of x: where the first window begins,
            from one window's row to the next, from one channel to the next; as much of y.
        offsets: int64, in floats of x: the pixels of a window.
        like: As in `convolve`.
        pixel: As in `convolve`.
        gap: As in `convolve`.
    """
    rows, columns, channels = sizes[:3]
    x_first, x_row, x_channel, y_first, y_row, y_channel = sizes[3:]
    examples = LANES * len(pixel)
    many = len(like) // len(pixel)
    for channel in range(channels):
        for row in range(rows):
            for begin in range(0, columns, many):
                column = min(begin, columns - many)
                window = channel * x_channel + x_first + row * x_row
                window += column * examples * len(gap)
                largest = _load_apart(x, window + offsets[0], like, pixel, gap)
                for k in range(1, len(offsets)):
                    pixels = _load_apart(x, window + offsets[k], like, pixel, gap)
                    largest = _larger(largest, pixels)
                out = channel * y_channel + y_first + row * y_row + column * examples
                _store(y, out, largest)


@intrinsic
def _transpose(
    typing: Any, x: Any, offset: Any, x_step: Any, y: Any, place: Any, y_step: Any
) -> Any:
    """Writes LANES vectors of x, `x_step` floats apart, to y, `y_step` apart, transposed.

    Four times the first half is interleaved with the second, as cards are shuffled; each
    float then stands where its row and column are exchanged.
    """
    lanes = _Lanes(LANES)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def at(array: int, step: int, row: int) -> Any:
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            far = builder.mul(args[step], ir.Constant(ir.IntType(64), row))
            place = builder.gep(data, [builder.add(args[array + 1], far)])
            return builder.bitcast(place, _llvm_type(lanes).as_pointer())

        rows = [builder.load(at(0, 2, row), align=4) for row in range(LANES)]
        half = LANES // 2
        low = _places([lane // 2 + lane % 2 * LANES for lane in range(LANES)])
        high = _places([half + lane // 2 + lane % 2 * LANES for lane in range(LANES)])
        for _ in range(LANES.bit_length() - 1):
            pairs = [(rows[row], rows[row + half]) for row in range(half)]
            rows = [builder.shuffle_vector(*pair, part) for pair in pairs for part in (low, high)]
        for row in range(LANES):
            builder.store(rows[row], at(3, 5, row), align=4)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, y, types.intp, types.intp), build


@_jit
def to_block(x, y, first, y_channel, y_row, examples):
    """Writes `(examples, rows, columns, channels)` as (channel, row, column, example).

    Args:
        x: float32, as many examples as there are, at most a block.
        y: float32; a block's room, written.
        first: Where in y the first pixel stands.
        y_channel: Floats of y from one channel to the next.
        y_row: Floats of y from one row to the next.
        examples: Examples of a block, a multiple of LANES; those that are not there are zero.
    """
    count, rows, columns, channels = x.shape
    flat = x.reshape(x.size)
    example_size = rows * columns * channels
    whole = channels // LANES * LANES
    for example in range(0, examples, LANES):
        is_whole = example + LANES <= count
        for pixel in range(rows * columns):
            place = first + pixel // columns * y_row + pixel % columns * examples
            start = example * example_size + pixel * channels
            if is_whole:
                for channel in range(0, whole, LANES):
                    out = place + channel * y_channel + example
                    _transpose(flat, start + channel, example_size, y, out, y_channel)
            for channel in range(whole if is_whole else 0, channels):
                out = place + channel * y_channel + example
                for k in range(min(LANES, count - example)):
                    y[out + k] = flat[start + k * example_size + channel]
                for k in range(max(count - example, 0), LANES):
                    y[out + k] = 0


@_jit
def from_block(y, first, y_channel, y_row, examples, x):
    """The way back of `to_block`: writes x."""
    count, rows, columns, channels = x.shape
    flat = x.reshape(x.size)
    example_size = rows * columns * channels
    whole = channels // LANES * LANES
    for example in range(0, count, LANES):
        is_whole = example + LANES <= count
        for pixel in range(rows * columns):
            place = first + pixel // columns * y_row + pixel % columns * examples
            start = example * example_size + pixel * channels
            if is_whole:
                for channel in range(0, whole, LANES):
                    out = place + channel * y_channel + example
                    _transpose(y, out, y_channel, flat, start + channel, example_size)
            for channel in range(whole if is_whole else 0, channels):
                out = place + channel * y_channel + example
                for k in range(min(LANES, count - example)):
                    flat[start + k * example_size + channel] = y[out + k]


@_jit
def forward_chain(x, y, layers, starts, offsets, values, bias, limits, front, back, like):
    """Sends the examples through a chain of dense layers, a block of them at a time.

    Args:
        x: Inputs, float32 `(examples, inputs)`.
        y: Outputs, float32 `(examples, units)`, written.
        layers: int64 `(layers, 13)`: of each layer the sizes that `convolve` takes.
        starts: As in `convolve`, of all layers, one after the other.
        offsets: As in `convolve`, of all layers.
        values: As in `convolve`, of all layers.
        bias: float32; of all layers, one after the other.
        limits: float32 `(layers, 2)`: as in `convolve`.
        front: Room for a block, float32, aligned.
        back: Room for another.
        like: A tuple; its length tells the width of a block, in steps of LANES.
    """
    width = LANES * len(like)
    for top in range(0, len(x), width):
        rows = min(width, len(x) - top)
        to_block(x[top : top + rows].reshape(rows, 1, 1, x.shape[1]), front, 0, width, width, width)
        unit, segment = 0, 0
        for layer in range(len(layers)):
            units, chunks = layers[layer, 2], layers[layer, 4]
            convolve(
                front, back, front, layers[layer], starts[segment:], offsets, values,
                bias[unit:], limits[layer], like, like, (0,),
            )  # fmt: skip
            unit += units
            segment += chunks * units
            front, back = back, front
        out = y[top : top + rows].reshape(rows, 1, 1, y.shape[1])
        from_block(front, 0, width, width, width, out)
