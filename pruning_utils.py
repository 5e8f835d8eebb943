"""Helper module of the pruning tutorial: data sets, the dense network, its training.

The library's functions that the tutorial uses are passed on, so that a notebook needs one
import: `import pruning_utils as pu`.

It imports Keras without scikit-learn, which only `keras.wrappers` needs, to save 50 MB of memory.
For the wrappers, import scikit-learn before this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm


@contextlib.contextmanager
def _native_stderr_muted() -> Iterator[None]:
    """Drops what C++ code writes to file descriptor 2; Python's errors and warnings pass."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _as_if_missing(package: str) -> Iterator[None]:
    """Has imports of the package fail meanwhile, as if it were not installed."""
    if package in sys.modules:  # too late, and whoever imported it may need it
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(package, None)


def _set_up_heap(*, is_roomy: bool = False) -> None:
    """Has all threads allocate from one heap, and large arrays given back when they are freed.

    Each of TensorFlow's threads would keep a heap of its own, 30 MB in all. Large is 2 MB; since
    TensorFlow's data sets from Python generators it would be 128 KB, and whatever computes with
    NumPy after a training twice as slow. A roomy heap keeps what a step of training has freed for
    the next one: 50 MB more than without, a third of the time less.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than GNU's
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_ARENA_MAX, 1)
            mallopt(_M_MMAP_THRESHOLD, (32 if is_roomy else 2) * 2**20)
            mallopt(_M_TRIM_THRESHOLD, (512 if is_roomy else 4) * 2**20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h
_set_up_heap()  # before there are threads
# TensorFlow's own allocator for oneDNN never gives memory back: 70 MB after one training.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
# TensorFlow writes notes while it is imported, at any log level.
with _native_stderr_muted(), _as_if_missing("sklearn"):
    import keras

import keras_pruning.plots.panel as _panel
from keras_pruning import (
    GradualPruning,
    KeepZeros,
    SparseModel,
    compare,
    prunable_layers,
    prune_units,
    prune_weights,
    sensitivity_sweep,
    shrink,
    sparsity_sweep,
    suggest_sparsities,
    summary,
    unit_mask,
    weight_mask,
)
from keras_pruning.plots import (
    draw_network_pruning,
    plot_accuracy,
    plot_accuracy_panels,
    plot_class_accuracy,
    plot_images,
    plot_masks,
    plot_matrix,
    plot_recovery,
    plot_savings,
    plot_sensitivity,
    plot_speed,
    plot_units_as_images,
    plot_weight_histograms,
)

# What is imported by now stays: without it in the way, Python looks for models that hold themselves
# in circles, and frees them, many times as often.
gc.collect()
gc.freeze()

if TYPE_CHECKING:
    import ipywidgets
    import tensorflow_datasets as tfds

__all__ = [
    "DataUnavailableError",
    "Dataset",
    "GradualPruning",
    "KeepZeros",
    "SparseModel",
    "TrainingResult",
    "build_dense_network",
    "compare",
    "draw_network_pruning",
    "explore",
    "load_dataset",
    "load_datasets",
    "plot_accuracy",
    "plot_accuracy_panels",
    "plot_class_accuracy",
    "plot_images",
    "plot_masks",
    "plot_matrix",
    "plot_recovery",
    "plot_savings",
    "plot_sensitivity",
    "plot_speed",
    "plot_units_as_images",
    "plot_weight_histograms",
    "prunable_layers",
    "prune_units",
    "prune_weights",
    "sensitivity_sweep",
    "shrink",
    "sparsity_sweep",
    "suggest_sparsities",
    "summary",
    "train",
    "unit_mask",
    "weight_mask",
]


class _Source(NamedTuple):
    """What has to be known of a TFDS data set before TFDS itself is imported."""

    title: str
    url: str  # folder of the four original files; the same as the TFDS builder's own
    class_names: tuple[str, ...]


class _SplitSizes(NamedTuple):
    """Numbers of training and of test images."""

    train: int
    test: int


_AskedSizes = tuple[int | None, int | None]  # None for all


_SOURCES = {
    "mnist": _Source(
        title="MNIST",
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        class_names=tuple("0123456789"),
    ),
    "fashion_mnist": _Source(
        title="Fashion-MNIST",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}
_NAMES = (*_SOURCES, "digits")
_TFDS_VERSION = "3.0.1"
_TFDS_IMAGE_SHAPE = (28, 28, 1)
_SMALLEST_FILE = "t10k-labels-idx1-ubyte.gz"  # 5 kB, the file asked for by the probe
_PROBE_SECONDS = 5.0
_STALL_SECONDS = 3.5  # without a byte, until an attempt to download is given up
_DOWNLOAD_RETRIES = 1  # so that the reader knows within ten seconds
_READ_BATCH = 1_000  # images
_DIGITS_SIZES = _SplitSizes(train=1_400, test=397)
_DIGITS_MAX_PIXEL = 16
_MIN_EPOCHS = 5
_MIN_STEPS = 500
_SHORT_STEPS = 500  # of a training that needs no roomy heap: two epochs of MNIST


class DataUnavailableError(RuntimeError):
    """A data set is neither prepared on this computer nor can it be downloaded.

    Also raised where the prepared directory is damaged or incomplete. The message names the
    directory or the address, and says what to do.
    """


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one data set, split into a training and a test part.

    Attributes:
        name: Name given to `load_dataset`.
        title: Name for figures and tables; it tells when only a part was loaded.
        x_train: Training images, uint8 in [0, 255], shape `(n_train, height, width)`.
        y_train: Training labels, int64 in [0, num_classes), shape `(n_train,)`.
        x_test: Test images, uint8 in [0, 255], shape `(n_test, height, width)`.
        y_test: Test labels, int64 in [0, num_classes), shape `(n_test,)`.
        class_names: One readable name a class; the label is the position.
    """

    name: str
    title: str
    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, `(height, width)`."""
        return self.x_train.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of one call of `train`.

    Attributes:
        accuracy: Share of test images classified correctly, in [0, 1].
        loss: Mean cross-entropy on the test images, in nats.
        epochs: Number of passes over the training images.
        seconds: Wall-clock time of the training, without the evaluation.
    """

    accuracy: float
    loss: float
    epochs: int
    seconds: float


