"""What worker processes need: bounded threads, names of functions, models read from bytes."""

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from keras_pruning.pruning import check_count

__all__ = [
    "Payload",
    "compute_in_background",
    "find_function",
    "function_name",
    "limit_threads",
    "local_processes",
    "model_from_bytes",
]


@dataclass(frozen=True)
class Payload:
    """Data that many tasks share, told apart by their digest: a worker may cache by it."""

    digest: str
    content: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, content: bytes) -> "Payload":
        """Returns the payload of a file's content."""
        return cls(hashlib.sha256(content).hexdigest(), content)


@contextlib.contextmanager
def local_processes(count: int, *, threads: int = 1) -> Iterator[ProcessPoolExecutor]:
    """A pool of worker processes on this machine, as `executor` of a sweep or an experiment.

    They are started anew rather than forked, which would inherit the threads of a backend
    in a state of deadlock. They end with this process, even if it is killed, and at once
    when the `with` block is left by an error or Ctrl-C. Each first imports the script that
    it is called from, so there it must stand under a guard:

        if __name__ == "__main__":
            with kp.local_processes(2) as executor:
                table = kp.experiment(..., executor=executor)

    Args:
        count: Number of processes.
        threads: What each computes with; `count * threads` should not exceed the cores.

    Raises:
        ValueError: If a number is not a whole number from 1.
        BrokenProcessPool: If the workers end as they begin, as they do without the guard.

    Examples:
        >>> with local_processes(1) as executor:
        ...     executor.submit(sum, [1, 2]).result()
        3
    """
    check_count("count", count)
    check_count("threads", threads)
    pool = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(threads,),
    )
    before = set(multiprocessing.active_children())
    begun: list[Future[int]] = []
    try:
        with _ctrl_c_held():  # a new process inherits it, and is not interrupted as it starts
            for _ in range(count):  # a task that finds no idle process starts one
                begun.append(pool.submit(os.getpid))
        yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        if "bootstrapping phase" in str(error):  # a worker that imports a script without a guard
            sys.exit(1)  # the parent says it; a traceback a worker would bury that
        if isinstance(error, BrokenProcessPool) and not any(map(_has_succeeded, begun)):
            raise BrokenProcessPool(
                "The workers ended as they began: in a script, call local_processes under "
                'if __name__ == "__main__": for each worker imports the script first.'
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _has_succeeded(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def compute_in_background() -> None:
    """Asks Linux to run this thread, and those it starts, as a batch job (SCHED_BATCH).

    Threads of one core do not interrupt each other then. TensorFlow needs it: the end of
    an epoch cancels the thread that tunes its data pipeline by a signal that precedes the
    flag, and a thread that runs at once on the signal misses the flag and sleeps on, while
    the training waits for it (2 seconds of every 5, measured with one core a worker).
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):  # a sandbox may forbid it; it is slower then
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def limit_threads(count: int) -> None:
    """Bounds the threads that Keras's backend and BLAS compute with in this process.

    TensorFlow and JAX read this once, when they compute first: call it before. Warns if it
    is too late.

    Raises:
        ValueError: If `count` is not a whole number from 1.

    Examples:
        >>> spawn = multiprocessing.get_context("spawn")  # its processes have computed nothing yet
        >>> with ProcessPoolExecutor(1, spawn, limit_threads, (1,)) as executor:
        ...     executor.submit(sum, [1, 2]).result()
        3
    """
    check_count("count", count)
    from threadpoolctl import threadpool_limits

    threadpool_limits(count)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        threading_of = importlib.import_module("tensorflow").config.threading
        if threading_of.get_intra_op_parallelism_threads() == count:
            return
        try:
            threading_of.set_intra_op_parallelism_threads(count)
            threading_of.set_inter_op_parallelism_threads(count)
        except RuntimeError:
            warnings.warn(
                f"TensorFlow computes already, so its threads cannot be limited to {count} any "
                "more. Call limit_threads first, or start new workers.",
                stacklevel=2,
            )
    elif backend == "torch":
        importlib.import_module("torch").set_num_threads(count)
    elif backend == "jax" and count == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_cpu_multi_thread_eigen" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def function_name(function: Callable[..., Any] | str) -> str:
    """Returns "module:name" of a function that any process can import.

    Raises:
        TypeError: If it is neither a function nor such a name.
        ValueError: If it cannot be imported by its name.
    """
    if isinstance(function, str):
        find_function(function)
        return function
    if not callable(function):
        raise TypeError(f"Expected a function or its name 'module:name'. Received: {function!r}")
    module, name = function.__module__, getattr(function, "__qualname__", "<no name>")
    if module == "__main__" or "<" in name:
        raise ValueError(
            f"Workers cannot import '{name}' of {module}. Define it at the top of a module, a "
            "file beside your script say, and pass it from there."
        )
    return f"{module}:{name}"


def find_function(name: str) -> Callable[..., Any]:
    """Returns the function of a name "module:name".

    Raises:
        ValueError: If there is none of this name.
    """
    try:
        function = pkgutil.resolve_name(name) if ":" in name else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"There is no function '{name}': {error}.") from error
    if not callable(function):
        raise ValueError(f"'{name}' names no function. Give it as 'module:name'.")
    return function


def model_from_bytes(content: bytes) -> keras.Model:
    """Returns the model of a `.keras` file's content, loaded in Keras's safe mode.

    Raises:
        ValueError: If this process cannot load it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
                return keras.saving.load_model(path)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                "A worker cannot load the model. Register its own classes and functions with "
                "keras.saving.register_keras_serializable, in a module that the workers import; "
                f"Lambda layers cannot travel. Keras says: {error}"
            ) from error


@contextlib.contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Lets this thread take Ctrl-C only afterwards, where the system can (not on Windows)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(threads: int) -> None:
    """Prepares a worker process of this machine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
