"""Experiments: one table on every executor, and no result lost or computed twice."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import keras
import numpy as np
import pytest
import threadpoolctl
import tiny_study

import keras_pruning as kp
import keras_pruning.studies.experiments as study
from keras_pruning.measuring import model_to_bytes
from keras_pruning.studies import tasks
from keras_pruning.studies.store import decode_result
from keras_pruning.studies.tasks import _THIS_PROCESS, _Conditions, _run
from keras_pruning.studies.workers import model_from_bytes

STUDY = {
    "data": {"blobs": "tiny_study:blobs"},
    "networks": {"dense": "tiny_study:train"},
    "seeds": (0, 1),
    "methods": ("weights", "random_units"),
    "sparsities": (0, 0.5, 0.9),
    "fine_tuning": {"none": None, "one epoch": "tiny_study:one_epoch"},
    "progress": False,
}
SHORT = STUDY | {"seeds": (0,), "methods": ("weights",), "fine_tuning": {"none": None}}


def as_bytes(table):
    return table.to_csv(index=False).encode()


@pytest.fixture(scope="module")
def table():
    return kp.experiment(**STUDY)


@pytest.fixture(scope="module")
def processes():
    with kp.local_processes(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        yield client.get_executor()


@pytest.fixture
def calls(monkeypatch):
    """How often each of the functions that do the work ran in this process."""
    counter = Counter()

    def counted(name, function, *args):
        counter[name] += 1
        return function(*args)

    for name in ("_train", "_measure_point"):
        monkeypatch.setattr(study, name, partial(counted, name, getattr(study, name)))
    return counter


# ---- the table


def test_nothing_is_kept_in_this_process(table):
    assert study._prepared.cache_info().currsize == study._load.cache_info().currsize == 0


def test_a_row_for_each_point_in_the_order_of_the_arguments(table):
    points = table[["data", "network", "seed", "method", "sparsity", "fine_tuning"]]
    assert points.to_numpy().tolist() == [
        ["blobs", "dense", seed, method, sparsity, way]
        for seed in (0, 1)
        for method in ("weights", "random_units")
        for sparsity in (0, 0.5, 0.9)
        for way in ("none", "one epoch")
    ]


def test_a_point_is_what_pruning_by_hand_gives(table):
    (x, y), (x_test, y_test) = tiny_study.blobs()
    keras.utils.set_random_seed(1)
    network = tiny_study.train(x, y, seed=1)
    pruned = kp.prune_weights(network, 0.5)
    keras.utils.set_random_seed(1)
    with kp.keep_zeros(pruned):
        tiny_study.one_epoch(pruned, x, y, seed=1)
    expected = pruned.evaluate(x_test, y_test, verbose=0, return_dict=True)
    chosen = (table["seed"] == 1) & (table["method"] == "weights") & (table["sparsity"] == 0.5)
    row = table[chosen & (table["fine_tuning"] == "one epoch")].iloc[0]
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=0.01)
    assert row["sparsity_measured"] == 0.5
    assert row["nonzero"] == sum((array != 0).sum() for array in pruned.get_weights())


def test_a_random_point_is_pruned_with_the_seed_of_its_network(table):
    data, test = tiny_study.blobs()
    keras.utils.set_random_seed(1)
    pruned = kp.prune_units(tiny_study.train(*data, seed=1), 0.5, score="random", seed=1)
    expected = pruned.evaluate(*test, verbose=0, return_dict=True)
    chosen = (table["seed"] == 1) & (table["method"] == "random_units") & (table["sparsity"] == 0.5)
    row = table[chosen & (table["fine_tuning"] == "none")].iloc[0]
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_the_scope_reaches_the_pruning(swept):
    network, *test = swept
    found = kp.experiment(**SHORT, scope="global")
    for sparsity, loss in zip(found["sparsity"], found["loss"], strict=True):
        pruned = kp.prune_weights(network, sparsity, scope="global")
        expected = pruned.evaluate(*test, verbose=0, return_dict=True)["loss"]
        assert loss == pytest.approx(expected, rel=1e-4)


def test_a_network_may_be_refitted_instead_of_trained():
    table = kp.experiment(**SHORT | {"fine_tuning": {"refitted": "reconstruct"}})
    (x, y), test = tiny_study.blobs()
    keras.utils.set_random_seed(0)
    network = tiny_study.train(x, y, seed=0)
    order = np.random.default_rng(0).permutation(600)
    for sparsity, loss in zip(table["sparsity"], table["loss"], strict=True):
        pruned = kp.prune_weights(network, sparsity)
        refitted = kp.reconstruct(pruned, network, x[order], progress=False)
        expected = refitted.evaluate(*test, verbose=0, return_dict=True)["loss"]
        assert loss == pytest.approx(expected, rel=1e-3)
    assert (table["fine_tuning"] == "refitted").all()
    assert table["sparsity_measured"].round(1).tolist() == [0, 0.5, 0.9]


def test_fine_tuning_helps_and_zeros_stay(table):
    by_way = table[table["sparsity"] == 0.9].pivot_table("loss", "fine_tuning", "seed")
    assert (by_way.loc["one epoch"] < by_way.loc["none"]).all()
    weights = table[(table["method"] == "weights") & (table["sparsity"] == 0.9)]
    assert (weights["sparsity_measured"].round(2) == 0.9).all()


def test_zeros_stay_where_fine_tuning_compiles_the_model_anew():
    found = kp.experiment(**SHORT | {"fine_tuning": {"anew": "tiny_study:compiled_anew"}})
    plain = kp.experiment(**SHORT)
    assert found["sparsity_measured"].tolist() == plain["sparsity_measured"].tolist()
    assert found["loss"].iloc[-1] < plain["loss"].iloc[-1]


def test_pruned_weights_that_come_back_are_an_error():
    with pytest.raises(RuntimeError, match="'all' gave pruned weights of .*kernel' a new value"):
        kp.experiment(**SHORT | {"fine_tuning": {"all": "tiny_study:overwrite"}})


def test_functions_of_this_process_do_without_a_name():
    def load():
        return tiny_study.blobs()

    found = kp.experiment(**SHORT | {"data": {"blobs": load}})
    assert as_bytes(found) == as_bytes(kp.experiment(**SHORT))


# ---- executors


@pytest.mark.slow
@pytest.mark.parametrize("points_per_task", [1, 4])
def test_a_process_pool_gives_the_same_bytes(table, processes, points_per_task):
    found = kp.experiment(**STUDY, executor=processes, points_per_task=points_per_task)
    assert as_bytes(found) == as_bytes(table)


@pytest.mark.slow
def test_a_dask_cluster_of_two_processes_gives_the_same_bytes(table, cluster):
    assert as_bytes(kp.experiment(**STUDY, executor=cluster)) == as_bytes(table)


class CountingPool(ThreadPoolExecutor):
    """One worker; notes how many tasks it was given at most at one time."""

    def __init__(self):
        super().__init__(1)
        self.given, self.most = [], 0

    def submit(self, *task):
        self.given.append(super().submit(*task))
        self.most = max(self.most, sum(not future.done() for future in self.given))
        return self.given[-1]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_few_tasks_in_flight_give_the_same_bytes(in_flight):
    with CountingPool() as pool:
        found = kp.experiment(**SHORT, executor=pool, in_flight=in_flight)
    assert as_bytes(found) == as_bytes(kp.experiment(**SHORT))
    assert pool.most <= in_flight


@pytest.fixture(scope="module")
def swept():
    (x, y), test = tiny_study.blobs()
    keras.utils.set_random_seed(0)
    model = tiny_study.train(x, y, seed=0)
    return model, *test


SWEEP = {"sparsities": (0, 0.5, 0.9), "repeats": 2, "progress": False}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "cluster"])
def test_a_sweep_gives_the_same_bytes_on_any_executor(swept, executor, request, tmp_path):
    pool = request.getfixturevalue(executor)
    here = kp.sparsity_sweep(*swept, **SWEEP)
    assert as_bytes(kp.sparsity_sweep(*swept, **SWEEP, executor=pool)) == as_bytes(here)
    stored = kp.sparsity_sweep(*swept, **SWEEP, executor=pool, store=tmp_path)
    assert as_bytes(stored) == as_bytes(here)


@pytest.mark.slow
def test_functions_travel_to_workers_by_name(swept, processes):
    methods = {"last": tiny_study.last_units}
    here = kp.sparsity_sweep(*swept, **SWEEP, methods=methods)
    there = kp.sparsity_sweep(*swept, **SWEEP, methods=methods, executor=processes)
    assert as_bytes(there) == as_bytes(here)


def test_workers_compute_with_the_threads_asked_for(processes):
    from keras_pruning.measuring.measurements import _backend_threads

    if keras.backend.backend() == "jax":
        pytest.skip("JAX does not tell its number of threads")
    assert processes.submit(_backend_threads).result() == 1


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a policy of Linux")
def test_tasks_elsewhere_are_batch_jobs(processes):
    elsewhere = _Conditions("another process", keras.backend.backend(), threads=None)
    policy = processes.submit(_run, elsewhere, os.sched_getscheduler, (0,)).result()
    assert policy == os.SCHED_BATCH
    assert _run(replace(elsewhere, process=_THIS_PROCESS), os.sched_getscheduler, (0,)) != policy


def test_code_does_not_travel(processes):
    with pytest.raises(ValueError, match="Workers cannot import .*<lambda>"):
        kp.experiment(**STUDY | {"data": {"blobs": lambda: None}}, executor=processes)


def test_a_worker_with_another_backend_is_refused():
    with pytest.raises(RuntimeError, match="Set KERAS_BACKEND alike"):
        _run(_Conditions("another process", "another backend", None), len, ("",))


# ---- the store


def test_what_is_finished_is_not_run_again(tmp_path, table, calls):
    part = STUDY | {"methods": ("weights",), "seeds": (0,)}
    kp.experiment(**part, store=tmp_path)
    assert calls == {"_train": 1, "_measure_point": 6}
    assert as_bytes(kp.experiment(**STUDY, store=tmp_path)) == as_bytes(table)
    assert calls == {"_train": 2, "_measure_point": 24}
    assert as_bytes(kp.experiment(**STUDY, store=tmp_path)) == as_bytes(table)
    assert calls == {"_train": 2, "_measure_point": 24}


def test_a_sweep_goes_on_from_its_store(swept, tmp_path):
    first = kp.sparsity_sweep(*swept, **SWEEP | {"sparsities": (0.5,)}, store=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.csv")}
    assert len(files) == len(first) == 4
    here = kp.sparsity_sweep(*swept, **SWEEP)
    assert as_bytes(kp.sparsity_sweep(*swept, **SWEEP, store=tmp_path)) == as_bytes(here)
    assert all(path.stat().st_mtime_ns == written for path, written in files.items())


@pytest.mark.parametrize("change", [{"batch_size": 50}, {"scope": "global"}, {"layers": ["first"]}])
def test_another_sweep_has_other_files_in_the_same_store(tmp_path, change):
    (x, y), _ = tiny_study.blobs()
    model = keras.Sequential(
        [keras.Input((20,)), keras.layers.Dense(8, name="first"), keras.layers.Dense(4)]
    )
    model.compile("sgd", "mse")
    once = {"methods": ["weights"], "sparsities": [0.5], "progress": False, "store": tmp_path}
    y = keras.ops.one_hot(y, 4)
    kp.sparsity_sweep(model, x, y, **once)
    kp.sparsity_sweep(model, x, y, **once, **change)
    assert len(list(tmp_path.glob("*.csv"))) == 2


def test_another_function_of_the_same_name_has_another_file(swept, tmp_path):
    once = {"sparsities": [0.5], "progress": False, "store": tmp_path}
    for function in (tiny_study.last_units, kp.prune_weights):
        kp.sparsity_sweep(*swept, methods={"mine": function}, **once)
    assert kp.load_results(tmp_path)["sparsity_measured"].tolist() == [0.5, 0.0]


def test_load_results_gives_the_table(tmp_path, table):
    found = kp.experiment(**STUDY, store=tmp_path)
    loaded = kp.load_results(tmp_path)
    keys = ["seed", "method", "sparsity", "fine_tuning"]
    assert as_bytes(loaded[list(found)].sort_values(keys)) == as_bytes(found.sort_values(keys))


def test_damaged_files_are_made_again(tmp_path, calls):
    first = kp.experiment(**SHORT, store=tmp_path)
    calls.clear()
    next(tmp_path.glob("*.csv")).write_text("method,accuracy\nweights,1.0\n")
    next(tmp_path.glob("networks/*.keras")).write_bytes(b"PK")
    with pytest.warns(UserWarning, match="is damaged") as warned:
        assert as_bytes(kp.experiment(**SHORT, store=tmp_path)) == as_bytes(first)
    assert len([w for w in warned if "is damaged" in str(w.message)]) == 2
    assert calls == {"_train": 1, "_measure_point": 1}


def test_a_task_that_fails_costs_no_finished_result(tmp_path, calls):
    ways = {"none": None, "broken": "tiny_study:fail"}
    with pytest.raises(ArithmeticError, match="the loss is NaN") as raised:
        kp.experiment(**SHORT | {"fine_tuning": ways}, store=tmp_path)
    assert raised.value.__notes__ == [
        f"1 of 6 results are finished and kept in '{tmp_path}'. The same call goes on from there."
    ]
    assert len(kp.load_results(tmp_path)) == 1


def test_ctrl_c_keeps_the_finished_results(tmp_path):
    ways = {"none": None, "broken": "tiny_study:interrupt"}
    with pytest.raises(KeyboardInterrupt) as raised:
        kp.experiment(**SHORT | {"fine_tuning": ways}, store=tmp_path)
    assert "1 of 6 results are finished and kept" in raised.value.__notes__[0]
    assert len(kp.load_results(tmp_path)) == 1


def test_a_full_disk_is_told_with_how_far_it_came(tmp_path, monkeypatch):
    write, room = tasks.write_whole, iter([True])

    def full(*arguments):
        if next(room, False):
            return write(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tasks, "write_whole", full)
    with pytest.raises(OSError, match="No space left") as raised:
        kp.experiment(**SHORT, store=tmp_path)
    assert "1 of 3 results are finished and kept" in raised.value.__notes__[0]


def test_without_a_store_the_note_says_what_is_lost():
    ways = {"none": None, "broken": "tiny_study:fail"}
    with pytest.raises(ArithmeticError) as raised:
        kp.experiment(**SHORT | {"fine_tuning": ways})
    assert raised.value.__notes__ == [
        "1 of 6 results are finished, and lost: give a store to keep them."
    ]


def test_progress_shows_the_last_result(capsys):
    kp.experiment(**SHORT | {"progress": True})
    shown = capsys.readouterr().out
    assert "3/3" in shown and "blobs dense 0 weights 90% accuracy" in shown


# ---- kills


KILLED = STUDY | {"seeds": (0, 1, 2), "sparsities": (0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)}


def run_until_killed(folder):
    """Runs the experiment in two forked workers; each point that begins leaves a line."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    measure = study._measure_point

    def logged(network, training, point):
        line = json.dumps(training.parameters | point.parameters) + "\n"
        with open(folder / "begun", "a") as file:
            file.write(line)  # at once, since it is shorter than a buffer
        return measure(network, training, point)

    study._measure_point = logged
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        found = kp.experiment(**KILLED, executor=pool, store=folder / "store")
    (folder / "table.csv").write_bytes(as_bytes(found))


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or not hasattr(os, "fork"),
    reason="forks a process that has imported a backend and not used it",
)
def test_twenty_kills_cost_no_finished_point(tmp_path):
    folders = [str(Path(file).parent) for file in (__file__, tiny_study.__file__)]
    script = (
        f"import sys; sys.path[:0] = {[*folders, os.getcwd()]}; "
        "import test_experiment; from pathlib import Path; "
        "test_experiment.kill_again_and_again(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert sum(kill["while_running"] for kill in kills) == 20
    assert {kill["of"] for kill in kills} == {"all", "worker"}
    assert any(0 < kill["finished"] < 84 for kill in kills)
    for kill in kills:
        assert not set(kill["finished_before"]) & set(kill["begun"])  # nothing run twice
    assert (tmp_path / "table.csv").read_bytes() == as_bytes(kp.experiment(**KILLED))


def kill_again_and_again(folder):
    """Starts the experiment anew after each of twenty kills, and then lets it finish."""
    random = Random(0)
    kills = []
    while len(kills) < 20:
        kills.append(start_and_kill(folder, random, "worker" if len(kills) % 5 == 4 else "all"))
    (folder / "kills.json").write_text(json.dumps(kills))
    os.waitpid(start(folder), 0)


def start(folder):
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # so that its workers can be killed with it
        try:
            run_until_killed(folder)
        finally:
            os._exit(0)
    return child


def start_and_kill(folder, random, of):
    before, lines_before = finished(folder), begun(folder)
    child = start(folder)
    # From the first moments, when nothing has begun yet, to the midst of some later point.
    enough = len(lines_before) + (random.choice([0, 1, 2, 3, 5]) if of == "all" else 1)
    while len(begun(folder)) < enough and is_running(child):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    was_running = is_running(child)
    if of == "all":
        os.killpg(child, signal.SIGKILL)
    else:
        workers = Path(f"/proc/{child}/task/{child}/children").read_text().split()
        os.kill(int(random.choice(workers)), signal.SIGKILL)
    os.waitpid(child, 0)
    return {
        "of": of,
        "while_running": was_running,
        "finished_before": before,
        "finished": len(finished(folder)),
        "begun": begun(folder)[len(lines_before) :],
    }


def is_running(child):
    return Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] != "Z"