def load_dataset(
    name: str, *, train_size: int | None = None, test_size: int | None = None
) -> Dataset:
    """Returns one data set, read from disk and, where needed and possible, downloaded first.

    MNIST and Fashion-MNIST are read with TensorFlow Datasets from the folder named by the
    environment variable `TFDS_DATA_DIR`, or else from `~/tensorflow_datasets`. Prepared data
    are read without any network access, also from a read-only folder. The digits come with
    scikit-learn: 8x8 images whose 17 grey levels are scaled to 0..255.

    Args:
        name: `"mnist"`, `"fashion_mnist"` or `"digits"`.
        train_size: Number of training images kept, the first ones; `None` keeps all. The title
            of the result tells when some were left out.
        test_size: The same for the test images.

    Returns:
        The data set; its images stay uint8.

    Raises:
        ValueError: If the name is unknown or `train_size` or `test_size` is out of range.
        TypeError: If `train_size` or `test_size` is not an integer.
        DataUnavailableError: If the data are not prepared and cannot be downloaded, or if the
            prepared directory is damaged.

    Example:
    >>> digits = load_dataset("digits", train_size=500)
    >>> digits.title, digits.x_train.shape
    ('Digits (scikit-learn, 8×8), first 500 training images', (500, 8, 8))
    """
    _check_name(name)
    sizes = _check_split_sizes(train_size, test_size)
    if name == "digits":
        return _load_digits(sizes)
    directory = _data_dir() / name / _TFDS_VERSION
    if not os.path.exists(directory):  # False, not an error, where access is denied
        _prepare(name, directory)
    return _read_prepared(name, directory, sizes)


def load_datasets(
    names: Iterable[str], *, train_size: int | None = None, test_size: int | None = None
) -> list[Dataset]:
    """Returns several data sets, with the digits in the place of those that are unavailable.

    For each unavailable data set the reason is printed. The digits appear only once, however
    many data sets they stand for.

    Args:
        names: Names as in `load_dataset`.
        train_size: As in `load_dataset`; the digits are kept whole if they have fewer images.
        test_size: The same for the test images.

    Returns:
        The data sets in the order asked for.

    Raises:
        ValueError: If there is no name, a name is unknown, or `train_size` or `test_size` is
            out of range.
        TypeError: If `names` is a single string, or a size is not an integer.
    """
    names = _check_names(names)
    sizes = _check_split_sizes(train_size, test_size)
    datasets: list[Dataset] = []
    for name in names:
        dataset = _load_or_digits(name, sizes)
        if dataset.name != "digits" or all(known.name != "digits" for known in datasets):
            datasets.append(dataset)
    return datasets


