"""The store of results: whole files or none, read back to the last digit."""

import os
import time
import warnings

import numpy as np
import pandas as pd
import pytest

import keras_pruning as kp
from keras_pruning.measuring import write_whole
from keras_pruning.studies import store

TASK = {"data": "blobs", "seed": 0, "sparsity": 0.5, "layers": None}
TABLE = pd.DataFrame(
    {
        "method": ["weights", "none", "NA"],
        "accuracy": [0.1 + 0.2, 1 / 3, np.nan],
        "nonzero": [3, 2**53 + 1, 0],
        "is_whole": [True, False, True],
        "seed": pd.array([0, None, 2], "Int64"),
    }
)


def write(folder, parameters=TASK, table=TABLE):
    path = store.task_path(store.open_store(folder), parameters)
    write_whole(path, store.encode_result(parameters, table))
    return path


def test_a_result_is_read_back_to_the_last_digit_and_type(tmp_path):
    table = store.read_result(write(tmp_path), TASK)
    pd.testing.assert_frame_equal(table, TABLE, check_exact=True)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
def test_others_may_read_a_result_if_they_may_read_new_files(tmp_path):
    (tmp_path / "new").touch()
    assert write(tmp_path).stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_task_without_a_file_is_not_finished(tmp_path):
    assert store.read_result(store.task_path(tmp_path, TASK), TASK) is None


def test_the_file_tells_parameters_and_versions(tmp_path):
    content = write(tmp_path).read_text()
    assert '"sparsity": 0.5' in content and '"numpy": "' in content and '"keras": "' in content


def test_the_name_of_the_file_can_be_read(tmp_path):
    assert store.task_path(tmp_path, TASK).name.startswith("blobs-0-0.5-")


@pytest.mark.parametrize("change", [{"seed": 1}, {"data": "Blobs"}, {"sparsity": 0.5000000001}])
def test_other_tasks_have_other_files(tmp_path, change):
    assert store.task_path(tmp_path, TASK) != store.task_path(tmp_path, TASK | change)


def test_the_order_of_parameters_does_not_matter(tmp_path):
    backwards = dict(reversed(TASK.items()))
    assert (
        store.task_path(tmp_path, TASK).name[-20:]
        == (store.task_path(tmp_path, backwards).name[-20:])
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content.replace(b"weights", b"weighty"),
        lambda content: content.replace(b"numpy", b"NUMPY"),
        lambda content: b"\x00" * len(content),
    ],
)
def test_a_damaged_file_is_set_aside_with_a_warning(tmp_path, damage):
    path = write(tmp_path)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="is damaged .* will be run again"):
        assert store.read_result(path, TASK) is None
    assert not path.exists()
    assert path.with_name(path.name + ".damaged").read_bytes() == damaged


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = write(tmp_path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, table=TABLE.head(1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleared_later(tmp_path):
    young, old = tmp_path / "young.unfinished", tmp_path / "old.unfinished"
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    store.open_store(tmp_path)
    assert young.exists() and not old.exists()


def test_load_results_puts_all_tasks_in_the_order_of_their_parameters(tmp_path):
    row = pd.DataFrame({"accuracy": [0.5]})
    for sparsity in (0.9, 0.1, 0.55):
        write(tmp_path, TASK | {"sparsity": sparsity}, row)
    table = kp.load_results(tmp_path)
    assert table["sparsity"].tolist() == [0.1, 0.55, 0.9]
    assert list(table) == ["data", "seed", "sparsity", "layers", "accuracy"]


def test_load_results_orders_numbers_as_numbers(tmp_path):
    for seed in (10, 2):  # whose files are in the order of their names
        write(tmp_path, TASK | {"seed": seed}, pd.DataFrame({"accuracy": [0.5]}))
    assert kp.load_results(tmp_path)["seed"].tolist() == [2, 10]


def test_load_results_leaves_out_what_is_damaged(tmp_path):
    row = pd.DataFrame({"accuracy": [0.5]})
    write(tmp_path, TASK, row)
    write(tmp_path, TASK | {"seed": 1}, row).write_text("nothing")
    with pytest.warns(UserWarning, match="is damaged"):
        assert kp.load_results(tmp_path)["seed"].tolist() == [0]


def test_two_processes_may_set_the_same_file_aside(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.set_aside(tmp_path / "gone.csv", "it was damaged")


def test_no_store_or_an_empty_one_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no store .*none"):
        kp.load_results(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no finished result"):
        kp.load_results(tmp_path)


def test_a_file_as_store_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: give the name of a folder"):
        store.open_store(tmp_path / "file")


def test_parameters_must_be_plain_values(tmp_path):
    with pytest.raises(TypeError, match="must be strings, numbers, booleans or None"):
        store.task_path(tmp_path, {"x": np.ones(2)})


def test_a_file_of_another_task_is_not_taken(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ValueError, match="holds the result of another task"):
        store.read_result(path, TASK | {"seed": 1})
