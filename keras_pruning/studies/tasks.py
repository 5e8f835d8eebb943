"""Independent tasks on any `concurrent.futures.Executor`: none lost, none done twice.

To a worker travel the name of a function and data. A model travels as the bytes of its
`.keras` file, and no code does.
"""

import contextlib
import os
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import keras
import pandas as pd
from tqdm import tqdm

from keras_pruning.measuring import write_whole
from keras_pruning.studies.store import (
    encode_result,
    open_store,
    read_result,
    task_path,
)
from keras_pruning.studies.workers import compute_in_background, limit_threads

__all__ = ["Job", "Results", "run_jobs"]

Parameters = Mapping[str, Any]

_THIS_PROCESS = uuid.uuid4().hex  # tells a worker from the process that hands out the tasks


@dataclass(frozen=True)
class Job:
    """A call that one worker makes: a function of a module, and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    done: Callable[[Any], Iterable["Job"] | None]  # takes the result; may return jobs that follow


class Results:
    """The tables of tasks, by their parameters, and on disk where there is a store.

    Args:
        tasks: The parameters of each task, in the order of the final table.
        store: Folder of finished results, or `None`.
        progress: Whether to show a progress bar on standard output.
        label: Stands before the bar.
    """

    def __init__(
        self,
        tasks: Sequence[Parameters],
        store: str | os.PathLike[str] | None,
        *,
        progress: bool,
        label: str,
    ) -> None:
        self.folder = None if store is None else open_store(store)
        self._tasks = tasks
        self._tables: dict[int, pd.DataFrame] = {}
        if self.folder is not None:
            for i, parameters in enumerate(tasks):
                table = read_result(task_path(self.folder, parameters), parameters)
                if table is not None:
                    self._tables[i] = table
        self._bar = tqdm(
            total=len(tasks),
            initial=len(self._tables),
            desc=label,
            disable=not progress,
            file=sys.stdout,
            unit="point",
        )

    @property
    def missing(self) -> list[int]:
        """The places of the tasks that are not finished."""
        return [i for i in range(len(self._tasks)) if i not in self._tables]

    def add(self, place: int, table: pd.DataFrame) -> None:
        """Takes, and keeps on disk, the result of the task at `place`."""
        if self.folder is not None:
            parameters = self._tasks[place]
            write_whole(task_path(self.folder, parameters), encode_result(parameters, table))
        self._tables[place] = table
        self._bar.set_postfix_str(_in_short(table), refresh=False)
        self._bar.update()

    def table(self) -> pd.DataFrame:
        """Returns all results, in the order of the tasks."""
        ordered = [self._tables[i] for i in range(len(self._tasks))]
        return pd.concat(ordered, ignore_index=True)

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()

    def progress(self) -> str:
        """Says how many results are finished, and where they are."""
        count = f"{len(self._tables)} of {len(self._tasks)} results are finished"
        if self.folder is None:
            return f"{count}, and lost: give a store to keep them."
        return f"{count} and kept in '{self.folder}'. The same call goes on from there."


def run_jobs(
    jobs: Iterable[Job],
    results: Results,
    *,
    executor: Executor | None,
    threads: int | None = 1,
    in_flight: int = 100,
    let_finish: bool = False,
) -> None:
    """Runs jobs and those that follow from them; returns when all are done.

    A job that follows from another goes before those that wait. When a job fails, and at
    Ctrl-C, those that wait are cancelled, what has finished is taken, and the error says
    in a note how far it came.

    Args:
        jobs: What to run.
        results: Where the jobs put what they found.
        executor: Runs them; `None`: this thread, one after the other.
        threads: What each worker computes with; `None` leaves it as it is.
        in_flight: How many jobs the executor is given at most at one time.
        let_finish: Whether, before an error is passed on, those that run are waited for.
    """
    executor, in_flight = (_Here(), 1) if executor is None else (executor, in_flight)
    conditions = _Conditions(_THIS_PROCESS, keras.backend.backend(), threads)
    waiting = deque(jobs)
    running: dict[Future[Any], Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < in_flight:
                job = waiting.popleft()
                running[executor.submit(_run, conditions, job.function, job.arguments)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                followers = running[future].done(future.result())
                del running[future]
                waiting.extendleft(reversed(list(followers or ())))
    except BaseException as error:
        for future in running:
            future.cancel()
        if let_finish:
            wait(running)
        for future, job in running.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                with contextlib.suppress(Exception):  # the disk is full, say: told already
                    job.done(future.result())
        error.add_note(results.progress())
        raise
    finally:
        results.close()


class _Here(Executor):
    """Runs a task at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class _Conditions:
    """What must hold where a job runs."""

    process: str  # that hands out the jobs
    backend: str
    threads: int | None


def _run(conditions: _Conditions, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if conditions.process != _THIS_PROCESS:
        if keras.backend.backend() != conditions.backend:
            raise RuntimeError(
                f"This worker computes with {keras.backend.backend()}, the process that gives it "
                f"tasks with {conditions.backend}. Set KERAS_BACKEND alike on both."
            )
        compute_in_background()
        if conditions.threads is not None:
            limit_threads(conditions.threads)
    return function(*arguments)


def _in_short(table: pd.DataFrame) -> str:
    row = table.iloc[-1]
    names = [name for name in ("data", "network", "seed", "method") if name in row]
    words = [str(row[name]) for name in names if not pd.isna(row[name])]
    if "sparsity" in row:
        words.append(f"{row['sparsity']:.0%}")
    if "accuracy" in row:
        words.append(f"accuracy {row['accuracy']:.1%}")
    return " ".join(words)
