"""How well training tasks share two workers, and what handing out a task costs.

    TFDS_DATA_DIR=... python benchmarks/scaling.py [--trainings 8] [--repeats 3]

Needs `pip install distributed` and two free cores. Trains eight networks, an experiment of eight
seeds, on one and on two workers of one thread each, in turns; then hands out 1,000 tasks that do
nothing, and 100 that bring a network along.

What that means for 10^5 tasks on 1,000 workers, by one run on two cores: two workers reach 0.95
of twice one worker's speed (0.90 to 0.98), and Dask takes 7.3 ms a task, its result kept in a
store. One process hands out all tasks, one after the other: 10^5 take 12 minutes. Trainings of
11 seconds keep 1,000 workers busy for 19 minutes, so the handing out hides behind them; tasks of
less than 1,000 x 7.3 ms = 7.3 s would not, and a worker would wait between two of them. A task
that brings a network of 9.6 MB takes 0.25 s, so 10^5 points handed out singly take 7 hours and
carry 0.96 TB, however many workers there are: they would be busy only with tasks of 250 s. Hence
`points_per_task`: the 36 points of a network (4 methods, 9 sparsities) in one task make 2,800
tasks, 27 GB and 12 minutes. `in_flight`, here 2,000 to keep a task waiting for each worker, bounds
the networks in the calling process's memory: 19 GB.
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
from keras_pruning.studies.tasks import Job, Results, run_jobs  # noqa: E402
from keras_pruning.studies.workers import find_function  # noqa: E402

IMAGES = 20_000  # of MNIST; a training of three epochs takes about 15 seconds
EMPTY_TASKS = 1_000
NETWORK_BYTES = 9_576_227  # of the tutorial's network as a .keras file


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


def train_all(executor: Executor, first_seed: int, count: int) -> pd.DataFrame:
    return kp.experiment(
        data={"mnist": "scaling:images"},
        networks={"dense": "scaling:train"},
        seeds=range(first_seed, first_seed + count),
        methods=["weights"],
        sparsities=[0.9],
        executor=executor,
        progress=False,
    )


def nothing(place: int, network: bytes) -> pd.DataFrame:
    return pd.DataFrame({"place": [place]})


def hand_out(executor: Executor, store: str | None, network: bytes, count: int) -> None:
    results = Results([{"place": n} for n in range(count)], store, progress=False, label="")
    function = find_function("scaling:nothing")  # that of the module, not of this script
    jobs = [Job(function, (n, network), partial(results.add, n)) for n in results.missing]
    run_jobs(jobs, results, executor=executor, threads=None)


def measure_efficiency(pools: dict[int, Executor], repeats: int, trainings: int) -> None:
    for workers, pool in pools.items():  # imports, data and the first tracing, in each worker
        train_all(pool, first_seed=1000, count=2 * workers)
    efficiencies = []
    for turn in range(repeats):
        taken = {n: seconds(partial(train_all, pool, turn, trainings)) for n, pool in pools.items()}
        efficiencies.append(taken[1] / (2 * taken[2]))
        print(
            f"  {trainings} trainings: {taken[1]:.1f} s on one worker, {taken[2]:.1f} s on two, "
            f"efficiency {efficiencies[-1]:.2f}"
        )
    print(f"  median efficiency of {repeats}: {statistics.median(efficiencies):.2f}")


def measure_overhead(pools: dict[str, Executor], repeats: int) -> None:
    network = bytes(NETWORK_BYTES)
    cases = {  # whether there is a store, what travels with a task, how many tasks
        "empty, results in memory": (False, b"", EMPTY_TASKS),
        "empty, results in a store": (True, b"", EMPTY_TASKS),
        "with a network of 9.6 MB each": (False, network, EMPTY_TASKS // 10),
    }
    for name, pool in pools.items():
        hand_out(pool, None, b"", EMPTY_TASKS)
        for case, (has_store, content, count) in cases.items():
            taken = []
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as folder:
                    store = folder if has_store else None
                    taken.append(seconds(partial(hand_out, pool, store, content, count)) / count)
            print(
                f"  {name}, {count} tasks {case}: {1000 * statistics.median(taken):.2f} ms a task "
                f"({1000 * min(taken):.2f} to {1000 * max(taken):.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--dask", action="store_true", help="train on a Dask cluster as well")
    arguments = parser.parse_args()
    kinds: dict[str, Callable[[int], Any]] = {"processes": kp.local_processes, "dask": dask}
    for name in ("processes", "dask") if arguments.dask else ("processes",):
        print(f"training, {name}", flush=True)
        with ExitStack() as stack:
            pools = {n: stack.enter_context(kinds[name](n)) for n in (1, 2)}
            measure_efficiency(pools, arguments.repeats, arguments.trainings)
    print("handing out, two workers", flush=True)
    with ExitStack() as stack:
        both = {n: stack.enter_context(kind(2)) for n, kind in kinds.items()}
        measure_overhead(both, arguments.repeats)


if __name__ == "__main__":
    main()
