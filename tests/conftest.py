"""Set-up that every test shares."""

import importlib
import importlib.util
import os
from pathlib import Path

import pytest

# Before the first import of TensorFlow and matplotlib, which read these only once.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["MPLBACKEND"] = "Agg"

# The tutorial and LiteRT stand on TensorFlow, and documents and figures on no backend: tested
# there alone.
IS_TENSORFLOW = os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow"
if not IS_TENSORFLOW:
    collect_ignore = ["tutorial", "documentation", "plots", "measuring/test_litert.py"]


def pytest_configure(config):
    if importlib.util.find_spec("numba") is None:  # then each SparseModel says so
        config.addinivalue_line("filterwarnings", "ignore:numba is not installed")


def pytest_collection_modifyitems(items):
    examples = [item for item in items if item.name.startswith("keras_pruning.measuring.litert")]
    if examples and not writes_litert():
        for item in examples:
            item.add_marker(pytest.mark.skip(reason="this Keras cannot write LiteRT files"))


def writes_litert() -> bool:
    keras = importlib.import_module("keras")
    return IS_TENSORFLOW and "litert" in keras.Model.export.__doc__


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder with MNIST and Fashion-MNIST as TFDS prepares them; without one the test skips."""
    default = ROOT.parent / "shared" / "tensorflow_datasets"
    folder = Path(os.environ.get("TFDS_DATA_DIR") or default).expanduser()
    for name in ("mnist", "fashion_mnist"):
        if not (folder / name).is_dir():
            pytest.skip(f"no prepared {name}: set TFDS_DATA_DIR to a folder that holds it")
    return folder.resolve()
