import dataclasses
import functools
import http.server
import json
import re
import shutil
import socket
import sys
import threading
import time
import types
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import requests

import pruning_utils as pu

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = ROOT.parent / "shared" / "tensorflow_datasets"
TINY_TRAIN, TINY_TEST = 30, 20
INFO = "dataset_info.json"
TRAIN_SHARD = "mnist-train.tfrecord-00000-of-00001"
TEST_SHARD = "mnist-test.tfrecord-00000-of-00001"


def write_tiny(data_dir, name="mnist", image_shape=(28, 28, 1)):
    """Random images in the format of TFDS; image i has the label i modulo 10."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def split(size):
        images = np.random.default_rng(size).integers(0, 256, (size, *image_shape))
        return tf.data.Dataset.from_tensor_slices(
            {"image": images.astype(np.uint8), "label": np.arange(size) % 10}
        )

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="3.0.1",
        data_dir=str(data_dir),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=image_shape),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={"train": split(TINY_TRAIN), "test": split(TINY_TEST)},
        disable_shuffling=True,
    )
    return Path(data_dir, name, "3.0.1")


@pytest.fixture(scope="module")
def tiny_original(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_original, tmp_path, monkeypatch):
    """The directory of a small prepared "mnist", which the test may damage."""
    directory = tmp_path / "mnist" / "3.0.1"
    shutil.copytree(tiny_original, directory)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return directory


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def empty_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def digits():
    return pu.load_dataset("digits")


# The digits of scikit-learn


def test_digits_are_small_uint8_images_with_int64_labels(digits):
    assert digits.x_train.shape == (1400, 8, 8)
    assert digits.x_test.shape == (397, 8, 8)
    assert digits.x_train.dtype == digits.x_test.dtype == np.uint8
    assert digits.y_train.dtype == digits.y_test.dtype == np.int64
    assert digits.image_shape == (8, 8)


def test_digits_use_the_full_range_of_grey_levels(digits):
    levels = np.unique(digits.x_train)
    np.testing.assert_array_equal(levels, np.rint(np.arange(17) * 255 / 16))


def test_digits_are_never_called_mnist(digits):
    assert digits.name == "digits"
    assert digits.title == "Digits (scikit-learn, 8×8)"


def test_digits_have_each_class_in_the_same_share_of_both_parts(digits):
    train_share = np.bincount(digits.y_train) / len(digits.y_train)
    test_share = np.bincount(digits.y_test) / len(digits.y_test)
    assert digits.class_names == tuple("0123456789")
    np.testing.assert_allclose(train_share, test_share, atol=0.003)


def test_digits_are_those_of_scikit_learn_each_once(digits):
    from sklearn.datasets import load_digits

    ours = np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 64)
    theirs = np.rint(load_digits().images * 255 / 16).reshape(-1, 64)
    np.testing.assert_array_equal(
        ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)].astype(np.uint8)
    )


def test_digits_are_split_alike_each_time(digits):
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    again = pu.load_dataset("digits")
    np.testing.assert_array_equal(again.x_train, digits.x_train)
    np.testing.assert_array_equal(again.y_test, digits.y_test)


# Names and sizes


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"'cifar'. Known are \['mnist', 'fashion_mnist', 'digits'\]"
    ):
        pu.load_dataset("cifar")


def test_sizes_keep_the_first_images_and_the_title_says_so(digits):
    part = pu.load_dataset("digits", train_size=1000)
    np.testing.assert_array_equal(part.x_train, digits.x_train[:1000])
    np.testing.assert_array_equal(part.y_train, digits.y_train[:1000])
    np.testing.assert_array_equal(part.x_test, digits.x_test)
    assert part.title == "Digits (scikit-learn, 8×8), first 1,000 training images"
    part = pu.load_dataset("digits", train_size=1000, test_size=100)
    np.testing.assert_array_equal(part.x_test, digits.x_test[:100])
    np.testing.assert_array_equal(part.y_test, digits.y_test[:100])
    assert part.title == "Digits (scikit-learn, 8×8), first 1,000 training and 100 test images"


def test_sizes_that_leave_nothing_out_keep_the_title(digits):
    assert pu.load_dataset("digits", train_size=1400, test_size=397).title == digits.title


@pytest.mark.parametrize("argument", ["train_size", "test_size"])
@pytest.mark.parametrize("size", [0, -1, 10.0, "10", True])
def test_a_size_that_is_no_number_of_images_is_refused(argument, size):
    message = f"{argument}: a positive whole number is needed, received {size!r}"
    with pytest.raises(ValueError, match=message):
        pu.load_dataset("digits", **{argument: size})
    with pytest.raises(ValueError, match=message):
        pu.load_datasets(["digits"], **{argument: size})


def test_a_size_above_the_number_of_images_is_refused(tiny):
    with pytest.raises(
        ValueError, match="Digits .* has 1,400 images, so train_size cannot be 1401"
    ):
        pu.load_dataset("digits", train_size=1401)
    with pytest.raises(ValueError, match="MNIST has 30 images, so train_size cannot be 31"):
        pu.load_dataset("mnist", train_size=31)
    with pytest.raises(ValueError, match="MNIST has 20 images, so test_size cannot be 21"):
        pu.load_dataset("mnist", test_size=21)


# MNIST and Fashion-MNIST as TFDS prepares them


@pytest.mark.skipif(not REAL_DATA.exists(), reason=f"no prepared data in {REAL_DATA}")
@pytest.mark.parametrize(
    ("name", "title", "train_mean", "test_mean", "first_class"),
    [
        ("mnist", "MNIST", 33.318, 33.791, "0"),
        ("fashion_mnist", "Fashion-MNIST", 72.940, 73.147, "T-shirt/top"),
    ],
)
def test_real_data_have_the_published_properties(
    name, title, train_mean, test_mean, first_class, monkeypatch, no_network
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(REAL_DATA))
    data = pu.load_dataset(name)
    assert (data.name, data.title, data.class_names[0]) == (name, title, first_class)
    assert data.x_train.shape == (60_000, 28, 28)
    assert data.x_test.shape == (10_000, 28, 28)
    assert data.x_train.dtype == data.x_test.dtype == np.uint8
    assert data.y_train.dtype == data.y_test.dtype == np.int64
    assert data.x_train.mean() == pytest.approx(train_mean, abs=5e-4)
    assert data.x_test.mean() == pytest.approx(test_mean, abs=5e-4)
    assert set(np.unique(data.y_test)) == set(range(10))


@pytest.mark.skipif(not REAL_DATA.exists(), reason=f"no prepared data in {REAL_DATA}")
def test_part_of_real_data_has_a_title_that_says_so(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(REAL_DATA))
    data = pu.load_dataset("mnist", train_size=10_000)
    assert len(data.x_train) == len(data.y_train) == 10_000
    assert len(data.x_test) == 10_000
    assert data.title == "MNIST, first 10,000 training images"


def test_prepared_data_are_read_in_their_order_without_network(tiny, no_network):
    data = pu.load_dataset("mnist")
    expected = np.random.default_rng(TINY_TRAIN).integers(0, 256, (TINY_TRAIN, 28, 28, 1))
    np.testing.assert_array_equal(data.x_train, expected[..., 0])
    np.testing.assert_array_equal(data.y_train, np.arange(TINY_TRAIN) % 10)
    assert data.x_test.shape == (TINY_TEST, 28, 28)


def test_sizes_keep_the_first_images_of_prepared_data(tiny):
    data = pu.load_dataset("mnist", train_size=12, test_size=3)
    np.testing.assert_array_equal(data.y_train, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    np.testing.assert_array_equal(data.y_test, [0, 1, 2])
    assert data.title == "MNIST, first 12 training and 3 test images"


def test_a_relative_data_directory_is_understood(tiny, monkeypatch):
    monkeypatch.chdir(tiny.parents[1])
    monkeypatch.setenv("TFDS_DATA_DIR", ".")
    assert len(pu.load_dataset("mnist").x_train) == TINY_TRAIN


def test_without_the_variable_the_default_directory_is_used(tiny, monkeypatch):
    tiny.parents[1].rename(tiny.parents[2] / "tensorflow_datasets")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tiny.parents[2]))
    monkeypatch.setenv("USERPROFILE", str(tiny.parents[2]))
    assert len(pu.load_dataset("mnist").x_train) == TINY_TRAIN


def test_a_read_only_directory_is_read_and_left_alone(tiny):
    root = tiny.parents[1]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    folders = [root, *(path for path in before if path.is_dir())]
    try:
        for path in before:
            path.chmod(0o555 if path.is_dir() else 0o444)
        root.chmod(0o555)
        assert len(pu.load_dataset("mnist").x_train) == TINY_TRAIN
        # An administrator may write all the same, so the folder is compared as well.
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    finally:
        for path in folders:
            path.chmod(0o755)


# Damaged directories


def truncate(path, size):
    content = path.read_bytes()
    path.write_bytes(content[: size if size >= 0 else len(content) + size])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def drop_the_last_record(path):
    # A record is its length (8 bytes), a checksum (4), the data and a checksum (4).
    content, start, starts = path.read_bytes(), 0, []
    while start < len(content):
        starts.append(start)
        start += 16 + int.from_bytes(content[start : start + 8], "little")
    path.write_bytes(content[: starts[-1]])


def edit_info(directory, edit):
    info = json.loads((directory / INFO).read_text())
    edit(info)
    (directory / INFO).write_text(json.dumps(info))


def empty_directory(directory):
    shutil.rmtree(directory)
    directory.mkdir()


DAMAGES = {
    "an empty directory": empty_directory,
    "no info": lambda d: (d / INFO).unlink(),
    "an empty info": lambda d: (d / INFO).write_text(""),
    "garbage instead of the info": lambda d: (d / INFO).write_text("{]"),
    "half an info": lambda d: truncate(d / INFO, -100),
    "no features": lambda d: (d / "features.json").unlink(),
    "garbage instead of the features": lambda d: (d / "features.json").write_text("{]"),
    "an info without the test part": lambda d: edit_info(d, lambda info: info["splits"].pop()),
    "an info that promises more images": lambda d: edit_info(
        d, lambda info: info["splits"][0].update(shardLengths=["31"])
    ),
    "an info that promises fewer images": lambda d: edit_info(
        d, lambda info: info["splits"][1].update(shardLengths=["19"])
    ),
    "an info that promises no images": lambda d: edit_info(
        d, lambda info: info["splits"][1].update(shardLengths=["0"])
    ),
    "no training shard": lambda d: (d / TRAIN_SHARD).unlink(),
    "no test shard": lambda d: (d / TEST_SHARD).unlink(),
    "an empty shard": lambda d: truncate(d / TRAIN_SHARD, 0),
    "a shard cut within a record": lambda d: truncate(d / TRAIN_SHARD, -100),
    "a shard cut between two records": lambda d: drop_the_last_record(d / TEST_SHARD),
    "a shard with a flipped byte": lambda d: flip_a_byte(d / TEST_SHARD),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_directory_is_named_and_not_accepted(damage, tiny):
    damage(tiny)
    with pytest.raises(pu.DataUnavailableError, match="MNIST in .* is damaged") as caught:
        pu.load_dataset("mnist")
    assert str(tiny) in str(caught.value)
    assert "Delete this folder" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_the_damage_is_described_in_a_few_words(tiny):
    truncate(tiny / TRAIN_SHARD, -100)
    with pytest.raises(
        pu.DataUnavailableError, match=r"\(DataLossError: truncated record .{,90}\)"
    ):
        pu.load_dataset("mnist")


def test_images_of_another_shape_are_not_accepted(tmp_path, monkeypatch):
    write_tiny(tmp_path, image_shape=(1, 1, 1))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(pu.DataUnavailableError, match=r"images of shape \(1, 1, 1\)"):
        pu.load_dataset("mnist")


def test_other_class_names_are_not_accepted(tmp_path, monkeypatch):
    write_tiny(tmp_path, name="fashion_mnist")  # its file with the names is missing
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(pu.DataUnavailableError, match="class names"):
        pu.load_dataset("fashion_mnist")


@pytest.mark.parametrize("error", [ModuleNotFoundError("no importlib_resources"), MemoryError()])
def test_a_missing_package_or_memory_is_not_called_damage(error, tiny, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(directory):
        raise error

    monkeypatch.setattr(tfds, "builder_from_directory", fail)
    with pytest.raises(type(error)) as caught:
        pu.load_dataset("mnist")
    assert caught.value is error


@pytest.mark.parametrize("size", [TINY_TRAIN - 1, TINY_TRAIN + 1])
def test_images_are_counted_even_if_tfds_should_not_count_them(size, tiny, monkeypatch):
    import tensorflow_datasets as tfds

    class Uncounted:
        def __init__(self, directory):
            self.builder = builder_from_directory(directory)
            self.as_dataset = self.builder.as_dataset
            split = types.SimpleNamespace(num_examples=size)
            splits = {"train": split, "test": self.builder.info.splits["test"]}
            self.info = types.SimpleNamespace(features=self.builder.info.features, splits=splits)

    builder_from_directory = tfds.builder_from_directory
    monkeypatch.setattr(tfds, "builder_from_directory", Uncounted)
    with pytest.raises(pu.DataUnavailableError, match=f"30 images of shape .*, not {size}"):
        pu.load_dataset("mnist")


# Data that are not prepared


def test_offline_the_error_names_directory_address_and_remedy(empty_data_dir, no_network):
    with pytest.raises(pu.DataUnavailableError) as caught:
        pu.load_dataset("mnist")
    message = str(caught.value)
    assert str(empty_data_dir / "mnist" / "3.0.1") in message
    assert "https://storage.googleapis.com/cvdf-datasets/mnist/ cannot be reached" in message
    assert "Connect to the internet" in message
    assert "TFDS_DATA_DIR" in message
    assert '"digits"' in message
    assert not list(empty_data_dir.rglob("*"))


def test_the_probe_asks_for_a_small_file_of_the_data_set_and_stops_in_time(
    empty_data_dir, monkeypatch
):
    asked = []
    monkeypatch.setattr(requests, "head", lambda url, **options: asked.append((url, options)))
    with pytest.raises(pu.DataUnavailableError):
        pu.load_dataset("mnist")
    ((url, options),) = asked
    assert url == "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz"
    assert options["timeout"] < 5


def test_a_name_look_up_that_hangs_ends_in_the_digits_within_ten_seconds(
    empty_data_dir, monkeypatch, capsys
):
    released = threading.Event()

    def hang(*args, **options):
        released.wait(60)
        raise OSError("name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    try:
        [data] = pu.load_datasets(["mnist", "fashion_mnist"])
    finally:
        released.set()
    assert time.monotonic() - start < 10
    assert data.name == "digits"
    assert capsys.readouterr().out.count("cannot be reached") == 2


def test_the_probe_tells_a_file_that_exists_from_one_that_does_not(tmp_path, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    (tmp_path / "file.gz").write_bytes(b"1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        pu._check_reachable(url, "file.gz")
        with pytest.raises(ConnectionError, match=f"{url} cannot be reached"):
            pu._check_reachable(url, "missing.gz")
        server.shutdown()


@pytest.fixture
def replace_download(empty_data_dir, monkeypatch):
    """Gives TFDS another `download_and_prepare` and lets the probe succeed."""
    import tensorflow_datasets as tfds

    def replace(function):
        monkeypatch.setattr(pu, "_check_reachable", lambda *args: None)
        monkeypatch.setattr(tfds.image_classification.MNIST, "download_and_prepare", function)

    return replace


def test_tfds_shows_its_own_progress_while_it_downloads(
    replace_download, empty_data_dir, tiny_original, capsys
):
    def prepare(builder):
        print("Downloading and preparing")
        print("3/3", file=sys.stderr)
        shutil.copytree(tiny_original, empty_data_dir / "mnist" / "3.0.1")

    replace_download(prepare)
    assert len(pu.load_dataset("mnist").x_train) == TINY_TRAIN
    written = capsys.readouterr()
    assert written.out == "Downloading and preparing\n"
    assert "3/3" in written.err


def test_a_failed_download_is_reported_with_its_cause(replace_download, empty_data_dir):
    cause = OSError("No space left on device")

    def fail(builder):
        raise cause

    replace_download(fail)
    with pytest.raises(pu.DataUnavailableError, match="OSError: No space left") as caught:
        pu.load_dataset("mnist")
    assert caught.value.__cause__ is cause
    assert str(empty_data_dir) in str(caught.value)


# Several data sets


def test_load_datasets_keeps_the_order(tiny):
    assert [data.name for data in pu.load_datasets(["digits", "mnist"])] == ["digits", "mnist"]


def test_digits_stand_in_once_for_all_unavailable_data(empty_data_dir, no_network, capsys):
    datasets = pu.load_datasets(["mnist", "fashion_mnist"])
    assert [data.title for data in datasets] == ["Digits (scikit-learn, 8×8)"]
    printed = capsys.readouterr().out
    assert re.search(r"^MNIST in .* could not be downloaded", printed, re.M)
    assert re.search(r"^Fashion-MNIST in .* could not be downloaded", printed, re.M)
    assert printed.count("goes on with scikit-learn's digits") == 2


def test_digits_stand_in_for_the_one_that_is_damaged(tiny, no_network, capsys):
    (tiny / TEST_SHARD).unlink()
    datasets = pu.load_datasets(["mnist", "digits", "fashion_mnist"])
    assert [data.name for data in datasets] == ["digits"]
    assert str(tiny) in capsys.readouterr().out


def test_available_data_stay_beside_the_digits_and_nothing_more_is_printed(
    tiny, no_network, capsys
):
    datasets = pu.load_datasets(["mnist", "fashion_mnist"])
    assert [data.name for data in datasets] == ["mnist", "digits"]
    assert "MNIST" not in capsys.readouterr().out.replace("Fashion-MNIST", "")


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_sizes_meant_for_mnist_keep_the_smaller_digits_whole(name, empty_data_dir, no_network):
    (data,) = pu.load_datasets([name], train_size=10_000, test_size=2_000)
    assert len(data.x_train) == 1400
    assert data.title == "Digits (scikit-learn, 8×8)"


def test_load_datasets_checks_all_names_before_it_loads(tiny, capsys):
    with pytest.raises(
        ValueError, match="names must be .*'mnist', 'fashion_mnist', 'digits'.*, received .*'cifar'"
    ):
        pu.load_datasets(["fashion_mnist", "cifar"])
    assert capsys.readouterr().out == ""


def test_load_datasets_refuses_a_single_string():
    with pytest.raises(ValueError, match="names must be a list with some of .*, received 'mnist'"):
        pu.load_datasets("mnist")


def test_load_datasets_takes_names_of_any_kind_of_list(digits):
    for names in (iter(["digits"]), np.array(["digits", "digits"])):
        assert [data.title for data in pu.load_datasets(names)] == [digits.title]


def test_load_datasets_refuses_no_names():
    with pytest.raises(ValueError, match=r"names must be a list .*, received \[\]"):
        pu.load_datasets([])


# The dense network


def test_the_default_network_has_2386000_weights_and_no_biases():
    network = pu.build_dense_network()
    shapes = [tuple(weight.shape) for weight in network.weights]
    assert shapes == [(784, 1000), (1000, 1000), (1000, 500), (500, 200), (200, 10)]
    assert network.count_params() == 784_000 + 1_000_000 + 500_000 + 100_000 + 2_000
    assert network.input_shape == (None, 28, 28)
    assert network.inputs[0].dtype == "uint8"


def test_the_network_is_its_formula():
    network = pu.build_dense_network((2, 2), units=(3,), num_classes=2)
    images = np.array([[[0, 51], [102, 255]], [[255, 0], [0, 0]]], np.uint8)
    hidden, logits = network.get_weights()
    expected = np.maximum(images.reshape(2, 4) / 255 @ hidden, 0) @ logits
    np.testing.assert_allclose(network.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state():
    keras.utils.set_random_seed(1)
    first = pu.build_dense_network((8, 8), units=(20, 20), seed=3).get_weights()
    keras.utils.set_random_seed(2)
    second = pu.build_dense_network((8, 8), units=(20, 20), seed=3).get_weights()
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_and_seeds_do_not_share_weights():
    first = pu.build_dense_network((4, 5), units=(20, 20, 20), seed=0).get_weights()
    second = pu.build_dense_network((4, 5), units=(20, 20, 20), seed=1).get_weights()
    kernels = [*first[:3], *second[:3]]
    for i, one in enumerate(kernels):
        assert not any(np.allclose(one, other) for other in kernels[:i])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"units": ()}, ValueError, "must hold one size or more"),
        ({"units": 100}, TypeError, "must be an iterable, not int"),  # says Python
        ({"units": (10, 0)}, ValueError, "units or num_classes: a positive .*, received 0"),
        ({"units": (10.5,)}, ValueError, "units or num_classes: a positive .*, received 10.5"),
        ({"input_shape": ()}, ValueError, "must hold one size or more"),
        ({"input_shape": (28, -1)}, ValueError, "input_shape: a positive .*, received -1"),
        ({"num_classes": 0}, ValueError, "num_classes: a positive whole number .*, received 0"),
        ({"num_classes": True}, ValueError, "num_classes: a positive .*, received True"),
        ({"seed": -1}, ValueError, "non-negative integer"),  # says NumPy
        ({"seed": None}, TypeError, "int.* not 'NoneType'"),
    ],
)
def test_build_dense_network_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        pu.build_dense_network(**arguments)


# Training


@pytest.fixture(scope="module")
def trained(digits):
    network = pu.build_dense_network(digits.image_shape, units=(128, 64))
    return network, pu.train(network, digits, verbose=False)


def test_digits_are_learnt_by_a_small_network(trained):
    assert trained[1].accuracy >= 0.93


def test_the_result_is_that_of_the_test_images(trained, digits):
    network, result = trained
    logits = network.predict(digits.x_test, verbose=0).astype(float)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    losses = log_sums - logits[np.arange(len(logits)), digits.y_test]
    assert result.accuracy == pytest.approx((logits.argmax(1) == digits.y_test).mean(), abs=1e-6)
    assert result.loss == pytest.approx(losses.mean(), rel=1e-3)
    assert result.seconds > 0


def test_few_images_get_as_many_epochs_as_500_steps_need(trained):
    assert trained[1].epochs == 84  # 6 steps of up to 256 images each


@pytest.mark.parametrize("change", ["trained", "pruned", "shrunk", "pruned and trained"])
def test_a_model_saved_after_training_loads_without_a_warning(digits, tmp_path, change):
    model = pu.build_dense_network(digits.image_shape, units=(20, 10))
    pu.train(model, digits, epochs=1, verbose=False)
    if change != "trained":
        model = pu.prune_units(model, 0.5)
    if change == "shrunk":
        model = pu.shrink(model)
    if change == "pruned and trained":
        pu.train(model, digits, epochs=1, callbacks=[pu.KeepZeros()], verbose=False)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.evaluate(digits.x_test, digits.y_test, verbose=0)
    assert loaded.evaluate(digits.x_test, digits.y_test, verbose=0) == expected
    kilobytes = (tmp_path / "model.keras").stat().st_size / 1e3
    assert kilobytes < 40  # nor are there moments in it: 46


def test_a_trained_network_is_fitted_further_by_keras_itself(trained, digits):
    network = pu.prune_weights(trained[0], 0.5)
    before = network.evaluate(digits.x_train, digits.y_train, verbose=0)[0]
    network.fit(digits.x_train, digits.y_train, epochs=2, callbacks=[pu.KeepZeros()], verbose=0)
    assert network.evaluate(digits.x_train, digits.y_train, verbose=0)[0] < before


def test_training_is_repeated_by_its_seed(digits):
    def weights(seed):
        network = pu.build_dense_network(digits.image_shape, units=(16,))
        pu.train(network, digits, epochs=1, seed=seed, verbose=False)
        return network.get_weights()[0]

    first = weights(seed=0)
    np.testing.assert_allclose(weights(seed=0), first, atol=1e-6)
    assert not np.allclose(weights(seed=1), first, atol=1e-4)


def test_the_learning_rate_falls_to_zero_as_a_cosine(digits):
    rates = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    network = pu.build_dense_network(digits.image_shape, units=(4,))
    arguments = {"batch_size": 700, "learning_rate": 0.1, "callbacks": [Note()]}
    pu.train(network, digits, epochs=2, verbose=False, **arguments)
    network.fit(digits.x_train, digits.y_train, batch_size=700, callbacks=[Note()], verbose=0)
    cosine = 0.1 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    assert rates == pytest.approx(
        [*cosine, 0.1, 0.1], rel=1e-5
    )  # what follows does not stand still


def test_progress_is_one_line_on_standard_output(digits, capsys):
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    result = pu.train(network, digits, epochs=2)
    written = capsys.readouterr()
    states = written.out.split("\r")
    assert written.out.count("\n") == 1
    assert written.out.endswith("\n")
    assert f"test accuracy {result.accuracy:.2%} after 2 epochs" in states[-1]
    assert digits.title in states[-1]
    assert written.err == ""


def test_progress_shows_epoch_loss_and_accuracy(digits, capsys):
    logs = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, given: logs.append(given))
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    pu.train(network, digits, epochs=2, callbacks=[note])
    states = capsys.readouterr().out.split("\r")[1:]
    assert states[:-1] == [
        f"{digits.title}: epoch {epoch}/2, loss {given['loss']:.3f}, "
        f"accuracy {given['accuracy']:.2%}"
        for epoch, given in enumerate(logs, start=1)
    ]


@pytest.mark.parametrize("epochs", [1, 10])
def test_the_last_line_of_a_training_leaves_nothing_of_those_before(digits, capsys, epochs):
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    pu.train(network, digits, epochs=epochs)
    *before, last = capsys.readouterr().out.rstrip().split("\r")
    assert len(last) >= max(map(len, before))


def test_in_a_notebook_progress_is_one_output_that_is_updated(digits, monkeypatch, capsys):
    import IPython
    from IPython import display

    shown = []
    handle = types.SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace(kernel=1))
    monkeypatch.setattr(display, "display", lambda data, raw, display_id: handle)
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    result = pu.train(network, digits, epochs=2)
    assert [text.split(": ")[1][:9] for text in shown] == ["epoch 1/2", "epoch 2/2", "test accu"]
    assert f"{result.accuracy:.2%} after 2 epochs" in shown[-1]
    assert "\n" not in shown[-1]
    assert capsys.readouterr().out == ""


def test_nothing_is_printed_unless_verbose(digits, capfd):
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    pu.train(network, digits, epochs=1, verbose=False)
    assert capfd.readouterr().out == ""


def test_the_training_data_are_not_changed(digits):
    before = digits.x_train.copy()
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    pu.train(network, digits, epochs=1, verbose=False)
    np.testing.assert_array_equal(digits.x_train, before)


def test_a_network_with_a_channel_axis_is_trained_too(digits):
    network = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    assert pu.train(network, digits, epochs=1, verbose=False).epochs == 1


def test_train_refuses_images_and_labels_of_different_number(digits):
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    data = dataclasses.replace(digits, y_train=digits.y_train[:-1])
    with pytest.raises(ValueError, match="1,400 training images and 1,399 labels"):
        pu.train(network, data)
    data = dataclasses.replace(digits, x_test=digits.x_test[:5])
    with pytest.raises(ValueError, match="5 test images and 397 labels"):
        pu.train(network, data)


def test_train_refuses_empty_data(digits):
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    data = dataclasses.replace(digits, x_train=digits.x_train[:0], y_train=digits.y_train[:0])
    with pytest.raises(ValueError, match="has 0 training images"):
        pu.train(network, data)


def test_train_refuses_images_that_do_not_fit_the_network(digits):
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\), but .* takes \(28, 28\)"):
        pu.train(pu.build_dense_network(units=(4,)), digits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: a positive whole number is needed, received 0"),
        ({"epochs": 1.5}, "epochs: a positive whole number is needed, received 1.5"),
        ({"epochs": "3"}, "epochs: a positive whole number is needed, received '3'"),
        ({"batch_size": 0}, "batch_size: a positive whole number is needed, received 0"),
        ({"batch_size": 32.0}, "batch_size: a positive whole number is needed, received 32.0"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, received 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"learning_rate": float("inf")}, "learning_rate must be a positive number"),
        ({"seed": 1.5}, "Expected `seed` argument to be an integer. Received: seed=1.5"),
    ],
)
def test_train_refuses_bad_numbers(digits, arguments, message):
    network = pu.build_dense_network(digits.image_shape, units=(4,))
    with pytest.raises(ValueError, match=message):
        pu.train(network, digits, **arguments)
