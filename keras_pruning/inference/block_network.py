"""A planned network on any number of examples, block after block, shared among threads.

A single block is shared too, each convolution of it by rows.

Where Keras computes the model faster, as it may with few zeros or few examples, Keras does.
"""

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_pruning.inference.block_layers import Block, Call, Step, Work
from keras_pruning.inference.planner import Plan
from keras_pruning.inference.threads import in_threads, one_blas_thread

__all__ = ["BlockNetwork", "FasterOf"]

Array = npt.NDArray[Any]
Forward = Callable[[Sequence[Array]], list[Array]]

_SIZES = (32, 16)  # examples of a block
_MOST_KEPT = 2**28  # bytes of room that a thread keeps between two calls: 256 MiB
_MOST_TIMED = 256  # examples on which blocks and Keras are compared
_TURNS, _SECONDS = 7, 1.0  # of that measurement, at the most
_MARGIN = 0.9  # of Keras's time, below which blocks run: a time of a few calls is a rough one


class BlockNetwork:
    """Runs a plan. Each thread takes blocks of examples through all steps.

    Args:
        plan: The steps.
        n_threads: Threads that share the blocks.
        kernels: The compiled loops.
    """

    def __init__(self, plan: Plan, n_threads: int, kernels: ModuleType) -> None:
        self.plan, self.n_threads, self._kernels = plan, n_threads, kernels
        self._work: dict[int, list[Work]] = {}
        self._rooms: list[list[Array]] = []
        self._lock = threading.Lock()

    def forward(self, inputs: Sequence[Array]) -> list[Array]:
        """Returns the outputs, each `(examples, ...)`, for inputs of such shapes."""
        count = len(inputs[0])
        examples = self._block_size(count)
        work = self._prepared(examples)
        tops = list(range(0, count, examples))
        outputs: list[Array | None] = [self._room_for(count, i) for i in self.plan.outputs]
        called: dict[int, list[Array]] = {}  # what Keras gave, by block
        waiting = iter(tops)
        helpers = self.n_threads if len(tops) == 1 else 1

        def share() -> None:
            room = self._room()
            for top in waiting:
                parts = [x[top : top + examples] for x in inputs]
                block = self._block(parts, examples, room, helpers)
                for do, last in zip(work, self.plan.last, strict=True):
                    do(block)
                    for tensor in last:
                        block.drop(tensor)
                called[top] = [
                    block.rows(tensor, None if whole is None else whole[top : top + examples])
                    for tensor, whole in zip(self.plan.outputs, outputs, strict=True)
                ]
                for tensor in self.plan.outputs:
                    block.drop(tensor)
            self._keep(room)

        is_compiled = not any(map(_is_of_keras, self.plan.steps))
        with one_blas_thread():
            n_threads = max(1, min(self.n_threads, len(tops)))
            in_threads(share, n_threads, on_own_cores=is_compiled)
        return [
            np.concatenate([called[top][i] for top in tops]) if whole is None else whole
            for i, whole in enumerate(outputs)
        ]

    def _room_for(self, count: int, tensor: int) -> Array | None:
        """An array for an output; `None` for what Keras gives, which is gathered."""
        known = self.plan.tensors[tensor]
        made = {step.output for step in self.plan.steps if not isinstance(step, Call)}
        if known is None or tensor not in made:
            return None
        return np.empty((count, *known.shape), np.float32)

    def _room(self) -> list[Array]:
        """Arrays of a block that is done, if there are any."""
        with self._lock:
            return self._rooms.pop() if self._rooms else []

    def _keep(self, room: list[Array]) -> None:
        """Keeps a block's room for the next call: fresh memory costs a fault a page."""
        room.sort(key=len)
        while sum(array.nbytes for array in room) > _MOST_KEPT:
            room.pop()
        with self._lock:
            self._rooms.append(room)
            del self._rooms[: -self.n_threads]

    def seconds(self, inputs: Sequence[Array], turns: int = 3) -> list[float]:
        """Returns how long each step takes on one block of these examples, on one thread."""
        examples = self._block_size(len(inputs[0]))
        work = self._prepared(examples)
        taken = np.empty((turns + 1, len(work)))
        room = self._room()
        for turn in range(turns + 1):  # the first one warms up
            block = self._block([x[:examples] for x in inputs], examples, room)
            for i, (do, last) in enumerate(zip(work, self.plan.last, strict=True)):
                start = time.perf_counter()
                do(block)
                taken[turn, i] = time.perf_counter() - start
                for tensor in last:
                    block.drop(tensor)
            for tensor in self.plan.outputs:
                block.drop(tensor)
        return list(taken[1:].min(axis=0))

    def without_layout(self, inputs: Sequence[Array]) -> Callable[[], None]:
        """Returns what runs the steps on blocks that hold these inputs already, to be timed."""
        examples = self._block_size(len(inputs[0]))
        work = self._prepared(examples)
        blocks = [
            self._block([x[top : top + examples] for x in inputs], examples, [])
            for top in range(0, len(inputs[0]), examples)
        ]
        for block in blocks:
            for tensor in self.plan.inputs:
                block.array(tensor)

        def run() -> None:
            waiting = iter(blocks)

            def share() -> None:
                for block in waiting:
                    for do, step in zip(work, self.plan.steps, strict=True):
                        do(block)
                        block.drop(step.output)

            in_threads(share, max(1, min(self.n_threads, len(blocks))), on_own_cores=True)

        return run

    def _block(
        self, inputs: list[Array], examples: int, room: list[Array], n_threads: int = 1
    ) -> Block:
        """A block with its inputs, in the room of one that is done."""
        count = len(inputs[0])
        block = Block(self.plan.tensors, examples, self._kernels, count, room, n_threads)
        for tensor, rows in zip(self.plan.inputs, inputs, strict=True):
            block.put_rows(tensor, rows)
        return block

    def _block_size(self, count: int) -> int:
        """The size whose blocks, the last one filled up, keep the threads busy least long."""

        def length(size: int) -> int:
            blocks = -(-count // size)
            return -(-blocks // self.n_threads) * size

        return min(_SIZES, key=length)

    def _prepared(self, examples: int) -> list[Work]:
        with self._lock:
            if examples not in self._work:
                self._work[examples] = [
                    step.prepare(self.plan.tensors, examples, self._kernels)
                    for step in self.plan.steps
                ]
            return self._work[examples]


def _is_of_keras(step: Step) -> bool:
    """Whether Keras may start threads of its own for the step."""
    activation = getattr(step, "activation", None)
    is_ours = activation is None or activation.is_ours
    return isinstance(step, Call) or not is_ours


class FasterOf:
    """A network that skips zeros and the Keras model it was made from: the faster one runs.

    Which one that is, is measured once for batches of about one size, on the examples of the
    first call. The outputs are compared then: a layer of the user's own may mix examples,
    which blocks cannot follow.

    Args:
        blocks: The network; `None` where Keras computes the model whole.
        by_keras: Returns the Keras model's outputs for its inputs; `None` where there is none.
    """

    def __init__(self, blocks: BlockNetwork | None, by_keras: Forward | None) -> None:
        self.blocks = blocks
        self._by_keras = by_keras
        self._is_faster: dict[int, bool] = {}  # by the power of two of the number of examples
        self._lock = threading.Lock()

    def forward(self, inputs: Sequence[Array]) -> list[Array]:
        """Returns the outputs, each `(examples, ...)`, for inputs of such shapes."""
        runs_blocks = self.runs_blocks(inputs)
        if runs_blocks and self.blocks is not None:
            return self.blocks.forward(inputs)
        if self._by_keras is None:
            raise RuntimeError("There is neither a plan nor a Keras model to run.")
        return self._by_keras(inputs)

    def runs_blocks(self, inputs: Sequence[Array]) -> bool:
        """Whether the network that skips zeros is the one that runs on such inputs."""
        if self.blocks is None or self._by_keras is None:
            return self.blocks is not None
        # From 9 to 16, from 17 to 32 and so on: of one key all need one block, or all need more.
        key = (min(len(inputs[0]), _MOST_TIMED) - 1).bit_length()
        with self._lock:
            if self.blocks is not None and key not in self._is_faster:
                self._is_faster[key] = self._measure([_as_finite(x[:_MOST_TIMED]) for x in inputs])
        return self.blocks is not None and self._is_faster[key]

    def _measure(self, inputs: list[Array]) -> bool:
        if self.blocks is None or self._by_keras is None:
            raise RuntimeError("One of the two is missing.")
        expected = self._by_keras(inputs)
        try:
            own = self.blocks.forward(inputs)
        except Exception:  # of a layer that Keras computes, which may need all examples at once
            own = []
        # Keras multiplies what is infinite by zeros, blocks skip them.
        comparable = all(map(_is_finite, expected))
        if not own or (comparable and not all(map(_are_equal, own, expected))):
            warnings.warn(
                "Computed in blocks of examples, this model gives other outputs than in Keras, or "
                "none: a layer or operation may mix examples, or draw random numbers. Keras "
                "computes it.",
                stacklevel=5,
            )
            self.blocks = None
            return False
        seconds: list[list[float]] = [[], []]
        begin = time.perf_counter()
        for _ in range(_TURNS):
            for action, taken in zip((self.blocks.forward, self._by_keras), seconds, strict=True):
                start = time.perf_counter()
                action(inputs)
                taken.append(time.perf_counter() - start)
            if time.perf_counter() - begin > _SECONDS:
                break
        return min(seconds[0]) < _MARGIN * min(seconds[1])


def _are_equal(own: Array, expected: Array) -> bool:
    """Whether outputs differ by rounding alone, however many layers it went through."""
    if own.shape != expected.shape:
        return False
    largest = np.abs(expected).max(initial=0)
    return bool(np.allclose(own, expected, rtol=1e-3, atol=1e-3 * largest, equal_nan=True))


def _as_finite(array: Array) -> Array:
    """The array with zeros for what is no number: outputs of these can be compared."""
    is_float = array.dtype.kind == "f"
    return np.nan_to_num(array, nan=0, posinf=0, neginf=0) if is_float else array


def _is_finite(array: Array) -> bool:
    return array.dtype.kind not in "f" or bool(np.isfinite(array).all())