def build_dense_network(
    input_shape: Sequence[int] = (28, 28),
    *,
    units: Sequence[int] = (1000, 1000, 500, 200),
    num_classes: int = 10,
    seed: int = 0,
) -> keras.Sequential:
    """Returns an untrained dense network for uint8 images, with ReLU and without biases.

    Without biases every parameter is a weight of a kernel, so that counting weights is
    counting parameters. The defaults give 2,386,000 of them.

    Args:
        input_shape: Shape of one image, e.g. `Dataset.image_shape`.
        units: Units of each hidden layer, named `hidden_1`, `hidden_2`, and so on.
        num_classes: Units of the output layer, named `logits`; it has no activation.
        seed: Fixes the initial weights, whatever the global random state.

    Returns:
        The network, not compiled. It takes images in 0..255 with shape
        `(batch_size, *input_shape)` and gives logits with shape `(batch_size, num_classes)`.

    Raises:
        ValueError: If a size is not a positive integer, `units` is empty, or the seed is not a
            non-negative integer.

    Example:
    >>> network = build_dense_network((8, 8), units=(20, 10))
    >>> [layer.name for layer in network.layers]
    ['rescaling', 'flatten', 'hidden_1', 'hidden_2', 'logits']
    """
    input_shape = _check_sizes("input_shape", input_shape)
    units = _check_sizes("units", units)
    (num_classes,) = _check_sizes("num_classes", (num_classes,))
    _check_seed(seed)
    seeds = _layer_seeds(seed, len(units) + 1)
    hidden = [
        _dense(f"hidden_{number}", count, layer_seed, activation="relu")
        for number, (count, layer_seed) in enumerate(zip(units, seeds[:-1], strict=True), start=1)
    ]
    return keras.Sequential(
        [
            keras.Input(input_shape, dtype="uint8"),
            keras.layers.Rescaling(1 / 255, name="rescaling"),
            keras.layers.Flatten(name="flatten"),
            *hidden,
            _dense("logits", num_classes, seeds[-1]),
        ]
    )


def train(
    network: keras.Model,
    data: Dataset,
    *,
    epochs: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    verbose: bool = True,
) -> TrainingResult:
    """Trains a classifier in place and returns how well it does on the test images.

    Adam minimises the cross-entropy of the logits, and a cosine takes its learning rate from
    `learning_rate` to 0 over the whole training (Loshchilov & Hutter 2017). Afterwards the
    network is compiled anew with plain SGD of that learning rate: the schedule has ended at 0,
    where a `fit` would do nothing, Adam's moments would triple the size of a saved file, and
    without them Keras would warn when it loads the file. SGD has nothing to save.

    The result is not Keras's `History`, which keeps the network alive and knows neither the
    test accuracy nor the time.

    Args:
        network: Model that gives one logit a class.
        data: Data set whose images fit the network.
        epochs: Passes over the training images. `None` takes 5, or as many as are needed for
            500 optimizer steps where there are few images: 84 for the digits.
        batch_size: Images a step.
        learning_rate: Learning rate of the first step.
        callbacks: Keras callbacks for the training, such as `KeepZeros()`.
        seed: Fixes the order of the images, and dropout: it sets the global seeds of Python,
            NumPy and the backend with `keras.utils.set_random_seed`.
        verbose: Whether to print one updating line of progress, which ends as the test accuracy.

    Returns:
        Test accuracy and loss, number of epochs, and seconds.

    Raises:
        ValueError: If the data are empty, images and labels differ in number, the images do not
            fit the network, or a number is out of range.

    Example:
    >>> digits = load_dataset("digits")
    >>> network = build_dense_network(digits.image_shape, units=(50,))
    >>> train(network, digits, verbose=False).accuracy > 0.9
    True
    """
    _check_data(data)
    _check_image_shape(network, data)
    (batch_size,) = _check_sizes("batch_size", (batch_size,))
    _check_learning_rate(learning_rate)
    _check_seed(seed)
    steps = math.ceil(len(data.x_train) / batch_size)  # optimizer steps an epoch
    if epochs is None:
        epochs = max(_MIN_EPOCHS, math.ceil(_MIN_STEPS / steps))
    (epochs,) = _check_sizes("epochs", (epochs,))

    _free_memory()
    keras.utils.set_random_seed(seed)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    _compile(network, keras.optimizers.Adam(schedule))
    progress = _Progress(data.title, epochs, steps, verbose=verbose)
    start = time.perf_counter()
    try:
        with _graphs_let_go():
            network.fit(
                _as_fit_takes_it(_Batches(data.x_train, data.y_train, batch_size, seed)),
                epochs=epochs,
                shuffle=False,
                callbacks=[*callbacks, progress, _Heap(is_roomy=epochs * steps > _SHORT_STEPS)],
                verbose=0,
            )
        seconds = time.perf_counter() - start
        _compile(network, keras.optimizers.SGD(learning_rate))
        _free_memory()  # Adam's moments, before the test images need room
        loss, accuracy = network.evaluate(data.x_test, data.y_test, batch_size=1_000, verbose=0)
        passes = "1 epoch" if epochs == 1 else f"{epochs} epochs"
        progress.finish(
            f"{data.title}: test accuracy {accuracy:.2%} after {passes} in {seconds:.0f} s"
        )
    finally:
        progress.close()
    return TrainingResult(float(accuracy), float(loss), epochs, seconds)


