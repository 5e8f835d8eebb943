"""Threads that share the examples of a batch, and the cores they run on."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["check_threads", "count_cores", "in_threads", "one_blas_thread"]


def count_cores() -> int:
    """Returns how many processor cores this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # missing on macOS and Windows
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def check_threads(n_threads: int | None) -> int:
    """Returns a number of threads, by default one a core.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is below 1.
    """
    if n_threads is None:
        return count_cores()
    if isinstance(n_threads, bool) or not isinstance(n_threads, int):
        raise TypeError(f"n_threads must be a whole number. Received: {n_threads!r}")
    if n_threads < 1:
        raise ValueError(f"n_threads must be at least 1. Received: {n_threads}")
    return n_threads


def in_threads(work: Callable[[], None], n_threads: int, *, on_own_cores: bool = False) -> None:
    """Runs `work` in this thread and `n_threads - 1` others.

    Args:
        work: A function that shares what is to be done with its other calls.
        n_threads: Number of threads.
        on_own_cores: Whether each thread stays on one core meanwhile, where there are as
            many cores as threads. Linux may let a thread that it wakes queue behind the one
            that asked for it while another core idles; a small batch is done by then. Then
            `work` must not start threads: they would stay on that core for good.
    """
    if n_threads == 1:
        return work()
    cores: tuple[int, ...] = ()
    if on_own_cores and hasattr(os, "sched_getaffinity"):
        cores = tuple(sorted(os.sched_getaffinity(0)))
        if len(cores) != n_threads:  # others may use these cores just as well
            cores = ()
    size = n_threads if cores else max(n_threads, count_cores())  # two may call at once
    pool = _pool(size - 1, cores[1:], os.getpid())
    with _staying_on(cores[:1]):
        others = [pool.submit(work) for _ in range(n_threads - 1)]
        work()
        for other in others:
            other.result()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context in which NumPy's linear algebra takes one thread.

    The limit is the process's, not the caller's: it is lifted when the last one leaves.
    """
    _limit.enter()
    try:
        yield
    finally:
        _limit.leave()


class _Limit:
    """Counts those who want one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limiter: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limiter = _blas().limit(limits=1)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limiter.restore_original_limits()


_limit = _Limit()


@functools.lru_cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@functools.lru_cache
def _pool(n_threads: int, cores: tuple[int, ...], process: int) -> ThreadPoolExecutor:
    """The process's pool; a forked process inherits the object, but not its threads."""
    free = list(cores)
    return ThreadPoolExecutor(
        n_threads,
        thread_name_prefix="keras_pruning",
        initializer=lambda: _stay_on({free.pop()}) if free else None,
    )


@contextlib.contextmanager
def _staying_on(cores: tuple[int, ...]) -> Iterator[None]:
    """Keeps this thread on the cores; on any of them if there are none."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    _stay_on(set(cores))
    try:
        yield
    finally:
        _stay_on(before)


def _stay_on(cores: set[int]) -> None:
    with contextlib.suppress(OSError):  # a container may forbid it, and it is speed alone
        os.sched_setaffinity(0, cores)