def begun(folder):
    path = folder / "begun"
    return path.read_text().splitlines() if path.exists() else []


def finished(folder):
    """The parameters of each finished point, as `begun` has them."""
    files = (folder / "store").glob("*.csv")
    return [json.dumps(decode_result(path.read_bytes())[0]) for path in files]


# ---- bad input


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"data": ["tiny_study:blobs"]}, TypeError, "data must be a dict of names"),
        ({"networks": {}}, ValueError, "networks is empty"),
        ({"data": {"a": "tiny_study:no_such"}}, ValueError, "no function 'tiny_study:no_such'"),
        ({"data": {"a": "no_such:blobs"}}, ValueError, "no function 'no_such:blobs'"),
        ({"data": {"a": "tiny_study"}}, ValueError, "Give it as 'module:name'"),
        ({"data": {"a": 3}}, TypeError, "a function or its name"),
        ({"data": {"a": "tiny_study:no_split"}}, ValueError, r"must return \(\(x_train, y_train\)"),
        (
            {"networks": {"a": "tiny_study:no_model"}},
            TypeError,
            "must return a compiled Keras model",
        ),
        ({"seeds": (-1,)}, ValueError, "whole numbers from 0"),
        ({"seeds": ()}, ValueError, "at least one"),
        ({"methods": ("weight",)}, ValueError, "Unknown method"),
        ({"methods": "weights"}, TypeError, "must be a list of names"),
        ({"sparsities": (50,)}, ValueError, "sparsity"),
        ({"sparsities": ()}, ValueError, "nothing to do"),
        ({"points_per_task": 0}, ValueError, "points_per_task must be a whole number from 1"),
        ({"in_flight": True}, ValueError, "in_flight must be a whole number from 1"),
    ],
)
def test_bad_input_is_named(change, error, match):
    with pytest.raises(error, match=match):
        kp.experiment(**SHORT | change)


