"""How well training tasks share two workers, and what handing out a task costs.

    TFDS_DATA_DIR=... python benchmarks/scaling.py

Needs `pip install distributed` and two free cores. Trains eight networks, an experiment of eight
seeds, on one and on two workers of one thread each, in turns, and hands out 1,000 empty tasks.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # in the workers too
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

import pandas as pd  # noqa: E402

import keras_pruning as kp  # noqa: E402
import pruning_utils as pu  # noqa: E402
from keras_pruning.tasks import Job, Results, run_jobs  # noqa: E402
from keras_pruning.workers import find_function  # noqa: E402

TRAININGS = 8
IMAGES = 10_000  # of MNIST; a training of three epochs takes about ten seconds
EMPTY_TASKS = 1_000


def images() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    data = pu.load_dataset("mnist", train_size=IMAGES)
    return (data.x_train, data.y_train), (data.x_test, data.y_test)


def train(x: Any, y: Any, *, seed: int) -> Any:
    network = pu.build_dense_network(x.shape[1:], seed=seed)
    data = pu.Dataset("", "", x, y, x[:1000], y[:1000], tuple("0123456789"))
    pu.train(network, data, epochs=3, seed=seed, verbose=False)
    return network


@contextmanager
def dask(workers: int) -> Iterator[Executor]:
    from distributed import Client

    with Client(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as client:
        yield client.get_executor()


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def train_all(executor: Executor, first_seed: int, count: int = TRAININGS) -> pd.DataFrame:
    return kp.experiment(
        data={"mnist": "scaling:images"},
        networks={"dense": "scaling:train"},
        seeds=range(first_seed, first_seed + count),
        methods=["weights"],
        sparsities=[0.9],
        executor=executor,
        progress=False,
    )


def nothing(place: int) -> pd.DataFrame:
    return pd.DataFrame({"place": [place]})


def hand_out(executor: Executor, store: str | None) -> None:
    tasks = [{"place": place} for place in range(EMPTY_TASKS)]
    results = Results(tasks, store, progress=False, label="")
    function = find_function("scaling:nothing")  # that of the module, not of this script
    jobs = [Job(function, (place,), partial(results.add, place)) for place in results.missing]
    run_jobs(jobs, results, executor=executor, threads=None)


def measure_efficiency(pools: dict[int, Executor], repeats: int) -> None:
    for workers, pool in pools.items():  # imports, data and the first tracing, in each worker
        train_all(pool, first_seed=1000, count=2 * workers)
    efficiencies = []
    for turn in range(repeats):
        taken = {n: seconds(partial(train_all, pool, turn)) for n, pool in pools.items()}
        efficiencies.append(taken[1] / (2 * taken[2]))
        print(
            f"  {TRAININGS} trainings: {taken[1]:.1f} s on one worker, {taken[2]:.1f} s on two, "
            f"efficiency {efficiencies[-1]:.2f}"
        )
    print(f"  median efficiency of {repeats}: {statistics.median(efficiencies):.2f}")


def measure_overhead(pools: dict[str, Executor], repeats: int) -> None:
    for name, pool in pools.items():
        hand_out(pool, None)
        for where in ("in memory", "in a store"):
            taken = []
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as folder:
                    store = folder if where == "in a store" else None
                    taken.append(seconds(partial(hand_out, pool, store)) / EMPTY_TASKS)
            print(
                f"  {name}, results {where}: {1000 * statistics.median(taken):.2f} ms a task "
                f"({1000 * min(taken):.2f} to {1000 * max(taken):.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    kinds: dict[str, Callable[[int], Any]] = {"dask": dask, "processes": kp.local_processes}
    for name, kind in kinds.items():
        print(f"{name}: training")
        with ExitStack() as stack:
            measure_efficiency({n: stack.enter_context(kind(n)) for n in (1, 2)}, repeats)
    print(f"{EMPTY_TASKS} empty tasks, two workers")
    with ExitStack() as stack:
        measure_overhead({n: stack.enter_context(kind(2)) for n, kind in kinds.items()}, repeats)


if __name__ == "__main__":
    main()
