"""A grid of prunings, measured: methods x sparsities x repeats in one tidy table."""

import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd

from keras_pruning.inference import count_cores, one_blas_thread, read_dense_chain, sparse_forward
from keras_pruning.measuring import model_to_bytes
from keras_pruning.models import (
    as_arrays,
    check_data,
    copy_model,
    loss_head,
    model_config,
    without_lora,
)
from keras_pruning.pruning import (
    Read,
    Scope,
    check_count,
    check_sparsity,
    choose,
    count_nonzero,
    layer_names,
    pruned_share,
    unit_masks,
    weight_masks,
    weights_under_unit_masks,
    weights_under_weight_masks,
)
from keras_pruning.recovery import refit_in_place
from keras_pruning.studies.tasks import Job, Results, run_jobs
from keras_pruning.studies.workers import (
    Payload,
    find_function,
    function_name,
    model_from_bytes,
)

__all__ = [
    "METHODS",
    "SPARSITIES",
    "Weights",
    "check_methods",
    "evaluator",
    "measured_row",
    "measured_sparsity",
    "prune_by_name",
    "pruned_weights",
    "refitter",
    "sparsity_sweep",
]

SPARSITIES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
METHODS = ("weights", "units", "random_weights", "random_units")

_WITHOUT_CHANCE = {"weights", "units"}

PruneFunction = Callable[..., keras.Model]  # (model, sparsity, *, seed) -> pruned model
Weights = list[npt.NDArray[Any]]  # as model.get_weights() returns them
Metrics = Callable[[Weights], dict[str, Any]]


