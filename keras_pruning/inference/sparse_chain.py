"""A chain of Dense layers run without the zeros of its weights or of its activations.

A dense product takes as long over zeros as over other numbers. Each layer takes the
cheapest of three ways, by costs that are measured on the machine:

- "dense": NumPy's BLAS.
- "weights": a loop over the weights that are left, compiled by numba (SciPy's CSR product
  where numba is missing).
- "inputs": a loop over the inputs that are not zero, with all weights: ReLU leaves half of
  the activations zero, and images have dark pixels. Needs numba.
"""

import functools
import importlib
import operator
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
from keras import activations

from keras_pruning.inference.block_layers import aligned
from keras_pruning.inference.dense_chain import DenseStep, compact
from keras_pruning.inference.threads import check_threads, in_threads, one_blas_thread
from keras_pruning.pruning import count_nonzero

__all__ = ["SparseChain", "compiled_loops", "sparse_forward"]

FloatArray = npt.NDArray[np.float32]
Way = Literal["dense", "weights", "inputs"]
Product = Callable[[FloatArray], FloatArray]  # (examples, inputs) -> (examples, units)
SingleProduct = Callable[[FloatArray], FloatArray]  # (inputs,) -> (units,), with the bias

_WIDE, _NARROW = 64, 16  # examples, or units, a block; multiples of the kernels' LANES
_CHUNK = 128  # inputs whose activations, 256 bytes each, fill a first-level cache of 32 KiB
_WEIGHTS_A_CHUNK = 24  # of a unit; with fewer, loading and storing its sums costs too much
_ROWS = 256  # examples of a task: enough for BLAS, few enough for the caches
_LEAST_SPARSITY = 0.25  # weights are not skipped where every layer has fewer zeros
_LITTLE_WORK = 1e9  # multiply-adds, 10 ms: as long as it takes to load the compiled loops
_PROBE_ROWS = 32  # examples that tell how many inputs of each layer are zero
_CALIBRATION_SIZE = 512  # inputs and units of the layer that is timed
_CALIBRATION_ROWS = 256
_TURNS = 7  # of a measurement
# Windows counts a thread's own time in steps of 16 ms.
_cpu_clock = time.perf_counter if os.name == "nt" else time.thread_time


def sparse_forward(
    steps: list[DenseStep],
    x: npt.NDArray[Any],
    *,
    n_threads: int | None = None,
    reproducible: bool = False,
) -> FloatArray:
    """Returns the chain's outputs `(examples, units)` for inputs `(examples, ...)`.

    Weights that are zero are skipped. Nothing is kept: for one set of weights and many
    calls, `SparseModel` prepares the weights once.
    """
    return SparseChain(steps, n_threads, reproducible).forward(x.reshape(len(x), -1))