def explore(network: keras.Model, data: Dataset, *, sparsity: float = 0.9) -> ipywidgets.VBox:
    """Returns a panel with sliders that prune the network and show what that does.

    It shows accuracy on the first test images, size, masks, and the answer on one image before
    and after pruning; see `keras_pruning.plots.panel.explore`. The network is not changed.

    Args:
        network: Model that gives one logit or probability a class.
        data: Data set whose images fit the network.
        sparsity: Where the slider stands first, in [0, 0.99].

    Returns:
        An ipywidgets box; as the last line of a cell it is shown.

    Raises:
        TypeError: As `keras_pruning.plots.panel.explore`.
        ValueError: As `keras_pruning.plots.panel.explore`; also if the images do not fit.
    """
    _check_data(data)
    _check_image_shape(network, data)
    _free_memory()
    return _panel.explore(
        network,
        data.x_test,
        data.y_test,
        data.class_names,
        sparsity=sparsity,
        title=data.title,
        picture=Path(__file__).with_name("images") / "panel.png",
    )


def _check_name(name: str) -> None:
    if name not in _NAMES:
        known = ", ".join(f'"{known}"' for known in _NAMES)
        raise ValueError(f"Unknown data set {name!r}. Known are {known}.")


def _check_names(names: Iterable[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"names must be a list of names, received {names!r}. Use [{names!r}].")
    names = list(names)
    if not names:
        raise ValueError("names is empty. Name at least one data set.")
    for name in names:
        _check_name(name)
    return names


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_split_sizes(train_size: int | None, test_size: int | None) -> _AskedSizes:
    for argument, size in (("train_size", train_size), ("test_size", test_size)):
        if size is None:
            continue
        if not _is_integer(size):
            raise TypeError(f"{argument} must be an integer or None, received {size!r}.")
        if size < 1:
            raise ValueError(f"{argument} must be at least 1, received {size}.")
    return train_size, test_size


def _sizes_to_keep(asked: _AskedSizes, title: str, available: _SplitSizes) -> _SplitSizes:
    for split, size, most in zip(available._fields, asked, available, strict=True):
        if size is not None and size > most:
            raise ValueError(
                f"{split}_size is {size:,}, but {title} has {most:,} {split} images. "
                "Use a smaller number, or None for all of them."
            )
    train, test = (size or most for size, most in zip(asked, available, strict=True))
    return _SplitSizes(train, test)


def _check_sizes(argument: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(sizes, (str, int)) or not len(sizes):
        raise ValueError(f"{argument} must be one or more positive integers, received {sizes!r}.")
    for size in sizes:
        if not _is_integer(size) or size < 1:
            raise ValueError(f"{argument} must be positive integers only, received {size!r}.")
    return tuple(int(size) for size in sizes)


def _check_seed(seed: int) -> None:
    if not _is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer in [0, 2**32), received {seed!r}.")


def _check_learning_rate(learning_rate: float) -> None:
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be a positive number, received {learning_rate!r}.")


def _check_data(data: Dataset) -> None:
    parts = {"training": (data.x_train, data.y_train), "test": (data.x_test, data.y_test)}
    for part, (images, labels) in parts.items():
        if len(images) != len(labels):
            raise ValueError(
                f"{data.title} has {len(images):,} {part} images but {len(labels):,} {part} "
                "labels. Each image needs one label."
            )
        if not len(images):
            raise ValueError(f"{data.title} has no {part} images.")


def _check_image_shape(network: keras.Model, data: Dataset) -> None:
    input_shape = getattr(network, "input_shape", None)
    if not isinstance(input_shape, tuple) or None in input_shape[1:]:
        return  # not known before the first call
    expected = input_shape[1:]
    if expected not in (data.image_shape, (*data.image_shape, 1)):  # Keras appends the channel
        raise ValueError(
            f"{data.title} has images of shape {data.image_shape}, but the network takes "
            f"{expected}. Build it with the data set's image_shape."
        )


def _title(title: str, kept: _SplitSizes, available: _SplitSizes) -> str:
    numbers = zip(kept, available, ("training", "test"), strict=True)
    parts = [f"{size:,} {split}" for size, most, split in numbers if size != most]
    return f"{title}, first {' and '.join(parts)} images" if parts else title


def _load_digits(sizes: _AskedSizes) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    title = "Digits (scikit-learn, 8×8)"
    kept = _sizes_to_keep(sizes, title, _DIGITS_SIZES)
    digits = load_digits()
    images = np.rint(digits.images * (255 / _DIGITS_MAX_PIXEL)).astype(np.uint8)
    x_train, x_test, y_train, y_test = train_test_split(
        images,
        digits.target.astype(np.int64),
        train_size=_DIGITS_SIZES.train,
        stratify=digits.target,
        random_state=0,
    )
    return Dataset(
        name="digits",
        title=_title(title, kept, _DIGITS_SIZES),
        x_train=x_train[: kept.train],
        y_train=y_train[: kept.train],
        x_test=x_test[: kept.test],
        y_test=y_test[: kept.test],
        class_names=tuple(str(name) for name in digits.target_names),
    )


def _load_or_digits(name: str, sizes: _AskedSizes) -> Dataset:
    if name != "digits":
        try:
            return load_dataset(name, train_size=sizes[0], test_size=sizes[1])
        except DataUnavailableError as error:
            print(f"{error}\nThe tutorial goes on with scikit-learn's digits instead.")
    train, test = (min(size or most, most) for size, most in zip(sizes, _DIGITS_SIZES, strict=True))
    return _load_digits((train, test))


def _data_dir() -> Path:
    # Read at each call; TFDS reads the variable only once, when it is imported.
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _prepare(name: str, directory: Path) -> None:
    # Asked first, because TFDS repeats its attempts for minutes where there is no network.
    title, url, _ = _SOURCES[name]
    if not _is_reachable(url + _SMALLEST_FILE):
        raise DataUnavailableError(
            f"{title} is not prepared in {directory}, and {url} cannot be reached. Connect to "
            "the internet, or set TFDS_DATA_DIR to a folder with prepared data, or use the data "
            'set "digits".'
        )
    try:
        _download(name, directory)
    except (ImportError, MemoryError):  # no fault of the data or of the network
        raise
    except Exception as error:
        raise DataUnavailableError(
            f"{title} could not be downloaded from {url} and prepared in {directory} "
            f"({_reason(error)}). Try again later, or set TFDS_DATA_DIR to a folder with "
            'prepared data, or use the data set "digits".'
        ) from error


def _is_reachable(url: str, timeout_seconds: float = _PROBE_SECONDS) -> bool:
    # A time-out of requests does not cover the look-up of the host's name, which can hang much
    # longer; hence the thread that is left behind.
    answers: list[bool] = []
    thread = threading.Thread(
        target=lambda: answers.append(_answers(url, timeout_seconds)), daemon=True
    )
    thread.start()
    thread.join(timeout_seconds)
    return answers == [True]


def _answers(url: str, timeout_seconds: float) -> bool:
    # TFDS downloads with requests too: same proxies, same certificates.
    import requests

    try:
        return requests.head(url, timeout=timeout_seconds, allow_redirects=True).ok
    except requests.RequestException:
        return False


def _download(name: str, directory: Path) -> None:
    import tensorflow_datasets as tfds

    with _quiet_tfds(), _impatient_tfds():
        builder = tfds.builder(f"{name}:{_TFDS_VERSION}", data_dir=str(directory.parent.parent))
        builder.download_and_prepare()


@contextlib.contextmanager
def _impatient_tfds() -> Iterator[None]:
    """Gives downloads a time-out: TFDS sets none, so that a silent server would hold it for ever.

    Nor does it let the number of retries be chosen; its ten would take minutes.
    """
    import requests
    from tensorflow_datasets.core.download import downloader

    request, retries = requests.Session.request, downloader.MAX_RETRIES

    def request_with_time_out(*args: Any, **options: Any) -> requests.Response:
        return request(*args, **{"timeout": _STALL_SECONDS, **options})

    requests.Session.request = request_with_time_out  # type: ignore[method-assign]
    downloader.MAX_RETRIES = _DOWNLOAD_RETRIES
    try:
        yield
    finally:
        requests.Session.request = request  # type: ignore[method-assign]
        downloader.MAX_RETRIES = retries


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    was_active = getattr(tqdm_utils, "_active", True)
    tfds.disable_progress_bar()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        tfds.display_progress_bar(was_active)


def _read_prepared(name: str, directory: Path, sizes: _AskedSizes) -> Dataset:
    import tensorflow_datasets as tfds

    source = _SOURCES[name]
    with _damage_reported(source.title, directory):
        builder = tfds.builder_from_directory(directory)
        _check_features(builder.info.features, source)
        splits = builder.info.splits
        available = _SplitSizes(splits["train"].num_examples, splits["test"].num_examples)
    kept = _sizes_to_keep(sizes, source.title, available)
    with _damage_reported(source.title, directory):
        x_train, y_train = _read_split(builder, f"train[:{kept.train}]", kept.train)
        x_test, y_test = _read_split(builder, f"test[:{kept.test}]", kept.test)
    title = _title(source.title, kept, available)
    return Dataset(name, title, x_train, y_train, x_test, y_test, source.class_names)


def _check_features(features: Any, source: _Source) -> None:
    if features["image"].shape != _TFDS_IMAGE_SHAPE:
        raise ValueError(f"images of shape {features['image'].shape}, not {_TFDS_IMAGE_SHAPE}")
    if tuple(features["label"].names) != source.class_names:
        raise ValueError(f"class names {features['label'].names}")


def _read_split(
    builder: tfds.core.DatasetBuilder, split: str, size: int
) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    images = np.empty((size, *_TFDS_IMAGE_SHAPE[:2]), np.uint8)
    labels = np.empty(size, np.int64)
    batches = builder.as_dataset(
        split=split,
        batch_size=_READ_BATCH,
        shuffle_files=False,
        read_config=tfds.ReadConfig(try_autocache=False),  # the cache would be a second copy
    )
    start = 0
    for batch in batches.as_numpy_iterator():
        stop = start + len(batch["label"])
        images[start:stop] = batch["image"][..., 0]  # (batch, 28, 28, 1) -> (batch, 28, 28)
        labels[start:stop] = batch["label"]
        start = stop
    if start != size or not size:
        raise ValueError(f"{start:,} examples read, {size:,} expected")
    return images, labels


@contextlib.contextmanager
def _damage_reported(title: str, directory: Path) -> Iterator[None]:
    # Damage shows as almost any exception: of JSON, protobuf, TFDS, TensorFlow, or our checks.
    try:
        yield
    except (ImportError, MemoryError):  # no fault of the data
        raise
    except Exception as error:
        raise DataUnavailableError(
            f"The prepared {title} in {directory} is damaged or incomplete ({_reason(error)}). "
            "Delete this folder so that it is prepared anew, or set TFDS_DATA_DIR to another "
            'folder with prepared data, or use the data set "digits".'
        ) from error


def _reason(error: Exception) -> str:
    # Where urllib3 has tried more than once, only the last attempt tells what is wrong.
    told = getattr(error.args[0] if error.args else None, "reason", None) or error
    text = f"{type(error).__name__}: {told}"
    text = re.sub(r"\{\{.*?\}\}", "", text)  # TensorFlow's names of nodes
    text = re.sub(r"HTTPS?ConnectionPool\([^)]*\): ", "", text)
    text = " ".join(text.split())
    # Its kind stands at the beginning, what the system says at the end, long paths between them.
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-55:]}"


