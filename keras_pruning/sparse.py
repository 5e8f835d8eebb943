"""Pruned weights really skipped: the inference of a Dense chain on the CPU.

A dense product takes as long over zeros as over other numbers. Here each layer takes the
cheaper of two ways: NumPy's BLAS, or a loop over the weights that are left, compiled by
numba (by SciPy's CSR product where numba is missing). Which is cheaper is measured on
the machine.
"""

import functools
import importlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import activations

from keras_pruning.dense_chain import DenseStep, compact, read_dense_chain
from keras_pruning.graph import kernel_layers, loss_head

__all__ = ["SparseModel", "sparse_forward"]

FloatArray = npt.NDArray[np.float32]
Product = Callable[[FloatArray], FloatArray]  # (examples, inputs) -> (examples, units)
SingleProduct = Callable[[FloatArray, FloatArray], None]  # (inputs,), (units,): added to

_WIDE, _NARROW = 64, 16  # examples a block; multiples of the kernels' LANES
_CHUNK = 128  # inputs whose activations, 256 bytes each, fill a first-level cache of 32 KiB
_WEIGHTS_A_CHUNK = 24  # of a unit; with fewer, loading and storing its sums costs too much
_MAX_CHUNK = 2**16  # what a uint16 index counts
_ROWS = 512  # examples of a task: enough for BLAS, few enough for the caches
_LEAST_SPARSITY = 0.25  # nothing is skipped where every layer has fewer zeros
_CALIBRATION_SIZE = 512  # inputs and units of the layer that is timed
_CALIBRATION_ROWS = 256
_TURNS = 7  # of a measurement
# Windows counts a thread's own time in steps of 16 ms.
_cpu_clock = time.perf_counter if os.name == "nt" else time.thread_time
_FORMAT = "keras_pruning.SparseModel 1"