@pytest.mark.parametrize("count, threads", [(0, 1), (2, 0), (1.5, 1), (True, 1)])
def test_processes_and_threads_are_whole_numbers(count, threads):
    with (
        pytest.raises(ValueError, match="must be a whole number from 1"),
        kp.local_processes(count, threads=threads),
    ):
        pass


@pytest.mark.parametrize("threads", [1, 2])
def test_each_process_computes_with_so_many_threads(threads):
    with kp.local_processes(1, threads=threads) as pool:
        pools = pool.submit(threadpoolctl.threadpool_info).result()
    assert {p["num_threads"] for p in pools if p["user_api"] == "blas"} == {threads}


def test_limit_threads_wants_a_whole_number():
    with pytest.raises(ValueError, match="count must be a whole number from 1"):
        kp.limit_threads(0)


def test_a_model_that_cannot_travel_is_named():
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((2,)), Own(), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="A worker cannot load the model. Register"):
        model_from_bytes(model_to_bytes(model))


SCRIPT = """
import keras_pruning as kp
{guard}
    with kp.local_processes(2) as executor:
        table = kp.experiment(
            data={{"blobs": "tiny_study:blobs"}},
            networks={{"dense": "tiny_study:train"}},
            methods=["weights"],
            sparsities=[0, 0.5],
            executor=executor,
            progress=False,
        )
    print(table["sparsity_measured"].tolist())
"""