def _layer_seeds(seed: int, count: int) -> list[int]:
    # Spawned rather than seed + 0, 1, 2, ..., which neighbouring seeds would share.
    return [int(state) >> 1 for state in np.random.SeedSequence(seed).generate_state(count)]


def _dense(name: str, units: int, seed: int, activation: str | None = None) -> keras.layers.Dense:
    return keras.layers.Dense(
        units,
        activation=activation,
        use_bias=False,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        name=name,
    )


def _compile(network: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    network.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def _free_memory() -> None:
    """Gives back the memory of models that nobody uses: they hold themselves in circles."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than GNU's
            ctypes.CDLL(None).malloc_trim(0)


def _free_memory_after_cells() -> None:
    """In a notebook, where the cells leave models behind; Binder has little memory."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        shell.events.register("post_run_cell", lambda result: _free_memory())


@contextlib.contextmanager
def _graphs_let_go() -> Iterator[None]:
    """Frees what TensorFlow would keep of a training for good: 38 MB for the tutorial's network.

    Each training step that is traced enters the gradient of a sum over devices into a registry
    that is never emptied, and with it the step's graph, the weights and Adam's moments
    (https://github.com/tensorflow/tensorflow/issues/97697). After the tracing nobody asks for it.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python.framework import ops

    gradients = ops.gradient_registry._registry
    known = set(gradients)
    try:
        yield
    finally:
        for name in gradients.keys() - known:
            if name.startswith("CustomGradient-"):
                del gradients[name]


class _Batches(keras.utils.PyDataset):
    """Training batches in a new random order each epoch.

    From arrays `fit` makes a second copy of all images, and TensorFlow keeps its memory.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int) -> None:
        super().__init__()
        self._images, self._labels, self._batch_size = images, labels, batch_size
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index == 0:
            self._order = self._random.permutation(len(self._images))
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._images[chosen], self._labels[chosen]