class SparseModel:
    """Inference of a chain of Dense layers that skips pruned weights.

    The outputs are the Keras model's up to rounding. Weights are copied: training the
    Keras model later does not change this one. Skipped weights do not meet their inputs,
    so an infinite or missing input spreads to fewer outputs than in Keras.

    Args:
        model: A built Keras model: Dense layers one after the other, with what
            `read_dense_chain` understands around them (Rescaling and Flatten in front,
            activations, Dropout).
        n_threads: Threads among which the examples are shared; by default one a
            processor core.

    Raises:
        TypeError: If `model` is not a Keras model, or `n_threads` not a whole number.
        ValueError: If the model is not built, is more than a chain of Dense layers, or
            has weights that are not finite; if `n_threads` is below 1.

    Example:
    >>> network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> SparseModel(network).predict(np.zeros((5, 3))).shape
    (5, 2)
    """

    def __init__(self, model: keras.Model, *, n_threads: int | None = None) -> None:
        steps = _read_steps(model)
        self._chain = _Chain(steps, n_threads)
        self._input_shape = tuple(model.input_shape[1:])
        self._head = loss_head(model)

    def predict(self, x: Any) -> FloatArray:
        """Returns the outputs.

        Args:
            x: Inputs, numbers of shape `(examples, ...)` as the Keras model takes them.

        Returns:
            float32, shape `(examples, units)`.

        Raises:
            TypeError: If x does not hold real numbers.
            ValueError: If the examples have another shape than the model's input.
        """
        return self._chain.forward(self._check_inputs(x))

    __call__ = predict

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """Returns the loss and metrics that the Keras model was compiled with.

        Args:
            x: Inputs, as in `predict`.
            y: Targets, of the same length, as the Keras model's loss takes them.

        Returns:
            Name to value: `{"loss": ..., "accuracy": ...}`.

        Raises:
            ValueError: If there is no loss: the Keras model was not compiled, computes its
                loss in a way of its own, or this model was loaded from a file.
        """
        if self._head is None:
            raise ValueError(
                "This SparseModel has no loss and metrics to evaluate: its Keras model was not "
                "compiled or evaluates in its own way, or it was loaded from a file, which "
                "holds none. Make it from a compiled model, or use predict."
            )
        outputs = self.predict(x)
        if len(outputs) != len(y) or not len(y):
            raise ValueError(
                "x and y must hold the same number of examples, at least one. "
                f"Received lengths: {len(outputs)} and {len(y)}"
            )
        self._head.reset_metrics()
        values = self._head.test_on_batch(outputs, y, return_dict=True)
        return {name: float(value) for name, value in values.items()}

    @functools.cached_property
    def size_bytes(self) -> int:
        """Size of the file that `save` writes, in bytes."""
        return len(self._serialise())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the weights that are left, the biases and the activations to one file.

        The file is a zip archive of NumPy arrays, as `np.load` reads it. Loss, metrics and
        optimizer are not saved. The file appears at `path` only once it is complete.

        Raises:
            ValueError: If the last activation is not one of Keras's own: a file cannot
                hold its code.
        """
        path = Path(path)
        data = self._serialise()
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, n_threads: int | None = None) -> "SparseModel":
        """Returns the model that `save` wrote; it predicts, but has no loss to evaluate.

        Args:
            path: The file.
            n_threads: As in `SparseModel`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged or was not written by `save`.
        """
        data = Path(path).read_bytes()
        try:
            input_shape, steps = _deserialise(data)
        except Exception as error:  # damage shows as almost any: of zipfile, zlib, NumPy, JSON
            raise ValueError(
                f"'{path}' is damaged, or no file that SparseModel.save wrote. "
                f"Save the model anew. ({type(error).__name__}: {error})"
            ) from error
        model = cls.__new__(cls)
        model._chain = _Chain(steps, n_threads)
        model._input_shape = input_shape
        model._head = None
        return model

    def _serialise(self) -> bytes:
        return _serialise(self._input_shape, self._chain.steps)

    def _check_inputs(self, x: Any) -> npt.NDArray[Any]:
        x = np.asarray(x)
        if x.dtype.kind not in "buif":
            raise TypeError(f"x must hold real numbers. Received: dtype {x.dtype}")
        if x.shape[1:] != self._input_shape:
            raise ValueError(
                f"x must have the shape (examples, {', '.join(map(str, self._input_shape))}) "
                f"that the model takes. Received: {x.shape}"
            )
        return x.reshape(len(x), int(np.prod(self._input_shape)))


def sparse_forward(
    steps: list[DenseStep], x: npt.NDArray[Any], *, n_threads: int | None = None
) -> FloatArray:
    """Returns the chain's outputs `(examples, units)` for inputs `(examples, ...)`.

    Weights that are zero are skipped. Nothing is kept: for one set of weights and many
    calls, `SparseModel` prepares the weights once.
    """
    return _Chain(steps, n_threads).forward(x.reshape(len(x), -1))


class _Chain:
    """Dense steps and what was prepared to run them: plans, packed weights.

    Each thread takes some of the examples through the whole chain. BLAS is held to one
    thread meanwhile: its own ones would stay awake and get in the way of the next step.
    """

    def __init__(self, steps: list[DenseStep], n_threads: int | None) -> None:
        self.n_threads = _check_threads(n_threads)
        self.steps = [_contiguous(step) for step in compact(steps)]
        self._counts = [int(np.count_nonzero(step.kernel)) for step in self.steps]
        self._products: dict[tuple[bool, int, int], Product] = {}
        self._single_products: list[SingleProduct] = []

    def forward(self, x: npt.NDArray[Any]) -> FloatArray:
        if len(x) == 1:
            return self._forward_single(np.require(x, np.float32, ["C", "W"]))
        outputs = np.empty((len(x), len(self.steps[-1].bias)), np.float32)
        rows = min(max(-(-len(x) // self.n_threads), 1), _ROWS)  # a task's
        segments = [(self._product(*segment), segment[2]) for segment in self._segments(rows)]
        tops = iter(range(0, len(x), rows))

        def work() -> None:
            for top in tops:
                block = np.require(x[top : top + rows], np.float32, ["C", "W"])
                for product, stop in segments:
                    block = _activate(self.steps[stop - 1], product(block), is_rectified=True)
                outputs[top : top + rows] = block

        with _blas().limit(limits=1):
            _in_threads(work, max(1, min(self.n_threads, -(-len(x) // rows))))
        return outputs

    def _forward_single(self, x: FloatArray) -> FloatArray:
        if not self._single_products:
            self._single_products = _fastest_products(self.steps, x)
        for step, product in zip(self.steps, self._single_products, strict=True):
            x = _step_single(step, product, x)
        return x

    def _segments(self, rows: int) -> Iterator[tuple[bool, int, int]]:
        """Yields (is_sparse, start, stop): runs of steps that are computed together."""
        choice = self._choice(rows)
        start = 0
        for i, step in enumerate(self.steps):
            is_last = i + 1 == len(choice)
            if is_last or not choice[i] or not choice[i + 1] or not _is_fused(step):
                yield choice[i], start, i + 1
                start = i + 1

    def _choice(self, rows: int) -> tuple[bool, ...]:
        """Which steps skip zeros."""
        sizes = [step.kernel.size for step in self.steps]
        pairs = zip(self._counts, sizes, strict=True)
        if all(count >= (1 - _LEAST_SPARSITY) * size for count, size in pairs):
            return (False,) * len(sizes)
        shapes = [step.kernel.shape for step in self.steps]
        return _cheapest(shapes, self._counts, _costs(min(_power_of_two(rows), _CALIBRATION_ROWS)))

    def _product(self, is_sparse: bool, start: int, stop: int) -> Product:
        key = is_sparse, start, stop
        if key not in self._products:
            steps = self.steps[start:stop]
            make = _sparse_product if is_sparse else _dense_product
            self._products[key] = make(steps)
        return self._products[key]


@dataclass(frozen=True)
class _Costs:
    """Seconds of one thread that an example of a batch takes."""

    dense: float  # a weight, zero or not
    sparse: float  # a weight that is not zero
    border: float  # a feature that changes its layout, between dense and sparse


@functools.lru_cache
def _costs(rows: int) -> _Costs:
    """Measures this machine on one layer, for batches of about `rows` examples.

    One thread's own time is measured: other programs hardly disturb it.
    """
    size, density = _CALIBRATION_SIZE, 1 / 4
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, size), np.float32)
    uniform = rng.random((size, size), np.float32)
    bias = np.zeros(size, np.float32)

    def product(make: Callable[..., Product], density: float) -> Callable[[], FloatArray]:
        kernel = np.where(uniform < density, uniform - density / 2, np.float32(0))
        step = DenseStep(kernel, bias, activations.relu)
        return functools.partial(make([step]), x)

    with _blas().limit(limits=1):
        dense, sparse, empty = _shortest_seconds(
            [
                product(_dense_product, 1),
                product(_sparse_product, density),
                product(_sparse_product, 0),  # changes the layout alone
            ]
        )
    area = rows * size * size
    return _Costs(
        dense=dense / area,
        sparse=max(sparse - empty, 0.0) / (density * area),
        border=empty / (rows * 2 * size),
    )


def _power_of_two(number: int) -> int:
    """The least one that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