def run_script(folder, guard):
    (folder / "study.py").write_text(SCRIPT.format(guard=guard))
    paths = [str(Path(kp.__file__).parents[1]), str(Path(tiny_study.__file__).parent)]
    return subprocess.run(
        [sys.executable, "study.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        timeout=300,
    )


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so_in_one_sentence(tmp_path):
    ran = run_script(tmp_path, "if True:")
    assert ran.returncode == 1 and ran.stdout == ""
    notes = ("I0000", "W0000", "E0000", "WARNING: All log")  # TensorFlow's
    lines = [line for line in ran.stderr.splitlines() if not line.startswith(notes)]
    assert lines[-1].endswith(
        "The workers ended as they began: in a script, call local_processes under "
        'if __name__ == "__main__": for each worker imports the script first.'
    )
    assert sum(line.startswith("Traceback") for line in lines) == 1 and len(lines) < 50


@pytest.mark.slow
def test_a_script_with_a_guard_runs(tmp_path):
    ran = run_script(tmp_path, 'if __name__ == "__main__":')
    assert ran.stdout == "[0.0, 0.5]\n", ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
def test_workers_end_with_a_parent_that_is_killed():
    script = (
        f"import sys; sys.path[:0] = {[os.getcwd()]}\n"
        "import os, time, keras_pruning as kp\n"
        "if __name__ == '__main__':\n"
        "    with kp.local_processes(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        worker = Path("/proc") / parent.stdout.readline().decode().strip()
        assert (worker / "stat").exists()
        parent.kill()
    deadline = time.monotonic() + 20
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.exists()
