"""Threads and the cores they run on."""

import os
import threading

import keras
import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from keras_pruning import SparseModel
from keras_pruning.inference import sparse_chain
from keras_pruning.inference.threads import check_threads, count_cores, in_threads, one_blas_thread

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="this system does not tell a thread's cores"
)


def cores_of_threads(n_threads: int, **options) -> list[set[int]]:
    """The cores that each of the threads may use; each waits until all have begun."""
    seen, begun = [], threading.Barrier(n_threads)

    def work() -> None:
        begun.wait(timeout=10)
        seen.append(os.sched_getaffinity(0))

    in_threads(work, n_threads, **options)
    return seen


def test_work_runs_once_in_each_thread():
    names, begun = set(), threading.Barrier(3)

    def work() -> None:
        begun.wait(timeout=10)
        names.add(threading.current_thread().name)

    in_threads(work, 3)
    assert len(names) == 3 and threading.current_thread().name in names


def test_calls_side_by_side_do_not_wait_for_each_others_threads(monkeypatch):
    monkeypatch.setattr("keras_pruning.inference.threads.count_cores", lambda: 4)
    together = threading.Barrier(4)  # two callers and a thread more for each
    callers = [
        threading.Thread(target=in_threads, args=(lambda: together.wait(timeout=60), 2))
        for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not together.broken


def test_blas_keeps_to_one_thread_until_the_last_one_leaves():
    blas = ThreadpoolController().select(user_api="blas")

    def threads():
        return {library["num_threads"] for library in blas.info()}

    with blas.limit(limits=2):
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}


@needs_affinity
def test_as_many_threads_as_cores_have_a_core_each():
    every = os.sched_getaffinity(0)
    seen = cores_of_threads(len(every), on_own_cores=True)
    assert sorted(core for cores in seen for core in cores) == sorted(every)


@needs_affinity
def test_other_numbers_of_threads_may_use_any_core():
    every = os.sched_getaffinity(0)
    n_threads = len(every) + 1
    assert cores_of_threads(n_threads, on_own_cores=True) == [every] * n_threads
    assert cores_of_threads(len(every)) == [every] * len(every)


@needs_affinity
def test_the_calling_thread_may_use_any_core_afterwards_even_after_an_error():
    every = os.sched_getaffinity(0)

    def work() -> None:
        raise ValueError("no more examples")

    with pytest.raises(ValueError, match="no more examples"):
        in_threads(work, len(every), on_own_cores=True)
    assert os.sched_getaffinity(0) == every


@needs_affinity
def test_where_cores_cannot_be_chosen_the_work_is_done_all_the_same(monkeypatch):
    def forbidden(process: int, cores: set[int]) -> None:
        raise PermissionError

    every = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert len(cores_of_threads(len(every), on_own_cores=True)) == len(every)


@pytest.mark.parametrize(
    ("activations", "alone"),
    [(("relu", "softmax"), True), (("relu", "sigmoid"), True), (("sigmoid", "linear"), False)],
)
def test_threads_keep_to_their_cores_only_while_keras_computes_nothing(
    activations, alone, monkeypatch
):
    inner, last = activations
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, activation=inner),
            keras.layers.Dense(4, activation=last),
        ]
    )
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    asked = []

    def in_this_thread(work, n_threads, *, on_own_cores):
        asked.append(on_own_cores)
        work()

    monkeypatch.setattr(sparse_chain, "in_threads", in_this_thread)
    outputs = SparseModel(model, n_threads=2).predict(x)
    assert asked == [alone]
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_threads_are_by_default_as_many_as_cores():
    assert check_threads(None) == count_cores()
