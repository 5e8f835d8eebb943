"""The command line: what it prints and writes, and how it ends."""

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest
import tiny_study

import keras_pruning as kp
from keras_pruning import commands
from keras_pruning.__main__ import _METHODS, main
from keras_pruning.studies.sweep import METHODS


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A trained model and its test data, as a user has them."""
    folder = tmp_path_factory.mktemp("study")
    (x, y), (x_test, y_test) = tiny_study.blobs()
    keras.utils.set_random_seed(0)
    model = tiny_study.train(x, y, seed=0)
    model.save(folder / "model.keras")
    np.savez(folder / "test.npz", x=x_test, y=y_test)
    return folder, model, x_test, y_test


@pytest.fixture
def files(study, tmp_path, monkeypatch):
    """The current folder, with model.keras and test.npz in it."""
    for path in study[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


SWEEP = ["sweep", "model.keras", "--data", "test.npz", "--sparsities", "0", "0.5", "0.9"]
COMMANDS = ["sweep", "prune", "finetune", "export", "summary", "measure"]
PRUNE = ["prune", "model.keras", "--method", "units", "--sparsity", "0.5", "-o", "out.keras"]


def error_of(arguments, capsys, code=2):
    assert main(arguments) == code
    return capsys.readouterr().err


# ---- what the commands do


def test_sweep_writes_and_prints_the_table_of_sparsity_sweep(files, study, capsys):
    _, model, x, y = study
    options = ["--methods", "units", "random_weights", "--repeats", "2", "--seed", "3"]
    assert main([*SWEEP, *options, "-o", "table.csv"]) == 0
    expected = kp.sparsity_sweep(
        model,
        x,
        y,
        methods=["units", "random_weights"],
        sparsities=(0, 0.5, 0.9),
        repeats=2,
        seed=3,
        progress=False,
    )
    assert (files / "table.csv").read_text() == expected.to_csv(index=False)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(expected)
    assert printed[0].split() == list(expected)


@pytest.mark.slow
def test_sweep_on_processes_gives_the_same_table(files):
    assert main([*SWEEP, "-o", "here.csv"]) == 0
    assert main([*SWEEP, "-o", "there.csv", "--workers", "2"]) == 0
    assert (files / "there.csv").read_bytes() == (files / "here.csv").read_bytes()


@pytest.mark.slow
def test_sweep_on_a_dask_scheduler_gives_the_same_table(files):
    distributed = pytest.importorskip("distributed")
    assert main([*SWEEP, "-o", "here.csv"]) == 0
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        there = [*SWEEP, "-o", "there.csv", "--scheduler", cluster.scheduler_address]
        assert main(there) == 0
    assert (files / "there.csv").read_bytes() == (files / "here.csv").read_bytes()


def test_sweep_keeps_its_points_in_a_store(files):
    assert main([*SWEEP, "--store", "results"]) == 0
    assert len(kp.load_results(files / "results")) == 9


@pytest.mark.parametrize("method, expected", [("weights", 692), ("units", 668)])
def test_prune_writes_the_pruned_model(files, study, capsys, method, expected):
    arguments = [method if word == "units" else word for word in PRUNE]
    assert main(arguments) == 0
    prune = kp.prune_weights if method == "weights" else kp.prune_units
    written = keras.saving.load_model(files / "out.keras")
    for array, other in zip(written.get_weights(), prune(study[1], 0.5).get_weights(), strict=True):
        np.testing.assert_array_equal(array, other)
    assert f"out.keras: 1,268 parameters, {expected:,} of them not zero" in capsys.readouterr().out


def test_prune_and_measure_count_the_same_bytes_of_a_file(files, study, capsys):
    assert main(PRUNE) == 0
    printed = capsys.readouterr().out.splitlines()
    assert main(["measure", "model.keras", "out.keras", "--batch-sizes", "1", "-o", "m.csv"]) == 0
    measured = pd.read_csv(files / "m.csv")["file_bytes"].tolist()
    for line, size in zip(printed, measured, strict=True):
        assert line.endswith(f", {size:,} bytes without the optimizer")
    plain = keras.Sequential.from_config(study[1].get_config())  # never compiled
    plain.set_weights(study[1].get_weights())
    plain.save(files / "plain.keras")
    assert abs(measured[0] - (files / "plain.keras").stat().st_size) < 200
    assert (files / "model.keras").stat().st_size > measured[0] + 2 * 4 * 1268


def test_printed_tables_separate_thousands_and_show_no_empty_column(files, study, capsys):
    wide = keras.Sequential([keras.Input((20,)), keras.layers.Dense(700), keras.layers.Dense(4)])
    wide.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wide.save(files / "model.keras")
    assert main([*SWEEP, "--methods", "weights"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = kp.sparsity_sweep(wide, *study[2:], methods=["weights"], sparsities=(0, 0.5, 0.9))
    assert table["seed"].isna().all()
    assert lines[0] == [name for name in table if name != "seed"]
    assert lines[1][lines[0].index("parameters")] == "17,504"
    assert [line[1] for line in lines[1:]] == ["0", "0.5", "0.9"]  # shares, no percent
    capsys.readouterr()
    keras.Sequential([keras.Input((7,)), keras.layers.Embedding(500, 4)]).save("embedding.keras")
    assert main(["summary", "embedding.keras"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert "units" not in header.split() and "2,000" in row.split()


def test_prune_compresses_if_asked(files, study, capsys):
    assert main([*PRUNE, "--compress"]) == 0
    size = (files / "out.keras").stat().st_size
    assert capsys.readouterr().out.endswith(f"out.keras: compressed, {size:,} bytes\n")
    assert main([*PRUNE[:-1], "plain.keras"]) == 0
    small, plain = (keras.saving.load_model(files / name) for name in ("out.keras", "plain.keras"))
    for array, other in zip(small.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(array, other)
    assert size < 0.4 * (files / "plain.keras").stat().st_size


@pytest.mark.parametrize("options", [[], ["--learning-rate", "0.02"]])
def test_finetune_trains_on_and_keeps_the_zeros(files, study, capsys, options):
    _, model, x, y = study
    np.savez(files / "train.npz", x_train=x, y_train=y)
    pruned = kp.prune_weights(model, 0.8)
    pruned.save(files / "pruned.keras")
    words = ["finetune", "pruned.keras", "--data", "train.npz", "--epochs", "3", *options]
    assert main([*words, "-o", "out.keras"]) == 0
    tuned = keras.saving.load_model(files / "out.keras")
    for array, other in zip(tuned.get_weights(), pruned.get_weights(), strict=True):
        assert array.ndim == 1 or ((array == 0) == (other == 0)).all()
        assert not np.array_equal(array, other)
    loss, accuracy = tuned.evaluate(x, y, verbose=0)
    assert loss < pruned.evaluate(x, y, verbose=0)[0] and accuracy > 0.5
    steps = 3 * -(-len(x) // 128)
    assert int(tuned.optimizer.iterations) == int(model.optimizer.iterations) + steps
    rate = 0.02 if options else float(model.optimizer.learning_rate)
    assert float(tuned.optimizer.learning_rate) == pytest.approx(rate)
    assert type(tuned.optimizer) is type(model.optimizer)
    assert len(capsys.readouterr().out.splitlines()) == 1  # progress is no output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs must be a whole number from 1"),
        (["--batch-size", "0"], "--batch-size must be a whole number from 1"),
        (["--learning-rate", "-1"], "--learning-rate must be above 0"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0"),
        (["--learning-rate", "1e38"], "The loss is no number any more"),
        (["--data", "nothing.npz"], "holds no examples"),
    ],
)
def test_finetune_refuses_what_trains_nothing(files, study, capsys, options, message):
    _, model, x, y = study
    np.savez(files / "train.npz", x_train=x, y_train=y)
    np.savez(files / "nothing.npz", x_train=x[:0], y_train=y[:0])
    words = ["finetune", "model.keras", "--data", "train.npz", "-o", "out.keras", *options]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (files / "out.keras").exists()


def test_export_writes_a_small_keras_file_for_inference(files, study, capsys):
    _, model, x, y = study
    assert main(["export", "model.keras", "-o", "small.keras"]) == 0
    size = (files / "small.keras").stat().st_size
    assert capsys.readouterr().out.endswith(f"small.keras: compressed, {size:,} bytes\n")
    assert size < 0.5 * (files / "model.keras").stat().st_size
    loaded = keras.saving.load_model(files / "small.keras")
    found, expected = loaded.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or "litert" not in keras.Model.export.__doc__,
    reason="LiteRT files are written on TensorFlow, by a newer Keras",
)
def test_export_writes_a_litert_file_and_says_how_it_is_stored(files, study, capsys):
    _, model, x, _ = study
    wide = keras.Sequential([*model.layers[:1], keras.layers.Dense(100), keras.layers.Dense(4)])
    wide.build((None, 20))
    kp.prune_weights(wide, 0.95).save(files / "model.keras")
    wanted = {"": "sparse float32", "--dense": "dense float32", "--dense --int8": "dense int8"}
    for options, stored in wanted.items():
        assert main(["export", "model.keras", *options.split(), "-o", "a.tflite", "--force"]) == 0
        size = (files / "a.tflite").stat().st_size
        assert capsys.readouterr().out.endswith(f"a.tflite: {stored}, {size:,} bytes\n")
        expected = keras.saving.load_model(files / "model.keras").predict(x, verbose=0)
        atol = (0.03 if "int8" in stored else 1e-5) * np.abs(expected).max()
        np.testing.assert_allclose(kp.litert_predict("a.tflite", x), expected, atol=atol)


def test_prune_shrinks_if_asked(files, study, capsys):
    assert main([*PRUNE, "--shrink"]) == 0
    written = keras.saving.load_model(files / "out.keras")
    x = study[2]
    expected = kp.prune_units(study[1], 0.5).predict(x, verbose=0)
    np.testing.assert_allclose(written.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    assert written.count_params() == 508
    assert "out.keras: 508 parameters" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x", "x_train"])
def test_prune_refits_if_asked(files, study, name):
    _, model, x, _ = study
    np.savez(files / "train.npz", **{name: x, "x_test": 0 * x})
    assert main([*PRUNE, "--reconstruct", "train.npz", "--shrink"]) == 0
    expected = kp.reconstruct(kp.prune_units(model, 0.5), model, x, progress=False)
    written = keras.saving.load_model(files / "out.keras")
    np.testing.assert_allclose(
        written.predict(x, verbose=0), expected.predict(x, verbose=0), rtol=1e-3, atol=1e-3
    )
    assert written.count_params() == 508


def test_prune_takes_layers(files, study):
    name = study[1].layers[1].name
    assert main([*PRUNE, "--layers", name]) == 0
    table = kp.summary(keras.saving.load_model(files / "out.keras"))
    assert table["zero_units"].tolist() == [0, 8, 0]


def test_summary_prints_a_row_a_layer(files, study, capsys):
    assert main(["summary", "model.keras", "-o", "layers.csv"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["layer", *(x.name for x in study[1].layers)]
    assert pd.read_csv(files / "layers.csv")["weights"].tolist() == [640, 512, 64]


def test_measure_puts_models_side_by_side(files, study, capsys):
    assert main([*PRUNE, "--shrink"]) == 0
    capsys.readouterr()
    measured = ["measure", "model.keras", "out.keras", "--data", "test.npz", "--batch-sizes", "8"]
    assert main(measured) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "model.keras", "out.keras"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    accuracy = study[1].evaluate(*study[2:], verbose=0, return_dict=True)["accuracy"]
    assert float(rows["accuracy"][0]) == pytest.approx(accuracy, abs=1e-3)
    assert rows["parameters"] == ["1,268", "508"]
    assert float(rows["batch_8_ms"][1]) > 0


def test_measure_without_data_takes_random_inputs_and_says_so(files, capsys):
    assert main(["measure", "model.keras", "--batch-sizes", "1"]) == 0
    shown = capsys.readouterr()
    assert "256 random inputs, no accuracy" in shown.err
    assert "accuracy" not in shown.out and "batch_1_ms" in shown.out


def test_inputs_take_the_model_s_shape_where_axes_of_one_differ(files, study, capsys):
    _, _, x, y = study
    np.savez(files / "test.npz", x_test=x[:, :, None], y_test=y)
    assert main([*SWEEP, "-o", "axis.csv"]) == 0
    np.savez(files / "test.npz", x=x, y=y)
    assert main([*SWEEP, "-o", "plain.csv"]) == 0
    assert (files / "axis.csv").read_bytes() == (files / "plain.csv").read_bytes()


# ---- nothing is overwritten


@pytest.mark.parametrize("arguments", [PRUNE, [*SWEEP, "-o", "out.keras"]], ids=["prune", "sweep"])
def test_an_existing_file_is_kept_without_force(files, capsys, arguments):
    (files / "out.keras").write_text("precious")
    assert "'out.keras' exists. Give another name, or --force" in error_of(arguments, capsys)
    assert (files / "out.keras").read_text() == "precious"
    assert main([*arguments, "--force"]) == 0
    assert (files / "out.keras").read_bytes() != b"precious"


def test_the_input_is_not_overwritten_either(files, capsys):
    before = (files / "model.keras").read_bytes()
    assert "exists" in error_of([*PRUNE[:-1], "model.keras"], capsys)
    assert (files / "model.keras").read_bytes() == before


# ---- how it ends


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["summary", "none.keras"], "There is no file 'none.keras'"),
        (["summary", "test.npz"], "'test.npz' cannot be loaded"),
        (["summary", "text.keras"], "'text.keras' is no .keras file: model.save"),
        ([*SWEEP[:3], "none.npz"], "There is no file 'none.npz'"),
        ([*SWEEP[:3], "text.npz"], "'text.npz' is no .npz file of arrays"),
        ([*SWEEP[:3], "other.npz"], "must hold the arrays x and y, or x_test and y_test. It holds"),
        ([*SWEEP[:3], "wide.npz"], r"have the shape (30,), the model takes (20,)"),
        ([*SWEEP[:3], "short.npz"], "the same number of examples"),
        ([*SWEEP, "--sparsities", "50"], "sparsity"),
        ([*SWEEP, "--workers", "0"], "count must be a whole number from 1"),
        ([*SWEEP, "-o", "none/table.csv"], "There is no folder 'none' for 'table.csv'"),
        ([*PRUNE, "--layers", "no_such"], "no_such"),
        ([*PRUNE[:-1], "out.h5"], "must end in .keras"),
        (
            ["finetune", "model.keras", "--data", "none.npz", "-o", "out.keras"],
            "no file 'none.npz'",
        ),
        (["finetune", "plain.keras", "--data", "test.npz", "-o", "out.keras"], "no loss to train"),
        (
            ["finetune", "model.keras", "--data", "other.npz", "-o", "out.keras"],
            "x_train and y_tra",
        ),
        (["export", "model.keras", "-o", "out.h5"], "must end in .tflite or .keras: 'out.h5'"),
        (["export", "model.keras", "--int8", "-o", "out.keras"], "--int8 and --dense are for .tf"),
        ([*PRUNE, "--reconstruct", "none.npz"], "There is no file 'none.npz'"),
        ([*PRUNE, "--reconstruct", "other.npz"], "must hold the arrays x, or x_train. It holds"),
        ([*PRUNE, "--reconstruct", "wide.npz"], r"have the shape (30,), the model takes (20,)"),
    ],
)
def test_what_cannot_be_used_is_named(files, study, capsys, arguments, message):
    _, _, x, y = study
    (files / "text.keras").write_text("text")
    (files / "text.npz").write_text("text")
    keras.Sequential([keras.Input((20,)), keras.layers.Dense(2)]).save(files / "plain.keras")
    np.savez(files / "other.npz", a=x)
    np.savez(files / "wide.npz", x=np.ones((5, 30)), y=np.ones(5))
    np.savez(files / "short.npz", x=x, y=y[:-1])
    error = error_of(arguments, capsys)
    assert error.splitlines()[-1].startswith("keras_pruning: error: ")
    assert message in error and "Traceback" not in error


def test_pickled_arrays_are_refused(files, capsys):
    np.savez(files / "test.npz", x=np.array([{}]), y=np.ones(1))
    assert "is no .npz file of arrays" in error_of(SWEEP, capsys)


def test_a_model_that_is_not_compiled_is_told_what_to_do(files, capsys):
    keras.Sequential([keras.Input((20,)), keras.layers.Dense(4)]).save(files / "model.keras")
    assert "Call model.compile(...) first" in error_of(SWEEP, capsys)


def test_a_scheduler_that_does_not_answer_is_named(files, capsys, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(commands, "_CONNECT_SECONDS", 1)
    error = error_of([*SWEEP, "--scheduler", "tcp://127.0.0.1:9"], capsys)
    assert "No Dask scheduler answers at 'tcp://127.0.0.1:9'" in error


@pytest.mark.parametrize(
    ("package", "words", "named"),
    [
        ("distributed", [*SWEEP, "--scheduler", "tcp://127.0.0.1:9"], '"keras-pruning[cluster]"'),
        ("tensorflow_datasets", [*SWEEP[:3], "mnist"], "tensorflow-datasets"),
    ],
)
def test_a_package_that_is_missing_is_named(files, capsys, monkeypatch, package, words, named):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install {named}" in error_of(words, capsys)


def test_a_data_set_that_is_not_prepared_is_named(files, capsys):
    pytest.importorskip("tensorflow_datasets")
    error = error_of([*SWEEP[:3], "no_such_data"], capsys)
    assert "has prepared no data set 'no_such_data'" in error and "tfds.load(" in error


def test_a_failure_of_the_work_is_exit_code_1(files, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "write_whole", full)
    assert "failed: OSError: [Errno 28] No space left" in error_of(PRUNE, capsys, code=1)


def test_ctrl_c_is_exit_code_130_and_tells_how_far_it_came(files, capsys, monkeypatch):
    sweep = sys.modules["keras_pruning.studies.sweep"]
    begun, measured_row = itertools.count(1), sweep.measured_row

    def stop_at_the_third(*arguments):
        if next(begun) == 3:
            raise KeyboardInterrupt
        return measured_row(*arguments)

    monkeypatch.setattr(sweep, "measured_row", stop_at_the_third)
    error = error_of([*SWEEP, "--store", "results"], capsys, code=130)
    finished = len(list(files.glob("results/*.csv")))
    assert 2 <= finished < 9
    assert "keras_pruning: stopped." in error
    assert f"{finished} of 9 results are finished and kept in 'results'. The same call" in error
    assert main([*SWEEP, "--store", "results"]) == 0
    assert next(begun) == 1 + 10  # each point once, but for the one that was stopped


def in_a_fresh_python(code, root, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
    )


def test_help_and_wrong_words_are_answered_before_keras_is_imported(root):
    ran = in_a_fresh_python(
        "import runpy, sys\n"
        "for words in (['--help'], ['sweep', '--help'], ['prun']):\n"
        "    sys.argv[1:] = words\n"
        "    try:\n"
        "        runpy.run_module('keras_pruning', run_name='__main__')\n"
        "    except SystemExit as ended:\n"
        "        print('ended with', ended.code)\n"
        "slow = {'keras', 'tensorflow', 'jax', 'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
        "print('imported:', sorted(slow))\n",
        root,
    )
    ended = [line for line in ran.stdout.splitlines() if line.startswith("ended")]
    assert ended == ["ended with 0", "ended with 0", "ended with 2"]
    assert ran.stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_without_its_backend_one_sentence_says_what_to_install(root, backend):
    if importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is installed")
    ran = in_a_fresh_python(
        "import sys\n"
        "from keras_pruning.__main__ import main\n"
        "sys.exit(main(['summary', 'model.keras']))",
        root,
        KERAS_BACKEND=backend,
    )
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.splitlines()[-1].startswith(
        f"keras_pruning: error: Keras is set to compute with {backend}, which is not installed "
        "here. Install it, or set the environment variable KERAS_BACKEND to "
    )
    assert f"KERAS_BACKEND to {keras.backend.backend()}" in ran.stderr


def test_the_methods_to_choose_from_are_those_of_the_sweep():
    assert _METHODS == METHODS


def test_the_package_loads_its_names_when_they_are_used(root):
    ran = in_a_fresh_python(
        "import sys\n"
        "import keras_pruning as kp\n"
        "assert set(kp.__all__) <= set(dir(kp)) and 'keras' not in sys.modules\n"
        "from keras_pruning.measuring import compare\n"
        "assert kp.compare is compare and callable(kp.measure) and 'keras' in sys.modules\n"
        "from keras_pruning import *\n"
        "assert prune_weights is kp.prune_weights\n"
        "assert shrink.__module__ == 'keras_pruning.channels.shrinking'\n"
        "import keras_pruning.studies.experiments\n"
        "assert callable(kp.experiment) and all(hasattr(kp, name) for name in kp.__all__)\n"
        "try:\n"
        "    kp.prune_wieghts\n"
        "except AttributeError as error:\n"
        "    print(error)\n",
        root,
    )
    assert ran.stdout == "module 'keras_pruning' has no attribute 'prune_wieghts'\n", ran.stderr


def test_a_wrong_word_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["prun"])
    assert ended.value.code == 2
    assert "invalid choice: 'prun'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], *([word] for word in COMMANDS)])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "examples:\n  keras-pruning " in capsys.readouterr().out


@pytest.mark.slow
def test_the_module_runs_as_a_program(root):
    ran = subprocess.run(
        [sys.executable, "-m", "keras_pruning", "summary", "none.keras"],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert ran.returncode == 2 and ran.stdout == ""
    *notes, told = ran.stderr.splitlines()
    assert told == "keras_pruning: error: There is no file 'none.keras'."
    assert not any("Traceback" in note for note in notes)  # TensorFlow's, while it is imported


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a group of processes")
def test_a_real_ctrl_c_ends_the_workers_and_keeps_what_is_finished(files, root):
    arguments = [*SWEEP, "--repeats", "2000", "--workers", "2", "--store", "results"]
    with subprocess.Popen(
        [sys.executable, "-m", "keras_pruning", *arguments],
        env=os.environ | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as program:
        while not list(files.glob("results/*.csv")):
            assert program.poll() is None
            time.sleep(0.1)
        os.killpg(program.pid, signal.SIGINT)  # as a terminal does: workers get it too
        error = program.communicate(timeout=60)[1]
    assert program.returncode == 130
    assert "keras_pruning: stopped." in error and "Traceback" not in error
    finished = len(list(files.glob("results/*.csv")))
    assert f"{finished} of 6006 results are finished and kept in 'results'" in error
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):  # soon nobody is left of the group
        while time.monotonic() < deadline:
            os.killpg(program.pid, 0)
            time.sleep(0.1)
