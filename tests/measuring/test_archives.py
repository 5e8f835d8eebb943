"""Compressed `.keras` files: the same model to plain Keras, whole or not at all."""

import errno
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_pruning as kp

LOAD_WITHOUT_THE_LIBRARY = """
import sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
x = np.load(sys.argv[2])["x"]
state = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
assert not [name for name in sys.modules if name.startswith("keras_pruning")]
np.savez(sys.argv[3], model.predict(x, verbose=0), *state)
"""


def blobs(count=200, width=100):
    x = np.random.default_rng(0).normal(size=(count, width)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32")


@pytest.fixture(scope="module")
def trained():
    """A pruned network with the state of Adam in it."""
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(300, activation="relu"), kl.Dense(200, activation="relu"), kl.Dense(2)]
    model = kp.prune_weights(keras.Sequential([keras.Input((100,)), *layers]), 0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(*blobs(), epochs=2, verbose=0, callbacks=[kp.KeepZeros()])
    return model


def test_a_process_without_the_library_loads_weights_and_optimizer(trained, tmp_path):
    kp.save_compressed(trained, tmp_path / "model.keras")
    x, _ = blobs()
    np.savez(tmp_path / "x.npz", x=x)
    names = [tmp_path / name for name in ("model.keras", "x.npz", "found.npz")]
    ran = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_THE_LIBRARY, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found, *state = np.load(tmp_path / "found.npz").values()
    np.testing.assert_allclose(found, trained.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    ours = [keras.ops.convert_to_numpy(v) for v in trained.optimizer.variables]
    assert len(state) == len(ours) > 10
    for one, other in zip(state, ours, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_archive_has_the_members_of_kerass_own_each_packed(trained, tmp_path):
    size = kp.save_compressed(trained, tmp_path / "small.keras")
    trained.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as ours:
        with zipfile.ZipFile(tmp_path / "model.keras") as theirs:
            assert ours.namelist() == theirs.namelist()
            assert ours.read("config.json") == theirs.read("config.json")
        assert all(one.compress_type == zipfile.ZIP_DEFLATED for one in ours.infolist())
        assert ours.testzip() is None
    assert size == (tmp_path / "small.keras").stat().st_size


def test_without_90_percent_of_the_weights_the_file_is_a_seventh_as_large(trained, tmp_path):
    size = kp.save_compressed(trained, tmp_path / "small.keras", for_inference=True)
    plain = keras.Sequential.from_config(trained.get_config())  # never compiled
    plain.set_weights(trained.get_weights())
    plain.save(tmp_path / "plain.keras")
    assert size < 1 / 7 * (tmp_path / "plain.keras").stat().st_size
    assert size < 0.5 * kp.save_compressed(trained, tmp_path / "with_adam.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    x, y = blobs()
    expected = trained.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_a_quantised_model_and_one_of_several_inputs_come_back(tmp_path):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,)), keras.Input((5,))
    several = keras.Model([a, b], [kl.Dense(3)(a), kl.Dense(2)(kl.Concatenate()([a, b]))])
    quantised = keras.Sequential([keras.Input((4,)), kl.Dense(3), kl.Dense(2)])
    quantised.quantize("int8")
    x = [np.eye(6, 4, dtype="float32"), np.eye(6, 5, dtype="float32")]
    for model, inputs in ((several, x), (quantised, x[0])):
        kp.save_compressed(model, tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        expected = keras.tree.flatten(model.predict(inputs, verbose=0))
        found = keras.tree.flatten(loaded.predict(inputs, verbose=0))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["model", "model.h5", "model.keras.gz"])
def test_another_ending_is_refused(trained, tmp_path, name):
    with pytest.raises(ValueError, match=f"must end in '.keras'.*{name}"):
        kp.save_compressed(trained, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_is_no_built_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Expected a Keras model. Received: int"):
        kp.save_compressed(3, tmp_path / "model.keras")
    with pytest.raises(ValueError, match="is not built"):
        kp.save_compressed(keras.Sequential([kl.Dense(2)]), tmp_path / "model.keras")


def test_a_full_disk_leaves_the_old_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kp.save_compressed(trained, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_or_may_not_be_written_to_is_an_error(trained, tmp_path):
    with pytest.raises(FileNotFoundError):
        kp.save_compressed(trained, tmp_path / "missing" / "model.keras")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(PermissionError):
        kp.save_compressed(trained, folder / "model.keras")
    assert not list(folder.iterdir())


def test_a_file_keeps_its_permissions_and_a_link_what_it_points_to(trained, tmp_path):
    (tmp_path / "private.keras").write_bytes(b"old")
    (tmp_path / "private.keras").chmod(0o600)
    (tmp_path / "link.keras").symlink_to(tmp_path / "private.keras")
    size = kp.save_compressed(trained, tmp_path / "link.keras")
    assert (tmp_path / "link.keras").is_symlink()
    assert (tmp_path / "private.keras").stat().st_size == size
    assert (tmp_path / "private.keras").stat().st_mode & 0o777 == 0o600