class SparseChain:
    """Dense steps and what was prepared to run them: plans, packed weights.

    Each thread takes some of the examples through the whole chain. BLAS is held to one
    thread meanwhile: its own ones would stay awake and get in the way of the next step.

    Args:
        steps: As `read_dense_chain` returns them.
        n_threads: By default one a processor core.
        reproducible: Whether the same inputs give the same outputs to the last bit in every
            process and on any number of threads. The ways are then chosen by the costs of a
            typical machine, since measured ones differ a little each time.
    """

    def __init__(
        self, steps: list[DenseStep], n_threads: int | None, reproducible: bool = False
    ) -> None:
        self.n_threads = check_threads(n_threads)
        self._reproducible = reproducible
        self.steps = [_contiguous(step) for step in compact(steps)]
        self._counts = [count_nonzero(step.kernel) for step in self.steps]
        self._work = 0.0  # multiply-adds asked for until now
        self._densities: list[float] = []
        self._products: dict[tuple[Way, int, int], Product] = {}
        self._single_products: list[SingleProduct] = []

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        """Returns the outputs `(examples, units)` for inputs `(examples, inputs)`."""
        if len(x) == 1 and not self._reproducible:
            return self._forward_single(np.require(x, np.float32, ["C", "W"]))
        outputs = np.empty((len(x), len(self.steps[-1].bias)), np.float32)
        share = len(x) if self._reproducible else -(-len(x) // self.n_threads)
        rows = min(max(share, 1), _ROWS)  # a task's
        tops = iter(range(0, len(x), rows))
        with one_blas_thread():
            products = self._prepare(x, rows)

            def work() -> None:
                for top in tops:
                    block = np.require(x[top : top + rows], np.float32, ["C", "W"])
                    for product in products:
                        block = product(block)
                    outputs[top : top + rows] = block

            # Keras starts threads of its own to compute other activations.
            is_compiled = all(map(_is_fused, self.steps[:-1]))
            n_threads = max(1, min(self.n_threads, -(-len(x) // rows)))
            in_threads(work, n_threads, on_own_cores=is_compiled)
        return _activate(self.steps[-1], outputs, is_rectified=True)

    def rows(self, x: npt.NDArray[Any]) -> list[tuple[Any, ...]]:
        """Returns of each step its name, kind, way, share of zeros and share of the time."""
        x = np.require(x, np.float32, ["C", "W"])
        ways = self._choose(x, max(len(x), 1))
        seconds = []
        with one_blas_thread():
            for i, way in enumerate(ways):
                product = self._product(way, i, i + 1)
                seconds.append(_shortest_seconds([functools.partial(product, x)])[0])
                x = product(x)
        total = sum(seconds) or 1.0
        runs = ["dense" if way == "dense" else "sparse" for way in ways]
        zeros = [
            1 - count / max(step.kernel.size, 1)
            for step, count in zip(self.steps, self._counts, strict=True)
        ]
        return [
            (step.name, "Dense", run, share, taken / total)
            for step, run, share, taken in zip(self.steps, runs, zeros, seconds, strict=True)
        ]

    def _forward_single(self, x: FloatArray) -> FloatArray:
        if not self._single_products:
            self._single_products = _fastest_products(self.steps, x)
        for step, product in zip(self.steps, self._single_products, strict=True):
            x = _step_single(step, product, x)
        return x

    def _prepare(self, x: npt.NDArray[Any], rows: int) -> list[Product]:
        """Returns the products that follow one another, for tasks of so many rows."""
        ways = self._choose(x, rows)
        products = []
        start = 0
        for i, way in enumerate(ways):
            is_followed = i + 1 < len(ways) and way == ways[i + 1] == "weights"
            if not (is_followed and _is_fused(self.steps[i])):
                products.append(self._product(way, start, i + 1))
                start = i + 1
        return products

    def _choose(self, x: npt.NDArray[Any], rows: int) -> Sequence[Way]:
        """Returns the way of each step."""
        sizes = [step.kernel.size for step in self.steps]
        pairs = zip(self._counts, sizes, strict=True)
        is_full = all(count >= (1 - _LEAST_SPARSITY) * size for count, size in pairs)
        self._work += len(x) * sum(sizes)
        if is_full and self._work < _LITTLE_WORK:
            return ["dense"] * len(sizes)
        if not self._densities:
            self._densities = _input_densities(self.steps, x[:_PROBE_ROWS])
        shapes = [step.kernel.shape for step in self.steps]
        if self._reproducible:
            costs = _TYPICAL_COSTS
        else:
            costs = _costs(min(_power_of_two(rows), _CALIBRATION_ROWS))
        return _cheapest(shapes, self._counts, self._densities, costs)

    def _product(self, way: Way, start: int, stop: int) -> Product:
        """Returns the function of some steps, with their activations but that of the last."""
        key = way, start, stop
        if key not in self._products:
            steps = self.steps[start:stop]
            multiply = _PRODUCTS[way](steps)
            if stop == len(self.steps):
                self._products[key] = multiply
            else:
                self._products[key] = lambda x: _activate(steps[-1], multiply(x), is_rectified=True)
        return self._products[key]


def _input_densities(steps: list[DenseStep], x: npt.NDArray[Any]) -> list[float]:
    """Returns the share of inputs of each step that are not zero, for some examples."""
    densities = []
    x = np.require(x, np.float32, ["C", "W"])
    for step in steps:
        densities.append(count_nonzero(x) / max(x.size, 1))
        x = _activate(step, _dense_product([step])(x), is_rectified=True)
    return densities


@dataclass(frozen=True)
class _Costs:
    """Seconds of one thread that an example of a batch takes."""

    dense: float  # a weight, zero or not
    weight: float  # a weight that is not zero, where zeros are skipped
    border: float  # a feature that changes its layout, to or from what "weights" takes
    met: float  # a weight met by an input that is not zero, where the others are skipped
    input: float  # an input looked at, whether it is zero


# What `_costs(256)` gave on a core of an AMD EPYC with AVX-512, BLAS held to one thread.
_TYPICAL_COSTS = _Costs(dense=2.06e-11, weight=2.45e-11, border=7e-10, met=2.4e-11, input=8e-10)


@functools.lru_cache
def _costs(rows: int) -> _Costs:
    """Measures this machine on one layer, for batches of about `rows` examples.

    One thread's own time is measured: other programs hardly disturb it.
    """
    size, density = _CALIBRATION_SIZE, 1 / 4
    rng = np.random.default_rng(0)
    bias = np.zeros(size, np.float32)

    def sparse_array(shape: tuple[int, int], density: float) -> FloatArray:
        uniform = rng.random(shape, np.float32)
        return np.where(uniform < density, uniform - density / 2, np.float32(0))

    def product(way: Way, density_x: float, density: float) -> Callable[[], FloatArray]:
        step = DenseStep(sparse_array((size, size), density), bias, activations.relu)
        return functools.partial(_PRODUCTS[way]([step]), sparse_array((rows, size), density_x))

    ways = [
        product("dense", 1, 1),
        product("weights", 1, density),
        product("weights", 1, 0),  # changes the layout alone
    ]
    if compiled_loops() is not None:
        ways += [product("inputs", density, 1), product("inputs", 0, 1)]
    dense, weights, empty, *by_inputs = _shortest_seconds(ways)
    inputs, blank = by_inputs or (np.inf, np.inf)
    area = rows * size * size
    return _Costs(
        dense=dense / area,
        weight=max(weights - empty, 0.0) / (density * area),
        border=empty / (rows * 2 * size),
        met=max(inputs - blank, 0.0) / (density * area) if by_inputs else np.inf,
        input=blank / (rows * size),
    )


def _power_of_two(number: int) -> int:
    """The least one that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


def _cheapest(
    shapes: list[tuple[int, ...]], counts: list[int], densities: list[float], costs: _Costs
) -> tuple[Way, ...]:
    """Returns each layer's way, so that the sum of layers and borders is least."""
    total = {False: 0.0, True: np.inf}  # cost up to here; True: in the layout of "weights"
    path: dict[bool, tuple[Way, ...]] = {False: (), True: ()}
    for (inputs, units), count, density in zip(shapes, counts, densities, strict=True):
        padded = -(-units // _WIDE) * _WIDE
        by_inputs = costs.met * density * inputs * padded + costs.input * inputs
        by_rows: list[tuple[float, Way]] = [
            (costs.dense * inputs * units, "dense"),
            (by_inputs, "inputs"),
        ]
        here: dict[bool, tuple[float, Way]] = {
            False: min(by_rows),
            True: (costs.weight * count, "weights"),
        }
        border = costs.border * inputs
        stay_or_change = {
            now: min((total[before] + border * (before != now), before) for before in total)
            for now in total
        }
        total = {now: cost + here[now][0] for now, (cost, _) in stay_or_change.items()}
        path = {now: (*path[before], here[now][1]) for now, (_, before) in stay_or_change.items()}
    total[True] += costs.border * shapes[-1][1]
    return path[min(total, key=total.__getitem__)]


def _dense_product(steps: list[DenseStep]) -> Product:
    """Returns a function that multiplies with NumPy's BLAS; of one step."""
    (step,) = steps

    def forward(x: FloatArray) -> FloatArray:
        y = x @ step.kernel
        y += step.bias
        if step.activation is activations.relu:
            np.maximum(y, 0, out=y)
        return y

    return forward


def _weights_product(steps: list[DenseStep]) -> Product:
    """Returns a function that skips weights of zero, of several steps in one go."""
    kernels = compiled_loops()
    if kernels is None:
        return _csr_product(steps)
    packed = functools.lru_cache(functools.partial(_pack, kernels, steps))
    widest = max(max(step.kernel.shape) for step in steps)
    units = len(steps[-1].bias)

    def forward(x: FloatArray) -> FloatArray:
        y = np.empty((len(x), units), np.float32)
        width = _NARROW if len(x) <= _NARROW else _WIDE
        front, back = aligned(widest * width), aligned(widest * width)
        like = (0,) * (width // kernels.LANES)
        kernels.forward_chain(x, y, *packed(width), front, back, like)
        return y

    return forward


def _inputs_product(steps: list[DenseStep]) -> Product:
    """Returns a function that skips inputs of zero; of one step."""
    (step,) = steps
    kernels = compiled_loops()
    if kernels is None:
        raise RuntimeError("Inputs of zero are skipped by numba alone: install it.")
    units = len(step.bias)
    packed, bias = _in_blocks(step.kernel), _in_blocks(step.bias[None])
    like = (0,) * (_WIDE // kernels.LANES)
    is_relu = step.activation is activations.relu

    def forward(x: FloatArray) -> FloatArray:
        y = aligned(len(x) * len(bias))
        kernels.multiply_inputs(x, _CHUNK, packed, bias, y, is_relu, like)
        return np.ascontiguousarray(y.reshape(len(x), -1)[:, :units])

    return forward


_PRODUCTS: dict[Way, Callable[[list[DenseStep]], Product]] = {
    "dense": _dense_product,
    "weights": _weights_product,
    "inputs": _inputs_product,
}


def _in_blocks(kernel: FloatArray) -> FloatArray:
    """Returns `(inputs, units)` as aligned `(blocks, inputs, units a block)`, filled with zeros."""
    inputs, units = kernel.shape
    blocks = -(-units // _WIDE)
    packed = aligned(blocks * inputs * _WIDE)
    for block, part in enumerate(packed.reshape(blocks, inputs, _WIDE)):
        columns = kernel[:, block * _WIDE : (block + 1) * _WIDE]
        part[:, : columns.shape[1]] = columns
        part[:, columns.shape[1] :] = 0
    return packed


def _pack(kernels: ModuleType, steps: list[DenseStep], width: int) -> tuple[Any, ...]:
    """Returns layers, starts, offsets, values, bias and limits as `forward_chain` takes them."""
    counts = [count_nonzero(step.kernel) for step in steps]
    chunks = [_chunk(step, count) for step, count in zip(steps, counts, strict=True)]
    numbers = [
        max(-(-len(step.kernel) // chunk), 1) for step, chunk in zip(steps, chunks, strict=True)
    ]
    units = [len(step.bias) for step in steps]
    starts = np.zeros(sum(map(operator.mul, numbers, units)) + 1, np.int64)
    columns, values = np.empty(sum(counts) + 1, np.uint32), np.empty(sum(counts), np.float32)
    segment = 0
    for step, chunk, number in zip(steps, chunks, numbers, strict=True):
        kernels.squeeze(step.kernel.T, chunk, segment, starts, columns, values)
        segment += number * len(step.bias)
    # Of one pixel, (1, 1, units, units, chunks, ...), and the features `width` floats apart.
    layers = [
        (1, 1, n, max(n, 1), number, 0, 0, 0, 0, width, -1, 0, 0)
        for n, number in zip(units, numbers, strict=True)
    ]
    limits = [(0 if step.activation is activations.relu else 1, np.inf) for step in steps]
    bias = np.concatenate([step.bias for step in steps])
    offsets = columns[:-1] * np.uint32(width)
    return np.array(layers), starts, offsets, values, bias, np.array(limits, np.float32)


def _chunk(step: DenseStep, count: int) -> int:
    """Inputs a chunk: few enough for the cache, enough to be worth the walk over the units."""
    per_input = max(count, 1) / step.kernel.size if step.kernel.size else 1.0
    return max(_CHUNK, round(_WEIGHTS_A_CHUNK / per_input))


def _csr_product(steps: list[DenseStep]) -> Product:
    """Returns a function that skips weights of zero with SciPy."""
    from scipy.sparse import csr_array

    matrices = [csr_array(step.kernel.T) for step in steps]

    def forward(x: FloatArray) -> FloatArray:
        y = np.ascontiguousarray(x.T)  # (inputs, examples)
        for matrix, step in zip(matrices, steps, strict=True):
            y = matrix @ y
            y += step.bias[:, None]
            if step.activation is activations.relu:
                np.maximum(y, 0, out=y)
        return np.ascontiguousarray(y.T)

    return forward


def _ways(step: DenseStep) -> list[SingleProduct]:
    """Returns ways to multiply one example `(inputs,)` by the kernel and add the bias."""
    kernel, bias = step.kernel, step.bias
    kernels = compiled_loops()

    def blas(x: FloatArray) -> FloatArray:
        y = x @ kernel
        y += bias
        return y

    if kernels is None:
        from scipy.sparse import csr_array

        matrix = csr_array(kernel.T)
        return [blas, lambda x: matrix @ x + bias]

    rows, columns = np.nonzero(kernel)
    starts = np.searchsorted(rows, np.arange(len(kernel) + 1))
    indices, values = columns.astype(np.uint32), kernel[rows, columns]  # unsigned: none wraps

    def active_rows(x: FloatArray) -> FloatArray:
        y = bias.copy()
        kernels.multiply_dense(x, kernel, y)
        return y

    def left_weights(x: FloatArray) -> FloatArray:
        y = bias.copy()
        kernels.multiply_sparse(x, starts, indices, values, y)
        return y

    return [blas, active_rows, left_weights]


_fastest_ways: dict[Any, list[int]] = {}  # by shapes and weights left, for a process


def _fastest_products(steps: list[DenseStep], x: FloatArray) -> list[SingleProduct]:
    """Returns each step's fastest way for one example; equal networks get the same ways."""
    ways = [_ways(step) for step in steps]
    key = tuple(
        (*s.kernel.shape, count_nonzero(s.kernel), len(w)) for s, w in zip(steps, ways, strict=True)
    )
    if key not in _fastest_ways:
        _fastest_ways[key] = _time_ways(steps, ways, x)
    return [of_step[way] for of_step, way in zip(ways, _fastest_ways[key], strict=True)]


def _time_ways(steps: list[DenseStep], ways: list[list[SingleProduct]], x: FloatArray) -> list[int]:
    """Times whole networks of one way each, so that a layer finds the caches as in use."""
    seconds = np.empty((_TURNS, len(ways[0]), len(steps)))
    for turn, way in np.ndindex(seconds.shape[:2]):
        y = x
        for i, step in enumerate(steps):
            start = time.perf_counter()
            y = _step_single(step, ways[i][way], y)
            seconds[turn, way, i] = time.perf_counter() - start
    return [int(way) for way in np.median(seconds[1:], axis=0).argmin(axis=0)]


def _step_single(step: DenseStep, product: SingleProduct, x: FloatArray) -> FloatArray:
    return _activate(step, product(x[0])[None])  # (1, inputs) -> (1, units)


def _shortest_seconds(actions: list[Callable[[], Any]]) -> list[float]:
    """Times actions in turns; the shortest time is the one that others disturbed least."""
    seconds: list[list[float]] = [[] for _ in actions]
    for _ in range(_TURNS):
        for action, taken in zip(actions, seconds, strict=True):
            start = _cpu_clock()
            action()
            taken.append(_cpu_clock() - start)
    return [min(taken) for taken in seconds]


def _is_fused(step: DenseStep) -> bool:
    return step.activation in (activations.relu, activations.linear)


def _activate(step: DenseStep, y: FloatArray, *, is_rectified: bool = False) -> FloatArray:
    if step.activation is activations.linear:
        return y
    if step.activation is activations.relu:
        return y if is_rectified else np.maximum(y, 0, out=y)
    y = keras.ops.convert_to_numpy(step.activation(keras.ops.convert_to_tensor(y)))
    return np.require(y, np.float32, ["C", "W"])  # numba compiles anew for read-only arrays


def _contiguous(step: DenseStep) -> DenseStep:
    kernel = np.require(step.kernel, np.float32, ["C", "W"])
    return replace(step, kernel=kernel, bias=np.require(step.bias, np.float32, ["C", "W"]))


@functools.lru_cache
def compiled_loops() -> ModuleType | None:
    """The compiled loops, or `None` without numba."""
    try:
        return importlib.import_module("keras_pruning.inference._sparse_kernels")
    except ImportError:
        return None