def _as_fit_takes_it(batches: _Batches) -> Any:
    """Returns the batches; on TensorFlow as a data set that it does not tune.

    Its tuning thread may miss that an epoch has ended and sleep on while the training waits
    for it: 5 seconds between two epochs of 6.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False

    def one_epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index in range(len(batches)):
            yield batches[index]

    signature = tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in batches[0])
    return (
        tf.data.Dataset.from_generator(one_epoch, output_signature=signature)
        .apply(tf.data.experimental.assert_cardinality(len(batches)))
        .prefetch(1)
        .with_options(options)
    )


class _Heap(keras.callbacks.Callback):
    """Makes the heap roomy for a long training, after its first batch: TensorFlow changes it there.

    A short one goes on with what TensorFlow makes of it: least memory, more time.
    """

    def __init__(self, *, is_roomy: bool) -> None:
        super().__init__()
        self._is_roomy = is_roomy

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0 and self._is_roomy:
            _set_up_heap(is_roomy=True)

    def on_train_end(self, logs: Any = None) -> None:
        _set_up_heap()


class _Progress(keras.callbacks.Callback):
    """One updating line of text on the standard output."""

    def __init__(self, title: str, epochs: int, steps: int, *, verbose: bool) -> None:
        super().__init__()
        self._name = title.split(", first")[0]  # without sizes, so that the line is not cut
        self._epochs = epochs
        self._epoch = 0
        self._bar = tqdm(
            total=epochs * steps,
            file=sys.stdout,
            disable=not verbose,
            ascii=True,
            ncols=120,  # the longest title, accuracy and time are 105 letters
            mininterval=1.0,  # seconds; a notebook's file keeps every update
            bar_format="|{bar:20}| {desc}",
        )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch + 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._bar.set_description_str(
            f"{self._name}, epoch {self._epoch}/{self._epochs}, loss {logs['loss']:.4f}, "
            f"accuracy {logs['accuracy']:.4f}",
            refresh=False,
        )
        self._bar.update()

    def finish(self, text: str) -> None:
        """Leaves `text` as the last state of the line."""
        self._bar.bar_format = "{desc}"
        self._bar.set_description_str(text, refresh=False)

    def close(self) -> None:
        """Ends the line; harmless when repeated."""
        self._bar.close()


_free_memory_after_cells()
