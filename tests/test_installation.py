"""What an installation needs, and what is said where a part of it is missing."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import pytest

import keras_pruning as kp


def in_python(code: str, *missing: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh Python where some packages are as if they were not installed."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    path = os.pathsep.join([str(Path(kp.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", blocked + code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def last_line(ran: subprocess.CompletedProcess[str]) -> str:
    return ran.stderr.strip().splitlines()[-1]


def test_without_any_backend_one_sentence_names_the_three():
    ran = in_python("import keras_pruning", "tensorflow", "jax", "torch")
    assert ran.returncode == 1
    assert last_line(ran).startswith("ImportError: Keras has no backend here")
    assert all(name in last_line(ran) for name in ("tensorflow", "jax", "torch", "KERAS_BACKEND"))


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_where_kerass_backend_is_missing_the_ones_that_are_there_are_named(backend):
    if importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is installed")
    code = f"import os; os.environ['KERAS_BACKEND'] = '{backend}'; import keras_pruning as kp; "
    told = last_line(in_python(code + "kp.prune_weights"))
    assert told.startswith(f"ImportError: Keras is set to compute with {backend}, which is not")
    assert f"KERAS_BACKEND to {keras.backend.backend()}" in told


MODEL = """
import keras, numpy as np, keras_pruning as kp
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
x, y = np.zeros((6, 4)), np.zeros(6, int)
"""
NEEDS_EXTRA = {
    "plots": ("matplotlib", "import keras_pruning.plots"),
    "panel": ("ipywidgets", "from keras_pruning.plots.panel import explore; explore(model, x, y)"),
    "litert": (
        "ai_edge_litert",  # and of TensorFlow, which has an interpreter too, that alone
        "import sys, types; sys.modules['tensorflow'] = types.ModuleType('tensorflow')\n"
        "from keras_pruning.measuring.litert import _interpreter_class; _interpreter_class()",
    ),
    "cluster": (
        "distributed",
        "from keras_pruning import commands; commands._dask_client('tcp://127.0.0.1:1')",
    ),
}


@pytest.mark.parametrize("extra", NEEDS_EXTRA)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(extra):
    package, code = NEEDS_EXTRA[extra]
    if extra == "panel":
        pytest.importorskip("matplotlib")
    ran = in_python(MODEL + code, package)
    assert ran.returncode == 1
    assert f'pip install "keras-pruning[{extra}]"' in last_line(ran)


def test_without_numba_a_sparse_model_says_so_and_answers_the_same():
    code = MODEL + (
        "import warnings; warnings.simplefilter('always')\n"
        "x = np.random.default_rng(0).normal(size=(5, 4)).astype('float32')\n"
        "sparse = kp.SparseModel(model)\n"
        "np.testing.assert_allclose(sparse.predict(x), model.predict(x, verbose=0), atol=1e-5)\n"
    )
    ran = in_python(code, "numba")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count('pip install "keras-pruning[sparse]"') == 1


def names_and_bounds(lines: list[str]) -> dict[str, str]:
    found = [re.match(r"([\w-]+)(>=[\d.]+)", line) for line in lines]
    return {match[1].lower(): match[2] for match in found if match}


def test_the_packages_lists_agree_with_the_tutorials(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tutorial = names_and_bounds((root / "requirements.txt").read_text().splitlines())
    core = names_and_bounds(project["dependencies"])
    listed = core | names_and_bounds([*extras["sparse"], *extras["plots"], *extras["tutorial"]])
    assert tutorial.items() <= listed.items()  # one bound each, in both places
    assert listed.keys() - tutorial.keys() <= {"ml-dtypes"}  # which Keras brings
    assert not core.keys() & {"tensorflow", "jax", "torch", "jupyter", "scikit-learn", "matplotlib"}
    one_by_one = {name for name in extras if name not in ("all", "tutorial")}
    assert set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(",")) == one_by_one


def test_the_version_is_that_of_the_change_log(root):
    released = re.findall(
        r"^## (\S+) - \d{4}-\d\d-\d\d$", (root / "CHANGELOG.md").read_text(), re.M
    )
    assert released[0] == kp.__version__
