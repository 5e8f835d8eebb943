"""A planned network on any number of examples, block after block, shared among threads."""

import functools
import threading
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_pruning.inference.block_layers import Block, Call, Step, Work
from keras_pruning.inference.planner import Plan
from keras_pruning.inference.threads import in_threads, one_blas_thread

__all__ = ["BlockNetwork"]

_SIZES = (32, 16)  # examples of a block
Array = npt.NDArray[Any]


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
        self._lock = threading.Lock()

    def forward(self, inputs: Sequence[Array]) -> list[Array]:
        """Returns the outputs, each `(examples, ...)`, for inputs of such shapes."""
        count = len(inputs[0])
        examples = self._block_size(count)
        work = self._prepared(examples)
        tops = list(range(0, count, examples))
        done: dict[int, list[Array]] = {}
        waiting = iter(tops)

        def share() -> None:
            spare = None
            for top in waiting:
                block = self._block([x[top : top + examples] for x in inputs], examples, spare)
                for do, last in zip(work, self.plan.last, strict=True):
                    do(block)
                    for tensor in last:
                        block.drop(tensor)
                done[top] = [block.rows(tensor) for tensor in self.plan.outputs]
                for tensor in self.plan.outputs:
                    block.drop(tensor)
                spare = block

        is_compiled = not any(map(_is_of_keras, self.plan.steps))
        with one_blas_thread():
            n_threads = max(1, min(self.n_threads, len(tops)))
            in_threads(share, n_threads, on_own_cores=is_compiled)
        parts = zip(*(done[top] for top in tops), strict=True)
        return [np.concatenate(part) for part in parts]

    def seconds(self, inputs: Sequence[Array], turns: int = 3) -> list[float]:
        """Returns how long each step takes on one block of these examples, on one thread."""
        examples = self._block_size(len(inputs[0]))
        work = self._prepared(examples)
        taken = np.empty((turns + 1, len(work)))
        block = None
        for turn in range(turns + 1):  # the first one warms up
            block = self._block([x[:examples] for x in inputs], examples, block)
            for i, (do, last) in enumerate(zip(work, self.plan.last, strict=True)):
                start = time.perf_counter()
                do(block)
                taken[turn, i] = time.perf_counter() - start
                for tensor in last:
                    block.drop(tensor)
            for tensor in self.plan.outputs:
                block.drop(tensor)
        return list(taken[1:].min(axis=0))

    def _block(self, inputs: list[Array], examples: int, spare: Block | None) -> Block:
        """A block with its inputs; it takes the room of one that is done."""
        block = Block(self.plan.tensors, examples, len(inputs[0]), self._kernels, spare)
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
                prepare = functools.partial(
                    _prepare, tensors=self.plan.tensors, examples=examples, kernels=self._kernels
                )
                self._work[examples] = [prepare(step) for step in self.plan.steps]
            return self._work[examples]


def _prepare(step: Step, tensors: Any, examples: int, kernels: ModuleType) -> Work:
    return step.prepare(tensors, examples, kernels)


def _is_of_keras(step: Step) -> bool:
    """Whether Keras may start threads of its own for the step."""
    activation = getattr(step, "activation", None)
    is_ours = activation is None or activation.is_ours
    return isinstance(step, Call) or not is_ours