def sparsity_sweep(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    methods: Iterable[str] | Mapping[str, PruneFunction] = METHODS[:3],
    sparsities: Sequence[float] = SPARSITIES,
    repeats: int = 1,
    scope: Scope = "layer",
    layers: Iterable[str | keras.Layer] | None = None,
    reconstruct_on: Any = None,
    seed: int = 0,
    batch_size: int = 1000,
    progress: bool = True,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
    threads: int | None = 1,
) -> pd.DataFrame:
    """Returns what is left of a model at each sparsity, measured on (x, y).

    A chain of Dense layers is evaluated without what pruning cut off, by
    `sparse_forward`, so that a point costs less the more is gone. Of any other model one
    copy is made for the whole sweep, whose `evaluate` is traced once.

    The table is the same to the last digit on any executor whose workers run the same
    versions on processors of one kind. With a store, points that are finished there are
    read and not run again, so a sweep that was stopped goes on where it was.

    Args:
        model: A built and compiled Keras model.
        x: Test inputs, shape `(examples, ...)`, arrays as `model.evaluate` takes them; or a
            finite `tf.data.Dataset`, `PyDataset` or `DataLoader`, read once into memory.
        y: Test targets, of the same length; of a data set, which holds them, `None`.
        methods: Among "weights", "units" (by magnitude and by norm), "random_weights",
            "random_units" (the controls); or a dict of name to a function
            `(model, sparsity, *, seed) -> pruned model`.
        sparsities: Shares to prune, floats in [0, 1].
        repeats: How often random methods and given functions are repeated, with the
            seeds `seed`, `seed + 1`, ...; the others give the same each time and are
            measured once.
        scope: "layer" or "global", or of weights "unit", as in `prune_weights`.
        layers: Names of the layers to prune, or the layers; by default those that
            `prune_weights`, and for units `prune_units`, prune by default.
        reconstruct_on: Inputs without labels, not those of x, to which each pruned model is
            refitted before it is measured, as `reconstruct` does; or `None`, to measure it as
            pruning left it.
        seed: Seed of the first repeat.
        batch_size: Examples evaluated together.
        progress: Whether to show a progress bar on standard output.
        executor: Any `concurrent.futures.Executor`, whose workers share the points: that of
            `local_processes`, in a script under `if __name__ == "__main__":`,
            `dask.distributed.Client(...).get_executor()`, MPI's pool.
            `None`: this process, two points side by side where no given function and no
            Keras model has a part and nothing is refitted, else one after the other. To an
            executor the model and the data travel with each point; given functions must be
            importable there.
        store: Folder for the finished points, one small file each, or `None`.
        threads: What each worker computes with; `None` leaves it as it is.

    Returns:
        DataFrame, a row a point: `method`, `sparsity` (asked), `sparsity_measured`
        (zeros among the weights, or units, of the layers pruned), the loss and metrics
        of the compiled model (`loss`, `accuracy`, ...), `parameters`, `nonzero`
        (parameters that are not zero), `seed` (missing where chance has no part),
        `repeat`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the model is not compiled or not built, x and y differ in
            length, or a method, sparsity or layer is unknown or out of range.
        Exception: What a worker raises; what is finished is in the store.

    Examples:
        >>> dense = keras.layers.Dense
        >>> layers = [keras.Input((8,)), dense(10, name="hidden"), dense(3, name="out")]
        >>> model = keras.Sequential(layers)
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((16, 8)), np.ones((16, 3))
        >>> options = {"methods": ["units"], "sparsities": [0, 0.5], "progress": False}
        >>> table = sparsity_sweep(model, x, y, **options)
        >>> table[["method", "sparsity", "sparsity_measured"]]
          method  sparsity  sparsity_measured
        0  units       0.0                0.0
        1  units       0.5                0.5
    """
    x, y = check_data(model, x, y)
    check_count("repeats", repeats)
    if isinstance(layers, Mapping):
        raise TypeError("layers must be a list of names here: the sweep gives the sparsities.")
    names = None if layers is None else layer_names(model, layers)
    refit_to = None if reconstruct_on is None else as_arrays(reconstruct_on)[0]
    model = without_lora(model)  # what it computes with is what is pruned
    functions = methods if isinstance(methods, Mapping) else check_methods(methods)
    if names and any(m in METHODS and m.endswith("units") for m in functions):
        choose(model, 0.0, names, scope, units=True)  # raises where a layer has no units
    asked = [check_sparsity(sparsity) for sparsity in sparsities]
    points = [
        _Point(method, sparsity, None if method in _WITHOUT_CHANCE else seed + repeat, repeat)
        for method in functions
        for sparsity in asked
        for repeat in range(1 if method in _WITHOUT_CHANCE else repeats)
    ]
    if not points:
        raise ValueError("There is nothing to do: methods or sparsities is empty.")
    travels = executor is not None or store is not None
    options = _Options(
        tuple((name, function_name(f) if travels and f else f) for name, f in functions.items()),
        scope,
        names,
        batch_size,
    )
    tasks: list[dict[str, Any]] = [asdict(point) for point in points]
    if store is not None:
        identity, by_method = _identity(model, x, y, refit_to, options), dict(options.functions)
        tasks = [identity | task | {"function": by_method[task["method"]]} for task in tasks]
    results = Results(tasks, store, progress=progress, label="Sweep")
    if executor is None:
        at_once = _points_at_once(model, options, len(results.missing)) if refit_to is None else 1
        n_threads = -(-count_cores() // at_once)
        measure = _point_measurer(model, x, y, refit_to, options, n_threads)
        jobs = [Job(measure, (points[i],), partial(results.add, i)) for i in results.missing]
        with ThreadPoolExecutor(at_once) if at_once > 1 else contextlib.nullcontext() as pool:
            run_jobs(jobs, results, executor=pool, let_finish=True)  # no thread can be stopped
    else:
        network = Payload.of(model_to_bytes(model, for_inference=True))
        arrays = (x, y, refit_to)
        data = Payload(_digest_of_arrays(arrays), arrays)
        jobs = [
            Job(_measure_elsewhere, (network, data, options, points[i]), partial(results.add, i))
            for i in results.missing
        ]
        run_jobs(jobs, results, executor=executor, threads=threads)
    return results.table()


def check_methods(methods: Iterable[str]) -> dict[str, None]:
    """Returns the names of methods, each with no function of the user's.

    Raises:
        TypeError: If it is one name, not a list.
        ValueError: If a name is unknown.
    """
    if isinstance(methods, str):
        raise TypeError(f"methods must be a list of names. Received: methods={methods!r}")
    names = list(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"Unknown method {unknown}. Known: {list(METHODS)}, or pass functions.")
    return dict.fromkeys(names)


@dataclass(frozen=True)
class _Point:
    method: str
    sparsity: float
    seed: int | None
    repeat: int


@dataclass(frozen=True)
class _Options:
    """What all points of a sweep share; hashable, and without code if it is to travel."""

    functions: tuple[tuple[str, PruneFunction | str | None], ...]  # by method
    scope: Scope
    layers: tuple[str, ...] | None
    batch_size: int


def _points_at_once(model: keras.Model, options: _Options, n_points: int) -> int:
    """Returns how many of the points this process measures side by side.

    Two: while NumPy prunes for one, the products of the other go on; more would hold more copies
    of the weights. One where a function of the user prunes, which may not be made for two threads,
    and where a Keras model is evaluated, which takes all cores by itself.
    """
    most = min(2, count_cores(), n_points)
    if most < 2 or any(function is not None for _, function in options.functions):
        return 1
    return 1 if _loss_head_of_chain(model) is None else most


def _point_measurer(
    model: keras.Model,
    x: Any,
    y: Any,
    refit_to: Any,
    options: _Options,
    n_threads: int | None = None,
) -> Callable[[_Point], pd.DataFrame]:
    """Returns a function that measures the model pruned, and refitted, as a point says."""
    evaluate = evaluator(model, x, y, options.batch_size, n_threads)
    refit = None if refit_to is None else refitter(model, refit_to)
    functions = dict(options.functions)
    read = _reading_once()
    dense: dict[str, float] = {}

    def measure(point: _Point) -> pd.DataFrame:
        nonlocal dense
        function = functions[point.method]
        if function is None:
            weights = prune_by_name(
                model,
                point.method,
                point.sparsity,
                scope=options.scope,
                layers=options.layers,
                seed=point.seed or 0,
                read=read,
            )
        else:
            function = find_function(function) if isinstance(function, str) else function
            weights = function(model, point.sparsity, seed=point.seed).get_weights()
        if point.sparsity == 0 and function is None:  # the same network for each method
            dense = measured = dense or evaluate(weights)
        else:
            weights = refit(weights) if refit else weights
            measured = evaluate(weights)
        row = {"method": point.method, "sparsity": point.sparsity}
        row |= measured_row(model, weights, measured, point.method, options.layers)
        row |= {"seed": point.seed, "repeat": point.repeat}
        return pd.DataFrame([row]).astype({"seed": "Int64"})

    return measure


def _reading_once() -> Read:
    """Returns a function that reads each variable once: a model's copy takes as long as masks."""
    known: dict[int, npt.NDArray[Any]] = {}
    one_at_a_time = threading.Lock()

    def read(variable: keras.Variable) -> npt.NDArray[Any]:
        with one_at_a_time:
            if id(variable) not in known:
                known[id(variable)] = keras.ops.convert_to_numpy(variable)
            return known[id(variable)]

    return read


def _measure_elsewhere(
    model: Payload, data: Payload, options: _Options, point: _Point
) -> pd.DataFrame:
    return _cached_measurer(model, data, options)(point)


@functools.lru_cache(maxsize=1)
def _cached_measurer(
    model: Payload, data: Payload, options: _Options
) -> Callable[[_Point], pd.DataFrame]:
    x, y, refit_to = data.content
    return _point_measurer(model_from_bytes(model.content), x, y, refit_to, options)


def _identity(
    model: keras.Model, x: Any, y: Any, refit_to: Any, options: _Options
) -> dict[str, Any]:
    """Returns what tells this sweep's points from those of other sweeps in one store."""
    config = model_config(model)
    compiled = model.get_compile_config() or {}
    config |= {name: compiled.get(name) for name in ("loss", "loss_weights", "metrics")}
    architecture = json.dumps(config, sort_keys=True, default=str).encode()
    weights = _digest_of_arrays(model.get_weights())
    return {
        "model": hashlib.sha256(architecture + weights.encode()).hexdigest()[:16],
        "examples": _digest_of_arrays((x, y))[:16],
        "scope": options.scope,
        "layers": None if options.layers is None else ", ".join(options.layers),
        "batch_size": options.batch_size,
    } | ({} if refit_to is None else {"reconstruct_on": _digest_of_arrays(refit_to)[:16]})


def _digest_of_arrays(arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in map(np.asarray, keras.tree.flatten(arrays)):
        array = array.astype(str) if array.dtype == object else array  # not where strings lie
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def prune_by_name(
    model: keras.Model,
    method: str,
    sparsity: float,
    *,
    scope: Scope,
    layers: Sequence[str] | None,
    seed: int,
    read: Read = keras.ops.convert_to_numpy,
) -> Weights:
    """Returns the weights of the model pruned by one of `METHODS`."""
    score, kind = ("random" if method.startswith("random") else "magnitude"), method.split("_")[-1]
    options = {"scope": scope, "score": score, "layers": layers, "seed": seed}
    return pruned_weights(model, kind, sparsity, read, **options)


def pruned_weights(
    model: keras.Model,
    kind: str,
    sparsity: float,
    read: Read = keras.ops.convert_to_numpy,
    **options: Any,
) -> Weights:
    """Returns the weights of the model under `prune_weights` or, of kind "units", `prune_units`."""
    if kind == "units":
        masks = unit_masks(model, sparsity, read=read, **options)
        return weights_under_unit_masks(model, masks, read)
    return weights_under_weight_masks(
        model, weight_masks(model, sparsity, read=read, **options), read
    )


def evaluator(
    model: keras.Model, x: Any, y: Any, batch_size: int, n_threads: int | None = None
) -> Callable[[Weights], dict[str, float]]:
    """Returns a function that measures the model with the weights it is given.

    Threads may call it side by side. A chain of Dense layers is then run for all of them at once,
    by `n_threads` each, one a core by default; Keras measures one set of weights at a time.
    """
    head = _loss_head_of_chain(model)
    if head is None:
        metrics_of = _by_copy(model, x, y, batch_size)
    else:
        metrics_of = _by_chain(model, head, x, y, n_threads)

    def evaluate(weights: Weights) -> dict[str, float]:
        return {name: float(value) for name, value in metrics_of(weights).items()}

    return evaluate


def refitter(model: keras.Model, x: Any) -> Callable[[Weights], Weights]:
    """Returns a function that refits pruned weights to what the model gives for the inputs x."""
    pruned = copy_model(model)
    one_at_a_time = threading.Lock()  # they share the one copy

    def refit(weights: Weights) -> Weights:
        with one_at_a_time:
            pruned.set_weights(weights)
            refit_in_place(pruned, model, x, progress=False)
            return pruned.get_weights()

    return refit


def _loss_head_of_chain(model: keras.Model) -> keras.Model | None:
    return loss_head(model) if read_dense_chain(model) is not None else None


def _by_chain(
    model: keras.Model, head: keras.Model, x: Any, y: Any, n_threads: int | None
) -> Metrics:
    inputs = np.asarray(x)
    one_at_a_time = threading.Lock()

    def metrics_of(weights: Weights) -> dict[str, Any]:
        with one_blas_thread():  # the last digit of a BLAS product depends on its threads
            steps = read_dense_chain(model, weights) or []
            outputs = sparse_forward(steps, inputs, n_threads=n_threads, reproducible=True)
        with one_at_a_time:
            head.reset_metrics()
            return head.test_on_batch(outputs, y, return_dict=True)

    return metrics_of


def _by_copy(model: keras.Model, x: Any, y: Any, batch_size: int) -> Metrics:
    scratch = copy_model(model)
    one_at_a_time = threading.Lock()  # the workers of an executor may be threads

    def metrics_of(weights: Weights) -> dict[str, Any]:
        with one_at_a_time:
            scratch.set_weights(weights)
            return scratch.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)

    return metrics_of


def measured_row(
    model: keras.Model,
    weights: Weights,
    metrics: Mapping[str, float],
    method: str,
    layers: Sequence[str] | None,
) -> dict[str, Any]:
    """Returns the columns that tell what is left of the model with these weights."""
    return {
        "sparsity_measured": measured_sparsity(model, weights, method, layers),
        "parameters": model.count_params(),
        "nonzero": sum(map(count_nonzero, weights)),
    } | dict(metrics)


def measured_sparsity(
    model: keras.Model, weights: Weights, method: str, layers: Sequence[str] | None
) -> float:
    """Returns the share of zeros among the weights, or units, of the layers that are pruned."""
    values = dict(zip(map(id, model.weights), weights, strict=True))
    of_units = method in METHODS and method.endswith("units")
    kind: Literal["weights", "units"] = "units" if of_units else "weights"
    return pruned_share(model, kind, layers, read=lambda variable: values[id(variable)])
