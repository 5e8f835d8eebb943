"""A study: data sets x networks x seeds x methods x sparsities x fine-tuning, on any executor."""

import functools
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_pruning.measuring import model_to_bytes, write_whole
from keras_pruning.models import as_arrays, check_data, count_examples, kernel_layers
from keras_pruning.pruning import Scope, check_count, check_sparsity
from keras_pruning.recovery import keep_zeros
from keras_pruning.studies.store import open_store, set_aside, task_path
from keras_pruning.studies.sweep import (
    METHODS,
    SPARSITIES,
    Weights,
    check_methods,
    evaluator,
    measured_row,
    prune_by_name,
    refitter,
)
from keras_pruning.studies.tasks import Job, Results, run_jobs
from keras_pruning.studies.workers import (
    Payload,
    find_function,
    function_name,
    model_from_bytes,
)

__all__ = ["experiment"]

LoadData = Callable[[], tuple[tuple[Any, Any], tuple[Any, Any]]]
TrainNetwork = Callable[..., keras.Model]  # (x_train, y_train, *, seed) -> compiled model
FineTune = Callable[..., Any]  # (model, x_train, y_train, *, seed): trains in place

_RECONSTRUCT = "reconstruct"
_INPUTS = 2_000  # that reconstruct fits to


def experiment(
    *,
    data: Mapping[str, LoadData | str],
    networks: Mapping[str, TrainNetwork | str],
    seeds: Iterable[int] = (0,),
    methods: Iterable[str] = METHODS[:3],
    sparsities: Sequence[float] = SPARSITIES,
    fine_tuning: Mapping[str, FineTune | str | None] | None = None,
    scope: Scope = "layer",
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
    threads: int | None = 1,
    points_per_task: int = 1,
    in_flight: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Returns what is left of every network at every sparsity, with and without fine-tuning.

    One task trains a network, for each data set, kind of network and seed. The network comes
    back as the content of its `.keras` file and goes out with the tasks that prune, fine-tune
    and measure it. Functions travel by name, "module:name", so workers must be able to import
    them; a function that they cannot import, as those of a notebook, does without executor.

    The table is the same to the last digit on any executor, if training is: in TensorFlow on
    processors of one kind it was, on GPUs it often is not. Before a network is trained, and
    before it is fine-tuned, `keras.utils.set_random_seed` is called with the task's seed.

    With a store, a task that is finished there is not run again: after a kill the same call
    goes on where it was, with nothing lost but the tasks that were running. The store knows
    functions by name: take a new one when you change what they do.

    Args:
        data: Name to a function without arguments that returns
            `((x_train, y_train), (x_test, y_test))`, as `keras.datasets.mnist.load_data` does.
        networks: Name to a function `(x_train, y_train, *, seed)` that returns a trained and
            compiled model.
        seeds: Seeds of the training, of the random methods and of the fine-tuning.
        methods: Among "weights", "units", "random_weights", "random_units".
        sparsities: Shares to prune, floats in [0, 1].
        fine_tuning: Name to a function `(model, x_train, y_train, *, seed)` that trains the
            pruned model in place, while its zeros are kept; or to "reconstruct", which refits it
            to 2,000 of `x_train`, drawn with the seed, without labels; or to `None` for none, which
            is the default: `{"none": None}`.
        scope: "layer" or "global", or of weights "unit", as in `prune_weights`.
        executor: Any `concurrent.futures.Executor`: that of `local_processes`, in a script
            under `if __name__ == "__main__":`,
            `dask.distributed.Client(...).get_executor()`, MPI's pool. `None`: one task after the
            other in this process.
        store: Folder for results and trained networks, or `None`.
        threads: What each worker computes with; `None` leaves it as it is.
        points_per_task: Points of one network that travel together. More of them save
            sending the network, and a kill costs more.
        in_flight: Tasks handed to the executor at a time, each with its network; give two for
            each worker or more.
        progress: Whether to show a progress bar on standard output.

    Returns:
        DataFrame, a row a point, in the order of the arguments: `data`, `network`, `seed`,
        `method`, `sparsity` (asked), `fine_tuning`, `sparsity_measured`, `parameters`,
        `nonzero`, the loss and metrics on the test data.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is empty or out of range, or a function cannot be imported.
        Exception: What a task raises, with a note of how far the experiment came.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(32, 8))
        >>> def network():
        ...     model = keras.Sequential([keras.Input((8,)), *map(keras.layers.Dense, (10, 3))])
        ...     model.compile("sgd", "mse")
        ...     return model
        >>> table = experiment(
        ...     data={"noise": lambda: ((x, x[:, :3]), (x, x[:, :3]))},
        ...     networks={"small": lambda x, y, seed: network()},  # trained, in earnest
        ...     methods=["weights"],
        ...     sparsities=[0, 0.5],
        ...     progress=False,
        ... )
        >>> table[["data", "network", "seed", "method", "sparsity", "nonzero"]]
            data network  seed   method  sparsity  nonzero
        0  noise   small     0  weights       0.0      110
        1  noise   small     0  weights       0.5       70
    """
    tuning = {"none": None} if fine_tuning is None else fine_tuning
    check_count("points_per_task", points_per_task)
    check_count("in_flight", in_flight)
    travels = executor is not None
    sources = {name: _reference(f, travels) for name, f in _filled("data", data).items()}
    trainers = {name: _reference(f, travels) for name, f in _filled("networks", networks).items()}
    tuners = {
        name: f if f in (None, _RECONSTRUCT) else _reference(f, travels)
        for name, f in _filled("fine_tuning", tuning).items()
    }
    trainings = [
        _Training(data_name, network, seed, sources[data_name], trainers[network])
        for data_name in sources
        for network in trainers
        for seed in _seeds(seeds)
    ]
    grid = [
        _Point(method, check_sparsity(sparsity), name, tuner, scope)
        for method in check_methods(methods)
        for sparsity in sparsities
        for name, tuner in tuners.items()
    ]
    if not grid:
        raise ValueError("There is nothing to do: methods or sparsities is empty.")
    tasks = [(training, point) for training in trainings for point in grid]
    results = Results(
        [training.parameters | point.parameters for training, point in tasks],
        store,
        progress=progress,
        label="Experiment",
    )
    left: dict[_Training, list[tuple[int, _Point]]] = {}
    for place in results.missing:
        left.setdefault(tasks[place][0], []).append((place, tasks[place][1]))
    networks_folder = None if store is None else open_store(Path(store) / "networks")

    def measure(training: _Training, content: bytes) -> list[Job]:
        """Returns the jobs that measure a trained network."""
        network = Payload.of(content)
        chunks = [
            left[training][start : start + points_per_task]
            for start in range(0, len(left[training]), points_per_task)
        ]
        return [
            Job(
                _measure,
                (network, training, [point for _, point in chunk]),
                partial(_add_all, results, [place for place, _ in chunk]),
            )
            for chunk in chunks
        ]

    def keep(training: _Training, content: bytes) -> list[Job]:
        if networks_folder is not None:
            write_whole(_network_path(networks_folder, training), content)
        return measure(training, content)

    jobs: list[Job] = []
    for training in left:
        content = None if networks_folder is None else _trained(networks_folder, training)
        if content is None:
            jobs.append(Job(_train, (training,), partial(keep, training)))
        else:
            jobs.extend(measure(training, content))
    try:
        run_jobs(jobs, results, executor=executor, threads=threads, in_flight=in_flight)
    finally:
        # A worker keeps its last network and data, not we.
        for cached in (_prepared, _prepared_refit, _load):
            cached.cache_clear()
    return results.table()


@dataclass(frozen=True)
class _Training:
    """A network to train; its functions by name, unless they stay in this process."""

    data: str
    network: str
    seed: int
    load: LoadData | str
    train: TrainNetwork | str

    @property
    def parameters(self) -> dict[str, Any]:
        """What tells it from other trainings."""
        return {
            "data": self.data,
            "network": self.network,
            "seed": self.seed,
            "load_function": _name(self.load),
            "train_function": _name(self.train),
            "backend": keras.backend.backend(),
        }


@dataclass(frozen=True)
class _Point:
    """A pruning, and perhaps a fine-tuning, of a trained network."""

    method: str
    sparsity: float
    fine_tuning: str
    tune: FineTune | str | None
    scope: Scope

    @property
    def parameters(self) -> dict[str, Any]:
        """What tells it from other points of the same network."""
        return {
            "method": self.method,
            "sparsity": self.sparsity,
            "fine_tuning": self.fine_tuning,
            "fine_tuning_function": None if self.tune is None else _name(self.tune),
            "scope": self.scope,
        }


def _train(training: _Training) -> bytes:
    """Trains a network; runs in a worker."""
    (x, y), _ = _load(training.load)
    keras.utils.set_random_seed(training.seed)
    network = _function(training.train)(x, y, seed=training.seed)
    if not isinstance(network, keras.Model) or not network.compiled:
        raise TypeError(
            f"'{_name(training.train)}' must return a compiled Keras model. "
            f"Received: {type(network).__name__}"
        )
    return model_to_bytes(network)


def _measure(network: Payload, training: _Training, points: list[_Point]) -> list[pd.DataFrame]:
    """Prunes, fine-tunes and measures a network; runs in a worker."""
    return [_measure_point(network, training, point) for point in points]


def _measure_point(network: Payload, training: _Training, point: _Point) -> pd.DataFrame:
    model, evaluate = _prepared(network, training.load)
    weights = prune_by_name(
        model, point.method, point.sparsity, scope=point.scope, layers=None, seed=training.seed
    )
    if point.tune == _RECONSTRUCT:
        weights = _prepared_refit(network, training)(weights)
    elif point.tune is not None:
        (x, y), _ = _load(training.load)
        pruned = model_from_bytes(network.content)
        pruned.set_weights(weights)
        keras.utils.set_random_seed(training.seed)
        with keep_zeros(pruned):
            _function(point.tune)(pruned, x, y, seed=training.seed)
            before, weights = weights, pruned.get_weights()
            # Before the block sets to zero again what came back.
            _check_zeros(model, before, weights, point)
    row = {
        "data": training.data,
        "network": training.network,
        "seed": training.seed,
        "method": point.method,
        "sparsity": point.sparsity,
        "fine_tuning": point.fine_tuning,
    }
    row |= measured_row(model, weights, evaluate(weights), point.method, None)
    return pd.DataFrame([row])


def _check_zeros(model: keras.Model, before: Weights, after: Weights, point: _Point) -> None:
    """Raises an error if a kernel has got back a weight that was pruned."""
    kernels = {id(kernel) for entry in kernel_layers(model) for kernel in entry.kernels}
    for variable, old, new in zip(model.weights, before, after, strict=True):
        if id(variable) in kernels and (new[old == 0] != 0).any():
            raise RuntimeError(
                f"'{point.fine_tuning}' gave pruned weights of '{variable.path}' a new value. It "
                "must train the model that it is given by fit or train_on_batch."
            )


@functools.lru_cache(maxsize=1)
def _prepared(network: Payload, load: LoadData | str) -> tuple[keras.Model, Callable[..., Any]]:
    """Returns the network, and a function that measures it with other weights."""
    _, (x, y) = _load(load)
    model = model_from_bytes(network.content)
    x, y = check_data(model, x, y)
    return model, evaluator(model, x, y, batch_size=1000)


@functools.lru_cache(maxsize=1)
def _prepared_refit(network: Payload, training: _Training) -> Callable[[Weights], Weights]:
    """Returns a function that refits pruned weights of the network to some training inputs."""
    (x, _), _ = _load(training.load)
    x, _ = as_arrays(x)
    order = np.random.default_rng(training.seed).permutation(count_examples(x))[:_INPUTS]
    some = keras.tree.map_structure(lambda array: array[order], x)
    return refitter(model_from_bytes(network.content), some)


@functools.lru_cache(maxsize=1)
def _load(load: LoadData | str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    loaded = _function(load)()
    try:
        (x_train, y_train), (x_test, y_test) = loaded
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'{_name(load)}' must return ((x_train, y_train), (x_test, y_test))."
        ) from error
    return (x_train, y_train), (x_test, y_test)


def _add_all(results: Results, places: list[int], tables: list[pd.DataFrame]) -> None:
    for place, table in zip(places, tables, strict=True):
        results.add(place, table)


def _network_path(folder: Path, training: _Training) -> Path:
    return task_path(folder, training.parameters, ".keras")


def _trained(folder: Path, training: _Training) -> bytes | None:
    """Returns the network that an earlier run trained, or `None`."""
    path = _network_path(folder, training)
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.testzip()  # raises where a checksum is wrong
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        set_aside(path, error)
        return None
    return content


def _reference(function: Callable[..., Any] | str, travels: bool) -> Callable[..., Any] | str:
    """Returns the function's name; of one that nobody can import, itself, unless it must travel."""
    try:
        return function_name(function)
    except ValueError:
        if travels or isinstance(function, str):
            raise
        return function


def _function(reference: Callable[..., Any] | str) -> Callable[..., Any]:
    return find_function(reference) if isinstance(reference, str) else reference


def _name(reference: Callable[..., Any] | str) -> str:
    if isinstance(reference, str):
        return reference
    return f"{reference.__module__}:{reference.__qualname__}"


def _filled(argument: str, entries: Any) -> Mapping[str, Any]:
    if not isinstance(entries, Mapping):
        raise TypeError(f"{argument} must be a dict of names. Received: {type(entries).__name__}")
    if not entries:
        raise ValueError(f"{argument} is empty: give at least one entry.")
    return entries


def _seeds(seeds: Iterable[int]) -> list[int]:
    found = list(seeds)
    wrong = [s for s in found if isinstance(s, bool) or not isinstance(s, int) or s < 0]
    if wrong or not found:
        raise ValueError(f"seeds must be whole numbers from 0, at least one. Received: {found}")
    return found