def _cheapest(shapes: list[tuple[int, ...]], counts: list[int], costs: _Costs) -> tuple[bool, ...]:
    """Which layers to take as sparse, so that the sum of layers and borders is least."""
    total = {False: 0.0, True: np.inf}  # cost up to here, by the layout of the activations
    path: dict[bool, tuple[bool, ...]] = {False: (), True: ()}
    for (inputs, units), count in zip(shapes, counts, strict=True):
        here = {False: costs.dense * inputs * units, True: costs.sparse * count}
        border = costs.border * inputs
        stay_or_change = {
            now: min((total[before] + border * (before != now), before) for before in total)
            for now in total
        }
        total = {now: cost + here[now] for now, (cost, _) in stay_or_change.items()}
        path = {now: (*path[before], now) for now, (_, before) in stay_or_change.items()}
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


def _sparse_product(steps: list[DenseStep]) -> Product:
    """Returns a function that skips weights of zero, of several steps in one go."""
    kernels = _kernels()
    if kernels is None:
        return _csr_product(steps)
    packed = _pack(kernels, steps)
    widest = max(max(step.kernel.shape) for step in steps)
    units = len(steps[-1].bias)

    def forward(x: FloatArray) -> FloatArray:
        y = np.empty((len(x), units), np.float32)
        width = _NARROW if len(x) <= _NARROW else _WIDE
        front, back = _aligned(widest * width), _aligned(widest * width)
        kernels.forward_blocks(x, y, *packed, front, back, (0,) * (width // kernels.LANES))
        return y

    return forward


def _pack(kernels: ModuleType, steps: list[DenseStep]) -> tuple[npt.NDArray[Any], ...]:
    """Returns layers, starts, indices, values and bias as `forward_blocks` takes them."""
    counts = [int(np.count_nonzero(step.kernel)) for step in steps]
    layers = np.array(
        [
            (*step.kernel.shape, _chunk(step, count), step.activation is activations.relu)
            for step, count in zip(steps, counts, strict=True)
        ],
        np.int64,
    )
    segments = [max(-(-inputs // chunk), 1) * units for inputs, units, chunk, _ in layers]
    starts = np.zeros(sum(segments) + 1, np.int64)
    indices = np.empty(sum(counts), np.uint16)
    values = np.empty(sum(counts), np.float32)
    for i, step in enumerate(steps):
        first = sum(segments[:i])
        kernels.pack_kernel(step.kernel, layers[i, 2], first, starts, indices, values)
    return layers, starts, indices, values, np.concatenate([step.bias for step in steps])


def _chunk(step: DenseStep, count: int) -> int:
    """Inputs a chunk: few enough for the cache, enough to be worth the walk over the units."""
    per_input = max(count, 1) / step.kernel.size if step.kernel.size else 1.0
    return min(max(_CHUNK, round(_WEIGHTS_A_CHUNK / per_input)), _MAX_CHUNK)


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


def _ways(kernel: FloatArray) -> list[SingleProduct]:
    """Returns ways to add the product of one example `(inputs,)` and the kernel to y."""
    kernels = _kernels()

    def blas(x: FloatArray, y: FloatArray) -> None:
        y += x @ kernel

    if kernels is None:
        from scipy.sparse import csr_array

        matrix = csr_array(kernel.T)

        def csr(x: FloatArray, y: FloatArray) -> None:
            y += matrix @ x

        return [blas, csr]

    rows, columns = np.nonzero(kernel)
    starts = np.searchsorted(rows, np.arange(len(kernel) + 1))
    indices, values = columns.astype(np.uint32), kernel[rows, columns]  # unsigned: none wraps

    def active_rows(x: FloatArray, y: FloatArray) -> None:
        kernels.multiply_dense(x, kernel, y)

    def left_weights(x: FloatArray, y: FloatArray) -> None:
        kernels.multiply_sparse(x, starts, indices, values, y)

    return [blas, active_rows, left_weights]


_fastest_ways: dict[Any, list[int]] = {}  # by shapes and weights left, for a process


def _fastest_products(steps: list[DenseStep], x: FloatArray) -> list[SingleProduct]:
    """Returns each step's fastest way for one example; equal networks get the same ways."""
    ways = [_ways(step.kernel) for step in steps]
    key = tuple(
        (*s.kernel.shape, np.count_nonzero(s.kernel), len(w))
        for s, w in zip(steps, ways, strict=True)
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
    y = step.bias[None].copy()  # (1, units)
    product(x[0], y[0])
    return _activate(step, y)


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


def _aligned(size: int) -> FloatArray:
    """Returns an array of floats that starts at a cache line; NumPy's start anywhere."""
    room = np.empty(4 * size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * size].view(np.float32)


def _in_threads(work: Callable[[], None], n_threads: int) -> None:
    """Runs `work` in this thread and `n_threads - 1` others."""
    if n_threads == 1:
        return work()
    pool = _pool(n_threads - 1, os.getpid())
    others = [pool.submit(work) for _ in range(n_threads - 1)]
    work()
    for other in others:
        other.result()


@functools.lru_cache
def _blas() -> Any:
    """Says how many threads the libraries of linear algebra take, NumPy's among them."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@functools.lru_cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """The process's pool; a forked process inherits the object, but not its threads."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="keras_pruning")


@functools.lru_cache
def _kernels() -> ModuleType | None:
    """The compiled loops, or `None` without numba."""
    try:
        return importlib.import_module("keras_pruning._sparse_kernels")
    except ImportError:
        return None


def _serialise(input_shape: tuple[int, ...], steps: list[DenseStep]) -> bytes:
    """Returns the file's bytes: a header, and of each step its bias, gaps and weights.

    A gap is the distance from one weight left to the next, counted row by row; small
    numbers that deflate packs close to the entropy of the mask. Numbers are cut in
    planes, all first bytes, then all second bytes: what varies little stands together.
    """
    header = {
        "format": _FORMAT,
        "input_shape": input_shape,
        "steps": [[*step.kernel.shape, _activation_name(step)] for step in steps],
    }
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for i, step in enumerate(steps):
        places = np.flatnonzero(step.kernel)
        arrays[f"bias{i}"] = step.bias
        arrays[f"gaps{i}"] = _planes(np.diff(places, prepend=-1).astype(np.uint32))
        arrays[f"values{i}"] = _planes(step.kernel.ravel()[places])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _deserialise(data: bytes) -> tuple[tuple[int, ...], list[DenseStep]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        if header["format"] != _FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {_FORMAT!r}")
        steps = [
            DenseStep(
                _read_kernel((inputs, units), arrays[f"gaps{i}"], arrays[f"values{i}"]),
                arrays[f"bias{i}"],
                activations.get(name),
            )
            for i, (inputs, units, name) in enumerate(header["steps"])
        ]
    return tuple(header["input_shape"]), steps


def _read_kernel(
    shape: tuple[int, int], gaps: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]
) -> FloatArray:
    kernel = np.zeros(shape, np.float32)
    places = np.cumsum(_from_planes(gaps, np.uint32), dtype=np.int64) - 1
    kernel.reshape(-1)[places] = _from_planes(values, np.float32)
    return kernel


def _planes(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Returns the bytes of 4-byte numbers, `(4, numbers)`, the least significant first."""
    little = numbers.astype(numbers.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, 4).T)


def _from_planes(planes: npt.NDArray[np.uint8], kind: type[np.generic]) -> npt.NDArray[Any]:
    little = np.ascontiguousarray(planes.T).view(np.dtype(kind).newbyteorder("<"))
    return little.reshape(-1).astype(kind)


def _activation_name(step: DenseStep) -> str:
    name = activations.serialize(step.activation)
    if not isinstance(name, str) or activations.get(name) is not step.activation:
        raise ValueError(
            f"The activation {step.activation!r} cannot be saved: a file holds names of Keras's "
            "own activations, no code. Leave it out of the model and apply it to the outputs."
        )
    return name


def _read_steps(model: keras.Model) -> list[DenseStep]:
    layers = kernel_layers(model)
    steps = read_dense_chain(model)
    if steps is None:
        raise ValueError(
            f"SparseModel takes Dense layers one after the other, in float32, without "
            "regularisation; in front of them Rescaling and Flatten, behind them elementwise "
            f"activations and Dropout. Model '{model.name}' has more than that. Use its own "
            "predict, or make a SparseModel of its dense part."
        )
    for named in layers:
        weights = map(keras.ops.convert_to_numpy, named.layer.weights)
        if not all(np.isfinite(array).all() for array in weights):
            raise ValueError(
                f"Layer '{named.name}' has weights that are NaN or infinite. Train it anew, "
                "with a lower learning rate for example, before it is made sparse."
            )
    return steps


def _check_threads(n_threads: int | None) -> int:
    if n_threads is None:
        has_affinity = hasattr(os, "sched_getaffinity")  # missing on macOS and Windows
        return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if isinstance(n_threads, bool) or not isinstance(n_threads, int):
        raise TypeError(f"n_threads must be a whole number. Received: {n_threads!r}")
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1. Received: {n_threads}")
    return n_threads
